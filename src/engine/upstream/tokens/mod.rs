//! Completions of token ids, with log-probs, through servers that report them. Prompts are tokenized here and sent as
//! ids; texts are decoded here from the ids that come back, so that a completion has the form of a local one. This is
//! done only where a server has been found to have the tokenizer of the local model ([`verify`]).

mod engine;
mod llama_cpp;
mod sample;
mod sglang;
pub mod verify;
mod vllm;

use std::sync::Arc;

use serde_json::Value;

use super::address::Address;
use super::wire::{self, Kind};
use crate::engine::model_text::ModelText;
use crate::engine::tokenizing::Tokenizing;
use crate::engine::{EngineError, FinishReason, SamplingParams, TokenLogprob};

/// What is known here of the model that the servers run: that of the local files from which it is trained.
#[derive(Clone)]
pub struct LocalBase {
    /// Its name, for messages.
    pub name: String,
    pub text: Arc<ModelText>,
    pub vocab_size: usize,
    /// Ids that end a sample.
    pub eos_ids: Vec<u32>,
    pub max_context: usize,
}

impl std::fmt::Debug for LocalBase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalBase").field("name", &self.name).field("vocab_size", &self.vocab_size).finish()
    }
}

/// How a server is asked for token ids and log-probs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenApi {
    /// `/v1/completions` with `return_token_ids`, and `/tokenize`.
    Vllm,
    /// `/generate` with `return_logprob`, and `/tokenize`.
    Sglang,
    /// `/completion` with `n_probs` and `return_tokens`, and `/tokenize`.
    LlamaCpp,
}

/// The state of a fleet whose token ids are used.
pub(super) struct TokenMode {
    pub api: TokenApi,
    pub base: LocalBase,
    pub tokenizing: Tokenizing,
}

/// A request for `n` samples that continue `ids`.
pub(super) struct TokenCall<'a> {
    pub model: &'a str,
    pub ids: &'a [u32],
    pub params: &'a SamplingParams,
    /// Ids that end a sample.
    pub end_ids: &'a [u32],
    /// Most tokens of each sample.
    pub max_tokens: usize,
    /// Number of most likely alternatives of each token.
    pub top: usize,
    pub n: usize,
    pub seed: u64,
    /// The answer is a stream of events. llama.cpp never streams.
    pub stream: bool,
}

/// The tokens of one sample since the last part.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Part {
    pub index: usize,
    pub tokens: Vec<TokenLogprob>,
    /// Why the server ended the sample.
    pub finish: Option<FinishReason>,
}

/// What is needed to read the answers of one call.
#[derive(Debug)]
pub(super) struct Reader {
    api: TokenApi,
    vocab: usize,
    top: usize,
    /// Number of tokens of each sample that were read.
    seen: Vec<usize>,
}

impl TokenApi {
    /// `None` for kinds whose answers have no token ids.
    pub fn of(kind: Kind) -> Option<Self> {
        match kind {
            Kind::Vllm => Some(Self::Vllm),
            Kind::Sglang => Some(Self::Sglang),
            Kind::LlamaCpp => Some(Self::LlamaCpp),
            Kind::OpenAi | Kind::Instructd => None,
        }
    }

    /// Whether one call can request several samples, and its answer is a stream. llama.cpp is asked for one sample in
    /// several calls: its streams leave out the ids of tokens that end inside a character.
    pub fn streams(self) -> bool {
        self != Self::LlamaCpp
    }

    /// Address and body of a call.
    ///
    /// # Errors
    /// `BadRequest` at the parameter that the server does not have.
    pub(super) fn call(self, call: &TokenCall<'_>) -> Result<(Address, Value), EngineError> {
        match self {
            Self::Vllm => vllm::call(call),
            Self::Sglang => sglang::call(call),
            Self::LlamaCpp => llama_cpp::call(call),
        }
    }

    /// Address and body of the question how the server tokenizes `text`, without tokens around it.
    pub(super) fn tokenize_call(self, model: &str, text: &str) -> (Address, Value) {
        let body = match self {
            Self::Vllm | Self::Sglang => {
                serde_json::json!({"model": model, "prompt": text, "add_special_tokens": false})
            }
            Self::LlamaCpp => serde_json::json!({"content": text, "add_special": false, "parse_special": false}),
        };
        (Address::Root("tokenize"), body)
    }
}

impl Reader {
    pub fn new(api: TokenApi, vocab: usize, top: usize, n: usize) -> Self {
        Self { api, vocab, top, seen: vec![0; n] }
    }

    /// Reads an event of a stream, or a whole answer.
    ///
    /// # Errors
    /// What is missing or impossible in it: a token without a log-prob, a log-prob that is not finite, an id outside
    /// the vocabulary, an unknown sample, the server's own error.
    pub fn read(&mut self, answer: &Value) -> Result<Vec<Part>, String> {
        if let Some(error) = answer.get("error").filter(|error| !error.is_null()) {
            return Err(format!("an error in the answer: {error}"));
        }
        let parts = match self.api {
            TokenApi::Vllm => vllm::read(answer, self.vocab, self.top),
            TokenApi::Sglang => sglang::read(answer, self.vocab, self.top, &self.seen),
            TokenApi::LlamaCpp => llama_cpp::read(answer, self.vocab, self.top),
        }?;
        for part in &parts {
            let n = self.seen.len();
            let seen = self.seen.get_mut(part.index);
            let seen = seen.ok_or_else(|| format!("sample {} of {n} requested ones", part.index))?;
            *seen += part.tokens.len();
        }
        Ok(parts)
    }
}

/// Largest log-prob: a rounding error above 0.
const MAX_LOGPROB: f64 = 1e-3;

/// A token id and its log-prob as a server reports them.
fn token(id: &Value, logprob: &Value, vocab: usize) -> Result<(u32, f32), String> {
    let id = token_id(id, vocab)?;
    let given = logprob.as_f64().filter(|given| given.is_finite() && *given <= MAX_LOGPROB);
    let given = given.ok_or_else(|| format!("the log-prob of token {id} is {logprob}"))?;
    Ok((id, given as f32))
}

fn token_id(id: &Value, vocab: usize) -> Result<u32, String> {
    let known = id.as_u64().filter(|id| (*id as usize) < vocab);
    known.map(|id| id as u32).ok_or_else(|| format!("token id {id} is outside the vocabulary ({vocab})"))
}

/// A token with the `top` most likely of `alternatives`, most likely first.
fn with_top((id, logprob): (u32, f32), mut alternatives: Vec<(u32, f32)>, top: usize) -> TokenLogprob {
    alternatives.sort_by(|a, b| b.1.total_cmp(&a.1));
    alternatives.truncate(top);
    TokenLogprob { id, logprob: Some(logprob), top: alternatives }
}

/// A list inside an answer.
fn list<'a>(value: &'a Value, name: &str) -> Result<&'a Vec<Value>, String> {
    value[name].as_array().ok_or_else(|| format!("the answer has no list '{name}'"))
}

/// The sampling parameters under the server's names, without what is done here: stop strings, and ids that end a sample.
fn sampling(kind: Kind, params: &SamplingParams) -> Result<serde_json::Map<String, Value>, EngineError> {
    let mut body = serde_json::Map::new();
    let own = SamplingParams {
        stop: Vec::new(),
        stop_token_ids: Vec::new(),
        include_stop_str_in_output: false,
        constraint: None,
        ..params.clone()
    };
    wire::sampling(kind, &own, &mut body)?;
    Ok(body)
}

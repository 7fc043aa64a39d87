//! Serving engine: owns the models, batches requests continuously, swaps versions between steps.
//! HTTP and services see only the `Generator` trait; tensors stay behind it.

pub mod local;
pub mod mock;
mod prefix;
mod rewards;
mod scheduler;
mod sequence;
mod text;

pub use local::{EngineOptions, LocalEngine};

use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::domain::{Message, ModelVersion, ModelVersionId};

/// How tokens are drawn. Defaults are OpenAI's; every field is honoured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SamplingParams {
    pub max_tokens: usize,
    /// 0 means greedy.
    pub temperature: f32,
    pub top_p: f32,
    /// 0 means off.
    pub top_k: usize,
    pub min_p: f32,
    pub repetition_penalty: f32,
    pub presence_penalty: f32,
    pub frequency_penalty: f32,
    /// Added to the logits of these token ids.
    pub logit_bias: Vec<(u32, f32)>,
    /// Generation ends before the first of these strings; it is not part of the text.
    pub stop: Vec<String>,
    pub seed: u64,
    /// Do not stop at the end token.
    pub ignore_eos: bool,
    /// No end token and no stop string before this many tokens.
    pub min_tokens: usize,
    /// `Some(k)`: report each token's log-prob and the k most likely alternatives (k ≤ 20).
    pub logprobs: Option<usize>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            max_tokens: 16,
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            stop: Vec::new(),
            seed: 0,
            ignore_eos: false,
            min_tokens: 0,
            logprobs: None,
        }
    }
}

/// One prompt, `n` samples. Sample i draws from the random stream (seed, i).
#[derive(Clone, Debug)]
pub struct GenerateRequest {
    pub request_id: String,
    /// Which version answers; `None` = the active one.
    pub version: Option<ModelVersionId>,
    pub prompt_ids: Vec<u32>,
    pub n: usize,
    pub params: SamplingParams,
    /// `Some(k)`: also report the prompt's log-probs with k alternatives (OpenAI `echo` + `logprobs`).
    pub prompt_logprobs: Option<usize>,
}

/// A token with the distribution it was drawn from: log-softmax of the unwarped logits.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprob {
    pub id: u32,
    /// Natural log; `None` only for the first token of a prompt.
    pub logprob: Option<f32>,
    /// Most likely first; empty unless asked for.
    pub top: Vec<(u32, f32)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    Stop,
    Length,
    Abort,
}

impl FinishReason {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
        }
    }
}

/// What a request yields, in order: at most one `Prompt`, then `Delta`s of all samples mixed, and one
/// `Finish` per sample. `Failed` ends everything.
#[derive(Clone, Debug)]
pub enum GenEvent {
    /// Sent only when `prompt_logprobs` was asked for; one entry per prompt token, the first without log-prob.
    Prompt {
        tokens: Vec<TokenLogprob>,
    },
    /// `text` never splits a character and never contains a part of a stop string; it may be empty
    /// while bytes are held back. `tokens` are the tokens drawn since the last delta.
    Delta {
        index: usize,
        text: String,
        tokens: Vec<TokenLogprob>,
    },
    Finish {
        index: usize,
        reason: FinishReason,
    },
    Failed {
        error: EngineError,
    },
}

/// A running request. Dropping it cancels the request and frees its slot within one step.
pub struct Generation {
    pub version: Arc<ServedModel>,
    pub prompt_tokens: usize,
    pub events: mpsc::UnboundedReceiver<GenEvent>,
}

/// Facts about a loaded version that callers need without touching tensors.
#[derive(Clone, Debug)]
pub struct ServedModel {
    pub version: ModelVersion,
    pub vocab_size: usize,
    pub max_context: usize,
    pub eos_ids: Vec<u32>,
    /// `f32`, `q8_0`, …
    pub weights: String,
    pub parameters: u64,
    pub has_chat_template: bool,
}

#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum EngineError {
    #[error("{message}")]
    BadRequest { param: &'static str, message: String },
    #[error("model '{0}' does not exist")]
    UnknownModel(String),
    #[error("the server has no room for this request now")]
    Overloaded { retry_after_s: u64 },
    #[error("the server is shutting down")]
    Draining,
    #[error("no model is loaded yet")]
    NotReady,
    #[error("the engine failed: {0}")]
    Failed(String),
}

/// Live numbers for `/metrics` and `/ready`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct EngineStats {
    pub running: usize,
    pub waiting: usize,
    pub kv_tokens_used: usize,
    pub kv_tokens_total: usize,
    pub tokens_generated: u64,
    pub prompt_tokens: u64,
}

/// Finds the files of a version, bringing them from elsewhere if need be.
#[async_trait]
pub trait ModelFiles: std::fmt::Debug + Send + Sync {
    /// The directory or file to load, or why there is none.
    async fn path(&self, version: &ModelVersion) -> Result<std::path::PathBuf, String>;
}

/// Anything that writes text: the local engine, a mock, or an upstream server.
#[async_trait]
pub trait Generator: Send + Sync + 'static {
    /// Admits or refuses at once; never waits for compute.
    async fn generate(&self, request: GenerateRequest) -> Result<Generation, EngineError>;
    /// The active policy version, if loaded.
    fn active(&self) -> Option<Arc<ServedModel>>;
    /// All versions that can be named in `GenerateRequest::version` without loading.
    fn loaded(&self) -> Vec<Arc<ServedModel>>;
    /// Loads (if needed), validates and warms up a version, without making it active.
    async fn load(&self, version: &ModelVersion) -> Result<Arc<ServedModel>, EngineError>;
    /// Makes a loaded version the active one between two steps; requests in flight keep theirs.
    async fn activate(&self, version: &ModelVersionId) -> Result<(), EngineError>;
    /// Text → ids. User text never becomes a special token unless `parse_special`.
    async fn tokenize(
        &self,
        version: Option<&ModelVersionId>,
        text: &str,
        add_special: bool,
        parse_special: bool,
    ) -> Result<Vec<u32>, EngineError>;
    async fn detokenize(&self, version: Option<&ModelVersionId>, ids: &[u32]) -> Result<String, EngineError>;
    /// The bytes-as-text of each single token (for log-prob listings).
    async fn token_texts(&self, version: Option<&ModelVersionId>, ids: &[u32]) -> Result<Vec<String>, EngineError>;
    /// Renders with the model's chat template, generation prompt added, and tokenizes.
    async fn chat_prompt(
        &self,
        version: Option<&ModelVersionId>,
        messages: &[Message],
    ) -> Result<Vec<u32>, EngineError>;
    /// Scores conversations (the last message is the response) with a reward model version.
    async fn rewards(&self, version: &ModelVersion, conversations: &[Vec<Message>]) -> Result<Vec<f64>, EngineError>;
    fn stats(&self) -> EngineStats;
    /// Stops admitting; resolves when the last request has ended or the deadline has passed.
    async fn drain(&self, deadline: std::time::Duration);
}

//! Checks, before a server's token ids are used, that it has the tokenizer of the local model and reports the log-probs
//! of the distribution that the model computes, without the temperature.

use std::time::Duration;

use serde_json::Value;

use super::{LocalBase, Reader, TokenApi, TokenCall};
use crate::engine::upstream::http::Http;
use crate::engine::{SamplingParams, TextForm, TokenLogprob, Warpers};

/// What is tokenized by both: words, numbers, spaces, lines, code, several scripts, and characters of several tokens.
const TEXT: &str = "The quick brown fox jumps over the lazy dog. It's 12345.678 + 90%, isn't it?\n\n  fn main() {\t\
                    println!(\"{}\", x != y); }\nStraße, déjà vu; Привет, мир! 你好，世界。こんにちは 안녕하세요 مرحبا नमस्ते 🙂🦀 \
                    supercalifragilisticexpialidocious HTTPServer_v2 https://example.org/a?b=c&d=e   end";
/// What is continued with one token, at two temperatures.
const PROMPT: &str = "The quick brown fox jumps over the lazy";
const TEMPERATURE: f32 = 4.0;
/// Smallest difference of two log-probs, in nats, that shows whether the temperature is in them.
const LEAST_SPREAD: f32 = 0.05;
/// Number of alternatives that are compared.
const ALTERNATIVES: usize = 5;

/// Why the token ids of a server are not used.
#[derive(Clone, Debug, PartialEq)]
pub enum Unverified {
    /// It does not answer now.
    Away(String),
    /// Its ids mean something else, or it does not report what is needed.
    Differs(String),
}

/// Compares servers with the local model.
#[derive(Clone, Debug)]
pub struct Verifier {
    pub api: TokenApi,
    pub base: LocalBase,
    /// The model's name at the servers.
    pub model: String,
    pub timeout: Duration,
}

impl Verifier {
    /// # Errors
    /// Why the server's token ids must not be used.
    pub async fn verify(&self, http: &Http) -> Result<(), Unverified> {
        if let Err(failure) = http.models().await {
            return Err(Unverified::Away(failure.error.to_string()));
        }
        self.compare_ids(http).await.map_err(Unverified::Differs)?;
        self.compare_logprobs(http).await.map_err(Unverified::Differs)
    }

    /// Tokenizes a text at the server.
    async fn compare_ids(&self, http: &Http) -> Result<(), String> {
        let form = TextForm::Whole { special: false, parse_special: false };
        let own = self.base.text.encode(TEXT, form).map_err(|e| e.to_string())?;
        let (at, body) = self.api.tokenize_call(&self.model, TEXT);
        let answer = http.ask(at, Some(body), self.timeout).await?;
        let theirs = answer["tokens"].as_array().ok_or("its answer to /tokenize has no list 'tokens'")?;
        let theirs: Vec<Option<u64>> = theirs.iter().map(Value::as_u64).collect();
        let own: Vec<Option<u64>> = own.into_iter().map(|id| Some(u64::from(id))).collect();
        if own == theirs {
            return Ok(());
        }
        let at = own.iter().zip(&theirs).position(|(a, b)| a != b).unwrap_or(own.len().min(theirs.len()));
        let named = |ids: &[Option<u64>]| match ids.get(at) {
            Some(Some(id)) => id.to_string(),
            _ => "missing".to_owned(),
        };
        let (own, theirs) = (named(&own), named(&theirs));
        Err(format!("its tokenizer is another: token {at} of a text is {theirs} there and {own} in {}", self.base.name))
    }

    /// Compares how far apart the reported log-probs are at temperature 1 and at a higher one.
    async fn compare_logprobs(&self, http: &Http) -> Result<(), String> {
        let cold = self.spread(http, 1.0).await?;
        let hot = self.spread(http, TEMPERATURE).await?;
        let is_scaled = (hot - cold / TEMPERATURE).abs() < (hot - cold).abs();
        if cold > LEAST_SPREAD && is_scaled {
            return Err(format!(
                "it reports log-probs after the temperature: the most likely tokens are {cold:.3} nats apart at \
                 temperature 1 and {hot:.3} at {TEMPERATURE}. Start SGLang with SGLANG_RETURN_ORIGINAL_LOGPROB=1, vLLM \
                 with --logprobs-mode raw_logprobs"
            ));
        }
        Ok(())
    }

    /// The difference, in nats, of the first and the last of the most likely next tokens.
    async fn spread(&self, http: &Http, temperature: f32) -> Result<f32, String> {
        let ids = self.base.text.encode(PROMPT, TextForm::PROMPT).map_err(|e| e.to_string())?;
        let params = SamplingParams { warpers: Warpers { temperature, ..Warpers::default() }, ..Default::default() };
        let call = TokenCall {
            model: &self.model,
            ids: &ids,
            params: &params,
            end_ids: &[],
            max_tokens: 1,
            top: ALTERNATIVES,
            n: 1,
            seed: 1,
            stream: false,
        };
        let (at, body) = self.api.call(&call).map_err(|e| e.to_string())?;
        let answer = http.ask(at, Some(body), self.timeout).await?;
        let parts = Reader::new(self.api, self.base.vocab_size, ALTERNATIVES, 1).read(&answer)?;
        let token: Option<&TokenLogprob> = parts.iter().flat_map(|part| &part.tokens).next();
        let top = &token.ok_or("it generated no token")?.top;
        match (top.first(), top.last()) {
            (Some(first), Some(last)) if top.len() == ALTERNATIVES => Ok(first.1 - last.1),
            _ => Err(format!("it reported {} of {ALTERNATIVES} alternatives", top.len())),
        }
    }
}

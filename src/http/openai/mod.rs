//! The OpenAI-compatible API: completions, chat, models, tokenize.

pub mod begin;
pub mod blocks;
pub mod chat;
pub mod chat_request;
pub mod completions;
pub mod constrained;
pub mod logprobs;
pub mod models;
pub mod params;
pub mod stream;
pub mod tokenize;
pub mod turns;
pub mod written;

use schemars::JsonSchema;
use serde::Serialize;

use crate::domain::{CompletionId, ModelVersionId};
use crate::service::complete::Running;

/// Token counts of a request.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
pub struct TokenUsage {
    /// Each prompt once.
    pub prompt_tokens: usize,
    /// Tokens of every sample.
    pub completion_tokens: usize,
    pub total_tokens: usize,
}

impl TokenUsage {
    pub fn new(prompt_tokens: usize, completion_tokens: usize) -> Self {
        Self { prompt_tokens, completion_tokens, total_tokens: prompt_tokens + completion_tokens }
    }
}

/// Token counts of a request: each prompt once, and every sample.
pub fn usage(runs: &[Running]) -> TokenUsage {
    let prompt = runs.iter().map(|r| r.prompt_tokens).sum();
    TokenUsage::new(prompt, runs.iter().map(Running::generated_tokens).sum())
}

/// The version of a response, and the ids of its stored texts.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Generated {
    /// In the order of the choices; null for empty texts, which are not stored.
    pub completion_ids: Vec<Option<CompletionId>>,
    pub model_version: ModelVersionId,
    /// As in the request, or as drawn by the server.
    pub seed: u64,
}

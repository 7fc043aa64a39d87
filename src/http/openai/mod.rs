//! The OpenAI-compatible surface: completions, chat, models, tokenize.

pub mod begin;
pub mod blocks;
pub mod chat;
pub mod completions;
pub mod constrained;
pub mod logprobs;
pub mod models;
pub mod params;
pub mod stream;
pub mod tokenize;
pub mod turns;
pub mod written;

use serde_json::{Value, json};

use crate::service::complete::Running;

/// Token counts of a request: prompts once each, every sample that was drawn.
pub fn usage(runs: &[Running]) -> Value {
    let prompt: usize = runs.iter().map(|r| r.prompt_tokens).sum();
    let completion: usize = runs.iter().map(Running::generated_tokens).sum();
    json!({"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion})
}

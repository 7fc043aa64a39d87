//! `[upstream]`: another server that generates the text.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{optional_text, text};

/// Another OpenAI-compatible server that writes the text instead of the built-in engine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct UpstreamConfig {
    /// Base address as OpenAI clients take it; `None` = the built-in engine serves `model`.
    #[serde(deserialize_with = "optional_text")]
    pub url: Option<String>,
    /// Base addresses of further servers with the same model. Each request goes to the least busy one; one that fails
    /// is passed over.
    pub replicas: Vec<String>,
    /// How often each of several servers is asked whether it has the model; 0 = never.
    pub health_seconds: u64,
    /// `openai`, `vllm`, `sglang`, `llama.cpp` or `instructd`: which parameters it knows.
    #[serde(deserialize_with = "text")]
    pub kind: String,
    /// Sent as `Authorization: Bearer`.
    #[serde(deserialize_with = "optional_text")]
    pub api_key: Option<String>,
    /// A model it lists; `None` = its first.
    #[serde(deserialize_with = "optional_text")]
    pub model: Option<String>,
    /// How long a connection may take to come about.
    pub connect_timeout_seconds: u64,
    /// Longest silence: until an answer begins, and between its pieces.
    pub response_timeout_seconds: u64,
    /// Further attempts where nothing was begun.
    pub retries: usize,
    /// Samples under way; more are refused with 429.
    pub max_running: usize,
    /// Failures in a row after which nobody is sent for `breaker_pause_seconds`.
    pub breaker_failures: u32,
    /// How long that is; then one trial decides.
    pub breaker_pause_seconds: u64,
}

impl Default for UpstreamConfig {
    fn default() -> Self {
        Self {
            url: None,
            replicas: Vec::new(),
            health_seconds: 5,
            kind: "openai".to_owned(),
            api_key: None,
            model: None,
            connect_timeout_seconds: 5,
            response_timeout_seconds: 60,
            retries: 2,
            max_running: 64,
            breaker_failures: 5,
            breaker_pause_seconds: 15,
        }
    }
}

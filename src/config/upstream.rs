//! `[upstream]`: another server that generates the text.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{optional_text, text};

/// Another OpenAI-compatible server that generates the text instead of the built-in engine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct UpstreamConfig {
    /// Base address, as for OpenAI clients; `None` = the built-in engine serves `model`.
    #[serde(deserialize_with = "optional_text")]
    pub url: Option<String>,
    /// Base addresses of further servers with the same model. Each request goes to the least busy one that does not
    /// fail.
    pub replicas: Vec<String>,
    /// Seconds between health checks when there are several servers; 0 = no checks.
    pub health_seconds: u64,
    /// `openai`, `vllm`, `sglang`, `llama.cpp` or `instructd`: determines the supported parameters.
    #[serde(deserialize_with = "text")]
    pub kind: String,
    /// Sent as `Authorization: Bearer`.
    #[serde(deserialize_with = "optional_text")]
    pub api_key: Option<String>,
    /// A model that the server lists; `None` = the first.
    #[serde(deserialize_with = "optional_text")]
    pub model: Option<String>,
    /// Longest time for opening a connection, in seconds.
    pub connect_timeout_seconds: u64,
    /// Longest wait for the beginning of a response and between its parts, in seconds.
    pub response_timeout_seconds: u64,
    /// Further attempts of calls that did not begin to answer.
    pub retries: usize,
    /// Concurrent samples; more are refused with 429.
    pub max_running: usize,
    /// Consecutive failures after which no request is sent for `breaker_pause_seconds`.
    pub breaker_failures: u32,
    /// Seconds without requests after repeated failures; then one request is tried.
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

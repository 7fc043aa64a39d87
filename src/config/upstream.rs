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
    /// Use token ids and log-probs of the servers, if `kind` is `vllm`, `sglang` or `llama.cpp` and they have the
    /// tokenizer of `model`, which is checked at the start. Prompts are then tokenized here.
    pub token_ids: bool,
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
    /// How a promoted version of this server is loaded at the upstream servers: `vllm`, `sglang`, `llama.cpp` or
    /// `command`; `None` = versions of this server cannot be promoted.
    #[serde(deserialize_with = "optional_text")]
    pub push: Option<String>,
    /// Where the upstream servers find the files of a version. `{path}` is their path on this machine, `{id}` and `{name}`
    /// are those of the version.
    #[serde(deserialize_with = "text")]
    pub push_path: String,
    /// With `push = "command"`: program and arguments, run once for each server. `{url}` is the server's base address,
    /// `{path}` the result of `push_path`; exit code 0 means that the server serves the version.
    pub push_command: Vec<String>,
    /// Longest time for loading a version at one server, and for its running requests to end before that, in seconds.
    pub push_timeout_seconds: u64,
    /// Largest difference between servers in the log-prob of the first token after a version was loaded.
    pub push_tolerance: f64,
}

impl Default for UpstreamConfig {
    fn default() -> Self {
        Self {
            url: None,
            replicas: Vec::new(),
            health_seconds: 5,
            kind: "openai".to_owned(),
            token_ids: false,
            api_key: None,
            model: None,
            connect_timeout_seconds: 5,
            response_timeout_seconds: 60,
            retries: 2,
            max_running: 64,
            breaker_failures: 5,
            breaker_pause_seconds: 15,
            push: None,
            push_path: "{path}".to_owned(),
            push_command: Vec::new(),
            push_timeout_seconds: 300,
            push_tolerance: 0.2,
        }
    }
}

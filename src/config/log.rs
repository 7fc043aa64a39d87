//! `[log]`: log lines and traces.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ConfigError, error, optional_text};

/// Log lines on standard error, and traces for a collector.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// A tracing filter such as `info` or `instructd=debug,tower_http=info`.
    pub filter: String,
    /// Log lines as JSON.
    pub json: bool,
    /// Base address of an OpenTelemetry collector (OTLP by HTTP, JSON) that gets traces of requests and jobs; `None` =
    /// none.
    #[serde(deserialize_with = "optional_text")]
    pub traces_url: Option<String>,
    /// The share of traces that is sent, 0 to 1; a trace is sent as a whole or not at all.
    pub traces_share: f64,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { filter: "info".to_owned(), json: false, traces_url: None, traces_share: 1.0 }
    }
}

impl LogConfig {
    /// # Errors
    /// When a setting is not valid; the error has its key.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if let Err(e) = tracing_subscriber::EnvFilter::try_new(&self.filter) {
            return Err(error("log.filter", format!("'{}' is not a tracing filter: {e}", self.filter)));
        }
        if !(0.0..=1.0).contains(&self.traces_share) {
            return Err(error("log.traces_share", "must be 0 to 1"));
        }
        if let Some(url) = &self.traces_url
            && !["http://", "https://"].iter().any(|scheme| url.len() > scheme.len() && url.starts_with(scheme))
        {
            return Err(error("log.traces_url", "must be http://… or https://…"));
        }
        Ok(())
    }
}

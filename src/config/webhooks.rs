//! Sending of webhooks.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ConfigError, error};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct WebhooksConfig {
    /// `host` or `host:port` that webhooks may call by plain HTTP and at private addresses; others need https and
    /// public addresses.
    pub hosts: Vec<String>,
    /// Attempts at a delivery before it is given up.
    pub attempts: u32,
    /// Seconds before the second attempt; each further wait is four times as long, up to six hours.
    pub first_retry_seconds: u32,
    /// Longest time for one attempt, 1 to 30 seconds.
    pub timeout_seconds: u32,
    /// Days after which ended deliveries are removed.
    pub keep_days: u32,
}

impl Default for WebhooksConfig {
    fn default() -> Self {
        Self { hosts: Vec::new(), attempts: 10, first_retry_seconds: 10, timeout_seconds: 10, keep_days: 30 }
    }
}

impl WebhooksConfig {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        for (key, value, most) in [
            ("webhooks.attempts", self.attempts, 100),
            ("webhooks.first_retry_seconds", self.first_retry_seconds, 3600),
            // Less than the time for which a server holds a delivery.
            ("webhooks.timeout_seconds", self.timeout_seconds, 30),
            ("webhooks.keep_days", self.keep_days, 3650),
        ] {
            if !(1..=most).contains(&value) {
                return Err(error(key, format!("must be 1 to {most}")));
            }
        }
        Ok(())
    }
}

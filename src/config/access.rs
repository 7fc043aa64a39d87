//! `[rates]`: limits on the number of requests of one caller.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Requests per minute of one caller (a key, a session, or the address of a caller without either); 0 = no limit.
/// Requests beyond the limit get 429 with `Retry-After`. Administrators are not limited.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RatesConfig {
    /// Wrong keys, invites and links of one address, on all routes. Beyond the limit the configured admin key may be
    /// tried only once in 1 to 30 seconds; other valid keys and sessions are not affected. The limit for all addresses
    /// together is 20 times as high.
    pub login_per_minute: u32,
    /// Inference requests: texts, scores, embeddings, …
    pub inference_per_minute: u32,
    /// Rankings, leases, feedback.
    pub feedback_per_minute: u32,
}

impl Default for RatesConfig {
    fn default() -> Self {
        Self { login_per_minute: 30, inference_per_minute: 0, feedback_per_minute: 0 }
    }
}

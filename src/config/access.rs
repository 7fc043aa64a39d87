//! `[rates]`: limits on the number of requests of one caller.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Requests a minute of one caller (a key, a session, or the address of who has neither); 0 = any number.
/// Beyond, requests get 429 with `Retry-After`. Administrators are not counted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RatesConfig {
    /// Wrong keys, invites and links of one address, on every route. Beyond, the configured admin key may be tried only
    /// once in a while (1 to 30 seconds); other right keys and sessions are never refused for it. All addresses
    /// together may be wrong 20 times as often.
    pub login_per_minute: u32,
    /// Requests for text, scores and the like.
    pub inference_per_minute: u32,
    /// Rankings, leases, feedback.
    pub feedback_per_minute: u32,
}

impl Default for RatesConfig {
    fn default() -> Self {
        Self { login_per_minute: 30, inference_per_minute: 0, feedback_per_minute: 0 }
    }
}

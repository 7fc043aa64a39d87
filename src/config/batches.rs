//! Files and batches of requests.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BatchesConfig {
    /// Requests of batches that this server answers at the same time; 0 = it answers none. They take their turn behind
    /// other requests.
    pub at_once: usize,
    /// Bytes of files, answers of batches included, that one key may have.
    pub key_bytes: usize,
    /// Days after which files and batches that are over are removed.
    pub keep_days: u32,
}

impl Default for BatchesConfig {
    fn default() -> Self {
        Self { at_once: 4, key_bytes: 256 << 20, keep_days: 30 }
    }
}

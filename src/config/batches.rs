//! Files and batches of requests.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BatchesConfig {
    /// Concurrent requests of batches on this server, at lower priority than other requests; 0 = this server runs no
    /// batches.
    pub at_once: usize,
    /// Bytes of all files of one key, including the results of batches.
    pub key_bytes: usize,
    /// Days after which ended batches and their files are removed.
    pub keep_days: u32,
}

impl Default for BatchesConfig {
    fn default() -> Self {
        Self { at_once: 4, key_bytes: 256 << 20, keep_days: 30 }
    }
}

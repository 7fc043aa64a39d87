//! `[limits]`: limits on the size of one request.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// Largest request body.
    pub body_bytes: usize,
    /// Largest file that can be imported.
    pub import_bytes: usize,
    /// Largest file of requests that can be uploaded to `/v1/files`.
    pub file_bytes: usize,
    /// An import that takes longer is ended; what it stored stays.
    pub import_seconds: u64,
    /// Rows or lines of one imported file.
    pub import_rows: u64,
    /// Bytes that an imported file may unpack to; 0 = four times `import_bytes`.
    pub import_unpacked_bytes: u64,
    /// Largest prompt or conversation, with everything that a template puts into it. Reading a text takes some 200
    /// bytes of memory for each of its bytes.
    pub prompt_bytes: usize,
    /// Prompts in one `/v1/completions` call.
    pub prompts: usize,
    /// Prompts × max(n, best_of) in one call.
    pub samples: usize,
    /// Stop strings of one request.
    pub stop_strings: usize,
    /// Length of one stop string.
    pub stop_bytes: usize,
    /// `max_tokens` of a chat request that does not say (the context's rest, if smaller).
    pub default_chat_tokens: usize,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            body_bytes: 2 << 20,
            import_bytes: 256 << 20,
            file_bytes: 32 << 20,
            import_seconds: 1800,
            import_rows: 10_000_000,
            import_unpacked_bytes: 0,
            prompt_bytes: 256 << 10,
            prompts: 256,
            samples: 256,
            stop_strings: 16,
            stop_bytes: 256,
            default_chat_tokens: 1024,
        }
    }
}

impl LimitsConfig {
    /// Bytes that an imported file may unpack to.
    pub fn unpacked_bytes(&self) -> u64 {
        match self.import_unpacked_bytes {
            0 => (self.import_bytes as u64).saturating_mul(4),
            bytes => bytes,
        }
    }
}

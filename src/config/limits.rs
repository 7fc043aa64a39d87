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
    /// Seconds after which an import is stopped; rows that it has stored are kept.
    pub import_seconds: u64,
    /// Rows or lines of one imported file.
    pub import_rows: u64,
    /// Most bytes of an imported file after decompression; 0 = four times `import_bytes`.
    pub import_unpacked_bytes: u64,
    /// Largest prompt or conversation, including what a template adds. Reading a text takes about 200 bytes of memory
    /// per byte.
    pub prompt_bytes: usize,
    /// Prompts in one `/v1/completions` call.
    pub prompts: usize,
    /// Prompts × max(n, best_of) in one call.
    pub samples: usize,
    /// Stop strings of one request.
    pub stop_strings: usize,
    /// Length of one stop string.
    pub stop_bytes: usize,
    /// `max_tokens` of a chat request without that field (or the rest of the context, if smaller).
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
    /// Most bytes of an imported file after decompression.
    pub fn unpacked_bytes(&self) -> u64 {
        match self.import_unpacked_bytes {
            0 => (self.import_bytes as u64).saturating_mul(4),
            bytes => bytes,
        }
    }
}

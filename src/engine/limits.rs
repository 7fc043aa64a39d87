//! Limits of a scheduler's steps and the size of its cache.

use crate::model::ModelConfig;
use crate::model::decoder::kv_cache::PAGE;
use crate::ops::attn_kernel::padded;
use crate::ops::kv_blocks::KvFormat;

/// Limits of one step and of the memory of one loaded version.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Maximum number of samples advanced together.
    pub max_running: usize,
    /// Maximum number of prompt tokens per step, in addition to one token of each running sample.
    pub prefill_tokens: usize,
    /// Size of the cache in tokens; 0 chooses a size.
    pub kv_tokens: usize,
    /// How the cache stores keys and values. Devices other than the CPU have formats of their own.
    pub kv_format: KvFormat,
    /// Maximum number of drafted tokens for each running sample and step; 0 turns drafting off.
    pub draft_tokens: usize,
}

/// The size of a version's cache in tokens: (of all layers, of windowed layers). The first is the configured size, or
/// by default a full context for each running sample within 2 GiB. Windowed layers hold the windows of all running
/// samples, and a quarter of all tokens for prefixes.
pub(super) fn cache_tokens(config: &ModelConfig, limits: Limits) -> (usize, usize) {
    const MAX_BYTES: usize = 2 << 30;
    let window = config.switches.layers.iter().filter_map(|layer| layer.window).max();
    let windowed = |tokens: usize| match window {
        Some(window) => {
            let own = window + 2 * PAGE;
            tokens.min(limits.max_running * own + window + limits.prefill_tokens + tokens / 4)
        }
        None => tokens,
    };
    if limits.kv_tokens > 0 {
        return (limits.kv_tokens, windowed(limits.kv_tokens));
    }
    let per_token = config.n_layers * config.n_kv_heads * 2 * limits.kv_format.bytes(padded(config.head_dim));
    let fits = (MAX_BYTES / per_token.max(1)).max(config.max_positions);
    let tokens = (limits.max_running * config.max_positions).min(fits);
    (tokens, windowed(tokens))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_in_fewer_bits_has_room_for_more_tokens() {
        let config = serde_json::json!({
            "model_type": "llama", "vocab_size": 100, "hidden_size": 4096, "intermediate_size": 64,
            "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
            "max_position_embeddings": 4096,
        });
        let config = ModelConfig::from_hf(&config, None).unwrap();
        let tokens = |kv_format| {
            let limits = Limits { max_running: 64, prefill_tokens: 512, kv_tokens: 0, kv_format, draft_tokens: 0 };
            cache_tokens(&config, limits).0
        };
        // 2 GiB at 256 KiB a token.
        assert_eq!(tokens(KvFormat::F32), 8192);
        assert_eq!(tokens(KvFormat::F16), 16384);
        assert_eq!(tokens(KvFormat::Q8_0), 8192 * 32 / 9);
    }
}

//! Limits of a scheduler's steps and the size of its cache.

use crate::model::ModelConfig;
use crate::model::decoder::kv_cache::PAGE;

/// Limits of one step and of the memory of one loaded version.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Maximum number of samples advanced together.
    pub max_running: usize,
    /// Maximum number of prompt tokens per step, in addition to one token of each running sample.
    pub prefill_tokens: usize,
    /// Size of the cache in tokens; 0 chooses a size.
    pub kv_tokens: usize,
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
    let per_token = config.n_layers * config.n_kv_heads * config.head_dim * 2 * size_of::<f32>();
    let fits = (MAX_BYTES / per_token.max(1)).max(config.max_positions);
    let tokens = (limits.max_running * config.max_positions).min(fits);
    (tokens, windowed(tokens))
}

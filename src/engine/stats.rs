//! Counters that the threads of the replicas write and other threads read.

use std::sync::atomic::AtomicU64;

/// Totals since the start, over all replicas.
#[derive(Default)]
pub struct StatCounters {
    pub generated: AtomicU64,
    pub prompt_tokens: AtomicU64,
    /// Drafted tokens.
    pub drafted: AtomicU64,
    /// Drafted tokens that the sampler drew.
    pub accepted: AtomicU64,
}

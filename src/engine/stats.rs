//! Counters that the engine thread writes and anybody reads.

use std::sync::atomic::{AtomicU64, AtomicUsize};

/// Running and waiting samples, tokens in the cache, and totals since the start.
#[derive(Default)]
pub struct StatCells {
    pub running: AtomicUsize,
    pub waiting: AtomicUsize,
    pub used_tokens: AtomicUsize,
    pub remembered_tokens: AtomicUsize,
    pub total_tokens: AtomicUsize,
    pub generated: AtomicU64,
    pub prompt_tokens: AtomicU64,
    /// Tokens that were guessed, and those of them that were drawn.
    pub drafted: AtomicU64,
    pub followed: AtomicU64,
    /// Accepted and not yet seen by the engine thread.
    pub queued: AtomicUsize,
}

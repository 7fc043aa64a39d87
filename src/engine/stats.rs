//! Counters that the engine thread writes and other threads read.

use std::sync::atomic::{AtomicU64, AtomicUsize};

/// Running and waiting samples, tokens in the cache, and totals since the start.
#[derive(Default)]
pub struct StatCounters {
    pub running: AtomicUsize,
    pub waiting: AtomicUsize,
    pub used_tokens: AtomicUsize,
    pub remembered_tokens: AtomicUsize,
    pub total_tokens: AtomicUsize,
    pub generated: AtomicU64,
    pub prompt_tokens: AtomicU64,
    /// Drafted tokens.
    pub drafted: AtomicU64,
    /// Drafted tokens that the sampler drew.
    pub accepted: AtomicU64,
    /// Requests that were admitted and that the engine thread has not received yet.
    pub queued: AtomicUsize,
}

//! Weighted pairs from rankings, and the split of prompts.

use sha2::{Digest, Sha256};

use super::records::RankedText;
use crate::domain::{Message, Split, hash};

/// A pair: completion `better` was preferred to `worse`, as indices into the set. The weights of a set's pairs add up
/// to 1, so that a set of nine counts no more than a set of two (InstructGPT, section 3.5).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair {
    pub better: usize,
    pub worse: usize,
    pub weight: f32,
}

/// All pairs of different tiers; ties give none. Ordered by (better, worse).
pub fn pairs(completions: &[RankedText]) -> Vec<Pair> {
    let tiers: Vec<i64> = completions.iter().map(|c| c.tier).collect();
    let mut out = Vec::new();
    for (better, a) in tiers.iter().enumerate() {
        for (worse, b) in tiers.iter().enumerate() {
            if a < b {
                out.push(Pair { better, worse, weight: 0.0 });
            }
        }
    }
    let weight = 1.0 / out.len().max(1) as f32;
    for pair in &mut out {
        pair.weight = weight;
    }
    out
}

/// SHA-256 (hex) of the canonical JSON of the messages: `[{"role":…,"content":…},…]`, no spaces.
pub fn content_hash(messages: &[Message]) -> String {
    let canonical = serde_json::to_vec(messages).unwrap_or_default();
    hash::of_bytes(canonical)
}

/// The side of a prompt by its content hash, independent of the order of imports. About `heldout_fraction` of all
/// prompts are held out.
pub fn split_of(content_hash: &str, heldout_fraction: f64) -> Split {
    // A second hash makes the split independent of other uses of the content hash.
    let digest = Sha256::digest(format!("split:{content_hash}"));
    let first = digest.iter().take(8).fold(0u64, |n, byte| n << 8 | u64::from(*byte));
    let position = first as f64 / (u64::MAX as f64 + 1.0);
    if position < heldout_fraction { Split::Heldout } else { Split::Train }
}

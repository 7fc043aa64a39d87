//! The split of prompts into training and held-out ones.

use sha2::{Digest, Sha256};

use crate::domain::{Message, Split, hash};

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

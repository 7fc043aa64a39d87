//! Keys of records by their content, by which imports find what is stored already.

use sha2::{Digest, Sha256};

pub(super) fn digest<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    hex::encode(hash.finalize())
}

/// Key of a set besides its prompt: its texts, in any order.
pub(super) fn content_key(texts: &[&str]) -> String {
    let mut sorted = texts.to_vec();
    sorted.sort_unstable();
    digest(sorted)
}

/// Key of a demonstration besides its prompt.
pub(super) fn text_key(text: &str) -> String {
    digest([text])
}

//! Which replicas have been given prompts with which beginnings, so that a prompt can go to a replica that has its
//! beginning in the cache.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::domain::ModelVersionId;
use crate::model::decoder::kv_cache::PAGE;

/// Maximum number of pages of a prompt that are looked at.
const MAX_PAGES: usize = 1024;
/// Maximum number of beginnings in each of the two generations.
const MAX_BEGINNINGS: usize = 1 << 16;

/// Hashes of prompts' beginnings, each with the set of replicas (a bit each) that were given such a prompt. It is an
/// estimate: a replica may have evicted the pages since. Memory is bounded: when the newer generation is full, it
/// replaces the older one.
#[derive(Default)]
pub struct PrefixIndex {
    newer: HashMap<u64, u64>,
    older: HashMap<u64, u64>,
}

/// Hashes of the first page of a prompt, of its first two pages, and so on. Only full pages can be shared. `version` is
/// the version whose scheduler runs the request, `root` the soft prompt or LoRA version, whose pages are its own.
pub fn beginnings(version: &ModelVersionId, root: Option<&ModelVersionId>, tokens: &[u32]) -> Vec<u64> {
    let mut hasher = DefaultHasher::new();
    (version, root).hash(&mut hasher);
    let pages = tokens.as_chunks::<PAGE>().0.iter().take(MAX_PAGES);
    let hash = pages.map(|page| {
        page.hash(&mut hasher);
        hasher.finish()
    });
    hash.collect()
}

impl PrefixIndex {
    /// For each of `replicas` replicas the number of leading pages that it was given before.
    pub fn matched(&self, beginnings: &[u64], replicas: usize) -> Vec<usize> {
        let mut matched = vec![0; replicas];
        let mut with_all = u64::MAX;
        for hash in beginnings {
            let of = |generation: &HashMap<u64, u64>| generation.get(hash).copied().unwrap_or(0);
            with_all &= of(&self.newer) | of(&self.older);
            if with_all == 0 {
                break;
            }
            for (replica, pages) in matched.iter_mut().enumerate() {
                *pages += usize::from(with_all >> replica & 1 == 1);
            }
        }
        matched
    }

    /// Records that a replica was given a prompt with these beginnings. `replica` is less than 64.
    pub fn insert(&mut self, beginnings: &[u64], replica: usize) {
        for hash in beginnings {
            if self.newer.len() >= MAX_BEGINNINGS {
                self.older = std::mem::take(&mut self.newer);
            }
            *self.newer.entry(*hash).or_default() |= 1 << replica;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(tokens: std::ops::Range<u32>) -> Vec<u64> {
        beginnings(&ModelVersionId::from("a"), None, &tokens.collect::<Vec<_>>())
    }

    #[test]
    fn full_pages_are_found_where_they_were_given() {
        let mut index = PrefixIndex::default();
        index.insert(&of(0..70), 1);
        index.insert(&of(0..20), 0);
        assert_eq!(index.matched(&of(0..100), 3), [1, 4, 0]);
        assert_eq!(index.matched(&of(0..15), 3), [0, 0, 0], "no full page");
        assert_eq!(index.matched(&of(1..100), 3), [0, 0, 0], "other tokens");
        let soft =
            beginnings(&ModelVersionId::from("a"), Some(&ModelVersionId::from("soft")), &(0..100).collect::<Vec<_>>());
        assert_eq!(index.matched(&soft, 3), [0, 0, 0], "pages of a soft prompt are others");
    }

    #[test]
    fn old_beginnings_are_forgotten() {
        let mut index = PrefixIndex::default();
        index.insert(&of(0..16), 0);
        for hash in 0..3 * MAX_BEGINNINGS as u64 {
            index.insert(&[hash], 1);
        }
        assert_eq!(index.matched(&of(0..16), 2), [0, 0]);
        assert_eq!(index.matched(&[3 * MAX_BEGINNINGS as u64 - 1], 2), [0, 1]);
        assert!(index.newer.len() + index.older.len() <= 2 * MAX_BEGINNINGS);
    }
}

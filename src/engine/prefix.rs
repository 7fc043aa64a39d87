//! A tree of cached pages that prompts with a common prefix share. A page is found by its predecessor and its own 16
//! tokens, not by a hash, so prompts cannot collide. Each base model has a tree of its own, and each soft prompt and
//! LoRA version a root of its own in the tree, so that no request reads keys that another adapter computed.

use std::collections::HashMap;

use crate::domain::ModelVersionId;
use crate::model::decoder::kv_cache::{CachedSequence, GONE, KvCache, PAGE};

/// The id of the predecessor's entry, and the page's tokens.
type Key = (u64, [u32; PAGE]);

/// Cached pages by their predecessor and tokens.
#[derive(Default)]
pub struct PrefixTree {
    entries: HashMap<Key, Entry>,
    roots: HashMap<ModelVersionId, u64>,
    next_id: u64,
    clock: u64,
}

struct Entry {
    id: u64,
    page: u32,
    /// The page of windowed layers; `GONE` once it is released.
    windowed: u32,
    /// Time of the last use, on the tree's clock.
    used: u64,
}

impl PrefixTree {
    /// The predecessor of first pages: 0 for the base model, another id for each soft prompt or LoRA version.
    fn root_id(&mut self, root: Option<&ModelVersionId>) -> u64 {
        let Some(version) = root else { return 0 };
        if let Some(root) = self.roots.get(version) {
            return *root;
        }
        self.next_id += 1;
        self.roots.insert(version.clone(), self.next_id);
        self.next_id
    }

    /// The pages of the longest cached prefix of `tokens`, retained for the caller. Never covers the last token, whose
    /// logits must be computed.
    pub fn lookup(&mut self, root: Option<&ModelVersionId>, tokens: &[u32], cache: &mut KvCache) -> CachedSequence {
        self.clock += 1;
        let mut parent = self.root_id(root);
        let (mut found_pages, mut usable, mut gap) = (Vec::new(), 0, 0);
        for (i, chunk) in tokens[..tokens.len().saturating_sub(1)].as_chunks::<PAGE>().0.iter().enumerate() {
            let Some(entry) = self.entries.get_mut(&(parent, *chunk)) else { break };
            entry.used = self.clock;
            parent = entry.id;
            found_pages.push((entry.page, entry.windowed));
            if cache.has_windows() && entry.windowed == GONE {
                gap = i + 1;
            }
            // Windowed layers need all their pages from the first one to which the next token attends.
            if cache.first_seen((i + 1) * PAGE) >= gap {
                usable = i + 1;
            }
        }
        let mut found = CachedSequence { len: usable * PAGE, ..CachedSequence::default() };
        let first = cache.first_seen(found.len);
        for (i, (page, windowed)) in found_pages.into_iter().take(usable).enumerate() {
            cache.retain(page);
            found.pages.push(page);
            if cache.has_windows() {
                let windowed = if i < first { GONE } else { windowed };
                cache.retain_windowed(windowed);
                found.windowed.push(windowed);
            }
        }
        found
    }

    /// Adds the full pages of a prompt, as far as they are computed.
    pub fn insert(
        &mut self,
        root: Option<&ModelVersionId>,
        tokens: &[u32],
        sequence: &CachedSequence,
        cache: &mut KvCache,
    ) {
        self.clock += 1;
        let mut parent = self.root_id(root);
        for (i, chunk) in tokens.as_chunks::<PAGE>().0.iter().enumerate() {
            if (i + 1) * PAGE > sequence.len {
                break;
            }
            let (clock, next_id) = (self.clock, self.next_id + 1);
            let windowed = sequence.windowed.get(i).copied().unwrap_or(GONE);
            let entry = self.entries.entry((parent, *chunk)).or_insert_with(|| {
                cache.retain(sequence.pages[i]);
                Entry { id: next_id, page: sequence.pages[i], windowed: GONE, used: clock }
            });
            // Equal tokens after equal prefixes have equal keys and values, so the page of any sequence will do.
            if entry.windowed == GONE && windowed != GONE {
                cache.retain_windowed(windowed);
                entry.windowed = windowed;
            }
            if entry.id == next_id {
                self.next_id = next_id;
            }
            entry.used = clock;
            parent = entry.id;
        }
    }

    /// Number of pages that only this tree holds.
    pub fn idle_pages(&self, cache: &KvCache) -> usize {
        self.entries.values().filter(|e| cache.references(e.page) == 1).count()
    }

    /// Removes the least recently used entries until `pages` pages are free, and releases pages of windowed layers
    /// until `windowed` of those are free, or until nothing is left to release.
    pub fn evict(&mut self, pages: usize, windowed: usize, cache: &mut KvCache) {
        if (cache.free_pages() >= pages && cache.windowed_pages().1 >= windowed) || self.entries.is_empty() {
            return;
        }
        let mut oldest: Vec<(u64, u64, Key)> =
            self.entries.iter().map(|(k, e)| (e.used, u64::MAX - e.id, *k)).collect();
        // Of entries with the same time the deepest is removed first, so that no entry loses its predecessor.
        oldest.sort_unstable();
        for (_, _, key) in &oldest {
            if cache.free_pages() >= pages {
                break;
            }
            if let Some(entry) = self.entries.remove(key) {
                cache.release(entry.page);
                cache.release_windowed(entry.windowed);
            }
        }
        for (_, _, key) in &oldest {
            if cache.windowed_pages().1 >= windowed {
                break;
            }
            if let Some(entry) = self.entries.get_mut(key) {
                cache.release_windowed(std::mem::replace(&mut entry.windowed, GONE));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ModelConfig;
    use crate::ops::kv_blocks::KvFormat;

    /// A window of 20 in every second layer.
    fn config() -> ModelConfig {
        let config = serde_json::json!({
            "model_type": "gemma2", "vocab_size": 50, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 512,
            "sliding_window": 20,
        });
        ModelConfig::from_hf(&config, None).unwrap()
    }

    fn used(cache: &KvCache) -> (usize, usize) {
        let (all, free) = cache.windowed_pages();
        (cache.total_pages() - cache.free_pages(), all - free)
    }

    /// Adds tokens in chunks of `step`, as the engine does.
    fn extend(tree: &mut PrefixTree, cache: &mut KvCache, s: &mut CachedSequence, tokens: &[u32], step: usize) {
        while s.len < tokens.len() {
            let n = step.min(tokens.len() - s.len);
            assert!(cache.reserve(s, n));
            s.len += n;
            tree.insert(None, tokens, s, cache);
            cache.trim(s);
        }
    }

    #[test]
    fn windowed_layers_keep_their_window_and_a_prefix_is_found_while_its_windowed_pages_are_cached() {
        let (mut tree, mut cache) = (PrefixTree::default(), KvCache::with_format(&config(), KvFormat::F32, 512, 256));
        let tokens: Vec<u32> = (0..160).map(|i| i % 50).collect();
        let mut first = CachedSequence::default();
        extend(&mut tree, &mut cache, &mut first, &tokens, 24);
        // Ten pages. A token at 160 attends to positions from 141 on, in pages 8 and 9. The tree still holds all pages.
        assert_eq!(first.windowed.iter().filter(|page| **page != GONE).count(), 2);
        assert_eq!(used(&cache), (10, 10));
        cache.release_all(&mut first);
        assert_eq!(used(&cache), (10, 10));

        // Another text begins with 100 of these tokens: six full pages, of which windowed layers need those from 77 on.
        let mut other: Vec<u32> = tokens[..100].to_vec();
        other.extend([49; 60]);
        let mut second = tree.lookup(None, &other, &mut cache);
        assert_eq!((second.len, second.pages.len()), (96, 6));
        assert_eq!(
            second.windowed.iter().map(|page| *page != GONE).collect::<Vec<_>>(),
            [false, false, false, false, true, true]
        );
        cache.release_all(&mut second);

        // Without the pages of windowed layers that the next token needs, only a shorter prefix is usable.
        tree.evict(0, 14, &mut cache);
        assert_eq!(used(&cache), (10, 2));
        let mut third = tree.lookup(None, &other, &mut cache);
        let usable = third.len / PAGE;
        assert!(
            usable < 6 && third.windowed.iter().skip(cache.first_seen(third.len)).all(|page| *page != GONE),
            "{third:?}"
        );
        extend(&mut tree, &mut cache, &mut third, &other, 16);
        cache.release_all(&mut third);
        assert_eq!(tree.lookup(None, &other, &mut cache).len, 144, "computed again, found again");
    }

    #[test]
    fn a_sequence_of_any_length_holds_one_window_of_windowed_pages() {
        let mut cache = KvCache::with_format(&config(), KvFormat::F32, 528, 64);
        let mut s = CachedSequence::default();
        for len in 1..=500usize {
            assert!(cache.reserve(&mut s, 1), "{len}");
            s.len = len;
            cache.trim(&mut s);
            let (all, windowed) = used(&cache);
            assert!(all == len.div_ceil(PAGE) && windowed <= 3, "{len}: {all} {windowed}");
        }
        // A fork shares all pages but the last one, which is partly filled.
        let mut fork = cache.fork(&s).unwrap();
        assert_eq!(fork.windowed.len(), s.windowed.len());
        assert_eq!(used(&cache).0, 33);
        cache.release_all(&mut s);
        cache.release_all(&mut fork);
        assert_eq!(used(&cache), (0, 0));
    }
}

//! Prompts that begin alike share cached pages. Exact: a page is found by the page before it and its own
//! 16 tokens, never by a hash that could collide. One tree per model version, so a promotion forgets all; one root in
//! it per soft prompt, so that no request reads what another prompt adapter computed.

use std::collections::HashMap;

use crate::domain::ModelVersionId;
use crate::model::decoder::kv_cache::{CachedSequence, GONE, KvCache, PAGE};

type Key = (u64, [u32; PAGE]);

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
    /// Of windowed layers; `GONE` once it was given up.
    windowed: u32,
    used: u64,
}

impl PrefixTree {
    /// The parent of first pages: 0 without an adapter, one number for each adapter.
    fn root(&mut self, adapter: Option<&ModelVersionId>) -> u64 {
        let Some(adapter) = adapter else { return 0 };
        if let Some(root) = self.roots.get(adapter) {
            return *root;
        }
        self.next_id += 1;
        self.roots.insert(adapter.clone(), self.next_id);
        self.next_id
    }

    /// Pages of the longest known prefix of `tokens`, retained for the caller; never the whole prompt,
    /// because the last token's logits must be computed.
    pub fn lookup(&mut self, adapter: Option<&ModelVersionId>, tokens: &[u32], cache: &mut KvCache) -> CachedSequence {
        self.clock += 1;
        let mut parent = self.root(adapter);
        let (mut known, mut usable, mut gap) = (Vec::new(), 0, 0);
        for (i, chunk) in tokens[..tokens.len().saturating_sub(1)].as_chunks::<PAGE>().0.iter().enumerate() {
            let Some(entry) = self.entries.get_mut(&(parent, *chunk)) else { break };
            entry.used = self.clock;
            parent = entry.id;
            known.push((entry.page, entry.windowed));
            if cache.has_windows() && entry.windowed == GONE {
                gap = i + 1;
            }
            // What windowed layers see from here on must be there without a gap.
            if cache.first_seen((i + 1) * PAGE) >= gap {
                usable = i + 1;
            }
        }
        let mut found = CachedSequence { len: usable * PAGE, ..CachedSequence::default() };
        let first = cache.first_seen(found.len);
        for (i, (page, windowed)) in known.into_iter().take(usable).enumerate() {
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

    /// Remembers the full pages of a prompt as far as it has been computed.
    pub fn insert(
        &mut self,
        adapter: Option<&ModelVersionId>,
        tokens: &[u32],
        sequence: &CachedSequence,
        cache: &mut KvCache,
    ) {
        self.clock += 1;
        let mut parent = self.root(adapter);
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
            // The same tokens behind the same others: the same keys and values, whoever computed them.
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

    /// Pages that nobody but this tree holds: kept for later prompts, given up when room is needed.
    pub fn idle_pages(&self, cache: &KvCache) -> usize {
        self.entries.values().filter(|e| cache.references(e.page) == 1).count()
    }

    /// Forgets the least recently used entries until `pages` pages are free, and gives up pages of windowed layers until
    /// `windowed` of those are, or nothing is left.
    pub fn evict(&mut self, pages: usize, windowed: usize, cache: &mut KvCache) {
        if (cache.free_pages() >= pages && cache.windowed_pages().1 >= windowed) || self.entries.is_empty() {
            return;
        }
        let mut oldest: Vec<(u64, u64, Key)> =
            self.entries.iter().map(|(k, e)| (e.used, u64::MAX - e.id, *k)).collect();
        // Among equally old entries the deepest goes first, so that no reachable child loses its parent.
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

    /// Feeds tokens by the piece, as the engine does.
    fn feed(tree: &mut PrefixTree, cache: &mut KvCache, s: &mut CachedSequence, tokens: &[u32], step: usize) {
        while s.len < tokens.len() {
            let n = step.min(tokens.len() - s.len);
            assert!(cache.reserve(s, n));
            s.len += n;
            tree.insert(None, tokens, s, cache);
            cache.trim(s);
        }
    }

    #[test]
    fn windowed_layers_keep_their_window_and_prefixes_are_found_while_theirs_is_there() {
        let (mut tree, mut cache) = (PrefixTree::default(), KvCache::with_format(&config(), KvFormat::F32, 512, 256));
        let tokens: Vec<u32> = (0..160).map(|i| i % 50).collect();
        let mut first = CachedSequence::default();
        feed(&mut tree, &mut cache, &mut first, &tokens, 24);
        // Ten pages; a token at 160 sees those from 141 on, pages 8 and 9. The tree still holds all.
        assert_eq!(first.windowed.iter().filter(|page| **page != GONE).count(), 2);
        assert_eq!(used(&cache), (10, 10));
        cache.release_all(&mut first);
        assert_eq!(used(&cache), (10, 10));

        // Another text that begins with 100 of these tokens: six pages; windowed layers see those from 77 on.
        let mut other: Vec<u32> = tokens[..100].to_vec();
        other.extend([49; 60]);
        let mut second = tree.lookup(None, &other, &mut cache);
        assert_eq!((second.len, second.pages.len()), (96, 6));
        assert_eq!(
            second.windowed.iter().map(|page| *page != GONE).collect::<Vec<_>>(),
            [false, false, false, false, true, true]
        );
        cache.release_all(&mut second);

        // Pages of windowed layers are given up first; without those that it sees, less of a prefix is of use.
        tree.evict(0, 14, &mut cache);
        assert_eq!(used(&cache), (10, 2));
        let mut third = tree.lookup(None, &other, &mut cache);
        let kept = third.len / PAGE;
        assert!(
            kept < 6 && third.windowed.iter().skip(cache.first_seen(third.len)).all(|page| *page != GONE),
            "{third:?}"
        );
        feed(&mut tree, &mut cache, &mut third, &other, 16);
        cache.release_all(&mut third);
        assert_eq!(tree.lookup(None, &other, &mut cache).len, 144, "computed again, known again");
    }

    #[test]
    fn a_generation_of_any_length_holds_a_window_of_pages() {
        let mut cache = KvCache::with_format(&config(), KvFormat::F32, 528, 64);
        let mut s = CachedSequence::default();
        for len in 1..=500usize {
            assert!(cache.reserve(&mut s, 1), "{len}");
            s.len = len;
            cache.trim(&mut s);
            let (all, windowed) = used(&cache);
            assert!(all == len.div_ceil(PAGE) && windowed <= 3, "{len}: {all} {windowed}");
        }
        // Two of them share all but the last, partly filled page.
        let mut fork = cache.fork(&s).unwrap();
        assert_eq!(fork.windowed.len(), s.windowed.len());
        assert_eq!(used(&cache).0, 33);
        cache.release_all(&mut s);
        cache.release_all(&mut fork);
        assert_eq!(used(&cache), (0, 0));
    }
}

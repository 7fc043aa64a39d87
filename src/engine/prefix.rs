//! Prompts that begin alike share cached pages. Exact: a page is found by the page before it and its own
//! 16 tokens, never by a hash that could collide. One tree per model version, so a promotion forgets all; one root in
//! it per soft prompt, so that no request reads what another prompt adapter computed.

use std::collections::HashMap;

use crate::domain::ModelVersionId;
use crate::model::decoder::kv_cache::{CachedSequence, KvCache, PAGE};

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
        let mut found = CachedSequence::default();
        let mut parent = self.root(adapter);
        for chunk in tokens[..tokens.len().saturating_sub(1)].as_chunks::<PAGE>().0 {
            let Some(entry) = self.entries.get_mut(&(parent, *chunk)) else { break };
            entry.used = self.clock;
            parent = entry.id;
            cache.retain(entry.page);
            found.pages.push(entry.page);
            found.len += PAGE;
        }
        found
    }

    /// Remembers the full pages of a prompt that has been computed.
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
            let entry = self.entries.entry((parent, *chunk)).or_insert_with(|| {
                cache.retain(sequence.pages[i]);
                Entry { id: next_id, page: sequence.pages[i], used: clock }
            });
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

    /// Forgets the least recently used entries until `pages` pages are free or nothing is left.
    pub fn evict(&mut self, pages: usize, cache: &mut KvCache) {
        if cache.free_pages() >= pages || self.entries.is_empty() {
            return;
        }
        let mut oldest: Vec<(u64, u64, Key)> =
            self.entries.iter().map(|(k, e)| (e.used, u64::MAX - e.id, *k)).collect();
        // Among equally old entries the deepest goes first, so that no reachable child loses its parent.
        oldest.sort_unstable();
        for (_, _, key) in oldest {
            if cache.free_pages() >= pages {
                break;
            }
            if let Some(entry) = self.entries.remove(&key) {
                cache.release(entry.page);
            }
        }
    }
}

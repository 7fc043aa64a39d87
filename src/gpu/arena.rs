//! An allocator in one large block of device memory.

use std::collections::BTreeMap;

/// Addresses of allocations are multiples of this many bytes.
pub const GRAIN: u64 = 256;

/// First-fit allocation; adjacent free ranges are merged. Offsets are from the block's start.
#[derive(Debug)]
pub struct Arena {
    /// Offset → bytes.
    free: BTreeMap<u64, u64>,
    used: BTreeMap<u64, u64>,
    size: u64,
}

impl Arena {
    pub fn new(bytes: u64) -> Self {
        let size = bytes / GRAIN * GRAIN;
        let free = if size > 0 { BTreeMap::from([(0, size)]) } else { BTreeMap::new() };
        Self { free, used: BTreeMap::new(), size }
    }

    /// Allocates at least `bytes`; `None` when no free range is large enough.
    pub fn alloc(&mut self, bytes: u64) -> Option<u64> {
        let need = bytes.max(1).div_ceil(GRAIN) * GRAIN;
        let (at, len) = self.free.iter().find(|(_, len)| **len >= need).map(|(at, len)| (*at, *len))?;
        self.free.remove(&at);
        if len > need {
            self.free.insert(at + need, len - need);
        }
        self.used.insert(at, need);
        Some(at)
    }

    /// Frees an allocation; false when there is none at the offset.
    #[must_use]
    pub fn free(&mut self, at: u64) -> bool {
        let Some(mut len) = self.used.remove(&at) else { return false };
        let mut start = at;
        if let Some((before, bytes)) = self.free.range(..at).next_back().map(|(o, b)| (*o, *b))
            && before + bytes == at
        {
            self.free.remove(&before);
            (start, len) = (before, len + bytes);
        }
        if let Some(after) = self.free.remove(&(start + len)) {
            len += after;
        }
        self.free.insert(start, len);
        true
    }

    /// The allocation that contains all of `at..at + bytes`.
    pub fn holder(&self, at: u64, bytes: u64) -> Option<u64> {
        let (start, len) = self.used.range(..=at).next_back()?;
        (at + bytes <= start + len).then_some(*start)
    }

    pub fn used_bytes(&self) -> u64 {
        self.used.values().sum()
    }

    pub fn size(&self) -> u64 {
        self.size
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_full_arena_refuses_and_takes_again_what_was_freed() {
        let mut arena = Arena::new(1024);
        let a = arena.alloc(300).unwrap();
        let b = arena.alloc(256).unwrap();
        assert_eq!((a, b, arena.used_bytes()), (0, 512, 768));
        assert_eq!(arena.alloc(257), None);
        assert!(arena.free(a) && !arena.free(a));
        assert_eq!(arena.alloc(512), Some(0));
        assert_eq!(arena.holder(512, 256), Some(512));
        assert_eq!(arena.holder(512, 257), None);
        assert_eq!(arena.holder(800, 1), None);
    }

    proptest! {
        /// Allocations never overlap, and when all are freed the whole is one range again.
        #[test]
        fn places_are_disjoint(steps in prop::collection::vec((any::<bool>(), 1u64..3000), 1..80)) {
            let mut arena = Arena::new(64 << 10);
            let mut held: Vec<(u64, u64)> = Vec::new();
            for (give, n) in steps {
                if give && !held.is_empty() {
                    let (at, _) = held.swap_remove(n as usize % held.len());
                    prop_assert!(arena.free(at));
                } else if let Some(at) = arena.alloc(n) {
                    prop_assert!(at % GRAIN == 0 && at + n <= 64 << 10);
                    prop_assert!(held.iter().all(|(o, len)| at + n <= *o || o + len <= at));
                    held.push((at, n));
                }
            }
            for (at, _) in held {
                prop_assert!(arena.free(at));
            }
            prop_assert_eq!(arena.alloc(64 << 10), Some(0));
        }
    }
}

//! The ids of words that a BPE tokenizer has merged before.

use std::collections::HashMap;
use std::sync::{Mutex, TryLockError};

/// Parts with a lock of their own, so that threads rarely meet.
const SHARDS: usize = 16;
/// Most words of a shard, and most bytes of a word: together about the size of the crate's own cache.
const WORDS: usize = 640;
const LONGEST: usize = 256;

type Shard = HashMap<Box<str>, Box<[u32]>>;

/// A bounded cache that is freed with its tokenizer. The tokenizers crate keeps the words of each tokenizer for every
/// thread that has used it, until the thread ends: a server that loads version after version would grow forever.
#[derive(Default)]
pub(super) struct WordCache([Mutex<Shard>; SHARDS]);

impl WordCache {
    /// Appends the ids of `word` to `ids`; `merge` computes those that are not known. A shard that another thread holds is
    /// not waited for.
    pub fn extend<E>(
        &self,
        word: &str,
        ids: &mut Vec<u32>,
        merge: impl FnOnce() -> Result<Vec<u32>, E>,
    ) -> Result<(), E> {
        if word.len() > LONGEST {
            ids.extend(merge()?);
            return Ok(());
        }
        let bytes = word.as_bytes();
        let [first, last] = [bytes.first(), bytes.last()].map(|byte| byte.copied().unwrap_or_default());
        let shard = &self.0[(usize::from(first) + 7 * usize::from(last) + bytes.len()) % SHARDS];
        if locked(shard, |shard| shard.get(word).map(|known| ids.extend(known))).flatten().is_some() {
            return Ok(());
        }
        let merged = merge()?;
        ids.extend(&merged);
        locked(shard, |shard| {
            if shard.len() < WORDS {
                shard.insert(word.into(), merged.into());
            }
        });
        Ok(())
    }
}

/// `None` if another thread holds the lock.
fn locked<T>(shard: &Mutex<Shard>, act: impl FnOnce(&mut Shard) -> T) -> Option<T> {
    match shard.try_lock() {
        Ok(mut shard) => Some(act(&mut shard)),
        // A map is whole after a panic elsewhere.
        Err(TryLockError::Poisoned(broken)) => Some(act(&mut broken.into_inner())),
        Err(TryLockError::WouldBlock) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_merged_once_and_the_cache_is_bounded() {
        let (cache, mut merges) = (WordCache::default(), 0);
        let mut ask = |word: &str| {
            let mut ids = vec![9];
            let merged = cache.extend(word, &mut ids, || {
                merges += 1;
                Ok::<_, ()>(vec![word.len() as u32, 1])
            });
            merged.unwrap();
            assert_eq!(ids, [9, word.len() as u32, 1]);
        };
        ask("hello");
        ask("hello");
        ask(&"x".repeat(LONGEST + 1));
        ask(&"x".repeat(LONGEST + 1));
        (0..SHARDS * WORDS * 2).for_each(|n| ask(&n.to_string()));
        assert_eq!(merges, 3 + SHARDS * WORDS * 2);
        assert!(cache.0.iter().all(|shard| shard.lock().unwrap().len() <= WORDS));
        assert_eq!(cache.extend("new", &mut Vec::new(), || Err("no")), Err("no"));
    }
}

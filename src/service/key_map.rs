//! The keys of the labeling page that a person has changed. Which actions there are is known to the page; the server
//! keeps what fits.

use std::collections::HashSet;
use std::sync::Arc;

use super::access::Actor;
use super::{Result, Services, bad_input, uncancelled};
use crate::domain::KeyMap;

/// Most changed keys.
const MAX_KEYS: usize = 64;
/// Longest name of an action, bytes.
const MAX_ACTION: usize = 32;

/// The caller's keys; `None` when they were never stored.
///
/// # Errors
/// Errors of the store.
pub async fn get(services: &Services, actor: &Actor) -> Result<Option<KeyMap>> {
    Ok(services.store.people().key_map(&actor.labeler_id).await?)
}

/// Replaces the caller's keys; none = the page's own.
///
/// # Errors
/// `BadInput` naming the action.
pub async fn put(services: &Arc<Services>, actor: &Actor, keys: KeyMap) -> Result<()> {
    check(&keys)?;
    let (all, id, now) = (services.clone(), actor.labeler_id.clone(), services.now());
    uncancelled(async move { Ok(all.store.people().put_key_map(&id, keys, now).await?) }).await
}

fn check(keys: &KeyMap) -> Result<()> {
    if keys.len() > MAX_KEYS {
        return Err(bad_input("keys", format!("has {} keys; at most {MAX_KEYS} can be changed", keys.len())));
    }
    let mut taken = HashSet::new();
    for (action, key) in keys {
        let field = format!("keys.{action}");
        let fits = |b: u8| b.is_ascii_lowercase() || b == b'_';
        if action.is_empty() || action.len() > MAX_ACTION || !action.bytes().all(fits) {
            return Err(bad_input("keys", format!("{action:?} is not an action: 1 to {MAX_ACTION} of a-z and _")));
        }
        if !matches!(key.as_bytes(), [b'a'..=b'z' | b'=' | b'?']) {
            return Err(bad_input(field, format!("is {key:?}; must be a letter from a to z, = or ?")));
        }
        if !taken.insert(key) {
            return Err(bad_input(field, format!("is {key:?}, as the key of another action")));
        }
    }
    Ok(())
}

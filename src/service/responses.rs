//! Answers of the Responses API that a later request may go on from. They are kept in this server's memory, a bounded
//! number of bytes and for a day at most: what is stored for good is the completion, under the rules of privacy.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;

use crate::domain::Micros;
use crate::domain::time::DAY;

/// Bytes of all that is kept, and of one conversation.
const MOST_BYTES: usize = 64 << 20;
const MOST_ONE: usize = 4 << 20;

/// One response with the conversation that it ends.
#[derive(Clone, Debug, PartialEq)]
pub struct Kept {
    pub id: String,
    /// Whose it is: a credential; `None` where nobody said who they were.
    pub owner: Option<String>,
    /// The messages of the conversation, the answer included, as chat takes them.
    pub messages: Vec<Value>,
    /// The response as it was returned.
    pub response: Value,
    pub created: Micros,
}

impl Kept {
    fn bytes(&self) -> usize {
        self.response.to_string().len() + self.messages.iter().map(|m| m.to_string().len()).sum::<usize>()
    }
}

/// Responses with the bytes of each, and the bytes of all of them.
type Held = (VecDeque<(Arc<Kept>, usize)>, usize);

/// The responses that are kept, oldest first.
#[derive(Debug, Default)]
pub struct Responses(Mutex<Held>);

impl Responses {
    /// Keeps a response; the oldest ones give way. One that is too large is not kept.
    pub fn keep(&self, kept: Kept) {
        let bytes = kept.bytes();
        if bytes > MOST_ONE {
            return;
        }
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (list, held) = &mut *all;
        while *held + bytes > MOST_BYTES
            || list.front().is_some_and(|(oldest, _)| kept.created.saturating_sub(oldest.created) > DAY)
        {
            let Some((_, freed)) = list.pop_front() else { break };
            *held -= freed;
        }
        *held += bytes;
        list.push_back((Arc::new(kept), bytes));
    }

    /// The response with this id, if it is this owner's.
    pub fn get(&self, id: &str, owner: Option<&str>, now: Micros) -> Option<Arc<Kept>> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = |kept: &&Arc<Kept>| kept.id == id && kept.owner.as_deref() == owner;
        let found = all.0.iter().map(|(kept, _)| kept).find(mine)?;
        (now.saturating_sub(found.created) <= DAY).then(|| found.clone())
    }

    /// Forgets all of them.
    pub fn clear(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Default::default();
    }

    /// Forgets a response; `false` when there is none of this owner.
    pub fn forget(&self, id: &str, owner: Option<&str>) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (list, held) = &mut *all;
        let Some(at) = list.iter().position(|(k, _)| k.id == id && k.owner.as_deref() == owner) else { return false };
        *held -= list.remove(at).map_or(0, |(_, bytes)| bytes);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(id: &str, owner: Option<&str>, created: Micros, bytes: usize) -> Kept {
        let messages = vec![Value::from("x".repeat(bytes))];
        Kept { id: id.into(), owner: owner.map(str::to_owned), messages, response: Value::Null, created }
    }

    #[test]
    fn owners_days_and_bytes() {
        let all = Responses::default();
        all.keep(kept("a", Some("key"), 0, 10));
        all.keep(kept("b", None, 1, 10));
        assert!(all.get("a", Some("key"), 5).is_some() && all.get("b", None, 5).is_some());
        assert!(all.get("a", None, 5).is_none() && all.get("a", Some("other"), 5).is_none());
        assert!(!all.forget("a", None) && all.forget("b", None) && all.get("b", None, 5).is_none());
        assert!(all.get("a", Some("key"), DAY + 1).is_none(), "for a day");
        for i in 0..40 {
            all.keep(kept(&format!("big{i}"), None, 2, 3 << 20));
        }
        assert!(all.get("big0", None, 3).is_none() && all.get("big39", None, 3).is_some());
        assert!(all.0.lock().unwrap().1 <= MOST_BYTES);
        all.keep(kept("huge", None, 2, 5 << 20));
        assert!(all.get("huge", None, 3).is_none());
    }
}

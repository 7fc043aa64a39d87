//! Labelers and operators.

use crate::domain::*;
use crate::store::sql::{read, write};
use crate::store::views::People;
use crate::store::*;

impl People<'_> {
    /// Stores a person, or replaces the one with this id.
    pub async fn put(self, labeler: Labeler) -> Result<()> {
        write!(self.0, |tx| people::put_labeler(tx, &labeler))
    }

    /// One person. `NotFound` when there is none with this id.
    pub async fn get(self, id: &LabelerId) -> Result<Labeler> {
        read!(self.0, |c| people::get_labeler(c, id))
    }

    /// The person who is known as `subject` at `provider`.
    pub async fn by_identity(self, provider: &str, subject: &str) -> Result<Option<Labeler>> {
        read!(self.0, |c| people::by_identity(c, provider, subject))
    }

    /// Stores who a person is at a provider, and the person if they are new. Returns the person who is known there: an
    /// earlier one, if there is one. Of new people, two never have the same name: the later one's has a number.
    pub async fn join(self, provider: &str, subject: &str, labeler: Labeler) -> Result<Labeler> {
        write!(self.0, provider = provider.to_owned(), subject = subject.to_owned() => |tx| async move {
            people::join(tx, &provider, &subject, labeler).await
        })
    }

    /// The keys of the labeling page that a person has changed; `None` when they were never stored.
    pub async fn key_map(self, id: &LabelerId) -> Result<Option<KeyMap>> {
        read!(self.0, |c| key_maps::get(c, id))
    }

    /// Stores the keys of the labeling page that a person has changed, in place of those before.
    pub async fn put_key_map(self, id: &LabelerId, keys: KeyMap, now: Micros) -> Result<()> {
        write!(self.0, id = id.clone() => |tx| key_maps::put(tx, &id, &keys, now))
    }

    /// All people, in the order in which they were added.
    pub async fn list(self) -> Result<Vec<Labeler>> {
        read!(self.0, |c| people::list_labelers(c))
    }

    /// Deactivates a person, or activates them again.
    pub async fn set_active(self, id: &LabelerId, active: bool) -> Result<()> {
        write!(self.0, id = id.clone() => |tx| people::set_active(tx, &id, active))
    }

    /// Changes role, quota and activity of a labeler; absent values are left as they are.
    pub async fn change(
        self,
        id: &LabelerId,
        role: Option<Role>,
        daily_quota: Option<Option<i64>>,
        active: Option<bool>,
    ) -> Result<Labeler> {
        write!(self.0, id = id.clone() => |tx| people::change_labeler(tx, &id, role, daily_quota, active))
    }
}

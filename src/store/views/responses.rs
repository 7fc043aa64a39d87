//! Stored responses of the Responses API, which a later request may continue.

use crate::domain::*;
use crate::store::sql::{read, write};
use crate::store::views::Responses;
use crate::store::*;

impl Responses<'_> {
    /// Stores a response.
    pub async fn put(self, kept: KeptResponse, bytes: i64) -> Result<()> {
        write!(self.0, |tx| async move { responses::put(tx, &kept, bytes).await })
    }

    /// The response of this owner, unless it was made before `since`.
    pub async fn get(self, id: &str, owner: Option<&str>, since: Micros) -> Result<Option<KeptResponse>> {
        read!(self.0, |c| responses::get(c, id, owner, since))
    }

    /// Removes a response; false when this owner has none with this id.
    pub async fn delete(self, id: &str, owner: Option<&str>) -> Result<bool> {
        write!(self.0, id = id.to_owned(), owner = owner.map(str::to_owned) => |tx| async move {
            responses::delete(tx, &id, owner.as_deref()).await
        })
    }

    /// Removes those that were made before `since`, and the oldest beyond `most_bytes`.
    pub async fn expire(self, since: Micros, most_bytes: i64) -> Result<u64> {
        write!(self.0, |tx| async move { responses::expire(tx, since, most_bytes).await })
    }
}

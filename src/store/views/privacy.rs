//! Personal data and requests: counts, expiry and erasure.

use crate::domain::*;
use crate::store::connect::Db;
use crate::store::sql::{read, write};
use crate::store::views::Privacy;
use crate::store::*;

impl Privacy<'_> {
    /// Erases a person's data; the labeler's row is kept without a name and inactive.
    pub async fn erase_labeler(self, id: &LabelerId, how: Erase, actor_hash: &str, now: Micros) -> Result<Erased> {
        write!(self.0, id = id.clone(), actor_hash = actor_hash.to_owned() => |tx| erasure::erase(tx, &id, how, &actor_hash, now))
    }

    /// Data that an erasure affects besides judgments, for an export to the person.
    pub async fn personal_data(self, id: &LabelerId, actor_hash: &str) -> Result<PersonalData> {
        read!(self.0, |c| erasure::personal_data(c, id, actor_hash))
    }

    /// Writes the log back into the database file and cuts it, so that erased rows are in neither (SQLite; Postgres
    /// keeps its log on its own terms). False when a reader still uses some of the log.
    pub async fn flush_erased(self) -> Result<bool> {
        match &self.0.db {
            Db::Postgres(_) => Ok(true),
            Db::Sqlite { writer, .. } => {
                let busy: i64 = sqlx::query_scalar("PRAGMA wal_checkpoint(TRUNCATE)").fetch_one(writer).await?;
                Ok(busy == 0)
            }
        }
    }

    /// Amount of stored records of a kind.
    pub async fn stored(self, what: Expiring) -> Result<Amount> {
        read!(self.0, |c| privacy::stored(c, what))
    }

    /// Amount of removable records.
    pub async fn expiring(self, what: Expiring, cuts: Cuts) -> Result<Amount> {
        read!(self.0, |c| privacy::sum(c, privacy::going(what, &cuts)))
    }

    /// The cut by which removable records shrink to `most_bytes`; `None` when they are not more. `Prompts` and
    /// `Completions` are one sum.
    pub async fn size_cut(self, what: Expiring, cuts: Cuts, most_bytes: i64) -> Result<Option<Micros>> {
        read!(self.0, |c| privacy::size_cut(c, what, &cuts, most_bytes))
    }

    /// Removes at most `limit` removable records, oldest first, in one transaction; returns the removed amount.
    pub async fn expire(self, what: Expiring, cuts: Cuts, limit: i64) -> Result<Amount> {
        write!(self.0, |tx| async move { privacy::expire(tx, what, &cuts, limit).await })
    }

    /// People whose data was erased, in order of time.
    pub async fn erased_people(self) -> Result<Vec<ErasedPerson>> {
        read!(self.0, |c| privacy::erased_people(c))
    }
}

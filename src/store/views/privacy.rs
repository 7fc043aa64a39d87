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

    /// Amount of the next `limit` records of a kind after a position, oldest first; and the position to continue after,
    /// `None` at the end.
    pub async fn stored(
        self,
        what: Expiring,
        after: Option<&Position>,
        limit: i64,
    ) -> Result<(Amount, Option<Position>)> {
        read!(self.0, |c| privacy::stored(c, what, after, limit))
    }

    /// Of the next `limit` records after a position, the removable ones; and the position to continue after, `None` at
    /// the end.
    pub async fn expiring(
        self,
        what: Expiring,
        cuts: Cuts,
        after: Option<&Position>,
        limit: i64,
    ) -> Result<(Amount, Option<Position>)> {
        read!(self.0, |c| privacy::expiring(c, what, &cuts, after, limit))
    }

    /// At most `limit` records of a stretch that retention considers.
    pub async fn candidates(
        self,
        what: Expiring,
        cuts: Cuts,
        stretch: Stretch<'_>,
        limit: i64,
    ) -> Result<Vec<Candidate>> {
        read!(self.0, |c| privacy::candidates(c, what, &cuts, stretch, limit))
    }

    /// Removes, in one transaction, the removable records among the next `limit` after a position, oldest first; returns
    /// their amount, and the position to continue after, `None` at the end.
    pub async fn expire(
        self,
        what: Expiring,
        cuts: Cuts,
        after: Option<Position>,
        limit: i64,
    ) -> Result<(Amount, Option<Position>)> {
        write!(self.0, |tx| async move { privacy::expire(tx, what, &cuts, after.as_ref(), limit).await })
    }

    /// People whose data was erased, in order of time.
    pub async fn erased_people(self) -> Result<Vec<ErasedPerson>> {
        read!(self.0, |c| privacy::erased_people(c))
    }
}

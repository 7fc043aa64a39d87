//! Batches of requests and their results, line by line.

use crate::domain::*;
use crate::store::sql::{read, write};
use crate::store::views::Batches;
use crate::store::*;

impl Batches<'_> {
    /// Stores a new batch. `Conflict` when its owner has `most_open` unfinished ones.
    pub async fn put(self, batch: Batch, most_open: i64) -> Result<()> {
        write!(self.0, |tx| async move { batches::put_batch(tx, &batch, most_open).await })
    }

    /// One batch of this owner. `NotFound` when there is none.
    pub async fn get(self, id: &str, owner: &str) -> Result<Batch> {
        read!(self.0, |c| batches::get_batch(c, id, owner))
    }

    /// A page of an owner's batches, newest first.
    pub async fn list(self, owner: &str, page: Page) -> Result<Vec<Batch>> {
        read!(self.0, |c| batches::list(c, owner, &page))
    }

    /// Cancels a batch; one that has not begun ends at once. `Conflict` when it has ended.
    pub async fn cancel(self, id: &str, owner: &str, now: Micros) -> Result<Batch> {
        write!(self.0, id = id.to_owned(), owner = owner.to_owned() => |tx| batches::cancel(tx, &id, &owner, now))
    }

    /// Claims the oldest unfinished batch that no server holds; `me` holds it until `until`.
    pub async fn claim(self, me: &str, now: Micros, until: Micros) -> Result<Option<Batch>> {
        // Servers poll this, so a read checks for a batch before a write transaction begins.
        if read!(self.0, |c| batches::free(c, now, until))?.is_none() {
            return Ok(None);
        }
        write!(self.0, me = me.to_owned() => |tx| batches::claim(tx, &me, now, until))
    }

    /// Extends the lease of a batch; returns its current state. `LeaseLost` when another server has it.
    pub async fn hold(self, id: &str, me: &str, until: Micros) -> Result<Batch> {
        write!(self.0, id = id.to_owned(), me = me.to_owned() => |tx| batches::hold(tx, &id, &me, until))
    }

    /// Stores results and counts them, while `me` holds the batch; existing results are not changed.
    /// `LeaseLost` when another server has it.
    pub async fn put_results(self, id: &str, me: &str, results: Vec<BatchResult>) -> Result<()> {
        write!(self.0, id = id.to_owned(), me = me.to_owned() => |tx| batches::put_results(tx, &id, &me, &results))
    }

    /// The lines that are answered.
    pub async fn answered_lines(self, id: &str) -> Result<Vec<i64>> {
        read!(self.0, |c| batches::answered_lines(c, id))
    }

    /// Results of one kind after a line, in order, about `bytes` bytes of them.
    pub async fn results(self, id: &str, failed: bool, after: i64, bytes: usize) -> Result<Vec<(i64, String)>> {
        read!(self.0, |c| batches::results(c, id, failed, after, bytes))
    }

    /// Ends a batch that `me` holds, and creates the files of its results. `LeaseLost` when another server has it.
    pub async fn end(self, id: &str, me: &str, how: BatchEnd) -> Result<Batch> {
        write!(self.0, id = id.to_owned(), me = me.to_owned() => |tx| batches::end(tx, &id, &me, &how))
    }
}

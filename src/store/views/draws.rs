//! Draws of comparison sets, which run in the background.

use crate::domain::*;
use crate::store::sql::{read, write};
use crate::store::views::Draws;
use crate::store::*;

impl Draws<'_> {
    /// Stores a draw of comparison sets, or replaces the one with its id.
    pub async fn put(self, draw: SetDraw) -> Result<()> {
        write!(self.0, |tx| draws::put(tx, &draw))
    }

    /// One draw. `NotFound` when there is none with this id.
    pub async fn get(self, id: &DrawId) -> Result<SetDraw> {
        read!(self.0, |c| draws::get(c, id))
    }

    /// A page of draws, newest first.
    pub async fn list(self, page: Page) -> Result<Vec<SetDraw>> {
        read!(self.0, |c| draws::list(c, &page))
    }

    /// Stores the progress of a running draw; false when it is no longer running (cancelled).
    pub async fn advance(self, draw: SetDraw) -> Result<bool> {
        write!(self.0, |tx| draws::advance(tx, &draw))
    }

    /// Conflict when it has ended.
    pub async fn cancel(self, id: &DrawId, now: Micros) -> Result<SetDraw> {
        write!(self.0, id = id.clone() => |tx| draws::cancel(tx, &id, now))
    }
}

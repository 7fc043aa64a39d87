//! Backups that were written, as far as this database knows.

use crate::domain::*;
use crate::store::sql::{read, write};
use crate::store::views::Backups;
use crate::store::*;

impl Backups<'_> {
    /// Notes where a backup was written, so that erasures can name the backups that still hold a person.
    pub async fn put(self, path: &str, now: Micros) -> Result<()> {
        write!(self.0, path = path.to_owned() => |tx| privacy::put_backup(tx, &path, now))
    }

    /// Where backups were written, and when.
    pub async fn list(self) -> Result<Vec<(String, Micros)>> {
        read!(self.0, |c| privacy::backups(c))
    }

    /// Removes a backup from the list; its files are not touched.
    pub async fn forget(self, path: &str) -> Result<()> {
        write!(self.0, path = path.to_owned() => |tx| privacy::forget_backup(tx, &path))
    }
}

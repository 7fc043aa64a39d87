//! Backups of this database.

use crate::domain::*;
use crate::store::sql::{read, write};
use crate::store::views::Backups;
use crate::store::*;

impl Backups<'_> {
    /// Records the path of a backup, so that an erasure can list the backups that contain a person's data.
    pub async fn put(self, path: &str, now: Micros) -> Result<()> {
        write!(self.0, path = path.to_owned() => |tx| privacy::put_backup(tx, &path, now))
    }

    /// (path, time) of backups.
    pub async fn list(self) -> Result<Vec<(String, Micros)>> {
        read!(self.0, |c| privacy::backups(c))
    }

    /// Removes a backup from the list; its files are not touched.
    pub async fn forget(self, path: &str) -> Result<()> {
        write!(self.0, path = path.to_owned() => |tx| privacy::forget_backup(tx, &path))
    }
}

//! Files of clients: uploaded files, and output files of batches.

use crate::domain::*;
use crate::store::sql::{read, write};
use crate::store::views::Files;
use crate::store::*;

impl Files<'_> {
    /// Stores a file. `Conflict` when its owner would exceed `most_bytes`.
    pub async fn put(self, file: StoredFile, content: String, most_bytes: i64) -> Result<()> {
        write!(self.0, |tx| async move { batches::put_file(tx, &file, &content, most_bytes).await })
    }

    /// One file of this owner. `NotFound` when there is none.
    pub async fn get(self, id: &str, owner: &str) -> Result<StoredFile> {
        read!(self.0, |c| batches::get_file(c, id, owner))
    }

    /// A page of an owner's files, newest first.
    pub async fn list(self, owner: &str, purpose: Option<FilePurpose>, page: Page) -> Result<Vec<StoredFile>> {
        read!(self.0, |c| batches::list_files(c, owner, purpose, &page))
    }

    /// The text of an uploaded file.
    pub async fn content(self, id: &str) -> Result<String> {
        read!(self.0, |c| batches::file_content(c, id))
    }

    /// The batch that wrote a file, and whether the file is that of its errors.
    pub async fn batch_of(self, id: &str) -> Result<(String, bool)> {
        read!(self.0, |c| batches::batch_of_file(c, id))
    }

    /// Removes a file, and the results in it when it is a batch's output file. `Conflict` while an unfinished batch
    /// reads it.
    pub async fn delete(self, id: &str, owner: &str) -> Result<()> {
        write!(self.0, id = id.to_owned(), owner = owner.to_owned() => |tx| batches::delete_file(tx, &id, &owner))
    }

    /// Bytes of all files of an owner, and of results that are not in a file yet.
    pub async fn bytes(self, owner: &str) -> Result<i64> {
        read!(self.0, |c| batches::file_bytes(c, owner))
    }

    /// Removes files and batches that were made before a time, except unfinished batches and their input. Returns the
    /// number of removed files.
    pub async fn expire(self, before: Micros) -> Result<u64> {
        write!(self.0, |tx| async move { batches::expire(tx, before).await })
    }
}

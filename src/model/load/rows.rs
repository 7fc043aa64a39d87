//! Rows of a matrix that stay in the model's file.

use std::fs::File;
use std::path::PathBuf;
use std::time::SystemTime;

use crate::ops::blocks::{self, BlockType};
use crate::ops::embedding;

/// Where a matrix lies in a file, row after row.
pub struct Place {
    pub path: PathBuf,
    pub start: usize,
    pub kind: BlockType,
    pub rows: usize,
    pub width: usize,
}

/// Rows of a matrix that stay in the model's file and are read when they are needed. They are read by position and not
/// through a memory map, because a map ends the process when somebody shortens the file.
#[derive(Debug)]
pub struct StoredRows {
    file: File,
    path: PathBuf,
    /// Length and time of the last change of the file when the model was loaded.
    state: (u64, Option<SystemTime>),
    start: u64,
    kind: BlockType,
    rows: usize,
    width: usize,
}

impl StoredRows {
    /// `None` where the platform cannot read by position.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(place: &Place) -> std::io::Result<Option<Self>> {
        if cfg!(not(unix)) {
            return Ok(None);
        }
        let file = File::open(&place.path)?;
        let state = state(&file)?;
        let &Place { start, kind, rows, width, .. } = place;
        Ok(Some(Self { file, path: place.path.clone(), state, start: start as u64, kind, rows, width }))
    }

    /// (rows, values of a row).
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.width)
    }

    /// The type of the rows in the file.
    pub fn kind(&self) -> BlockType {
        self.kind
    }

    /// Passes the bytes of all rows to `take`, as parts of at most `bytes` bytes but at least one row.
    ///
    /// # Errors
    /// Those of `take`; when the file was changed or cannot be read any more.
    pub fn stored_parts(
        &self,
        bytes: usize,
        take: &mut dyn FnMut(&[u8]) -> candle_core::Result<()>,
    ) -> candle_core::Result<()> {
        let row = self.kind.bytes(self.width);
        let count = (bytes / row.max(1)).max(1);
        let mut buffer = vec![0; count.min(self.rows) * row];
        for from in (0..self.rows).step_by(count) {
            let part = &mut buffer[..count.min(self.rows - from) * row];
            self.check()?;
            read_at(&self.file, part, self.start + (from * row) as u64).map_err(|e| self.unreadable(&e))?;
            take(part)?;
        }
        Ok(())
    }

    fn unreadable(&self, e: &std::io::Error) -> candle_core::Error {
        candle_core::Error::msg(format!("cannot read {}: {e}", self.path.display()))
    }

    /// # Errors
    /// When the file was changed, or its metadata cannot be read.
    fn check(&self) -> candle_core::Result<()> {
        if state(&self.file).map_err(|e| self.unreadable(&e))? != self.state {
            candle_core::bail!("{} was changed while the model was served: load the model again", self.path.display());
        }
        Ok(())
    }

    /// Passes all rows to `take`, as parts of at most `values` numbers but at least one row.
    ///
    /// # Errors
    /// Those of `take` and of `gather`.
    pub fn parts(
        &self,
        values: usize,
        take: &mut dyn FnMut(&[f32]) -> candle_core::Result<()>,
    ) -> candle_core::Result<()> {
        let count = (values / self.width.max(1)).max(1);
        let mut buffer = vec![0f32; count.min(self.rows) * self.width];
        for from in (0..self.rows).step_by(count) {
            let ids: Vec<u32> = (from..self.rows.min(from + count)).map(|row| row as u32).collect();
            let part = &mut buffer[..ids.len() * self.width];
            self.gather(&ids, part)?;
            take(part)?;
        }
        Ok(())
    }

    /// Writes the rows `ids` to `y`, `[ids.len(), width]`.
    ///
    /// # Errors
    /// When an id has no row, or the file was changed or cannot be read any more.
    pub fn gather(&self, ids: &[u32], y: &mut [f32]) -> candle_core::Result<()> {
        self.check()?;
        embedding::check(self.rows, ids)?;
        let mut bytes = vec![0; self.kind.bytes(self.width)];
        for (id, row) in ids.iter().zip(y.chunks_exact_mut(self.width)) {
            read_at(&self.file, &mut bytes, self.start + u64::from(*id) * self.kind.bytes(self.width) as u64)
                .map_err(|e| self.unreadable(&e))?;
            blocks::dequantize(&bytes, self.kind, row);
        }
        Ok(())
    }
}

fn state(file: &File) -> std::io::Result<(u64, Option<SystemTime>)> {
    file.metadata().map(|meta| (meta.len(), meta.modified().ok()))
}

#[cfg(unix)]
fn read_at(file: &File, bytes: &mut [u8], at: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, at)
}

#[cfg(not(unix))]
fn read_at(_: &File, _: &mut [u8], _: u64) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn rows(path: &Path) -> StoredRows {
        let values: Vec<u8> = (0..12u32).flat_map(|v| (v as f32).to_le_bytes()).collect();
        std::fs::write(path, [&[9; 5], values.as_slice()].concat()).unwrap();
        let place = Place { path: path.to_owned(), start: 5, kind: BlockType::F32, rows: 4, width: 3 };
        StoredRows::open(&place).unwrap().unwrap()
    }

    #[test]
    #[cfg(unix)]
    fn rows_come_from_the_file_in_any_order() {
        let dir = tempfile::tempdir().unwrap();
        let table = rows(&dir.path().join("table"));
        let mut y = vec![f32::NAN; 9];
        table.gather(&[3, 0, 3], &mut y).unwrap();
        assert_eq!(y, [9.0, 10.0, 11.0, 0.0, 1.0, 2.0, 9.0, 10.0, 11.0]);
        assert!(table.gather(&[4], &mut y).unwrap_err().to_string().contains("id 4"));
    }

    #[test]
    #[cfg(unix)]
    fn a_file_that_is_removed_still_serves_and_one_that_is_changed_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("removed"), dir.path().join("shortened"));
        let (removed, shortened) = (rows(&path), rows(&other));
        std::fs::remove_file(&path).unwrap();
        let mut y = vec![f32::NAN; 3];
        removed.gather(&[1], &mut y).unwrap();
        assert_eq!(y, [3.0, 4.0, 5.0]);
        std::fs::write(&other, b"short").unwrap();
        assert!(shortened.gather(&[1], &mut y).unwrap_err().to_string().contains("was changed"));
    }
}

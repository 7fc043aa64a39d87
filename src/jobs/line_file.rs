//! Writing a JSONL file line by line.

use std::fs::File;
use std::io::{BufWriter, Result, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use sha2::{Digest, Sha256};

/// A JSONL file that is written line by line beside its path, and moved there when it is complete. A file that is
/// dropped before is removed. One line is in memory.
pub(super) struct LineFile {
    file: BufWriter<File>,
    partial: PathBuf,
    hash: Sha256,
    lines: i64,
    line: Vec<u8>,
}

impl LineFile {
    /// An empty file that will be at `path`.
    pub fn create(path: &Path) -> Result<Self> {
        let partial = path.with_extension("tmp");
        let file = BufWriter::new(File::create(&partial)?);
        Ok(Self { file, partial, hash: Sha256::new(), lines: 0, line: Vec::new() })
    }

    /// Appends a value as a line.
    pub fn push<T: Serialize>(&mut self, value: &T) -> Result<()> {
        self.line.clear();
        serde_json::to_writer(&mut self.line, value)?;
        self.line.push(b'\n');
        self.hash.update(&self.line);
        self.lines += 1;
        self.file.write_all(&self.line)
    }

    /// Number of lines so far.
    pub fn lines(&self) -> i64 {
        self.lines
    }

    /// Syncs the file and moves it to `path`; returns its SHA-256.
    pub fn finish(mut self, path: &Path) -> Result<String> {
        self.file.flush()?;
        self.file.get_ref().sync_all()?;
        std::fs::rename(&self.partial, path)?;
        Ok(hex::encode(self.hash.clone().finalize()))
    }
}

impl Drop for LineFile {
    fn drop(&mut self) {
        // It is gone if the file was moved to its path.
        let _ = std::fs::remove_file(&self.partial);
    }
}

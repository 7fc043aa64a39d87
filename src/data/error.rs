//! Errors of data files: an unusable line, and a file that cannot be used.

use std::fmt;
use std::path::PathBuf;

/// An unusable line; lines count from 1, and 0 means the whole file.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
pub struct LineError {
    pub line: usize,
    pub message: String,
    /// Whether nothing after this line can be read.
    #[serde(skip)]
    pub fatal: bool,
}

impl LineError {
    pub fn new(line: usize, message: impl Into<String>) -> Self {
        Self { line, message: message.into(), fatal: false }
    }

    /// An error that ends the file.
    pub fn fatal(line: usize, message: impl Into<String>) -> Self {
        Self { fatal: true, ..Self::new(line, message) }
    }
}

impl fmt::Display for LineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.message),
            line => write!(f, "line {line}: {}", self.message),
        }
    }
}

impl std::error::Error for LineError {}

/// A data file that a recipe cannot use.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    #[error("cannot read {}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{}: {error}", path.display())]
    Line { path: PathBuf, error: LineError },
    #[error("{} contains no {what}", path.display())]
    Empty { path: PathBuf, what: &'static str },
}

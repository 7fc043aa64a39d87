//! Reading JSONL: one line in memory at a time, every error with its line number.

use std::fmt;
use std::io::{BufRead, Read};
use std::path::{Path, PathBuf};

use super::records::{Comparison, Format, PromptRecord, Record, Written};
use super::source::Source;

/// Longer lines (bytes) are refused and skipped.
const MAX_LINE: u64 = 16 << 20;
/// The longest line (bytes) of an upload: parsing a line takes about ten times its length in memory.
pub(super) const MAX_SENT_LINE: u64 = 4 << 20;

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

/// (line number, text) of the lines that are not blank.
pub(super) struct Lines<R> {
    reader: R,
    longest: u64,
    line: usize,
    done: bool,
}

impl<R: BufRead> Lines<R> {
    pub fn new(reader: R) -> Self {
        Self::up_to(reader, MAX_LINE)
    }

    /// Reads lines of at most `longest` bytes.
    pub fn up_to(reader: R, longest: u64) -> Self {
        Self { reader, longest, line: 0, done: false }
    }

    /// Skips to the end of the line.
    fn skip_rest(&mut self) -> std::io::Result<()> {
        loop {
            let buffer = self.reader.fill_buf()?;
            if buffer.is_empty() {
                return Ok(());
            }
            match buffer.iter().position(|b| *b == b'\n') {
                Some(at) => {
                    self.reader.consume(at + 1);
                    return Ok(());
                }
                None => {
                    let n = buffer.len();
                    self.reader.consume(n);
                }
            }
        }
    }

    /// Skips blank lines. A few compressed kilobytes may contain hundreds of millions of them.
    fn skip_empty(&mut self) -> std::io::Result<()> {
        loop {
            let buffer = self.reader.fill_buf()?;
            let n = buffer.iter().position(|b| !matches!(b, b'\n' | b'\r')).unwrap_or(buffer.len());
            let (is_empty, goes_on) = (buffer.is_empty(), n < buffer.len());
            self.line += buffer[..n].iter().filter(|b| **b == b'\n').count();
            self.reader.consume(n);
            if is_empty || goes_on {
                return Ok(());
            }
        }
    }

    fn read(&mut self) -> Option<Result<String, LineError>> {
        let skipped = self.skip_empty();
        self.line += 1;
        let line = self.line;
        let mut bytes = Vec::new();
        let mut outcome = skipped.and_then(|()| self.reader.by_ref().take(self.longest).read_until(b'\n', &mut bytes));
        let too_long = bytes.len() as u64 == self.longest && !bytes.ends_with(b"\n");
        if too_long {
            outcome = self.skip_rest().map(|()| bytes.len());
        }
        match outcome {
            Err(error) => {
                self.done = true;
                return Some(Err(LineError::fatal(line, format!("cannot be read: {error}"))));
            }
            Ok(0) => {
                self.done = true;
                return None;
            }
            Ok(_) => {}
        }
        if too_long {
            return Some(Err(LineError::new(
                line,
                format!("longer than {} bytes; a line must contain one record", self.longest),
            )));
        }
        Some(String::from_utf8(bytes).map_err(|_| LineError::new(line, "not UTF-8")))
    }
}

impl<R: BufRead> Iterator for Lines<R> {
    type Item = Result<(usize, String), LineError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.done {
            match self.read()? {
                Ok(text) => {
                    // Files from Windows begin with a byte-order mark, and concatenated ones have several.
                    let text = text.trim().trim_start_matches('\u{FEFF}').trim_start();
                    if !text.is_empty() {
                        return Some(Ok((self.line, text.to_owned())));
                    }
                }
                Err(error) => return Some(Err(error)),
            }
        }
        None
    }
}

/// Reads a whole file; the first bad line fails it, and so does an empty file.
fn read<T>(
    path: &Path,
    format: Format,
    what: &'static str,
    pick: impl Fn(Record) -> Option<T>,
) -> Result<Vec<T>, DataError> {
    let records: Vec<T> = super::import(format, Source::lines(path)?)
        .filter_map(|record| record.map(&pick).transpose())
        .collect::<Result<_, _>>()
        .map_err(|error| DataError::Line { path: path.to_owned(), error })?;
    if records.is_empty() {
        return Err(DataError::Empty { path: path.to_owned(), what });
    }
    Ok(records)
}

/// Comparisons JSONL.
pub fn read_comparisons(path: &Path) -> Result<Vec<Comparison>, DataError> {
    read(path, Format::Comparisons, "comparison", |r| if let Record::Comparison(c) = r { Some(c) } else { None })
}

/// Demonstrations JSONL.
pub fn read_demonstrations(path: &Path) -> Result<Vec<Written>, DataError> {
    read(
        path,
        Format::Demonstrations,
        "demonstration",
        |r| if let Record::Demonstration(d) = r { Some(d) } else { None },
    )
}

/// Prompts JSONL. A string prompt is raw text, a list of messages goes through the chat template.
pub fn read_prompts(path: &Path) -> Result<Vec<PromptRecord>, DataError> {
    read(path, Format::Prompts, "prompt", |r| if let Record::Prompt(p) = r { Some(p) } else { None })
}

//! Reading JSONL: one line in memory at a time, every error with its line number.

use std::io::{BufRead, Read};

use super::error::LineError;

/// Longer lines (bytes) are refused and skipped.
const MAX_LINE: u64 = 16 << 20;
/// The longest line (bytes) of an upload: parsing a line takes about ten times its length in memory.
pub(super) const MAX_SENT_LINE: u64 = 4 << 20;

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

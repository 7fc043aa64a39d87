//! Reads JSONL files of comparisons, demonstrations and prompts, one record in memory at a time.

use std::path::{Path, PathBuf};

use super::error::{DataError, LineError};
use super::fields::Outcome;
use super::formats::import;
use super::lines::Lines;
use super::records::{Comparison, Format, PromptRecord, Record, Written};
use super::source::Source;

/// The records of a file, in its order. The first bad line is the last item, and an empty file gives an error.
pub struct Records<T> {
    path: PathBuf,
    /// Name of a record in an error.
    what: &'static str,
    records: Option<Box<dyn Iterator<Item = Result<T, LineError>>>>,
    is_empty: bool,
}

impl<T> Iterator for Records<T> {
    type Item = Result<T, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.records.as_mut()?.next() {
            Some(Ok(record)) => {
                self.is_empty = false;
                Some(Ok(record))
            }
            Some(Err(error)) => {
                self.records = None;
                Some(Err(DataError::Line { path: self.path.clone(), error }))
            }
            None => {
                self.records = None;
                self.is_empty.then(|| Err(DataError::Empty { path: self.path.clone(), what: self.what }))
            }
        }
    }
}

fn read<T>(
    path: &Path,
    format: Format,
    what: &'static str,
    pick: fn(Record) -> Option<T>,
) -> Result<Records<T>, DataError>
where
    T: 'static,
{
    let records = import(format, Source::lines(path)?).filter_map(move |record| record.map(pick).transpose());
    Ok(Records { path: path.to_owned(), what, records: Some(Box::new(records)), is_empty: true })
}

/// The records of a file whose lines `parse` reads.
///
/// # Errors
/// When the file cannot be opened.
pub(super) fn read_lines<T: 'static>(
    path: &Path,
    what: &'static str,
    parse: fn(&str) -> Outcome<T>,
) -> Result<Records<T>, DataError> {
    let records = Lines::new(Source::lines(path)?).map(move |line| {
        line.and_then(|(number, text)| parse(&text).map_err(|message| LineError::new(number, message)))
    });
    Ok(Records { path: path.to_owned(), what, records: Some(Box::new(records)), is_empty: true })
}

/// Comparisons JSONL.
///
/// # Errors
/// When the file cannot be opened.
pub fn read_comparisons(path: &Path) -> Result<Records<Comparison>, DataError> {
    read(path, Format::Comparisons, "comparison", |r| if let Record::Comparison(c) = r { Some(c) } else { None })
}

/// Demonstrations JSONL.
///
/// # Errors
/// When the file cannot be opened.
pub fn read_demonstrations(path: &Path) -> Result<Records<Written>, DataError> {
    read(
        path,
        Format::Demonstrations,
        "demonstration",
        |r| if let Record::Demonstration(d) = r { Some(d) } else { None },
    )
}

/// Prompts JSONL. A string prompt is raw text, a list of messages goes through the chat template.
///
/// # Errors
/// When the file cannot be opened.
pub fn read_prompts(path: &Path) -> Result<Records<PromptRecord>, DataError> {
    read(path, Format::Prompts, "prompt", |r| if let Record::Prompt(p) = r { Some(p) } else { None })
}

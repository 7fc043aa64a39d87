//! Reads whole JSONL files of comparisons, demonstrations and prompts.

use std::path::Path;

use super::error::DataError;
use super::formats::import;
use super::records::{Comparison, Format, PromptRecord, Record, Written};
use super::source::Source;

/// Reads a whole file; the first bad line fails it, and so does an empty file.
fn read<T>(
    path: &Path,
    format: Format,
    what: &'static str,
    pick: impl Fn(Record) -> Option<T>,
) -> Result<Vec<T>, DataError> {
    let records: Vec<T> = import(format, Source::lines(path)?)
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

//! Labelled texts: JSONL or CSV with a text and a label in every row.

use std::io::BufRead;
use std::path::Path;

use serde_json::Value;

use super::error::{DataError, LineError};
use super::lines::Lines;
use super::source::Source;
use crate::domain::unknown_name;

/// One row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labelled {
    pub text: String,
    pub label: String,
}

/// The rows of a `.csv` file (with a header) or of JSON lines, compressed (gzip, Zstandard) or not. Numbers and
/// booleans are used as labels in their JSON form.
///
/// # Errors
/// A missing or empty field, with its line; a file without rows.
pub fn read(path: &Path, text_field: &str, label_field: &str) -> Result<Vec<Labelled>, DataError> {
    let file = Source::lines(path)?;
    let name = path.file_name().map(|n| n.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    let name = name.trim_end_matches(".gz").trim_end_matches(".zst");
    let at = |error| DataError::Line { path: path.to_owned(), error };
    let rows: Vec<Labelled> = if name.ends_with(".csv") {
        csv_rows(file, text_field, label_field).map_err(at)?
    } else {
        let row = |line: Result<(usize, String), LineError>| {
            let (line, text) = line?;
            json_row(&text, text_field, label_field).map_err(|message| LineError::new(line, message))
        };
        Lines::new(file).map(row).collect::<Result<_, _>>().map_err(at)?
    };
    if rows.is_empty() {
        return Err(DataError::Empty { path: path.to_owned(), what: "labelled text" });
    }
    Ok(rows)
}

fn json_row(text: &str, text_field: &str, label_field: &str) -> Result<Labelled, String> {
    let value: Value = serde_json::from_str(text).map_err(|e| super::fields::not_json(&e))?;
    for field in [text_field, label_field] {
        if value.get(field).is_none() {
            let known: Vec<&str> = value.as_object().into_iter().flat_map(|o| o.keys()).map(String::as_str).collect();
            return Err(unknown_name("field", field, &known));
        }
    }
    let text = value.get(text_field).and_then(Value::as_str).ok_or(format!("`{text_field}` must be a string"))?;
    let label = match value.get(label_field) {
        Some(Value::String(label)) => label.trim().to_owned(),
        Some(label @ (Value::Number(_) | Value::Bool(_))) => label.to_string(),
        _ => return Err(format!("`{label_field}` must be a string or a number")),
    };
    checked(text.to_owned(), label, text_field, label_field)
}

fn checked(text: String, label: String, text_field: &str, label_field: &str) -> Result<Labelled, String> {
    match (text.trim().is_empty(), label.is_empty()) {
        (true, _) => Err(format!("`{text_field}` is empty")),
        (_, true) => Err(format!("`{label_field}` is empty")),
        _ => Ok(Labelled { text, label }),
    }
}

fn csv_rows(file: impl BufRead, text_field: &str, label_field: &str) -> Result<Vec<Labelled>, LineError> {
    let mut reader = csv::Reader::from_reader(file);
    let bad = |line: usize, message: String| LineError::new(line, message);
    let header = reader.headers().map_err(|e| bad(1, e.to_string()))?;
    let column = |name: &str| {
        let found = header.iter().position(|h| h.trim_start_matches('\u{FEFF}').trim() == name);
        let known: Vec<&str> = header.iter().map(|h| h.trim_start_matches('\u{FEFF}').trim()).collect();
        found.ok_or_else(|| bad(1, unknown_name("column", name, &known)))
    };
    let (text, label) = (column(text_field)?, column(label_field)?);
    let row = |record: Result<csv::StringRecord, csv::Error>| {
        let line = |p: Option<&csv::Position>| p.map_or(0, |p| p.line() as usize);
        let record = record.map_err(|e| bad(line(e.position()), e.to_string()))?;
        let cell = |i: usize| record.get(i).unwrap_or_default().to_owned();
        let labelled = checked(cell(text), cell(label).trim().to_owned(), text_field, label_field);
        labelled.map_err(|message| bad(line(record.position()), message))
    };
    reader.records().map(row).collect()
}

//! Documents out of text, JSONL and Parquet files, one at a time: nothing holds a whole corpus in memory.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row, reader::RowIter};
use parquet::schema::types::Type;
use serde::{Deserialize, Serialize};

use super::lines::{DataError, LineError, Lines};

/// Where one document of a text file ends and the next begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Cut {
    /// At blank lines.
    #[default]
    Paragraph,
    /// At every line.
    Line,
    /// The file is one document.
    File,
}

/// Longer documents than this are cut (and a file without a blank line does not fill the memory).
const MAX_DOCUMENT: usize = 16 << 20;

type Documents = Box<dyn Iterator<Item = Result<String, DataError>>>;

/// The documents of all files, in order. A directory stands for its .txt, .jsonl and .parquet files by name.
/// JSONL lines and Parquet rows are one document each: their string field `field`; rows where it is null
/// have none.
pub fn documents(paths: &[PathBuf], cut: Cut, field: &str) -> Result<impl Iterator<Item = Result<String, DataError>>> {
    let files = files(paths)?;
    let field = field.to_owned();
    Ok(files.into_iter().flat_map(move |path| match open(&path, cut, &field) {
        Ok(documents) => documents,
        Err(error) => Box::new(std::iter::once(Err(error))),
    }))
}

type Result<T, E = DataError> = std::result::Result<T, E>;

/// The files that `paths` name, directories opened.
///
/// # Errors
/// A path that does not exist, a directory without a file of a known kind.
pub fn files(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for path in paths {
        let meta = std::fs::metadata(path).map_err(|source| DataError::Io { path: path.clone(), source })?;
        if !meta.is_dir() {
            all.push(path.clone());
            continue;
        }
        let entries = std::fs::read_dir(path).map_err(|source| DataError::Io { path: path.clone(), source })?;
        let known = |p: &PathBuf| matches!(extension(p), "txt" | "jsonl" | "parquet");
        let mut found: Vec<PathBuf> = entries.flatten().map(|e| e.path()).filter(known).collect();
        if found.is_empty() {
            return Err(DataError::Empty { path: path.clone(), what: ".txt, .jsonl or .parquet file" });
        }
        found.sort();
        all.extend(found);
    }
    Ok(all)
}

fn extension(path: &Path) -> &str {
    path.extension().and_then(|e| e.to_str()).unwrap_or_default()
}

fn open(path: &Path, cut: Cut, field: &str) -> Result<Documents> {
    let file = File::open(path).map_err(|source| DataError::Io { path: path.to_owned(), source })?;
    let path = path.to_owned();
    Ok(match extension(&path) {
        "parquet" => Box::new(Rows::open(path, file, field)?),
        "jsonl" => {
            let field = field.to_owned();
            Box::new(Lines::new(BufReader::new(file)).filter_map(move |line| {
                let text = line.and_then(|(line, text)| json_text(line, &text, &field));
                text.map_err(|error| DataError::Line { path: path.clone(), error }).transpose()
            }))
        }
        _ => Box::new(Plain { reader: BufReader::new(file), path, cut, done: false }),
    })
}

fn json_text(line: usize, text: &str, field: &str) -> Result<Option<String>, LineError> {
    let bad = |message: String| LineError { line, message };
    let value: serde_json::Value = serde_json::from_str(text).map_err(|e| bad(format!("not JSON: {e}")))?;
    match value.get(field) {
        Some(serde_json::Value::String(text)) => Ok(Some(text.clone())),
        Some(serde_json::Value::Null) => Ok(None),
        _ => Err(bad(format!("`{field}` must be a string"))),
    }
}

/// Pieces of a text file.
struct Plain {
    reader: BufReader<File>,
    path: PathBuf,
    cut: Cut,
    done: bool,
}

impl Iterator for Plain {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut text = String::new();
        let mut line = Vec::new();
        while !self.done {
            line.clear();
            match self.reader.read_until(b'\n', &mut line) {
                Ok(0) => self.done = true,
                Ok(_) => {}
                Err(source) => {
                    self.done = true;
                    return Some(Err(DataError::Io { path: self.path.clone(), source }));
                }
            }
            // One bad byte in a large corpus is no reason to refuse it.
            let read = String::from_utf8_lossy(&line);
            let read = read.trim_end_matches(['\n', '\r']).trim_start_matches('\u{FEFF}');
            let blank = read.trim().is_empty();
            if !(blank && text.is_empty()) {
                text.push_str(read);
                text.push('\n');
            }
            let ends = match self.cut {
                Cut::Paragraph => blank,
                Cut::Line => true,
                Cut::File => false,
            };
            if (ends || text.len() >= MAX_DOCUMENT) && !text.trim().is_empty() {
                break;
            }
        }
        let text = text.trim();
        (!text.is_empty()).then(|| Ok(text.to_owned()))
    }
}

/// One column of a Parquet file.
struct Rows {
    rows: RowIter<'static>,
    path: PathBuf,
    field: String,
    row: usize,
}

impl Rows {
    fn open(path: PathBuf, file: File, field: &str) -> Result<Self> {
        let bad = |message: String| DataError::Line { path: path.clone(), error: LineError { line: 0, message } };
        let reader = SerializedFileReader::new(file).map_err(|e| bad(format!("not a Parquet file: {e}")))?;
        let schema = reader.metadata().file_metadata().schema();
        let column = schema.get_fields().iter().find(|f| f.name() == field).cloned();
        let column = column.ok_or_else(|| bad(format!("there is no column `{field}`")))?;
        // Only this column is read from disk.
        let wanted = Type::group_type_builder(schema.name()).with_fields(vec![column]).build();
        let rows = wanted.and_then(|w| RowIter::from_file_into(Box::new(reader)).project(Some(w)));
        let rows = rows.map_err(|e| bad(e.to_string()))?;
        Ok(Self { rows, path, field: field.to_owned(), row: 0 })
    }

    fn text(&self, row: &Row) -> Result<Option<String>, LineError> {
        match row.get_column_iter().next() {
            Some((_, Field::Str(text))) => Ok(Some(text.clone())),
            Some((_, Field::Bytes(bytes))) => Ok(Some(String::from_utf8_lossy(bytes.data()).into_owned())),
            Some((_, Field::Null)) | None => Ok(None),
            Some(_) => Err(LineError { line: self.row, message: format!("`{}` must be a string", self.field) }),
        }
    }
}

impl Iterator for Rows {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let row = self.rows.next()?;
            self.row += 1;
            let text = match row {
                Ok(row) => self.text(&row),
                Err(e) => Err(LineError { line: self.row, message: e.to_string() }),
            };
            match text {
                Ok(None) => {}
                Ok(Some(text)) => return Some(Ok(text)),
                Err(error) => return Some(Err(DataError::Line { path: self.path.clone(), error })),
            }
        }
    }
}

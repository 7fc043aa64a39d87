//! Streams documents from text, JSONL and Parquet files, without holding a corpus in memory. The format is detected
//! from the content; gzip and Zstandard are decompressed.

use std::fs::File;
use std::io::{BufRead, Read};
use std::path::{Path, PathBuf};

use parquet::errors::ParquetError;
use parquet::file::reader::FileReader;
use parquet::record::{Field, Row, reader::RowIter};
use parquet::schema::types::Type;
use serde::{Deserialize, Serialize};

use super::error::{DataError, LineError};
use super::limits::Limits;
use super::lines::Lines;
use super::parquet::{BATCH, Bounded, guarded};
use super::source::{Content, Source};

/// How a text file is split into documents.
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

/// Longer documents (bytes) are cut, so that a file without a blank line does not fill the memory.
const MAX_DOCUMENT: usize = 16 << 20;

type Documents = Box<dyn Iterator<Item = Result<String, DataError>>>;

/// The documents of all files, in order. A directory means its files of known types, ordered by name.
/// JSONL lines and Parquet rows are one document each: their string field `field`; rows where it is null are skipped.
pub fn documents(paths: &[PathBuf], cut: Cut, field: &str) -> Result<impl Iterator<Item = Result<String, DataError>>> {
    let files = files(paths)?;
    let field = field.to_owned();
    Ok(files.into_iter().flat_map(move |path| match open(&path, cut, &field) {
        Ok(documents) => documents,
        Err(error) => Box::new(std::iter::once(Err(error))),
    }))
}

type Result<T, E = DataError> = std::result::Result<T, E>;

/// The files that `paths` name, with directories expanded.
///
/// # Errors
/// A path that does not exist, or a directory without a file of a known type.
pub fn files(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for path in paths {
        let meta = std::fs::metadata(path).map_err(|source| DataError::Io { path: path.clone(), source })?;
        if !meta.is_dir() {
            all.push(path.clone());
            continue;
        }
        let entries = std::fs::read_dir(path).map_err(|source| DataError::Io { path: path.clone(), source })?;
        let visible = |p: &PathBuf| !p.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.'));
        let (mut found, other): (Vec<PathBuf>, Vec<PathBuf>) =
            entries.flatten().map(|e| e.path()).filter(visible).partition(|p| is_known(p));
        if found.is_empty() {
            return Err(DataError::Empty { path: path.clone(), what: ".txt, .jsonl, .json or .parquet file" });
        }
        if let Some(first) = other.first() {
            tracing::warn!(
                directory = %path.display(), files = other.len(), first = %first.display(),
                "files of the corpus directory are left out: their names end in none of .txt, .jsonl, .ndjson, .json, \
                 .parquet (or those with .gz or .zst)"
            );
        }
        found.sort();
        all.extend(found);
    }
    Ok(all)
}

/// The name in lower case without a compression's extension.
fn bare_name(path: &Path) -> String {
    let name = path.file_name().map(|n| n.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    name.trim_end_matches(".gz").trim_end_matches(".zst").to_owned()
}

fn is_known(path: &Path) -> bool {
    let name = bare_name(path);
    ["txt", "text", "jsonl", "ndjson", "json", "parquet"].iter().any(|e| name.ends_with(&format!(".{e}")))
}

fn open(path: &Path, cut: Cut, field: &str) -> Result<Documents> {
    let source = Source::file(path)?;
    let name = bare_name(path);
    let (path, field) = (path.to_owned(), field.to_owned());
    let refused = |why: &str| DataError::Line { path: path.clone(), error: LineError::fatal(0, why) };
    Ok(match source.content {
        Content::Parquet if source.packed => {
            return Err(refused("it is a compressed Parquet file; unpack it: Parquet compresses by itself"));
        }
        Content::Parquet => {
            drop(source);
            let file = File::open(&path).map_err(|source| DataError::Io { path: path.clone(), source })?;
            Box::new(Rows::open(path, file, &field)?)
        }
        Content::Text | Content::Json if [".csv", ".tsv"].iter().any(|e| name.ends_with(e)) => {
            return Err(refused("it is a table of separated values; write each text as one JSON line, {\"text\": …}"));
        }
        _ if name.ends_with(".parquet") => return Err(refused("it is not a Parquet file, though its name says so")),
        // A text file may begin with a brace; its name decides.
        Content::Json if !name.ends_with(".txt") && !name.ends_with(".text") => json_lines(path, source.reader, field),
        Content::Text if [".jsonl", ".ndjson", ".json"].iter().any(|e| name.ends_with(e)) => {
            json_lines(path, source.reader, field)
        }
        _ => Box::new(Plain { reader: source.reader, path, cut, cut_off: Vec::new(), done: false }),
    })
}

fn json_lines(path: PathBuf, reader: Box<dyn BufRead + Send>, field: String) -> Documents {
    Box::new(Lines::new(reader).filter_map(move |line| {
        let text = line.and_then(|(line, text)| json_text(line, &text, &field));
        text.map_err(|error| DataError::Line { path: path.clone(), error }).transpose()
    }))
}

fn json_text(line: usize, text: &str, field: &str) -> Result<Option<String>, LineError> {
    let bad = |message: String| LineError::new(line, message);
    let value: serde_json::Value = serde_json::from_str(text).map_err(|e| bad(super::fields::not_json(&e)))?;
    match value.get(field) {
        Some(serde_json::Value::String(text)) => Ok(Some(text.clone())),
        Some(serde_json::Value::Null) => Ok(None),
        _ => Err(bad(format!("`{field}` must be a string"))),
    }
}

/// Pieces of a text file.
struct Plain {
    reader: Box<dyn BufRead + Send>,
    path: PathBuf,
    cut: Cut,
    /// An incomplete character at the end of the previous piece.
    cut_off: Vec<u8>,
    done: bool,
}

impl Iterator for Plain {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut text = String::new();
        while !self.done {
            let mut line = std::mem::take(&mut self.cut_off);
            // Read in pieces, because a line may be as long as the file.
            match self.reader.by_ref().take(MAX_DOCUMENT as u64).read_until(b'\n', &mut line) {
                Ok(0) => self.done = true,
                Ok(_) => {}
                Err(source) => {
                    self.done = true;
                    return Some(Err(DataError::Io { path: self.path.clone(), source }));
                }
            }
            if line.len() >= MAX_DOCUMENT && !line.ends_with(b"\n") {
                let end = line.utf8_chunks().last().filter(|c| c.invalid().len() < 4).map_or(0, |c| c.invalid().len());
                self.cut_off = line.split_off(line.len() - end);
            }
            // Invalid bytes are replaced, so that one does not make a large corpus unusable.
            let read = String::from_utf8_lossy(&line);
            let ended = line.ends_with(b"\n");
            let read = read.trim_end_matches(['\n', '\r']).trim_start_matches('\u{FEFF}');
            let blank = read.trim().is_empty();
            if !(blank && text.is_empty()) {
                text.push_str(read);
                if ended || self.done {
                    text.push('\n');
                }
            }
            let ends = match self.cut {
                Cut::Paragraph => blank,
                Cut::Line => ended || self.done,
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
    /// `None` after the first unreadable page.
    rows: Option<RowIter<'static>>,
    path: PathBuf,
    field: String,
    row: usize,
}

impl Rows {
    fn open(path: PathBuf, file: File, field: &str) -> Result<Self> {
        let bad = |message: String| DataError::Line { path: path.clone(), error: LineError::fatal(0, message) };
        let reader = Bounded::open(file, Limits::default()).map_err(|e| bad(format!("not a Parquet file: {e}")))?;
        let schema = reader.metadata().file_metadata().schema();
        let column = schema.get_fields().iter().find(|f| f.name() == field).cloned();
        let column = column.ok_or_else(|| {
            let there: Vec<_> = schema.get_fields().iter().map(|f| format!("`{}`", f.name())).collect();
            bad(format!("there is no column `{field}`; the columns are {}", there.join(", ")))
        })?;
        // Only this column is read from disk.
        let name = schema.name().to_owned();
        let rows = guarded(|| {
            let wanted = Type::group_type_builder(&name).with_fields(vec![column]).build()?;
            Ok(RowIter::from_file_into(Box::new(reader)).project(Some(wanted))?.with_batch_size(BATCH))
        });
        let rows = rows.map_err(|e: ParquetError| bad(e.to_string()))?;
        Ok(Self { rows: Some(rows), path, field: field.to_owned(), row: 0 })
    }

    fn text(&self, row: &Row) -> Result<Option<String>, LineError> {
        match row.get_column_iter().next() {
            Some((_, Field::Str(text))) => Ok(Some(text.clone())),
            Some((_, Field::Bytes(bytes))) => Ok(Some(String::from_utf8_lossy(bytes.data()).into_owned())),
            Some((_, Field::Null)) | None => Ok(None),
            Some(_) => Err(LineError::new(self.row, format!("`{}` must be a string", self.field))),
        }
    }
}

impl Iterator for Rows {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let rows = self.rows.as_mut()?;
            let row = guarded(|| rows.next().transpose());
            self.row += 1;
            let text = match row {
                Ok(None) => return None,
                Ok(Some(row)) => self.text(&row),
                Err(e) => {
                    // The reader would return the same error again.
                    self.rows = None;
                    Err(LineError::fatal(self.row, e.to_string()))
                }
            };
            match text {
                Ok(None) => {}
                Ok(Some(text)) => return Some(Ok(text)),
                Err(error) => return Some(Err(DataError::Line { path: self.path.clone(), error })),
            }
        }
    }
}

//! Preference pairs as Parquet, in the layout of Hugging Face datasets and TRL: `prompt`, `chosen` and `rejected` as
//! lists of {role, content}, and `split`. Reading also accepts plain strings.

mod levels;
mod pages;
mod tables;
mod thrift;

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::reader::FileReader;
use parquet::file::writer::SerializedFileWriter;
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::Type;
use serde_json::{Map, Value};

use super::error::LineError;
use super::formats::{Parsed, TRL_FIELDS, is_prompt_like, preference};
use super::limits::Limits;
use super::preferences::pairs;
use super::records::{Comparison, Record};
use crate::domain::{Message, Split};

pub use tables::{Table, TableRow};

pub(in crate::data) use pages::{Bounded, guarded};

/// Rows of one row group, which bounds the memory of readers and of the writer.
const ROWS: usize = 1000;
/// Rows of a column that are decoded at once.
pub(in crate::data) const BATCH: usize = 64;

const SCHEMA: &str = "message preferences {
    required group prompt (LIST) { repeated group list { required group element {
        required binary role (STRING); required binary content (STRING); } } }
    required group chosen (LIST) { repeated group list { required group element {
        required binary role (STRING); required binary content (STRING); } } }
    required group rejected (LIST) { repeated group list { required group element {
        required binary role (STRING); required binary content (STRING); } } }
    optional binary split (STRING);
}";

/// One pair.
struct Pair {
    prompt: Vec<Message>,
    chosen: Vec<Message>,
    rejected: Vec<Message>,
    split: Option<Split>,
}

fn to_pairs(comparison: &Comparison) -> impl Iterator<Item = Pair> {
    let answer = |i: usize| {
        let content = comparison.completions.get(i).map_or_else(String::new, |c| c.text.clone());
        vec![Message { role: "assistant".to_owned(), content }]
    };
    pairs(&comparison.completions).into_iter().map(move |p| Pair {
        prompt: comparison.prompt.messages(),
        chosen: answer(p.better),
        rejected: answer(p.worse),
        split: comparison.split,
    })
}

/// A Parquet file with one row per strict pair; ties give none.
///
/// # Errors
/// Errors of the Parquet writer; in memory only for sizes beyond the format's.
pub fn write<'a>(comparisons: impl IntoIterator<Item = &'a Comparison>) -> Result<Vec<u8>, ParquetError> {
    let mut writer = Writer::new()?;
    let mut out = Vec::new();
    for comparison in comparisons {
        out.append(&mut writer.push(comparison)?);
    }
    out.append(&mut writer.finish()?);
    Ok(out)
}

/// A buffer of written bytes.
#[derive(Clone, Default)]
struct Outbox(Arc<Mutex<Vec<u8>>>);

impl Outbox {
    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl std::io::Write for Outbox {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Writes a file piece by piece, with one row group in memory.
pub struct Writer {
    file: SerializedFileWriter<Outbox>,
    out: Outbox,
    group: Vec<Pair>,
}

impl Writer {
    /// # Errors
    /// Errors of the Parquet writer.
    pub fn new() -> Result<Self, ParquetError> {
        let schema = Arc::new(parse_message_type(SCHEMA)?);
        let properties = WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default())).build();
        let out = Outbox::default();
        let file = SerializedFileWriter::new(out.clone(), schema, Arc::new(properties))?;
        Ok(Self { file, out, group: Vec::new() })
    }

    /// Adds a set's pairs; returns the bytes that are ready, none until a row group is full.
    ///
    /// # Errors
    /// Errors of the Parquet writer.
    pub fn push(&mut self, comparison: &Comparison) -> Result<Vec<u8>, ParquetError> {
        self.group.extend(to_pairs(comparison));
        if self.group.len() >= ROWS {
            self.close_group()?;
        }
        Ok(self.out.take())
    }

    /// The rest of the file.
    ///
    /// # Errors
    /// Errors of the Parquet writer.
    pub fn finish(mut self) -> Result<Vec<u8>, ParquetError> {
        self.close_group()?;
        self.file.close()?;
        Ok(self.out.take())
    }

    fn close_group(&mut self) -> Result<(), ParquetError> {
        let group = std::mem::take(&mut self.group);
        if group.is_empty() {
            return Ok(());
        }
        let mut writer = self.file.next_row_group()?;
        let columns: [fn(&Pair) -> &[Message]; 3] = [|p| &p.prompt, |p| &p.chosen, |p| &p.rejected];
        for messages in columns {
            let parts: [fn(&Message) -> &str; 2] = [|m| &m.role, |m| &m.content];
            for part in parts {
                let (mut values, mut definition, mut repetition) = (Vec::new(), Vec::new(), Vec::new());
                for pair in &group {
                    for (i, message) in messages(pair).iter().enumerate() {
                        values.push(ByteArray::from(part(message)));
                        // Definition level of a present value in one repeated group; a row's first item has repetition
                        // level 0.
                        definition.push(1);
                        repetition.push(i16::from(i > 0));
                    }
                }
                let mut column = writer.next_column()?.ok_or_else(|| ParquetError::General("no column".into()))?;
                column.typed::<ByteArrayType>().write_batch(&values, Some(&definition), Some(&repetition))?;
                column.close()?;
            }
        }
        let splits: Vec<_> = group.iter().filter_map(|p| p.split).map(|s| ByteArray::from(s.as_str())).collect();
        let there: Vec<i16> = group.iter().map(|p| i16::from(p.split.is_some())).collect();
        let mut column = writer.next_column()?.ok_or_else(|| ParquetError::General("no column".into()))?;
        column.typed::<ByteArrayType>().write_batch(&splits, Some(&there), None)?;
        column.close()?;
        writer.close()?;
        Ok(())
    }
}

/// Rows of a file as JSON objects of some columns.
struct Rows {
    rows: Option<RowIter<'static>>,
    row: usize,
    limits: Limits,
    /// Unread columns of the file.
    ignored: Vec<String>,
}

/// The rows of a Parquet file as preferences; bad rows give errors (rows count from 1). An unreadable page or a limit
/// ends the iteration with an error.
///
/// # Errors
/// A file that is not Parquet, or without the columns of preferences.
pub fn read(bytes: Bytes) -> Result<impl Iterator<Item = Result<Record, LineError>>, LineError> {
    Ok(read_within(bytes, Limits::default())?.map(|row| row.map(|row| row.record)))
}

/// The rows of a Parquet file as preferences, under limits, with each row's unread columns.
///
/// # Errors
/// A file that is not Parquet, or without the columns of preferences.
pub fn read_within(bytes: Bytes, limits: Limits) -> Result<impl Iterator<Item = Result<Parsed, LineError>>, LineError> {
    let fatal = |e: ParquetError| LineError::fatal(0, format!("not a Parquet file that can be read: {}", message(&e)));
    let file = Bounded::open(bytes, limits.clone()).map_err(fatal)?;
    let schema = file.metadata().file_metadata().schema_descr_ptr();
    let root = schema.root_schema();
    // A column that may contain a part of the prompt is read, so that a row can be refused by its name.
    let is_known = |name: &str| TRL_FIELDS.contains(&name) || is_prompt_like(name);
    let (known, other): (Vec<_>, Vec<_>) = root.get_fields().iter().cloned().partition(|f| is_known(f.name()));
    let ignored: Vec<String> = other.iter().map(|f| f.name().to_owned()).collect();
    if !known.iter().any(|f| f.name() == "chosen") {
        let there: Vec<_> = root.get_fields().iter().map(|f| format!("`{}`", f.name())).collect();
        return Err(LineError::fatal(0, format!("there is no column `chosen`; the columns are {}", there.join(", "))));
    }
    let rows = guarded(|| {
        let wanted = Type::group_type_builder(root.name()).with_fields(known).build()?;
        Ok(RowIter::from_file_into(Box::new(file)).project(Some(wanted))?.with_batch_size(BATCH))
    })
    .map_err(fatal)?;
    Ok(Rows { rows: Some(rows), row: 0, limits, ignored })
}

/// The error's message.
fn message(error: &ParquetError) -> String {
    match error {
        ParquetError::General(message) => message.clone(),
        other => other.to_string(),
    }
}

impl Iterator for Rows {
    type Item = Result<Parsed, LineError>;

    fn next(&mut self) -> Option<Self::Item> {
        let rows = self.rows.as_mut()?;
        let row = guarded(|| rows.next().transpose());
        let fields = match row {
            Ok(None) => {
                self.rows = None;
                return None;
            }
            Ok(Some(row)) => self.limits.row().map(|()| object(&row)),
            Err(e) => Err(message(&e)),
        };
        self.row += 1;
        let line = self.row;
        match fields {
            // The reader does not get past a damaged page and would return the same error again.
            Err(message) => {
                self.rows = None;
                Some(Err(LineError::fatal(line, message)))
            }
            Ok(fields) => {
                let bytes = weight(&fields);
                if let Err(message) = self.limits.bytes(bytes) {
                    self.rows = None;
                    return Some(Err(LineError::fatal(line, message)));
                }
                let parsed = preference(&fields).map_err(|message| LineError::new(line, message));
                Some(parsed.map(|(comparison, mut ignored)| {
                    ignored.extend(self.ignored.iter().cloned());
                    Parsed { line, record: Record::Comparison(comparison), ignored }
                }))
            }
        }
    }
}

/// Bytes of text in a row.
fn weight(fields: &Map<String, Value>) -> usize {
    fn of(value: &Value) -> usize {
        match value {
            Value::String(text) => text.len(),
            Value::Array(items) => items.iter().map(of).sum(),
            Value::Object(fields) => fields.values().map(of).sum(),
            _ => 8,
        }
    }
    fields.values().map(of).sum()
}

fn object(row: &Row) -> Map<String, Value> {
    row.get_column_iter().map(|(name, field)| (name.clone(), value(field))).collect()
}

/// Converts text, numbers and their lists and groups to JSON; other types are named.
fn value(field: &Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Str(text) => Value::String(text.clone()),
        Field::Bytes(bytes) => Value::String(String::from_utf8_lossy(bytes.data()).into_owned()),
        Field::Group(row) => Value::Object(object(row)),
        Field::ListInternal(list) => Value::Array(list.elements().iter().map(value).collect()),
        Field::Bool(b) => Value::Bool(*b),
        Field::Byte(n) => Value::from(*n),
        Field::Short(n) => Value::from(*n),
        Field::Int(n) => Value::from(*n),
        Field::Long(n) => Value::from(*n),
        Field::Float(n) => Value::from(*n),
        Field::Double(n) => Value::from(*n),
        _ => Value::Object(Map::new()),
    }
}

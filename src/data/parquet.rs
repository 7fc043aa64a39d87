//! Preference pairs as Parquet, in the layout that Hugging Face datasets and TRL read: `prompt`, `chosen`
//! and `rejected` as lists of {role, content}, and `split`. Reading also takes plain strings.

use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::reader::SerializedFileReader;
use parquet::file::writer::SerializedFileWriter;
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use parquet::schema::parser::parse_message_type;
use serde_json::{Map, Value};

use super::formats::preference;
use super::lines::LineError;
use super::preferences::pairs;
use super::records::{Comparison, Record};
use crate::domain::{Message, Split};

/// Rows of one row group: bounds the memory of readers.
const ROWS: usize = 10_000;

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
/// What the writer says; in memory it fails only for sizes beyond the format's.
pub fn write<'a>(comparisons: impl IntoIterator<Item = &'a Comparison>) -> Result<Vec<u8>, ParquetError> {
    let schema = Arc::new(parse_message_type(SCHEMA)?);
    let properties = WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default())).build();
    let mut out = Vec::new();
    let mut file = SerializedFileWriter::new(&mut out, schema, Arc::new(properties))?;
    let mut rows = comparisons.into_iter().flat_map(to_pairs);
    loop {
        let group: Vec<Pair> = rows.by_ref().take(ROWS).collect();
        if group.is_empty() {
            break;
        }
        let mut writer = file.next_row_group()?;
        let columns: [fn(&Pair) -> &[Message]; 3] = [|p| &p.prompt, |p| &p.chosen, |p| &p.rejected];
        for messages in columns {
            let parts: [fn(&Message) -> &str; 2] = [|m| &m.role, |m| &m.content];
            for part in parts {
                let (mut values, mut definition, mut repetition) = (Vec::new(), Vec::new(), Vec::new());
                for pair in &group {
                    for (i, message) in messages(pair).iter().enumerate() {
                        values.push(ByteArray::from(part(message)));
                        // One repeated level above the value, which is there; a row's first item begins it.
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
    }
    file.close()?;
    Ok(out)
}

/// The rows of a Parquet file as preferences; bad rows come as errors (rows count from 1).
///
/// # Errors
/// When it is no Parquet file.
pub fn read(bytes: Bytes) -> Result<impl Iterator<Item = Result<Record, LineError>> + Send, LineError> {
    let bad = |line: usize| move |e: ParquetError| LineError { line, message: format!("not Parquet: {e}") };
    let file = SerializedFileReader::new(bytes).map_err(bad(1))?;
    let rows = RowIter::from_file_into(Box::new(file));
    let one = |(i, row): (usize, Result<Row, ParquetError>)| {
        let row = row.map_err(bad(i + 1))?;
        preference(&object(&row)).map(Record::Comparison).map_err(|message| LineError { line: i + 1, message })
    };
    // Collected: the reader's own iterator cannot move between threads.
    Ok(rows.enumerate().map(one).collect::<Vec<_>>().into_iter())
}

fn object(row: &Row) -> Map<String, Value> {
    row.get_column_iter().map(|(name, field)| (name.clone(), value(field))).collect()
}

/// Only what preferences are made of; other types become null, which counts as absent.
fn value(field: &Field) -> Value {
    match field {
        Field::Str(text) => Value::String(text.clone()),
        Field::Bytes(bytes) => bytes.as_utf8().map_or(Value::Null, |text| Value::String(text.to_owned())),
        Field::Group(row) => Value::Object(object(row)),
        Field::ListInternal(list) => Value::Array(list.elements().iter().map(value).collect()),
        _ => Value::Null,
    }
}

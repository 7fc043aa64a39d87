//! Tables for other trainers: columns of messages, as lists of {role, content}, and columns of text.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use super::ROWS;
use crate::domain::Message;

/// Writes rows into a file, a row group at a time.
pub struct Table {
    file: SerializedFileWriter<File>,
    rows: Vec<TableRow>,
    written: u64,
}

/// One row: a cell for each column, in the order of the columns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableRow {
    /// Messages of each column; not empty.
    pub messages: Vec<Vec<Message>>,
    pub texts: Vec<Option<String>>,
}

impl Table {
    /// A table with these columns, messages first. Names are plain identifiers.
    ///
    /// # Errors
    /// I/O errors, and errors of the Parquet writer.
    pub fn create(path: &Path, messages: &[&str], texts: &[&str]) -> Result<Self, ParquetError> {
        let lists = messages.iter().map(|name| {
            format!(
                "required group {name} (LIST) {{ repeated group list {{ required group element {{ \
                 required binary role (STRING); required binary content (STRING); }} }} }}\n"
            )
        });
        let plain = texts.iter().map(|name| format!("optional binary {name} (STRING);\n"));
        let schema: String = lists.chain(plain).collect();
        let schema = Arc::new(parse_message_type(&format!("message rows {{ {schema} }}"))?);
        let properties = WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default())).build();
        let file = SerializedFileWriter::new(File::create(path)?, schema, Arc::new(properties))?;
        Ok(Self { file, rows: Vec::new(), written: 0 })
    }

    /// # Errors
    /// I/O errors, and errors of the Parquet writer.
    pub fn push(&mut self, row: TableRow) -> Result<(), ParquetError> {
        self.rows.push(row);
        self.written += 1;
        if self.rows.len() >= ROWS { self.close_group() } else { Ok(()) }
    }

    /// Ends the file durably; returns the number of rows.
    ///
    /// # Errors
    /// I/O errors, and errors of the Parquet writer.
    pub fn finish(mut self) -> Result<u64, ParquetError> {
        self.close_group()?;
        self.file.finish()?;
        self.file.inner().sync_all()?;
        Ok(self.written)
    }

    fn close_group(&mut self) -> Result<(), ParquetError> {
        let rows = std::mem::take(&mut self.rows);
        let Some(first) = rows.first() else { return Ok(()) };
        let (lists, texts) = (first.messages.len(), first.texts.len());
        let mut writer = self.file.next_row_group()?;
        let mut column = |values: &[ByteArray], definition: &[i16], repetition: Option<&[i16]>| {
            let mut column = writer.next_column()?.ok_or_else(|| ParquetError::General("no column".into()))?;
            column.typed::<ByteArrayType>().write_batch(values, Some(definition), repetition)?;
            column.close()
        };
        for list in 0..lists {
            let parts: [fn(&Message) -> &str; 2] = [|m| &m.role, |m| &m.content];
            for part in parts {
                let (mut values, mut definition, mut repetition) = (Vec::new(), Vec::new(), Vec::new());
                for row in &rows {
                    for (i, message) in row.messages[list].iter().enumerate() {
                        values.push(ByteArray::from(part(message)));
                        definition.push(1);
                        repetition.push(i16::from(i > 0));
                    }
                }
                column(&values, &definition, Some(&repetition))?;
            }
        }
        for text in 0..texts {
            let there: Vec<i16> = rows.iter().map(|row| i16::from(row.texts[text].is_some())).collect();
            let values: Vec<ByteArray> =
                rows.iter().filter_map(|row| row.texts[text].as_deref()).map(ByteArray::from).collect();
            column(&values, &there, None)?;
        }
        writer.close()?;
        Ok(())
    }
}

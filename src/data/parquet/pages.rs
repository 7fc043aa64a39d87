//! A Parquet file whose pages are read under limits. The Parquet crate trusts the sizes in a file and decompresses gzip
//! and brotli pages without a limit; here a page is refused before it exceeds its limits.

use std::io::Read;
use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::{Compression, Encoding, Type as Physical};
use parquet::bloom_filter::Sbbf;
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader, RowGroupMetaData};
use parquet::file::reader::{ChunkReader, FileReader, RowGroupReader};
use parquet::record::reader::RowIter;
use parquet::schema::types::Type;

use super::levels::{delta_sum, longest_row, longest_text};
use super::thrift::{self, PageHeader};
use crate::data::limits::Limits;

/// Largest page (bytes), compressed or not.
const MAX_PAGE: usize = 64 << 20;
/// Largest footer.
const MAX_FOOTER: usize = 32 << 20;
/// Most values of one column in one row.
const MAX_IN_ROW: u64 = 16_384;
/// Most bytes of text of one row from a dictionary.
const MAX_ROW_BYTES: u64 = 64 << 20;
/// Largest page header (bytes), with column statistics.
const MAX_HEADER: usize = 1 << 20;
const SMALL_HEADER: usize = 4096;

fn bad(message: impl Into<String>) -> ParquetError {
    ParquetError::General(message.into())
}

/// A Parquet file with limits. `R` is its source: memory or a file.
pub(in crate::data) struct Bounded<R: ChunkReader> {
    metadata: ParquetMetaData,
    source: Arc<R>,
    limits: Limits,
}

impl<R: ChunkReader + 'static> Bounded<R> {
    /// Reads the footer.
    ///
    /// # Errors
    /// A file that is not Parquet, or beyond the limits.
    pub(in crate::data) fn open(source: R, limits: Limits) -> Result<Self> {
        let source = Arc::new(source);
        let size = source.len();
        if size < 12 {
            return Err(bad("the file is too short to be a Parquet file"));
        }
        let tail = source.get_bytes(size - 8, 8)?;
        if tail.get(4..) != Some(&b"PAR1"[..]) {
            return Err(bad("the file does not end with PAR1: it is truncated, or not a Parquet file"));
        }
        let length = tail.iter().take(4).rev().fold(0u64, |n, b| n << 8 | u64::from(*b));
        if length > (size - 8).min(MAX_FOOTER as u64) {
            return Err(bad(format!("the footer of {length} bytes does not fit into the file")));
        }
        let footer = source.get_bytes(size - 8 - length, length as usize)?;
        thrift::check_footer(&footer).map_err(|e| bad(format!("the footer {e}")))?;
        let metadata = guarded(|| ParquetMetaDataReader::new().parse_and_finish(source.as_ref()))?;
        Ok(Self { metadata, source, limits })
    }
}

/// Runs code of the Parquet crate and turns its panics on damaged files into errors.
pub(in crate::data) fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)) {
        Ok(done) => done,
        Err(_) => Err(bad("the file's structure contradicts itself")),
    }
}

impl<R: ChunkReader + 'static> FileReader for Bounded<R> {
    fn metadata(&self) -> &ParquetMetaData {
        &self.metadata
    }

    fn num_row_groups(&self) -> usize {
        self.metadata.num_row_groups()
    }

    fn get_row_group(&self, i: usize) -> Result<Box<dyn RowGroupReader + '_>> {
        Ok(Box::new(Group { file: self, meta: self.metadata().row_group(i) }))
    }

    fn get_row_iter(&self, projection: Option<Type>) -> Result<RowIter<'_>> {
        RowIter::from_file(projection, self)
    }
}

struct Group<'a, R: ChunkReader> {
    file: &'a Bounded<R>,
    meta: &'a RowGroupMetaData,
}

impl<R: ChunkReader + 'static> RowGroupReader for Group<'_, R> {
    fn metadata(&self) -> &RowGroupMetaData {
        self.meta
    }

    fn num_columns(&self) -> usize {
        self.meta.num_columns()
    }

    fn get_column_page_reader(&self, i: usize) -> Result<Box<dyn PageReader>> {
        let column = self.meta.column(i);
        let start = column.dictionary_page_offset().unwrap_or(column.data_page_offset());
        let range = u64::try_from(start).ok().zip(u64::try_from(column.compressed_size()).ok());
        let name = column.column_path().string();
        let fits =
            |(start, length): &(u64, u64)| start.checked_add(*length).is_some_and(|e| e <= self.file.source.len());
        let (start, length) =
            range.filter(fits).ok_or_else(|| bad(format!("column {name} lies outside of the file")))?;
        Ok(Box::new(Pages {
            source: self.file.source.clone(),
            limits: self.file.limits.clone(),
            name,
            codec: column.compression(),
            is_text: column.column_type() == Physical::BYTE_ARRAY,
            max_rep: column.column_descr().max_rep_level(),
            max_def: column.column_descr().max_def_level(),
            at: start,
            left: length,
            longest: None,
            in_row: 0,
            failed: false,
        }))
    }

    fn get_column_bloom_filter(&self, _: usize) -> Option<&Sbbf> {
        None
    }

    fn get_row_iter(&self, projection: Option<Type>) -> Result<RowIter<'_>> {
        RowIter::from_row_group(projection, self)
    }
}

/// The pages of one column of one row group, in order.
struct Pages<R> {
    source: Arc<R>,
    limits: Limits,
    name: String,
    codec: Compression,
    is_text: bool,
    max_rep: i16,
    max_def: i16,
    at: u64,
    left: u64,
    /// Length of the dictionary's longest text, if there is a dictionary.
    longest: Option<u64>,
    /// Number of values of the incomplete row of the last page.
    in_row: u64,
    failed: bool,
}

impl<R: ChunkReader> Pages<R> {
    /// The next page's header and its length.
    fn header(&self) -> Result<(PageHeader, usize)> {
        // A header is small, so a slice of the column is enough.
        let bytes = self.source.get_bytes(self.at, self.left.min(SMALL_HEADER as u64) as usize)?;
        let header = match thrift::page_header(&bytes) {
            Err(_) if self.left > SMALL_HEADER as u64 => {
                let bytes = self.source.get_bytes(self.at, self.left.min(MAX_HEADER as u64) as usize)?;
                thrift::page_header(&bytes)
            }
            other => other,
        };
        header.map_err(|e| bad(format!("a page header of column {} {e}", self.name)))
    }

    fn next_page(&mut self) -> Result<Option<Page>> {
        loop {
            self.limits.check().map_err(bad)?;
            if self.left == 0 {
                return Ok(None);
            }
            let (header, length) = self.header()?;
            let packed = header.packed as usize;
            let whole = (length + packed) as u64;
            if whole > self.left || packed > MAX_PAGE || header.unpacked as usize > MAX_PAGE {
                return Err(bad(format!(
                    "a page of column {} has {} bytes, unpacked {}; the column has {} left, and at most {MAX_PAGE} are \
                     read",
                    self.name, header.packed, header.unpacked, self.left
                )));
            }
            let data = self.source.get_bytes(self.at + length as u64, packed)?;
            (self.at, self.left) = (self.at + whole, self.left - whole);
            match header.kind {
                thrift::INDEX => continue,
                thrift::DATA | thrift::DATA_V2 | thrift::DICTIONARY => return self.page(&header, data).map(Some),
                other => return Err(bad(format!("column {} has a page of the unknown kind {other}", self.name))),
            }
        }
    }

    fn page(&mut self, header: &PageHeader, data: Bytes) -> Result<Page> {
        let size = header.unpacked as usize;
        self.limits.bytes(size).map_err(bad)?;
        let levels = if header.kind == thrift::DATA_V2 {
            let levels = header.rep_bytes as usize + header.def_bytes as usize;
            if levels > data.len() || levels > size {
                return Err(bad(format!("a page of column {} has levels beyond its end", self.name)));
            }
            levels
        } else {
            0
        };
        let buf = if self.codec == Compression::UNCOMPRESSED || (header.kind == thrift::DATA_V2 && !header.is_packed) {
            data
        } else {
            let mut out = Vec::with_capacity(size);
            out.extend_from_slice(&data[..levels]);
            unpack(self.codec, &data[levels..], size, &mut out)
                .map_err(|e| bad(format!("a page of column {} cannot be unpacked ({}): {e}", self.name, self.codec)))?;
            if out.len() != size {
                return Err(bad(format!(
                    "a page of column {} unpacks to {} bytes instead of {size}",
                    self.name,
                    out.len()
                )));
            }
            Bytes::from(out)
        };
        let encoding = encoding(header.encoding)
            .ok_or_else(|| bad(format!("column {} has the unknown encoding {}", self.name, header.encoding)))?;
        let values = header.values as u32;
        if header.kind == thrift::DICTIONARY {
            // A text has four bytes of length, and any value at least one byte.
            let least = if self.is_text { 4 } else { 1 };
            if u64::from(values) * least > buf.len() as u64 {
                return Err(bad(format!("the dictionary of column {} says it holds {values} values", self.name)));
            }
            self.longest = Some(if self.is_text { longest_text(&buf) } else { 16 });
            return Ok(Page::DictionaryPage { buf, num_values: values, encoding, is_sorted: false });
        }
        self.check_values(header, encoding, &buf)?;
        Ok(if header.kind == thrift::DATA_V2 {
            Page::DataPageV2 {
                buf,
                num_values: values,
                encoding,
                num_nulls: header.nulls as u32,
                num_rows: header.rows as u32,
                def_levels_byte_len: header.def_bytes as u32,
                rep_levels_byte_len: header.rep_bytes as u32,
                is_compressed: header.is_packed,
                statistics: None,
            }
        } else {
            Page::DataPage {
                buf,
                num_values: values,
                encoding,
                def_level_encoding: level_encoding(header.def_encoding),
                rep_level_encoding: level_encoding(header.rep_encoding),
                statistics: None,
            }
        })
    }

    /// Refuses rows with more values or text than any conversation, before they are decoded.
    fn check_values(&mut self, header: &PageHeader, encoding: Encoding, buf: &Bytes) -> Result<()> {
        let name = &self.name;
        let mut most = 1;
        if self.max_rep > 0 {
            let levels = if header.kind == thrift::DATA_V2 {
                buf.get(..header.rep_bytes as usize)
            } else if header.rep_encoding == 3 {
                let length = buf.first_chunk::<4>().map_or(0, |b| u32::from_le_bytes(*b) as usize);
                buf.get(4..).and_then(|rest| rest.get(..length))
            } else {
                return Err(bad(format!("column {name} has levels in an encoding that is no longer written")));
            };
            let levels = levels.ok_or_else(|| bad(format!("a page of column {name} has levels beyond its end")))?;
            most = longest_row(levels, self.max_rep, header.values as u64, &mut self.in_row)
                .ok_or_else(|| bad(format!("a page of column {name} has damaged levels")))?;
        }
        if self.is_text && matches!(encoding, Encoding::DELTA_BYTE_ARRAY | Encoding::DELTA_LENGTH_BYTE_ARRAY) {
            let damaged = || bad(format!("a page of column {name} has damaged lengths"));
            let (count, sum) = delta_sum(self.values_of(header, buf).ok_or_else(damaged)?).ok_or_else(damaged)?;
            // Shared prefixes are stored once and repeated for every value; lengths alone repeat nothing.
            let repeated = if encoding == Encoding::DELTA_BYTE_ARRAY { sum } else { 0 };
            if count > header.values as u64 || repeated > MAX_ROW_BYTES {
                return Err(bad(format!("a page of column {name} stands for {repeated} bytes of repeated text")));
            }
        }
        if most > MAX_IN_ROW {
            return Err(bad(format!("a row has {most} values in column {name}; at most {MAX_IN_ROW} are read")));
        }
        let from_dictionary = matches!(encoding, Encoding::PLAIN_DICTIONARY | Encoding::RLE_DICTIONARY);
        let bytes = self.longest.filter(|_| from_dictionary).unwrap_or(0).saturating_mul(most);
        if bytes > MAX_ROW_BYTES {
            return Err(bad(format!(
                "a row may take {bytes} bytes in column {name}; at most {MAX_ROW_BYTES} are read"
            )));
        }
        Ok(())
    }
}

impl<R> Pages<R> {
    /// The page after its levels.
    fn values_of<'a>(&self, header: &PageHeader, mut buf: &'a [u8]) -> Option<&'a [u8]> {
        if header.kind == thrift::DATA_V2 {
            return buf.get(header.rep_bytes as usize + header.def_bytes as usize..);
        }
        for max in [self.max_rep, self.max_def] {
            if max > 0 {
                let (length, rest) = buf.split_first_chunk::<4>()?;
                buf = rest.get(u32::from_le_bytes(*length) as usize..)?;
            }
        }
        Some(buf)
    }
}

impl<R: ChunkReader> PageReader for Pages<R> {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        if self.failed {
            return Err(bad("the column was given up at an earlier page"));
        }
        let page = self.next_page();
        self.failed = page.is_err();
        page
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        Err(bad("pages are not skipped"))
    }

    fn skip_next_page(&mut self) -> Result<()> {
        Err(bad("pages are not skipped"))
    }

    /// Pages of version 2 begin with a row; those of version 1 need not.
    fn at_record_boundary(&mut self) -> Result<bool> {
        Ok(self.left == 0 || self.header()?.0.kind == thrift::DATA_V2)
    }
}

impl<R: ChunkReader> Iterator for Pages<R> {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed { None } else { self.get_next_page().transpose() }
    }
}

fn encoding(number: i32) -> Option<Encoding> {
    Some(match number {
        0 => Encoding::PLAIN,
        2 => Encoding::PLAIN_DICTIONARY,
        3 => Encoding::RLE,
        5 => Encoding::DELTA_BINARY_PACKED,
        6 => Encoding::DELTA_LENGTH_BYTE_ARRAY,
        7 => Encoding::DELTA_BYTE_ARRAY,
        8 => Encoding::RLE_DICTIONARY,
        9 => Encoding::BYTE_STREAM_SPLIT,
        _ => return None,
    })
}

#[expect(deprecated, reason = "files of old writers name it")]
fn level_encoding(number: i32) -> Encoding {
    if number == 4 { Encoding::BIT_PACKED } else { Encoding::RLE }
}

/// Decompresses `data` and appends it to `out`, up to `size` bytes, its capacity.
fn unpack(codec: Compression, data: &[u8], size: usize, out: &mut Vec<u8>) -> Result<(), String> {
    let start = out.len();
    let room = size - start;
    if room == 0 {
        return Ok(());
    }
    let text = |e: std::io::Error| e.to_string();
    // One more byte than allowed distinguishes a page that is too long.
    let through = |reader: &mut dyn Read, out: &mut Vec<u8>| {
        Read::take(&mut *reader, room as u64).read_to_end(out).map_err(text)?;
        match reader.read(&mut [0]).map_err(text)? {
            0 => Ok(()),
            _ => Err("it exceeds its stated size".to_owned()),
        }
    };
    match codec {
        Compression::UNCOMPRESSED => out.extend_from_slice(data),
        Compression::GZIP(_) => through(&mut flate2::read::MultiGzDecoder::new(data), out)?,
        Compression::BROTLI(_) => through(&mut brotli_decompressor::Decompressor::new(data, 4096), out)?,
        Compression::ZSTD(_) => {
            let unpacked = zstd::bulk::decompress(data, room).map_err(text)?;
            out.extend_from_slice(&unpacked);
        }
        Compression::SNAPPY => {
            out.resize(size, 0);
            let n = snap::raw::Decoder::new().decompress(data, &mut out[start..]).map_err(|e| e.to_string())?;
            out.truncate(start + n);
        }
        Compression::LZ4_RAW => raw_lz4(data, size, start, out)?,
        // Hadoop's frames; older writers' LZ4 is a plain frame or a raw block.
        Compression::LZ4 => {
            if hadoop_lz4(data, size, start, out).is_err() {
                out.truncate(start);
                if data.starts_with(&[0x04, 0x22, 0x4d, 0x18]) {
                    through(&mut lz4_flex::frame::FrameDecoder::new(data), out)?;
                } else {
                    raw_lz4(data, size, start, out)?;
                }
            }
        }
        other => return Err(format!("the codec {other} is not supported")),
    }
    Ok(())
}

fn raw_lz4(data: &[u8], size: usize, start: usize, out: &mut Vec<u8>) -> Result<(), String> {
    out.resize(size, 0);
    let n = lz4_flex::block::decompress_into(data, &mut out[start..]).map_err(|e| e.to_string())?;
    out.truncate(start + n);
    Ok(())
}

/// Blocks with two sizes before each, big-endian.
fn hadoop_lz4(mut data: &[u8], size: usize, start: usize, out: &mut Vec<u8>) -> Result<(), String> {
    let mut at = start;
    out.resize(size, 0);
    while let Some((sizes, rest)) = data.split_first_chunk::<8>() {
        let number = |b: &[u8]| b.iter().fold(0usize, |n, b| n << 8 | usize::from(*b));
        let (unpacked, packed) = (number(&sizes[..4]), number(&sizes[4..]));
        let (block, next) = rest.split_at_checked(packed).ok_or("a block ends too early")?;
        let to = out.get_mut(at..).and_then(|o| o.get_mut(..unpacked)).ok_or("a block is too long")?;
        let n = lz4_flex::block::decompress_into(block, to).map_err(|e| e.to_string())?;
        if n != unpacked {
            return Err("a block is too short".into());
        }
        (at, data) = (at + n, next);
    }
    if !data.is_empty() || at == start {
        return Err("no blocks".into());
    }
    out.truncate(at);
    Ok(())
}

//! Detects the kind of a file by its first bytes, not by its name; compressed text is decompressed while it is read.

use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Read};
use std::path::Path;

use super::error::{DataError, LineError};
use super::limits::Limits;

/// Number of bytes that are inspected.
const HEAD: usize = 4096;

const NOT_UTF8: &str = "text in another encoding than UTF-8";

/// Number of places where `text` is not UTF-8; its end may be inside of a character.
fn bad_bytes(text: &[u8]) -> usize {
    text.utf8_chunks().filter(|chunk| !chunk.invalid().is_empty()).count()
}

/// The content of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    Empty,
    Parquet,
    Gzip,
    Zstd,
    /// Text whose first character opens a JSON object.
    Json,
    /// Text whose first characters open a JSON list.
    JsonList,
    Text,
    /// A kind that no reader supports, with its name.
    Other(&'static str),
}

impl Content {
    /// Signatures at the start of a file.
    pub fn of(head: &[u8]) -> Self {
        const MAGIC: &[(&[u8], Content)] = &[
            (b"PAR1", Content::Parquet),
            (&[0x1f, 0x8b], Content::Gzip),
            (&[0x28, 0xb5, 0x2f, 0xfd], Content::Zstd),
            (b"PK\x03\x04", Content::Other("a ZIP archive")),
            (b"PK\x05\x06", Content::Other("a ZIP archive")),
            (b"\xfd7zXZ\0", Content::Other("an XZ file")),
            (b"BZh", Content::Other("a bzip2 file")),
            (b"7z\xbc\xaf", Content::Other("a 7-Zip archive")),
            (&[0x04, 0x22, 0x4d, 0x18], Content::Other("an LZ4 file")),
            (b"ARROW1", Content::Other("an Arrow file")),
            (b"Obj\x01", Content::Other("an Avro file")),
            (b"SQLite format 3", Content::Other("an SQLite database")),
            (b"GGUF", Content::Other("a GGUF model")),
            (b"%PDF-", Content::Other("a PDF document")),
            (&[0xff, 0xfe], Content::Other("UTF-16 text")),
            (&[0xfe, 0xff], Content::Other("UTF-16 text")),
            (b"version https://git-lfs", Content::Other("a Git LFS pointer, not the file itself")),
        ];
        if head.is_empty() {
            return Self::Empty;
        }
        if let Some((_, kind)) = MAGIC.iter().find(|(magic, _)| head.starts_with(magic)) {
            return *kind;
        }
        if head.contains(&0) {
            let every_second = head.iter().skip(1).step_by(2).filter(|b| **b == 0).count() * 4 > head.len();
            let first = head.iter().step_by(2).filter(|b| **b == 0).count() * 4 > head.len();
            return Self::Other(if every_second || first { "UTF-16 text" } else { "a binary file" });
        }
        let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
        match text.first() {
            None if head.len() < HEAD => Self::Empty,
            Some(b'{') => Self::Json,
            Some(b'[') if text.get(1..).is_some_and(|t| t.trim_ascii_start().starts_with(b"{")) => Self::JsonList,
            // Few invalid bytes are damage; many mean another encoding, such as Latin-1.
            _ if bad_bytes(text) > 1 + text.len() / 256 => Self::Other(NOT_UTF8),
            _ => Self::Text,
        }
    }

    /// Why the content cannot be read as text; `None` if it can.
    pub fn refusal(self) -> Option<String> {
        match self {
            Self::Other(NOT_UTF8) => Some("it is not UTF-8 text; save it as UTF-8".to_owned()),
            Self::Other("UTF-16 text") => Some("it is UTF-16 text; save it as UTF-8".to_owned()),
            Self::Other(what) => Some(format!("it is {what}, which is not supported")),
            Self::Gzip | Self::Zstd => Some("it is compressed twice".to_owned()),
            Self::JsonList => Some("it is one JSON list; write one object a line (jq -c '.[]')".to_owned()),
            _ => None,
        }
    }
}

/// A file's decompressed content.
pub struct Source {
    pub content: Content,
    pub packed: bool,
    pub reader: Box<dyn BufRead + Send>,
}

impl Source {
    /// Inspects the first bytes and decompresses gzip and Zstandard. Decompressed bytes count against the limits.
    ///
    /// # Errors
    /// Errors of the reader; compressed data that is damaged at its start.
    pub fn open(reader: impl Read + Send + 'static, limits: Limits) -> std::io::Result<Self> {
        let (content, reader) = peek(Box::new(reader))?;
        let unpacked: Box<dyn Read + Send> = match content {
            Content::Gzip => Box::new(flate2::read::MultiGzDecoder::new(reader)),
            Content::Zstd => {
                let mut zstd = zstd::stream::read::Decoder::new(reader)?;
                // Window of 64 MiB, more than any compression level uses by default.
                zstd.window_log_max(26)?;
                Box::new(zstd)
            }
            _ => {
                let reader = Box::new(BufReader::new(Metered { reader, limits }));
                return Ok(Self { content, packed: false, reader });
            }
        };
        let (content, reader) = peek(unpacked)?;
        Ok(Self { content, packed: true, reader: Box::new(BufReader::new(Metered { reader, limits })) })
    }

    /// A file on this machine.
    ///
    /// # Errors
    /// A file that cannot be read, or that is neither text nor Parquet (see `content`).
    pub fn file(path: &Path) -> Result<Self, DataError> {
        let io = |source| DataError::Io { path: path.to_owned(), source };
        let source = Self::open(File::open(path).map_err(io)?, Limits::default()).map_err(io)?;
        match source.content.refusal() {
            Some(why) => Err(DataError::Line { path: path.to_owned(), error: LineError::fatal(0, why) }),
            None => Ok(source),
        }
    }

    /// A text file on this machine, for readers of lines.
    ///
    /// # Errors
    /// A file that cannot be read or is not text.
    pub fn lines(path: &Path) -> Result<Box<dyn BufRead + Send>, DataError> {
        let source = Self::file(path)?;
        if source.content == Content::Parquet {
            let error = LineError::fatal(0, "it is a Parquet file; JSON lines are expected here");
            return Err(DataError::Line { path: path.to_owned(), error });
        }
        Ok(source.reader)
    }
}

type Reader = Box<dyn Read + Send>;

/// The content of a reader by its first bytes, and a reader of all of it.
fn peek(mut reader: Reader) -> std::io::Result<(Content, Reader)> {
    let mut head = Vec::with_capacity(HEAD);
    (&mut reader).take(HEAD as u64).read_to_end(&mut head)?;
    Ok((Content::of(&head), Box::new(Cursor::new(head).chain(reader))))
}

struct Metered {
    reader: Reader,
    limits: Limits,
}

impl Read for Metered {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.reader.read(buffer)?;
        self.limits.bytes(n).map_err(std::io::Error::other)?;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_is_detected_from_the_first_bytes() {
        for (head, content) in [
            (&b""[..], Content::Empty),
            (b"  \n", Content::Empty),
            (b"PAR1..", Content::Parquet),
            (b"\x1f\x8b\x08", Content::Gzip),
            (b"\xef\xbb\xbf{\"a\"", Content::Json),
            (b" \n[ {", Content::JsonList),
            (b"[1] a footnote", Content::Text),
            (b"Once", Content::Text),
            (b"\xff\xfea\0", Content::Other("UTF-16 text")),
            (b"a\0b\0c\0", Content::Other("UTF-16 text")),
            (b"caf\xe9 cr\xe8me br\xfbl\xe9e", Content::Other(NOT_UTF8)),
            (b"caf\xc3\xa9 cr\xe8me", Content::Text),
            (b"caf\xc3\xa9 cr\xc3", Content::Text),
            (b"abcdefghij\0klmnop", Content::Other("a binary file")),
            (b"PK\x03\x04", Content::Other("a ZIP archive")),
        ] {
            assert_eq!(Content::of(head), content, "{head:?}");
        }
    }
}

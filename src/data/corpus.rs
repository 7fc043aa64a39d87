//! Plain text for language modelling: documents from files, token blocks of one length.

use std::io::BufReader;
use std::path::Path;

use super::lines::{DataError, LineError, Lines};

/// The documents of a corpus file: `.jsonl` lines with a `text` field, else paragraphs (blank lines part
/// them) of a text file.
pub fn documents(path: &Path) -> Result<Vec<String>, DataError> {
    let io = |source| DataError::Io { path: path.to_owned(), source };
    let found = if path.extension().is_some_and(|e| e == "jsonl") {
        let file = std::fs::File::open(path).map_err(io)?;
        let text_of = |line: Result<(usize, String), LineError>| -> Result<String, LineError> {
            let (line, text) = line?;
            let value: serde_json::Value =
                serde_json::from_str(&text).map_err(|e| LineError { line, message: format!("not JSON: {e}") })?;
            let text = value.get("text").and_then(serde_json::Value::as_str);
            text.map(str::to_owned).ok_or_else(|| LineError { line, message: "`text` must be a string".into() })
        };
        let texts: Result<Vec<String>, LineError> = Lines::new(BufReader::new(file)).map(text_of).collect();
        texts.map_err(|error| DataError::Line { path: path.to_owned(), error })?
    } else {
        let text = std::fs::read_to_string(path).map_err(io)?.replace("\r\n", "\n");
        text.split("\n\n").map(str::trim).filter(|p| !p.is_empty()).map(str::to_owned).collect()
    };
    if found.is_empty() {
        return Err(DataError::Empty { path: path.to_owned(), what: "document" });
    }
    Ok(found)
}

/// Lays documents end to end, `end` after each, and cuts blocks of `length`; a shorter rest is dropped.
pub fn pack(documents: impl IntoIterator<Item = Vec<u32>>, end: Option<u32>, length: usize) -> Vec<Vec<u32>> {
    let stream: Vec<u32> = documents.into_iter().flat_map(|ids| ids.into_iter().chain(end)).collect();
    stream.chunks_exact(length.max(1)).map(<[u32]>::to_vec).collect()
}

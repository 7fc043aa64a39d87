//! A corpus as token ids: documents are streamed, deduplicated, split by hash, concatenated, and cut into blocks whose
//! pieces never cross the end of a document.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use super::dedup::{Dedup, Seen};
use super::documents::{Cut, documents as stream};
use super::error::DataError;
use super::split::split_of;
use crate::domain::{Split, hash};
use crate::tokenizer::Tokenizer;

/// The files of a corpus and their preprocessing.
#[derive(Clone, Debug)]
pub struct TextFiles {
    pub paths: Vec<PathBuf>,
    pub cut: Cut,
    /// The string field of JSONL lines and Parquet rows.
    pub field: String,
    pub dedup: Dedup,
    pub heldout_fraction: f64,
}

/// Counts of the documents read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    pub documents: usize,
    pub exact_duplicates: usize,
    pub near_duplicates: usize,
    pub heldout_documents: usize,
    pub train_tokens: usize,
    pub heldout_tokens: usize,
    pub train_bytes: usize,
    pub heldout_bytes: usize,
}

impl TextFiles {
    /// Calls `each` with every kept document and its side of the split. The side depends on the document alone, not on
    /// the order or number of files.
    ///
    /// # Errors
    /// Of the files and of `each`.
    pub fn each(&self, mut each: impl FnMut(&str, Split) -> Result<()>) -> Result<Counts> {
        let mut seen = Seen::new(self.dedup);
        let mut counts = Counts::default();
        for document in stream(&self.paths, self.cut, &self.field)? {
            let document = document?;
            if !seen.is_new(&document) {
                continue;
            }
            let side = split_of(&hash::of_bytes(&document), self.heldout_fraction);
            counts.documents += 1;
            match side {
                Split::Train => counts.train_bytes += document.len(),
                Split::Heldout => {
                    counts.heldout_documents += 1;
                    counts.heldout_bytes += document.len();
                }
            }
            each(&document, side)?;
        }
        (counts.exact_duplicates, counts.near_duplicates) = (seen.exact_duplicates, seen.near_duplicates);
        ensure!(counts.documents > 0, "texts: the files contain no documents");
        Ok(counts)
    }

    /// Tokenizes everything, with `begin` and `end` around every document.
    pub fn read(&self, tokenizer: &Tokenizer, begin: Option<u32>, end: Option<u32>) -> Result<Corpus> {
        let (mut train, mut heldout) = (Stream::default(), Stream::default());
        let mut hash = Sha256::new();
        let mut counts = self.each(|document, side| {
            let ids = tokenizer.encode(document, false, false).context("texts")?;
            let to = if side == Split::Train { &mut train } else { &mut heldout };
            let before = to.ids.len();
            to.ids.extend(begin.into_iter().chain(ids).chain(end));
            to.ends.push(to.ids.len());
            hash.update([u8::from(side == Split::Train)]);
            hash.update(((to.ids.len() - before) as u64).to_le_bytes());
            hash.update(bytemuck::cast_slice(&to.ids[before..]));
            Ok(())
        })?;
        (counts.train_tokens, counts.heldout_tokens) = (train.ids.len(), heldout.ids.len());
        Ok(Corpus { train, heldout, counts, sha256: hex::encode(hash.finalize()) })
    }
}

/// A tokenized corpus: four bytes per token.
pub struct Corpus {
    pub train: Stream,
    pub heldout: Stream,
    pub counts: Counts,
    /// Hash of all ids and document ends, in order; equal for equal training data.
    pub sha256: String,
}

/// Concatenated documents.
#[derive(Clone, Debug, Default)]
pub struct Stream {
    pub ids: Vec<u32>,
    /// Ascending ends of documents; the last is `ids.len()`.
    pub ends: Vec<usize>,
}

impl Stream {
    /// Number of blocks of `length` tokens, including a shorter last one.
    pub fn n_blocks(&self, length: usize) -> usize {
        self.ids.len().div_ceil(length)
    }

    /// The pieces of documents in block `index`; together they are its tokens.
    pub fn block(&self, index: usize, length: usize) -> Vec<&[u32]> {
        let (mut at, end) = (index * length, ((index + 1) * length).min(self.ids.len()));
        let mut pieces = Vec::new();
        let mut document = self.ends.partition_point(|e| *e <= at);
        while at < end {
            let stop = self.ends.get(document).map_or(end, |e| (*e).min(end));
            pieces.push(&self.ids[at..stop]);
            at = stop;
            document += 1;
        }
        pieces
    }

    /// Windows of at most `length` tokens over each document that overlap by one token, so that every token but a
    /// document's first is predicted once.
    pub fn windows(&self, length: usize) -> Vec<&[u32]> {
        let mut out = Vec::new();
        let mut start = 0;
        for &end in &self.ends {
            let mut at = start;
            while at + 1 < end {
                let stop = (at + length).min(end);
                out.push(&self.ids[at..stop]);
                at = stop - 1;
            }
            start = end;
        }
        out
    }
}

/// The documents of a corpus file: `.jsonl` lines with a `text` field, Parquet rows with a `text` column, otherwise
/// paragraphs of a text file, separated by blank lines.
pub fn documents(path: &Path) -> Result<Vec<String>, DataError> {
    let found: Vec<String> =
        stream(&[path.to_owned()], Cut::Paragraph, "text")?.collect::<std::result::Result<_, _>>()?;
    if found.is_empty() {
        return Err(DataError::Empty { path: path.to_owned(), what: "document" });
    }
    Ok(found)
}

/// Concatenates documents with `end` after each, and cuts blocks of `length` tokens; a shorter rest is dropped.
pub fn pack(documents: impl IntoIterator<Item = Vec<u32>>, end: Option<u32>, length: usize) -> Vec<Vec<u32>> {
    let stream: Vec<u32> = documents.into_iter().flat_map(|ids| ids.into_iter().chain(end)).collect();
    stream.chunks_exact(length.max(1)).map(<[u32]>::to_vec).collect()
}

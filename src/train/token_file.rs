//! Token ids and texts of training data: in memory while they are few, beyond that in a file, so that memory does not grow
//! with the data.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result};

/// Bytes of token ids and texts that are kept in memory.
const IN_MEMORY: usize = 64 << 20;

/// The token ids of a sequence.
#[derive(Clone, Debug)]
pub struct TokenIds(Place);

#[derive(Clone, Debug)]
enum Place {
    Memory(Arc<[u32]>),
    /// `length` ids from index `first` of the file.
    File {
        map: Arc<OnceLock<Map>>,
        first: usize,
        length: usize,
    },
}

impl Deref for TokenIds {
    type Target = [u32];

    /// The ids. Those in a file can be read once [`TokenFile::finish`] has been called.
    fn deref(&self) -> &[u32] {
        match &self.0 {
            Place::Memory(ids) => ids,
            Place::File { map, first, length } => {
                let all = map.get().expect("ids are read after the file was finished").ids();
                &all[*first..first + length]
            }
        }
    }
}

impl From<Vec<u32>> for TokenIds {
    fn from(ids: Vec<u32>) -> Self {
        Self(Place::Memory(ids.into()))
    }
}

impl FromIterator<u32> for TokenIds {
    fn from_iter<I: IntoIterator<Item = u32>>(ids: I) -> Self {
        Vec::from_iter(ids).into()
    }
}

/// A text beside token ids.
#[derive(Clone, Debug)]
pub struct StoredText {
    /// Four bytes each, native-endian; zeros follow the last bytes.
    words: TokenIds,
    /// Number of bytes of the text.
    length: usize,
}

impl StoredText {
    /// The text. One in a file can be read once [`TokenFile::finish`] has been called.
    ///
    /// # Errors
    /// If the file was damaged.
    pub fn read(&self) -> Result<String> {
        let mut bytes: Vec<u8> = self.words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        bytes.truncate(self.length);
        String::from_utf8(bytes).context("reading a text from the file of token ids")
    }
}

impl PartialEq for TokenIds {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for TokenIds {}

/// Native-endian ids in a file that has no name.
#[derive(Debug)]
struct Map(memmap2::Mmap);

impl Map {
    fn of(file: &File) -> std::io::Result<Self> {
        // SAFETY: the map is read-only, and the file has no name, so that nobody else can write to it or shorten it.
        unsafe { memmap2::Mmap::map(file) }.map(Self)
    }

    fn ids(&self) -> &[u32] {
        // The map begins at the start of a page and has whole ids, so that nothing is before or after them.
        // SAFETY: every pattern of four bytes is a `u32`.
        unsafe { self.0.align_to::<u32>() }.1
    }
}

/// Takes the ids of sequences while a file of data is read.
pub struct TokenFile {
    directory: PathBuf,
    /// Bytes that may still be kept in memory.
    room: usize,
    file: Option<BufWriter<File>>,
    /// Number of ids in the file.
    written: usize,
    map: Arc<OnceLock<Map>>,
}

impl TokenFile {
    /// A file without a name on the file system of `directory`, which is created with the first ids that do not fit into
    /// memory.
    pub fn new(directory: &Path) -> Self {
        Self::with_memory(directory, IN_MEMORY)
    }

    /// As [`TokenFile::new`], with at most `bytes` of ids in memory.
    pub fn with_memory(directory: &Path, bytes: usize) -> Self {
        Self { directory: directory.to_owned(), room: bytes, file: None, written: 0, map: Arc::default() }
    }

    /// Moves ids from memory into the file if there are too many.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn keep(&mut self, ids: &mut TokenIds) -> Result<()> {
        let bytes = ids.len() * size_of::<u32>();
        if let Some(room) = self.room.checked_sub(bytes) {
            self.room = room;
            return Ok(());
        }
        // Shorter sequences that come later belong into the file, too.
        self.room = 0;
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                let at = || format!("making a file for token ids in {}", self.directory.display());
                std::fs::create_dir_all(&self.directory).with_context(at)?;
                none.insert(BufWriter::new(tempfile::tempfile_in(&self.directory).with_context(at)?))
            }
        };
        for id in ids.iter() {
            file.write_all(&id.to_ne_bytes()).context("writing token ids")?;
        }
        let (first, length) = (self.written, ids.len());
        self.written += length;
        ids.0 = Place::File { map: self.map.clone(), first, length };
        Ok(())
    }

    /// Keeps a text, in memory or in the file.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn keep_text(&mut self, text: &str) -> Result<StoredText> {
        let word = |bytes: &[u8]| {
            let mut word = [0; 4];
            word[..bytes.len()].copy_from_slice(bytes);
            u32::from_ne_bytes(word)
        };
        let mut words: TokenIds = text.as_bytes().chunks(4).map(word).collect();
        self.keep(&mut words)?;
        Ok(StoredText { words, length: text.len() })
    }

    /// Makes the ids and texts in the file readable.
    ///
    /// # Errors
    /// A file that cannot be written or mapped.
    pub fn finish(self) -> Result<()> {
        let Some(file) = self.file else { return Ok(()) };
        let file = file.into_inner().map_err(std::io::IntoInnerError::into_error).context("writing token ids")?;
        // The map stays the only one: `finish` takes the file.
        let _ = self.map.set(Map::of(&file).context("mapping token ids")?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_equal_in_memory_and_in_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("made/when/needed");
        let given: Vec<Vec<u32>> = (0..50u32).map(|n| (0..n).map(|i| i * 65_537 + n).collect()).collect();
        let mut file = TokenFile::with_memory(&below, 400);
        let mut kept: Vec<TokenIds> = given.iter().cloned().map(TokenIds::from).collect();
        kept.iter_mut().for_each(|ids| file.keep(ids).unwrap());
        file.finish().unwrap();
        let in_file = kept.iter().filter(|ids| matches!(ids.0, Place::File { .. })).count();
        // 0 + 1 + … + 13 ids take 364 bytes; those of the next sequence would exceed 400.
        assert_eq!(in_file, 50 - 14);
        for (ids, given) in kept.iter().zip(&given) {
            assert_eq!(**ids, given[..]);
        }
        assert_eq!(std::fs::read_dir(&below).unwrap().count(), 0, "the file has no name");
    }

    #[test]
    fn texts_are_equal_in_memory_and_in_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let given = ["", "a", "ab", "abcd", "äöü€", "a text that is longer than the others"];
        for memory in [0, 1000] {
            let mut file = TokenFile::with_memory(dir.path(), memory);
            let kept: Vec<StoredText> = given.iter().map(|text| file.keep_text(text).unwrap()).collect();
            file.finish().unwrap();
            assert_eq!(kept.iter().map(|text| text.read().unwrap()).collect::<Vec<_>>(), given);
        }
    }

    #[test]
    fn few_ids_make_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("unused");
        let mut file = TokenFile::new(&below);
        let mut ids = TokenIds::from(vec![1, 2, 3]);
        file.keep(&mut ids).unwrap();
        file.finish().unwrap();
        assert_eq!(*ids, [1, 2, 3]);
        assert!(!below.exists());
    }
}

//! Deduplication: leaves out exact duplicates (same text up to white space) or near duplicates (MinHash, Broder 1997:
//! most five-word shingles in common).

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Which documents count as duplicates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Dedup {
    None,
    /// The same text, ignoring white space.
    #[default]
    Exact,
    /// Also texts that share about four fifths of their five-word shingles.
    Near,
}

/// Signature length and its division into bands: two texts meet when one whole band agrees.
const HASHES: usize = 64;
const BANDS: usize = 16;
const ROWS: usize = HASHES / BANDS;
const SHINGLE: usize = 5;
/// Share of equal signature entries (an estimate of the Jaccard similarity) from which texts count as one.
const ALIKE: f64 = 0.8;

/// The documents seen so far: 16 bytes for each, and 512 more with `Near`.
pub struct Seen {
    kind: Dedup,
    exact: HashSet<[u8; 16]>,
    signatures: Vec<[u64; HASHES]>,
    bands: HashMap<(usize, u64), Vec<u32>>,
    /// Number of documents left out.
    pub exact_duplicates: usize,
    pub near_duplicates: usize,
}

impl Seen {
    pub fn new(kind: Dedup) -> Self {
        Self {
            kind,
            exact: HashSet::new(),
            signatures: Vec::new(),
            bands: HashMap::new(),
            exact_duplicates: 0,
            near_duplicates: 0,
        }
    }

    /// True for the first occurrence of a text or of its near duplicates.
    pub fn is_new(&mut self, text: &str) -> bool {
        if self.kind == Dedup::None {
            return true;
        }
        let mut hash = Sha256::new();
        for word in text.split_whitespace() {
            hash.update(word);
            hash.update(b" ");
        }
        let mut key = [0; 16];
        key.copy_from_slice(&hash.finalize()[..16]);
        if !self.exact.insert(key) {
            self.exact_duplicates += 1;
            return false;
        }
        if self.kind == Dedup::Near && !self.is_unlike_all(text) {
            self.near_duplicates += 1;
            return false;
        }
        true
    }

    fn is_unlike_all(&mut self, text: &str) -> bool {
        let Some(signature) = signature(text) else { return true };
        let keys: Vec<(usize, u64)> =
            signature.chunks(ROWS).map(|rows| rows.iter().fold(0, |h, r| mix(h ^ r))).enumerate().collect();
        for key in &keys {
            for other in self.bands.get(key).into_iter().flatten() {
                let other = &self.signatures[*other as usize];
                let equal = signature.iter().zip(other).filter(|(a, b)| a == b).count();
                if equal as f64 >= ALIKE * HASHES as f64 {
                    return false;
                }
            }
        }
        let index = self.signatures.len() as u32;
        self.signatures.push(signature);
        for key in keys {
            self.bands.entry(key).or_default().push(index);
        }
        true
    }
}

/// The smallest hash of all shingles under each hash function; `None` for texts shorter than a shingle.
/// Texts without spaces (Chinese) are split into single characters.
fn signature(text: &str) -> Option<[u64; HASHES]> {
    let wide = |c: char| ('\u{2E80}'..='\u{9FFF}').contains(&c) || ('\u{F900}'..='\u{FAFF}').contains(&c);
    let mut words: Vec<u64> = Vec::new();
    for word in text.split_whitespace() {
        let mut start = 0;
        for (at, c) in word.char_indices().filter(|(_, c)| wide(*c)) {
            words.extend((start < at).then(|| fnv(&word[start..at])));
            start = at + c.len_utf8();
            words.push(fnv(&word[at..start]));
        }
        words.extend((start < word.len()).then(|| fnv(&word[start..])));
    }
    let mut least = [u64::MAX; HASHES];
    for shingle in words.windows(SHINGLE) {
        let hash = shingle.iter().fold(0, |h, w| mix(h ^ w));
        for (i, least) in least.iter_mut().enumerate() {
            *least = (*least).min(mix(hash ^ (i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)));
        }
    }
    (words.len() >= SHINGLE).then_some(least)
}

fn fnv(word: &str) -> u64 {
    word.bytes().fold(0xCBF2_9CE4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01B3))
}

/// The finalizer of SplitMix64: every input bit reaches every output bit.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

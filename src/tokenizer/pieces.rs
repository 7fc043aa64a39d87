//! Single tokens: their bytes, which need not be whole characters, and their text in context.

use serde_json::Value;

use super::{Tokenizer, bytes};

/// A token in its context.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Piece {
    /// The text; bytes that are not a whole character become U+FFFD.
    pub text: String,
    pub bytes: Vec<u8>,
    /// Whether it is not part of a completion's text.
    pub special: bool,
}

impl Piece {
    pub fn of(text: String) -> Self {
        Self { bytes: text.clone().into_bytes(), text, special: false }
    }

    /// Number of characters that begin in this token; the sum over a text is its length.
    pub fn characters(&self) -> usize {
        self.bytes.iter().filter(|byte| **byte & 0xC0 != 0x80).count()
    }
}

/// The decoding of tokens that are not byte-level.
#[derive(Default)]
pub(super) struct Pieces {
    /// `<0x0A>` is a byte.
    byte_fallback: bool,
    /// An ordinary token and its text; tokens after it are decoded as inside a text.
    context: Option<(u32, String)>,
}

impl Pieces {
    pub fn of(base: &tokenizers::Tokenizer) -> Self {
        let decoder = serde_json::to_value(base.get_decoder()).unwrap_or_default();
        let is_fallback = |rule: &Value| rule["type"] == "ByteFallback";
        let byte_fallback =
            is_fallback(&decoder) || decoder["decoders"].as_array().is_some_and(|list| list.iter().any(is_fallback));
        let added = base.get_added_tokens_decoder();
        let plain = |text: &str| !text.is_empty() && text.chars().all(char::is_alphanumeric);
        let context = (0..base.get_vocab_size(true).min(1 << 16) as u32)
            .filter(|id| !added.contains_key(id))
            .filter_map(|id| Some((id, super::guarded(|| base.decode(&[id], false)).ok()?.ok()?)))
            .find(|(_, text)| plain(text));
        Self { byte_fallback, context }
    }
}

impl Tokenizer {
    /// The token as it follows `left`; empty for ids outside the vocabulary.
    pub fn piece(&self, left: &[u32], id: u32) -> Piece {
        let bytes = self.bytes_at(left, id);
        Piece { text: String::from_utf8_lossy(&bytes).into_owned(), bytes, special: self.is_special(id) }
    }

    /// All tokens of a text, in order.
    pub fn pieces(&self, ids: &[u32]) -> Vec<Piece> {
        ids.iter().enumerate().map(|(i, id)| self.piece(&ids[..i], *id)).collect()
    }

    /// The text of the token by itself, special tokens by their name.
    pub fn token_text(&self, id: u32) -> String {
        self.piece(&[], id).text
    }

    /// The bytes of a token at the beginning of a text; empty for ids outside the vocabulary.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        self.bytes_at(&[], id)
    }

    /// The bytes of a token inside a text; empty for ids outside the vocabulary.
    pub fn token_bytes_inside(&self, id: u32) -> Vec<u8> {
        self.bytes_in(id, true)
    }

    /// Whether tokens are byte-level and so independent of their position.
    pub fn is_byte_level(&self) -> bool {
        self.0.byte_level
    }

    fn bytes_at(&self, left: &[u32], id: u32) -> Vec<u8> {
        self.bytes_in(id, !self.begins_text(left))
    }

    fn bytes_in(&self, id: u32, inside: bool) -> Vec<u8> {
        let inner = &self.0;
        if let Some(text) = inner.finders.text(id) {
            return text.as_bytes().to_vec();
        }
        let Some(token) = inner.base.id_to_token(id) else { return Vec::new() };
        if inner.byte_level {
            return bytes::decode(&token);
        }
        if let Some(byte) = Some(&token).filter(|_| inner.pieces.byte_fallback).and_then(|t| fallback_byte(t)) {
            return vec![byte];
        }
        let decode = |ids: &[u32]| inner.plain_decode(ids, false).unwrap_or_default();
        match &inner.pieces.context {
            Some((before, text)) if inside => {
                let both = decode(&[*before, id]);
                both.strip_prefix(text.as_str()).map_or_else(|| decode(&[id]), str::to_owned).into_bytes()
            }
            _ => decode(&[id]).into_bytes(),
        }
    }
}

fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>').filter(|digits| digits.len() == 2)?;
    u8::from_str_radix(digits, 16).ok()
}

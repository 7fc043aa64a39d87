//! Text ↔ token ids on the tokenizers crate, identical to Hugging Face's, with one addition: the caller specifies where
//! in a text special tokens may be recognised, so that user text never becomes one.

mod added;
mod bytes;
mod frame;
pub mod gguf;
mod gguf_rules;
mod incremental;
mod pieces;
mod probe;
mod to_gguf;
pub mod train;
mod word_cache;

use std::sync::Arc;

use serde_json::Value;
use tokenizers::{
    DecoderWrapper, Encoding, Model as _, ModelWrapper, OffsetReferential, OffsetType, PreTokenizedString,
    PreTokenizer as _, Token,
};

pub use incremental::IncrementalDecoder;
pub use pieces::Piece;

/// A tokenizer file that cannot be used, or a text it cannot encode.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("tokenizer: {0}")]
pub struct TokenizerError(pub String);

type Result<T> = std::result::Result<T, TokenizerError>;

fn failed(error: impl std::fmt::Display) -> TokenizerError {
    TokenizerError(error.to_string())
}

/// Converts panics to errors: the tokenizers crate panics on some files that are not JSON or not a tokenizer.
fn parse(text: &str) -> Result<tokenizers::Tokenizer> {
    serde_json::from_str::<serde::de::IgnoredAny>(text).map_err(failed)?;
    std::panic::catch_unwind(|| tokenizers::Tokenizer::from_bytes(text.as_bytes()))
        .map_err(|_| failed("it is not built as a tokenizer is"))?
        .map_err(failed)
}

/// The cache that takes the place of the crate's own, which would outlive the tokenizer.
fn own_cache(base: &mut tokenizers::Tokenizer) -> Option<word_cache::WordCache> {
    let ModelWrapper::BPE(bpe) = base.get_model() else { return None };
    let mut bpe = bpe.clone();
    bpe.resize_cache(0);
    let steady = bpe.dropout.is_none_or(|share| share == 0.0);
    base.with_model(bpe);
    steady.then(Default::default)
}

/// The crate's regular expressions panic when they exceed their limits on a text.
fn guarded<T>(work: impl FnOnce() -> T) -> Result<T> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).map_err(|_| failed(GIVES_UP))
}

const GIVES_UP: &str = "its rules give up on this text";

/// Where special tokens may be recognised in a text.
#[derive(Clone, Copy, Debug)]
pub enum Specials<'a> {
    /// Nowhere: `<|im_end|>` is eleven characters.
    Never,
    Everywhere,
    /// Everywhere, except where the token would reach across one of these byte offsets (ascending).
    Between(&'a [usize]),
}

impl Specials<'_> {
    /// May the bytes `start..end` be a special token?
    fn allow(&self, start: usize, end: usize) -> bool {
        match self {
            Self::Never => false,
            Self::Everywhere => true,
            Self::Between(breaks) => {
                let first_after = breaks.partition_point(|at| *at <= start);
                breaks.get(first_after).is_none_or(|at| *at >= end)
            }
        }
    }
}

/// Roles of an encoder's special tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EncoderToken {
    /// Before a text.
    Cls,
    /// After a text.
    Sep,
    Mask,
}

impl EncoderToken {
    /// The key in tokenizer_config.json, and the texts in BERT's and in RoBERTa's vocabulary.
    const fn names(self) -> (&'static str, [&'static str; 2]) {
        match self {
            Self::Cls => ("cls_token", ["[CLS]", "<s>"]),
            Self::Sep => ("sep_token", ["[SEP]", "</s>"]),
            Self::Mask => ("mask_token", ["[MASK]", "<mask>"]),
        }
    }

    /// The key in tokenizer_config.json.
    pub const fn key(self) -> &'static str {
        self.names().0
    }
}

/// A tokenizer. Cheap to clone; all clones share one vocabulary.
#[derive(Clone)]
pub struct Tokenizer(Arc<Inner>);

struct Inner {
    base: tokenizers::Tokenizer,
    finders: added::Finders,
    frame: frame::Frame,
    pieces: pieces::Pieces,
    /// Of BPE without dropout, whose merges are always the same.
    words: Option<word_cache::WordCache>,
    /// tokenizer_config.json, as found or rebuilt.
    config: Option<Value>,
    byte_level: bool,
    vocab_size: usize,
    eos_ids: Vec<u32>,
}

impl Inner {
    /// Decoding by the file's decoder.
    fn plain_decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        guarded(|| self.base.decode(ids, skip_special))?.map_err(failed)
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer({} tokens)", self.0.vocab_size)
    }
}

impl Tokenizer {
    /// From the text of tokenizer.json. `eos_ids` are those of the model.
    ///
    /// # Errors
    /// When the text is not a tokenizer that the tokenizers crate can build.
    pub fn from_json(text: &str, config: Option<Value>, eos_ids: &[u32]) -> Result<Self> {
        Self::of(parse(text)?, text, config, eos_ids)
    }

    /// `rules` is the text of tokenizer.json, which may lack tokens and merges.
    fn of(mut base: tokenizers::Tokenizer, rules: &str, config: Option<Value>, eos_ids: &[u32]) -> Result<Self> {
        // Both would silently change the encoding; the caller limits lengths.
        base.with_truncation(None).map_err(failed)?;
        base.with_padding(None);
        if let Some(processor) = frame::asked_for(&base, config.as_ref()) {
            base.with_post_processor(Some(processor));
        }
        let words = own_cache(&mut base);
        let byte_level = matches!(base.get_decoder(), Some(DecoderWrapper::ByteLevel(_)));
        let vocab_size = base.get_vocab_size(true);
        let finders = guarded(|| added::Finders::new(&base)).and_then(|found| found)?;
        let frame = frame::Frame::of(&base);
        let pieces = pieces::Pieces::of(&base);
        let inner =
            Inner { base, finders, frame, pieces, words, config, byte_level, vocab_size, eos_ids: eos_ids.to_vec() };
        let tokenizer = Self(Arc::new(inner));
        probe::check(&tokenizer, rules)?;
        Ok(tokenizer)
    }

    /// From the vocabulary inside a GGUF file.
    pub fn from_gguf(vocabulary: gguf::Vocabulary, eos_ids: &[u32]) -> Result<Self> {
        let config = vocabulary.tokenizer_config();
        let (base, rules) = vocabulary.build()?;
        Self::of(base, &rules, Some(config), eos_ids)
    }

    /// The text of tokenizer.json.
    pub fn to_json(&self) -> Result<String> {
        self.0.base.to_string(false).map_err(failed)
    }

    /// tokenizer_config.json, if there was one.
    pub fn config(&self) -> Option<&Value> {
        self.0.config.as_ref()
    }

    /// Number of tokens, added ones included. May differ from the rows of the embedding.
    pub fn vocab_size(&self) -> usize {
        self.0.vocab_size
    }

    /// Sets the end tokens, to which other files may add. Must be called before the tokenizer is shared.
    pub(crate) fn set_eos_ids(&mut self, ids: &[u32]) {
        if let Some(inner) = Arc::get_mut(&mut self.0) {
            inner.eos_ids = ids.to_vec();
        }
    }

    /// Ids that end a generation.
    pub fn eos_ids(&self) -> &[u32] {
        &self.0.eos_ids
    }

    /// Text → ids. `add_special` adds the tokens that the model expects around a text (BOS, `[CLS]` …); `parse_special`
    /// recognises special tokens in the text and must be false for text of users.
    pub fn encode(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<u32>> {
        self.encode_with(text, add_special, if parse_special { Specials::Everywhere } else { Specials::Never })
    }

    /// Text → ids, with special tokens recognised where `specials` says.
    ///
    /// # Errors
    /// When the tokenizer's rules fail on this text (for instance a missing unknown token).
    pub fn encode_with(&self, text: &str, add_special: bool, specials: Specials<'_>) -> Result<Vec<u32>> {
        let ids = self.ids(text, specials, false)?;
        if !add_special {
            return Ok(ids);
        }
        if let Some(behind) = &self.0.frame.behind {
            return Ok([self.0.frame.before.as_slice(), &ids, behind].concat());
        }
        let tokens = ids.into_iter().map(|id| Token::new(id, String::new(), (0, 0))).collect();
        let encoding = Encoding::from_tokens(tokens, 0);
        Ok(self.0.base.post_process(encoding, None, true).map_err(failed)?.get_ids().to_vec())
    }

    /// The ids of a text to be continued: with the tokens that the model expects before a text, without an end token.
    pub fn encode_open(&self, text: &str, parse_special: bool) -> Result<Vec<u32>> {
        let mut ids = self.0.frame.before.clone();
        ids.extend(self.encode(text, false, parse_special)?);
        Ok(ids)
    }

    /// The ids of `text` as a continuation of `left`: no space is added before it. Special tokens in it stay text.
    pub fn encode_after(&self, left: &[u32], text: &str) -> Result<Vec<u32>> {
        if text.is_empty() {
            return Ok(Vec::new());
        }
        if self.begins_text(left) {
            return self.encode(text, false, false);
        }
        self.ids(text, Specials::Never, true)
    }

    /// Whether a text after `left` is tokenized as the beginning of a text: `left` is empty, or only the tokens that
    /// the model expects before a text, or ends with an added token in a vocabulary that adds its space before every
    /// part.
    pub fn begins_text(&self, left: &[u32]) -> bool {
        let frame = &self.0.frame;
        let added = || left.last().is_some_and(|id| self.0.finders.is_added(*id));
        left.is_empty() || left == frame.before || (frame.every_part && added())
    }

    /// The ids that `encode_open` adds before a text.
    pub fn before_text(&self) -> &[u32] {
        &self.0.frame.before
    }

    /// The ids of a text without the tokens around it. `inner`: the text continues another one.
    ///
    /// Only the ids of the pieces are kept: the crate's `Encoding` also holds the text and position of every token,
    /// about thirty times the size of the text.
    fn ids(&self, text: &str, specials: Specials<'_>, inner: bool) -> Result<Vec<u32>> {
        let base = &self.0.base;
        let own = || (base.get_normalizer(), base.get_pre_tokenizer());
        let (normalizer, pre_tokenizer) = match &self.0.frame.inner {
            Some(without) if inner => (without.normalizer.as_ref(), without.pre_tokenizer.as_ref()),
            _ => own(),
        };
        let work = || -> tokenizers::Result<Vec<u32>> {
            let mut pieces = PreTokenizedString::from(text);
            self.0.finders.split(&mut pieces, normalizer, specials)?;
            if let Some(pre_tokenizer) = pre_tokenizer {
                pre_tokenizer.pre_tokenize(&mut pieces)?;
            }
            let mut ids = Vec::new();
            for (piece, _, added) in pieces.get_splits(OffsetReferential::Normalized, OffsetType::None) {
                match (added, specials) {
                    (Some(tokens), _) => ids.extend(tokens.iter().map(|token| token.id)),
                    (None, Specials::Everywhere) => {
                        ids.extend(base.get_model().tokenize(piece)?.iter().map(|token| token.id));
                    }
                    // A vocabulary of whole words may contain special tokens as words.
                    (None, _) => {
                        let merge = || -> tokenizers::Result<Vec<u32>> {
                            Ok(self.ordinary(piece, 0)?.iter().map(|token| token.id).collect())
                        };
                        match &self.0.words {
                            Some(words) => words.extend(piece, &mut ids, merge)?,
                            None => ids.extend(merge()?),
                        }
                    }
                }
            }
            Ok(ids)
        };
        guarded(work)?.map_err(failed)
    }

    /// The tokens of a piece without any special token that the text spells out; such a piece is split after its first
    /// character. `at` is the offset of the piece.
    fn ordinary(&self, piece: &str, at: usize) -> tokenizers::Result<Vec<Token>> {
        let mut tokens = Vec::new();
        for mut token in self.0.base.get_model().tokenize(piece)? {
            let (start, end) = token.offsets;
            let spelled = self.special_text(token.id).is_some_and(|text| piece.get(start..end) == Some(text));
            let first = piece.get(start..end).and_then(|text| text.chars().next()).map_or(0, char::len_utf8);
            if spelled && first > 0 && start + first < end {
                tokens.extend(self.ordinary(&piece[start..start + first], at + start)?);
                tokens.extend(self.ordinary(&piece[start + first..end], at + start + first)?);
            } else {
                token.offsets = (at + start, at + end);
                tokens.push(token);
            }
        }
        Ok(tokens)
    }

    /// Ids → text, special tokens left out if `skip_special`. Ids outside the vocabulary are skipped; bytes that are
    /// not UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        if self.0.byte_level {
            return Ok(self.decode_after(&[], ids, skip_special));
        }
        self.0.plain_decode(ids, skip_special)
    }

    /// The text that `ids` add to that of `left`.
    pub fn decode_after(&self, left: &[u32], ids: &[u32], skip_special: bool) -> String {
        let mut decoder = self.incremental(left, skip_special);
        let mut text: String = ids.iter().map(|id| decoder.push(*id)).collect();
        text.push_str(&decoder.finish());
        text
    }

    /// An incremental decoder for ids that follow `left`.
    pub fn incremental(&self, left: &[u32], skip_special: bool) -> IncrementalDecoder {
        IncrementalDecoder::new(self.clone(), left, skip_special)
    }

    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.0.base.token_to_id(token)
    }

    /// The token as in the vocabulary, without decoding of byte-level characters.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.0.base.id_to_token(id)
    }

    /// Whether the token was added to the vocabulary, special or not.
    pub fn is_added(&self, id: u32) -> bool {
        self.0.finders.is_added(id)
    }

    pub fn is_special(&self, id: u32) -> bool {
        self.0.finders.is_special(id)
    }

    /// The text of a special token.
    pub fn special_text(&self, id: u32) -> Option<&str> {
        self.0.finders.special_text(id)
    }

    /// The texts of all special tokens.
    pub fn special_tokens(&self) -> impl Iterator<Item = &str> {
        self.0.finders.special_tokens()
    }

    /// The text of an encoder's token by its role: the name in tokenizer_config.json, else the one that BERT's or
    /// RoBERTa's vocabularies have. Directories with tokenizer.json alone do not name their tokens.
    pub fn role_token(&self, role: EncoderToken) -> Option<&str> {
        let (key, usual) = role.names();
        self.named_token(key).or_else(|| usual.into_iter().find(|name| self.token_to_id(name).is_some()))
    }

    /// The id of an encoder's token by its role.
    pub fn role_id(&self, role: EncoderToken) -> Option<u32> {
        self.token_to_id(self.role_token(role)?)
    }

    /// The ids before and after a text that `encode` adds; `None` where the post-processor does more than add ids.
    pub fn around_text(&self) -> Option<(&[u32], &[u32])> {
        Some((&self.0.frame.before, self.0.frame.behind.as_deref()?))
    }

    /// `bos_token`, `eos_token`, … of tokenizer_config.json.
    pub fn named_token(&self, name: &str) -> Option<&str> {
        match self.0.config.as_ref()?.get(name)? {
            Value::String(text) => Some(text),
            other => other.get("content")?.as_str(),
        }
    }
}

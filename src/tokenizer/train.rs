//! Trains a tokenizer on text: byte-level BPE for decoders (GPT-2's kind), WordPiece for encoders (BERT's
//! kind). Words are counted in order of their bytes and ties between merges go to the smaller ids, so the
//! same texts in any order give the same tokenizer.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokenizers::decoders::byte_level::ByteLevel as ByteLevelDecoder;
use tokenizers::decoders::wordpiece::WordPiece as WordPieceDecoder;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::bert::BertProcessing;
use tokenizers::{AddedToken, Normalizer as _, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _};

use super::{Result, Tokenizer, failed};

/// Ends a document; also begins one, so that its first token is trained too.
pub const END_OF_TEXT: &str = "<|endoftext|>";
/// Begins a turn of a conversation (ChatML).
pub const TURN_START: &str = "<|im_start|>";
/// Ends a turn.
pub const TURN_END: &str = "<|im_end|>";
/// WordPiece's prefix of pieces that continue a word.
const PREFIX: &str = "##";
/// BERT's special tokens, in the order of its vocabulary files.
const BERT_SPECIALS: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
/// Most different characters of a WordPiece vocabulary; the rarest others become [UNK].
const MAX_ALPHABET: usize = 6000;

/// Writes messages as ChatML.
pub const CHAT_TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + \
     message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}\
     {{ '<|im_start|>assistant\\n' }}{% endif %}";

/// The kind of tokenizer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Byte-level byte-pair encoding: no text is unknown.
    #[default]
    Bpe,
    /// BERT's: words in pieces, Chinese characters one by one.
    WordPiece,
}

/// The settings of a training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenizerPlan {
    pub kind: Kind,
    /// Most entries, including special tokens.
    pub vocab_size: usize,
    /// Pairs seen less often are not merged.
    pub min_frequency: u64,
    /// WordPiece: fold case and strip accents.
    pub lowercase: bool,
    /// BPE: add the tokens of ChatML, and its template to tokenizer_config.json.
    pub chat: bool,
}

impl Default for TokenizerPlan {
    fn default() -> Self {
        Self { kind: Kind::Bpe, vocab_size: 8192, min_frequency: 2, lowercase: true, chat: false }
    }
}

/// Counts the words of texts, then trains.
pub struct Training {
    plan: TokenizerPlan,
    normalizer: Option<BertNormalizer>,
    words: BTreeMap<String, u64>,
}

impl Training {
    pub fn new(plan: TokenizerPlan) -> Self {
        let normalizer = (plan.kind == Kind::WordPiece).then(|| BertNormalizer::new(true, true, None, plan.lowercase));
        Self { plan, normalizer, words: BTreeMap::new() }
    }

    /// Counts the words of one text.
    pub fn add(&mut self, text: &str) -> Result<()> {
        let mut pieces = PreTokenizedString::from(text);
        match &self.normalizer {
            Some(normalizer) => {
                pieces.normalize(|piece| normalizer.normalize(piece)).map_err(failed)?;
                BertPreTokenizer.pre_tokenize(&mut pieces).map_err(failed)?;
            }
            None => byte_level().pre_tokenize(&mut pieces).map_err(failed)?,
        }
        for (word, _, _) in pieces.get_splits(OffsetReferential::Original, OffsetType::None) {
            match self.words.get_mut(word) {
                Some(n) => *n += 1,
                None if word.is_empty() => {}
                None => {
                    self.words.insert(word.to_owned(), 1);
                }
            }
        }
        Ok(())
    }

    /// The tokenizer of all texts so far.
    ///
    /// # Errors
    /// When there is no text, or the vocabulary is too small for its alphabet.
    pub fn finish(self) -> Result<Tokenizer> {
        if self.words.is_empty() {
            return Err(failed("there is no text to train a tokenizer on"));
        }
        match self.plan.kind {
            Kind::Bpe => self.bpe(),
            Kind::WordPiece => self.word_piece(),
        }
    }

    fn bpe(self) -> Result<Tokenizer> {
        let mut specials = vec![special(END_OF_TEXT)];
        if self.plan.chat {
            specials.extend([TURN_START, TURN_END].map(special));
        }
        fits(self.plan.vocab_size, 256 + specials.len())?;
        let trainer = BpeTrainer::builder()
            .show_progress(false)
            .vocab_size(self.plan.vocab_size)
            .min_frequency(self.plan.min_frequency)
            .special_tokens(specials.clone())
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .build();
        let mut model = BPE::default();
        let counts = self.words.into_iter().map(|(word, n)| (word.into(), n)).collect();
        trainer.do_train(&counts, &mut model).map_err(failed)?;
        let mut tokenizer = tokenizers::Tokenizer::new(model);
        tokenizer.with_pre_tokenizer(Some(byte_level()));
        tokenizer.with_decoder(Some(ByteLevelDecoder::default()));
        tokenizer.add_special_tokens(specials).map_err(failed)?;
        let mut config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": false,
            "bos_token": END_OF_TEXT,
            "eos_token": if self.plan.chat { TURN_END } else { END_OF_TEXT },
            "pad_token": END_OF_TEXT,
            "unk_token": END_OF_TEXT,
        });
        if self.plan.chat {
            config["chat_template"] = json!(CHAT_TEMPLATE);
        }
        ours(&tokenizer, config)
    }

    fn word_piece(self) -> Result<Tokenizer> {
        let mut alphabet: BTreeMap<char, u64> = BTreeMap::new();
        for (word, n) in &self.words {
            word.chars().for_each(|c| *alphabet.entry(c).or_default() += n);
        }
        let mut by_count: Vec<(u64, char)> = alphabet.into_iter().map(|(c, n)| (n, c)).collect();
        by_count.sort_by_key(|(n, c)| (std::cmp::Reverse(*n), *c));
        let room = self.plan.vocab_size.saturating_sub(BERT_SPECIALS.len()) / 2;
        by_count.truncate(MAX_ALPHABET.min(room));
        let mut kept: Vec<char> = by_count.into_iter().map(|(_, c)| c).collect();
        kept.sort_unstable();
        fits(self.plan.vocab_size, BERT_SPECIALS.len() + 2)?;
        // The trainer numbers `##x` in the order of a hash map; naming them all first fixes their ids.
        let middle = kept.iter().map(|c| special(&format!("{PREFIX}{c}")));
        let trainer = BpeTrainer::builder()
            .show_progress(false)
            .vocab_size(self.plan.vocab_size)
            .min_frequency(self.plan.min_frequency)
            .continuing_subword_prefix(PREFIX.to_owned())
            .special_tokens(BERT_SPECIALS.map(special).into_iter().chain(middle).collect())
            .initial_alphabet(kept.iter().copied().collect())
            .build();
        // A word with a rare character becomes [UNK] as a whole, so it is not counted.
        let known = |word: &str| word.chars().all(|c| kept.binary_search(&c).is_ok());
        let counts = self.words.into_iter().filter(|(word, _)| known(word)).map(|(w, n)| (w.into(), n)).collect();
        let mut model = BPE::default();
        trainer.do_train(&counts, &mut model).map_err(failed)?;
        let mut tokenizer = tokenizers::Tokenizer::new(WordPiece::from_bpe(&model));
        let id = |name: &str| {
            let id = tokenizer.token_to_id(name).ok_or_else(|| failed(format!("{name} has no id")))?;
            Ok::<_, super::TokenizerError>((name.to_owned(), id))
        };
        let processing = BertProcessing::new(id("[SEP]")?, id("[CLS]")?);
        tokenizer.with_normalizer(self.normalizer).map_err(failed)?;
        tokenizer.with_pre_tokenizer(Some(BertPreTokenizer));
        tokenizer.with_post_processor(Some(processing));
        tokenizer.with_decoder(Some(WordPieceDecoder::default()));
        tokenizer.add_special_tokens(BERT_SPECIALS.map(special)).map_err(failed)?;
        let config = json!({
            "tokenizer_class": "BertTokenizerFast",
            "do_lower_case": self.plan.lowercase,
            "pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]",
            "mask_token": "[MASK]",
        });
        ours(&tokenizer, config)
    }
}

fn byte_level() -> ByteLevel {
    ByteLevel::new(false, true, true)
}

fn special(text: &str) -> AddedToken {
    AddedToken::from(text, true)
}

fn fits(vocab_size: usize, least: usize) -> Result<()> {
    let problem = format!("a vocabulary of {vocab_size} is too small: its alphabet alone takes {least}");
    if vocab_size >= least { Ok(()) } else { Err(failed(problem)) }
}

/// Builds the trained tokenizer from its own file, which verifies the file.
fn ours(tokenizer: &tokenizers::Tokenizer, config: Value) -> Result<Tokenizer> {
    let text = tokenizer.to_string(false).map_err(failed)?;
    let probe = Tokenizer::from_json(&text, Some(config.clone()), &[])?;
    let names: &[&str] = if config["eos_token"] == TURN_END { &[TURN_END, END_OF_TEXT] } else { &[END_OF_TEXT] };
    let ends: Vec<u32> = names.iter().filter_map(|name| probe.token_to_id(name)).collect();
    Tokenizer::from_json(&text, Some(config), &ends)
}

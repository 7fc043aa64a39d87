//! The vocabulary inside a GGUF file → the tokenizer that Hugging Face publishes for the same model. Tokens and merges are
//! handed over as they are: as tokenizer.json they took a third of the time to load a model with 262,144 tokens.

use std::collections::HashMap;

use serde_json::{Map, Value, json};
use tokenizers::AddedToken;
use tokenizers::models::bpe::{BPE, BpeBuilder, Merges, Vocab};

use super::gguf_rules::{Rule, byte_level, plain_decoder};
use super::{TokenizerError, failed};

/// `tokenizer.ggml.*` as read from the file.
#[derive(Clone, Debug, Default)]
pub struct Vocabulary {
    /// `gpt2` = BPE by ranked merges; `llama` = SentencePiece's BPE by scores.
    pub model: String,
    /// Name of the pre-tokenizer: the regular expressions that split the text before BPE.
    pub pre: String,
    pub tokens: Vec<String>,
    /// 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
    pub kinds: Vec<u64>,
    /// `"left right"` in order of rank.
    pub merges: Vec<String>,
    /// One score per token; the pair that makes the token with the highest score is merged first.
    pub scores: Vec<f64>,
    pub add_bos: Option<bool>,
    pub add_eos: bool,
    /// Whether a space is added before a text (`llama` only; absent = true).
    pub add_space_prefix: Option<bool>,
    /// Whether control tokens consume the white space after them.
    pub strip_behind: bool,
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub unknown: Option<u32>,
    pub padding: Option<u32>,
}

/// What a tokenizer.json has besides its rules.
struct TokenModel {
    /// With tokens, merges and options.
    builder: BpeBuilder,
    /// Tokens that are matched in a text first.
    added: Vec<AddedToken>,
}

const UNKNOWN: u64 = 2;
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;
const BYTE: u64 = 6;

/// SentencePiece's sign for a space.
const SPACE: &str = "\u{2581}";

impl Vocabulary {
    fn token(&self, id: Option<u32>) -> Option<&str> {
        self.tokens.get(id? as usize).map(String::as_str)
    }

    /// tokenizer_config.json for this vocabulary, without chat template.
    pub fn tokenizer_config(&self) -> Value {
        let mut config = Map::new();
        config.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
        config.insert("clean_up_tokenization_spaces".into(), json!(false));
        for (name, id) in
            [("bos_token", self.bos), ("eos_token", self.eos), ("unk_token", self.unknown), ("pad_token", self.padding)]
        {
            if let Some(token) = self.token(id) {
                config.insert(name.into(), json!(token));
            }
        }
        Value::Object(config)
    }

    /// The tokenizer with this vocabulary, and the text of its tokenizer.json without tokens and merges.
    ///
    /// # Errors
    /// When the type, the pre-tokenizer or a token of the vocabulary is not supported or wrong.
    pub(super) fn build(self) -> Result<(tokenizers::Tokenizer, String), TokenizerError> {
        let (rules, model) = match self.model.as_str() {
            "gpt2" | "gemma4" => self.by_merges()?,
            "llama" => self.by_scores()?,
            other => {
                return Err(failed(format!(
                    "vocabulary of type {other:?} is not supported (known: gpt2, a byte-level BPE; llama, a \
                     SentencePiece BPE; gemma4)"
                )));
            }
        };
        let rules = rules.to_string();
        let mut tokenizer = super::parse(&rules)?;
        let TokenModel { builder, added } = model;
        let model = builder.build().map_err(|e| failed(format!("a merge names no tokens: {e}")))?;
        tokenizer.with_model(model);
        tokenizer.add_tokens(added).map_err(failed)?;
        Ok((tokenizer, rules))
    }

    fn by_merges(self) -> Result<(Value, TokenModel), TokenizerError> {
        let rule = Rule::named(if self.model == "gemma4" { "gemma4" } else { &self.pre }).map_err(failed)?;
        let (vocab, added) = self.tokens()?;
        let mut merges = Merges::with_capacity(self.merges.len());
        for merge in &self.merges {
            let (left, right) =
                merge.split_once(' ').ok_or_else(|| failed(format!("merge {merge:?} names no tokens")))?;
            merges.push((left.to_owned(), right.to_owned()));
        }
        let steps = rule.steps();
        let rules = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": [],
            "normalizer": steps.normalizer,
            "pre_tokenizer": steps.pre_tokenizer,
            "post_processor": self.post_processor(self.add_bos.unwrap_or(rule.add_bos)),
            "decoder": steps.decoder,
            "model": {"type": "BPE", "vocab": {}, "merges": []},
        });
        let mut builder = BPE::builder()
            .vocab_and_merges(vocab, merges)
            .fuse_unk(false)
            .byte_fallback(steps.byte_fallback)
            .ignore_merges(rule.ignore_merges);
        if let Some(unknown) = self.token(self.unknown).filter(|_| steps.byte_fallback) {
            builder = builder.unk_token(unknown.to_owned());
        }
        Ok((rules, TokenModel { builder, added }))
    }

    /// SentencePiece merges the pair whose token has the highest score, the leftmost of equals. Converted to ranks:
    /// every split of a token into two tokens, in order of the token's score.
    fn by_scores(mut self) -> Result<(Value, TokenModel), TokenizerError> {
        if self.scores.len() != self.tokens.len() {
            let (scores, tokens) = (self.scores.len(), self.tokens.len());
            return Err(failed(format!("there are {scores} scores for {tokens} tokens")));
        }
        let default = |id: &mut Option<u32>, usual: u32| *id = id.or(Some(usual));
        default(&mut self.bos, 1);
        default(&mut self.eos, 2);
        default(&mut self.unknown, 0);
        let (vocab, added) = self.tokens()?;
        let merges = self.merges_by_score();
        let unknown = self.token(self.unknown).ok_or_else(|| failed("there is no unknown token"))?;
        let prefix = self.add_space_prefix.unwrap_or(true);
        let mut normalizers = vec![json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})];
        if prefix {
            normalizers.insert(0, json!({"type": "Prepend", "prepend": SPACE}));
        }
        let rules = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": [],
            "normalizer": {"type": "Sequence", "normalizers": normalizers},
            "pre_tokenizer": null,
            "post_processor": self.post_processor(self.add_bos.unwrap_or(true)),
            "decoder": plain_decoder(prefix),
            "model": {"type": "BPE", "vocab": {}, "merges": []},
        });
        let builder = BPE::builder()
            .vocab_and_merges(vocab, merges)
            .unk_token(unknown.to_owned())
            .fuse_unk(true)
            .byte_fallback(true)
            .ignore_merges(false);
        Ok((rules, TokenModel { builder, added }))
    }

    /// Whether a token is a piece of text, unlike control, unknown and byte tokens.
    fn merges_by_score(&self) -> Merges {
        let piece = |id: usize| !matches!(self.kind(id), UNKNOWN | CONTROL | BYTE);
        let pieces: HashMap<&str, usize> = self
            .tokens
            .iter()
            .enumerate()
            .filter(|(id, _)| piece(*id))
            .map(|(id, token)| (token.as_str(), id))
            .collect();
        let mut found: Vec<(usize, usize, usize)> = Vec::new();
        for (token, id) in &pieces {
            for (at, _) in token.char_indices().skip(1) {
                let (left, right) = token.split_at(at);
                if let (Some(left), Some(right)) = (pieces.get(left), pieces.get(right)) {
                    found.push((*id, *left, *right));
                }
            }
        }
        // Pairs of one token as Hugging Face's conversion orders them.
        found.sort_unstable_by(|a, b| {
            self.scores[b.0].total_cmp(&self.scores[a.0]).then_with(|| (a.0, a.1, a.2).cmp(&(b.0, b.1, b.2)))
        });
        found.iter().map(|(_, left, right)| (self.tokens[*left].clone(), self.tokens[*right].clone())).collect()
    }

    fn kind(&self, id: usize) -> u64 {
        self.kinds.get(id).copied().unwrap_or(1)
    }

    /// Token → id, and the tokens that are matched in a text first.
    fn tokens(&self) -> Result<(Vocab, Vec<AddedToken>), TokenizerError> {
        let (mut vocab, mut added) = (Vocab::with_capacity(self.tokens.len()), Vec::new());
        for (id, token) in self.tokens.iter().enumerate() {
            let token = if token.is_empty() { format!("[EMPTY_{id}]") } else { token.clone() };
            let special = matches!(self.kind(id), CONTROL | UNKNOWN);
            if special || self.kind(id) == USER_DEFINED {
                let strips = special && self.strip_behind;
                added.push(AddedToken::from(token.clone(), special).normalized(false).rstrip(strips));
            }
            if let Some(earlier) = vocab.get(&token) {
                return Err(failed(format!("token {token:?} is there twice, with the ids {earlier} and {id}")));
            }
            vocab.insert(token, id as u32);
        }
        Ok((vocab, added))
    }

    /// BOS and EOS around a text, where the file requires them.
    fn post_processor(&self, add_bos: bool) -> Value {
        let bos = self.token(self.bos).filter(|_| add_bos).zip(self.bos);
        let eos = self.token(self.eos).filter(|_| self.add_eos).zip(self.eos);
        if bos.is_none() && eos.is_none() {
            return if self.model == "gpt2" { byte_level(true) } else { Value::Null };
        }
        let piece = |token: &str, kind: u32| json!({"SpecialToken": {"id": token, "type_id": kind}});
        let mut special = Map::new();
        for (token, id) in bos.iter().chain(eos.iter()) {
            special.insert((*token).to_owned(), json!({"id": token, "ids": [id], "tokens": [token]}));
        }
        let around = |kind: u32, name: &str| {
            let mut list = Vec::new();
            list.extend(bos.map(|(token, _)| piece(token, kind)));
            list.push(json!({"Sequence": {"id": name, "type_id": kind}}));
            list.extend(eos.map(|(token, _)| piece(token, kind)));
            list
        };
        let single = around(0, "A");
        let pair: Vec<Value> = single.iter().cloned().chain(around(1, "B")).collect();
        json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special})
    }
}

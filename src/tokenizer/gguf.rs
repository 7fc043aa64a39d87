//! The vocabulary inside a GGUF file → the tokenizer.json that Hugging Face publishes for the same model.

use serde_json::{Map, Value, json};

use super::{TokenizerError, failed};

/// `tokenizer.ggml.*` as read from the file.
#[derive(Clone, Debug, Default)]
pub struct Vocabulary {
    /// `gpt2` = byte-level BPE.
    pub model: String,
    /// Name of the pre-tokenizer: which regular expressions cut the text before BPE.
    pub pre: String,
    pub tokens: Vec<String>,
    /// 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
    pub kinds: Vec<u64>,
    /// `"left right"` in order of rank.
    pub merges: Vec<String>,
    pub add_bos: Option<bool>,
    pub add_eos: bool,
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub unknown: Option<u32>,
    pub padding: Option<u32>,
}

const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;

/// Llama 3's expression; Qwen2's is the same with single digits.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

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

    /// tokenizer.json.
    ///
    /// # Errors
    /// When the vocabulary is not byte-level BPE, or its pre-tokenizer is not known here: a wrong one
    /// would give wrong ids without a word.
    pub fn into_tokenizer_json(self) -> Result<Value, TokenizerError> {
        if self.model != "gpt2" {
            return Err(failed(format!("vocabulary of type {:?} is not supported (known: gpt2)", self.model)));
        }
        let byte_level = |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex});
        let cut = |regex: &str| {
            let split = json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
            json!({"type": "Sequence", "pretokenizers": [split, byte_level(false)]})
        };
        let digits = json!({"type": "Digits", "individual_digits": true});
        let (pre_tokenizer, normalizer, ignore_merges) = match self.pre.as_str() {
            "smollm" | "starcoder" | "refact" | "command-r" => {
                (json!({"type": "Sequence", "pretokenizers": [digits, byte_level(true)]}), Value::Null, false)
            }
            "gpt-2" | "gpt2" | "phi-2" | "mpt" | "olmo" => (byte_level(true), Value::Null, false),
            "llama-bpe" | "llama3" | "llama-v3" => (cut(LLAMA3), Value::Null, true),
            "qwen2" | "deepseek-r1-qwen" => (cut(QWEN2), json!({"type": "NFC"}), false),
            other => {
                return Err(failed(format!(
                    "pre-tokenizer {other:?} is not supported (known: smollm, starcoder, refact, command-r, gpt-2, \
                     phi-2, mpt, olmo, llama-bpe, qwen2, deepseek-r1-qwen)"
                )));
            }
        };
        let kind = |id: usize| self.kinds.get(id).copied().unwrap_or(1);
        let mut vocab = Map::new();
        let mut added = Vec::new();
        for (id, token) in self.tokens.iter().enumerate() {
            let special = kind(id) == CONTROL;
            if special || kind(id) == USER_DEFINED {
                added.push(json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": special}));
            }
            if vocab.insert(token.clone(), json!(id)).is_some() {
                return Err(failed(format!("token {token:?} is there twice")));
            }
        }
        let mut merges = Vec::with_capacity(self.merges.len());
        for merge in &self.merges {
            let pair = merge.split_once(' ').filter(|(left, right)| {
                let whole = format!("{left}{right}");
                vocab.contains_key(*left) && vocab.contains_key(*right) && vocab.contains_key(&whole)
            });
            let (left, right) = pair.ok_or_else(|| failed(format!("merge {merge:?} names no tokens")))?;
            merges.push(json!([left, right]));
        }
        let post_processor = self.post_processor();
        Ok(json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added,
            "normalizer": normalizer,
            "pre_tokenizer": pre_tokenizer,
            "post_processor": post_processor,
            "decoder": byte_level(true),
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                "ignore_merges": ignore_merges, "vocab": vocab, "merges": merges},
        }))
    }

    /// BOS and EOS around a text, where the file asks for them. Llama 3 files mean BOS when they are silent.
    fn post_processor(&self) -> Value {
        let add_bos = self.add_bos.unwrap_or(matches!(self.pre.as_str(), "llama-bpe" | "llama3" | "llama-v3"));
        let bos = self.token(self.bos).filter(|_| add_bos).zip(self.bos);
        let eos = self.token(self.eos).filter(|_| self.add_eos).zip(self.eos);
        if bos.is_none() && eos.is_none() {
            return json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
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

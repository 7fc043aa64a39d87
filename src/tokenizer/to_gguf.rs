//! A tokenizer as the vocabulary of a GGUF file.

use std::collections::HashMap;

use serde_json::Value;

use super::gguf::Vocabulary;
use super::gguf_rules::Rule;
use super::{Tokenizer, TokenizerError, failed};

type Result<T> = std::result::Result<T, TokenizerError>;

impl Tokenizer {
    /// The vocabulary for a GGUF file, padded to `rows` tokens.
    ///
    /// # Errors
    /// When the tokenizer is not BPE, or its rules have no name in GGUF files, because llama.cpp would give other ids.
    pub fn to_gguf(&self, rows: usize) -> Result<Vocabulary> {
        let json: Value = serde_json::from_str(&self.to_json()?).map_err(failed)?;
        let model = &json["model"];
        if model["type"] != "BPE" {
            let kind = &model["type"];
            return Err(failed(format!("a vocabulary of type {kind} has no form in GGUF files (BPE has)")));
        }
        let plain = model["byte_fallback"] == true;
        let mut tokens: Vec<Option<String>> = vec![None; rows];
        let mut kinds = vec![1u64; rows];
        for (id, token) in (0..rows as u32).filter_map(|id| Some((id, self.id_to_token(id)?))) {
            if plain && is_byte(&token) {
                kinds[id as usize] = 6;
            }
            tokens[id as usize] = Some(token);
        }
        if self.vocab_size() > rows {
            return Err(failed(format!("it has {} tokens, the model {rows} rows for them", self.vocab_size())));
        }
        let unknown = model["unk_token"].as_str().and_then(|token| self.token_to_id(token));
        let mut strip_behind = false;
        for token in json["added_tokens"].as_array().into_iter().flatten() {
            let Some(id) = token["id"].as_u64().map(|id| id as usize).filter(|id| *id < rows) else { continue };
            strip_behind |= token["rstrip"] == true && token["special"] == true;
            kinds[id] = match token["special"] == true {
                true if unknown == Some(id as u32) => 2,
                true => 3,
                false => 4,
            };
        }
        let tokens: Vec<String> = tokens
            .into_iter()
            .enumerate()
            .map(|(id, token)| {
                token.unwrap_or_else(|| {
                    kinds[id] = 5;
                    format!("[PAD{id}]")
                })
            })
            .collect();
        let merges = merges(model);
        let named = |name: &str| self.named_token(name).and_then(|token| self.token_to_id(token));
        let framed = self.encode("a", true, false)?;
        let bare = self.encode("a", false, false)?;
        let before = self.before_text();
        let mut vocabulary = Vocabulary {
            model: if plain { "llama" } else { "gpt2" }.into(),
            pre: "default".into(),
            kinds,
            add_bos: Some(!before.is_empty()),
            add_eos: framed.len() > before.len() + bare.len(),
            strip_behind,
            bos: before.first().copied().or_else(|| named("bos_token")),
            eos: named("eos_token").or_else(|| self.eos_ids().first().copied()),
            unknown: unknown.or_else(|| named("unk_token")),
            padding: named("pad_token"),
            ..Vocabulary::default()
        };
        if plain {
            vocabulary.scores = scores(&tokens, &merges);
            vocabulary.add_space_prefix = Some(puts_space(&json["normalizer"]) || puts_space(&json["pre_tokenizer"]));
        } else {
            vocabulary.pre = Rule::of(&json["pre_tokenizer"], model["ignore_merges"] == true)
                .ok_or_else(|| failed(format!("its rule has no name in GGUF files: {}", json["pre_tokenizer"])))?
                .into();
            vocabulary.merges = merges.into_iter().map(|(left, right)| format!("{left} {right}")).collect();
        }
        vocabulary.tokens = tokens;
        Ok(vocabulary)
    }
}

/// `<0x0A>`.
fn is_byte(token: &str) -> bool {
    token
        .strip_prefix("<0x")
        .and_then(|rest| rest.strip_suffix('>'))
        .is_some_and(|hex| hex.len() == 2 && hex.bytes().all(|c| c.is_ascii_digit() || (b'A'..=b'F').contains(&c)))
}

/// `["left", "right"]` or `"left right"`.
fn merges(model: &Value) -> Vec<(String, String)> {
    let one = |merge: &Value| match merge {
        Value::String(pair) => pair.split_once(' ').map(|(l, r)| (l.to_owned(), r.to_owned())),
        pair => Some((pair[0].as_str()?.to_owned(), pair[1].as_str()?.to_owned())),
    };
    model["merges"].as_array().into_iter().flatten().filter_map(one).collect()
}

/// Converts ranks to scores: the token of the first merge has the highest score, tokens that no merge makes the lowest.
fn scores(tokens: &[String], merges: &[(String, String)]) -> Vec<f64> {
    let mut rank: HashMap<String, usize> = HashMap::new();
    for (left, right) in merges {
        let next = rank.len();
        rank.entry(format!("{left}{right}")).or_insert(next);
    }
    let last = rank.len();
    tokens.iter().map(|token| -(rank.get(token).copied().unwrap_or(last) as f64)).collect()
}

/// Whether a rule adds a space before a text.
fn puts_space(rules: &Value) -> bool {
    let within = |list: &str| rules[list].as_array().is_some_and(|items| items.iter().any(puts_space));
    rules["type"] == "Prepend"
        || (rules["type"] == "Metaspace" && rules["prepend_scheme"] != "never")
        || within("normalizers")
        || within("pretokenizers")
}

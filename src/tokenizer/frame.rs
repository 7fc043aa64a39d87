//! The tokens that a tokenizer adds around a text, and the encoding of text that continues another one.

use serde_json::{Map, Value, json};
use tokenizers::{Encoding, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, Token};

/// Properties of one tokenizer, determined once.
#[derive(Default)]
pub(super) struct Frame {
    /// Ids before any text, such as a begin token.
    pub before: Vec<u32>,
    /// Ids after a whole text, such as an end token; `None` where the post-processor does more than add ids before and
    /// after.
    pub behind: Option<Vec<u32>>,
    /// The rules without the space that is added before a text; `None` where there is no such space.
    pub inner: Option<Rules>,
    /// Whether that space is added before every part between added tokens, not only before the first.
    pub every_part: bool,
}

#[derive(Default)]
pub(super) struct Rules {
    pub normalizer: Option<NormalizerWrapper>,
    pub pre_tokenizer: Option<PreTokenizerWrapper>,
}

impl Frame {
    pub fn of(base: &tokenizers::Tokenizer) -> Self {
        let (mut prefix, mut every_part) = (false, false);
        let mut change = |rules: &mut Value| without_prefix(rules, &mut prefix, &mut every_part);
        let mut normalizer = serde_json::to_value(base.get_normalizer()).unwrap_or_default();
        let mut pre_tokenizer = serde_json::to_value(base.get_pre_tokenizer()).unwrap_or_default();
        change(&mut normalizer);
        change(&mut pre_tokenizer);
        let rules = || -> serde_json::Result<Rules> {
            Ok(Rules {
                normalizer: serde_json::from_value(normalizer)?,
                pre_tokenizer: serde_json::from_value(pre_tokenizer)?,
            })
        };
        let inner = if prefix { rules().ok() } else { None };
        Self { before: before(base), behind: behind(base), inner, every_part }
    }
}

/// Removes from normalizers and pre-tokenizers the rules that add a space before a text.
fn without_prefix(rules: &mut Value, prefix: &mut bool, every_part: &mut bool) {
    for list in ["normalizers", "pretokenizers"] {
        if let Some(items) = rules.get_mut(list).and_then(Value::as_array_mut) {
            items.retain(|item| {
                item["type"] != "Prepend" || {
                    (*prefix, *every_part) = (true, true);
                    false
                }
            });
            items.iter_mut().for_each(|item| without_prefix(item, prefix, every_part));
        }
    }
    match rules["type"].as_str() {
        Some("Prepend") => {
            (*prefix, *every_part) = (true, true);
            *rules = Value::Null;
        }
        Some("Metaspace") if rules["prepend_scheme"] != "never" => {
            *prefix = true;
            *every_part |= rules["prepend_scheme"] == "always";
            rules["prepend_scheme"] = "never".into();
        }
        Some("ByteLevel") if rules["add_prefix_space"] == true => {
            (*prefix, *every_part) = (true, true);
            rules["add_prefix_space"] = false.into();
        }
        _ => {}
    }
}

/// The output of the post-processor for one ordinary token with id 0; `None` where it fails.
fn around_one(base: &tokenizers::Tokenizer) -> Option<Encoding> {
    let one = Encoding::from_tokens(vec![Token::new(0, "a".into(), (0, 1))], 0);
    let framed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| base.post_process(one, None, true)));
    framed.ok()?.ok()
}

/// The ids that the post-processor adds before a text: those marked as special before one ordinary token.
fn before(base: &tokenizers::Tokenizer) -> Vec<u32> {
    let Some(framed) = around_one(base) else { return Vec::new() };
    let special = framed.get_special_tokens_mask().iter().take_while(|mark| **mark == 1).count();
    framed.get_ids()[..special.min(framed.len())].to_vec()
}

/// The ids that the post-processor adds after a text, where one ordinary token is between special ones.
fn behind(base: &tokenizers::Tokenizer) -> Option<Vec<u32>> {
    let framed = around_one(base)?;
    let marks = framed.get_special_tokens_mask();
    let at = marks.iter().position(|mark| *mark == 0)?;
    let alone = framed.get_ids()[at] == 0 && marks[at + 1..].iter().all(|mark| *mark == 1);
    alone.then(|| framed.get_ids()[at + 1..].to_vec())
}

/// The post-processor that `add_bos_token` and `add_eos_token` of tokenizer_config.json require, where it differs from
/// that of tokenizer.json. transformers 5 rebuilds it as soon as one of the two is given; the other one then counts as
/// false, and so does one whose token has no name.
pub(super) fn asked_for(base: &tokenizers::Tokenizer, config: Option<&Value>) -> Option<PostProcessorWrapper> {
    let config = config?;
    let flag = |name: &str| config.get(name).and_then(Value::as_bool);
    let (bos, eos) = (flag("add_bos_token"), flag("add_eos_token"));
    if bos.is_none() && eos.is_none() {
        return None;
    }
    let token = |is_on: Option<bool>, name: &str| {
        let value = config.get(name).filter(|_| is_on == Some(true))?;
        let text = value.as_str().or_else(|| value.get("content")?.as_str())?;
        Some((text, base.token_to_id(text)?))
    };
    let (bos, eos) = (token(bos, "bos_token"), token(eos, "eos_token"));
    let wanted: Vec<u32> = bos.map(|(_, id)| id).into_iter().chain([0]).chain(eos.map(|(_, id)| id)).collect();
    if around_one(base).is_some_and(|framed| framed.get_ids() == wanted) {
        return None;
    }
    let list = |kind: u32, sequence: &str| {
        let special = |(text, _): (&str, u32)| json!({"SpecialToken": {"id": text, "type_id": kind}});
        let text = json!({"Sequence": {"id": sequence, "type_id": kind}});
        bos.map(special).into_iter().chain([text]).chain(eos.map(special)).collect::<Vec<Value>>()
    };
    let single = list(0, "A");
    let pair: Vec<Value> = single.iter().cloned().chain(list(1, "B")).collect();
    let special = bos.iter().chain(&eos).map(|(text, id)| {
        let token = json!({"id": text, "ids": [id], "tokens": [text]});
        ((*text).to_owned(), token)
    });
    let special: Map<String, Value> = special.collect();
    let built = json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special});
    serde_json::from_value(built).ok()
}

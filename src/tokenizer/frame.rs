//! What a tokenizer puts around a text, and how it reads one that goes on from another.

use serde_json::Value;
use tokenizers::{Encoding, NormalizerWrapper, PreTokenizerWrapper, Token};

/// Facts about one tokenizer, found once.
#[derive(Default)]
pub(super) struct Frame {
    /// Ids before any text, such as a begin token.
    pub before: Vec<u32>,
    /// The rules without the space that is put before a text; `None` where there is no such space.
    pub inner: Option<Rules>,
    /// That space is put before every part between added tokens, not only before the first.
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
        Self { before: before(base), inner, every_part }
    }
}

/// Takes out of normalizers and pre-tokenizers what puts a space before a text.
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

/// The ids that the post-processor puts before a text: those marked as special before one ordinary token.
fn before(base: &tokenizers::Tokenizer) -> Vec<u32> {
    let one = Encoding::from_tokens(vec![Token::new(0, "a".into(), (0, 1))], 0);
    let framed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| base.post_process(one, None, true)));
    let Ok(Ok(framed)) = framed else { return Vec::new() };
    let special = framed.get_special_tokens_mask().iter().take_while(|mark| **mark == 1).count();
    framed.get_ids()[..special.min(framed.len())].to_vec()
}

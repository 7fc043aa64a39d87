//! Tests the regular expressions of a tokenizer file when the model is loaded, and refuses those that need excessive
//! time.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::Value;

use tokenizers::Decoder as _;

use super::{GIVES_UP, Result, Specials, Tokenizer, TokenizerError, failed, guarded};

/// Characters of the longest test text. A linear expression takes microseconds for it.
const LENGTHS: [usize; 3] = [32, 128, 512];
const MOST: Duration = Duration::from_millis(250);
/// Most characters of an expression that are used in test texts, in addition to the usual ones.
const LITERALS: usize = 48;

/// # Errors
/// When an expression exceeds its limits or takes too long on a text of a few hundred characters.
pub(super) fn check(tokenizer: &Tokenizer, json: &str) -> Result<()> {
    if !json.contains("\"Regex\"") {
        return Ok(());
    }
    let base = &tokenizer.0.base;
    let rules = [
        serde_json::to_value(base.get_normalizer()),
        serde_json::to_value(base.get_pre_tokenizer()),
        serde_json::to_value(base.get_decoder()),
    ];
    let mut expressions = Vec::new();
    rules.iter().flatten().for_each(|rule| collect(rule, &mut expressions));
    let decode = |text: &str| match base.get_decoder() {
        None => Ok(()),
        Some(decoder) => guarded(|| drop(decoder.decode(vec![text.to_owned()]))),
    };
    if expressions.is_empty() {
        return Ok(());
    }
    let mut characters: BTreeSet<char> = "aA0 \n-.é中".chars().collect();
    characters.extend(expressions.iter().flat_map(|e| e.chars()).filter(|c| c.is_alphanumeric()).take(LITERALS));
    // An expression may match only texts that contain a certain character.
    let rest: String =
        expressions.iter().flat_map(|e| e.chars()).filter(|c| !c.is_whitespace()).take(LITERALS).collect();
    let texts = LENGTHS.iter().flat_map(|n| characters.iter().map(move |c| (*n, *c)));
    for (length, c) in texts {
        for tail in ["!", "\n"] {
            let text = format!("{}{tail}{rest}", String::from_iter(std::iter::repeat_n(c, length)));
            // Repeated before it is refused, because a busy machine may have paused this thread.
            let hostile = (0..3).all(|_| {
                let begun = Instant::now();
                let gave_up = |e: TokenizerError| e.0 == GIVES_UP;
                let encoded = tokenizer.ids(&text, Specials::Never, false);
                encoded.is_err_and(gave_up) || decode(&text).is_err() || begun.elapsed() > MOST
            });
            if hostile {
                let shown: String = expressions.join(" ").chars().take(80).collect();
                return Err(failed(format!(
                    "its regular expressions take time beyond measure for {length} times {c:?}: {shown}"
                )));
            }
        }
    }
    Ok(())
}

fn collect(rule: &Value, found: &mut Vec<String>) {
    match rule {
        Value::Object(map) => {
            if let Some(Value::String(expression)) = map.get("Regex") {
                found.push(expression.clone());
            }
            map.values().for_each(|v| collect(v, found));
        }
        Value::Array(items) => items.iter().for_each(|v| collect(v, found)),
        _ => {}
    }
}

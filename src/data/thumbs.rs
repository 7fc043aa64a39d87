//! Single completions with thumbs: JSONL in TRL's unpaired form,
//! `{"prompt": …, "completion": …, "label": true}`, and the same from stored thumbs.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::DataError;
use super::fields::{Fields, Outcome, kind, parse_json};
use super::files::{Records, read_lines};
use super::from_feedback::{FeedbackRecord, thumb};
use super::records::Format;
use crate::domain::PromptInput;
use crate::domain::{CompletionId, Split};

/// A completion and its label, true for liked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thumbed {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_id: Option<String>,
    pub prompt: PromptInput,
    pub completion: String,
    pub label: bool,
    /// The side of the split of the stored prompt; if absent, `split_of` its hash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<Split>,
}

impl Thumbed {
    /// Its side of the split: as given, otherwise by the hash of its prompt.
    pub fn side(&self, heldout_fraction: f64) -> Split {
        self.split.unwrap_or_else(|| super::split_of(&super::content_hash(&self.prompt.messages()), heldout_fraction))
    }
}

/// Completions with thumbs JSONL, `{"prompt", "completion", "label"}` per line; prompt and completion may be texts or
/// messages, the label a boolean (or 1 and 0).
///
/// # Errors
/// When the file cannot be opened.
pub fn read_feedback(path: &Path) -> Result<Records<Thumbed>, DataError> {
    read_lines(path, "liked or disliked completion", parse)
}

fn parse(text: &str) -> Outcome<Thumbed> {
    let value = parse_json(text)?;
    let Value::Object(map) = &value else {
        return Err(format!("must be a JSON object, not {}", kind(&value)));
    };
    let fields = Fields::new(map);
    let missing = |name: &str| {
        let there: Vec<&str> = map.keys().map(String::as_str).collect();
        format!("`{name}` is missing; the line has {}", there.join(", "))
    };
    let completion = fields.get("completion").ok_or_else(|| missing("completion"))?;
    let label = match fields.get("label").ok_or_else(|| missing("label"))? {
        Value::Bool(label) => *label,
        Value::Number(n) if n.as_i64() == Some(1) => true,
        Value::Number(n) if n.as_i64() == Some(0) => false,
        other => return Err(format!("`label` must be true or false, not {}", kind(other))),
    };
    let split = fields.owned("split")?;
    let split = split.map(|s| Split::parse(&s).ok_or(format!("`split` = {s:?} (train, heldout)"))).transpose()?;
    Ok(Thumbed {
        prompt_id: fields.owned("prompt_id")?,
        prompt: fields.prompt(Format::Demonstrations)?,
        completion: fields.answer(completion, "completion")?,
        label,
        split,
    })
}

/// The last thumb of each user, and whether it is up.
type Users<'a> = BTreeMap<&'a str, (&'a FeedbackRecord<'a>, bool)>;

/// The thumbs of all users, one line for each completion: liked if more users' last thumbs are up than down.
/// Completions with a tie are left out and counted. Ordered by prompt and completion.
pub fn thumbs(records: &[FeedbackRecord<'_>]) -> (Vec<Thumbed>, usize) {
    let mut last: BTreeMap<(&str, &CompletionId), Users<'_>> = BTreeMap::new();
    for t in records.iter().filter(|t| t.kind == "thumb") {
        if let Some(value) = thumb(t.value) {
            let users = last.entry((t.prompt.id.as_str(), t.completion_id)).or_default();
            users.insert(t.actor, (t, value > 0.5));
        }
    }
    let (mut found, mut undecided) = (Vec::new(), 0);
    for users in last.into_values() {
        let up = users.values().filter(|(_, up)| *up).count();
        let Some((t, _)) = users.values().next().filter(|_| up * 2 != users.len()) else {
            undecided += 1;
            continue;
        };
        found.push(Thumbed {
            prompt_id: Some(t.prompt.id.to_string()),
            prompt: PromptInput::Chat(t.prompt.messages.clone()),
            completion: t.text.to_owned(),
            label: up * 2 > users.len(),
            split: Some(t.prompt.split),
        });
    }
    (found, undecided)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_in_both_forms_and_refused_by_name() {
        let chat =
            r#"{"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}],
            "label": false, "split": "heldout"}"#
                .replace('\n', " ");
        let one = parse(&chat).unwrap();
        assert_eq!((one.completion.as_str(), one.label, one.side(0.0)), ("b", false, Split::Heldout));
        assert!(parse(r#"{"prompt": "a", "completion": "b", "label": 1}"#).unwrap().label);
        for (line, name) in [
            (r#"{"prompt": "a", "completion": "b"}"#, "`label` is missing"),
            (r#"{"prompt": "a", "completion": "b", "label": "up"}"#, "`label` must be"),
            (r#"{"prompt": "a", "label": true}"#, "`completion` is missing"),
            (r#"{"completion": "b", "label": true}"#, "`prompt` is missing"),
            (r#"{"prompt": "a", "completion": "b", "label": true, "split": "x"}"#, "`split`"),
            ("[]", "must be a JSON object"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.contains(name), "{line}: {error}");
        }
    }
}

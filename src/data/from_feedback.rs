//! Preferences derived from feedback of applications: edits, thumbs and scores on single completions.
//!
//! An edit is preferred to the text it was made from. Thumbs of all users on completions of one prompt are
//! averaged (up = 1, down = 0), and a higher average is preferred. Scores are compared only within one
//! user, because two users' scales need not agree. A user's last event on a completion counts.

use std::collections::BTreeMap;

use serde_json::Value;

use super::records::{Comparison, RankedText};
use crate::domain::{CompletionId, Prompt, PromptInput};

/// One event: feedback of `actor` on a completion. Lists are ordered oldest first.
#[derive(Clone, Debug)]
pub struct FeedbackRecord<'a> {
    pub prompt: &'a Prompt,
    pub completion_id: &'a CompletionId,
    pub text: &'a str,
    /// `thumb`, `score`, `edit`; others are ignored.
    pub kind: &'a str,
    pub value: &'a Value,
    pub actor: &'a str,
}

/// Whether a thumb is up: `up`, 1, true; or down: `down`, −1, false.
pub(super) fn thumb(value: &Value) -> Option<f64> {
    match value {
        Value::String(s) if s == "up" => Some(1.0),
        Value::String(s) if s == "down" => Some(0.0),
        Value::Bool(up) => Some(f64::from(*up)),
        Value::Number(n) => n.as_i64().map(|n| f64::from(n > 0)),
        _ => None,
    }
}

/// Tiers from averages by completion, best first; `None` when all are equal.
fn ranking(prompt: &Prompt, values: &BTreeMap<&CompletionId, (&str, f64)>) -> Option<Comparison> {
    let mut levels: Vec<f64> = values.values().map(|v| v.1).collect();
    levels.sort_unstable_by(|a, b| b.total_cmp(a));
    levels.dedup();
    if levels.len() < 2 {
        return None;
    }
    let tier = |value: f64| levels.iter().position(|l| *l == value).unwrap_or(0) as i64;
    let mut completions: Vec<RankedText> =
        values.values().map(|(text, value)| RankedText::new(*text, tier(*value))).collect();
    completions.sort_by_key(|c| c.tier);
    Some(comparison(prompt, completions))
}

fn comparison(prompt: &Prompt, completions: Vec<RankedText>) -> Comparison {
    Comparison {
        prompt_id: Some(prompt.id.to_string()),
        split: Some(prompt.split),
        ..Comparison::new(PromptInput::Chat(prompt.messages.clone()), completions)
    }
}

/// The preferences, by prompt: edits first, then thumbs, then scores.
pub fn preferences(records: &[FeedbackRecord<'_>]) -> Vec<Comparison> {
    let mut by_prompt: BTreeMap<&str, Vec<&FeedbackRecord<'_>>> = BTreeMap::new();
    for t in records {
        by_prompt.entry(t.prompt.id.as_str()).or_default().push(t);
    }
    let mut found = Vec::new();
    for events in by_prompt.into_values() {
        let prompt = events[0].prompt;
        // A user's last edit of a completion, if it changed the text.
        let mut edits: BTreeMap<(&CompletionId, &str), (&str, &str)> = BTreeMap::new();
        let mut thumbs: BTreeMap<(&CompletionId, &str), (&str, f64)> = BTreeMap::new();
        let mut scores: BTreeMap<&str, BTreeMap<&CompletionId, (&str, f64)>> = BTreeMap::new();
        for t in events {
            let key = (t.completion_id, t.actor);
            match (t.kind, t.value) {
                ("edit", Value::String(edited)) => drop(edits.insert(key, (edited, t.text))),
                ("thumb", value) => drop(thumb(value).map(|v| thumbs.insert(key, (t.text, v)))),
                ("score", Value::Number(n)) => {
                    if let Some(score) = n.as_f64().filter(|s| s.is_finite()) {
                        scores.entry(t.actor).or_default().insert(t.completion_id, (t.text, score));
                    }
                }
                _ => {}
            }
        }
        for (edited, original) in edits.into_values().filter(|(edited, original)| edited != original) {
            found.push(comparison(prompt, vec![RankedText::new(edited, 0), RankedText::new(original, 1)]));
        }
        let mut averages: BTreeMap<&CompletionId, (&str, f64, f64)> = BTreeMap::new();
        for ((id, _), (text, value)) in thumbs {
            let average = averages.entry(id).or_insert((text, 0.0, 0.0));
            (average.1, average.2) = (average.1 + value, average.2 + 1.0);
        }
        let averages = averages.into_iter().map(|(id, (text, sum, n))| (id, (text, sum / n))).collect();
        found.extend(ranking(prompt, &averages));
        found.extend(scores.values().filter_map(|scored| ranking(prompt, scored)));
    }
    found
}

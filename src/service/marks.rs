//! Texts that labelers write, and what they mark in the completions of a set: spans that are wrong, and corrected
//! texts.

use std::collections::HashSet;

use super::{Result, Services, bad_input};
use crate::domain::*;

/// Most bytes of a text that a labeler writes.
pub(super) const MAX_TEXT: usize = 64 << 10;
/// Most spans of one judgment.
const MAX_SPANS: usize = 64;

/// A completion's text as the labeler would have it.
#[derive(Clone, Debug)]
pub struct Correction {
    pub completion_id: CompletionId,
    pub text: String,
}

/// The spans as they are stored, in the order of completion and start.
///
/// # Errors
/// `BadInput` naming the field: a completion that is not in the set, positions outside its text, spans that overlap.
pub async fn checked_spans(
    services: &Services,
    set: &ComparisonSet,
    outcome: Outcome,
    mut spans: Vec<Span>,
) -> Result<Vec<Span>> {
    if spans.is_empty() {
        return Ok(spans);
    }
    if outcome == Outcome::Skip {
        return Err(bad_input("spans", "are of judgments, not of skips"));
    }
    if spans.len() > MAX_SPANS {
        return Err(bad_input("spans", format!("has {} entries; at most {MAX_SPANS}", spans.len())));
    }
    let notes: usize = spans.iter().filter_map(|s| s.note.as_ref()).map(String::len).sum();
    if notes > MAX_TEXT {
        return Err(bad_input("spans", format!("their notes have {notes} bytes; at most {MAX_TEXT} in all")));
    }
    let texts = Texts::of(services, set).await?;
    for (i, span) in spans.iter_mut().enumerate() {
        let text = texts.get(&span.completion_id, &format!("spans[{i}].completion_id"))?;
        let length = text.chars().count() as i64;
        let (start, end) = (span.start, span.end);
        if !(0..length).contains(&start) {
            return Err(bad_input(
                format!("spans[{i}].start"),
                format!("is {start}; the text has {length} characters"),
            ));
        }
        if end <= start || end > length {
            let message = format!("is {end}; must be more than the start, {start}, and at most {length}");
            return Err(bad_input(format!("spans[{i}].end"), message));
        }
        span.note = span.note.take().filter(|note| !note.trim().is_empty());
    }
    for (i, a) in spans.iter().enumerate() {
        let overlaps = |b: &Span| a.completion_id == b.completion_id && a.start < b.end && b.start < a.end;
        if let Some(j) = spans[..i].iter().position(overlaps) {
            return Err(bad_input(format!("spans[{i}]"), format!("overlaps with spans[{j}]; send one span for both")));
        }
    }
    spans.sort_by(|a, b| (&a.completion_id, a.start).cmp(&(&b.completion_id, b.start)));
    Ok(spans)
}

/// The corrected texts as completions, each an edit of the completion that it corrects.
///
/// # Errors
/// `BadInput` naming the field: a completion that is not in the set or is corrected twice, a text that is empty, too long
/// or unchanged.
pub async fn corrected(
    services: &Services,
    set: &ComparisonSet,
    outcome: Outcome,
    corrections: Vec<Correction>,
    now: Micros,
) -> Result<Vec<Completion>> {
    if corrections.is_empty() {
        return Ok(Vec::new());
    }
    if outcome == Outcome::Skip {
        return Err(bad_input("corrections", "are of judgments, not of skips"));
    }
    let former_texts = Texts::of(services, set).await?;
    let (mut seen, mut texts) = (HashSet::new(), Vec::with_capacity(corrections.len()));
    for (i, Correction { completion_id, text }) in corrections.into_iter().enumerate() {
        let field = format!("corrections[{i}].completion_id");
        let former = former_texts.get(&completion_id, &field)?;
        if !seen.insert(completion_id.clone()) {
            return Err(bad_input(field, format!("{completion_id} is corrected twice")));
        }
        let field = format!("corrections[{i}].text");
        if text.trim().is_empty() || text.len() > MAX_TEXT {
            return Err(bad_input(
                field,
                format!("has {} bytes; must have text, at most {MAX_TEXT} bytes", text.len()),
            ));
        }
        if text == former {
            return Err(bad_input(field, "is the completion's own text; leave the correction out"));
        }
        texts.push(Completion {
            origin: CompletionOrigin::Edit,
            parent_completion_id: Some(completion_id),
            ..human_completion(set.prompt_id.clone(), text, now)
        });
    }
    Ok(texts)
}

/// The completions of a set.
struct Texts(Vec<Completion>);

impl Texts {
    async fn of(services: &Services, set: &ComparisonSet) -> Result<Self> {
        Ok(Self(services.store.sets().content(&set.id).await?.completions))
    }

    /// # Errors
    /// `BadInput` naming `field` for a completion that is not in the set.
    fn get(&self, id: &CompletionId, field: &str) -> Result<&str> {
        let found = self.0.iter().find(|completion| completion.id == *id);
        found.map(|c| c.text.as_str()).ok_or_else(|| bad_input(field, format!("{id} is not in this set")))
    }
}

/// A text written by a person.
pub(super) fn human_completion(prompt_id: PromptId, text: String, now: Micros) -> Completion {
    Completion {
        id: CompletionId::new(),
        prompt_id,
        model_version_id: None,
        origin: CompletionOrigin::Human,
        parent_completion_id: None,
        text,
        token_ids: Vec::new(),
        logprobs: Vec::new(),
        sampling: serde_json::Value::Null,
        seed: None,
        finish_reason: None,
        request_id: None,
        reward: None,
        created: now,
    }
}

//! JSON formatted piece by piece: a response with many log-probs takes a hundred times its size as a tree of values.

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::Value;

use super::logprobs::{self, Place, TextLogprobs};
use crate::domain::ModelVersionId;
use crate::engine::{EngineError, Generator, TokenLogprob};
use crate::service::complete::CONTEXT;

/// Number of tokens whose log-probs are trees at the same time.
const AT_ONCE: usize = 64;

/// JSON text.
#[derive(Debug, Default)]
pub struct JsonText(Vec<u8>);

/// A list that is being formatted.
#[derive(Debug)]
pub struct JsonList(Vec<u8>);

impl JsonText {
    pub fn null() -> Self {
        Self(b"null".to_vec())
    }

    pub fn list() -> JsonList {
        JsonList(vec![b'['])
    }

    /// The object `fields` with one more field, which replaces an existing one of that name.
    pub fn object(fields: &impl Serialize, name: &str, value: Self) -> Self {
        let fields = serde_json::to_value(fields).unwrap_or_default();
        let mut out = Vec::with_capacity(value.0.len() + 256);
        out.push(b'{');
        let mut value = Some(value.0);
        let field = |out: &mut Vec<u8>, name: &str, text: &[u8]| {
            if out.len() > 1 {
                out.push(b',');
            }
            out.extend_from_slice(Value::from(name).to_string().as_bytes());
            out.push(b':');
            out.extend_from_slice(text);
        };
        for (own, inner) in fields.as_object().into_iter().flatten() {
            match value.take_if(|_| own == name) {
                Some(text) => field(&mut out, name, &text),
                None => field(&mut out, own, inner.to_string().as_bytes()),
            }
        }
        if let Some(text) = value {
            field(&mut out, name, &text);
        }
        out.push(b'}');
        Self(out)
    }
}

impl JsonList {
    pub fn push(&mut self, item: JsonText) {
        self.add(&item.0);
    }

    fn add(&mut self, text: &[u8]) {
        if self.0.len() > 1 {
            self.0.push(b',');
        }
        self.0.extend_from_slice(text);
    }

    pub fn end(mut self) -> JsonText {
        self.0.push(b']');
        JsonText(self.0)
    }
}

impl IntoResponse for JsonText {
    fn into_response(self) -> Response {
        ([(header::CONTENT_TYPE, "application/json")], Body::from(self.0)).into_response()
    }
}

/// The last ids before `tokens[at..]`; `left` are the ids before the first token.
fn left_of(left: &[u32], tokens: &[TokenLogprob], at: usize) -> Vec<u32> {
    let near = tokens[at.saturating_sub(CONTEXT)..at].iter().map(|t| t.id);
    left.iter().copied().chain(near).collect()
}

/// The chat form of log-probs as JSON text; `left` are the ids before the first token.
///
/// # Errors
/// Errors of the engine.
pub async fn chat_logprobs(
    engine: &dyn Generator,
    version: &ModelVersionId,
    left: &[u32],
    tokens: &[TokenLogprob],
) -> Result<JsonText, EngineError> {
    let mut list = JsonText::list();
    for (i, some) in tokens.chunks(AT_ONCE).enumerate() {
        let left = left_of(left, tokens, i * AT_ONCE);
        for entry in logprobs::chat(engine, version, &left, some).await? {
            list.add(serde_json::to_string(&entry).unwrap_or_default().as_bytes());
        }
        tokio::task::yield_now().await;
    }
    Ok(list.end())
}

/// The completion form of log-probs as JSON text; its parallel lists are formatted incrementally.
///
/// # Errors
/// Errors of the engine.
pub async fn completion_logprobs(
    engine: &dyn Generator,
    version: &ModelVersionId,
    tokens: &[TokenLogprob],
    place: Place<'_>,
) -> Result<JsonText, EngineError> {
    let mut offset = 0;
    let mut lists: Vec<(String, JsonList)> = Vec::new();
    let mut first = true;
    for (i, some) in tokens.chunks(AT_ONCE).enumerate() {
        let at = i * AT_ONCE;
        let left = left_of(place.left, tokens, at);
        let (added, prompt) = (place.added.saturating_sub(at), place.prompt.saturating_sub(at));
        let here = Place { left: &left, added, prompt };
        let part = logprobs::completion(engine, version, some, here, &mut offset).await?;
        let part = serde_json::to_value(part).unwrap_or_default();
        for (i, (name, items)) in part.as_object().into_iter().flatten().enumerate() {
            if first {
                lists.push((name.clone(), JsonText::list()));
            }
            for item in items.as_array().into_iter().flatten() {
                lists[i].1.add(item.to_string().as_bytes());
            }
        }
        first = false;
        tokio::task::yield_now().await;
    }
    if first {
        return Ok(JsonText(serde_json::to_vec(&TextLogprobs::default()).unwrap_or_default()));
    }
    let mut all = Vec::new();
    for (name, list) in lists {
        all.extend_from_slice(if all.is_empty() { b"{" } else { b"," });
        all.extend_from_slice(Value::from(name).to_string().as_bytes());
        all.push(b':');
        all.extend_from_slice(&list.end().0);
    }
    all.push(b'}');
    Ok(JsonText(all))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pieces_make_the_object_that_a_tree_would() {
        let mut list = JsonText::list();
        list.push(JsonText(b"1".to_vec()));
        list.push(JsonText::object(&json!({"a\"b": "x", "hole": null, "c": [1]}), "hole", JsonText::null()));
        let whole = JsonText::object(&json!({"id": "i"}), "choices", list.end());
        let read: Value = serde_json::from_slice(&whole.0).unwrap();
        assert_eq!(read, json!({"id": "i", "choices": [1, {"a\"b": "x", "hole": null, "c": [1]}]}));
        assert_eq!(JsonText::object(&json!({}), "x", JsonText::list().end()).0, b"{\"x\":[]}");
    }
}

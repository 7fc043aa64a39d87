//! JSON written piece by piece: an answer with many log-probs as a tree of values takes a hundred times its text.

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::Value;

use super::logprobs::{self, Place, TextLogprobs};
use crate::domain::ModelVersionId;
use crate::engine::{EngineError, Generator, TokenLogprob};
use crate::service::complete::CONTEXT;

/// Tokens whose log-probs are trees at the same time.
const AT_ONCE: usize = 64;

/// JSON text.
#[derive(Debug, Default)]
pub struct Written(Vec<u8>);

/// A list that is being written.
#[derive(Debug)]
pub struct List(Vec<u8>);

impl Written {
    pub fn null() -> Self {
        Self(b"null".to_vec())
    }

    pub fn list() -> List {
        List(vec![b'['])
    }

    /// The object `fields` with one more field, in the place of its own where it has one of that name.
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

impl List {
    pub fn push(&mut self, item: Written) {
        self.add(&item.0);
    }

    fn add(&mut self, text: &[u8]) {
        if self.0.len() > 1 {
            self.0.push(b',');
        }
        self.0.extend_from_slice(text);
    }

    pub fn end(mut self) -> Written {
        self.0.push(b']');
        Written(self.0)
    }
}

impl IntoResponse for Written {
    fn into_response(self) -> Response {
        ([(header::CONTENT_TYPE, "application/json")], Body::from(self.0)).into_response()
    }
}

/// The ids that stand before `tokens[at..]`, where `left` stands before the first: the last of them.
fn left_of(left: &[u32], tokens: &[TokenLogprob], at: usize) -> Vec<u32> {
    let near = tokens[at.saturating_sub(CONTEXT)..at].iter().map(|t| t.id);
    left.iter().copied().chain(near).collect()
}

/// `logprobs::chat` as text; `left` stands before the first token.
///
/// # Errors
/// What the engine fails with.
pub async fn chat_logprobs(
    engine: &dyn Generator,
    version: &ModelVersionId,
    left: &[u32],
    tokens: &[TokenLogprob],
) -> Result<Written, EngineError> {
    let mut list = Written::list();
    for (i, some) in tokens.chunks(AT_ONCE).enumerate() {
        let left = left_of(left, tokens, i * AT_ONCE);
        for entry in logprobs::chat(engine, version, &left, some).await? {
            list.add(serde_json::to_string(&entry).unwrap_or_default().as_bytes());
        }
        tokio::task::yield_now().await;
    }
    Ok(list.end())
}

/// `logprobs::completion` as text: its parallel lists, each written on.
///
/// # Errors
/// What the engine fails with.
pub async fn completion_logprobs(
    engine: &dyn Generator,
    version: &ModelVersionId,
    tokens: &[TokenLogprob],
    place: Place<'_>,
) -> Result<Written, EngineError> {
    let mut offset = 0;
    let mut lists: Vec<(String, List)> = Vec::new();
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
                lists.push((name.clone(), Written::list()));
            }
            for item in items.as_array().into_iter().flatten() {
                lists[i].1.add(item.to_string().as_bytes());
            }
        }
        first = false;
        tokio::task::yield_now().await;
    }
    if first {
        return Ok(Written(serde_json::to_vec(&TextLogprobs::default()).unwrap_or_default()));
    }
    let mut all = Vec::new();
    for (name, list) in lists {
        all.extend_from_slice(if all.is_empty() { b"{" } else { b"," });
        all.extend_from_slice(Value::from(name).to_string().as_bytes());
        all.push(b':');
        all.extend_from_slice(&list.end().0);
    }
    all.push(b'}');
    Ok(Written(all))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pieces_make_the_object_that_a_tree_would() {
        let mut list = Written::list();
        list.push(Written(b"1".to_vec()));
        list.push(Written::object(&json!({"a\"b": "x", "hole": null, "c": [1]}), "hole", Written::null()));
        let whole = Written::object(&json!({"id": "i"}), "choices", list.end());
        let read: Value = serde_json::from_slice(&whole.0).unwrap();
        assert_eq!(read, json!({"id": "i", "choices": [1, {"a\"b": "x", "hole": null, "c": [1]}]}));
        assert_eq!(Written::object(&json!({}), "x", Written::list().end()).0, b"{\"x\":[]}");
    }
}

//! Thumbs, scores, edits and comments on single completions.

use std::sync::Arc;

use serde_json::Value;

use super::{Result, Services, bad_input, not_found_as, uncancelled};
use crate::domain::{CompletionId, FeedbackEvent, FeedbackId};
use crate::service::people::Actor;
use crate::service::random::actor_hash;

/// Stores one event; a repeated idempotency key returns what was stored.
///
/// # Errors
/// `KeyReused` of the store for the key of other feedback, `BadInput` when the value does not fit the kind, `NotFound` for unknown completions.
pub async fn give(
    services: &Arc<Services>,
    actor: &Actor,
    completion_id: CompletionId,
    kind: &str,
    value: Value,
    idempotency_key: Option<String>,
) -> Result<FeedbackEvent> {
    match (kind, &value) {
        ("thumb", Value::String(s)) if s == "up" || s == "down" => {}
        ("thumb", Value::Number(n)) if matches!(n.as_i64(), Some(1 | -1)) => {}
        ("thumb", Value::Bool(_)) => {}
        ("thumb", _) => return Err(bad_input("value", "must be \"up\" or \"down\" for a thumb")),
        ("score", Value::Number(_)) => {}
        ("score", _) => return Err(bad_input("value", "must be a number for a score")),
        ("edit" | "comment", Value::String(s)) if !s.is_empty() && s.len() <= 64 << 10 => {}
        ("edit" | "comment", _) => return Err(bad_input("value", "must be text of at most 64 KiB")),
        _ => return Err(bad_input("kind", "must be thumb, score, edit or comment")),
    }
    if idempotency_key.as_ref().is_some_and(|k| k.is_empty() || k.len() > 200) {
        return Err(bad_input("idempotency_key", "must be 1 to 200 bytes"));
    }
    services.store.completions().get(&completion_id).await.map_err(|e| not_found_as(e, "completion_id"))?;
    let id = FeedbackId::new();
    let event = FeedbackEvent {
        idempotency_key: idempotency_key.unwrap_or_else(|| id.to_string()),
        id,
        completion_id,
        kind: kind.to_owned(),
        value,
        // Feedback stores a pseudonym, which identifies events of the same person.
        actor_hash: Some(actor_hash(&actor.labeler_id)),
        created: services.now(),
    };
    let services = services.clone();
    uncancelled(async move { Ok(services.store.feedback().put(event).await?) }).await
}

//! `POST /v1/feedback` and `POST /v1/rewards`.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::AppState;
use super::auth::{Caller, MaybeCaller};
use super::error::{ApiError, ApiResult};
use super::extract::Json;
use super::openai::chat_request::ChatMessage;
use super::openai::turns;
use crate::domain::{CompletionId, FeedbackEvent, Message, ModelVersionId, with_nearest};
use crate::service::budget;
use crate::service::prompts::{check_size, raw_text};

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FeedbackRequest {
    pub completion_id: CompletionId,
    /// `thumb` ("up" or "down"), `score` (a number), `edit` or `comment` (text).
    pub kind: String,
    pub value: Value,
    /// A name for this event, 1 to 200 bytes: sent again under it, the event is stored once. Another event under it is
    /// refused (`idempotency_key_reused`).
    pub idempotency_key: Option<String>,
}

pub async fn give(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Json(body): Json<FeedbackRequest>,
) -> ApiResult<(StatusCode, axum::Json<FeedbackEvent>)> {
    let event = crate::service::feedback::give(
        &state.services,
        &actor,
        body.completion_id,
        &body.kind,
        body.value,
        body.idempotency_key,
    )
    .await?;
    Ok((StatusCode::CREATED, axum::Json(event)))
}

/// A conversation or raw text.
#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RewardsRequest {
    /// A reward model's name or id; absent = the active one.
    pub model: Option<String>,
    /// A list of messages, or a text.
    #[schemars(with = "Value")]
    pub prompt: Value,
    pub completions: Vec<String>,
}

/// A prompt given as messages or as text.
pub fn prompt(value: Value, field: &str, max_bytes: usize) -> ApiResult<Vec<Message>> {
    match value {
        Value::String(text) => {
            check_size(text.len(), field, max_bytes)?;
            Ok(raw_text(text))
        }
        Value::Array(_) => {
            let given: Vec<ChatMessage> = serde_path_to_error::deserialize(value)
                .map_err(|e| ApiError::bad(format!("{field}{}", e.path()), with_nearest(e.inner().to_string())))?;
            turns::stored_messages(given, field, max_bytes)
        }
        _ => Err(ApiError::bad(field, "must be a text or a list of messages")),
    }
}

/// A reward model's score of each completion.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Rewards {
    pub model: String,
    pub model_version: ModelVersionId,
    /// In the order of the request.
    pub scores: Vec<f64>,
    /// Standard deviation over the heads of an ensemble, on the scale of the score; 0 for other models.
    pub stds: Vec<f64>,
    /// Of a model with heads for a rubric's dimensions: the score of each completion by head, before weights. `ranking`
    /// is the head of the labelers' ranking.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dimensions: Option<Vec<BTreeMap<String, f64>>>,
}

pub async fn rewards(
    State(state): State<AppState>,
    caller: MaybeCaller,
    Json(body): Json<RewardsRequest>,
) -> ApiResult<axum::Json<Rewards>> {
    let limits = &state.services.config.limits;
    let prompt: Arc<[Message]> = prompt(body.prompt, "prompt", limits.prompt_bytes)?.into();
    if body.completions.is_empty() || body.completions.len() > limits.samples {
        return Err(ApiError::bad("completions", format!("must be 1 to {} texts", limits.samples)));
    }
    let answers: Vec<usize> = body.completions.iter().map(String::len).collect();
    budget::rewards(prompt.iter().map(|m| m.content.len()).sum(), &answers, limits)?;
    let model = body.model.as_deref();
    let (model, scores) =
        crate::service::publish::rewards(&state.services, model, &prompt, body.completions, caller.is_admin()).await?;
    let (values, stds) = scores.iter().map(|s| (s.mean, s.std)).unzip();
    let parts: Vec<BTreeMap<String, f64>> = scores.into_iter().map(|s| s.parts).collect();
    let dimensions = Some(parts).filter(|parts| parts.iter().any(|p| !p.is_empty()));
    Ok(axum::Json(Rewards { model: model.name, model_version: model.id, scores: values, stds, dimensions }))
}

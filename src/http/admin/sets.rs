//! Sets for administrators and reviewers: draws in bulk, known answers, everybody's words, settling.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::domain::*;
use crate::http::AppState;
use crate::http::auth::Caller;
use crate::http::error::ApiResult;
use crate::http::extract::{Json, Path, Query};
use crate::http::label::{JudgmentRequest, PageQuery, messages_json};
use crate::http::markdown;
use crate::service::draw::{self, DrawRequest};
use crate::service::label::author;
use crate::service::review::{self, KnownAnswer};

pub async fn draw(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Json(body): Json<DrawRequest>,
) -> ApiResult<Response> {
    let draw = draw::start(&state.services, &actor, body).await?;
    Ok((StatusCode::ACCEPTED, axum::Json(draw)).into_response())
}

pub async fn draws(State(state): State<AppState>, Query(query): Query<PageQuery>) -> ApiResult<axum::Json<Value>> {
    let draws = draw::list(&state.services, query.page()?).await?;
    let next = draws.last().map(|d| d.id.clone());
    Ok(axum::Json(json!({"data": draws, "after": next})))
}

pub async fn get_draw(State(state): State<AppState>, Path(id): Path<DrawId>) -> ApiResult<Response> {
    Ok(axum::Json(draw::get(&state.services, &id).await?).into_response())
}

pub async fn cancel_draw(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Path(id): Path<DrawId>,
) -> ApiResult<Response> {
    Ok(axum::Json(draw::cancel(&state.services, &actor, &id).await?).into_response())
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KnownAnswerRequest {
    /// `gold` stays hidden from labelers; `calibration` is shown to them after the vote.
    pub kind: SetKind,
    /// Every completion of the set once.
    pub tiers: Vec<Tier>,
    /// Markdown that says why; shown after the vote on calibration sets.
    pub explanation: Option<String>,
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tier {
    pub completion_id: CompletionId,
    /// 0 is best; equal tiers are a tie.
    pub tier: i64,
}

pub async fn known_answer(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Path(id): Path<SetId>,
    Json(body): Json<KnownAnswerRequest>,
) -> ApiResult<StatusCode> {
    let tiers = body.tiers.into_iter().map(|t| (t.completion_id, t.tier)).collect();
    let answer = KnownAnswer { kind: body.kind, tiers, explanation: body.explanation };
    review::set_known_answer(&state.services, &actor, &id, answer).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn retire(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Path(id): Path<SetId>,
) -> ApiResult<StatusCode> {
    review::retire_set(&state.services, &actor, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn review(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Path(id): Path<SetId>,
) -> ApiResult<axum::Json<Value>> {
    let services = &state.services;
    let disputed = review::disputed(services, &actor, &id).await?;
    let texts: Vec<&str> = disputed.completions.iter().map(|c| c.text.as_str()).collect();
    let mut completions = Vec::new();
    for (c, html) in disputed.completions.iter().zip(markdown::render_all(&texts).await?) {
        let author = author(services, c).await?;
        completions.push(
            json!({"id": c.id, "finish_reason": c.finish_reason, "text": c.text, "html": html, "author": author}),
        );
    }
    let mut judgments = Vec::new();
    for judgment in &disputed.judgments {
        let labeler = services.store.get_labeler(&judgment.labeler_id).await?;
        judgments.push(json!({"judgment": judgment, "labeler": {"id": labeler.id, "name": labeler.name}}));
    }
    let known_answer = match disputed.set.kind {
        SetKind::Normal => Value::Null,
        SetKind::Gold | SetKind::Calibration => {
            let tiers = services.store.get_gold(&id).await?;
            let tiers: Vec<_> = tiers.iter().map(|(c, tier)| json!({"completion_id": c, "tier": tier})).collect();
            json!({"tiers": tiers, "explanation": services.store.set_explanation(&id).await?})
        }
    };
    Ok(axum::Json(json!({
        "known_answer": known_answer,
        "set": disputed.set,
        "prompt": {"id": disputed.prompt.id, "messages": messages_json(&disputed.prompt.messages).await?},
        "completions": completions,
        "judgments": judgments,
        "settled_by": disputed.settled_by,
    })))
}

pub async fn settle(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Path(id): Path<SetId>,
    Json(body): Json<JudgmentRequest>,
) -> ApiResult<axum::Json<Value>> {
    let submitted = review::settle(&state.services, &actor, &id, body.into_word()).await?;
    Ok(axum::Json(json!({"judgment": submitted.judgment, "replayed": submitted.replayed})))
}

//! The labeler's routes: lease, renew, release, judge, look back.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::AppState;
use super::auth::Caller;
use super::error::{ApiError, ApiResult};
use super::extract::{Json, Path, Query};
use super::markdown;
use crate::domain::*;
use crate::service::label::{self, Next, Turn, Word};
use crate::service::people::Actor;
use crate::service::{Services, guidelines as words};
use crate::store::{Page, Submitted};

/// A message with its safe HTML.
pub fn messages_json(messages: &[Message]) -> Vec<Value> {
    let one = |m: &Message| json!({"role": m.role, "content": m.content, "html": markdown::render(&m.content)});
    messages.iter().map(one).collect()
}

/// A completion without a word about who wrote it.
pub fn blind_json(completion: &Completion) -> Value {
    json!({"id": completion.id, "text": completion.text, "html": markdown::render(&completion.text)})
}

fn prompt_json(prompt: &Prompt) -> Value {
    json!({"id": prompt.id, "messages": messages_json(&prompt.messages), "lang": prompt.lang})
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NextQuery {
    set_id: Option<SetId>,
}

pub async fn next(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Query(query): Query<NextQuery>,
) -> ApiResult<Response> {
    let turn = match label::next(&state.services, &actor, query.set_id).await? {
        Next::Turn(turn) => turn,
        Next::Empty => return Ok((StatusCode::NO_CONTENT, [("x-queue", "empty")]).into_response()),
        Next::QuotaUsed => return Ok((StatusCode::NO_CONTENT, [("x-queue", "quota")]).into_response()),
    };
    Ok(axum::Json(turn_json(&actor, &turn)).into_response())
}

/// A leased set as the page gets it.
pub(super) fn turn_json(actor: &Actor, turn: &Turn) -> Value {
    let completions: Vec<_> = turn.completions.iter().map(blind_json).collect();
    json!({
        "assignment_id": turn.assignment.id,
        "lease_token": turn.assignment.lease_token,
        "expires_at": turn.assignment.expires_at,
        "set_id": turn.assignment.set_id,
        "kind": turn.kind,
        "prompt": prompt_json(&turn.prompt),
        "completions": completions,
        "guideline_version": turn.guideline_version,
        "me": {"name": actor.name, "done_today": turn.done_today, "done_total": turn.done_total},
        "queue": {"open": turn.queue_open},
        "onboarding": turn.onboarding,
    })
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Lease {
    pub lease_token: String,
}

pub async fn renew(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Path(id): Path<AssignmentId>,
    Json(body): Json<Lease>,
) -> ApiResult<axum::Json<Value>> {
    let expires_at = label::renew(&state.services, &actor, &id, &body.lease_token).await?;
    Ok(axum::Json(json!({"expires_at": expires_at})))
}

pub async fn release(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Path(id): Path<AssignmentId>,
    Json(body): Json<Lease>,
) -> ApiResult<StatusCode> {
    label::release(&state.services, &actor, &id, &body.lease_token).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JudgmentRequest {
    pub lease_token: Option<String>,
    /// `ranked`, `all_bad`, `unrankable` or `skip`.
    pub outcome: Outcome,
    /// Every completion of the set once, when ranked.
    #[serde(default)]
    pub items: Vec<Item>,
    pub strength: Option<Strength>,
    pub rationale: Option<String>,
    #[serde(default)]
    pub flags: Vec<Flag>,
    /// What the labeler would have answered: becomes a demonstration.
    pub ideal_answer: Option<String>,
    #[serde(default)]
    pub active_ms: i64,
    #[serde(default)]
    pub wall_ms: i64,
    pub idempotency_key: String,
    /// The judgment that this one corrects.
    pub revises: Option<JudgmentId>,
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Item {
    pub completion_id: CompletionId,
    /// 0 is best; equal tiers are a tie.
    pub tier: i64,
    /// 1 to 10.
    pub rating: Option<i64>,
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Flag {
    pub completion_id: Option<CompletionId>,
    pub code: String,
    pub note: Option<String>,
}

impl JudgmentRequest {
    pub fn into_word(self) -> Word {
        Word {
            lease_token: self.lease_token,
            outcome: self.outcome,
            items: self.items.into_iter().map(|i| (i.completion_id, i.tier, i.rating)).collect(),
            strength: self.strength,
            rationale: self.rationale,
            flags: self
                .flags
                .into_iter()
                .map(|f| JudgmentFlag { completion_id: f.completion_id, code: f.code, note: f.note })
                .collect(),
            ideal_answer: self.ideal_answer,
            active_ms: self.active_ms,
            wall_ms: self.wall_ms,
            idempotency_key: self.idempotency_key,
            revises: self.revises,
        }
    }
}

pub async fn submit(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Path(id): Path<AssignmentId>,
    Json(body): Json<JudgmentRequest>,
) -> ApiResult<axum::Json<Value>> {
    let (submitted, completions) = label::submit(&state.services, &actor, &id, body.into_word()).await?;
    Ok(axum::Json(submitted_json(&state.services, &submitted, &completions).await?))
}

/// The stored judgment, and who wrote what.
pub async fn submitted_json(
    services: &Services,
    submitted: &Submitted,
    completions: &[Completion],
) -> ApiResult<Value> {
    let mut reveal = Vec::new();
    for completion in completions {
        reveal.push(json!({"completion_id": completion.id, "model": label::author(services, completion).await?}));
    }
    let verdict = label::verdict(services, &submitted.judgment).await?;
    Ok(json!({"judgment": submitted.judgment, "replayed": submitted.replayed, "reveal": reveal, "verdict": verdict}))
}

/// The caller's own progress, pace and agreement.
pub async fn me(State(state): State<AppState>, Caller(actor): Caller) -> ApiResult<Response> {
    Ok(axum::Json(crate::service::own_page::figures(&state.services, &actor).await?).into_response())
}

/// `after` and `limit` of lists.
#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PageQuery {
    pub after: Option<String>,
    pub limit: Option<u32>,
}

impl PageQuery {
    /// # Errors
    /// As [`page`].
    pub fn page(self) -> ApiResult<Page> {
        page(self.after, self.limit)
    }
}

/// Rows a page when not said, and at most.
const ROWS: u32 = 50;
const MOST_ROWS: u32 = 500;

/// # Errors
/// 400 at `limit` outside 1 to 500.
pub fn page(after: Option<String>, limit: Option<u32>) -> ApiResult<Page> {
    Ok(Page { after, limit: rows(limit.map(i64::from))? })
}

/// The number of rows a page asks for.
///
/// # Errors
/// 400 at `limit` outside 1 to 500.
pub fn rows(limit: Option<i64>) -> ApiResult<i64> {
    let limit = limit.unwrap_or(i64::from(ROWS));
    if !(1..=i64::from(MOST_ROWS)).contains(&limit) {
        return Err(ApiError::bad("limit", format!("is {limit}; must be 1 to {MOST_ROWS}")));
    }
    Ok(limit)
}

pub async fn history(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Query(query): Query<PageQuery>,
) -> ApiResult<axum::Json<Value>> {
    let judgments = label::history(&state.services, &actor, query.page()?).await?;
    let next = judgments.last().map(|j| j.id.clone());
    Ok(axum::Json(json!({"data": judgments, "after": next})))
}

pub async fn reopen(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Path(id): Path<JudgmentId>,
) -> ApiResult<axum::Json<Value>> {
    let reopened = label::reopen(&state.services, &actor, &id).await?;
    let completions: Vec<_> = reopened.completions.iter().map(blind_json).collect();
    Ok(axum::Json(json!({
        "judgment": reopened.judgment,
        "assignment_id": reopened.judgment.assignment_id,
        "lease_token": reopened.lease_token,
        "set_id": reopened.judgment.set_id,
        "prompt": prompt_json(&reopened.prompt),
        "completions": completions,
    })))
}

pub async fn judgments(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Query(query): Query<PageQuery>,
) -> ApiResult<axum::Json<Value>> {
    let own = (actor.role < Role::Reviewer).then_some(&actor.labeler_id);
    let judgments = state.services.store.list_judgments(query.page()?, own).await?;
    let next = judgments.last().map(|j| j.id.clone());
    Ok(axum::Json(json!({"data": judgments, "after": next})))
}

pub async fn guidelines(State(state): State<AppState>) -> ApiResult<axum::Json<Value>> {
    let (text, version) = words::current(&state.services).await?;
    Ok(axum::Json(json!({"version": version, "html": markdown::render(&text)})))
}

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
use crate::service::label::{self, Next, Turn, Wanted, Word};
use crate::service::people::Actor;
use crate::service::{Services, browse, guidelines as words};
use crate::store::{NoLease, Page, Submitted};

/// A message with its safe HTML.
///
/// # Errors
/// 429 when too many texts wait to be rendered.
pub async fn messages_json(messages: &[Message]) -> ApiResult<Vec<Value>> {
    let texts: Vec<&str> = messages.iter().map(|m| m.content.as_str()).collect();
    let html = markdown::render_all(&texts).await?;
    let one = |(m, html): (&Message, _)| json!({"role": m.role, "content": m.content, "html": html});
    Ok(messages.iter().zip(html).map(one).collect())
}

/// Completions without a word about who wrote them.
///
/// # Errors
/// 429 when too many texts wait to be rendered.
pub async fn blind_json(completions: &[Completion]) -> ApiResult<Vec<Value>> {
    let texts: Vec<&str> = completions.iter().map(|c| c.text.as_str()).collect();
    let html = markdown::render_all(&texts).await?;
    Ok(completions.iter().zip(html).map(|(c, html)| one_blind(c, &html)).collect())
}

/// `cut_off_at` is the number of tokens when the length limit ended the completion.
fn one_blind(completion: &Completion, html: &str) -> Value {
    let cut = completion.finish_reason.as_deref() == Some("length");
    let tokens = completion.token_ids.len();
    json!({
        "id": completion.id,
        "text": completion.text,
        "html": html,
        "cut_off": cut,
        "cut_off_at": (cut && tokens > 0).then_some(tokens),
    })
}

async fn prompt_json(prompt: &Prompt) -> ApiResult<Value> {
    Ok(json!({"id": prompt.id, "messages": messages_json(&prompt.messages).await?, "lang": prompt.lang}))
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NextQuery {
    set_id: Option<SetId>,
    /// Give a set again that the caller holds already, before a new one: for a page that was opened anew.
    resume: Option<bool>,
    /// With `resume`: sets that the caller has at hand, separated by commas.
    except: Option<String>,
    /// Language of the guidelines: `en` or `zh`.
    lang: Option<String>,
}

impl NextQuery {
    fn wanted(self) -> ApiResult<Wanted> {
        let except: Vec<SetId> =
            self.except.iter().flat_map(|e| e.split(',')).filter(|e| !e.is_empty()).map(SetId::from).collect();
        let resume = self.resume.unwrap_or(false);
        if !resume && self.except.is_some() {
            return Err(ApiError::bad("except", "goes with resume=true"));
        }
        if except.len() > 64 {
            return Err(ApiError::bad("except", format!("has {} sets; at most 64", except.len())));
        }
        Ok(Wanted { set_id: self.set_id, resume: resume.then_some(except), lang: self.lang })
    }
}

/// The header `x-queue` of an answer without a set.
fn why_nothing(reason: NoLease) -> &'static str {
    match reason {
        NoLease::Empty => "empty",
        NoLease::Quota => "quota",
        NoLease::Judged => "judged",
        NoLease::Taken => "taken",
        NoLease::Closed => "closed",
    }
}

pub async fn next(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Query(query): Query<NextQuery>,
) -> ApiResult<Response> {
    let turn = match label::next(&state.services, &actor, query.wanted()?).await? {
        Next::Turn(turn) => turn,
        Next::Nothing(reason) => {
            return Ok((StatusCode::NO_CONTENT, [("x-queue", why_nothing(reason))]).into_response());
        }
    };
    Ok(axum::Json(turn_json(&actor, &turn).await?).into_response())
}

/// A leased set as the page gets it.
///
/// # Errors
/// 429 when too many texts wait to be rendered; the lease stands, and `resume` gives the set again.
pub(super) async fn turn_json(actor: &Actor, turn: &Turn) -> ApiResult<Value> {
    let completions = blind_json(&turn.completions).await?;
    Ok(json!({
        "assignment_id": turn.assignment.id,
        "lease_token": turn.assignment.lease_token,
        "expires_at": turn.assignment.expires_at,
        "set_id": turn.assignment.set_id,
        "kind": turn.kind,
        "prompt": prompt_json(&turn.prompt).await?,
        "completions": completions,
        "guideline_version": turn.guideline_version,
        "me": {
            "name": actor.name,
            "done_today": turn.counts.today,
            "done_total": turn.counts.total,
            "skipped_today": turn.counts.skipped_today,
        },
        "queue": {"open": turn.queue_open},
        "onboarding": turn.onboarding,
        "practice_number": turn.practice_number,
    }))
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
    /// Of the guidelines as they were shown.
    pub guideline_version: Option<String>,
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
            guideline_version: self.guideline_version,
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

/// The stored judgment, and who wrote what where the labeler may know.
pub async fn submitted_json(
    services: &Services,
    submitted: &Submitted,
    completions: &[Completion],
) -> ApiResult<Value> {
    let authors = label::reveal(services, &submitted.judgment, completions).await?;
    let reveal: Vec<_> = authors.iter().map(|(id, model)| json!({"completion_id": id, "model": model})).collect();
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
/// 400 at `limit` outside 1 to 500, and at an `after` that is no id: it would give the first page again, or none.
pub fn page(after: Option<String>, limit: Option<u32>) -> ApiResult<Page> {
    let is_id = |id: &String| id.len() == 26 && id.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_uppercase());
    if after.as_ref().is_some_and(|id| !is_id(id)) {
        return Err(ApiError::bad("after", "is no id; take it from `after` of the page before"));
    }
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
    let sets: Vec<SetId> = judgments.iter().map(|j| j.set_id.clone()).collect();
    let prompts = browse::previews(&state.services, &sets).await?;
    let one = |judgment: &Judgment| {
        let mut line = serde_json::to_value(judgment).unwrap_or_default();
        line["prompt"] = json!(prompts.get(&judgment.set_id));
        line
    };
    let data: Vec<Value> = judgments.iter().map(one).collect();
    Ok(axum::Json(json!({"data": data, "after": next})))
}

pub async fn reopen(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Path(id): Path<JudgmentId>,
) -> ApiResult<axum::Json<Value>> {
    let reopened = label::reopen(&state.services, &actor, &id).await?;
    let completions = blind_json(&reopened.completions).await?;
    // A revision with this knowledge is kept apart; who revises should know.
    let judged = &reopened.judgment;
    let revealed = state.services.store.reveals(&judged.set_id, &judged.labeler_id).await?;
    Ok(axum::Json(json!({
        "revealed": revealed,
        "judgment": reopened.judgment,
        "assignment_id": reopened.judgment.assignment_id,
        "lease_token": reopened.lease_token,
        "set_id": reopened.judgment.set_id,
        "prompt": prompt_json(&reopened.prompt).await?,
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

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GuidelinesQuery {
    /// `en` or `zh`; English for other languages.
    lang: Option<String>,
}

async fn guidelines_json(g: &words::Guidelines) -> ApiResult<Value> {
    let html = markdown::render_all(&[&g.text]).await?;
    Ok(json!({"version": g.version, "lang": g.lang, "since": g.since, "html": html.first()}))
}

pub async fn guidelines(
    State(state): State<AppState>,
    Query(query): Query<GuidelinesQuery>,
) -> ApiResult<axum::Json<Value>> {
    let current = words::current(&state.services, words::language(query.lang.as_deref())).await?;
    Ok(axum::Json(guidelines_json(&current).await?))
}

/// The texts in force for every language, and all that administrators wrote.
pub async fn all_guidelines(State(state): State<AppState>) -> ApiResult<axum::Json<Value>> {
    let mut current = Vec::new();
    for lang in words::LANGUAGES {
        let g = words::current(&state.services, lang).await?;
        let mut shown = guidelines_json(&g).await?;
        shown["text"] = json!(g.text);
        current.push(shown);
    }
    let versions: Vec<_> = words::versions(&state.services)
        .await?
        .into_iter()
        .map(|(g, version)| {
            json!({"lang": g.lang, "version": version, "text": g.text, "created": g.created, "created_by": g.created_by})
        })
        .collect();
    Ok(axum::Json(json!({"current": current, "versions": versions})))
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GuidelinesChange {
    /// `en` or `zh`.
    pub lang: String,
    /// Markdown; empty = back to the configured file or the built-in text.
    pub text: String,
}

pub async fn change_guidelines(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Json(body): Json<GuidelinesChange>,
) -> ApiResult<axum::Json<Value>> {
    let changed = words::change(&state.services, &actor, &body.lang, body.text).await?;
    Ok(axum::Json(guidelines_json(&changed).await?))
}

//! Sets for administrators and reviewers: draws in bulk, known answers, everybody's judgments, settling.

use axum::extract::State;
use axum::http::StatusCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::domain::*;
use crate::http::AppState;
use crate::http::admin::browse::LabelerName;
use crate::http::auth::Caller;
use crate::http::contract::{List, Paged};
use crate::http::error::ApiResult;
use crate::http::extract::{Json, Path, Query};
use crate::http::label::{CorrectedText, JudgmentRequest, PageQuery};
use crate::http::markdown;
use crate::http::shown::{ShownPrompt, tiers};
use crate::service::draw::{self, DrawRequest};
use crate::service::judge::ExpectedTier;
use crate::service::label::author;
use crate::service::learned::{self, LearnedRun};
use crate::service::review::{self, KnownAnswer};

pub async fn draw(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Json(body): Json<DrawRequest>,
) -> ApiResult<(StatusCode, axum::Json<SetDraw>)> {
    let draw = draw::start(&state.services, &actor, body).await?;
    Ok((StatusCode::ACCEPTED, axum::Json(draw)))
}

pub async fn draws(
    State(state): State<AppState>,
    Query(query): Query<PageQuery>,
) -> ApiResult<axum::Json<Paged<SetDraw>>> {
    let draws = draw::list(&state.services, query.page()?).await?;
    Ok(axum::Json(Paged::new(draws, |d| d.id.as_str())))
}

pub async fn get_draw(State(state): State<AppState>, Path(id): Path<DrawId>) -> ApiResult<axum::Json<SetDraw>> {
    Ok(axum::Json(draw::get(&state.services, &id).await?))
}

pub async fn cancel_draw(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Path(id): Path<DrawId>,
) -> ApiResult<axum::Json<SetDraw>> {
    Ok(axum::Json(draw::cancel(&state.services, &actor, &id).await?))
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KnownAnswerRequest {
    /// `gold` stays hidden from labelers; `calibration` is shown to them after the judgment.
    pub kind: SetKind,
    /// Every completion of the set once.
    pub tiers: Vec<Tier>,
    /// Explanation in Markdown; shown after the judgment of calibration sets.
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

/// A set with its authors and everybody's latest judgments.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ReviewedSet {
    /// The known answer; null for ordinary sets.
    pub known_answer: Option<KnownAnswerView>,
    pub set: ComparisonSet,
    pub prompt: ShownPrompt,
    /// In storage order.
    pub completions: Vec<AuthoredCompletion>,
    pub judgments: Vec<ReviewedJudgment>,
    /// Rankings by language models, which count nowhere unless a data set asks for them.
    pub judges: Vec<JudgeRanking>,
    /// The reviewer whose judgment data sets use instead of the others'.
    pub settled_by: Option<LabelerId>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct KnownAnswerView {
    pub tiers: Vec<ExpectedTier>,
    /// Markdown.
    pub explanation: Option<String>,
}

/// A completion with its author.
#[derive(Debug, Serialize, JsonSchema)]
pub struct AuthoredCompletion {
    pub id: CompletionId,
    /// `stop`, `length` or `abort`; null for texts that no model wrote.
    pub finish_reason: Option<String>,
    pub text: String,
    pub html: String,
    /// Name of the model version; `human`, `edit` or `import` for texts that no model wrote.
    pub author: String,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct ReviewedJudgment {
    pub judgment: Judgment,
    pub labeler: LabelerName,
    /// The latest correction of each completion that the labeler corrected.
    pub corrections: Vec<CorrectedText>,
}

/// A language model's ranking of the set.
#[derive(Debug, Serialize, JsonSchema)]
pub struct JudgeRanking {
    pub id: JudgmentId,
    pub labeler: LabelerName,
    /// What the model was told about good answers.
    pub criteria: String,
    /// 0 to 1.
    pub doubt: f64,
    pub items: Vec<ExpectedTier>,
    pub created: Micros,
}

pub async fn review(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Path(id): Path<SetId>,
) -> ApiResult<axum::Json<ReviewedSet>> {
    let services = &state.services;
    let disputed = review::disputed(services, &actor, &id).await?;
    let texts: Vec<&str> = disputed.completions.iter().map(|c| c.text.as_str()).collect();
    let mut completions = Vec::new();
    for (c, html) in disputed.completions.iter().zip(markdown::render_all(&texts).await?) {
        let author = author(services, c).await?;
        completions.push(AuthoredCompletion {
            id: c.id.clone(),
            finish_reason: c.finish_reason.clone(),
            text: c.text.clone(),
            html: html.to_string(),
            author,
        });
    }
    let mut judgments = Vec::new();
    for (judgment, labeler) in disputed.judgments {
        let of = |id: &CompletionId| {
            let corrects = |text: &Completion| text.parent_completion_id.as_ref() == Some(id);
            disputed.corrections.iter().rfind(|(author, text)| *author == labeler.id && corrects(text))
        };
        let correction = |id: &CompletionId| {
            of(id).map(|(_, text)| CorrectedText { completion_id: id.clone(), text: text.text.clone() })
        };
        let corrections = disputed.set.completion_ids.iter().filter_map(correction).collect();
        let labeler = LabelerName { id: labeler.id, name: labeler.name };
        judgments.push(ReviewedJudgment { judgment, labeler, corrections });
    }
    let judges = disputed.judges.into_iter().map(|(name, judgment)| JudgeRanking {
        id: judgment.id,
        labeler: LabelerName { id: judgment.labeler_id, name },
        criteria: judgment.criteria,
        doubt: judgment.doubt,
        items: tiers(judgment.items),
        created: judgment.created,
    });
    let judges = judges.collect();
    let known_answer =
        disputed.known.map(|known| KnownAnswerView { tiers: tiers(known.tiers), explanation: known.explanation });
    Ok(axum::Json(ReviewedSet {
        known_answer,
        set: disputed.set,
        prompt: ShownPrompt::new(&disputed.prompt).await?,
        completions,
        judgments,
        judges,
        settled_by: disputed.settled_by,
    }))
}

pub async fn runs(State(state): State<AppState>, Path(id): Path<SetId>) -> ApiResult<axum::Json<List<LearnedRun>>> {
    Ok(axum::Json(List { data: learned::of_set(&state.services, &id).await? }))
}

/// The stored judgment of a reviewer.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Settled {
    pub judgment: Judgment,
    /// Whether the idempotency key had been used before; then this is the earlier judgment.
    pub replayed: bool,
}

pub async fn settle(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Path(id): Path<SetId>,
    Json(body): Json<JudgmentRequest>,
) -> ApiResult<axum::Json<Settled>> {
    let submitted = review::settle(&state.services, &actor, &id, body.into_submission()).await?;
    Ok(axum::Json(Settled { judgment: submitted.judgment, replayed: submitted.replayed }))
}

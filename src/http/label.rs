//! The labeler's routes: lease, renew, release, judge, history.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::AppState;
use super::auth::Caller;
use super::contract::{List, Paged};
use super::error::{ApiError, ApiResult};
use super::extract::{Json, Path, Query};
use super::markdown;
use super::shown::{Author, BlindCompletion, LabelerPrompt, blind};
use crate::domain::*;
use crate::service::Services;
use crate::service::browse;
use crate::service::guidelines as words;
use crate::service::judge::{self, Judged, Submission, Verdict};
use crate::service::label::{self, Next, Onboarding, Turn, Wanted};
use crate::service::marks::Correction;
use crate::service::own_page::{self, OwnPage};
use crate::service::people::Actor;
use crate::service::projects;
use crate::service::visible;
use crate::store::{GuidelineVersion, NoLease, Page};

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NextQuery {
    set_id: Option<SetId>,
    /// Id or name of a project in which the caller labels; their first when absent. A named set is handed out from its own.
    project: Option<String>,
    /// Hand out a set that the caller holds already rather than a new one. Without it every request leases another set.
    resume: Option<bool>,
    /// With `resume`: sets that the page shows already, separated by commas.
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
            return Err(ApiError::bad("except", "requires resume=true"));
        }
        if except.len() > 64 {
            return Err(ApiError::bad("except", format!("has {} sets; at most 64", except.len())));
        }
        Ok(Wanted { set_id: self.set_id, project: self.project, resume: resume.then_some(except), lang: self.lang })
    }
}

/// The header `x-queue` of a response without a set: why there is none.
fn why_nothing(reason: NoLease) -> &'static str {
    match reason {
        NoLease::Empty => "empty",
        NoLease::Held => "held",
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
    Ok(axum::Json(LeasedSet::new(&state.services, &actor, &turn).await?).into_response())
}

/// A set that the caller holds a lease on, to be ranked.
#[derive(Debug, Serialize, JsonSchema)]
pub struct LeasedSet {
    pub assignment_id: AssignmentId,
    pub lease_token: String,
    /// µs UTC.
    pub expires_at: Micros,
    pub set_id: SetId,
    pub project_id: ProjectId,
    /// `normal`, or `calibration`: its expected answer is shown after the judgment. Gold sets read `normal`.
    pub kind: SetKind,
    pub prompt: LabelerPrompt,
    /// In the order in which they are shown.
    pub completions: Vec<BlindCompletion>,
    /// Version of the current guidelines, to be sent with the judgment.
    pub guideline_version: String,
    /// The active rubric: a judgment sends its version and its ratings. Null without one.
    pub rubric: Option<Rubric>,
    pub me: OwnCounts,
    pub queue: Queue,
    /// Progress with the first calibration sets; null when they are done.
    pub onboarding: Option<Onboarding>,
    /// Which of the onboarding's calibration sets this is, from 1; null for other sets.
    pub practice_number: Option<i64>,
}

/// The caller's own progress.
#[derive(Debug, Serialize, JsonSchema)]
pub struct OwnCounts {
    pub name: String,
    pub done_today: i64,
    pub done_total: i64,
    pub skipped_today: i64,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct Queue {
    /// Sets that the caller can still judge, this one included.
    pub open: i64,
}

impl LeasedSet {
    /// The set in the form of the response.
    ///
    /// # Errors
    /// 429 when too many texts wait to be rendered; the lease remains, and `resume` returns the set.
    pub(super) async fn new(services: &Services, actor: &Actor, turn: &Turn) -> ApiResult<Self> {
        Ok(Self {
            assignment_id: turn.assignment.id.clone(),
            lease_token: turn.assignment.lease_token.clone(),
            expires_at: turn.assignment.expires_at,
            set_id: turn.assignment.set_id.clone(),
            project_id: turn.project_id.clone(),
            kind: turn.kind,
            prompt: LabelerPrompt::new(&turn.prompt).await?,
            completions: blind(services, &turn.prompt, &turn.completions).await?,
            guideline_version: turn.guideline_version.clone(),
            rubric: turn.rubric.clone(),
            me: OwnCounts {
                name: actor.name.clone(),
                done_today: turn.counts.today,
                done_total: turn.counts.total,
                skipped_today: turn.counts.skipped_today,
            },
            queue: Queue { open: turn.queue_open },
            onboarding: turn.onboarding,
            practice_number: turn.practice_number,
        })
    }
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
) -> ApiResult<axum::Json<Renewed>> {
    let expires_at = label::renew(&state.services, &actor, &id, &body.lease_token).await?;
    Ok(axum::Json(Renewed { expires_at }))
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct Renewed {
    /// µs UTC.
    pub expires_at: Micros,
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
    /// The labeler's ideal answer; stored as a demonstration.
    pub ideal_answer: Option<String>,
    #[serde(default)]
    pub active_ms: i64,
    #[serde(default)]
    pub wall_ms: i64,
    /// A name for this judgment, 1 to 200 bytes: sent again under it, the judgment is stored once and the answer is the
    /// first one. Another judgment under it is refused (`idempotency_key_reused`).
    pub idempotency_key: String,
    /// The judgment that this one corrects.
    pub revises: Option<JudgmentId>,
    /// Version of the guidelines that were shown.
    pub guideline_version: Option<String>,
    /// Of the rubric as it was shown. Without it, ratings are by the active rubric.
    pub rubric_version: Option<String>,
    /// Each completion at most once on each dimension of the rubric.
    #[serde(default)]
    pub ratings: Vec<Rating>,
    /// Spans that are wrong, at most 64; those of one completion do not overlap.
    #[serde(default)]
    pub spans: Vec<Span>,
    /// Completions as they should be, each at most once; stored as demonstrations that name the completion they correct.
    #[serde(default)]
    pub corrections: Vec<CorrectedText>,
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

/// A completion's text as the labeler would have it.
#[derive(Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CorrectedText {
    pub completion_id: CompletionId,
    pub text: String,
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Flag {
    pub completion_id: Option<CompletionId>,
    pub code: String,
    pub note: Option<String>,
}

impl JudgmentRequest {
    pub fn into_submission(self) -> Submission {
        Submission {
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
            rubric_version: self.rubric_version,
            ratings: self.ratings,
            spans: self.spans,
            corrections: self
                .corrections
                .into_iter()
                .map(|c| Correction { completion_id: c.completion_id, text: c.text })
                .collect(),
        }
    }
}

pub async fn submit(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Path(id): Path<AssignmentId>,
    Json(body): Json<JudgmentRequest>,
) -> ApiResult<axum::Json<StoredJudgment>> {
    Ok(axum::Json(judge::submit(&state.services, &actor, &id, body.into_submission()).await?.into()))
}

/// The stored judgment, and what is revealed to its labeler.
#[derive(Debug, Serialize, JsonSchema)]
pub struct StoredJudgment {
    pub judgment: Judgment,
    /// Whether the idempotency key had been used before; then this is the earlier judgment.
    pub replayed: bool,
    /// Authors of the completions; empty unless `labeling.reveal` is on.
    pub reveal: Vec<Author>,
    /// Comparison with the expected answer, for calibration sets; else null.
    pub verdict: Option<Verdict>,
}

impl From<Judged> for StoredJudgment {
    fn from(judged: Judged) -> Self {
        let Judged { submitted, authors, verdict } = judged;
        let reveal = authors.into_iter().map(|(completion_id, model)| Author { completion_id, model }).collect();
        Self { judgment: submitted.judgment, replayed: submitted.replayed, reveal, verdict }
    }
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProjectQuery {
    /// Id or name of the project; the first when absent.
    pub project: Option<String>,
}

/// The caller's own progress, pace and agreement.
pub async fn me(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Query(query): Query<ProjectQuery>,
) -> ApiResult<axum::Json<OwnPage>> {
    Ok(axum::Json(own_page::figures(&state.services, &actor, query.project.as_deref()).await?))
}

/// The projects in which the caller labels.
pub async fn projects(State(state): State<AppState>, Caller(actor): Caller) -> ApiResult<axum::Json<List<Project>>> {
    let own = projects::of_caller(&state.services, &actor).await?;
    Ok(axum::Json(List { data: own.into_iter().map(|p| p.project).collect() }))
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

/// Default and largest number of rows in a page.
const ROWS: u32 = 50;
const MOST_ROWS: u32 = 500;

/// # Errors
/// 400 at `limit` outside 1 to 500, and at an `after` that is not a valid id.
pub fn page(after: Option<String>, limit: Option<u32>) -> ApiResult<Page> {
    let is_id = |id: &String| id.len() == 26 && id.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_uppercase());
    if after.as_ref().is_some_and(|id| !is_id(id)) {
        return Err(ApiError::bad("after", "is not a valid id; take it from `after` of the previous page"));
    }
    Ok(Page { after, limit: rows(limit.map(i64::from))? })
}

/// The number of rows in a page.
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
) -> ApiResult<axum::Json<Paged<PastJudgment>>> {
    let judgments = label::history(&state.services, &actor, query.page()?).await?;
    let sets: Vec<SetId> = judgments.iter().map(|j| j.set_id.clone()).collect();
    let prompts = browse::previews(&state.services, &sets).await?;
    let past = |judgment: Judgment| PastJudgment { prompt: prompts.get(&judgment.set_id).cloned(), judgment };
    let data = judgments.into_iter().map(past).collect();
    Ok(axum::Json(Paged::new(data, |past: &PastJudgment| past.judgment.id.as_str())))
}

/// One of the caller's own judgments.
#[derive(Debug, Serialize, JsonSchema)]
pub struct PastJudgment {
    #[serde(flatten)]
    pub judgment: Judgment,
    /// One line of the prompt.
    pub prompt: Option<String>,
}

/// A judgment with its set as it was shown, to be revised.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ReopenedJudgment {
    /// What has been revealed to the labeler about the set; a revision with this knowledge does not count as blind.
    pub revealed: Vec<Knowledge>,
    pub judgment: Judgment,
    pub assignment_id: Option<AssignmentId>,
    pub lease_token: Option<String>,
    pub set_id: SetId,
    pub prompt: LabelerPrompt,
    pub completions: Vec<BlindCompletion>,
    /// The rubric of the judgment, or the active one for a judgment without a rubric.
    pub rubric: Option<Rubric>,
}

pub async fn reopen(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Path(id): Path<JudgmentId>,
) -> ApiResult<axum::Json<ReopenedJudgment>> {
    let reopened = label::reopen(&state.services, &actor, &id).await?;
    let judgment = reopened.judgment;
    Ok(axum::Json(ReopenedJudgment {
        revealed: reopened.revealed,
        assignment_id: judgment.assignment_id.clone(),
        lease_token: reopened.lease_token,
        set_id: judgment.set_id.clone(),
        judgment,
        prompt: LabelerPrompt::new(&reopened.prompt).await?,
        completions: blind(&state.services, &reopened.prompt, &reopened.completions).await?,
        rubric: reopened.rubric,
    }))
}

pub async fn judgments(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Query(query): Query<PageQuery>,
) -> ApiResult<axum::Json<Paged<Judgment>>> {
    let judgments = visible::judgments(&state.services, &actor, query.page()?).await?;
    Ok(axum::Json(Paged::new(judgments, |j| j.id.as_str())))
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GuidelinesQuery {
    /// `en` or `zh`; English for other languages.
    lang: Option<String>,
    /// Id or name of the project; the first when absent.
    project: Option<String>,
}

/// The current guidelines of one language.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ShownGuidelines {
    pub version: String,
    pub lang: &'static str,
    /// When an administrator wrote them (µs UTC); null for the configured file and the built-in text.
    pub since: Option<Micros>,
    pub html: String,
}

impl ShownGuidelines {
    /// # Errors
    /// 429 when too many texts wait to be rendered.
    async fn new(g: &words::Guidelines) -> ApiResult<Self> {
        let html = markdown::render_all(&[&g.text]).await?.concat();
        Ok(Self { version: g.version.clone(), lang: g.lang, since: g.since, html })
    }
}

/// The current guidelines of every language, and all stored versions.
#[derive(Debug, Serialize, JsonSchema)]
pub struct AllGuidelines {
    pub current: Vec<EditableGuidelines>,
    pub versions: Vec<FormerGuidelines>,
}

/// Current guidelines with their source.
#[derive(Debug, Serialize, JsonSchema)]
pub struct EditableGuidelines {
    #[serde(flatten)]
    pub shown: ShownGuidelines,
    /// Markdown.
    pub text: String,
}

/// A stored version of guidelines.
#[derive(Debug, Serialize, JsonSchema)]
pub struct FormerGuidelines {
    pub lang: String,
    /// Null when the version returned to the configured file or the built-in text.
    pub version: Option<String>,
    /// Markdown.
    pub text: String,
    pub created: Micros,
    pub created_by: LabelerId,
}

pub async fn guidelines(
    State(state): State<AppState>,
    Query(query): Query<GuidelinesQuery>,
) -> ApiResult<axum::Json<ShownGuidelines>> {
    let project = projects::named(&state.services, query.project.as_deref()).await?;
    let current = words::current(&state.services, &project, words::language(query.lang.as_deref())).await?;
    Ok(axum::Json(ShownGuidelines::new(&current).await?))
}

/// The current texts of every language, and all stored versions.
pub async fn all_guidelines(
    State(state): State<AppState>,
    Query(query): Query<ProjectQuery>,
) -> ApiResult<axum::Json<AllGuidelines>> {
    let project = projects::named(&state.services, query.project.as_deref()).await?;
    let mut current = Vec::new();
    for lang in words::LANGUAGES {
        let g = words::current(&state.services, &project, lang).await?;
        current.push(EditableGuidelines { shown: ShownGuidelines::new(&g).await?, text: g.text });
    }
    let former = |(g, version): (GuidelineVersion, Option<String>)| FormerGuidelines {
        lang: g.lang,
        version,
        text: g.text,
        created: g.created,
        created_by: g.created_by,
    };
    let versions = words::versions(&state.services, &project).await?.into_iter().map(former).collect();
    Ok(axum::Json(AllGuidelines { current, versions }))
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GuidelinesChange {
    /// `en` or `zh`.
    pub lang: String,
    /// Markdown; empty = back to the text of the first project, the configured file or the built-in text.
    pub text: String,
    /// Id or name of the project; the first when absent.
    pub project: Option<String>,
}

pub async fn change_guidelines(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Json(body): Json<GuidelinesChange>,
) -> ApiResult<axum::Json<ShownGuidelines>> {
    let project = projects::named(&state.services, body.project.as_deref()).await?;
    let changed = words::change(&state.services, &actor, &project, &body.lang, body.text).await?;
    Ok(axum::Json(ShownGuidelines::new(&changed).await?))
}

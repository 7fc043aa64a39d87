//! Lists for the pages: sets and judgments that can be searched, filtered and paged, with their prompts.

use axum::extract::State;
use axum::http::StatusCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::domain::*;
use crate::http::AppState;
use crate::http::auth::Caller;
use crate::http::contract::Searched;
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::{Json, Query};
use crate::http::label::page;
use crate::service::{browse, projects, review};
use crate::store::{JudgmentFilter, JudgmentRow, SetFilter, SetRow};

/// Selection policies of sets.
const POLICIES: &[&str] = &["random", "uncertainty", "versus", "stored", "disagreement", "ask", "versions", "import"];

/// Most sets that one request may take out of the queue.
const MOST: usize = 500;

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SetsQuery {
    status: Option<SetStatus>,
    kind: Option<SetKind>,
    /// `random`, `uncertainty`, `versus`, `stored`, `disagreement`, `ask`, `versions` or `import`.
    policy: Option<String>,
    /// Text in the prompt.
    q: Option<String>,
    /// Id or name of a project; all when absent.
    project: Option<String>,
    /// Only sets judged by this labeler.
    labeler: Option<LabelerId>,
    /// Only sets that people rank differently.
    #[serde(default)]
    disputed: bool,
    /// Only open sets that no active labeler can judge any more.
    #[serde(default)]
    stuck: bool,
    after: Option<String>,
    limit: Option<u32>,
}

fn text(q: Option<String>) -> Option<String> {
    q.map(|q| q.trim().to_owned()).filter(|q| !q.is_empty())
}

/// A set with its prompt and progress.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ListedSet {
    #[serde(flatten)]
    pub set: ComparisonSet,
    /// One line of the prompt.
    pub prompt: String,
    /// Number of people who judged it, and of those who skipped it.
    pub judged: i64,
    pub skipped: i64,
    /// Current leases.
    pub held: i64,
    /// Number of completions that end at the length limit.
    pub cut_off: i64,
}

impl From<(SetRow, String)> for ListedSet {
    fn from((row, prompt): (SetRow, String)) -> Self {
        let SetRow { set, judged, skipped, held, cut_off, .. } = row;
        Self { set, prompt, judged, skipped, held, cut_off }
    }
}

pub async fn sets(
    State(state): State<AppState>,
    Query(query): Query<SetsQuery>,
) -> ApiResult<axum::Json<Searched<ListedSet>>> {
    let SetsQuery { status, kind, policy, q, project, labeler, disputed, stuck, after, limit } = query;
    if let Some(policy) = policy.as_deref().filter(|policy| !POLICIES.contains(policy)) {
        return Err(ApiError::bad("policy", unknown_name("policy", policy, POLICIES)));
    }
    let project = projects::filter(&state.services, project.as_deref()).await?;
    let filter = SetFilter { project, status, kind, policy, text: text(q), labeler_id: labeler, disputed, stuck };
    Ok(axum::Json(browse::sets(&state.services, &filter, page(after, limit)?).await?.into()))
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JudgmentsQuery {
    labeler: Option<LabelerId>,
    set: Option<SetId>,
    kind: Option<SetKind>,
    outcome: Option<Outcome>,
    /// Text in the prompt or in the rationale.
    q: Option<String>,
    /// Id or name of a project; all when absent.
    project: Option<String>,
    after: Option<String>,
    limit: Option<u32>,
}

/// A current judgment with the prompt it is about.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ListedJudgment {
    pub id: JudgmentId,
    pub set_id: SetId,
    pub kind: SetKind,
    /// One line of the prompt.
    pub prompt: String,
    pub labeler: LabelerName,
    pub revision: i64,
    pub outcome: Outcome,
    pub strength: Option<Strength>,
    pub rationale: Option<String>,
    /// Active time, ms; null when it is not known.
    pub active_ms: Option<i64>,
    /// In shown order.
    pub items: Vec<ListedItem>,
    pub created: Micros,
}

/// Id and name of a person.
#[derive(Debug, Serialize, JsonSchema)]
pub struct LabelerName {
    pub id: LabelerId,
    pub name: String,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct ListedItem {
    pub completion_id: CompletionId,
    /// 0 is best; equal tiers are a tie.
    pub tier: i64,
    pub shown_position: i64,
}

impl From<(JudgmentRow, String)> for ListedJudgment {
    fn from((row, prompt): (JudgmentRow, String)) -> Self {
        let item = |(completion_id, tier, shown_position)| ListedItem { completion_id, tier, shown_position };
        Self {
            id: row.id,
            set_id: row.set_id,
            kind: row.kind,
            prompt,
            labeler: LabelerName { id: row.labeler_id, name: row.labeler },
            revision: row.revision,
            outcome: row.outcome,
            strength: row.strength,
            rationale: row.rationale,
            active_ms: (row.active_ms > 0).then_some(row.active_ms),
            items: row.items.into_iter().map(item).collect(),
            created: row.created,
        }
    }
}

pub async fn judgments(
    State(state): State<AppState>,
    Query(query): Query<JudgmentsQuery>,
) -> ApiResult<axum::Json<Searched<ListedJudgment>>> {
    let JudgmentsQuery { labeler, set, kind, outcome, q, project, after, limit } = query;
    let project = projects::filter(&state.services, project.as_deref()).await?;
    let filter = JudgmentFilter { labeler_id: labeler, set_id: set, kind, outcome, text: text(q), project };
    Ok(axum::Json(browse::judgments(&state.services, &filter, page(after, limit)?).await?.into()))
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RetireRequest {
    /// 1 to 500 sets.
    pub ids: Vec<SetId>,
}

pub async fn retire(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Json(body): Json<RetireRequest>,
) -> ApiResult<StatusCode> {
    if body.ids.is_empty() || body.ids.len() > MOST {
        return Err(ApiError::bad("ids", format!("has {} sets; must have 1 to {MOST}", body.ids.len())));
    }
    review::retire_sets(&state.services, &actor, &body.ids).await?;
    Ok(StatusCode::NO_CONTENT)
}

//! Lists for the pages: sets and judgments that can be searched, filtered and paged, with their prompts.

use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::domain::*;
use crate::http::AppState;
use crate::http::auth::Caller;
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::{Json, Query};
use crate::http::label::page;
use crate::service::{browse, review};
use crate::store::{JudgmentFilter, SetFilter};

/// Where sets come from.
const POLICIES: &[&str] = &["random", "uncertainty", "versus", "stored", "disagreement", "ask", "versions", "import"];

/// Sets that one request may take out of the queue.
const MOST: usize = 500;

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SetsQuery {
    status: Option<SetStatus>,
    kind: Option<SetKind>,
    /// `random`, `uncertainty`, `versus`, `stored`, `disagreement`, `ask`, `versions` or `import`.
    policy: Option<String>,
    /// Text that the prompt holds.
    q: Option<String>,
    /// Judged by this labeler.
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

pub async fn sets(State(state): State<AppState>, Query(query): Query<SetsQuery>) -> ApiResult<axum::Json<Value>> {
    let SetsQuery { status, kind, policy, q, labeler, disputed, stuck, after, limit } = query;
    if let Some(policy) = policy.as_deref().filter(|policy| !POLICIES.contains(policy)) {
        return Err(ApiError::bad("policy", unknown_name("policy", policy, POLICIES)));
    }
    let filter = SetFilter { status, kind, policy, text: text(q), labeler_id: labeler, disputed, stuck };
    let (rows, total) = browse::sets(&state.services, &filter, page(after, limit)?).await?;
    let next = rows.last().map(|(row, _)| row.set.id.clone());
    let one = |(row, prompt): (crate::store::SetRow, String)| {
        let mut set = serde_json::to_value(&row.set).unwrap_or_default();
        set["prompt"] = json!(prompt);
        set["judged"] = json!(row.judged);
        set["skipped"] = json!(row.skipped);
        set["held"] = json!(row.held);
        set["cut_off"] = json!(row.cut_off);
        set
    };
    let data: Vec<Value> = rows.into_iter().map(one).collect();
    Ok(axum::Json(json!({"data": data, "after": next, "total": total})))
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JudgmentsQuery {
    labeler: Option<LabelerId>,
    set: Option<SetId>,
    kind: Option<SetKind>,
    outcome: Option<Outcome>,
    /// Text that the prompt or the reason given holds.
    q: Option<String>,
    after: Option<String>,
    limit: Option<u32>,
}

pub async fn judgments(
    State(state): State<AppState>,
    Query(query): Query<JudgmentsQuery>,
) -> ApiResult<axum::Json<Value>> {
    let JudgmentsQuery { labeler, set, kind, outcome, q, after, limit } = query;
    let filter = JudgmentFilter { labeler_id: labeler, set_id: set, kind, outcome, text: text(q) };
    let (rows, total) = browse::judgments(&state.services, &filter, page(after, limit)?).await?;
    let next = rows.last().map(|(row, _)| row.id.clone());
    let one = |(row, prompt): (crate::store::JudgmentRow, String)| {
        let items: Vec<Value> = row
            .items
            .iter()
            .map(|(id, tier, shown)| json!({"completion_id": id, "tier": tier, "shown_position": shown}))
            .collect();
        json!({
            "id": row.id, "set_id": row.set_id, "kind": row.kind, "prompt": prompt,
            "labeler": {"id": row.labeler_id, "name": row.labeler},
            "revision": row.revision, "outcome": row.outcome, "strength": row.strength, "rationale": row.rationale,
            "active_ms": (row.active_ms > 0).then_some(row.active_ms), "items": items, "created": row.created,
        })
    };
    let data: Vec<Value> = rows.into_iter().map(one).collect();
    Ok(axum::Json(json!({"data": data, "after": next, "total": total})))
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
        return Err(ApiError::bad("ids", format!("holds {} sets; must hold 1 to {MOST}", body.ids.len())));
    }
    review::retire_sets(&state.services, &actor, &body.ids).await?;
    Ok(StatusCode::NO_CONTENT)
}

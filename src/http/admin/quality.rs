//! Figures about the human judgments, for reviewers and administrators.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;

use crate::domain::SetKind;
use crate::http::AppState;
use crate::http::error::ApiResult;
use crate::http::extract::Query;
use crate::service::quality::{self, Scope};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QualityQuery {
    kind: Option<SetKind>,
    days: Option<u32>,
    replicates: Option<usize>,
    seed: Option<u64>,
    length_controlled: Option<bool>,
    limit: Option<usize>,
}

impl QualityQuery {
    fn scope(&self) -> Scope {
        Scope { kind: self.kind, days: self.days, replicates: self.replicates, seed: self.seed }
    }
}

pub async fn report(State(state): State<AppState>, Query(query): Query<QualityQuery>) -> ApiResult<Response> {
    Ok(axum::Json(quality::report(&state.services, query.scope()).await?).into_response())
}

pub async fn versions(State(state): State<AppState>, Query(query): Query<QualityQuery>) -> ApiResult<Response> {
    let controlled = query.length_controlled.unwrap_or(false);
    Ok(axum::Json(quality::versions(&state.services, query.scope(), controlled).await?).into_response())
}

pub async fn consensus(State(state): State<AppState>, Query(query): Query<QualityQuery>) -> ApiResult<Response> {
    let mut sets = quality::consensus(&state.services, query.scope()).await?;
    let total = sets.len();
    sets.truncate(query.limit.unwrap_or(50).clamp(1, 1000));
    let ids: Vec<_> = sets.iter().map(|s| s.set_id.clone()).collect();
    let prompts = crate::service::browse::previews(&state.services, &ids).await?;
    let one = |set: &crate::eval::quality::SetConsensus| {
        let mut row = serde_json::to_value(set).unwrap_or_default();
        row["prompt"] = json!(prompts.get(&set.set_id));
        row
    };
    let data: Vec<_> = sets.iter().map(one).collect();
    Ok(axum::Json(json!({"data": data, "total": total})).into_response())
}

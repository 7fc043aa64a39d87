//! Figures about the human judgments, for reviewers and administrators.

use axum::extract::State;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::domain::SetKind;
use crate::eval::quality::{Report, SetConsensus};
use crate::http::AppState;
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::Query;
use crate::service::judges::JudgesReport;
use crate::service::projects;
use crate::service::quality::{self, RatingsReport, Scope, VersionTable};

/// The judgments in the figures, and how intervals are computed.
#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReportQuery {
    /// `normal`, `gold` or `calibration` sets; absent = all.
    kind: Option<SetKind>,
    /// Only the last N days.
    days: Option<u32>,
    /// Id or name of a project; all when absent.
    project: Option<String>,
    /// Bootstrap replicates.
    replicates: Option<usize>,
    /// Seed of the bootstrap. Default 0.
    seed: Option<u64>,
}

/// The judgments in the figures, how intervals are computed, and whether the effect of length is removed.
#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VersionsQuery {
    /// `normal`, `gold` or `calibration` sets; absent = all.
    kind: Option<SetKind>,
    /// Only the last N days.
    days: Option<u32>,
    /// Id or name of a project; all when absent.
    project: Option<String>,
    /// Bootstrap replicates.
    replicates: Option<usize>,
    /// Seed of the bootstrap. Default 0.
    seed: Option<u64>,
    /// Remove the effect of length from the strengths. Default false.
    length_controlled: Option<bool>,
}

/// The judgments in the figures, how intervals are computed, and the number of listed sets.
#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConsensusQuery {
    /// `normal`, `gold` or `calibration` sets; absent = all.
    kind: Option<SetKind>,
    /// Only the last N days.
    days: Option<u32>,
    /// Id or name of a project; all when absent.
    project: Option<String>,
    /// Bootstrap replicates.
    replicates: Option<usize>,
    /// Seed of the bootstrap. Default 0.
    seed: Option<u64>,
    /// 1 to 1000; default 50.
    limit: Option<usize>,
}

impl ReportQuery {
    async fn scope(self, state: &AppState) -> ApiResult<Scope> {
        let Self { kind, days, project, replicates, seed } = self;
        let project = projects::filter(&state.services, project.as_deref()).await?;
        Ok(Scope { kind, days, project, replicates, seed })
    }
}

pub async fn report(State(state): State<AppState>, Query(query): Query<ReportQuery>) -> ApiResult<axum::Json<Report>> {
    let scope = query.scope(&state).await?;
    Ok(axum::Json(quality::report(&state.services, scope).await?))
}

pub async fn versions(
    State(state): State<AppState>,
    Query(query): Query<VersionsQuery>,
) -> ApiResult<axum::Json<VersionTable>> {
    let VersionsQuery { kind, days, project, replicates, seed, length_controlled } = query;
    let scope = ReportQuery { kind, days, project, replicates, seed }.scope(&state).await?;
    let controlled = length_controlled.unwrap_or(false);
    Ok(axum::Json(quality::versions(&state.services, scope, controlled).await?))
}

pub async fn ratings(
    State(state): State<AppState>,
    Query(query): Query<ReportQuery>,
) -> ApiResult<axum::Json<RatingsReport>> {
    let scope = query.scope(&state).await?;
    Ok(axum::Json(quality::ratings(&state.services, scope).await?))
}

pub async fn judges(
    State(state): State<AppState>,
    Query(query): Query<ReportQuery>,
) -> ApiResult<axum::Json<JudgesReport>> {
    let scope = query.scope(&state).await?;
    Ok(axum::Json(crate::service::judges::report(&state.services, scope).await?))
}

/// The consensus on a set with its prompt.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ListedConsensus {
    #[serde(flatten)]
    pub consensus: SetConsensus,
    /// One line of the prompt.
    pub prompt: Option<String>,
}

/// Ranked sets, the most disputed first.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ConsensusList {
    pub data: Vec<ListedConsensus>,
    /// Number of all ranked sets.
    pub total: usize,
}

pub async fn consensus(
    State(state): State<AppState>,
    Query(query): Query<ConsensusQuery>,
) -> ApiResult<axum::Json<ConsensusList>> {
    let ConsensusQuery { kind, days, project, replicates, seed, limit } = query;
    let limit = limit.unwrap_or(50);
    if !(1..=1000).contains(&limit) {
        return Err(ApiError::bad("limit", format!("is {limit}; must be 1 to 1000")));
    }
    let scope = ReportQuery { kind, days, project, replicates, seed }.scope(&state).await?;
    let mut sets = quality::consensus(&state.services, scope).await?;
    let total = sets.len();
    sets.truncate(limit);
    let ids: Vec<_> = sets.iter().map(|s| s.set_id.clone()).collect();
    let mut prompts = crate::service::browse::previews(&state.services, &ids).await?;
    let listed = |consensus: SetConsensus| ListedConsensus { prompt: prompts.remove(&consensus.set_id), consensus };
    Ok(axum::Json(ConsensusList { data: sets.into_iter().map(listed).collect(), total }))
}

//! Administrators' routes.

pub mod browse;
pub mod jobs;
pub mod models;
pub mod people;
pub mod projects;
pub mod quality;
pub mod retention;
pub mod sets;
pub mod settings;
pub mod transfer;
pub mod webhooks;

use axum::extract::State;
use serde::Deserialize;

use super::AppState;
use super::error::{ApiError, ApiResult};
use super::extract::Query;
use crate::service;
use crate::service::overview::{self, Flow, Overview};

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OverviewQuery {
    /// Id or name of a project whose amounts are added.
    project: Option<String>,
}

pub async fn overview(
    State(state): State<AppState>,
    Query(query): Query<OverviewQuery>,
) -> ApiResult<axum::Json<Overview>> {
    Ok(axum::Json(overview::overview(&state.services, query.project.as_deref()).await?))
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FlowQuery {
    /// 1 to 366; default 30.
    days: Option<i64>,
    /// Id or name of a project; all when absent.
    project: Option<String>,
}

pub async fn throughput(State(state): State<AppState>, Query(query): Query<FlowQuery>) -> ApiResult<axum::Json<Flow>> {
    let days = query.days.unwrap_or(30);
    if !(1..=366).contains(&days) {
        return Err(ApiError::bad("days", format!("is {days}; must be 1 to 366")));
    }
    let project = service::projects::filter(&state.services, query.project.as_deref()).await?;
    Ok(axum::Json(overview::flow(&state.services, days, project.as_ref()).await?))
}

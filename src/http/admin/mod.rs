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
use crate::service::overview::{Flow, Overview};

pub async fn overview(State(state): State<AppState>) -> ApiResult<axum::Json<Overview>> {
    Ok(axum::Json(crate::service::overview::overview(&state.services).await?))
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FlowQuery {
    /// 1 to 366; default 30.
    days: Option<i64>,
}

pub async fn throughput(State(state): State<AppState>, Query(query): Query<FlowQuery>) -> ApiResult<axum::Json<Flow>> {
    let days = query.days.unwrap_or(30);
    if !(1..=366).contains(&days) {
        return Err(ApiError::bad("days", format!("is {days}; must be 1 to 366")));
    }
    Ok(axum::Json(crate::service::overview::flow(&state.services, days).await?))
}

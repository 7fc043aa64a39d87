//! Administrators' routes.

pub mod jobs;
pub mod models;
pub mod people;
pub mod transfer;

use axum::extract::State;
use axum::response::{IntoResponse, Response};

use super::AppState;
use super::error::ApiResult;

pub async fn overview(State(state): State<AppState>) -> ApiResult<Response> {
    Ok(axum::Json(crate::service::overview::overview(&state.services).await?).into_response())
}

//! What is kept how long, what goes by the limits of now, and removing it.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use crate::http::AppState;
use crate::http::auth::Caller;
use crate::http::error::ApiResult;
use crate::service::retention;

pub async fn show(State(state): State<AppState>) -> ApiResult<axum::Json<Value>> {
    Ok(axum::Json(retention::describe(&state.services).await?))
}

pub async fn run(State(state): State<AppState>, Caller(actor): Caller) -> ApiResult<Response> {
    let progress = retention::start(&state.services, &actor)?;
    Ok((StatusCode::ACCEPTED, axum::Json(progress)).into_response())
}

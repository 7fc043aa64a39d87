//! Retention: the limits, their effect, and starting a removal.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use crate::http::AppState;
use crate::http::auth::Caller;
use crate::http::error::ApiResult;
use crate::service::retention::{self, Progress, Retention};

pub async fn show(State(state): State<AppState>) -> ApiResult<Json<Retention>> {
    Ok(Json(retention::describe(&state.services).await?))
}

pub async fn run(State(state): State<AppState>, Caller(actor): Caller) -> ApiResult<(StatusCode, Json<Progress>)> {
    Ok((StatusCode::ACCEPTED, Json(retention::start(&state.services, &actor)?)))
}

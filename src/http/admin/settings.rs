//! Settings with their explanations, changes while running, and the canary.

use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::Value;

use crate::http::AppState;
use crate::http::auth::Caller;
use crate::http::contract::List;
use crate::http::error::ApiResult;
use crate::http::extract::Json;
use crate::service::live::{self, Described, Usage};

pub async fn list(State(state): State<AppState>) -> ApiResult<axum::Json<List<Described>>> {
    Ok(axum::Json(List { data: live::describe(&state.services).await? }))
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// `section.key`, one of those with `"live": true`.
    pub name: String,
    /// `null` = the value of file and environment.
    pub value: Value,
}

pub async fn change(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Json(body): Json<Change>,
) -> ApiResult<StatusCode> {
    let value = (!body.value.is_null()).then_some(body.value);
    live::set(&state.services, &actor, &body.name, value).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NewCanary {
    /// A candidate policy, by name or id.
    pub model: String,
    /// Share of the requests that name no model, above 0 and at most 1.
    pub share: f64,
}

pub async fn start_canary(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Json(body): Json<NewCanary>,
) -> ApiResult<axum::Json<live::Canary>> {
    Ok(axum::Json(live::start_canary(&state.services, &actor, &body.model, body.share).await?))
}

pub async fn end_canary(State(state): State<AppState>, Caller(actor): Caller) -> ApiResult<StatusCode> {
    live::end_canary(&state.services, &actor).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Use of each version and feedback on it, since the canary began (else over the last day).
pub async fn usage(State(state): State<AppState>) -> ApiResult<axum::Json<Usage>> {
    Ok(axum::Json(live::usage(&state.services).await?))
}

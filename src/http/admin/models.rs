//! Model versions: list, promote, roll back, retire.

use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::domain::{ModelKind, ModelVersion};
use crate::http::AppState;
use crate::http::auth::Caller;
use crate::http::error::ApiResult;
use crate::http::extract::{OptionalJson, Path};
use crate::service::{catalogue, evidence, publish};

pub async fn list(State(state): State<AppState>) -> ApiResult<axum::Json<Value>> {
    let models = state.services.store.list_models().await?;
    let history = evidence::history(&state.services, &models).await?;
    let mut body = json!({
        "data": models, "previous": history.previous, "rolled_back": history.rolled_back.keys().collect::<Vec<_>>(),
    });
    if let Some(fault) = state.services.model_fault() {
        body["warning"] = fault.into();
    }
    Ok(axum::Json(body))
}

/// Needs rest on the number of parameters; caches and activations come on top.
pub async fn catalogue(State(state): State<AppState>) -> axum::Json<Value> {
    axum::Json(catalogue::answer(&state.services.config.data_dir))
}

pub async fn evidence(
    State(state): State<AppState>,
    Path(id): Path<String>,
) -> ApiResult<axum::Json<evidence::Evidence>> {
    Ok(axum::Json(evidence::evidence(&state.services, &id).await?))
}

pub async fn get(State(state): State<AppState>, Path(id): Path<String>) -> ApiResult<axum::Json<ModelVersion>> {
    Ok(axum::Json(publish::find(&state.services, &id).await?))
}

pub async fn promote(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Path(id): Path<String>,
) -> ApiResult<axum::Json<ModelVersion>> {
    Ok(axum::Json(publish::promote(&state.services, &actor, &id).await?))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RollBack {
    kind: Option<ModelKind>,
}

/// The body may be empty; `{"kind": "reward"}` rolls the reward model back.
pub async fn roll_back(
    State(state): State<AppState>,
    Caller(actor): Caller,
    OptionalJson(body): OptionalJson<RollBack>,
) -> ApiResult<axum::Json<ModelVersion>> {
    let kind = body.and_then(|b| b.kind).unwrap_or(ModelKind::Policy);
    Ok(axum::Json(publish::roll_back(&state.services, &actor, kind).await?))
}

pub async fn retire(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Path(id): Path<String>,
) -> ApiResult<StatusCode> {
    publish::retire(&state.services, &actor, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}

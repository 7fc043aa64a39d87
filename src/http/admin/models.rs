//! Model versions: list, promote, roll back, retire.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::http::StatusCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::domain::{ModelKind, ModelVersion, ModelVersionId};
use crate::http::AppState;
use crate::http::auth::Caller;
use crate::http::error::ApiResult;
use crate::http::extract::{OptionalJson, Path};
use crate::service::catalogue::{self, Catalogue};
use crate::service::{evidence, publish, register};

/// All model versions, and what was active before.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ModelVersions {
    pub data: Vec<ModelVersion>,
    /// By kind: the version that the last promotion replaced.
    pub previous: BTreeMap<&'static str, ModelVersionId>,
    /// Versions whose last activation was rolled back.
    pub rolled_back: Vec<String>,
    /// Error of the served model, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
}

pub async fn list(State(state): State<AppState>) -> ApiResult<axum::Json<ModelVersions>> {
    let data = register::all(&state.services).await?;
    let history = evidence::history(&state.services, &data).await?;
    Ok(axum::Json(ModelVersions {
        data,
        previous: history.previous,
        rolled_back: history.rolled_back.into_keys().collect(),
        warning: state.services.model_fault(),
    }))
}

/// The memory needs follow from the number of parameters, without caches and activations.
pub async fn catalogue(State(state): State<AppState>) -> axum::Json<Catalogue> {
    axum::Json(catalogue::catalogue(&state.services.config.data_dir))
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

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RollBack {
    /// Default `policy`.
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

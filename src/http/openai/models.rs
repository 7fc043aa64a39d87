//! `GET /v1/models[/{id}]`: policies that can be named in requests, the active one first.

use axum::Json;
use axum::extract::State;
use schemars::JsonSchema;
use serde::Serialize;

use crate::domain::{ModelKind, ModelState, ModelVersion, ModelVersionId};
use crate::http::AppState;
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::Path;
use crate::service::register;

/// The policies that requests can name.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ModelList {
    #[schemars(extend("const" = "list"))]
    pub object: &'static str,
    pub data: Vec<ModelEntry>,
}

/// A policy in OpenAI's form.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ModelEntry {
    /// The name that requests give as `model`.
    pub id: String,
    #[schemars(extend("const" = "model"))]
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: i64,
    pub owned_by: &'static str,
    pub instructd: ModelFacts,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct ModelFacts {
    pub version: ModelVersionId,
    pub stage: String,
    pub state: ModelState,
    /// Whether its weights are in memory. The following fields are known for loaded models only.
    pub loaded: bool,
    /// Tokens of prompt and answer together; null if an upstream server does not report it.
    pub max_context: Option<usize>,
    /// Format of the weights in memory: `f32`, `bf16`, `q8_0`, …
    pub weights: Option<String>,
    pub parameters: Option<u64>,
}

pub async fn list(State(state): State<AppState>) -> ApiResult<Json<ModelList>> {
    let mut models = register::all(&state.services).await?;
    models.retain(|m| m.kind == ModelKind::Policy && m.state != ModelState::Retired);
    models.sort_by_key(|m| (m.state != ModelState::Active, -m.created));
    let data = models.iter().map(|m| entry(&state, m)).collect();
    Ok(Json(ModelList { object: "list", data }))
}

pub async fn get(State(state): State<AppState>, Path(id): Path<String>) -> ApiResult<Json<ModelEntry>> {
    let found = register::find(&state.services, &id, Some(ModelKind::Policy), Some("model")).await?;
    if found.kind != ModelKind::Policy {
        return Err(ApiError::from(crate::engine::EngineError::UnknownModel(id)));
    }
    Ok(Json(entry(&state, &found)))
}

fn entry(state: &AppState, model: &ModelVersion) -> ModelEntry {
    let loaded = state.services.engine().map(|e| e.loaded()).unwrap_or_default();
    let served = loaded.iter().find(|m| m.version.id == model.id);
    ModelEntry {
        id: model.name.clone(),
        object: "model",
        created: model.created / 1_000_000,
        owned_by: "instructd",
        instructd: ModelFacts {
            version: model.id.clone(),
            stage: model.stage.clone(),
            state: model.state,
            loaded: served.is_some(),
            max_context: served.map(|m| m.max_context).filter(|n| *n != usize::MAX),
            weights: served.map(|m| m.weights.clone()),
            parameters: served.map(|m| m.parameters).filter(|n| *n > 0),
        },
    }
}

//! `GET /v1/models[/{id}]`: policies that can be named in requests, the active one first.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use crate::domain::{ModelKind, ModelState, ModelVersion};
use crate::http::AppState;
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::Path;
use crate::service::register;

pub async fn list(State(state): State<AppState>) -> ApiResult<Json<Value>> {
    let mut models = state.services.store.list_models().await?;
    models.retain(|m| m.kind == ModelKind::Policy && m.state != ModelState::Retired);
    models.sort_by_key(|m| (m.state != ModelState::Active, -m.created));
    let data: Vec<Value> = models.iter().map(|m| entry(&state, m)).collect();
    Ok(Json(json!({"object": "list", "data": data})))
}

pub async fn get(State(state): State<AppState>, Path(id): Path<String>) -> ApiResult<Json<Value>> {
    let found = register::find(&state.services, &id, Some(ModelKind::Policy), Some("model")).await?;
    if found.kind != ModelKind::Policy {
        return Err(ApiError::from(crate::engine::EngineError::UnknownModel(id)));
    }
    Ok(Json(entry(&state, &found)))
}

fn entry(state: &AppState, model: &ModelVersion) -> Value {
    let loaded = state.services.engine().map(|e| e.loaded()).unwrap_or_default();
    let served = loaded.iter().find(|m| m.version.id == model.id);
    json!({
        "id": model.name,
        "object": "model",
        "created": model.created / 1_000_000,
        "owned_by": "instructd",
        "instructd": {
            "version": model.id,
            "stage": model.stage,
            "state": model.state,
            "loaded": served.is_some(),
            "max_context": served.map(|m| m.max_context).filter(|n| *n != usize::MAX),
            "weights": served.map(|m| m.weights.as_str()),
            "parameters": served.map(|m| m.parameters).filter(|n| *n > 0),
        },
    })
}

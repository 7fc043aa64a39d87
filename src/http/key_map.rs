//! Routes of the keys that a person has changed on the labeling page.

use axum::extract::State;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::AppState;
use super::auth::Caller;
use super::error::ApiResult;
use super::extract::Json;
use crate::domain::KeyMap;
use crate::service::key_map;

/// The keys that the caller has changed.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ChangedKeys {
    /// Keys by action; null when they were never stored.
    pub keys: Option<KeyMap>,
}

pub async fn get(State(state): State<AppState>, Caller(actor): Caller) -> ApiResult<axum::Json<ChangedKeys>> {
    Ok(axum::Json(ChangedKeys { keys: key_map::get(&state.services, &actor).await? }))
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KeysChange {
    /// Keys by action, each a letter from a to z, `=` or `?`; empty = the page's own keys.
    pub keys: KeyMap,
}

pub async fn put(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Json(body): Json<KeysChange>,
) -> ApiResult<axum::Json<ChangedKeys>> {
    key_map::put(&state.services, &actor, body.keys).await?;
    get(State(state), Caller(actor)).await
}

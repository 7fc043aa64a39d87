//! Routes of rubrics: the active one, all versions, a new version, and which one is active.

use axum::extract::State;
use axum::http::StatusCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::AppState;
use super::auth::Caller;
use super::error::{ApiError, ApiResult};
use super::extract::{Json, Query};
use super::label::ProjectQuery;
use crate::domain::{LabelerId, Micros, Rubric, RubricDefinition};
use crate::service::projects;
use crate::service::rubrics::{self, Preset};
use crate::store::RubricVersion;

/// The rubric by which labelers rate completions now.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ActiveRubric {
    /// Null when completions are only ranked.
    pub rubric: Option<Rubric>,
}

pub async fn active(
    State(state): State<AppState>,
    Query(query): Query<ProjectQuery>,
) -> ApiResult<axum::Json<ActiveRubric>> {
    let project = projects::named(&state.services, query.project.as_deref()).await?;
    Ok(axum::Json(ActiveRubric { rubric: rubrics::active(&state.services, &project).await? }))
}

/// A version of a rubric, and who stored it.
#[derive(Debug, Serialize, JsonSchema)]
pub struct StoredRubric {
    /// First 12 hex digits of the SHA-256 of the definition.
    pub version: String,
    pub definition: RubricDefinition,
    /// µs UTC.
    pub created: Micros,
    pub created_by: LabelerId,
}

impl From<RubricVersion> for StoredRubric {
    fn from(v: RubricVersion) -> Self {
        let Rubric { version, definition } = v.rubric;
        Self { version, definition, created: v.created, created_by: v.created_by }
    }
}

/// What an administrator chooses from.
#[derive(Debug, Serialize, JsonSchema)]
pub struct AllRubrics {
    /// Version of the active rubric; null for none.
    pub active: Option<String>,
    /// Newest first.
    pub versions: Vec<StoredRubric>,
    pub presets: Vec<Preset>,
}

pub async fn all(
    State(state): State<AppState>,
    Query(query): Query<ProjectQuery>,
) -> ApiResult<axum::Json<AllRubrics>> {
    let project = projects::named(&state.services, query.project.as_deref()).await?;
    let (versions, active) = rubrics::versions(&state.services, &project).await?;
    Ok(axum::Json(AllRubrics {
        active: active.map(|rubric| rubric.version),
        versions: versions.into_iter().map(StoredRubric::from).collect(),
        presets: rubrics::presets()?,
    }))
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NewRubric {
    pub definition: RubricDefinition,
    /// Also activate it. Default false.
    #[serde(default)]
    pub activate: bool,
    /// Id or name of the project in which it becomes active; the first when absent.
    pub project: Option<String>,
}

pub async fn put(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Json(body): Json<NewRubric>,
) -> ApiResult<(StatusCode, axum::Json<StoredRubric>)> {
    let project = projects::named(&state.services, body.project.as_deref()).await?;
    let put = rubrics::put(&state.services, &actor, &project, body.definition, body.activate).await;
    let stored = put.map_err(|error| {
        let e = ApiError::from(error);
        ApiError { param: e.param.map(|field| format!("definition.{field}")), ..e }
    })?;
    Ok((StatusCode::CREATED, axum::Json(stored.into())))
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Activation {
    /// Null or absent: no rubric.
    pub version: Option<String>,
    /// Id or name of the project; the first when absent.
    pub project: Option<String>,
}

pub async fn activate(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Json(body): Json<Activation>,
) -> ApiResult<axum::Json<ActiveRubric>> {
    let project = projects::named(&state.services, body.project.as_deref()).await?;
    let rubric = rubrics::activate(&state.services, &actor, &project, body.version).await?;
    Ok(axum::Json(ActiveRubric { rubric }))
}

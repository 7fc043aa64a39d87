//! Labeling projects and their members.

use axum::extract::State;
use axum::http::StatusCode;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::domain::{LabelerId, Project, ProjectMember};
use crate::http::AppState;
use crate::http::auth::Caller;
use crate::http::contract::List;
use crate::http::error::ApiResult;
use crate::http::extract::{Json, Path};
use crate::service::projects::{self, CountedProject, ProjectChange};

pub async fn list(State(state): State<AppState>) -> ApiResult<axum::Json<List<CountedProject>>> {
    Ok(axum::Json(List { data: projects::list(&state.services).await? }))
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NewProject {
    /// Unique; 1 to 100 bytes.
    pub name: String,
}

pub async fn create(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Json(body): Json<NewProject>,
) -> ApiResult<(StatusCode, axum::Json<Project>)> {
    Ok((StatusCode::CREATED, axum::Json(projects::create(&state.services, &actor, &body.name).await?)))
}

pub async fn change(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Path(id): Path<String>,
    Json(body): Json<ProjectChange>,
) -> ApiResult<axum::Json<Project>> {
    Ok(axum::Json(projects::change(&state.services, &actor, &id, body).await?))
}

pub async fn members(
    State(state): State<AppState>,
    Path(id): Path<String>,
) -> ApiResult<axum::Json<List<ProjectMember>>> {
    Ok(axum::Json(List { data: projects::members(&state.services, &id).await? }))
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NewMember {
    pub labeler_id: LabelerId,
    /// Judgments a day in this project; null or absent = the person's own quota, 0 = no limit.
    pub daily_quota: Option<i64>,
}

pub async fn put_member(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Path(id): Path<String>,
    Json(body): Json<NewMember>,
) -> ApiResult<axum::Json<ProjectMember>> {
    let NewMember { labeler_id, daily_quota } = body;
    Ok(axum::Json(projects::put_member(&state.services, &actor, &id, labeler_id, daily_quota).await?))
}

pub async fn remove_member(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Path((id, labeler)): Path<(String, LabelerId)>,
) -> ApiResult<StatusCode> {
    projects::remove_member(&state.services, &actor, &id, &labeler).await?;
    Ok(StatusCode::NO_CONTENT)
}

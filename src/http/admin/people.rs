//! Labelers, invites, API keys and the audit trail. Secrets are shown once, at creation; hashes are never shown.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::domain::{ApiKey, ApiKeyId, Invite, InviteId, LabelerId, Micros, Role};
use crate::http::AppState;
use crate::http::auth::Caller;
use crate::http::error::ApiResult;
use crate::http::extract::{Json, Path, Query};
use crate::http::label::rows;
use crate::service::people;
use crate::store::{AuditFilter, Erase};

pub async fn labelers(State(state): State<AppState>) -> ApiResult<axum::Json<Value>> {
    Ok(axum::Json(json!({"data": state.services.store.list_labelers().await?})))
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NewLabeler {
    pub name: String,
    /// Default `labeler`.
    pub role: Option<Role>,
}

pub async fn add_labeler(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Json(body): Json<NewLabeler>,
) -> ApiResult<Response> {
    let role = body.role.unwrap_or(Role::Labeler);
    let labeler = people::add_labeler(&state.services, &actor, &body.name, role).await?;
    Ok((StatusCode::CREATED, axum::Json(labeler)).into_response())
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SetActive {
    pub active: bool,
}

pub async fn set_active(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Path(id): Path<LabelerId>,
    Json(body): Json<SetActive>,
) -> ApiResult<StatusCode> {
    people::set_active(&state.services, &actor, &id, body.active).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Absent fields stay; `daily_quota: null` returns to the configured quota.
#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LabelerChange {
    pub role: Option<Role>,
    /// Judgments a day (UTC): 0 = no limit, null = as configured.
    #[serde(default, deserialize_with = "given")]
    pub daily_quota: Option<Option<i64>>,
    pub active: Option<bool>,
}

/// Tells null from absent.
fn given<'de, D: serde::Deserializer<'de>>(value: D) -> Result<Option<Option<i64>>, D::Error> {
    Option::deserialize(value).map(Some)
}

pub async fn change_labeler(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Path(id): Path<LabelerId>,
    Json(body): Json<LabelerChange>,
) -> ApiResult<Response> {
    let changed =
        people::change_labeler(&state.services, &actor, &id, body.role, body.daily_quota, body.active).await?;
    Ok(axum::Json(changed).into_response())
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EraseRequest {
    /// `anonymise`: rankings stay without an author, words go. `remove`: judgments and demonstrations go.
    pub judgments: Erase,
}

pub async fn erase(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Path(id): Path<LabelerId>,
    Json(body): Json<EraseRequest>,
) -> ApiResult<Response> {
    Ok(axum::Json(people::erase(&state.services, &actor, &id, body.judgments).await?).into_response())
}

pub async fn personal_data(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Path(id): Path<LabelerId>,
) -> ApiResult<axum::Json<Value>> {
    Ok(axum::Json(people::personal_data(&state.services, &actor, &id).await?))
}

pub async fn revoke_invite(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Path(id): Path<InviteId>,
) -> ApiResult<StatusCode> {
    people::revoke_invite(&state.services, &actor, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AuditQuery {
    actor: Option<String>,
    action: Option<String>,
    target: Option<String>,
    since: Option<Micros>,
    until: Option<Micros>,
    before: Option<i64>,
    limit: Option<i64>,
}

pub async fn audit(State(state): State<AppState>, Query(query): Query<AuditQuery>) -> ApiResult<axum::Json<Value>> {
    let AuditQuery { actor, action, target, since, until, before, limit } = query;
    let filter = AuditFilter { actor, action, target, since, until };
    let entries = state.services.store.list_audit(&filter, before, rows(limit)?).await?;
    let next = entries.last().map(|e| e.id);
    Ok(axum::Json(json!({"data": entries, "before": next})))
}

fn invite_json(invite: &Invite) -> Value {
    json!({"id": invite.id, "role": invite.role, "note": invite.note, "expires": invite.expires,
           "used_by": invite.used_by, "created": invite.created})
}

pub async fn invites(State(state): State<AppState>) -> ApiResult<axum::Json<Value>> {
    let invites = state.services.store.list_invites().await?;
    Ok(axum::Json(json!({"data": invites.iter().map(invite_json).collect::<Vec<_>>()})))
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NewInvite {
    /// Default `labeler`.
    pub role: Option<Role>,
    pub note: Option<String>,
}

pub async fn invite(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Json(body): Json<NewInvite>,
) -> ApiResult<Response> {
    let role = body.role.unwrap_or(Role::Labeler);
    let (invite, token) = people::invite(&state.services, &actor, role, body.note).await?;
    let url = format!("/label?invite={token}");
    let answer = json!({"invite": invite_json(&invite), "token": token, "url": url});
    Ok((StatusCode::CREATED, axum::Json(answer)).into_response())
}

fn key_json(key: &ApiKey) -> Value {
    json!({"id": key.id, "name": key.name, "scopes": key.scopes, "labeler_id": key.labeler_id,
           "daily_tokens": key.daily_tokens, "revoked": key.revoked, "created": key.created})
}

pub async fn keys(State(state): State<AppState>) -> ApiResult<axum::Json<Value>> {
    let keys = state.services.store.list_api_keys().await?;
    Ok(axum::Json(json!({"data": keys.iter().map(key_json).collect::<Vec<_>>()})))
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NewKey {
    pub name: String,
    /// Of `admin`, `feedback`, `inference`.
    pub scopes: Vec<String>,
    /// Whose judgments the key gives; a new labeler when absent.
    pub labeler_id: Option<LabelerId>,
    /// Prompt and drawn tokens a day (UTC); absent = no limit.
    pub daily_tokens: Option<i64>,
}

pub async fn create_key(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Json(body): Json<NewKey>,
) -> ApiResult<Response> {
    let NewKey { name, scopes, labeler_id, daily_tokens } = body;
    let (key, secret) = people::create_key(&state.services, &actor, &name, scopes, labeler_id, daily_tokens).await?;
    let mut answer = key_json(&key);
    answer["key"] = json!(secret);
    Ok((StatusCode::CREATED, axum::Json(answer)).into_response())
}

pub async fn revoke_key(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Path(id): Path<ApiKeyId>,
) -> ApiResult<StatusCode> {
    people::revoke_key(&state.services, &actor, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}

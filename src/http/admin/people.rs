//! Labelers, invites, API keys and the audit trail. Secrets are shown once, at creation; hashes are never shown.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::domain::{ApiKey, ApiKeyId, Invite, InviteId, Labeler, LabelerId, Micros, Role, SignInLink};
use crate::http::AppState;
use crate::http::auth::Caller;
use crate::http::error::ApiResult;
use crate::http::extract::{Json, Path, Query};
use crate::http::label::rows;
use crate::service::{access, people};
use crate::store::{AuditFilter, Erase};

pub async fn labelers(State(state): State<AppState>) -> ApiResult<axum::Json<Value>> {
    let store = &state.services.store;
    let links = store.list_links().await?;
    let with_link = |labeler: Labeler| {
        let link = links.iter().find(|link| link.labeler_id == labeler.id).map(link_json);
        let mut labeler = json!(labeler);
        labeler["link"] = json!(link);
        labeler
    };
    let labelers: Vec<Value> = store.list_labelers().await?.into_iter().map(with_link).collect();
    Ok(axum::Json(json!({"data": labelers})))
}

fn link_json(link: &SignInLink) -> Value {
    json!({"id": link.id, "created": link.created, "expires": link.expires, "used": link.used})
}

/// With the token: at its making only.
fn new_link_json(labeler: &Labeler, link: &SignInLink, token: &str) -> Value {
    let mut answer = link_json(link);
    answer["token"] = json!(token);
    answer["url"] = json!(access::link_url(labeler, token));
    answer
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NewLabeler {
    pub name: String,
    /// Default `labeler`.
    pub role: Option<Role>,
    /// Another person than the one of this name who is here already.
    #[serde(default)]
    pub another: bool,
}

pub async fn add_labeler(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Json(body): Json<NewLabeler>,
) -> ApiResult<Response> {
    let role = body.role.unwrap_or(Role::Labeler);
    let (labeler, link, token) = people::add_labeler(&state.services, &actor, &body.name, role, body.another).await?;
    let mut answer = json!(labeler);
    answer["link"] = new_link_json(&labeler, &link, &token);
    Ok((StatusCode::CREATED, axum::Json(answer)).into_response())
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NewLink {
    /// Hours until it stops working; absent = until it is revoked or replaced.
    pub expires_hours: Option<i64>,
}

pub async fn make_link(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Path(id): Path<LabelerId>,
    Json(body): Json<NewLink>,
) -> ApiResult<Response> {
    let labeler = state.services.store.get_labeler(&id).await?;
    let (link, token) = people::make_link(&state.services, &actor, &id, body.expires_hours).await?;
    Ok((StatusCode::CREATED, axum::Json(new_link_json(&labeler, &link, &token))).into_response())
}

pub async fn revoke_link(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Path(id): Path<LabelerId>,
) -> ApiResult<StatusCode> {
    people::revoke_link(&state.services, &actor, &id).await?;
    Ok(StatusCode::NO_CONTENT)
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
    let named = entries.iter().flat_map(|e| [e.actor.clone(), e.target.clone()]).collect();
    let names = crate::service::browse::names(&state.services, named).await?;
    Ok(axum::Json(json!({"data": entries, "names": names, "before": next})))
}

fn invite_json(invite: &Invite) -> Value {
    json!({"id": invite.id, "role": invite.role, "name": invite.name, "note": invite.note,
           "expires": invite.expires, "revoked": invite.revoked, "used_by": invite.used_by,
           "created": invite.created})
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
    /// For whom it is: the page greets them by it.
    pub name: Option<String>,
    pub note: Option<String>,
}

pub async fn invite(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Json(body): Json<NewInvite>,
) -> ApiResult<Response> {
    let role = body.role.unwrap_or(Role::Labeler);
    let (invite, token) = people::invite(&state.services, &actor, role, body.name.as_deref(), body.note).await?;
    let url = format!("/label#invite={token}");
    let answer = json!({"invite": invite_json(&invite), "token": token, "url": url});
    Ok((StatusCode::CREATED, axum::Json(answer)).into_response())
}

fn key_json(key: &ApiKey) -> Value {
    json!({"id": key.id, "name": key.name, "scopes": key.scopes, "labeler_id": key.labeler_id,
           "daily_tokens": key.daily_tokens, "origin": key.origin, "revoked": key.revoked, "created": key.created})
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

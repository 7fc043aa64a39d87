//! Labelers, invites, API keys and the audit trail. Secrets are shown once, at creation; hashes are never shown.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::http::StatusCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::domain::{
    ApiKey, ApiKeyId, AuditEntry, Invite, InviteId, KeyOrigin, Labeler, LabelerId, LinkId, Micros, Role, SignInLink,
};
use crate::http::AppState;
use crate::http::auth::Caller;
use crate::http::contract::List;
use crate::http::error::ApiResult;
use crate::http::extract::{Json, Path, Query};
use crate::http::label::rows;
use crate::service::browse::{self, NameOf};
use crate::service::people::{Erasure, PersonalExport};
use crate::service::{completion_code, people, sign_in};
use crate::store::{AuditFilter, Erase};

/// A person with their active sign-in link.
#[derive(Debug, Serialize, JsonSchema)]
pub struct LabelerWithLink {
    #[serde(flatten)]
    pub labeler: Labeler,
    pub link: Option<LinkView>,
    /// The code that they see when they have done their quota; null where no codes are used.
    pub completion_code: Option<String>,
}

/// A sign-in link without its token.
#[derive(Debug, Serialize, JsonSchema)]
pub struct LinkView {
    pub id: LinkId,
    pub created: Micros,
    /// End of its validity; null = until it is revoked or replaced.
    pub expires: Option<Micros>,
    /// The last sign-in with it.
    pub used: Option<Micros>,
}

impl From<&SignInLink> for LinkView {
    fn from(link: &SignInLink) -> Self {
        Self { id: link.id.clone(), created: link.created, expires: link.expires, used: link.used }
    }
}

/// A sign-in link with its token, which is shown once.
#[derive(Debug, Serialize, JsonSchema)]
pub struct CreatedLink {
    #[serde(flatten)]
    pub link: LinkView,
    pub token: String,
    /// The page and the token as a path of this server.
    pub url: String,
}

impl CreatedLink {
    fn new(labeler: &Labeler, link: &SignInLink, token: String) -> Self {
        let url = sign_in::link_url(labeler, &token);
        Self { link: link.into(), token, url }
    }
}

pub async fn labelers(State(state): State<AppState>) -> ApiResult<axum::Json<List<LabelerWithLink>>> {
    let people = people::list_with_links(&state.services).await?;
    let view = |(labeler, link): (Labeler, Option<SignInLink>)| LabelerWithLink {
        link: link.as_ref().map(LinkView::from),
        completion_code: completion_code::of(&state.services, &labeler.id),
        labeler,
    };
    Ok(axum::Json(List { data: people.into_iter().map(view).collect() }))
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NewLabeler {
    pub name: String,
    /// Default `labeler`.
    pub role: Option<Role>,
    /// Whether this is another person than the existing one of this name.
    #[serde(default)]
    pub another: bool,
}

pub async fn add_labeler(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Json(body): Json<NewLabeler>,
) -> ApiResult<(StatusCode, axum::Json<CreatedLabeler>)> {
    let role = body.role.unwrap_or(Role::Labeler);
    let (labeler, link, token) = people::add_labeler(&state.services, &actor, &body.name, role, body.another).await?;
    let link = CreatedLink::new(&labeler, &link, token);
    Ok((StatusCode::CREATED, axum::Json(CreatedLabeler { labeler, link })))
}

/// A new person with the link that signs them in.
#[derive(Debug, Serialize, JsonSchema)]
pub struct CreatedLabeler {
    #[serde(flatten)]
    pub labeler: Labeler,
    pub link: CreatedLink,
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
) -> ApiResult<(StatusCode, axum::Json<CreatedLink>)> {
    let (labeler, link, token) = people::make_link(&state.services, &actor, &id, body.expires_hours).await?;
    Ok((StatusCode::CREATED, axum::Json(CreatedLink::new(&labeler, &link, token))))
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

/// Changes of a labeler. Absent fields are kept; `daily_quota: null` returns to the configured quota.
#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LabelerChange {
    pub role: Option<Role>,
    /// Judgments a day (UTC): 0 = no limit, null = as configured.
    #[serde(default, deserialize_with = "given")]
    pub daily_quota: Option<Option<i64>>,
    pub active: Option<bool>,
}

/// Distinguishes null from absent.
fn given<'de, D: serde::Deserializer<'de>>(value: D) -> Result<Option<Option<i64>>, D::Error> {
    Option::deserialize(value).map(Some)
}

pub async fn change_labeler(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Path(id): Path<LabelerId>,
    Json(body): Json<LabelerChange>,
) -> ApiResult<axum::Json<Labeler>> {
    let changed =
        people::change_labeler(&state.services, &actor, &id, body.role, body.daily_quota, body.active).await?;
    Ok(axum::Json(changed))
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EraseRequest {
    /// `anonymise`: rankings are kept without an author, written texts are removed. `remove`: judgments and
    /// demonstrations are removed.
    pub judgments: Erase,
}

pub async fn erase(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Path(id): Path<LabelerId>,
    Json(body): Json<EraseRequest>,
) -> ApiResult<axum::Json<Erasure>> {
    Ok(axum::Json(people::erase(&state.services, &actor, &id, body.judgments).await?))
}

pub async fn personal_data(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Path(id): Path<LabelerId>,
) -> ApiResult<axum::Json<PersonalExport>> {
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

/// A page of the audit trail, newest first.
#[derive(Debug, Serialize, JsonSchema)]
pub struct AuditPage {
    pub data: Vec<AuditEntry>,
    /// Names of the ids of actors and targets, as far as they are known.
    pub names: BTreeMap<String, NameOf>,
    /// Id of the last entry, for `?before=` of the next page. Null when the page is empty.
    pub before: Option<i64>,
}

pub async fn audit(State(state): State<AppState>, Query(query): Query<AuditQuery>) -> ApiResult<axum::Json<AuditPage>> {
    let AuditQuery { actor, action, target, since, until, before, limit } = query;
    let filter = AuditFilter { actor, action, target, since, until };
    let (entries, names) = browse::audit(&state.services, &filter, before, rows(limit)?).await?;
    let next = entries.last().map(|e| e.id);
    Ok(axum::Json(AuditPage { data: entries, names, before: next }))
}

/// An invite without its token.
#[derive(Debug, Serialize, JsonSchema)]
pub struct InviteView {
    pub id: InviteId,
    pub role: Role,
    /// Name of the invited person.
    pub name: Option<String>,
    pub note: Option<String>,
    pub expires: Micros,
    pub revoked: bool,
    pub used_by: Option<LabelerId>,
    pub created: Micros,
}

impl From<Invite> for InviteView {
    fn from(invite: Invite) -> Self {
        let Invite { id, role, name, note, expires, revoked, used_by, created, token_hash: _ } = invite;
        Self { id, role, name, note, expires, revoked, used_by, created }
    }
}

pub async fn invites(State(state): State<AppState>) -> ApiResult<axum::Json<List<InviteView>>> {
    let invites = people::invites(&state.services).await?;
    Ok(axum::Json(List { data: invites.into_iter().map(Into::into).collect() }))
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NewInvite {
    /// Default `labeler`.
    pub role: Option<Role>,
    /// Name of the invited person, shown on the page.
    pub name: Option<String>,
    pub note: Option<String>,
}

pub async fn invite(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Json(body): Json<NewInvite>,
) -> ApiResult<(StatusCode, axum::Json<CreatedInvite>)> {
    let role = body.role.unwrap_or(Role::Labeler);
    let (invite, token) = people::invite(&state.services, &actor, role, body.name.as_deref(), body.note).await?;
    let url = format!("/label#invite={token}");
    Ok((StatusCode::CREATED, axum::Json(CreatedInvite { invite: invite.into(), token, url })))
}

/// An invite with its token, which is shown once.
#[derive(Debug, Serialize, JsonSchema)]
pub struct CreatedInvite {
    pub invite: InviteView,
    pub token: String,
    /// The page and the token as a path of this server.
    pub url: String,
}

/// An API key without its secret.
#[derive(Debug, Serialize, JsonSchema)]
pub struct KeyView {
    pub id: ApiKeyId,
    pub name: String,
    /// Of `admin`, `feedback`, `inference`.
    pub scopes: Vec<String>,
    pub labeler_id: Option<LabelerId>,
    /// Prompt and generated tokens a day (UTC); null = no limit.
    pub daily_tokens: Option<i64>,
    pub origin: KeyOrigin,
    pub revoked: bool,
    pub created: Micros,
}

impl From<ApiKey> for KeyView {
    fn from(key: ApiKey) -> Self {
        let ApiKey { id, name, scopes, labeler_id, daily_tokens, origin, revoked, created, key_hash: _ } = key;
        Self { id, name, scopes, labeler_id, daily_tokens, origin, revoked, created }
    }
}

/// An API key with its secret, which is shown once.
#[derive(Debug, Serialize, JsonSchema)]
pub struct CreatedKey {
    #[serde(flatten)]
    pub view: KeyView,
    pub key: String,
}

pub async fn keys(State(state): State<AppState>) -> ApiResult<axum::Json<List<KeyView>>> {
    let keys = people::keys(&state.services).await?;
    Ok(axum::Json(List { data: keys.into_iter().map(Into::into).collect() }))
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NewKey {
    pub name: String,
    /// Of `admin`, `feedback`, `inference`.
    pub scopes: Vec<String>,
    /// The labeler of the key's judgments; a new one when absent.
    pub labeler_id: Option<LabelerId>,
    /// Prompt and generated tokens a day (UTC); absent = no limit.
    pub daily_tokens: Option<i64>,
}

pub async fn create_key(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Json(body): Json<NewKey>,
) -> ApiResult<(StatusCode, axum::Json<CreatedKey>)> {
    let NewKey { name, scopes, labeler_id, daily_tokens } = body;
    let (key, secret) = people::create_key(&state.services, &actor, &name, scopes, labeler_id, daily_tokens).await?;
    Ok((StatusCode::CREATED, axum::Json(CreatedKey { view: key.into(), key: secret })))
}

pub async fn revoke_key(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Path(id): Path<ApiKeyId>,
) -> ApiResult<StatusCode> {
    people::revoke_key(&state.services, &actor, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}

//! People and their keys: labelers, invites, sign-in links, API keys.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::json;

use super::random::secret_hash;
use super::{Result, ServiceError, Services, bad_input, uncancelled};
use crate::domain::time::{HOUR, after};
use crate::domain::{
    ApiKey, ApiKeyId, Invite, InviteId, KeyOrigin, Labeler, LabelerId, LinkId, LinkState, Role, SignInLink,
};

pub use super::access::{ADMIN, Actor};
pub use super::erasure::{Erasure, PersonalExport, erase, personal_data};

/// Longest validity of a link, hours (ten years).
const MOST_LINK_HOURS: i64 = 10 * 365 * 24;

/// What a key may be used for.
pub const SCOPES: &[&str] = &["admin", "feedback", "inference"];

/// All labelers, each with their sign-in link, if they have one.
///
/// # Errors
/// What the store says.
pub async fn list_with_links(services: &Services) -> Result<Vec<(Labeler, Option<SignInLink>)>> {
    let links = services.store.links().list().await?;
    let mut links: HashMap<_, _> = links.into_iter().map(|link| (link.labeler_id.clone(), link)).collect();
    let people = services.store.people().list().await?;
    let with_link = |labeler: Labeler| {
        let link = links.remove(&labeler.id);
        (labeler, link)
    };
    Ok(people.into_iter().map(with_link).collect())
}

/// All invites, newest first.
///
/// # Errors
/// What the store says.
pub async fn invites(services: &Services) -> Result<Vec<Invite>> {
    Ok(services.store.invites().list().await?)
}

/// All API keys, newest first.
///
/// # Errors
/// What the store says.
pub async fn keys(services: &Services) -> Result<Vec<ApiKey>> {
    Ok(services.store.api_keys().list().await?)
}

/// Makes a one-use invite; the token is returned once and never again.
///
/// # Errors
/// `Conflict` when it is for a person who exists already; such a person needs a sign-in link.
pub async fn invite(
    services: &Services,
    by: &Actor,
    role: Role,
    name: Option<&str>,
    note: Option<String>,
) -> Result<(Invite, String)> {
    let name = name.map(|name| check_name(name, "name")).transpose()?;
    if let Some(name) = &name {
        check_new(services, name).await?;
    }
    if note.as_ref().is_some_and(|n| n.len() > 500) {
        return Err(bad_input("note", "at most 500 bytes"));
    }
    let token = services.random.secret("invite-");
    let now = services.now();
    let invite = Invite {
        id: InviteId::new(),
        token_hash: secret_hash(&token),
        role,
        name,
        note,
        expires: after(now, services.live().config.sessions.invite_hours, HOUR),
        revoked: false,
        used_by: None,
        created: now,
    };
    services.store.invites().put(invite.clone()).await?;
    services
        .store
        .audit_log()
        .append(&by.signature(), "invite", invite.id.as_str(), json!({"role": role}), now)
        .await?;
    Ok((invite, token))
}

/// Makes an API key; the key is returned once. A `feedback` key gets a labeler of its own unless it names one.
pub async fn create_key(
    services: &Services,
    by: &Actor,
    name: &str,
    scopes: Vec<String>,
    labeler_id: Option<LabelerId>,
    daily_tokens: Option<i64>,
) -> Result<(ApiKey, String)> {
    let name = check_name(name, "name")?;
    if daily_tokens.is_some_and(|tokens| tokens < 1) {
        return Err(bad_input("daily_tokens", "must be at least 1"));
    }
    if scopes.is_empty() {
        return Err(bad_input("scopes", "must contain at least one of admin, feedback, inference"));
    }
    if let Some(i) = scopes.iter().position(|s| !SCOPES.contains(&s.as_str())) {
        return Err(bad_input(format!("scopes[{i}]"), "must be admin, feedback or inference"));
    }
    let now = services.now();
    let labeler_id = match labeler_id {
        Some(id) => {
            let found = services.store.people().get(&id).await;
            let found = found.map_err(|e| super::not_found_as(e, "labeler_id"))?;
            if !found.active {
                return Err(bad_input(
                    "labeler_id",
                    format!("{} may not sign in; activate the labeler first", found.name),
                ));
            }
            if scopes.iter().any(|s| s == "admin") && found.role != Role::Admin {
                let message = format!("{} is a {}; a key with the scope admin needs an admin", found.name, found.role);
                return Err(bad_input("labeler_id", message));
            }
            Some(id)
        }
        None if scopes.iter().any(|s| s == "admin") => Some(ADMIN.into()),
        None if scopes.iter().any(|s| s == "feedback") => {
            let labeler = Labeler::new(LabelerId::new(), name.clone(), Role::Labeler, now);
            services.store.people().put(labeler.clone()).await?;
            Some(labeler.id)
        }
        None => None,
    };
    let secret = services.random.secret("sk-");
    let key = ApiKey {
        id: ApiKeyId::new(),
        name,
        key_hash: secret_hash(&secret),
        scopes,
        labeler_id,
        daily_tokens,
        origin: KeyOrigin::Created,
        revoked: false,
        created: now,
    };
    services.store.api_keys().put(key.clone()).await?;
    let detail = json!({"scopes": key.scopes});
    services.store.audit_log().append(&by.signature(), "create_key", key.id.as_str(), detail, now).await?;
    Ok((key, secret))
}

pub async fn revoke_key(services: &Services, by: &Actor, id: &ApiKeyId) -> Result<()> {
    services.store.api_keys().revoke(id).await?;
    Ok(services.store.audit_log().append(&by.signature(), "revoke_key", id.as_str(), json!({}), services.now()).await?)
}

/// Adds a person by hand, with the link that they sign in with.
///
/// # Errors
/// `Conflict` when a person of this name exists, unless `another` is set.
pub async fn add_labeler(
    services: &Arc<Services>,
    by: &Actor,
    name: &str,
    role: Role,
    another: bool,
) -> Result<(Labeler, SignInLink, String)> {
    let now = services.now();
    let name = check_name(name, "name")?;
    if !another {
        check_new(services, &name).await?;
    }
    let labeler = Labeler::new(LabelerId::new(), name, role, now);
    let (services, signature) = (services.clone(), by.signature());
    uncancelled(async move {
        services.store.people().put(labeler.clone()).await?;
        let (link, token) = put_link(&services, &labeler.id, None).await?;
        let detail = json!({"role": role});
        services.store.audit_log().append(&signature, "add_labeler", labeler.id.as_str(), detail, now).await?;
        Ok((labeler, link, token))
    })
    .await
}

/// The active labeler of this name, compared without regard to case.
pub async fn find_by_name(services: &Services, name: &str) -> Result<Option<Labeler>> {
    let wanted = name.to_lowercase();
    let all = services.store.people().list().await?;
    Ok(all.into_iter().find(|l| l.active && l.name.to_lowercase() == wanted))
}

async fn check_new(services: &Services, name: &str) -> Result<()> {
    match find_by_name(services, name).await? {
        Some(known) => Err(ServiceError::Conflict(format!(
            "{} exists already: make a new sign-in link for them; for another person of this name, choose a name that \
             distinguishes the two",
            known.name
        ))),
        None => Ok(()),
    }
}

/// Makes a sign-in link for a person; their previous link stops working. The token is returned once and never again.
///
/// # Errors
/// `Conflict` for the built-in labelers and for people who may not sign in; `NotFound` for an unknown id.
pub async fn make_link(
    services: &Arc<Services>,
    by: &Actor,
    id: &LabelerId,
    expires_hours: Option<i64>,
) -> Result<(Labeler, SignInLink, String)> {
    if [ADMIN, "import"].contains(&id.as_str()) {
        return Err(ServiceError::Conflict(format!(
            "{id} is a built-in labeler and cannot sign in by a link; use the admin key"
        )));
    }
    if expires_hours.is_some_and(|hours| !(1..=MOST_LINK_HOURS).contains(&hours)) {
        return Err(bad_input("expires_hours", format!("must be 1 to {MOST_LINK_HOURS}; absent = never")));
    }
    let labeler = services.store.people().get(id).await?;
    let (services, id, signature) = (services.clone(), id.clone(), by.signature());
    uncancelled(async move {
        let (link, token) = put_link(&services, &id, expires_hours).await?;
        let detail = json!({"link": link.id, "expires": link.expires});
        services.store.audit_log().append(&signature, "create_link", id.as_str(), detail, link.created).await?;
        Ok((labeler, link, token))
    })
    .await
}

pub(super) async fn put_link(
    services: &Services,
    id: &LabelerId,
    expires_hours: Option<i64>,
) -> Result<(SignInLink, String)> {
    let (token, now) = (services.random.secret("link-"), services.now());
    let link = SignInLink {
        id: LinkId::new(),
        labeler_id: id.clone(),
        token_hash: secret_hash(&token),
        state: LinkState::Active,
        expires: expires_hours.map(|hours| after(now, hours, HOUR)),
        used: None,
        created: now,
    };
    services.store.links().put(link.clone()).await?;
    Ok((link, token))
}

/// Ends a person's sign-in link and the sessions that it opened.
pub async fn revoke_link(services: &Services, by: &Actor, id: &LabelerId) -> Result<()> {
    services.store.links().revoke(id).await?;
    Ok(services
        .store
        .audit_log()
        .append(&by.signature(), "revoke_link", id.as_str(), json!({}), services.now())
        .await?)
}

pub async fn set_active(services: &Services, by: &Actor, id: &LabelerId, active: bool) -> Result<()> {
    if id.as_str() == ADMIN {
        return Err(ServiceError::Conflict("the labeler admin stays active".into()));
    }
    services.store.people().set_active(id, active).await?;
    let detail = json!({"active": active});
    Ok(services.store.audit_log().append(&by.signature(), "set_active", id.as_str(), detail, services.now()).await?)
}

/// Changes role, quota and whether the labeler may come in. A lower role takes effect at once, also in open sessions.
pub async fn change_labeler(
    services: &Services,
    by: &Actor,
    id: &LabelerId,
    role: Option<Role>,
    daily_quota: Option<Option<i64>>,
    active: Option<bool>,
) -> Result<Labeler> {
    if id.as_str() == ADMIN && (role.is_some() || active.is_some()) {
        return Err(ServiceError::Conflict("the labeler admin stays what it is".into()));
    }
    if daily_quota.flatten().is_some_and(|q| q < 0) {
        return Err(bad_input("daily_quota", "must not be negative; null = as configured, 0 = no limit"));
    }
    let labeler = services.store.people().change(id, role, daily_quota, active).await?;
    let detail = json!({"role": role, "daily_quota": daily_quota, "active": active});
    services.store.audit_log().append(&by.signature(), "change_labeler", id.as_str(), detail, services.now()).await?;
    Ok(labeler)
}

pub async fn revoke_invite(services: &Services, by: &Actor, id: &InviteId) -> Result<()> {
    let now = services.now();
    services.store.invites().revoke(id, now).await?;
    Ok(services.store.audit_log().append(&by.signature(), "revoke_invite", id.as_str(), json!({}), now).await?)
}

pub(super) fn check_name(name: &str, field: &str) -> Result<String> {
    let name = name.trim();
    if name.is_empty() || name.len() > 100 || name.chars().any(char::is_control) {
        return Err(bad_input(field, "must be 1 to 100 bytes without control characters"));
    }
    Ok(name.to_owned())
}

//! Who is calling: keys, browser sessions, invites, labelers. Secrets are random and kept only as hashes.

use std::sync::Arc;

use serde_json::json;
use subtle::ConstantTimeEq;

use super::random::secret_hash;
use super::{Random, Result, ServiceError, Services, bad_input, to_the_end};
use crate::config::Config;
use crate::domain::{ApiKey, ApiKeyId, Invite, InviteId, Labeler, LabelerId, Micros, Role, Session};
use crate::store::{AuditFilter, Erase, Erased, Page, Store};

/// The labeler that the admin key acts as; it exists in every store.
pub const ADMIN: &str = "admin";
/// Name of the stored key that was generated at the first start.
const GENERATED_KEY: &str = "generated at the first start";
const MINUTE: Micros = 60_000_000;
const HOUR: Micros = 60 * MINUTE;
const DAY: Micros = 24 * HOUR;

/// What a key may be used for.
pub const SCOPES: &[&str] = &["admin", "feedback", "inference"];

/// A caller that proved who it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Actor {
    pub labeler_id: LabelerId,
    pub name: String,
    pub role: Role,
    /// May give feedback and rank.
    pub feedback: bool,
    pub inference: bool,
    /// What it proved itself with: a key's id, `admin:…` or `session:…`. Rates are counted by it.
    pub credential: String,
    /// The key, where it has a number of tokens a day.
    pub quota: Option<(ApiKeyId, i64)>,
    /// Came by cookie, which browsers send by themselves: state changes need an origin check.
    pub by_cookie: bool,
}

impl Actor {
    pub fn is_admin(&self) -> bool {
        self.role == Role::Admin
    }

    fn admin(credential: String) -> Self {
        Self {
            credential,
            quota: None,
            labeler_id: ADMIN.into(),
            name: ADMIN.to_owned(),
            role: Role::Admin,
            feedback: true,
            inference: true,
            by_cookie: false,
        }
    }
}

/// The admin key of this server: its hash, and the key itself when it has just been made.
pub async fn admin_key(
    config: &Config,
    store: &dyn Store,
    random: &Random,
    now: Micros,
) -> Result<(String, Option<String>)> {
    if let Some(key) = &config.admin_key {
        return Ok((secret_hash(key), None));
    }
    let known = store.list_api_keys().await?;
    if let Some(key) = known.into_iter().find(|k| k.name == GENERATED_KEY && !k.revoked) {
        return Ok((key.key_hash, None));
    }
    let key = random.secret("sk-admin-");
    let stored = ApiKey {
        id: ApiKeyId::new(),
        name: GENERATED_KEY.to_owned(),
        key_hash: secret_hash(&key),
        scopes: vec!["admin".to_owned()],
        labeler_id: Some(ADMIN.into()),
        daily_tokens: None,
        revoked: false,
        created: now,
    };
    let hash = stored.key_hash.clone();
    store.put_api_key(stored).await?;
    Ok((hash, Some(key)))
}

/// The owner of a bearer key; `None` when nobody has it.
pub async fn by_key(services: &Services, key: &str) -> Result<Option<Actor>> {
    let hash = secret_hash(key);
    // Both sides are hashes of secrets; the constant-time comparison costs nothing and closes the question.
    if bool::from(hash.as_bytes().ct_eq(services.admin_key_hash.as_bytes())) {
        return Ok(Some(Actor::admin(admin_credential(services))));
    }
    let Some(found) = services.store.find_api_key(&hash).await? else { return Ok(None) };
    // A generated key is replaced by a configured one, not joined by it.
    if found.revoked || found.name == GENERATED_KEY {
        return Ok(None);
    }
    let has = |scope: &str| found.scopes.iter().any(|s| s == scope);
    if has("admin") {
        return Ok(Some(Actor { name: found.name.clone(), ..Actor::admin(found.id.to_string()) }));
    }
    let mut actor = Actor {
        credential: found.id.to_string(),
        quota: found.daily_tokens.map(|tokens| (found.id.clone(), tokens)),
        labeler_id: found.labeler_id.clone().unwrap_or_else(|| ADMIN.into()),
        name: found.name.clone(),
        role: Role::Labeler,
        feedback: has("feedback") && found.labeler_id.is_some(),
        inference: has("inference"),
        by_cookie: false,
    };
    if let Some(id) = &found.labeler_id {
        let labeler = services.store.get_labeler(id).await?;
        if !labeler.active {
            return Ok(None);
        }
        // A key never carries more than its scopes say: admin needs the scope.
        actor.role = labeler.role.min(Role::Reviewer);
    }
    Ok(Some(actor))
}

/// Names the admin key of today without telling it: sessions opened with another one have ended.
fn admin_credential(services: &Services) -> String {
    format!("admin:{}", &services.admin_key_hash[..16])
}

/// The owner of a session cookie; `None` when it has ended.
pub async fn by_session(services: &Services, token: &str) -> Result<Option<Actor>> {
    let (hash, now) = (secret_hash(token), services.now());
    let Some(session) = services.store.get_session(&hash, now).await? else {
        return Ok(None);
    };
    if session.used + services.live().config.sessions.idle_hours * HOUR <= now {
        services.store.delete_session(&hash).await?;
        return Ok(None);
    }
    if session.credential.starts_with("admin:") && session.credential != admin_credential(services) {
        return Ok(None);
    }
    // Once a minute is enough to know that it is in use.
    if session.used + MINUTE <= now {
        services.store.touch_session(&hash, now).await?;
    }
    let labeler = services.store.get_labeler(&session.labeler_id).await?;
    if !labeler.active {
        return Ok(None);
    }
    Ok(Some(Actor {
        credential: format!("session:{}", &hash[..16]),
        quota: None,
        labeler_id: labeler.id,
        name: labeler.name,
        role: session.role.min(labeler.role),
        feedback: true,
        inference: true,
        by_cookie: true,
    }))
}

/// Opens a session for the owner of a key. Keys without feedback rights have no use for one.
///
/// # Errors
/// `Forbidden` for wrong keys and keys without the `feedback` or `admin` scope.
pub async fn log_in_with_key(services: &Arc<Services>, key: &str) -> Result<(Labeler, String)> {
    let actor = by_key(services, key).await?.filter(|a| a.feedback);
    let Some(actor) = actor else { return Err(ServiceError::Forbidden("this key opens no session".into())) };
    let mut labeler = services.store.get_labeler(&actor.labeler_id).await?;
    labeler.role = actor.role;
    let token = open(services, &labeler, actor.credential).await?;
    Ok((labeler, token))
}

/// Turns an invite into a labeler with a session. The invite works once.
///
/// # Errors
/// `Forbidden` when the invite is unknown, used or expired.
pub async fn log_in_with_invite(services: &Arc<Services>, invite: &str, name: &str) -> Result<(Labeler, String)> {
    let name = check_name(name, "name")?;
    let hash = secret_hash(invite);
    let known = services.store.list_invites().await?.into_iter().find(|i| i.token_hash == hash);
    let Some(known) = known else { return Err(ServiceError::Forbidden("this invite is not valid".into())) };
    let now = services.now();
    let labeler = Labeler::new(LabelerId::new(), name, known.role, now);
    let all = services.clone();
    let labeler = to_the_end(async move {
        match all.store.redeem_invite(&hash, labeler, now).await {
            Ok(labeler) => Ok(labeler),
            Err(crate::store::StoreError::Conflict(_) | crate::store::StoreError::NotFound { .. }) => {
                Err(ServiceError::Forbidden("this invite was used or has expired".into()))
            }
            Err(e) => Err(e.into()),
        }
    })
    .await?;
    let token = open(services, &labeler, String::new()).await?;
    Ok((labeler, token))
}

async fn open(services: &Arc<Services>, labeler: &Labeler, credential: String) -> Result<String> {
    // A fresh token at every login: nothing that was known before can become a session.
    let token = services.random.secret("");
    let now = services.now();
    let session = Session {
        token_hash: secret_hash(&token),
        labeler_id: labeler.id.clone(),
        role: labeler.role,
        credential,
        used: now,
        expires: now + services.live().config.sessions.lifetime_hours * HOUR,
        created: now,
    };
    let services = services.clone();
    to_the_end(async move { Ok(services.store.put_session(session).await?) }).await?;
    Ok(token)
}

pub async fn log_out(services: &Services, token: &str) -> Result<()> {
    Ok(services.store.delete_session(&secret_hash(token)).await?)
}

/// Makes a one-use invite; the token is returned once and never again.
pub async fn invite(services: &Services, by: &Actor, role: Role, note: Option<String>) -> Result<(Invite, String)> {
    if note.as_ref().is_some_and(|n| n.len() > 500) {
        return Err(bad_input("note", "at most 500 bytes"));
    }
    let token = services.random.secret("invite-");
    let now = services.now();
    let invite = Invite {
        id: InviteId::new(),
        token_hash: secret_hash(&token),
        role,
        note,
        expires: now + services.live().config.sessions.invite_hours * HOUR,
        used_by: None,
        created: now,
    };
    services.store.put_invite(invite.clone()).await?;
    services.store.audit(by.labeler_id.as_str(), "invite", invite.id.as_str(), json!({"role": role}), now).await?;
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
        return Err(bad_input("scopes", "name at least one of admin, feedback, inference"));
    }
    if let Some(i) = scopes.iter().position(|s| !SCOPES.contains(&s.as_str())) {
        return Err(bad_input(format!("scopes[{i}]"), "must be admin, feedback or inference"));
    }
    let now = services.now();
    let labeler_id = match labeler_id {
        Some(id) => {
            let found = services.store.get_labeler(&id).await;
            found.map_err(|e| super::not_found_as(e, "labeler_id"))?;
            Some(id)
        }
        None if scopes.iter().any(|s| s == "admin") => Some(ADMIN.into()),
        None if scopes.iter().any(|s| s == "feedback") => {
            let labeler = Labeler::new(LabelerId::new(), name.clone(), Role::Labeler, now);
            services.store.put_labeler(labeler.clone()).await?;
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
        revoked: false,
        created: now,
    };
    services.store.put_api_key(key.clone()).await?;
    let detail = json!({"scopes": key.scopes});
    services.store.audit(by.labeler_id.as_str(), "create_key", key.id.as_str(), detail, now).await?;
    Ok((key, secret))
}

/// Seconds until the key's tokens of the next day, when those of today are used up.
pub async fn exhausted(services: &Services, actor: &Actor) -> Result<Option<u64>> {
    let Some((id, daily)) = &actor.quota else { return Ok(None) };
    let now = services.now();
    let used = services.store.key_tokens(id, now.div_euclid(DAY)).await?;
    Ok((used >= *daily).then(|| ((DAY - now.rem_euclid(DAY)) / 1_000_000 + 1) as u64))
}

/// Charges tokens to the key's day. Requests under way together may pass the limit by what they draw.
pub async fn charge(services: &Services, key: &ApiKeyId, tokens: usize) -> Result<()> {
    let day = services.now().div_euclid(DAY);
    Ok(services.store.add_key_tokens(key, day, tokens as i64).await?)
}

pub async fn revoke_key(services: &Services, by: &Actor, id: &ApiKeyId) -> Result<()> {
    services.store.revoke_api_key(id).await?;
    Ok(services.store.audit(by.labeler_id.as_str(), "revoke_key", id.as_str(), json!({}), services.now()).await?)
}

/// Adds a labeler by hand (keys can then be made for them).
pub async fn add_labeler(services: &Services, by: &Actor, name: &str, role: Role) -> Result<Labeler> {
    let now = services.now();
    let name = check_name(name, "name")?;
    let labeler = Labeler::new(LabelerId::new(), name, role, now);
    services.store.put_labeler(labeler.clone()).await?;
    let detail = json!({"role": role});
    services.store.audit(by.labeler_id.as_str(), "add_labeler", labeler.id.as_str(), detail, now).await?;
    Ok(labeler)
}

pub async fn set_active(services: &Services, by: &Actor, id: &LabelerId, active: bool) -> Result<()> {
    if id.as_str() == ADMIN {
        return Err(ServiceError::Conflict("the labeler admin stays active".into()));
    }
    services.store.set_labeler_active(id, active).await?;
    let detail = json!({"active": active});
    Ok(services.store.audit(by.labeler_id.as_str(), "set_active", id.as_str(), detail, services.now()).await?)
}

/// Changes role, quota and whether the labeler may come in. A lower role holds at once, in open sessions too.
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
    let labeler = services.store.change_labeler(id, role, daily_quota, active).await?;
    let detail = json!({"role": role, "daily_quota": daily_quota, "active": active});
    services.store.audit(by.labeler_id.as_str(), "change_labeler", id.as_str(), detail, services.now()).await?;
    Ok(labeler)
}

pub async fn revoke_invite(services: &Services, by: &Actor, id: &InviteId) -> Result<()> {
    let now = services.now();
    services.store.revoke_invite(id, now).await?;
    Ok(services.store.audit(by.labeler_id.as_str(), "revoke_invite", id.as_str(), json!({}), now).await?)
}

/// What feedback events carry in the place of a name.
pub fn actor_hash(id: &LabelerId) -> String {
    secret_hash(id.as_str())[..16].to_owned()
}

/// Erases a person's data on their request; the audit trail says that it was done, not what it was.
///
/// # Errors
/// `Conflict` for the built-in labelers.
pub async fn erase(services: &Arc<Services>, by: &Actor, id: &LabelerId, how: Erase) -> Result<Erased> {
    let (services, id, actor) = (services.clone(), id.clone(), by.labeler_id.clone());
    to_the_end(async move {
        let now = services.now();
        let erased = services.store.erase_labeler(&id, how, &actor_hash(&id), now).await?;
        let detail = json!({"judgments": how, "erased": erased});
        services.store.audit(actor.as_str(), "erase", id.as_str(), detail, now).await?;
        Ok(erased)
    })
    .await
}

/// Everything stored about a person, for the person.
pub async fn personal_data(services: &Services, by: &Actor, id: &LabelerId) -> Result<serde_json::Value> {
    let store = &services.store;
    let labeler = store.get_labeler(id).await?;
    let mut judgments = Vec::new();
    let mut page = Page { after: None, limit: 500 };
    loop {
        let batch = store.list_judgments(page.clone(), Some(id)).await?;
        let Some(last) = batch.last() else { break };
        page.after = Some(last.id.to_string());
        judgments.extend(batch);
    }
    let data = store.personal_data(id, &actor_hash(id)).await?;
    let mine = |used_by: &Option<LabelerId>| used_by.as_ref() == Some(id);
    let invites: Vec<_> = store
        .list_invites()
        .await?
        .into_iter()
        .filter(|i| mine(&i.used_by))
        .map(|i| json!({"id": i.id, "role": i.role, "note": i.note, "created": i.created}))
        .collect();
    let keys: Vec<_> = store
        .list_api_keys()
        .await?
        .into_iter()
        .filter(|k| mine(&k.labeler_id))
        .map(|k| json!({"id": k.id, "name": k.name, "scopes": k.scopes, "created": k.created}))
        .collect();
    let filter = AuditFilter { actor: Some(id.to_string()), ..AuditFilter::default() };
    let actions = store.list_audit(&filter, None, 10_000).await?;
    store.audit(by.labeler_id.as_str(), "export_person", id.as_str(), json!({}), services.now()).await?;
    Ok(json!({"labeler": labeler, "judgments": judgments, "demonstrations": data.demonstrations,
              "feedback_events": data.feedback_events, "assignments": data.assignments, "sessions": data.sessions,
              "invites": invites, "keys": keys, "actions": actions}))
}

fn check_name(name: &str, field: &str) -> Result<String> {
    let name = name.trim();
    if name.is_empty() || name.len() > 100 || name.chars().any(char::is_control) {
        return Err(bad_input(field, "must be 1 to 100 bytes without control characters"));
    }
    Ok(name.to_owned())
}

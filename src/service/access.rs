//! Authentication of callers by API keys and browser sessions. Secrets are random and stored as hashes only.

use subtle::ConstantTimeEq;

use super::random::secret_hash;
use super::{Random, Result, Services};
use crate::config::Config;
use crate::domain::time::{HOUR, MINUTE, after};
use crate::domain::{ApiKey, ApiKeyId, KeyOrigin, Labeler, LabelerId, Micros, Role, Session, Signature};
use crate::store::{OpenSession, Store, StoreError};

/// The labeler that the configured admin key acts as; it exists in every store.
pub const ADMIN: &str = "admin";
/// A time stamp further than this in the future was made by a wrong clock.
pub(super) const CLOCK_SLACK: Micros = 5 * MINUTE;
/// Credential of the configured admin key in the audit trail.
const CONFIGURED: &str = "configured";
const INVITE: &str = "invite";
/// Credential of people and sessions that an OpenID Connect provider has authenticated.
pub(super) const OIDC: &str = "oidc";

/// An authenticated caller.
#[derive(Clone, Debug, PartialEq)]
pub struct Actor {
    pub labeler_id: LabelerId,
    pub name: String,
    pub role: Role,
    /// May give feedback and rank.
    pub feedback: bool,
    pub inference: bool,
    /// Identity by which rates are limited: a key's id, also for the sessions that the key opened, `admin:…`, or
    /// `person:…`.
    pub credential: String,
    /// The credential: a key's id, `configured`, `link:…`, `invite`, `oidc` or `proxy`; for a session, the credential that
    /// opened it.
    pub origin: String,
    /// The API key with a daily token limit, if there is one, also behind a session.
    pub quota: Option<(ApiKeyId, i64)>,
    /// Whether the caller was authenticated by a cookie, which browsers send by themselves: state changes require an
    /// origin check.
    pub by_cookie: bool,
    way: SignInMethod,
}

/// How the caller was authenticated, to check it again.
#[derive(Clone, Debug, PartialEq)]
enum SignInMethod {
    Configured,
    Key(ApiKeyId),
    /// Hash of its token.
    Session(String),
    /// A reverse proxy named this person.
    Proxied(LabelerId),
}

impl Actor {
    pub fn is_admin(&self) -> bool {
        self.role == Role::Admin
    }

    /// The signature of a change in the audit trail.
    pub fn signature(&self) -> Signature {
        Signature { actor: self.labeler_id.to_string(), credential: Some(self.origin.clone()) }
    }

    /// Whoever runs this program on the command line, with the rights of an administrator.
    pub fn command_line() -> Self {
        Self { origin: "command line".to_owned(), ..Self::configured("admin:command line".to_owned()) }
    }

    fn configured(credential: String) -> Self {
        Self {
            credential,
            origin: CONFIGURED.to_owned(),
            quota: None,
            labeler_id: ADMIN.into(),
            name: ADMIN.to_owned(),
            role: Role::Admin,
            feedback: true,
            inference: true,
            by_cookie: false,
            way: SignInMethod::Configured,
        }
    }
}

/// Generates an admin key if none is configured and no generated one is live; returns the new key.
pub async fn generate_admin_key(
    config: &Config,
    store: &Store,
    random: &Random,
    now: Micros,
) -> Result<Option<String>> {
    let live = |k: &ApiKey| k.origin == KeyOrigin::Generated && !k.revoked;
    if config.admin_key.is_some() || store.api_keys().list().await?.iter().any(live) {
        return Ok(None);
    }
    let key = random.secret("sk-admin-");
    let stored = ApiKey {
        id: ApiKeyId::new(),
        name: "generated at the first start".to_owned(),
        key_hash: secret_hash(&key),
        scopes: vec!["admin".to_owned()],
        labeler_id: Some(ADMIN.into()),
        daily_tokens: None,
        origin: KeyOrigin::Generated,
        revoked: false,
        created: now,
    };
    store.api_keys().put(stored).await?;
    Ok(Some(key))
}

/// The owner of a stored key. Such keys are 256 random bits and cannot be guessed.
pub async fn by_stored_key(services: &Services, key: &str) -> Result<Option<Actor>> {
    let found = services.store.api_keys().owner(&secret_hash(key)).await?;
    Ok(found.and_then(|(key, person)| of_key(services, key, person)))
}

/// The administrator, if `key` is the configured admin key. That key was chosen by a person, so callers must limit
/// attempts.
pub fn by_configured_key(services: &Services, key: &str) -> Option<Actor> {
    let known = services.admin_key_hash.as_deref()?;
    let credential = admin_credential(services)?;
    // Both sides are hashes of secrets, compared in constant time.
    bool::from(secret_hash(key).as_bytes().ct_eq(known.as_bytes())).then(|| Actor::configured(credential))
}

/// The actor of a live key, with the current rights of its person.
fn of_key(services: &Services, key: ApiKey, person: Option<Labeler>) -> Option<Actor> {
    // A configured admin key replaces a generated one.
    if key.revoked || (key.origin == KeyOrigin::Generated && services.admin_key_hash.is_some()) {
        return None;
    }
    let has = |scope: &str| key.scopes.iter().any(|s| s == scope);
    let role = match &key.labeler_id {
        None => Role::Labeler,
        Some(_) => {
            let person = person.filter(|person| person.active)?;
            // A key's rights are limited by its scopes and by its person's role.
            if has("admin") { person.role } else { person.role.min(Role::Reviewer) }
        }
    };
    let admin = role == Role::Admin;
    Some(Actor {
        credential: key.id.to_string(),
        origin: key.id.to_string(),
        quota: key.daily_tokens.map(|tokens| (key.id.clone(), tokens)),
        feedback: admin || (has("feedback") && key.labeler_id.is_some()),
        inference: admin || has("inference"),
        labeler_id: key.labeler_id.unwrap_or_else(|| ADMIN.into()),
        name: key.name,
        role,
        by_cookie: false,
        way: SignInMethod::Key(key.id),
    })
}

/// The actor of a person whom the reverse proxy has authenticated; `None` when they were locked out. Browsers send the
/// proxy's own credential by themselves, so the actor is treated as one with a cookie.
pub(super) fn of_proxied(person: Labeler) -> Option<Actor> {
    person.active.then(|| Actor {
        credential: format!("person:{}", person.id),
        origin: "proxy".to_owned(),
        quota: None,
        way: SignInMethod::Proxied(person.id.clone()),
        labeler_id: person.id,
        name: person.name,
        role: person.role,
        feedback: true,
        inference: true,
        by_cookie: true,
    })
}

/// Identifies the configured admin key without revealing it. Sessions that were opened with another key have ended.
fn admin_credential(services: &Services) -> Option<String> {
    services.admin_key_hash.as_ref().map(|hash| format!("admin:{}", &hash[..16]))
}

/// The owner of a session cookie; `None` when it has ended.
pub async fn by_session(services: &Services, token: &str) -> Result<Option<Actor>> {
    let (hash, now) = (secret_hash(token), services.now());
    let Some((session, actor)) = of_session(services, &hash, now).await? else { return Ok(None) };
    // Recorded at most once a minute. A recorded use in the future was made by a wrong clock.
    if session.used + MINUTE <= now || session.used > now + CLOCK_SLACK {
        services.store.sessions().touch(&hash, now).await?;
    }
    Ok(Some(actor))
}

async fn of_session(services: &Services, hash: &str, now: Micros) -> Result<Option<(Session, Actor)>> {
    let Some(open) = services.store.sessions().open(hash, now).await? else { return Ok(None) };
    let OpenSession { session, person: labeler, link_is_live, key } = open;
    let sessions = &services.live().config.sessions;
    let idle = after(session.used, sessions.idle_hours, HOUR) <= now;
    let old = after(session.created, sessions.lifetime_hours, HOUR) <= now;
    // Opened while the clock was ahead: it would stay open until that time.
    let from_the_future = session.created > now + CLOCK_SLACK;
    if idle || old || from_the_future {
        services.store.sessions().delete(hash).await?;
        return Ok(None);
    }
    let way = SignInMethod::Session(hash.to_owned());
    let opened_by = session.credential.as_str();
    let key = match opened_by {
        // Without a provider its sessions have ended.
        OIDC if services.config.auth.oidc.issuer.is_none() => return Ok(None),
        "" | OIDC => None,
        link if link.starts_with("link:") => {
            if !link_is_live {
                return Ok(None);
            }
            None
        }
        configured if configured.starts_with("admin:") => {
            if Some(configured) != admin_credential(services).as_deref() {
                return Ok(None);
            }
            None
        }
        _ => match key.and_then(|(key, owner)| of_key(services, key, owner)) {
            Some(actor) => Some(actor),
            None => return Ok(None),
        },
    };
    let actor = match key {
        // The key's current rights, and no more than when the session was opened.
        Some(key) => Actor { role: key.role.min(session.role), name: labeler.name, by_cookie: true, way, ..key },
        None => Actor {
            credential: format!("person:{}", labeler.id),
            origin: match opened_by {
                "" => INVITE.to_owned(),
                OIDC => OIDC.to_owned(),
                link if link.starts_with("link:") => link.to_owned(),
                _ => CONFIGURED.to_owned(),
            },
            quota: None,
            labeler_id: labeler.id,
            name: labeler.name,
            role: session.role.min(labeler.role),
            feedback: true,
            inference: true,
            by_cookie: true,
            way,
        },
    };
    Ok(Some((session, actor)))
}

/// The owner of data that outlives a request: a key's id, `configured` for the configured admin key, or `person:` and
/// an id for people who signed in without a key.
pub fn owner_of(actor: &Actor) -> String {
    if actor.credential.starts_with("admin:") { CONFIGURED.to_owned() } else { actor.credential.clone() }
}

/// The owner as an actor with its current rights; `None` when its key was revoked or the person was locked out.
pub async fn by_owner(services: &Services, owner: &str) -> Result<Option<Actor>> {
    if owner == CONFIGURED {
        return Ok(admin_credential(services).map(Actor::configured));
    }
    let Some(person) = owner.strip_prefix("person:") else {
        let Some(key) = services.store.api_keys().live(&owner.into()).await? else { return Ok(None) };
        let person = match &key.labeler_id {
            Some(id) => Some(services.store.people().get(id).await?),
            None => None,
        };
        return Ok(of_key(services, key, person));
    };
    let person = match services.store.people().get(&person.into()).await {
        Ok(person) if person.active => person,
        Ok(_) | Err(StoreError::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    Ok(Some(Actor {
        credential: owner.to_owned(),
        origin: INVITE.to_owned(),
        quota: None,
        labeler_id: person.id,
        name: person.name,
        role: person.role,
        feedback: true,
        inference: true,
        by_cookie: false,
        way: SignInMethod::Session(String::new()),
    }))
}

/// The caller with its current rights; `None` when its key was revoked, its session has ended, or the person was locked
/// out. Does not count as a use of the session.
pub async fn refresh(services: &Services, actor: &Actor) -> Result<Option<Actor>> {
    match &actor.way {
        SignInMethod::Configured => {
            Ok((Some(&actor.credential) == admin_credential(services).as_ref()).then(|| actor.clone()))
        }
        SignInMethod::Key(id) => {
            let Some(key) = services.store.api_keys().live(id).await? else { return Ok(None) };
            let person = match &key.labeler_id {
                Some(id) => Some(services.store.people().get(id).await?),
                None => None,
            };
            Ok(of_key(services, key, person))
        }
        SignInMethod::Proxied(id) => match services.store.people().get(id).await {
            Ok(person) => Ok(of_proxied(person)),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        },
        SignInMethod::Session(hash) => Ok(of_session(services, hash, services.now()).await?.map(|(_, actor)| actor)),
    }
}

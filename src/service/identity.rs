//! People whom another system has authenticated: a reverse proxy in front of the server, or an OpenID Connect provider.
//! They become people here when they come first.

use std::sync::Arc;

use serde_json::json;

use super::access::{self, Actor};
use super::sign_in::Refusal;
use super::{Result, Services, people, uncancelled};
use crate::config::AuthConfig;
use crate::domain::{Labeler, LabelerId, Role, Signature};

/// The provider of the proxy's identities in the store, and the credential in the audit trail.
const PROXY: &str = "proxy";

/// What another system says of a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// Who they are there.
    pub subject: String,
    /// The name to show.
    pub name: Option<String>,
    /// Their role by their groups; `None` = as administrators set it here.
    pub role: Option<Role>,
}

/// A system that authenticates people.
#[derive(Clone, Debug)]
pub(super) struct Source {
    /// Its name in the store.
    pub provider: String,
    /// The credential in the audit trail.
    pub credential: &'static str,
}

/// The highest role that one of the groups has in `auth.roles`; `Labeler` when none has one.
pub fn role_of<'a>(config: &AuthConfig, groups: impl Iterator<Item = &'a str>) -> Role {
    groups.filter_map(|group| Role::parse(config.roles.get(group)?)).max().unwrap_or(Role::Labeler)
}

/// The person whom the proxy names by these claims, with their current rights.
///
/// # Errors
/// `SignIn` for a person who was locked out; `BadInput` for a name that cannot be one.
pub async fn by_claims(services: &Arc<Services>, claims: Claims) -> Result<Actor> {
    let source = Source { provider: PROXY.to_owned(), credential: PROXY };
    let person = person(services, &source, claims).await?;
    access::of_proxied(person).ok_or_else(|| Refusal::LockedOut.into())
}

/// The person of these claims, with the role that the claims give.
///
/// # Errors
/// `SignIn` for a person who was locked out; `BadInput` for a name that cannot be one.
pub(super) async fn person(services: &Arc<Services>, source: &Source, claims: Claims) -> Result<Labeler> {
    let known = services.store.people().by_identity(&source.provider, &claims.subject).await?;
    let person = match known {
        Some(person) => person,
        None => join(services, source, &claims).await?,
    };
    if !person.active {
        return Err(Refusal::LockedOut.into());
    }
    match claims.role {
        Some(role) if role != person.role => set_role(services, source, &person.id, role).await,
        _ => Ok(person),
    }
}

/// Makes a person of the claims.
async fn join(services: &Arc<Services>, source: &Source, claims: &Claims) -> Result<Labeler> {
    let name = people::check_name(claims.name.as_deref().unwrap_or(&claims.subject), "name")?;
    let (role, now) = (claims.role.unwrap_or(Role::Labeler), services.now());
    let new = Labeler::new(LabelerId::new(), name, role, now);
    let (all, source, subject) = (services.clone(), source.clone(), claims.subject.clone());
    uncancelled(async move {
        let person = all.store.people().join(&source.provider, &subject, new.clone()).await?;
        // Another request of the same person may have come first.
        if person.id == new.id {
            let by = signature(&source, &person.id);
            all.store.audit_log().append(&by, "join", person.id.as_str(), json!({"role": role}), now).await?;
        }
        Ok(person)
    })
    .await
}

/// Gives a person the role of their groups.
async fn set_role(services: &Arc<Services>, source: &Source, id: &LabelerId, role: Role) -> Result<Labeler> {
    let (all, source, id) = (services.clone(), source.clone(), id.clone());
    uncancelled(async move {
        let person = all.store.people().change(&id, Some(role), None, None).await?;
        let (by, detail) = (signature(&source, &id), json!({"role": role}));
        all.store.audit_log().append(&by, "change_labeler", id.as_str(), detail, all.now()).await?;
        Ok(person)
    })
    .await
}

fn signature(source: &Source, id: &LabelerId) -> Signature {
    Signature { actor: id.to_string(), credential: Some(source.credential.to_owned()) }
}

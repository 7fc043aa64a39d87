//! People whom a reverse proxy in front of the server has authenticated. They become people here at their first
//! request.

use std::sync::Arc;

use serde_json::json;

use super::access::{self, Actor};
use super::sign_in::Refusal;
use super::{Result, Services, people, uncancelled};
use crate::domain::{Labeler, LabelerId, Role, Signature};

/// The provider of these identities in the store, and the credential in the audit trail.
const PROXY: &str = "proxy";

/// What the proxy says of the person behind a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// Who they are there.
    pub subject: String,
    /// The name to show.
    pub name: Option<String>,
    /// Their role by their groups; `None` = as administrators set it here.
    pub role: Option<Role>,
}

/// The person of these claims, with their current rights.
///
/// # Errors
/// `SignIn` for a person who was locked out; `BadInput` for a name that cannot be one.
pub async fn by_claims(services: &Arc<Services>, claims: Claims) -> Result<Actor> {
    let known = services.store.people().by_identity(PROXY, &claims.subject).await?;
    let person = match known {
        Some(person) => person,
        None => join(services, &claims).await?,
    };
    if !person.active {
        return Err(Refusal::LockedOut.into());
    }
    let person = match claims.role {
        Some(role) if role != person.role => set_role(services, &person.id, role).await?,
        _ => person,
    };
    access::of_proxied(person).ok_or_else(|| Refusal::LockedOut.into())
}

/// Makes a person of the claims.
async fn join(services: &Arc<Services>, claims: &Claims) -> Result<Labeler> {
    let name = people::check_name(claims.name.as_deref().unwrap_or(&claims.subject), "name")?;
    let (role, now) = (claims.role.unwrap_or(Role::Labeler), services.now());
    let new = Labeler::new(LabelerId::new(), name, role, now);
    let (all, subject) = (services.clone(), claims.subject.clone());
    uncancelled(async move {
        let person = all.store.people().join(PROXY, &subject, new.clone()).await?;
        // Another request of the same person may have come first.
        if person.id == new.id {
            let detail = json!({"role": role});
            all.store.audit_log().append(&signature(&person.id), "join", person.id.as_str(), detail, now).await?;
        }
        Ok(person)
    })
    .await
}

/// Gives a person the role of their groups.
async fn set_role(services: &Arc<Services>, id: &LabelerId, role: Role) -> Result<Labeler> {
    let (all, id) = (services.clone(), id.clone());
    uncancelled(async move {
        let person = all.store.people().change(&id, Some(role), None, None).await?;
        let detail = json!({"role": role});
        all.store.audit_log().append(&signature(&id), "change_labeler", id.as_str(), detail, all.now()).await?;
        Ok(person)
    })
    .await
}

fn signature(id: &LabelerId) -> Signature {
    Signature { actor: id.to_string(), credential: Some(PROXY.to_owned()) }
}

//! Signing in and out: keys, invites and personal links open browser sessions.

use std::sync::Arc;

use super::access::{Actor, CLOCK_SLACK};
use super::random::secret_hash;
use super::{Result, ServiceError, Services, people, uncancelled};
use crate::domain::time::{HOUR, after};
use crate::domain::{Invite, Labeler, LabelerId, LinkState, Role, Session};
use crate::store::StoreError;

/// Why a sign-in was refused. Each reason has a code, because each requires a different action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    UnknownKey,
    /// Only keys with `feedback` or `admin` open sessions.
    KeyWithoutSession,
    UnknownInvite,
    UsedInvite,
    ExpiredInvite,
    RevokedInvite,
    UnknownLink,
    ReplacedLink,
    RevokedLink,
    ExpiredLink,
    LockedOut,
    /// The OpenID Connect provider has not signed the person in, or the person has declined.
    ProviderDenied,
    /// The OpenID Connect provider cannot be reached or has failed.
    ProviderUnavailable,
    /// The sign-in was begun in another browser, has ended already or has taken too long.
    ProviderState,
    /// The OpenID Connect provider's answer cannot be verified.
    ProviderAnswer,
}

impl Refusal {
    pub fn code(self) -> &'static str {
        match self {
            Self::UnknownKey => "key_unknown",
            Self::KeyWithoutSession => "key_opens_no_session",
            Self::UnknownInvite => "invite_unknown",
            Self::UsedInvite => "invite_used",
            Self::ExpiredInvite => "invite_expired",
            Self::RevokedInvite => "invite_revoked",
            Self::UnknownLink => "link_unknown",
            Self::ReplacedLink => "link_replaced",
            Self::RevokedLink => "link_revoked",
            Self::ExpiredLink => "link_expired",
            Self::LockedOut => "person_locked_out",
            Self::ProviderDenied => "oidc_denied",
            Self::ProviderUnavailable => "oidc_unavailable",
            Self::ProviderState => "oidc_state",
            Self::ProviderAnswer => "oidc_answer",
        }
    }

    pub fn message(self) -> &'static str {
        match self {
            Self::UnknownKey => "this key is not known or was revoked",
            Self::KeyWithoutSession => {
                "this key is for programs only; sign in with a key that has the scope feedback or admin"
            }
            Self::UnknownInvite => "this invite is not known; check that the whole link was copied",
            Self::UsedInvite => {
                "this invite was used already: an invite works once; use the sign-in link that was shown then, or ask for a \
                 new link"
            }
            Self::ExpiredInvite => "this invite has expired; ask for a new one",
            Self::RevokedInvite => "this invite was revoked; ask for a new one",
            Self::UnknownLink => "this sign-in link is not known; check that the whole link was copied",
            Self::ReplacedLink => "this sign-in link was replaced by a newer one; use that one, or ask for a new link",
            Self::RevokedLink => "this sign-in link was revoked; ask for a new one",
            Self::ExpiredLink => "this sign-in link has expired; ask for a new one",
            Self::LockedOut => "this person may not sign in; ask the administrator",
            Self::ProviderDenied => "the provider did not sign this person in; try again or ask its administrator",
            Self::ProviderUnavailable => "the sign-in provider does not answer; try again later",
            Self::ProviderState => "this sign-in has ended or was begun in another browser; begin again",
            Self::ProviderAnswer => {
                "the sign-in provider's answer could not be verified; the server's log has the reason"
            }
        }
    }

    /// Whether the secret is unknown, as a guessed one would be.
    pub fn is_guess(self) -> bool {
        matches!(self, Self::UnknownKey | Self::UnknownInvite | Self::UnknownLink)
    }
}

impl From<Refusal> for ServiceError {
    fn from(refusal: Refusal) -> Self {
        Self::SignIn(refusal)
    }
}

/// Opens a session for the owner of a key. Keys without feedback rights cannot open one.
///
/// # Errors
/// `SignIn` for keys without the `feedback` or `admin` scope.
pub async fn log_in_as(services: &Arc<Services>, actor: Actor) -> Result<(Labeler, String)> {
    if !actor.feedback {
        return Err(Refusal::KeyWithoutSession.into());
    }
    let mut labeler = services.store.people().get(&actor.labeler_id).await?;
    labeler.role = actor.role;
    let token = open(services, &labeler, actor.credential).await?;
    Ok((labeler, token))
}

/// An invite that can still be accepted.
///
/// # Errors
/// `SignIn` when it is unknown, used, revoked or expired.
pub async fn open_invite(services: &Services, invite: &str) -> Result<Invite> {
    let (hash, now) = (secret_hash(invite), services.now());
    let known = services.store.invites().list().await?.into_iter().find(|i| i.token_hash == hash);
    let invite = known.ok_or(Refusal::UnknownInvite)?;
    let refusal = match &invite {
        i if i.used_by.is_some() => Some(Refusal::UsedInvite),
        i if i.revoked => Some(Refusal::RevokedInvite),
        // Also an invite that was made while the clock was ahead.
        i if i.expires <= now || i.created > now + CLOCK_SLACK => Some(Refusal::ExpiredInvite),
        _ => None,
    };
    refusal.map_or(Ok(invite), |r| Err(r.into()))
}

/// Turns an invite into a person with a session and a sign-in link of their own. The invite works once.
///
/// # Errors
/// `SignIn` as [`open_invite`]; `Conflict` when a person of this name exists already.
pub async fn log_in_with_invite(
    services: &Arc<Services>,
    invite: &str,
    name: Option<&str>,
) -> Result<(Labeler, String, String)> {
    let known = open_invite(services, invite).await?;
    let name = match (name, &known.name) {
        (Some(name), _) => people::check_name(name, "name")?,
        (None, Some(name)) => name.clone(),
        (None, None) => return Err(super::bad_input("name", "is missing: give your name")),
    };
    if people::find_by_name(services, &name).await?.is_some() {
        return Err(ServiceError::Conflict(format!(
            "a person called {name} exists already; if that is you, sign in with your own link or ask for a new one, \
             otherwise choose another name"
        )));
    }
    let now = services.now();
    let labeler = Labeler::new(LabelerId::new(), name, known.role, now);
    let all = services.clone();
    let (labeler, link) = uncancelled(async move {
        let labeler = match all.store.invites().redeem(&known.token_hash, labeler, now).await {
            Ok(labeler) => labeler,
            // Another request has used the invite.
            Err(StoreError::Conflict(_) | StoreError::NotFound { .. }) => return Err(Refusal::UsedInvite.into()),
            Err(e) => return Err(e.into()),
        };
        let (_, link) = people::put_link(&all, &labeler.id, None).await?;
        Ok((labeler, link))
    })
    .await?;
    let token = open(services, &labeler, String::new()).await?;
    Ok((labeler, token, link))
}

/// Opens a session for the person of a sign-in link, which may be used any number of times.
///
/// # Errors
/// `SignIn` when it is unknown, replaced, revoked or expired, or the person was locked out.
pub async fn log_in_with_link(services: &Arc<Services>, link: &str) -> Result<(Labeler, String)> {
    let now = services.now();
    let link = services.store.links().find(&secret_hash(link)).await?.ok_or(Refusal::UnknownLink)?;
    let labeler = services.store.people().get(&link.labeler_id).await?;
    match link.state {
        _ if !labeler.active => return Err(Refusal::LockedOut.into()),
        LinkState::Replaced => return Err(Refusal::ReplacedLink.into()),
        LinkState::Revoked => return Err(Refusal::RevokedLink.into()),
        LinkState::Active => {}
    }
    if let Some(expires) = link.expires
        && (expires <= now || link.created > now + CLOCK_SLACK)
    {
        return Err(Refusal::ExpiredLink.into());
    }
    services.store.links().touch(&link.id, now).await?;
    let token = open(services, &labeler, format!("link:{}", link.id)).await?;
    Ok((labeler, token))
}

/// The path of a person's sign-in link. The token is behind `#`, which browsers do not send, so it is in no log.
pub fn link_url(labeler: &Labeler, token: &str) -> String {
    let page = if labeler.role == Role::Admin { "admin" } else { "label" };
    format!("/{page}#link={token}")
}

/// Opens a session of a person; `credential` names how they signed in. Returns the cookie's token.
pub(super) async fn open(services: &Arc<Services>, labeler: &Labeler, credential: String) -> Result<String> {
    // Every login has a new token, which prevents session fixation.
    let token = services.random.secret("");
    let now = services.now();
    let session = Session {
        token_hash: secret_hash(&token),
        labeler_id: labeler.id.clone(),
        role: labeler.role,
        credential,
        used: now,
        expires: after(now, services.live().config.sessions.lifetime_hours, HOUR),
        created: now,
    };
    let services = services.clone();
    uncancelled(async move { Ok(services.store.sessions().put(session).await?) }).await?;
    Ok(token)
}

/// Ends the session of a cookie's token.
pub async fn log_out(services: &Services, token: &str) -> Result<()> {
    Ok(services.store.sessions().delete(&secret_hash(token)).await?)
}

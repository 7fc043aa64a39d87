//! Sign-in and sign-out on the pages: a key, a personal link or an invite is exchanged for a cookie. Secrets are sent
//! in bodies, never in addresses, which are logged.

use std::net::IpAddr;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::AppState;
use super::auth::{self, COOKIE, MaybeCaller};
use super::error::{ApiError, ApiResult};
use super::extract::Json;
use super::peer::ClientAddress;
use crate::domain::{LabelerId, Micros, Role};
use crate::service::sign_in::{self, Refusal};
use crate::service::{self, ServiceError};

/// Exactly one credential. The code of a 403 gives the reason: `key_unknown`, `key_opens_no_session`,
/// `person_locked_out`, and `invite_` or `link_` with `unknown`, `used`, `replaced`, `revoked` or `expired`.
#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LogIn {
    /// An admin or feedback key.
    pub key: Option<String>,
    /// Or: a personal sign-in link's token.
    pub link: Option<String>,
    /// Or: an invite, with the name of the new person; absent = the name in the invite.
    pub invite: Option<String>,
    pub name: Option<String>,
}

/// The signed-in person.
#[derive(Debug, Serialize, JsonSchema)]
pub struct SignedIn {
    pub labeler: Person,
    /// After an invite: the person's sign-in link, shown once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link: Option<OwnLink>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct Person {
    pub id: LabelerId,
    pub name: String,
    pub role: Role,
}

/// A personal sign-in link.
#[derive(Debug, Serialize, JsonSchema)]
pub struct OwnLink {
    pub token: String,
    /// The page and the token as a path of this server.
    pub url: String,
}

pub async fn log_in(
    State(state): State<AppState>,
    ClientAddress(from): ClientAddress,
    headers: HeaderMap,
    Json(body): Json<LogIn>,
) -> ApiResult<Response> {
    // Another site's page must not sign a visitor in as another person.
    auth::same_origin(&headers)?;
    let services = &state.services;
    let mut link = None;
    let (labeler, token) = match (body.key, body.link, body.invite, body.name) {
        (Some(key), None, None, None) => {
            let actor = auth::by_key(&state, &key, from, false).await?;
            let actor = actor.ok_or(ServiceError::SignIn(Refusal::UnknownKey))?;
            sign_in::log_in_as(services, actor).await?
        }
        (None, Some(link), None, None) => {
            let signed_in = sign_in::log_in_with_link(services, &link).await;
            counted(&state, from, signed_in)?
        }
        (None, None, Some(invite), name) => {
            let signed_in = sign_in::log_in_with_invite(services, &invite, name.as_deref()).await;
            let (labeler, token, own) = counted(&state, from, signed_in)?;
            link = Some(OwnLink { url: sign_in::link_url(&labeler, &own), token: own });
            (labeler, token)
        }
        _ => return Err(ApiError::bad("key", "give a key, a link, or an invite with a name")),
    };
    if let Some(old) = auth::cookie(&headers) {
        sign_in::log_out(services, old).await?;
    }
    let labeler = Person { id: labeler.id, name: labeler.name, role: labeler.role };
    let mut response = axum::Json(SignedIn { labeler, link }).into_response();
    set_cookie(&state, &mut response, &token, services.live().config.sessions.lifetime_hours * 3600)?;
    Ok(response)
}

/// Counts an unknown secret; an address with too many must wait.
fn counted<T>(state: &AppState, from: Option<IpAddr>, found: service::Result<T>) -> ApiResult<T> {
    match found {
        Err(ServiceError::SignIn(refusal)) if refusal.is_guess() => {
            auth::may_try(state, from)?;
            state.rates.guesses.wrong(from, None);
            Err(ServiceError::SignIn(refusal).into())
        }
        found => Ok(found?),
    }
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct InviteLook {
    pub invite: String,
}

/// The person an invite is for.
#[derive(Debug, Serialize, JsonSchema)]
pub struct InviteGreeting {
    pub name: Option<String>,
    pub role: Role,
    /// µs UTC.
    pub expires: Micros,
}

/// Shows who an invite is for, before it is accepted.
pub async fn look_at_invite(
    State(state): State<AppState>,
    ClientAddress(from): ClientAddress,
    Json(body): Json<InviteLook>,
) -> ApiResult<axum::Json<InviteGreeting>> {
    let found = sign_in::open_invite(&state.services, &body.invite).await;
    let invite = counted(&state, from, found)?;
    Ok(axum::Json(InviteGreeting { name: invite.name, role: invite.role, expires: invite.expires }))
}

pub async fn who(caller: MaybeCaller) -> ApiResult<axum::Json<SignedIn>> {
    let actor = caller.0.ok_or_else(|| ApiError::unauthorized("no session: sign in first"))?;
    let labeler = Person { id: actor.labeler_id, name: actor.name, role: actor.role };
    Ok(axum::Json(SignedIn { labeler, link: None }))
}

pub async fn log_out(State(state): State<AppState>, headers: HeaderMap) -> ApiResult<Response> {
    if let Some(token) = auth::cookie(&headers) {
        sign_in::log_out(&state.services, token).await?;
    }
    let mut response = StatusCode::NO_CONTENT.into_response();
    set_cookie(&state, &mut response, "", 0)?;
    Ok(response)
}

fn set_cookie(state: &AppState, response: &mut Response, token: &str, seconds: i64) -> ApiResult<()> {
    let cookie = session_cookie(state, token, seconds);
    let value = HeaderValue::from_str(&cookie).map_err(|_| ApiError::bad("key", "cannot become a cookie"))?;
    response.headers_mut().insert(header::SET_COOKIE, value);
    Ok(())
}

/// The session cookie as a header; without a token it ends the session in the browser.
pub(super) fn session_cookie(state: &AppState, token: &str, seconds: i64) -> String {
    let secure = if state.services.config.server.secure_cookies { "; Secure" } else { "" };
    format!("{COOKIE}={token}; Path=/; HttpOnly; SameSite=Strict; Max-Age={seconds}{secure}")
}

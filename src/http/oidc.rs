//! Sign-in by an OpenID Connect provider: the way to its page and the way back. Failures are told on the sign-in page,
//! which gets the code of the reason behind the `#` of its address.

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::AppState;
use super::auth;
use super::error::{ApiError, ApiResult};
use super::extract;
use super::peer::ClientAddress;
use super::session::session_cookie;
use crate::service::ServiceError;
use crate::service::oidc::{self, Answer, Attempt};
use crate::service::sign_in::{self, Refusal};

/// Holds the secret of a sign-in that this browser has begun, and the page to return to.
const COOKIE: &str = "instructd_oidc";
/// The cookie's path: the routes of this file.
const PATH: &str = "/session/oidc";
/// Seconds for a person to sign in at the provider.
const LIFETIME: u32 = 900;

/// The ways to sign in beside links and keys.
#[derive(Debug, Serialize, JsonSchema)]
pub struct SignInOptions {
    /// The OpenID Connect provider; null when none is configured.
    pub oidc: Option<ProviderOption>,
}

/// An OpenID Connect provider.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ProviderOption {
    /// Its name; null when none is configured.
    pub name: Option<String>,
    /// The path of this server that leads to the provider.
    pub path: &'static str,
}

pub async fn options(State(state): State<AppState>) -> axum::Json<SignInOptions> {
    let config = &state.services.config.auth.oidc;
    let name = config.name.clone();
    axum::Json(SignInOptions { oidc: config.issuer.as_ref().map(|_| ProviderOption { name, path: PATH }) })
}

/// A page that a sign-in returns to. Other addresses cannot be named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ReturnTo {
    #[default]
    Label,
    Admin,
    Chat,
    Explore,
}

impl ReturnTo {
    const ALL: [(Self, &str); 4] =
        [(Self::Label, "label"), (Self::Admin, "admin"), (Self::Chat, "chat"), (Self::Explore, "explore")];

    fn as_str(self) -> &'static str {
        Self::ALL.into_iter().find(|(page, _)| *page == self).map_or("label", |(_, name)| name)
    }

    fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|(_, known)| *known == name).map(|(page, _)| page)
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BeginQuery {
    /// The page to return to. Default `label`.
    #[serde(default)]
    pub page: ReturnTo,
}

/// Sends the browser to the provider.
pub async fn begin(State(state): State<AppState>, query: extract::Query<BeginQuery>) -> ApiResult<Response> {
    let extract::Query(BeginQuery { page }) = query;
    let begun = match oidc::begin(&state.services).await {
        Ok(Some(begun)) => begun,
        Ok(None) => {
            return Err(ApiError::not_found("no sign-in provider is configured; its settings are [auth.oidc]"));
        }
        Err(error) => return redirect(&problem(page, code(&error)), &[]),
    };
    redirect(&begun.url, &[attempt_cookie(&state, &format!("{}.{}", begun.secret, page.as_str()), LIFETIME)])
}

/// What providers add is ignored.
#[derive(Debug, Deserialize)]
pub struct CallbackQuery {
    code: Option<String>,
    state: Option<String>,
    error: Option<String>,
    iss: Option<String>,
}

/// Takes the provider's answer. The cookie of the attempt ends with it, so that an address cannot be used again.
pub async fn callback(
    State(state): State<AppState>,
    ClientAddress(from): ClientAddress,
    headers: HeaderMap,
    extract::Query(query): extract::Query<CallbackQuery>,
) -> ApiResult<Response> {
    let services = &state.services;
    let cookie = auth::named_cookie(&headers, COOKIE).and_then(|value| value.split_once('.'));
    let page = cookie.and_then(|(_, page)| ReturnTo::parse(page)).unwrap_or_default();
    let over = attempt_cookie(&state, "", 0);
    let Some((secret, _)) = cookie else {
        return redirect(&problem(page, Refusal::ProviderState.code()), &[over]);
    };
    if auth::may_try(&state, from).is_err() {
        return redirect(&problem(page, "oidc_busy"), &[over]);
    }
    let CallbackQuery { code: sent, state: echoed, error, iss } = query;
    let answer = Answer { code: sent, state: echoed, error, issuer: iss };
    let token = match oidc::finish(services, &Attempt::of(secret), &answer).await {
        Ok(signed_in) => signed_in,
        Err(error) => {
            let is_guess = [Refusal::ProviderState, Refusal::ProviderAnswer].map(Refusal::code).contains(&code(&error));
            if is_guess {
                state.rates.guesses.wrong(from, None);
            }
            return redirect(&problem(page, code(&error)), &[over]);
        }
    };
    if let Some(old) = auth::cookie(&headers) {
        sign_in::log_out(services, old).await?;
    }
    let session = session_cookie(&state, &token, services.live().config.sessions.lifetime_hours * 3600);
    redirect(&format!("/{}", page.as_str()), &[over, session])
}

/// The code of a failure, for the page. Other reasons than refusals are in the log.
fn code(error: &ServiceError) -> &'static str {
    match error {
        ServiceError::SignIn(refusal) => refusal.code(),
        error => {
            tracing::error!(%error, "a sign-in by the OpenID Connect provider failed");
            "oidc_failed"
        }
    }
}

fn problem(page: ReturnTo, code: &str) -> String {
    format!("/{}#problem={code}", page.as_str())
}

/// The provider's answer comes from another site, so the cookie is sent with such navigations.
fn attempt_cookie(state: &AppState, value: &str, seconds: u32) -> String {
    let config = &state.services.config;
    let is_https = config.auth.oidc.public_url.as_ref().is_some_and(|url| url.starts_with("https:"));
    let secure = if is_https || config.server.secure_cookies { "; Secure" } else { "" };
    format!("{COOKIE}={value}; Path={PATH}; HttpOnly; SameSite=Lax; Max-Age={seconds}{secure}")
}

fn redirect(to: &str, cookies: &[String]) -> ApiResult<Response> {
    let value = |text: &str| {
        HeaderValue::from_str(text).map_err(|_| ApiError::internal("an address or a cookie cannot be a header"))
    };
    let mut response = StatusCode::SEE_OTHER.into_response();
    response.headers_mut().insert(header::LOCATION, value(to)?);
    for cookie in cookies {
        response.headers_mut().append(header::SET_COOKIE, value(cookie)?);
    }
    Ok(response)
}

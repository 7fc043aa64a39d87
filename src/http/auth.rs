//! Who may call what: bearer keys, session cookies, and the check that a cookie was not sent by a
//! foreign page.

use std::sync::Arc;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::AppState;
use super::error::{ApiError, ApiResult};
use super::extract::{known_query, plain_body};
use super::rates::{Peer, client_address};
use super::routes::Route;
use crate::domain::{ApiKeyId, Role};
use crate::service::people::{self, Actor};

pub const COOKIE: &str = "instructd_session";

/// What a route asks of its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Anybody.
    Public,
    /// Anybody, unless `require_inference_key`.
    Inference,
    /// People who rank and programs that give feedback.
    Feedback,
    /// Reviewers and administrators: they see everybody's judgments and settle disagreements.
    Review,
    Admin,
}

impl Access {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Inference => "inference",
            Self::Feedback => "feedback",
            Self::Review => "review",
            Self::Admin => "admin",
        }
    }

    fn admits(self, actor: Option<&Actor>, require_inference_key: bool) -> ApiResult<()> {
        let wanted = match (self, actor) {
            (Self::Public, _) => return Ok(()),
            (Self::Inference, _) if !require_inference_key => return Ok(()),
            (_, None) => {
                return Err(ApiError::unauthorized("this route needs a key (Authorization: Bearer …) or a session"));
            }
            (Self::Inference, Some(a)) => (a.inference || a.is_admin(), "this key is not for inference"),
            (Self::Feedback, Some(a)) => (a.feedback, "this key is not for feedback"),
            (Self::Review, Some(a)) => (a.feedback && a.role >= Role::Reviewer, "this needs a reviewer"),
            (Self::Admin, Some(a)) => (a.is_admin(), "this needs an administrator"),
        };
        if wanted.0 { Ok(()) } else { Err(ApiError::forbidden(wanted.1)) }
    }
}

/// What the guard of one route needs to know.
#[derive(Clone)]
pub struct Guard {
    state: AppState,
    access: Access,
    /// Parameters of the query; `None` = any.
    query: Option<Arc<[String]>>,
    plain_body: bool,
}

impl Guard {
    pub fn of(route: &Route, state: AppState) -> Self {
        let query = route.query_names().map(Arc::from);
        Self { state, access: route.access, query, plain_body: !route.decodes }
    }

    fn form(&self, request: &Request) -> ApiResult<()> {
        if let Some(known) = &self.query {
            known_query(request.uri(), known)?;
        }
        if self.plain_body { plain_body(request.headers()) } else { Ok(()) }
    }
}

/// The route's guard: finds the caller, refuses those it does not admit and requests whose form no route takes,
/// and leaves the caller for handlers.
pub async fn guard(State(guard): State<Guard>, mut request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<Peer>();
    let checked = check(&guard.state, guard.access, request.method(), request.headers(), peer).await;
    match checked.and_then(|actor| guard.form(&request).map(|()| actor)) {
        Ok(actor) => {
            if let Some(actor) = actor {
                request.extensions_mut().insert(actor);
            }
            next.run(request).await
        }
        Err(e) => e.into_response(),
    }
}

async fn check(
    state: &AppState,
    access: Access,
    method: &Method,
    headers: &HeaderMap,
    peer: Option<&Peer>,
) -> ApiResult<Option<Actor>> {
    let services = &state.services;
    let from = client_address(headers, peer, services.config.server.client_address_header.as_deref());
    let mut actor = None;
    if let Some(key) = bearer(headers) {
        actor = people::by_key(services, key).await?;
        let required = !matches!(access, Access::Public | Access::Inference)
            || (access == Access::Inference && services.config.require_inference_key);
        if actor.is_none() && required {
            // Guessing keys is as slow as guessing at the sign-in.
            state.rates.login(from)?;
            return Err(ApiError::unauthorized("this key is not known"));
        }
        // Clients of open inference routes often send a made-up key: it is as good as none.
    } else if let Some(token) = cookie(headers) {
        actor = people::by_session(services, token).await?;
    }
    access.admits(actor.as_ref(), services.config.require_inference_key)?;
    let changes = !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS);
    if changes && (actor.as_ref().is_some_and(|a| a.by_cookie) || cookie(headers).is_some()) {
        same_origin(headers)?;
    }
    state.rates.check(access, actor.as_ref(), from)?;
    if access == Access::Inference
        && let Some(actor) = &actor
        && let Some(seconds) = people::exhausted(services, actor).await?
    {
        let message = "this key has used up its tokens of today";
        return Err(ApiError::too_many(message, "quota_exceeded", seconds));
    }
    Ok(actor)
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, key) = value.split_once(' ')?;
    (scheme.eq_ignore_ascii_case("bearer") && !key.trim().is_empty()).then(|| key.trim())
}

/// The session cookie's value, if one is sent.
pub fn cookie(headers: &HeaderMap) -> Option<&str> {
    let all = headers.get_all(header::COOKIE).iter().filter_map(|v| v.to_str().ok());
    all.flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find_map(|(name, value)| (name == COOKIE && !value.is_empty()).then_some(value))
}

/// Browsers say where a request comes from; a foreign page must not act with a person's cookie. Requests
/// without either header come from no current browser.
pub fn same_origin(headers: &HeaderMap) -> ApiResult<()> {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
    let fine = match (text("sec-fetch-site"), text("origin")) {
        (Some(site), _) => matches!(site, "same-origin" | "none"),
        (None, Some(origin)) => {
            let host = text("host").unwrap_or_default();
            origin.split_once("://").is_some_and(|(_, from)| !host.is_empty() && from.eq_ignore_ascii_case(host))
        }
        (None, None) => !headers.contains_key("sec-fetch-site") && !headers.contains_key("origin"),
    };
    if fine { Ok(()) } else { Err(ApiError::forbidden("this request comes from another site").code("cross_origin")) }
}

/// The caller of a guarded route.
pub struct Caller(pub Actor);

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> ApiResult<Self> {
        let actor = parts.extensions.get::<Actor>().cloned();
        actor.map(Self).ok_or_else(|| ApiError::unauthorized("this route needs a key or a session"))
    }
}

/// The caller, if it said who it is.
pub struct MaybeCaller(pub Option<Actor>);

impl<S: Send + Sync> FromRequestParts<S> for MaybeCaller {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(Self(parts.extensions.get::<Actor>().cloned()))
    }
}

impl MaybeCaller {
    pub fn is_admin(&self) -> bool {
        self.0.as_ref().is_some_and(|a| a.role == Role::Admin)
    }

    /// The key that pays for tokens, where it has a number of them a day.
    pub fn pays(&self) -> Option<ApiKeyId> {
        self.0.as_ref().and_then(|a| a.quota.as_ref()).map(|(id, _)| id.clone())
    }
}

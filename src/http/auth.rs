//! Authentication and authorization of requests: bearer keys, people named by a reverse proxy, session cookies, and the
//! check that a cookie was not sent by another site's page.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::StreamExt;

use super::AppState;
use super::access::Access;
use super::error::{ApiError, ApiResult};
use super::extract::{known_query, plain_body};
use super::peer::{Peer, client_address};
use super::proxied;
use super::route::Route;
use crate::domain::Role;
use crate::service::access::{self, Actor};
use crate::service::meter;

pub const COOKIE: &str = "instructd_session";

/// Parameters of one route's guard.
#[derive(Clone)]
pub struct Guard {
    state: AppState,
    access: Access,
    /// Whether tokens are charged and a key without tokens left is refused.
    computes: bool,
    /// Whether the response depends on the caller: a key that could not be checked must not count as none.
    names_caller: bool,
    /// Parameters of the query; `None` = any.
    query: Option<Arc<[String]>>,
    plain_body: bool,
}

impl Guard {
    pub fn of(route: &Route, state: AppState) -> Self {
        let names_caller = route.path == "/session" && route.method == Method::GET;
        let query = route.query_names().map(Arc::from);
        let (access, computes, plain_body) = (route.access, route.computes, !route.decodes);
        Self { state, access, computes, names_caller, query, plain_body }
    }

    /// Refuses requests in a form that the route does not accept.
    fn form(&self, request: &Request) -> ApiResult<()> {
        if let Some(known) = &self.query {
            known_query(request.uri(), known)?;
        }
        if self.plain_body { plain_body(request.headers()) } else { Ok(()) }
    }

    /// Whether the route works without knowing its caller.
    fn open(&self) -> bool {
        match self.access {
            Access::Public => !self.names_caller,
            Access::Inference => !self.state.services.config.require_inference_key,
            Access::Keyed | Access::Feedback | Access::Review | Access::Admin => false,
        }
    }
}

/// The route's guard: finds the caller, refuses those without access and malformed requests, stores the caller for
/// handlers, charges tokens to their key, and ends streams when they lose access.
pub async fn guard(State(guard): State<Guard>, mut request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<Peer>();
    let checked = check(&guard, request.method(), request.headers(), peer).await;
    let actor = match checked.and_then(|actor| guard.form(&request).map(|()| actor)) {
        Ok(actor) => actor,
        Err(e) => return e.into_response(),
    };
    let Some(actor) = actor else { return next.run(request).await };
    let payer = actor.quota.as_ref().map(|(id, _)| id.clone());
    request.extensions_mut().insert(actor.clone());
    // Receiving a body and running a handler end when the caller loses access.
    let response = tokio::select! {
        response = meter::paid_by(payer, next.run(request)) => response,
        () = shut_out(&guard, &actor) => return ended().into_response(),
    };
    watched(guard, actor, response)
}

/// Resolves within a second of the caller's key being revoked, session being ended, role being lowered or person being
/// locked out.
async fn shut_out(guard: &Guard, actor: &Actor) {
    let services = &guard.state.services;
    loop {
        tokio::time::sleep(CHECK_INTERVAL).await;
        // An unavailable database does not end anybody's access.
        let Ok(now) = access::refresh(services, actor).await else { continue };
        if now.is_none_or(|now| guard.access.admits(Some(&now), services.config.require_inference_key).is_err()) {
            return;
        }
    }
}

fn ended() -> ApiError {
    ApiError::unauthorized("the key or session of this request has ended").code("access_ended")
}

/// Interval at which long requests and open streams check their caller's access.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Ends a stream when its caller loses access. Responses of known length are sent already.
fn watched(guard: Guard, actor: Actor, response: Response) -> Response {
    let known_length = HttpBody::size_hint(response.body()).exact().is_some();
    if known_length {
        return response;
    }
    let kind = response.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
    let is_events = kind.is_some_and(|kind| kind.starts_with("text/event-stream"));
    let shut_out = async move { shut_out(&guard, &actor).await };
    let (parts, body) = response.into_parts();
    let open = (body.into_data_stream(), Box::pin(shut_out));
    let stream = futures::stream::unfold(Some(open), move |open| async move {
        let (mut data, mut shut_out) = open?;
        tokio::select! {
            chunk = data.next() => chunk.map(|chunk| (chunk, Some((data, shut_out)))),
            () = &mut shut_out => Some((last_word(is_events), None)),
        }
    });
    Response::from_parts(parts, Body::from_stream(stream))
}

/// Event streams get an error event; any other stream is aborted, so that an incomplete response is detected.
fn last_word(is_events: bool) -> Result<Bytes, axum::Error> {
    let error = ended();
    match is_events {
        true => Ok(Bytes::from(format!("event: error\ndata: {}\n\n", error.body()))),
        false => Err(axum::Error::new(error.message)),
    }
}

async fn check(guard: &Guard, method: &Method, headers: &HeaderMap, peer: Option<&Peer>) -> ApiResult<Option<Actor>> {
    let (state, access) = (&guard.state, guard.access);
    let services = &state.services;
    let from = client_address(headers, peer, services.config.server.client_address_header.as_deref());
    let mut actor;
    if let Some(key) = bearer(headers) {
        // Clients of open routes often send an arbitrary key: it counts as none, and so does one that may not be tried
        // now.
        let open = guard.open();
        actor = match by_key(state, key, from, open).await {
            Ok(actor) => actor,
            Err(_) if open => None,
            Err(error) => return Err(error),
        };
        if actor.is_none() && !open && !guard.names_caller {
            return Err(ApiError::unauthorized("this key is not known or was revoked"));
        }
    } else {
        actor = match proxied::caller(state, headers, peer).await {
            Ok(actor) => actor,
            // The pages say why somebody was locked out.
            Err(_) if guard.open() => None,
            Err(error) => return Err(error),
        };
        // The proxy's word comes before a cookie, which may be of whoever used this browser before.
        if let (None, Some(token)) = (&actor, cookie(headers)) {
            actor = access::by_session(services, token).await?;
        }
    }
    access.admits(actor.as_ref(), services.config.require_inference_key)?;
    let changes = !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS);
    if changes && (actor.as_ref().is_some_and(|a| a.by_cookie) || cookie(headers).is_some()) {
        same_origin(headers)?;
    }
    state.rates.check(access, actor.as_ref(), from)?;
    if guard.computes
        && let Some(actor) = &actor
        && let Some(seconds) = meter::exhausted(services, actor).await?
    {
        let message = "this key has used up its tokens of today; its limit is reset at midnight UTC";
        return Err(ApiError::too_many(message, "quota_exceeded", seconds));
    }
    Ok(actor)
}

/// The owner of a key, of a request or at the sign-in; `None` for an unknown key, which is counted as a guess. With
/// `once`, for routes without required keys, the same wrong key counts once.
///
/// # Errors
/// 429 when the key is not a stored one and an attempt at the configured one must wait.
pub(super) async fn by_key(state: &AppState, key: &str, from: Option<IpAddr>, once: bool) -> ApiResult<Option<Actor>> {
    if let Some(actor) = access::by_stored_key(&state.services, key).await? {
        return Ok(Some(actor));
    }
    may_try(state, from)?;
    let actor = access::by_configured_key(&state.services, key);
    match &actor {
        Some(_) => state.rates.guesses.right(from),
        None => state.rates.guesses.wrong(from, once.then(|| mark(key))),
    }
    Ok(actor)
}

/// # Errors
/// 429 with the time to wait.
pub(super) fn may_try(state: &AppState, from: Option<IpAddr>) -> ApiResult<()> {
    state.rates.guesses.may_try(from).map_err(|wait| {
        let message = "too many wrong keys came from this address; wait, then try again";
        ApiError::too_many(message, "rate_limited", wait.as_secs() + 1)
    })
}

/// Distinguishes wrong keys without storing them.
fn mark(key: &str) -> u64 {
    use std::hash::{BuildHasher, RandomState};
    static STATE: std::sync::LazyLock<RandomState> = std::sync::LazyLock::new(RandomState::new);
    STATE.hash_one(key)
}

/// The key of a request: `Authorization: Bearer …`, or `x-api-key` as Anthropic's clients send it.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let Some(value) = headers.get(header::AUTHORIZATION) else {
        let key = headers.get("x-api-key")?.to_str().ok()?.trim();
        return (!key.is_empty()).then_some(key);
    };
    let (scheme, key) = value.to_str().ok()?.split_once(' ')?;
    (scheme.eq_ignore_ascii_case("bearer") && !key.trim().is_empty()).then(|| key.trim())
}

/// The session cookie's value, if one is sent.
pub fn cookie(headers: &HeaderMap) -> Option<&str> {
    named_cookie(headers, COOKIE)
}

/// The value of a cookie of this name, if one is sent.
pub(super) fn named_cookie<'a>(headers: &'a HeaderMap, wanted: &str) -> Option<&'a str> {
    let all = headers.get_all(header::COOKIE).iter().filter_map(|v| v.to_str().ok());
    all.flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find_map(|(name, value)| (name == wanted && !value.is_empty()).then_some(value))
}

/// Checks the origin that browsers send, so that another site's page cannot act with a person's cookie. Requests
/// without either header do not come from a current browser.
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

/// The caller, if it is authenticated.
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
}

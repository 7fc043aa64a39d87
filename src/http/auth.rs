//! Who may call what: bearer keys, session cookies, and the check that a cookie was not sent by a
//! foreign page.

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
use super::error::{ApiError, ApiResult};
use super::extract::{known_query, plain_body};
use super::rates::{Peer, client_address};
use super::routes::Route;
use crate::domain::Role;
use crate::service::access::{self, Actor};
use crate::service::meter;

pub const COOKIE: &str = "instructd_session";

/// What a route asks of its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Anybody.
    Public,
    /// Anybody, unless `require_inference_key`.
    Inference,
    /// Whoever may ask for inference, and always by name: what is stored belongs to somebody.
    Keyed,
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
            Self::Inference | Self::Keyed => "inference",
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
            (Self::Inference | Self::Keyed, Some(a)) => (a.inference || a.is_admin(), "this key is not for inference"),
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
    /// Tokens are charged, and a key without tokens left is refused.
    computes: bool,
    /// The answer says who the caller is: a key that could not be checked must not pass for none.
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

    /// Refuses what no handler of the route takes.
    fn form(&self, request: &Request) -> ApiResult<()> {
        if let Some(known) = &self.query {
            known_query(request.uri(), known)?;
        }
        if self.plain_body { plain_body(request.headers()) } else { Ok(()) }
    }

    /// Whether the route can do without knowing its caller.
    fn open(&self) -> bool {
        match self.access {
            Access::Public => !self.names_caller,
            Access::Inference => !self.state.services.config.require_inference_key,
            Access::Keyed | Access::Feedback | Access::Review | Access::Admin => false,
        }
    }
}

/// The route's guard: finds the caller, refuses those it does not admit and requests whose form no route takes,
/// leaves the caller for handlers, has their key pay for tokens, and ends what streams when they are no longer let in.
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
    // A body that still comes in, or work that still goes on, ends with its caller's access too.
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
        tokio::time::sleep(LOOK_AGAIN).await;
        // A database that is away shuts nobody out.
        let Ok(now) = access::refresh(services, actor).await else { continue };
        if now.is_none_or(|now| guard.access.admits(Some(&now), services.config.require_inference_key).is_err()) {
            return;
        }
    }
}

fn ended() -> ApiError {
    ApiError::unauthorized("the key or session of this request has ended").code("access_ended")
}

/// How often a request that takes long, or an open stream, looks whether its caller is still let in.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Ends a stream when its caller is let in no more. Answers of known length are on their way already.
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

/// Followers of events are told; any other stream breaks off, so that nobody takes a part for the whole.
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
    let mut actor = None;
    if let Some(key) = bearer(headers) {
        // Clients of open routes often send a made-up key: it is as good as none, and so is one that may not be
        // tried now.
        let open = guard.open();
        actor = match by_key(state, key, from, open).await {
            Ok(actor) => actor,
            Err(_) if open => None,
            Err(error) => return Err(error),
        };
        if actor.is_none() && !open && !guard.names_caller {
            return Err(ApiError::unauthorized("this key is not known"));
        }
    } else if let Some(token) = cookie(headers) {
        actor = access::by_session(services, token).await?;
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
        let message = "this key has used up its tokens of today";
        return Err(ApiError::too_many(message, "quota_exceeded", seconds));
    }
    Ok(actor)
}

/// The owner of a key, here or at the sign-in; `None` when nobody has it, which is counted. Where no key is asked for
/// (`once`), the same wrong key counts once.
///
/// # Errors
/// 429 when it is no key that the server made and a try at the configured one has to wait.
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

/// Tells wrong keys apart without keeping them.
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
}

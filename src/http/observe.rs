//! The outermost layer of every request: its id, the log line, the duration metric (until the end of the body) and the
//! security headers.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequestParts, MatchedPath, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use http_body::{Frame, SizeHint};
use opentelemetry::trace::{SpanContext, SpanId, Status, TraceContextExt, TraceFlags, TraceId, TraceState};
use tracing::Instrument;
use tracing_opentelemetry::OpenTelemetrySpanExt;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const CSP: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
                   font-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

/// Headers that every response carries.
pub const SECURITY_HEADERS: &[(&str, &str)] = &[
    ("content-security-policy", CSP),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("permissions-policy", "camera=(), microphone=(), geolocation=()"),
];

/// The request's id: the client's `x-request-id` if it is valid, else a new one.
#[derive(Clone, Debug)]
pub struct RequestId(pub String);

impl<S: Send + Sync> FromRequestParts<S> for RequestId {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(parts.extensions.get::<Self>().cloned().unwrap_or_else(|| Self(crate::domain::new_id())))
    }
}

fn request_id(headers: &HeaderMap) -> String {
    let given = headers.get(X_REQUEST_ID).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let harmless = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if (1..=128).contains(&given.len()) && given.bytes().all(harmless) {
        given.to_owned()
    } else {
        crate::domain::new_id()
    }
}

/// The trace id of a W3C `traceparent`, if it is well-formed.
fn trace_id(headers: &HeaderMap) -> Option<String> {
    let value = headers.get("traceparent")?.to_str().ok()?;
    let mut parts = value.split('-');
    let (version, trace) = (parts.next()?, parts.next()?);
    let hex = |s: &str, n| s.len() == n && s.bytes().all(|b| b.is_ascii_hexdigit());
    (hex(version, 2) && hex(trace, 32)).then(|| trace.to_owned())
}

/// The span of the caller, from a W3C `traceparent`, if it is well-formed.
fn caller(headers: &HeaderMap) -> Option<opentelemetry::Context> {
    let value = headers.get("traceparent")?.to_str().ok()?;
    let parts: Vec<&str> = value.split('-').collect();
    let [_, trace, span, flags] = parts.first_chunk()?;
    let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?);
    let context = SpanContext::new(trace, span, flags, true, TraceState::default());
    context.is_valid().then(|| opentelemetry::Context::new().with_remote_span_context(context))
}

/// The outermost layer.
pub async fn observe(mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let id = request_id(request.headers());
    let method = request.method().clone();
    // The pattern, never the raw path, to limit the number of labels.
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    request.extensions_mut().insert(RequestId(id.clone()));
    let trace = trace_id(request.headers()).unwrap_or_default();
    let span = tracing::info_span!("request", request.id = %id, trace.id = %trace);
    if let Some(caller) = caller(request.headers()) {
        // Without a collector there is no parent to set.
        let _ = span.set_parent(caller);
    }
    span.set_attribute("http.request.method", method.to_string());
    span.set_attribute("http.route", route.clone());
    let mut response = next.run(request).instrument(span.clone()).await;
    let status = response.status();
    span.set_attribute("http.response.status_code", i64::from(status.as_u16()));
    if status.is_server_error() {
        span.set_status(Status::error(""));
    }
    let headers = response.headers_mut();
    for (name, value) in SECURITY_HEADERS {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    if !headers.contains_key(header::CACHE_CONTROL) {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    if let Ok(value) = HeaderValue::from_str(&id) {
        headers.insert(X_REQUEST_ID, value);
    }
    let timer = Timer { started, route, status, method: method.to_string(), span, ended: false };
    response.map(|inner| Body::new(Timed { inner, timer }))
}

/// Records the duration once, when the body has ended or was dropped.
struct Timer {
    started: Instant,
    route: String,
    status: StatusCode,
    method: String,
    span: tracing::Span,
    ended: bool,
}

impl Timer {
    fn report(&mut self, outcome: &'static str) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let seconds = self.started.elapsed().as_secs_f64();
        let route = std::mem::take(&mut self.route);
        self.span.in_scope(|| {
            tracing::debug!(
                http.method = %self.method, http.route = %route, http.status = self.status.as_u16(),
                duration.ms = seconds * 1e3, outcome, "answered"
            );
        });
        metrics::histogram!("instructd_request_duration_seconds", "route" => route, "outcome" => outcome)
            .record(seconds);
    }

    fn outcome(&self) -> &'static str {
        match self.status.as_u16() {
            0..=399 => "ok",
            429 => "overloaded",
            400..=499 => "client_error",
            503 => "unavailable",
            _ => "server_error",
        }
    }
}

/// A body that records its end in the timer.
struct Timed {
    inner: Body,
    timer: Timer,
}

impl http_body::Body for Timed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = std::task::ready!(Pin::new(&mut self.inner).poll_frame(cx));
        match &frame {
            None => {
                let outcome = self.timer.outcome();
                self.timer.report(outcome);
            }
            Some(Err(_)) => self.timer.report("server_error"),
            Some(Ok(_)) => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for Timed {
    fn drop(&mut self) {
        let outcome = if http_body::Body::is_end_stream(&self.inner) { self.timer.outcome() } else { "client_left" };
        self.timer.report(outcome);
    }
}

//! Reading requests: JSON bodies, queries and path parts, each refused in the one error shape with the
//! field named.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use serde::de::DeserializeOwned;

use super::AppState;
use super::error::ApiError;

/// A JSON body. Malformed JSON, unknown, missing and ill-typed fields are 400 with `param`, too large is 413.
pub struct Json<T>(pub T);

impl<T: DeserializeOwned> FromRequest<AppState> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        if !is_json(request.headers()) {
            return Err(ApiError::bad("content-type", "Content-Type must be application/json"));
        }
        let Body(bytes) = Body::from_request(request, state).await?;
        parse(&bytes).map(Self)
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    kind == "application/json" || (kind.starts_with("application/") && kind.ends_with("+json"))
}

/// The whole body within the route's size limit and the server's time limit.
pub struct Body(pub Bytes);

impl FromRequest<AppState> for Body {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        let deadline = Duration::from_secs(state.services.config.server.body_timeout_seconds);
        match tokio::time::timeout(deadline, Bytes::from_request(request, state)).await {
            Ok(Ok(bytes)) => Ok(Self(bytes)),
            Ok(Err(e)) if e.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                let error = ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "the request body is too large");
                Err(ApiError { param: Some("body".to_owned()), ..error.code("body_too_large") })
            }
            Ok(Err(e)) => Err(ApiError::bad("body", format!("the request body could not be read: {}", e.body_text()))),
            Err(_) => Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "the request body did not come in time")),
        }
    }
}

/// Parses JSON; errors carry the path of the field.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    // serde would read a list as a struct by position.
    if bytes.iter().find(|b| !b.is_ascii_whitespace()).is_some_and(|b| *b == b'[') {
        return Err(ApiError::bad("body", "the body must be a JSON object"));
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value: T = serde_path_to_error::deserialize(&mut json).map_err(|e| {
        let path = e.path().to_string();
        let inner = e.into_inner();
        if inner.is_data() { bad_field(&path, &inner.to_string()) } else { malformed(&inner) }
    })?;
    json.end().map_err(|e| malformed(&e))?;
    Ok(value)
}

fn malformed(error: &serde_json::Error) -> ApiError {
    ApiError::bad("body", format!("the body is not valid JSON: {error}")).code("malformed_json")
}

fn bad_field(path: &str, message: &str) -> ApiError {
    let parent = if path == "." { "" } else { path };
    // serde names unknown and missing fields in the message; the path ends at their parent.
    let named = ["unknown field `", "missing field `", "duplicate field `"]
        .iter()
        .find_map(|start| message.strip_prefix(start)?.split('`').next());
    let param = match named {
        Some(field) if parent == field || parent.ends_with(&format!(".{field}")) => parent.to_owned(),
        Some(field) if parent.is_empty() => field.to_owned(),
        Some(field) => format!("{parent}.{field}"),
        None => parent.to_owned(),
    };
    let text = message.split(" at line ").next().unwrap_or(message);
    ApiError::bad(if param.is_empty() { "body".to_owned() } else { param }, text)
}

/// The query string.
pub struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        match axum::extract::Query::<T>::try_from_uri(&parts.uri) {
            Ok(query) => Ok(Self(query.0)),
            Err(e) => {
                let text = e.body_text();
                let text = text.split_once("query string: ").map_or(text.as_str(), |(_, rest)| rest);
                Err(match text.split_once(": ") {
                    Some((path, message)) if !path.contains('`') => bad_field(path, message),
                    _ => bad_field(".", text),
                })
            }
        }
    }
}

/// Parts of the path.
pub struct Path<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match axum::extract::Path::<T>::from_request_parts(parts, state).await {
            Ok(path) => Ok(Self(path.0)),
            Err(_) => Err(ApiError::bad("path", "the path could not be read")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only its errors matter")]
    struct Outer {
        n: Option<u64>,
        inner: Option<Vec<Inner>>,
    }

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only its errors matter")]
    struct Inner {
        text: String,
    }

    #[test]
    fn errors_name_the_field() {
        for (body, param) in [
            (r#"{"n": -1}"#, "n"),
            (r#"{"n": "x"}"#, "n"),
            (r#"{"m": 1}"#, "m"),
            (r#"{"inner": [{"text": "a"}, {"text": 3}]}"#, "inner[1].text"),
            (r#"{"inner": [{"text": "a", "b": 1}]}"#, "inner[0].b"),
            (r#"{"inner": [{}]}"#, "inner[0].text"),
            (r#"{"n": 1"#, "body"),
            (r#"{"n": 1} x"#, "body"),
            ("[]", "body"),
        ] {
            let e = parse::<Outer>(body.as_bytes()).expect_err(body);
            assert_eq!((e.status.as_u16(), e.param.as_deref()), (400, Some(param)), "{body}: {}", e.message);
        }
    }
}

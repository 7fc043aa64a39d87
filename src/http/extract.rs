//! Extractors of requests: JSON bodies, queries and path parts; errors name the field.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use serde::de::DeserializeOwned;

use super::AppState;
use super::error::ApiError;
use crate::domain::{nearest, with_nearest};

/// Bodies up to this size (bytes) are parsed on the async thread; larger ones on a blocking thread.
const PARSED_HERE: usize = 32 << 10;

/// Most bytes of memory of a body's values as a tree.
const MOST_WEIGHT: usize = 40 << 20;

/// A JSON body. Malformed JSON, unknown, missing and ill-typed fields are 400 with `param`, too large is 413.
/// A field that is null counts as absent.
pub struct Json<T>(pub T);

impl<T: DeserializeOwned + Send + 'static> FromRequest<AppState> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        check_json(request.headers())?;
        let Body(bytes) = Body::from_request(request, state).await?;
        if bytes.len() <= PARSED_HERE {
            return parse(&bytes).map(Self);
        }
        super::run_blocking(move || parse(&bytes)).await?.map(Self)
    }
}

/// A JSON body that may be missing.
pub struct OptionalJson<T>(pub Option<T>);

impl<T: DeserializeOwned> FromRequest<AppState> for OptionalJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        let headers = request.headers().clone();
        let Body(bytes) = Body::from_request(request, state).await?;
        if bytes.is_empty() {
            return Ok(Self(None));
        }
        check_json(&headers)?;
        parse(&bytes).map(|body| Self(Some(body)))
    }
}

fn check_json(headers: &HeaderMap) -> Result<(), ApiError> {
    if is_json(headers) {
        return Ok(());
    }
    let given = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
    let message = match given {
        Some(kind) => format!("Content-Type is {kind}; this route requires application/json"),
        None => "Content-Type is missing; this route requires application/json".to_owned(),
    };
    Err(ApiError::bad("content-type", message))
}

/// Refuses compressed bodies, which would not be decompressed.
///
/// # Errors
/// 415 with the encoding.
pub fn plain_body(headers: &HeaderMap) -> Result<(), ApiError> {
    for value in headers.get_all(header::CONTENT_ENCODING) {
        let encoding = value.to_str().unwrap_or("unreadable").trim();
        if !encoding.is_empty() && !encoding.eq_ignore_ascii_case("identity") {
            let message = format!("Content-Encoding {encoding} is not supported: send the body uncompressed");
            let error = ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message).code("unsupported_content_encoding");
            return Err(ApiError { param: Some("content-encoding".to_owned()), ..error });
        }
    }
    Ok(())
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
            Err(_) => Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "the request body did not arrive in time")),
        }
    }
}

/// Parses JSON, null fields left out; errors carry the path of the field.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let weight = super::nulls::weight(bytes);
    if weight > MOST_WEIGHT {
        let message = format!(
            "the body's values take {} MB of memory when they are parsed; at most {} MB are allowed: send fewer at once",
            weight >> 20,
            MOST_WEIGHT >> 20
        );
        let error = ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message).code("body_too_large");
        return Err(ApiError { param: Some("body".to_owned()), ..error });
    }
    let bytes = &*super::nulls::without_nulls(bytes);
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
    let text = with_nearest(message.split(" at line ").next().unwrap_or(message).to_owned());
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

/// Refuses parameters that the route does not have.
///
/// # Errors
/// 400 with the first unknown one and the known ones.
pub fn known_query(uri: &Uri, known: &[String]) -> Result<(), ApiError> {
    if uri.query().is_none_or(str::is_empty) {
        return Ok(());
    }
    let Ok(axum::extract::Query(given)) = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(uri) else {
        return Err(ApiError::bad("query", "the query string could not be read"));
    };
    match given.into_iter().find(|(name, _)| !known.contains(name)) {
        None => Ok(()),
        Some((name, _)) if known.is_empty() => {
            Err(ApiError::bad(&name, format!("unknown parameter `{name}`: this route takes none in its query")))
        }
        Some((name, _)) => {
            let near = nearest(&name, known.iter().map(String::as_str));
            let meant =
                if near.is_empty() { String::new() } else { format!("; did you mean `{}`?", near.join("` or `")) };
            let between = if near.is_empty() { "; this" } else { " This" };
            let message = format!("unknown parameter `{name}`{meant}{between} route takes {}", known.join(", "));
            Err(ApiError::bad(&name, message))
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

    #[test]
    fn misspelt_fields_and_parameters_get_a_suggestion() {
        let message = |body: &str| parse::<Outer>(body.as_bytes()).expect_err(body).message;
        assert_eq!(
            message(r#"{"iner": []}"#),
            "unknown field `iner`; did you mean `inner`? expected `n` or `inner`",
            "the body's own fields"
        );
        assert_eq!(
            message(r#"{"inner": [{"txt": "a"}]}"#),
            "unknown field `txt`; did you mean `text`? expected `text`",
            "fields further down"
        );
        assert_eq!(message(r#"{"zzzzzz": 1}"#), "unknown field `zzzzzz`, expected `n` or `inner`");
        let known = ["limit".to_owned(), "after".to_owned()];
        let refused = |query: &str| known_query(&query.parse().expect("an address"), &known).expect_err(query).message;
        assert_eq!(
            refused("/x?limt=3"),
            "unknown parameter `limt`; did you mean `limit`? This route takes limit, after"
        );
        assert_eq!(refused("/x?zzzzzz=3"), "unknown parameter `zzzzzz`; this route takes limit, after");
    }
}

//! The pages for people: files of `static/`, embedded in the binary.

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use rust_embed::RustEmbed;

use super::error::{ApiError, no_route};
use super::extract::Path;

#[derive(RustEmbed)]
#[folder = "static/"]
struct Files;

pub async fn index(headers: HeaderMap) -> Response {
    serve("index.html", &headers).await
}

pub async fn label(headers: HeaderMap) -> Response {
    serve("label.html", &headers).await
}

pub async fn admin(headers: HeaderMap) -> Response {
    serve("admin.html", &headers).await
}

pub async fn chat(headers: HeaderMap) -> Response {
    serve("chat.html", &headers).await
}

pub async fn explore(headers: HeaderMap) -> Response {
    serve("explore.html", &headers).await
}

pub async fn favicon(headers: HeaderMap) -> Response {
    serve("favicon.svg", &headers).await
}

/// Every address that is not there: a page for people, JSON for programs.
pub async fn missing(headers: HeaderMap) -> Response {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|v| v.to_str().ok());
    let browser = accepted.flat_map(|line| line.split(',')).any(|kind| kind.trim().starts_with("text/html"));
    if !browser {
        return no_route().await.into_response();
    }
    // Without the caller's tag: 404 is no case for "not modified".
    let mut response = serve("missing.html", &HeaderMap::new()).await;
    response.headers_mut().remove(header::ETAG);
    *response.status_mut() = StatusCode::NOT_FOUND;
    response
}

pub async fn robots() -> &'static str {
    "User-agent: *\nDisallow: /\n"
}

pub async fn file(Path(path): Path<String>, headers: HeaderMap) -> Result<Response, ApiError> {
    Ok(serve(&path, &headers).await)
}

/// Names are looked up in the embedded table: there is no file system to climb.
async fn serve(path: &str, headers: &HeaderMap) -> Response {
    let Some(file) = Files::get(path) else { return no_route().await.into_response() };
    let tag = format!("\"{}\"", hex::encode(&file.metadata.sha256_hash()[..16]));
    let mut response = if headers.get(header::IF_NONE_MATCH).is_some_and(|v| v.as_bytes() == tag.as_bytes()) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        let mut kind = file.metadata.mimetype().to_owned();
        if kind.starts_with("text/") || kind.ends_with("javascript") {
            kind.push_str("; charset=utf-8");
        }
        ([(header::CONTENT_TYPE, kind)], file.data).into_response()
    };
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

//! The pages for people: files of `static/`, embedded in the binary.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Mutex, PoisonError};

use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use flate2::Compression;
use flate2::write::GzEncoder;
use rust_embed::RustEmbed;

use super::error::{ApiError, unknown_route};
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

/// The response to unknown addresses: a page for browsers, JSON for programs.
pub async fn missing(uri: Uri, headers: HeaderMap) -> Response {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|v| v.to_str().ok());
    let browser = accepted.flat_map(|line| line.split(',')).any(|kind| kind.trim().starts_with("text/html"));
    if !browser {
        return unknown_route(uri.path()).into_response();
    }
    // Without the caller's ETag: a 404 is never "not modified".
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

/// Names are looked up in the embedded table; the file system is not read.
async fn serve(path: &str, headers: &HeaderMap) -> Response {
    let Some(file) = Files::get(path) else { return unknown_route("/static").into_response() };
    let hash = file.metadata.sha256_hash();
    let mut kind = file.metadata.mimetype().to_owned();
    let packed = is_text(&kind) && takes_gzip(headers);
    // Each encoding has an ETag of its own.
    let tag = format!("\"{}{}\"", hex::encode(&hash[..16]), if packed { "-gz" } else { "" });
    let mut response = if is_known(headers, &tag) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        if kind.starts_with("text/") || kind.ends_with("javascript") {
            kind.push_str("; charset=utf-8");
        }
        let body = if packed { gzipped(path, hash, &file.data) } else { file.data.into_owned().into() };
        ([(header::CONTENT_TYPE, kind)], body).into_response()
    };
    let out = response.headers_mut();
    if packed && out.contains_key(header::CONTENT_TYPE) {
        out.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        out.insert(header::ETAG, tag);
    }
    out.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    // The program's own files change with its version and are revalidated by their ETag. Files of libraries never
    // change under their name.
    let cached = if path.starts_with("vendor/") { "public, max-age=86400" } else { "no-cache" };
    out.insert(header::CACHE_CONTROL, HeaderValue::from_static(cached));
    response
}

/// Whether the caller has the content with this ETag. A cache may send weak or several ETags.
fn is_known(headers: &HeaderMap, tag: &str) -> bool {
    let sent = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|v| v.to_str().ok());
    sent.flat_map(|line| line.split(',')).any(|known| {
        let known = known.trim();
        known == "*" || known.strip_prefix("W/").unwrap_or(known) == tag
    })
}

/// Fonts and images are compressed already.
fn is_text(kind: &str) -> bool {
    kind.starts_with("text/") || kind.ends_with("javascript") || kind.ends_with("json") || kind.ends_with("svg+xml")
}

/// Whether `Accept-Encoding` allows gzip: `gzip;q=0` does not.
fn takes_gzip(headers: &HeaderMap) -> bool {
    let sent = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|v| v.to_str().ok());
    let mut any = false;
    for part in sent.flat_map(|line| line.split(',')) {
        let mut words = part.split(';').map(str::trim);
        let name = words.next().unwrap_or_default().to_ascii_lowercase();
        let weight = words.find_map(|w| w.strip_prefix("q=")).map_or(1.0, |q| q.parse::<f32>().unwrap_or(0.0));
        match name.as_str() {
            // A named encoding has priority over `*`.
            "gzip" | "x-gzip" => return weight > 0.0,
            "*" => any = weight > 0.0,
            _ => {}
        }
    }
    any
}

/// The compressed file, created once for each content.
fn gzipped(path: &str, hash: [u8; 32], data: &[u8]) -> Bytes {
    static PACKED: Mutex<BTreeMap<String, ([u8; 32], Bytes)>> = Mutex::new(BTreeMap::new());
    if let Some((_, bytes)) =
        PACKED.lock().unwrap_or_else(PoisonError::into_inner).get(path).filter(|(of, _)| *of == hash)
    {
        return bytes.clone();
    }
    let mut packer = GzEncoder::new(Vec::new(), Compression::best());
    // Writing to memory cannot fail.
    let _ = packer.write_all(data);
    let bytes = Bytes::from(packer.finish().unwrap_or_default());
    let mut packed = PACKED.lock().unwrap_or_else(PoisonError::into_inner);
    packed.insert(path.to_owned(), (hash, bytes.clone()));
    bytes
}

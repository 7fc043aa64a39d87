//! Files of the pages: packed for whoever takes it, asked for again cheaply, and whole.

use std::io::Read;

use http::Request;
use http_body_util::BodyExt;
use tower::ServiceExt;

use super::client::Server;

async fn fetch(server: &Server, path: &str, headers: &[(&str, &str)]) -> (http::response::Parts, Vec<u8>) {
    let mut request = Request::get(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = server.router.clone().oneshot(request.body(axum::body::Body::empty()).unwrap()).await.unwrap();
    let (parts, body) = response.into_parts();
    (parts, body.collect().await.unwrap().to_bytes().to_vec())
}

fn text<'a>(parts: &'a http::response::Parts, name: &str) -> &'a str {
    parts.headers.get(name).map_or("", |v| v.to_str().unwrap())
}

#[tokio::test]
async fn texts_are_compressed_for_clients_that_accept_gzip() {
    let server = Server::start().await;
    for path in
        ["/", "/static/i18n/en.json", "/static/i18n/zh.json", "/static/js/api.js", "/static/vendor/uplot/uPlot.esm.js"]
    {
        let (plain, whole) = fetch(&server, path, &[]).await;
        if plain.status == 404 {
            continue;
        }
        assert_eq!((plain.status.as_u16(), text(&plain, "content-encoding")), (200, ""), "{path}");
        let (parts, packed) = fetch(&server, path, &[("accept-encoding", "br, gzip;q=0.8")]).await;
        assert_eq!((parts.status.as_u16(), text(&parts, "content-encoding")), (200, "gzip"), "{path}");
        assert_eq!(text(&parts, "vary"), "accept-encoding");
        assert!(packed.len() * 2 < whole.len() || whole.len() < 2000, "{path}: {} of {}", packed.len(), whole.len());
        let mut unpacked = Vec::new();
        flate2::read::GzDecoder::new(packed.as_slice()).read_to_end(&mut unpacked).unwrap();
        assert_eq!(unpacked, whole, "{path}");
        assert_eq!(text(&parts, "content-type"), text(&plain, "content-type"));
        // Two representations, two tags; each is "not modified" for its own only.
        let (tag, plain_tag) = (text(&parts, "etag").to_owned(), text(&plain, "etag").to_owned());
        assert!(!tag.is_empty() && tag != plain_tag);
        let gzip = ("accept-encoding", "gzip");
        let weak = format!("\"other\", W/{tag}");
        for known in [tag.as_str(), weak.as_str(), "*"] {
            let (again, body) = fetch(&server, path, &[gzip, ("if-none-match", known)]).await;
            assert_eq!((again.status.as_u16(), body.len()), (304, 0), "{path} {known}");
            assert_eq!(text(&again, "etag"), tag);
        }
        assert_eq!(fetch(&server, path, &[gzip, ("if-none-match", &plain_tag)]).await.0.status, 200);
        for refused in ["gzip;q=0", "identity", "br", "*;q=0", ""] {
            let (parts, body) = fetch(&server, path, &[("accept-encoding", refused)]).await;
            assert_eq!(text(&parts, "content-encoding"), "", "{path} {refused:?}");
            assert_eq!(body, whole);
        }
        assert_eq!(text(&fetch(&server, path, &[("accept-encoding", "*")]).await.0, "content-encoding"), "gzip");
        let cached = if path.contains("/vendor/") { "public, max-age=86400" } else { "no-cache" };
        assert_eq!(text(&parts, "cache-control"), cached, "{path}");
    }
    // What is packed already stays as it is.
    let font = "/static/vendor/katex/fonts/KaTeX_Main-Regular.woff2";
    let (parts, _) = fetch(&server, font, &[("accept-encoding", "gzip")]).await;
    assert!(parts.status == 404 || text(&parts, "content-encoding").is_empty());
}

#[tokio::test]
async fn responses_are_compressed_if_the_setting_and_the_client_allow_it() {
    let gzip = ("accept-encoding", "gzip");
    let off = Server::start().await;
    let (parts, plain) = fetch(&off, "/openapi.json", &[gzip]).await;
    assert_eq!(text(&parts, "content-encoding"), "", "off by default");
    let on = Server::with(|c| c.server.compress = true, Default::default()).await;
    let (parts, packed) = fetch(&on, "/openapi.json", &[gzip]).await;
    assert_eq!((text(&parts, "content-encoding"), text(&parts, "vary")), ("gzip", "accept-encoding"));
    let mut unpacked = Vec::new();
    flate2::read::GzDecoder::new(packed.as_slice()).read_to_end(&mut unpacked).unwrap();
    assert_eq!(unpacked, plain);
    assert_eq!(text(&fetch(&on, "/openapi.json", &[]).await.0, "content-encoding"), "");
    assert_eq!(text(&fetch(&on, "/health", &[gzip]).await.0, "content-encoding"), "", "too short");
    // Files of the pages are packed once, not twice.
    let (parts, page) = fetch(&on, "/static/i18n/en.json", &[gzip]).await;
    assert_eq!((text(&parts, "content-encoding"), page.starts_with(&[0x1f, 0x8b])), ("gzip", true));
    let mut unpacked = String::new();
    flate2::read::GzDecoder::new(page.as_slice()).read_to_string(&mut unpacked).unwrap();
    assert!(unpacked.starts_with('{'));
    // A reader of events waits for each of them.
    let ask = serde_json::json!({"prompt": "x".repeat(2000), "echo": true, "max_tokens": 8, "stream": true});
    let answer = on.call("POST", "/v1/completions", &[gzip], Some(ask)).await.expect(200);
    let header = |name: &str| answer.headers.get(name).map_or("", |v| v.to_str().unwrap()).to_owned();
    assert_eq!((header("content-type").as_str(), header("content-encoding").as_str()), ("text/event-stream", ""));
    assert_eq!(answer.events().last().map(String::as_str), Some("[DONE]"));
}

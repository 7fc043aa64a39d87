//! Who may call what: a matrix made from the table of routes, sessions, foreign origins, headers.

use std::io::Read;

use http::Method;
use instructd::http::access::Access;
use instructd::http::observe::SECURITY_HEADERS;
use instructd::http::routes;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::client::{ADMIN_KEY, Answer, Server, admin};

/// A path with its parameters filled in.
fn filled(path: &str) -> String {
    path.replace("{id}", "nope").replace("{labeler}", "nope").replace("{*path}", "nope")
}

async fn key(server: &Server, scope: &str) -> String {
    let made = server.post("/admin/keys", json!({"name": scope, "scopes": [scope]})).await.expect(201).json();
    made["key"].as_str().unwrap().to_owned()
}

fn cookie(answer: &Answer) -> String {
    let header = answer.headers["set-cookie"].to_str().unwrap();
    assert!(header.contains("HttpOnly") && header.contains("SameSite=Strict"), "{header}");
    header.split(';').next().unwrap().to_owned()
}

#[tokio::test]
async fn every_route_admits_whom_the_table_says() {
    for require_key in [false, true] {
        let server = Server::with(|c| c.require_inference_key = require_key, Default::default()).await;
        let mut callers: Vec<(&str, Option<(&str, String)>)> = vec![("nobody", None)];
        callers.push(("wrong", Some(("authorization", "Bearer sk-wrong".into()))));
        for scope in ["admin", "feedback", "inference"] {
            callers.push((scope, Some(("authorization", format!("Bearer {}", key(&server, scope).await)))));
        }
        let invite = server.post("/admin/invites", json!({})).await.expect(201).json();
        let session = json!({"invite": invite["token"], "name": "Lu"});
        callers.push(("labeler", Some(("cookie", cookie(&server.open_post("/session", session).await.expect(200))))));
        let invite = server.post("/admin/invites", json!({"role": "reviewer"})).await.expect(201).json();
        let session = json!({"invite": invite["token"], "name": "Rui"});
        callers.push(("reviewer", Some(("cookie", cookie(&server.open_post("/session", session).await.expect(200))))));
        let session = server.open_post("/session", json!({"key": ADMIN_KEY})).await.expect(200);
        callers.push(("admin session", Some(("cookie", cookie(&session)))));
        for route in routes::table(&server.services.config.limits) {
            // Signing out would end the sessions that the next routes need.
            if route.path == "/session" && route.method == Method::DELETE {
                continue;
            }
            for (who, header) in &callers {
                let may = match route.access {
                    Access::Public => true,
                    Access::Inference => !require_key || !matches!(*who, "nobody" | "wrong" | "feedback"),
                    Access::Keyed => !matches!(*who, "nobody" | "wrong" | "feedback"),
                    Access::Feedback => matches!(*who, "admin" | "feedback" | "labeler" | "reviewer" | "admin session"),
                    Access::Review => matches!(*who, "admin" | "reviewer" | "admin session"),
                    Access::Admin => matches!(*who, "admin" | "admin session"),
                };
                let headers: Vec<(&str, &str)> = header.iter().map(|(n, v)| (*n, v.as_str())).collect();
                let body = (route.method == Method::POST).then(|| json!({"nonsense": true}));
                let answer = server.call(route.method.as_str(), &filled(route.path), &headers, body).await;
                let refused = matches!(answer.status.as_u16(), 401 | 403);
                // `GET /session` says 401 to nobody: that is its answer.
                let own_401 =
                    route.path == "/session" && route.method == Method::GET && matches!(*who, "nobody" | "wrong");
                assert_eq!(
                    !refused || own_401,
                    may,
                    "{} {} by {who} (require_key {require_key}): {} {}",
                    route.method,
                    route.path,
                    answer.status,
                    answer.text
                );
                if matches!(*who, "nobody" | "wrong") && !may {
                    assert_eq!(answer.status, 401);
                }
                assert!(answer.status.as_u16() < 500, "{} {}: {}", route.method, route.path, answer.text);
            }
        }
    }
}

#[tokio::test]
async fn every_answer_has_the_security_headers() {
    let server = Server::start().await;
    let mut paths: Vec<(String, String)> =
        routes::table(&server.services.config.limits).iter().map(|r| (r.method.to_string(), filled(r.path))).collect();
    paths.push(("GET".into(), "/nope".into()));
    paths.push(("PUT".into(), "/v1/models".into()));
    for (method, path) in paths {
        let answer = server.call(&method, &path, &[], None).await;
        for (name, value) in SECURITY_HEADERS {
            assert_eq!(answer.headers.get(*name).map(|v| v.to_str().unwrap()), Some(*value), "{method} {path}: {name}");
        }
        assert!(answer.headers.contains_key("x-request-id"), "{method} {path}");
    }
}

#[tokio::test]
async fn foreign_pages_cannot_act_with_a_cookie() {
    let server = Server::start().await;
    let session = cookie(&server.open_post("/session", json!({"key": ADMIN_KEY})).await.expect(200));
    let ask = async |extra: &[(&str, &str)]| {
        let mut headers = vec![("cookie", session.as_str()), ("host", "here:8080")];
        headers.extend_from_slice(extra);
        let body = json!({"messages": [{"role": "user", "content": "x"}]});
        server.call("POST", "/v1/prompts", &headers, Some(body)).await.status.as_u16()
    };
    assert_eq!(ask(&[("sec-fetch-site", "same-origin"), ("origin", "http://here:8080")]).await, 201);
    assert_eq!(ask(&[("origin", "http://here:8080")]).await, 201);
    assert_eq!(ask(&[]).await, 201);
    assert_eq!(ask(&[("sec-fetch-site", "cross-site")]).await, 403);
    assert_eq!(ask(&[("sec-fetch-site", "same-site")]).await, 403);
    assert_eq!(ask(&[("origin", "http://there:8080")]).await, 403);
    assert_eq!(ask(&[("origin", "null")]).await, 403);
    // A login from elsewhere would sign the visitor in as somebody else.
    let login =
        server.call("POST", "/session", &[("sec-fetch-site", "cross-site")], Some(json!({"key": ADMIN_KEY}))).await;
    assert_eq!(login.status.as_u16(), 403);
    // A key in a header is never sent by a browser on its own.
    let headers = [admin(), ("origin", "http://there:8080")];
    let body = json!({"messages": [{"role": "user", "content": "x"}]});
    server.call("POST", "/v1/prompts", &headers, Some(body)).await.expect(201);
}

#[tokio::test]
async fn sessions_rotate_and_end() {
    let server = Server::start().await;
    let first = cookie(&server.open_post("/session", json!({"key": ADMIN_KEY})).await.expect(200));
    let again =
        server.call("POST", "/session", &[("cookie", &first)], Some(json!({"key": ADMIN_KEY}))).await.expect(200);
    let second = cookie(&again);
    assert_ne!(first, second);
    let who = async |c: &str| server.call("GET", "/session", &[("cookie", c)], None).await;
    who(&first).await.expect(401);
    assert_eq!(who(&second).await.expect(200).json()["labeler"]["role"], "admin");
    server.call("DELETE", "/session", &[("cookie", &second)], None).await.expect(204);
    who(&second).await.expect(401);
    server.open_post("/session", json!({"key": "sk-wrong-key"})).await.expect(403);
}

#[tokio::test]
async fn invites_work_once_and_keys_can_be_revoked() {
    let server = Server::start().await;
    let invite = server.post("/admin/invites", json!({"role": "reviewer"})).await.expect(201).json();
    let body = json!({"invite": invite["token"], "name": "Ada"});
    let joined = server.open_post("/session", body.clone()).await.expect(200).json();
    assert_eq!(joined["labeler"]["role"], "reviewer");
    server.open_post("/session", body).await.expect(403);

    let made = server.post("/admin/keys", json!({"name": "app", "scopes": ["feedback"]})).await.expect(201).json();
    let bearer = format!("Bearer {}", made["key"].as_str().unwrap());
    let next = async || server.call("GET", "/v1/label/next", &[("authorization", &bearer)], None).await;
    next().await.expect(204);
    let path = format!("/admin/keys/{}", made["id"].as_str().unwrap());
    server.call("DELETE", &path, &[admin()], None).await.expect(204);
    next().await.expect(401);
    let listed = server.get("/admin/keys").await.expect(200).text;
    assert!(!listed.contains(made["key"].as_str().unwrap()) && !listed.contains("key_hash"));
}

#[tokio::test]
async fn request_ids_are_echoed_when_harmless() {
    let server = Server::start().await;
    let id = async |given: &str| {
        let answer = server.call("GET", "/health", &[("x-request-id", given)], None).await;
        answer.headers["x-request-id"].to_str().unwrap().to_owned()
    };
    assert_eq!(id("abc-1.2_3").await, "abc-1.2_3");
    assert_ne!(id("a b").await, "a b");
    let long = "x".repeat(200);
    assert_ne!(id(&long).await, long);
}

#[tokio::test]
async fn the_documents_list_every_route() {
    let server = Server::start().await;
    let document: Value = server.get("/openapi.json").await.expect(200).json();
    let docs = server.get("/docs").await.expect(200).text;
    for route in routes::table(&server.services.config.limits) {
        let path = route.path.replace("{*", "{");
        let operation = &document["paths"][&path][route.method.as_str().to_lowercase()];
        assert_eq!(operation["summary"], route.about, "{} {path}", route.method);
        let marked = format!("data-method=\"{}\" data-path=\"{}\"", route.method, route.path);
        assert_eq!(docs.contains(&marked), !route.page, "{marked}");
    }
    assert!(!docs.contains("/static/{") && !docs.contains('`') && !docs.contains("<code>None"), "for readers of JSON");
    for part in ["Text and chat", "curl", "import requests", "max_<wbr>tokens", "data-words=\"docs.required\""] {
        assert!(docs.contains(part), "{part}");
    }
    assert!(!document.to_string().contains("#/$defs"), "references must resolve");
}

/// The examples of the API's page are requests that the routes take: nothing in them is unknown, missing or of the
/// wrong type.
#[tokio::test]
async fn examples_are_taken() {
    let server = Server::start().await;
    let mut tried = 0;
    for route in routes::table(&server.services.config.limits) {
        let Some(body) = instructd::http::examples::body(&route) else { continue };
        let answer = server.post(&filled(route.path), body.clone()).await;
        let well_formed = answer.status.is_success() || matches!(answer.status.as_u16(), 403 | 404 | 409);
        let about_a_name = answer.status == 400 && matches!(answer.param().as_deref(), Some("model" | "args.model"));
        assert!(well_formed || about_a_name, "{} {body}: {} {}", route.path, answer.status, answer.text);
        tried += 1;
    }
    assert!(tried > 20, "{tried}");
}

#[tokio::test]
async fn a_mistyped_address_is_a_page_for_browsers_and_json_for_programs() {
    let server = Server::start().await;
    let ask = async |accept: &str| server.call("GET", "/labl", &[("accept", accept)], None).await.expect(404);
    let page = ask("text/html,application/xhtml+xml,*/*;q=0.8").await;
    assert!(page.headers["content-type"].to_str().unwrap().starts_with("text/html"));
    assert!(page.text.contains("/static/js/missing.js") && page.text.contains("href=\"/docs\""));
    for accept in ["application/json", "*/*"] {
        assert_eq!(ask(accept).await.json()["error"]["code"], "no_route");
    }
}

#[tokio::test]
async fn files_of_the_pages_are_compressed_and_not_sent_again() {
    let server = Server::start().await;
    let router = instructd::http::router(server.services.clone());
    let get = async |headers: &[(&str, &str)]| {
        let mut request = axum::http::Request::builder().uri("/static/vendor/uplot/uPlot.esm.js");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = router.clone().oneshot(request.body(axum::body::Body::empty()).unwrap()).await.unwrap();
        let (parts, body) = answer.into_parts();
        (parts, axum::body::to_bytes(body, usize::MAX).await.unwrap())
    };
    let (plain, whole) = get(&[]).await;
    assert!(plain.headers.get("content-encoding").is_none());
    let (parts, packed) = get(&[("accept-encoding", "gzip")]).await;
    assert_eq!(parts.headers["content-encoding"], "gzip");
    assert!(packed.len() * 2 < whole.len(), "{} of {}", packed.len(), whole.len());
    let mut unpacked = Vec::new();
    flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut unpacked).unwrap();
    assert_eq!(unpacked, whole);
    let tag = parts.headers["etag"].to_str().unwrap();
    let (again, nothing) = get(&[("accept-encoding", "gzip"), ("if-none-match", tag)]).await;
    assert!(again.status == 304 && nothing.is_empty());
}

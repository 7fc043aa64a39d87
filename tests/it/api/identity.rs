//! Who somebody is stays what it was made from: generated keys, lock-outs, demotions, streams, sign-in links, clocks.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::SeqCst};
use std::time::Duration;

use http::Request;
use http_body_util::BodyExt;
use instructd::config::Config;
use instructd::domain::KeyOrigin;
use instructd::service::random::secret_hash;
use instructd::service::{Random, Services, access, system_clock};
use serde_json::{Value, json};

use super::client::{ADMIN_KEY, Answer, Server, admin};

const HOUR: i64 = 3_600_000_000;

fn cookie(answer: &Answer) -> String {
    answer.headers["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned()
}

async fn status(server: &Server, key: &str, path: &str) -> u16 {
    server.call("GET", path, &[("authorization", &format!("Bearer {key}"))], None).await.status.as_u16()
}

async fn who(server: &Server, cookie: &str) -> Answer {
    server.call("GET", "/session", &[("cookie", cookie)], None).await
}

fn code(answer: &Answer) -> String {
    answer.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
}

/// As a start of the program does it, on the database of `dir`.
async fn started(dir: &std::path::Path, admin_key: Option<&str>) -> (Server, Option<String>) {
    let config = Config { data_dir: dir.to_owned(), admin_key: admin_key.map(str::to_owned), ..Config::default() };
    let store = instructd::store::connect(&config.database_url()).await.unwrap();
    let random = Random::from_os().unwrap();
    let printed = access::generate_admin_key(&config, store.as_ref(), &random, 1).await.unwrap();
    let hash = admin_key.map(secret_hash);
    let services = Services::new(config, store, system_clock(), random, hash, instructd::train::job_kinds());
    (Server::of(Arc::new(services), tempfile::tempdir().unwrap()), printed)
}

async fn with(server: &Server, key: &str, method: &str, path: &str, body: Option<Value>) -> Answer {
    server.call(method, path, &[("authorization", &format!("Bearer {key}"))], body).await
}

#[tokio::test]
async fn the_generated_key_is_a_key_like_any_other() {
    let dir = tempfile::tempdir().unwrap();
    let (server, printed) = started(dir.path(), None).await;
    let key = printed.expect("printed at the first start");
    let listed = with(&server, &key, "GET", "/admin/keys", None).await.expect(200).json();
    assert_eq!((&listed["data"][0]["origin"], listed["data"].as_array().unwrap().len()), (&json!("generated"), 1));
    let session = cookie(&server.open_post("/session", json!({"key": key})).await.expect(200));

    // A key of its name is only a name.
    let decoy = json!({"name": "generated at the first start", "scopes": ["inference"]});
    let decoy = with(&server, &key, "POST", "/admin/keys", Some(decoy)).await.expect(201).json();
    let decoy = decoy["key"].as_str().unwrap();
    let (server, printed) = started(dir.path(), None).await;
    assert_eq!(printed, None, "made once");
    assert_eq!((status(&server, &key, "/admin/keys").await, status(&server, decoy, "/admin/keys").await), (200, 403));
    who(&server, &session).await.expect(200);

    // A configured key replaces it, and it comes back when none is configured.
    let (configured, printed) = started(dir.path(), Some("a configured admin key")).await;
    assert_eq!(printed, None);
    assert_eq!(status(&configured, &key, "/admin/keys").await, 401);
    who(&configured, &session).await.expect(401);
    assert_eq!(status(&configured, "a configured admin key", "/admin/keys").await, 200);

    // Revoked, it is over at once, with its sessions.
    let id = listed["data"][0]["id"].as_str().unwrap();
    let session = cookie(&server.open_post("/session", json!({"key": key})).await.expect(200));
    with(&server, &key, "DELETE", &format!("/admin/keys/{id}"), None).await.expect(204);
    assert_eq!(status(&server, &key, "/admin/keys").await, 401);
    who(&server, &session).await.expect(401);
    let refused = server.open_post("/session", json!({"key": key})).await.expect(403);
    assert_eq!(code(&refused), "key_unknown");
    // The next start makes another one; the decoy stays what it is.
    let (server, printed) = started(dir.path(), None).await;
    let next = printed.expect("a new key");
    assert_eq!((status(&server, &next, "/admin/keys").await, status(&server, decoy, "/admin/keys").await), (200, 403));
    let generated = server.services.store.api_keys().list().await.unwrap();
    assert_eq!(generated.iter().filter(|k| k.origin == KeyOrigin::Generated && !k.revoked).count(), 1);
}

async fn person(server: &Server, name: &str, role: &str) -> (String, Value) {
    let made = server.post("/admin/labelers", json!({"name": name, "role": role})).await.expect(201).json();
    (made["id"].as_str().unwrap().to_owned(), made)
}

#[tokio::test]
async fn lock_out_and_demotion_end_keys_and_sessions_at_once() {
    let server = Server::start().await;
    let (ada, made) = person(&server, "Ada", "admin").await;
    let key = async |scopes: &[&str]| {
        let body = json!({"name": "adas", "scopes": scopes, "labeler_id": ada});
        server.post("/admin/keys", body).await.expect(201).json()["key"].as_str().unwrap().to_owned()
    };
    let (all, both) = (key(&["admin"]).await, key(&["admin", "feedback"]).await);
    let session = cookie(&server.open_post("/session", json!({"link": made["link"]["token"]})).await.expect(200));
    let key_session = cookie(&server.open_post("/session", json!({"key": all})).await.expect(200));
    let page = async |c: &str| server.call("GET", "/admin/keys", &[("cookie", c)], None).await.status.as_u16();
    assert_eq!(
        (status(&server, &all, "/admin/keys").await, page(&session).await, page(&key_session).await),
        (200, 200, 200)
    );

    let path = format!("/admin/labelers/{ada}");
    for role in ["labeler", "admin"] {
        server.post(&path, json!({"role": role})).await.expect(200);
        let admin_key = status(&server, &both, "/admin/keys").await;
        assert_eq!((status(&server, &all, "/admin/keys").await, admin_key), (401, 403), "as {role}");
        assert_eq!((page(&session).await, page(&key_session).await), (403, 401), "rising again revives nothing");
    }
    assert_eq!(status(&server, &both, "/v1/label/me").await, 200, "its other scope stays");

    let fresh = cookie(&server.open_post("/session", json!({"link": made["link"]["token"]})).await.expect(200));
    let admin_key = key(&["admin"]).await;
    for lock in [json!({"active": false}), json!({"active": true})] {
        server.post(&path, lock).await.expect(200);
        assert_eq!(
            (status(&server, &admin_key, "/admin/keys").await, status(&server, &both, "/v1/label/me").await),
            (401, 401)
        );
        assert_eq!((page(&fresh).await, page(&session).await), (401, 401));
    }
    let refused = server.open_post("/session", json!({"link": made["link"]["token"]})).await.expect(403);
    assert_eq!(code(&refused), "link_revoked");

    // A key cannot give what its person lacks.
    let (bob, _) = person(&server, "Bob", "labeler").await;
    let body = json!({"name": "x", "scopes": ["admin"], "labeler_id": bob});
    assert_eq!(server.post("/admin/keys", body).await.expect(400).param().as_deref(), Some("labeler_id"));
}

#[tokio::test]
async fn the_audit_trail_names_the_key() {
    let server = Server::start().await;
    let key = server.post("/admin/keys", json!({"name": "second", "scopes": ["admin"]})).await.expect(201).json();
    let (secret, id) = (key["key"].as_str().unwrap(), &key["id"]);
    let session = cookie(&server.open_post("/session", json!({"key": secret})).await.expect(200));
    let (ada, made) = person(&server, "Ada", "admin").await;
    let link = cookie(&server.open_post("/session", json!({"link": made["link"]["token"]})).await.expect(200));
    with(&server, secret, "POST", "/admin/invites", Some(json!({}))).await.expect(201);
    for c in [&session, &link] {
        server.call("POST", "/admin/invites", &[("cookie", c)], Some(json!({}))).await.expect(201);
    }
    server.post("/admin/invites", json!({})).await.expect(201);
    let trail = server.get("/admin/audit?action=invite").await.expect(200).json();
    let lines: Vec<_> = trail["data"].as_array().unwrap().iter().map(|e| (&e["actor"], &e["credential"])).collect();
    let by_link = json!(format!("link:{}", made["link"]["id"].as_str().unwrap()));
    let (own, configured) = (json!("admin"), json!("configured"));
    assert_eq!(lines, [(&own, &configured), (&json!(ada), &by_link), (&own, id), (&own, id)]);
    assert!(
        !trail.to_string().contains(secret) && !trail.to_string().contains(made["link"]["token"].as_str().unwrap())
    );
}

#[tokio::test]
async fn a_session_keeps_the_scopes_of_its_key() {
    let server = Server::with(|c| c.require_inference_key = true, Default::default()).await;
    let ask = async |c: &str| {
        let body = json!({"prompt": "x", "max_tokens": 2});
        server.call("POST", "/v1/completions", &[("cookie", c)], Some(body)).await.status.as_u16()
    };
    for (scopes, may) in [(&["feedback"][..], 403), (&["feedback", "inference"], 200), (&["admin"], 200)] {
        let key = server.key(scopes, None).await;
        let session = cookie(&server.open_post("/session", json!({"key": key})).await.expect(200));
        assert_eq!(ask(&session).await, may, "{scopes:?}");
    }
    let (_, made) = person(&server, "Ada", "labeler").await;
    let session = cookie(&server.open_post("/session", json!({"link": made["link"]["token"]})).await.expect(200));
    assert_eq!(ask(&session).await, 200, "people who rank may ask");
}

/// Follows a stream; after `end` it must end within a few seconds, with a word why.
async fn ends_after(server: &Server, request: Request<axum::body::Body>, end: impl Future<Output = ()>) {
    use tower::ServiceExt;
    let response = server.router.clone().oneshot(request).await.unwrap();
    assert_eq!(response.status(), 200);
    let mut body = response.into_body();
    let first = tokio::time::timeout(Duration::from_secs(5), body.frame()).await.expect("it begins");
    assert!(first.is_some());
    end.await;
    let mut text = String::new();
    let rest = async {
        while let Some(Ok(frame)) = body.frame().await {
            text.push_str(&String::from_utf8_lossy(frame.data_ref().unwrap()));
        }
    };
    tokio::time::timeout(Duration::from_secs(4), rest).await.expect("the stream has ended");
    assert!(text.contains("access_ended"), "{text}");
}

#[tokio::test]
async fn open_streams_end_with_what_opened_them() {
    let slow = crate::support::mock::MockOptions { delay_per_token: Duration::from_millis(100), ..Default::default() };
    let server = Server::with(|_| {}, slow).await;
    server.demonstrate().await;
    let job = server.post("/admin/jobs", json!({"kind": "sft", "args": {}})).await.expect(201).json();
    let job = job["id"].as_str().unwrap().to_owned();
    let line = [("log".to_owned(), json!({"text": "x"}))];
    server.services.store.jobs().append_events(&job.as_str().into(), &line).await.unwrap();
    let completion = json!({"prompt": "x", "max_tokens": 400, "stream": true, "ignore_eos": true});
    let ask = json!({"messages": [{"role": "user", "content": "q"}], "n": 2, "sampling": {"max_tokens": 400, "min_tokens": 400}});
    let chat =
        json!({"messages": [{"role": "user", "content": "q"}], "max_tokens": 400, "stream": true, "ignore_eos": true});
    let streams = [
        ("POST", "/v1/completions".to_owned(), Some(completion)),
        ("POST", "/v1/chat/completions".to_owned(), Some(chat)),
        ("POST", "/v1/label/ask".to_owned(), Some(ask)),
        ("GET", format!("/admin/jobs/{job}/events"), None),
    ];
    for (method, path, body) in streams {
        for by_session in [false, true] {
            let scopes = ["admin", "inference", "feedback"];
            let made = server.post("/admin/keys", json!({"name": "k", "scopes": scopes})).await.expect(201).json();
            let key = made["key"].as_str().unwrap();
            let (name, value) = if by_session {
                ("cookie", cookie(&server.open_post("/session", json!({"key": key})).await.expect(200)))
            } else {
                ("authorization", format!("Bearer {key}"))
            };
            let request = Request::builder().method(method).uri(&path).header(name, value);
            let request = request.header("content-type", "application/json");
            let content = body.as_ref().map_or_else(axum::body::Body::empty, |b| axum::body::Body::from(b.to_string()));
            let revoke = async {
                let path = format!("/admin/keys/{}", made["id"].as_str().unwrap());
                server.call("DELETE", &path, &[admin()], None).await.expect(204);
            };
            ends_after(&server, request.body(content).unwrap(), revoke).await;
        }
    }
}

#[tokio::test]
async fn a_person_signs_in_again_with_their_link() {
    let server = Server::start().await;
    let invite = server.post("/admin/invites", json!({"name": "Ada", "note": "n"})).await.expect(201).json();
    assert_eq!(
        invite["url"],
        format!("/label#invite={}", invite["token"].as_str().unwrap()),
        "no query: logs keep those"
    );
    let look = async || server.open_post("/session/invite", json!({"invite": invite["token"]})).await;
    assert_eq!(look().await.expect(200).json()["name"], "Ada");
    let joined = server.open_post("/session", json!({"invite": invite["token"]})).await.expect(200);
    let (first, ada) = (joined.json()["link"].clone(), joined.json()["labeler"]["id"].clone());
    assert_eq!(joined.json()["labeler"]["name"], "Ada", "the invite's name, where no other is given");
    for used in [look().await, server.open_post("/session", json!({"invite": invite["token"], "name": "B"})).await] {
        assert_eq!((code(&used), used.status.as_u16()), ("invite_used".into(), 403));
    }
    // Again and again, the same person.
    for _ in 0..3 {
        let back = server.open_post("/session", json!({"link": first["token"]})).await.expect(200).json();
        assert_eq!(back["labeler"]["id"], ada);
        assert_eq!(back.get("link"), None, "a link is shown once");
    }
    let people = server.get("/admin/labelers").await.json();
    let me = people["data"].as_array().unwrap().iter().find(|l| l["id"] == ada).unwrap().clone();
    assert!(me["link"]["used"].as_i64() > Some(0) && me["link"]["token"].is_null(), "{me}");
    assert!(!people.to_string().contains(first["token"].as_str().unwrap()));

    // A new link replaces the old one, and what the old one opened.
    let old = cookie(&server.open_post("/session", json!({"link": first["token"]})).await.expect(200));
    let path = format!("/admin/labelers/{}/link", ada.as_str().unwrap());
    let second = server.post(&path, json!({})).await.expect(201).json();
    who(&server, &old).await.expect(401);
    assert_eq!(code(&server.open_post("/session", json!({"link": first["token"]})).await.expect(403)), "link_replaced");
    let open = cookie(&server.open_post("/session", json!({"link": second["token"]})).await.expect(200));
    server.call("DELETE", &path, &[admin()], None).await.expect(204);
    who(&server, &open).await.expect(401);
    assert_eq!(code(&server.open_post("/session", json!({"link": second["token"]})).await.expect(403)), "link_revoked");
    server.call("DELETE", &path, &[admin()], None).await.expect(404);
    assert_eq!(code(&server.open_post("/session", json!({"link": "link-no"})).await.expect(403)), "link_unknown");
    for nobody in ["admin", "import"] {
        server.post(&format!("/admin/labelers/{nobody}/link"), json!({})).await.expect(409);
    }
    server.post("/admin/labelers/nobody/link", json!({})).await.expect(404);
    assert_eq!(
        server.post(&path, json!({"expires_hours": 0})).await.expect(400).param().as_deref(),
        Some("expires_hours")
    );

    // Nobody becomes two people in silence.
    for twice in [json!({"name": "Ada"}), json!({"name": " ada "})] {
        server.post("/admin/invites", twice.clone()).await.expect(409);
        server.post("/admin/labelers", twice).await.expect(409);
    }
    let open_invite = server.post("/admin/invites", json!({})).await.expect(201).json();
    let join = json!({"invite": open_invite["token"], "name": "ADA"});
    assert!(server.open_post("/session", join).await.expect(409).text.contains("new one"));
    server.post("/admin/labelers", json!({"name": "Ada", "another": true})).await.expect(201);
    assert_eq!(
        server.open_post("/session", json!({"invite": open_invite["token"]})).await.expect(400).param().as_deref(),
        Some("name")
    );
}

#[tokio::test]
async fn errors_of_links_and_invites_give_the_reason() {
    let clock = Arc::new(AtomicI64::new(1_000 * HOUR));
    let server = Server::at(clock.clone(), |c| c.sessions.invite_hours = 5).await;
    let (ada, _) = person(&server, "Ada", "labeler").await;
    let link =
        server.post(&format!("/admin/labelers/{ada}/link"), json!({"expires_hours": 2})).await.expect(201).json();
    let late = server.post("/admin/invites", json!({})).await.expect(201).json();
    let revoked = server.post("/admin/invites", json!({})).await.expect(201).json();
    let path = format!("/admin/invites/{}", revoked["invite"]["id"].as_str().unwrap());
    server.call("DELETE", &path, &[admin()], None).await.expect(204);
    let refused = server.open_post("/session", json!({"invite": revoked["token"], "name": "x"})).await.expect(403);
    assert_eq!(code(&refused), "invite_revoked");
    clock.fetch_add(6 * HOUR, SeqCst);
    let refused = server.open_post("/session", json!({"link": link["token"]})).await.expect(403);
    assert_eq!(code(&refused), "link_expired");
    let refused = server.open_post("/session", json!({"invite": late["token"], "name": "x"})).await.expect(403);
    assert_eq!(code(&refused), "invite_expired");
    server.post(&format!("/admin/labelers/{ada}"), json!({"active": false})).await.expect(200);
    let refused = server.open_post("/session", json!({"link": link["token"]})).await.expect(403);
    assert_eq!(code(&refused), "person_locked_out");
}

/// A clock that jumped ten years ahead and back leaves nothing open for ten years.
#[tokio::test]
async fn sessions_of_a_clock_that_ran_ahead_are_over() {
    const YEARS: i64 = 10 * 365 * 24 * HOUR;
    let clock = Arc::new(AtomicI64::new(1_000_000 * HOUR));
    let server = Server::at(clock.clone(), |c| c.sessions.idle_hours = 2).await;
    let before = cookie(&server.open_post("/session", json!({"key": ADMIN_KEY})).await.expect(200));
    clock.fetch_add(YEARS, SeqCst);
    let ahead = cookie(&server.open_post("/session", json!({"key": ADMIN_KEY})).await.expect(200));
    let invite = server.post("/admin/invites", json!({})).await.expect(201).json();
    clock.fetch_sub(YEARS, SeqCst);
    who(&server, &ahead).await.expect(401);
    let refused = server.open_post("/session", json!({"invite": invite["token"], "name": "x"})).await.expect(403);
    assert_eq!(code(&refused), "invite_expired");
    // Its expiry lies behind the jump, so the clean-up at a sign-in took it: the person signs in again.
    who(&server, &before).await.expect(401);
    let now = cookie(&server.open_post("/session", json!({"key": ADMIN_KEY})).await.expect(200));
    who(&server, &now).await.expect(200);
}

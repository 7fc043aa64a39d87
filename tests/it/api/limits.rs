//! Rates, quotas, floods, and the ends of sessions.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::SeqCst};

use instructd::domain::JobState;
use instructd::service::random::secret_hash;
use serde_json::json;

use super::client::{ADMIN_KEY, Answer, Server, admin};

const HOUR: i64 = 3_600_000_000;

fn cookie(answer: &Answer) -> String {
    answer.headers["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned()
}

fn limited(answer: &Answer) {
    assert_eq!(answer.status, 429, "{}", answer.text);
    let seconds: u64 = answer.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=61).contains(&seconds), "{seconds}");
    assert_eq!(answer.json()["error"]["type"], "rate_limit_error");
}

/// One counter for wrong secrets on every route. What it slows is the configured admin key, which a person chose; keys,
/// links and invites that the server made are 256 random bits, so a right one passes at once, and so does a session.
#[tokio::test]
async fn wrong_keys_are_counted_by_address_on_every_route() {
    let server = Server::with(|c| c.rates.login_per_minute = 3, Default::default()).await;
    let sign_in =
        async |from: &str, body: serde_json::Value| server.from(from, "POST", "/session", None, Some(body)).await;
    let stored = server.key(&["admin"], None).await;
    let session = cookie(&sign_in("10.0.0.1", json!({"key": ADMIN_KEY})).await.expect(200));
    for wrong in [json!({"key": "sk-guess"}), json!({"link": "link-guess"}), json!({"invite": "i-guess", "name": "x"})]
    {
        sign_in("10.0.0.1", wrong).await.expect(403);
    }
    limited(&sign_in("10.0.0.1", json!({"key": "sk-guess"})).await);
    limited(&sign_in("10.0.0.1", json!({"link": "link-guess"})).await);
    limited(&server.from("10.0.0.1", "POST", "/session/invite", None, Some(json!({"invite": "x"}))).await);
    limited(&server.from("10.0.0.1", "GET", "/admin/jobs", Some("sk-guess"), None).await);
    limited(&server.from("10.0.0.1", "GET", "/session", Some("sk-guess"), None).await);
    // The configured key does not pass either: 429 says nothing about a guess.
    limited(&server.from("10.0.0.1", "GET", "/session", Some(ADMIN_KEY), None).await);
    limited(&sign_in("10.0.0.1", json!({"key": ADMIN_KEY})).await);
    // Sessions, keys that the server made, and other addresses are not slowed.
    for _ in 0..5 {
        let with_cookie = http::Request::get("/admin/jobs")
            .header("cookie", &session)
            .extension(instructd::http::peer::Peer("10.0.0.1".parse().unwrap()));
        server.send(with_cookie.body(axum::body::Body::empty()).unwrap()).await.expect(200);
        server.from("10.0.0.1", "GET", "/admin/jobs", Some(&stored), None).await.expect(200);
        sign_in("10.0.0.1", json!({"key": stored})).await.expect(200);
    }
    sign_in("10.0.0.2", json!({"key": ADMIN_KEY})).await.expect(200);
    // A slowed try is possible: one after a second.
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    sign_in("10.0.0.1", json!({"key": ADMIN_KEY})).await.expect(200);
    limited(&sign_in("10.0.0.1", json!({"key": ADMIN_KEY})).await);
}

/// Guesses on public and open routes count like those elsewhere; a client that sends one made-up key with every
/// request is served and is one wrong key.
#[tokio::test]
async fn guesses_on_open_routes_count_and_arbitrary_keys_are_ignored() {
    let server = Server::with(|c| c.rates.login_per_minute = 4, Default::default()).await;
    let ask = async |key: &str| server.from("10.0.0.1", "GET", "/v1/models", Some(key), None).await.status.as_u16();
    for _ in 0..20 {
        assert_eq!(ask("EMPTY").await, 200);
    }
    server.from("10.0.0.1", "GET", "/session", Some("sk-a"), None).await.expect(401);
    for guess in ["sk-b", "sk-c", "sk-d", "sk-e"] {
        assert_eq!(ask(guess).await, 200, "as good as none");
    }
    limited(&server.from("10.0.0.1", "GET", "/session", Some("sk-f"), None).await);
    limited(&server.from("10.0.0.1", "GET", "/session", Some(ADMIN_KEY), None).await);
    assert_eq!(ask("EMPTY").await, 200);
}

#[tokio::test]
async fn inference_and_feedback_are_counted_by_key_or_address() {
    let server = Server::with(
        |c| {
            c.rates.inference_per_minute = 2;
            c.rates.feedback_per_minute = 2;
        },
        Default::default(),
    )
    .await;
    let (one, two) = (server.key(&["inference"], None).await, server.key(&["inference"], None).await);
    let ask = async |from: &str, key: Option<&str>| {
        server.from(from, "POST", "/v1/completions", key, Some(json!({"prompt": "x", "max_tokens": 2}))).await
    };
    for _ in 0..2 {
        ask("10.0.0.1", Some(&one)).await.expect(200);
        ask("10.0.0.1", None).await.expect(200);
    }
    // A key is one caller wherever it comes from; an address without a key is another.
    limited(&ask("10.0.0.9", Some(&one)).await);
    limited(&ask("10.0.0.1", None).await);
    ask("10.0.0.1", Some(&two)).await.expect(200);
    ask("10.0.0.2", None).await.expect(200);
    for _ in 0..5 {
        ask("10.0.0.1", Some(ADMIN_KEY)).await.expect(200);
    }
    let labeler = server.key(&["feedback"], None).await;
    let next = async || server.from("10.0.0.1", "GET", "/v1/label/next", Some(&labeler), None).await;
    next().await.expect(204);
    next().await.expect(204);
    limited(&next().await);
    // Refused before any work: no body is read, no sample drawn.
    assert_eq!(server.services.engine().unwrap().stats().running, 0);
}

#[tokio::test]
async fn daily_tokens_are_counted_and_reset() {
    let clock = Arc::new(AtomicI64::new(20_000 * 24 * HOUR + 23 * HOUR));
    let server = Server::at(clock.clone(), |_| {}).await;
    assert_eq!(
        server.post("/admin/keys", json!({"name": "k", "scopes": ["inference"], "daily_tokens": 0})).await.param(),
        Some("daily_tokens".into())
    );
    let key = server.key(&["inference"], Some(12)).await;
    let ask = async |stream: bool| {
        let body = json!({"prompt": "abcde", "max_tokens": 4, "ignore_eos": true, "stream": stream});
        server.from("10.0.0.1", "POST", "/v1/completions", Some(&key), Some(body)).await
    };
    // 5 + at most 4 tokens each; words of several bytes may not fit into the fourth.
    ask(false).await.expect(200);
    ask(true).await.expect(200);
    let refused = ask(false).await.expect(429);
    assert_eq!(refused.json()["error"]["code"], "quota_exceeded");
    assert_eq!(refused.headers["retry-after"], "3601", "until midnight UTC");
    // Who has no number of tokens is not counted.
    server.open_post("/v1/completions", json!({"prompt": "x", "max_tokens": 2})).await.expect(200);
    clock.fetch_add(HOUR, SeqCst);
    ask(false).await.expect(200);
    let keys = server.get("/admin/keys").await.json();
    assert_eq!(keys["data"][0]["daily_tokens"], 12);
    let id = keys["data"][0]["id"].as_str().unwrap().into();
    assert!(server.services.store.api_keys().tokens(&id, 20_000).await.unwrap() >= 12);
    assert!(server.services.store.api_keys().tokens(&id, 20_001).await.unwrap() <= 9);
}

#[tokio::test]
async fn sessions_end_idle_and_old_and_with_what_opened_them() {
    let clock = Arc::new(AtomicI64::new(1_000 * HOUR));
    let server = Server::at(clock.clone(), |c| {
        c.sessions.idle_hours = 2;
        c.sessions.lifetime_hours = 10;
    })
    .await;
    let open = async |key: &str| cookie(&server.open_post("/session", json!({"key": key})).await.expect(200));
    let who = async |c: &str| server.call("GET", "/session", &[("cookie", c)], None).await.status.as_u16();
    let idle = open(ADMIN_KEY).await;
    let used = open(ADMIN_KEY).await;
    for hours in 1..10 {
        clock.fetch_add(HOUR, SeqCst);
        assert_eq!(who(&used).await, 200, "used every hour");
        if hours == 3 {
            assert_eq!(who(&idle).await, 401, "idle for three hours");
        }
    }
    clock.fetch_add(HOUR, SeqCst);
    assert_eq!(who(&used).await, 401, "ten hours old, though in use");
    assert_eq!(who(&idle).await, 401, "an ended session does not come back");

    // A key's sessions end with the key.
    let made = server.post("/admin/keys", json!({"name": "a", "scopes": ["feedback"]})).await.expect(201).json();
    let session = open(made["key"].as_str().unwrap()).await;
    assert_eq!(who(&session).await, 200);
    server.call("DELETE", &format!("/admin/keys/{}", made["id"].as_str().unwrap()), &[admin()], None).await.expect(204);
    assert_eq!(who(&session).await, 401);

    // A labeler's sessions end when they are kept out, and stay ended when they are let in again.
    let made = server.post("/admin/keys", json!({"name": "b", "scopes": ["feedback"]})).await.expect(201).json();
    let session = open(made["key"].as_str().unwrap()).await;
    let path = format!("/admin/labelers/{}/active", made["labeler_id"].as_str().unwrap());
    server.post(&path, json!({"active": false})).await.expect(204);
    assert_eq!(who(&session).await, 401);
    server.post(&path, json!({"active": true})).await.expect(204);
    assert_eq!(who(&session).await, 401);
}

/// Whoever changes the admin key has a reason: sessions of the old one end.
#[tokio::test]
async fn sessions_of_another_admin_key_have_ended() {
    let server = Server::start().await;
    let session = cookie(&server.open_post("/session", json!({"key": ADMIN_KEY})).await.expect(200));
    let token = session.split_once('=').unwrap().1;
    let mut stored = server.services.store.sessions().get(&secret_hash(token), 0).await.unwrap().unwrap();
    assert!(stored.credential.starts_with("admin:") && !stored.credential.contains(ADMIN_KEY));
    server.services.store.sessions().delete(&stored.token_hash).await.unwrap();
    stored.credential = "admin:0123456789abcdef".into();
    server.services.store.sessions().put(stored).await.unwrap();
    server.call("GET", "/session", &[("cookie", &session)], None).await.expect(401);
}

/// Keys are 256 random bits and kept as one SHA-256: a sign-in costs microseconds and no memory to speak of, so
/// there is no slow hash to flood. Five hundred at once, and the server is as alive as before.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_sign_ins_does_not_slow_others() {
    let server = Arc::new(Server::start().await);
    let tries = (0..500).map(|i| {
        let server = server.clone();
        tokio::spawn(
            async move { server.open_post("/session", json!({"key": format!("sk-{i}")})).await.status.as_u16() },
        )
    });
    let tries: Vec<_> = tries.collect();
    server.get("/health").await.expect(200);
    for status in futures::future::join_all(tries).await {
        assert_eq!(status.unwrap(), 403);
    }
    server.get("/health").await.expect(200);
    let large = json!({"key": "k".repeat(5000)});
    assert_eq!(server.open_post("/session", large).await.expect(413).param().as_deref(), Some("body"));
}

/// Every route that changes something, with a cookie and from another site: refused, and nothing happened.
#[tokio::test]
async fn no_route_can_be_called_by_a_foreign_page() {
    let server = Server::start().await;
    let session = cookie(&server.open_post("/session", json!({"key": ADMIN_KEY})).await.expect(200));
    for route in instructd::http::routes::table(&server.services.config.limits) {
        let path = route.path.replace("{id}", "nope").replace("{*path}", "nope");
        let reads = matches!(route.method.as_str(), "GET" | "HEAD");
        for foreign in [
            [("sec-fetch-site", "cross-site"), ("origin", "http://evil.example")],
            [("sec-fetch-site", "same-site"), ("origin", "http://sub.here")],
            [("host", "here"), ("origin", "null")],
            [("host", "here"), ("origin", "http://here.evil.example")],
        ] {
            let mut headers = vec![("cookie", session.as_str())];
            headers.extend_from_slice(&foreign);
            let body = (!reads).then(|| json!({}));
            let answer = server.call(route.method.as_str(), &path, &headers, body).await;
            if !reads {
                assert_eq!(answer.status, 403, "{} {path} {foreign:?}: {}", route.method, answer.text);
                assert_eq!(answer.json()["error"]["code"], "cross_origin");
            }
            // Nobody may read answers from another origin either: no route allows it by header.
            assert!(!answer.headers.contains_key("access-control-allow-origin"), "{path}");
        }
    }
    assert_eq!(server.services.store.counts().await.unwrap().prompts, 0);
    let jobs =
        server.services.store.jobs().list(instructd::store::Page { after: None, limit: 9 }, Some(JobState::Queued));
    assert!(jobs.await.unwrap().is_empty());
    // Forms and images cannot send JSON: other content types are refused also with a key.
    for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"] {
        server.raw("POST", "/v1/prompts", kind, "{}").await.expect(400);
    }
}

//! People whom a reverse proxy has authenticated, and completion codes for those whom a crowd platform sends.

use axum::body::Body;
use http::Request;
use instructd::config::AuthConfig;
use instructd::http::peer::Peer;
use serde_json::{Value, json};

use super::client::{ADMIN_KEY, Answer, Server};

const PROXY: &str = "10.0.0.1";
const USER: &str = "x-forwarded-user";

fn config(groups: bool) -> AuthConfig {
    AuthConfig {
        trusted_header: Some(USER.to_owned()),
        name_header: Some("x-forwarded-name".to_owned()),
        groups_header: groups.then(|| "x-forwarded-groups".to_owned()),
        proxies: vec![PROXY.to_owned(), "10.1.0.0/16".to_owned()],
        roles: [("ops".to_owned(), "admin".to_owned()), ("qa".to_owned(), "reviewer".to_owned())].into(),
        ..AuthConfig::default()
    }
}

async fn server(groups: bool) -> Server {
    Server::with(|c| c.auth = config(groups), Default::default()).await
}

/// A request over a connection from this address; without a body it is a GET.
async fn call(server: &Server, from: &str, path: &str, headers: &[(&str, &str)], body: Option<Value>) -> Answer {
    let mut request = Request::builder().uri(path).method(if body.is_some() { "POST" } else { "GET" });
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    if body.is_some() {
        request = request.header("content-type", "application/json");
    }
    let body = body.map_or_else(Body::empty, |b| Body::from(b.to_string()));
    server.send(request.extension(Peer(from.parse().unwrap())).body(body).unwrap()).await
}

#[tokio::test]
async fn the_proxy_names_the_person_of_a_request() {
    let server = server(false).await;
    let ada = [(USER, "ada@example.org"), ("x-forwarded-name", "Ada")];
    let me = call(&server, PROXY, "/session", &ada, None).await.expect(200).json();
    assert_eq!((&me["labeler"]["name"], &me["labeler"]["role"]), (&json!("Ada"), &json!("labeler")));
    let again = call(&server, "10.1.200.3", "/session", &[ada[0]], None).await.expect(200).json();
    assert_eq!(again["labeler"], me["labeler"], "the same person, with the name of the first time");
    let other = [(USER, "ada@elsewhere.org"), ("x-forwarded-name", "ada")];
    let other = call(&server, PROXY, "/session", &other, None).await.expect(200).json();
    assert_ne!(other["labeler"]["id"], me["labeler"]["id"]);
    assert_eq!(other["labeler"]["name"], "ada (2)");
    call(&server, PROXY, "/v1/label/me", &ada, None).await.expect(200);
    call(&server, PROXY, "/admin/labelers", &ada, None).await.expect(403);

    // Anybody else may write the header; it says nothing then, whatever other headers say.
    for from in ["10.0.0.2", "127.0.0.1", "::1"] {
        call(&server, from, "/session", &ada, None).await.expect(401);
        let forwarded = [ada[0], ("x-forwarded-for", PROXY), ("forwarded", "for=10.0.0.1")];
        call(&server, from, "/v1/label/me", &forwarded, None).await.expect(401);
    }
    server.call("GET", "/session", &ada, None).await.expect(401);
    // One of two headers may be a client's.
    let twice = call(&server, PROXY, "/session", &[ada[0], (USER, "eve")], None).await.expect(400);
    assert_eq!(twice.param().as_deref(), Some(USER));
    call(&server, PROXY, "/session", &[(USER, "")], None).await.expect(401);

    // Administrators give roles on the page; a key counts before the header, the header before a cookie.
    let id = me["labeler"]["id"].as_str().unwrap();
    server.post(&format!("/admin/labelers/{id}"), json!({"role": "reviewer"})).await.expect(200);
    call(&server, PROXY, "/admin/api/quality", &ada, None).await.expect(200);
    let key = format!("Bearer {ADMIN_KEY}");
    call(&server, PROXY, "/admin/labelers", &[ada[0], ("authorization", &key)], None).await.expect(200);
    let admin = server.open_post("/session", json!({"key": ADMIN_KEY})).await.expect(200);
    let cookie = admin.headers["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned();
    call(&server, PROXY, "/admin/labelers", &[("cookie", &cookie)], None).await.expect(200);
    call(&server, PROXY, "/admin/labelers", &[ada[0], ("cookie", &cookie)], None).await.expect(403);

    // The browser sends the proxy's cookie by itself: another site's page may not use it.
    let set = json!({"messages": [{"role": "user", "content": "q"}], "completions": ["a", "b"]});
    let post = async |more: (&'static str, &'static str)| {
        call(&server, PROXY, "/v1/comparison-sets", &[ada[0], more], Some(set.clone())).await
    };
    assert_eq!(post(("sec-fetch-site", "cross-site")).await.expect(403).json()["error"]["code"], "cross_origin");
    post(("origin", "https://evil.example")).await.expect(403);
    post(("sec-fetch-site", "same-origin")).await.expect(201);

    // Who is locked out stays out, and sees why.
    server.post(&format!("/admin/labelers/{id}/active"), json!({"active": false})).await.expect(204);
    let refused = call(&server, PROXY, "/session", &ada, None).await.expect(403);
    assert_eq!(refused.json()["error"]["code"], "person_locked_out");
    call(&server, PROXY, "/v1/label/me", &ada, None).await.expect(403);
    call(&server, PROXY, "/label", &ada, None).await.expect(200);
    let trail = server.get("/admin/audit?action=join").await.expect(200).json();
    assert_eq!(trail["data"].as_array().unwrap().len(), 2);
    assert_eq!(trail["data"][0]["credential"], "proxy");
}

#[tokio::test]
async fn groups_give_the_role_at_every_request() {
    let server = server(true).await;
    let of = async |groups: &str, path: &str| {
        call(&server, PROXY, path, &[(USER, "grace"), ("x-forwarded-groups", groups)], None).await
    };
    of("qa,ops", "/admin/labelers").await.expect(200);
    let role = async |groups: &str| of(groups, "/session").await.expect(200).json()["labeler"]["role"].clone();
    assert_eq!(role("ops").await, "admin");
    assert_eq!(role("qa, others").await, "reviewer");
    of("qa", "/admin/labelers").await.expect(403);
    assert_eq!(role("").await, "labeler");
    call(&server, PROXY, "/admin/api/quality", &[(USER, "grace")], None).await.expect(403);
    let trail = server.get("/admin/audit?action=change_labeler").await.expect(200).json();
    assert_eq!(trail["data"].as_array().unwrap().len(), 2, "{trail}");
    let listed = server.get("/admin/labelers").await.expect(200).json();
    let grace = listed["data"].as_array().unwrap().iter().find(|l| l["name"] == "grace").unwrap().clone();
    assert_eq!(grace["role"], "labeler");
}

#[tokio::test]
async fn a_done_quota_shows_the_completion_code() {
    let server = Server::with(
        |c| {
            c.auth = config(false);
            c.labeling.daily_quota = 1;
            c.labeling.completion_secret = Some("a secret of the operator".to_owned());
        },
        Default::default(),
    )
    .await;
    let crowd = [(USER, "worker-7"), ("sec-fetch-site", "same-origin")];
    let me = async || call(&server, PROXY, "/v1/label/me", &crowd, None).await.expect(200).json();
    assert_eq!(me().await["completion_code"], Value::Null, "not before the quota is done");
    let set = json!({"messages": [{"role": "user", "content": "q"}], "completions": ["a", "b"]});
    server.post("/v1/comparison-sets", set).await.expect(201);
    let turn = call(&server, PROXY, "/v1/label/next", &crowd, None).await.expect(200).json();
    let items: Vec<_> = (0..)
        .zip(turn["completions"].as_array().unwrap())
        .map(|(tier, c): (i64, _)| json!({"completion_id": c["id"], "tier": tier}))
        .collect();
    let judgment = json!({
        "lease_token": turn["lease_token"], "outcome": "ranked", "items": items, "idempotency_key": "once",
    });
    let path = format!("/v1/label/{}/judgment", turn["assignment_id"].as_str().unwrap());
    call(&server, PROXY, &path, &crowd, Some(judgment)).await.expect(200);
    let code = me().await["completion_code"].clone();
    assert_eq!(code.as_str().unwrap().len(), 14);
    let listed = server.get("/admin/labelers").await.expect(200).json();
    let listed = listed["data"].as_array().unwrap();
    let of = |name: &str| listed.iter().find(|l| l["name"] == name).unwrap()["completion_code"].clone();
    assert_eq!(of("worker-7"), code);
    assert_ne!(of("admin"), code);

    let without = Server::start().await;
    let listed = without.get("/admin/labelers").await.expect(200).json();
    assert_eq!(listed["data"][0]["completion_code"], Value::Null);
}

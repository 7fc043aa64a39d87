//! The form of requests, for every route of the table: unknown parameters, null fields, compressed bodies, pages
//! of lists, and the host.

use instructd::domain::SetId;
use instructd::http::routes;
use instructd::store::NewTurn;
use serde_json::{Value, json};

use super::client::{Server, admin};

fn filled(path: &str) -> String {
    path.replace("{id}", "nope").replace("{*path}", "nope")
}

#[tokio::test]
async fn unknown_parameters_are_refused_on_every_route() {
    let server = Server::start().await;
    let table = routes::table(&server.services.config.limits);
    let mut asked = 0;
    for route in table.iter().filter(|r| !r.page) {
        let body = (route.method == "POST").then(|| json!({}));
        let path = format!("{}?no_such_parameter=1", filled(route.path));
        let answer = server.call(route.method.as_str(), &path, &[admin()], body).await;
        assert_eq!(answer.status, 400, "{} {path}: {}", route.method, answer.text);
        assert_eq!(answer.param().as_deref(), Some("no_such_parameter"), "{} {path}: {}", route.method, answer.text);
        // Also beside parameters that it knows.
        if let Some(name) = route.query_names().and_then(|names| names.first().cloned()) {
            let path = format!("{}?{name}=1&no_such_parameter", filled(route.path));
            let body = (route.method == "POST").then(|| json!({}));
            let answer = server.call(route.method.as_str(), &path, &[admin()], body).await.expect(400);
            assert_eq!(answer.param().as_deref(), Some("no_such_parameter"), "{} {path}", route.method);
        }
        asked += 1;
    }
    assert!(asked > 50, "{asked}");
    // What stands behind a page's address is for its script.
    server.get("/label?invite=abc").await.expect(200);
    for (path, param) in [
        ("/v1/prompts?limit=0", "limit"),
        ("/v1/prompts?limit=501", "limit"),
        ("/v1/prompts?after=zzz", "after"),
        ("/v1/label/history?after=1", "after"),
        ("/admin/jobs?after=zzz", "after"),
        ("/admin/sets?after=", "after"),
        ("/admin/audit?limit=0", "limit"),
        ("/admin/api/quality/consensus?limit=1001", "limit"),
        ("/admin/api/throughput?days=0", "days"),
        ("/admin/api/quality?length_controlled=true", "length_controlled"),
        ("/v1/models?limit=1", "limit"),
        ("/admin/labelers?after=x", "after"),
    ] {
        assert_eq!(server.get(path).await.expect(400).param().as_deref(), Some(param), "{path}");
    }
}

/// An optional field that is null is as good as none: the answer is the same.
#[tokio::test]
async fn null_is_absent_on_every_route() {
    let server = Server::start().await;
    let mut fields = 0;
    for route in routes::table(&server.services.config.limits) {
        let Some(schema) = &route.body else { continue };
        let without = server.post(&filled(route.path), json!({})).await;
        let names = schema["properties"].as_object().unwrap().keys();
        for name in names.filter(|n| !["args", "value", "daily_quota"].contains(&n.as_str())) {
            let with = server.post(&filled(route.path), json!({name: null})).await;
            let error = |a: &super::client::Answer| a.json()["error"].clone();
            assert_eq!(with.status, without.status, "{} {name}: {}", route.path, with.text);
            if !with.status.is_success() {
                assert_eq!(error(&with), error(&without), "{} {name}", route.path);
            }
            fields += 1;
        }
    }
    assert!(fields > 100, "{fields}");
    // With everything that is asked for, and null for all the rest.
    server.demonstrate().await;
    let user = json!([{"role": "user", "content": "q"}]);
    for (path, status, body) in [
        ("/v1/prompts", 201, json!({"messages": user, "prompt": null, "tags": null, "lang": null})),
        (
            "/v1/comparison-sets",
            201,
            json!({"messages": user, "prompt_id": null, "completions": ["a", {"text": "b", "completion_id": null}],
                "n": null, "sampling": null, "overlap": null}),
        ),
        (
            "/v1/label/ask",
            200,
            json!({"messages": user, "models": null, "n": null, "sampling": {"max_tokens": 3, "top_k": null}}),
        ),
        ("/admin/jobs", 201, json!({"kind": "sft", "args": {}, "priority": null, "unique_key": null})),
        ("/admin/labelers", 201, json!({"name": "Ada", "role": null})),
        ("/admin/invites", 201, json!({"role": null, "note": null})),
        ("/admin/keys", 201, json!({"name": "k", "scopes": ["inference"], "labeler_id": null, "daily_tokens": null})),
        ("/tokenize", 200, json!({"prompt": "x", "content": null, "model": null, "add_special_tokens": null})),
    ] {
        let answer = server.post(path, body).await;
        assert_eq!(answer.status, status, "{path}: {}", answer.text);
    }
}

#[tokio::test]
async fn compressed_and_mistyped_bodies_are_refused_with_the_reason() {
    let server = Server::start().await;
    for route in routes::table(&server.services.config.limits).iter().filter(|r| r.body.is_some()) {
        let headers = [admin(), ("content-encoding", "gzip")];
        let answer = server.call("POST", &filled(route.path), &headers, Some(json!({}))).await;
        assert_eq!(answer.status, 415, "{}: {}", route.path, answer.text);
        assert!(answer.json()["error"]["message"].as_str().unwrap().contains("gzip"), "{}", answer.text);
        let headers = [admin(), ("content-encoding", "identity")];
        let plain = server.call("POST", &filled(route.path), &headers, Some(json!({}))).await;
        assert_ne!(plain.status, 415, "{}", route.path);
        let answer = server.raw("POST", &filled(route.path), "application/x-www-form-urlencoded", "a=1").await;
        let message = answer.expect(400).json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(message.contains("x-www-form-urlencoded") && message.contains("application/json"), "{message}");
    }
}

/// All rows of a list, one a page.
async fn walked(server: &Server, path: &str, cursor: &str) -> Vec<Value> {
    let mut rows = Vec::new();
    let mut next = String::new();
    loop {
        let page = server.get(&format!("{path}?limit=1{next}")).await.expect(200).json();
        let data = page["data"].as_array().unwrap();
        assert!(data.len() <= 1, "{path}: {page}");
        let Some(row) = data.first() else { return rows };
        rows.push(row.clone());
        assert!(rows.len() < 500, "{path} never ends");
        // Lists of OpenAI's form name their last row.
        let after = match page.get(cursor).unwrap_or(&page["last_id"]) {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        next = format!("&{cursor}={after}");
    }
}

#[tokio::test]
async fn every_list_with_pages_gives_each_row_once() {
    let server = Server::start().await;
    let webhook = json!({"url": "https://example.org/hook", "events": ["job.failed"]});
    let webhook = server.post("/admin/webhooks", webhook).await.expect(201).json();
    server.demonstrate().await;
    for i in 0..4 {
        let test = format!("/admin/webhooks/{}/test", webhook["id"].as_str().unwrap());
        server.post(&test, json!({})).await.expect(202);
        let set = json!({"messages": [{"role": "user", "content": format!("q{i}")}], "completions": ["a", "b"]});
        let set = server.post("/v1/comparison-sets", set).await.expect(201).json();
        let turn = server.get("/v1/label/next").await.expect(200).json();
        let judgment =
            json!({"lease_token": turn["lease_token"], "outcome": "unrankable", "idempotency_key": format!("k{i}")});
        let path = format!("/v1/label/{}/judgment", turn["assignment_id"].as_str().unwrap());
        server.post(&path, judgment).await.expect(200);
        server.post("/admin/jobs", json!({"kind": "sft", "args": {}, "unique_key": format!("u{i}")})).await.expect(201);
        server.post("/admin/sets/draw", json!({"policy": "disagreement", "count": 1})).await.expect(202);
        let part = |name: &str, text: &str| {
            format!("--x\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n{text}\r\n")
        };
        let form = part("purpose", "batch") + &part("file", "nothing") + "--x--\r\n";
        let file = server.raw("POST", "/v1/files", "multipart/form-data; boundary=x", form).await.expect(200).json();
        let batch = json!({"input_file_id": file["id"], "endpoint": "/v1/completions", "completion_window": "24h"});
        server.post("/v1/batches", batch).await.expect(200);
        let next = json!({"messages": [{"role": "user", "content": format!("next {i}")}], "completions": ["a", "b"]});
        let next = server.post("/v1/comparison-sets", next).await.expect(201).json();
        let continued = set["completions"][0]["id"].as_str().unwrap().into();
        let [before, set_id] = [&set["id"], &next["id"]].map(|id| SetId::from(id.as_str().unwrap()));
        let turn = NewTurn { labeler_id: "admin".into(), before, continued, set_id, now: i };
        server.services.store.conversations().put_turn(turn).await.unwrap();
    }
    let mut lists = 0;
    for route in routes::table(&server.services.config.limits) {
        let names = route.query_names().unwrap_or_default();
        let has = |name: &str| names.iter().any(|n| n == name);
        let cursor = if has("after") { "after" } else { "before" };
        if route.method != "GET" || !has("limit") || !has(cursor) {
            continue;
        }
        lists += 1;
        let whole = server.get(&format!("{}?limit=500", route.path)).await.expect(200).json();
        let whole = whole["data"].as_array().unwrap().clone();
        assert!(whole.len() >= 4, "{}: {}", route.path, whole.len());
        assert_eq!(walked(&server, route.path, cursor).await, whole, "{}", route.path);
    }
    assert_eq!(lists, 13);
}

#[tokio::test]
async fn a_loopback_server_refuses_foreign_host_names() {
    let server = Server::with(|c| c.server.hosts = vec!["rank.example".into()], Default::default()).await;
    let ask = async |host: &str| {
        server.call("GET", "/v1/models", &[("host", host), ("sec-fetch-site", "same-origin")], None).await
    };
    for host in ["127.0.0.1:8080", "localhost:8080", "[::1]:8080", "rank.example"] {
        ask(host).await.expect(200);
    }
    for host in ["evil.example", "evil.example:8080", "rank.example.evil.example"] {
        let refused = ask(host).await.expect(421);
        assert_eq!(refused.json()["error"]["code"], "unknown_host");
        server.call("GET", "/metrics", &[("host", host)], None).await.expect(421);
    }
    let open = Server::with(
        |c| {
            c.listen = "0.0.0.0:8080".parse().unwrap();
            c.server.hosts = Vec::new();
        },
        Default::default(),
    )
    .await;
    open.call("GET", "/v1/models", &[("host", "rank.example")], None).await.expect(200);
}

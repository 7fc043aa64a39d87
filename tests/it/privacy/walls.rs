//! What people write is in no log, no metric, no stored error and no line of the audit trail.

use std::collections::BTreeSet;

use http::Method;
use instructd::http::routes;
use serde_json::{Map, Value, json};

use crate::crash::server::{ADMIN_KEY, Place, Server};
use crate::support::eventually::{LONG, eventually};

/// In every text that a request can carry.
const MARK: &str = "MARKED-TEXT-3141";

/// A value for a schema, with the mark in every text; `depth` ends schemas that hold themselves.
fn marked(schema: &Value, root: &Value, depth: usize) -> Value {
    if let Some(target) = schema["$ref"].as_str().and_then(|r| r.strip_prefix('#')).and_then(|path| root.pointer(path))
    {
        return marked(target, root, depth);
    }
    for key in ["anyOf", "oneOf", "allOf"] {
        if let Some(first) = schema[key].as_array().and_then(|all| all.iter().find(|s| s["type"] != "null")) {
            return marked(first, root, depth);
        }
    }
    if let Some(value) = schema.get("const").or_else(|| schema["enum"].get(0)) {
        return value.clone();
    }
    let kind = match &schema["type"] {
        Value::Array(kinds) => kinds.iter().find(|k| *k != "null").cloned().unwrap_or_default(),
        kind => kind.clone(),
    };
    match kind.as_str() {
        Some("object") => {
            let fields = schema["properties"].as_object().cloned().unwrap_or_default();
            let all: Map<String, Value> =
                fields.iter().filter(|_| depth < 6).map(|(k, s)| (k.clone(), marked(s, root, depth + 1))).collect();
            if all.is_empty() { json!({MARK: MARK}) } else { Value::Object(all) }
        }
        Some("array") => json!([marked(&schema["items"], root, depth + 1)]),
        Some("integer" | "number") => json!(1),
        Some("boolean") => json!(false),
        _ => json!(MARK),
    }
}

/// Bodies that routes accept, so that the mark gets past the checks: (path, body).
fn accepted() -> Vec<(&'static str, Value)> {
    let messages = json!([{"role": "user", "content": MARK}]);
    vec![
        ("/v1/completions", json!({"prompt": MARK, "max_tokens": 3, "logprobs": 2, "echo": true, "stop": [MARK]})),
        ("/v1/completions", json!({"prompt": MARK, "max_tokens": 3, "stream": true})),
        ("/v1/chat/completions", json!({"messages": messages, "max_tokens": 3, "user": MARK})),
        ("/v1/choices", json!({"prompt": MARK, "choices": [MARK, "b"]})),
        ("/v1/embeddings", json!({"input": MARK})),
        ("/v1/fill-mask", json!({"text": format!("{MARK} ____")})),
        ("/v1/attention", json!({"text": MARK})),
        ("/v1/rewards", json!({"prompt": MARK, "completions": [MARK]})),
        ("/tokenize", json!({"prompt": MARK})),
        ("/v1/prompts", json!({"messages": messages, "tags": ["t"]})),
        ("/v1/comparison-sets", json!({"messages": messages, "completions": [MARK, "b"]})),
        (
            "/v1/comparisons",
            json!({"messages": messages, "rationale": MARK,
            "completions": [{"text": MARK, "tier": 0}, {"text": "b", "tier": 1}]}),
        ),
        ("/v1/demonstrations", json!({"messages": messages, "completion": MARK})),
        ("/v1/label/ask", json!({"messages": messages})),
        ("/session", json!({"key": MARK})),
        ("/session", json!({"invite": MARK, "name": MARK})),
        ("/admin/guidelines", json!({"lang": "en", "text": MARK})),
        (
            "/admin/rubrics",
            json!({"definition": {"name": MARK, "dimensions": [
                {"key": "notes", "label": {"en": MARK}, "kind": "tags", "suggestions": [MARK]}]}}),
        ),
    ]
}

async fn send(server: &Server, method: &Method, path: &str, key: Option<&str>, body: Option<&Value>) -> u16 {
    let method = reqwest::Method::from_bytes(method.as_str().as_bytes()).unwrap();
    let mut request = server.http.request(method, format!("{}{path}", server.url));
    request = request.header("x-forwarded-for", MARK).header("user-agent", MARK).header("referer", MARK);
    if let Some(key) = key {
        request = request.bearer_auth(key);
    }
    if let Some(body) = body {
        request = request.json(body);
    }
    let answer = request.send().await.unwrap();
    let status = answer.status().as_u16();
    answer.bytes().await.unwrap();
    status
}

/// Lines of the log that hold the mark, without repetition.
fn marked_lines(log: &str) -> Vec<&str> {
    log.lines().filter(|line| line.contains(MARK)).take(5).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_text_is_in_logs_metrics_or_errors() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", dir.path().join("instructd.db").display());
    // Wrong keys are sent by the hundred; the administrator's must not be slowed for them.
    let place = Place::new(&url, dir.path()).with("INSTRUCTD_RATES__LOGIN_PER_MINUTE", 1_000_000);
    let mut place = place.with("INSTRUCTD_LOG__FILTER", "trace");
    // It has a chat template.
    place.model = "builtin".into();
    let server = Server::start(&place).await;

    let mut answered = BTreeSet::new();
    for (path, body) in accepted() {
        for key in [None, Some(ADMIN_KEY)] {
            let status = send(&server, &Method::POST, path, key, Some(&body)).await;
            answered.insert((path, status));
        }
    }
    for path in ["/v1/completions", "/v1/chat/completions", "/v1/choices", "/v1/comparisons", "/v1/demonstrations"] {
        assert!(answered.iter().any(|(p, s)| *p == path && *s < 300), "{path} was refused: {answered:?}");
    }
    // A judgment on a leased set, feedback on an answer, and files with broken lines.
    let turn = server.call("GET", "/v1/label/next", None).await.expect(200);
    let completion = turn["completions"][0]["id"].clone();
    for (kind, value) in [("comment", MARK), ("edit", MARK)] {
        let body = json!({"completion_id": completion, "kind": kind, "value": value});
        server.call("POST", "/v1/feedback", Some(body)).await.expect(201);
    }
    let items: Vec<Value> = (0i64..)
        .zip(turn["completions"].as_array().unwrap())
        .map(|(tier, c)| json!({"completion_id": c["id"], "tier": tier}))
        .collect();
    let body = json!({"lease_token": turn["lease_token"], "outcome": "ranked", "items": items, "idempotency_key": "k",
                      "rationale": MARK, "ideal_answer": MARK, "flags": [{"code": "other", "note": MARK}]});
    let path = format!("/v1/label/{}/judgment", turn["assignment_id"].as_str().unwrap());
    server.call("POST", &path, Some(body)).await.expect(200);
    for format in ["comparisons", "trl", "hh", "demonstrations", "prompts", "oasst"] {
        for lines in [format!("{{\"prompt\": \"{MARK}\"}}\n"), format!("{{{MARK}\n{MARK}\n")] {
            let import = format!("{}/admin/import?format={format}&name=f", server.url);
            let request = server.http.post(import).bearer_auth(ADMIN_KEY).body(lines);
            request.send().await.unwrap().bytes().await.unwrap();
        }
    }
    // A job that learns from the marked rows, and one that fails.
    let small = json!({"epochs": 1, "batch_size": 2, "max_length": 64, "device": "cpu"});
    let mut jobs = Vec::new();
    for (kind, args) in [("sft", small.clone()), ("sft", json!({"epochs": 1, "max_length": 2})), ("reward", small)] {
        let made = server.call("POST", "/admin/jobs", Some(json!({"kind": kind, "args": args}))).await;
        if made.status == 201 {
            jobs.push(made.json["id"].as_str().unwrap().to_owned());
        }
    }
    assert!(!jobs.is_empty());
    // Every route with every text of its schema marked, by an administrator and by nobody.
    for route in routes::table(&instructd::config::LimitsConfig::default()) {
        // Would follow the job for ever, or sign out.
        if route.path.ends_with("/events") || route.path == "/admin/retention" {
            continue;
        }
        let path = route.path.replace("{id}", MARK).replace("{*path}", MARK);
        let body = route.body.as_ref().map(|schema| marked(schema, schema, 0));
        for key in [Some(ADMIN_KEY), None, Some(MARK)] {
            send(&server, &route.method, &path, key, body.as_ref()).await;
            for name in route.query_names().unwrap_or_default() {
                send(&server, &route.method, &format!("{path}?{name}={MARK}"), key, body.as_ref()).await;
            }
        }
    }
    send(&server, &Method::POST, &format!("/{MARK}?{MARK}={MARK}"), None, Some(&json!(MARK))).await;
    let draw = json!({"policy": "random", "count": 2, "max_tokens": 3, "prompts": {"with_sets": true}});
    server.call("POST", "/admin/sets/draw", Some(draw)).await;
    for id in &jobs {
        eventually(LONG, "the end of a job", async || {
            let job = server.call("GET", &format!("/admin/jobs/{id}"), None).await.expect(200);
            ["succeeded", "failed", "cancelled"].contains(&job["state"].as_str().unwrap()).then_some(())
        })
        .await;
    }
    let metrics = server.http.get(format!("{}/metrics", server.url)).send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains("instructd_request_duration_seconds"));
    assert!(!metrics.contains(MARK), "{:?}", marked_lines(&metrics));
    let log = server.words();
    assert!(log.contains("answered") && log.contains("TRACE"), "the log is a trace");
    assert!(!log.contains(MARK), "{:#?}", marked_lines(&log));
    drop(server);

    // What the database says of errors: of jobs and draws, in events that are no samples, and in the audit trail.
    let out = tempfile::tempdir().unwrap();
    let dump = instructd::store::dump::export(&url, out.path()).await.unwrap();
    assert!(dump.tables.iter().any(|t| t.name == "audit_log" && t.rows > 10));
    for (table, columns) in [
        ("jobs", &["error", "progress", "result"][..]),
        ("set_draws", &["error", "report"]),
        ("audit_log", &["actor", "action", "detail", "credential"]),
        ("metrics", &["name"]),
        ("key_usage", &["key_id"]),
        ("job_events", &["kind", "data"]),
    ] {
        let text = std::fs::read_to_string(out.path().join(format!("{table}.jsonl"))).unwrap();
        let mut lines = text.lines().map(|line| serde_json::from_str::<Vec<Value>>(line).unwrap());
        let names = lines.next().unwrap();
        for row in lines {
            // Samples are what a training run wrote, for people to read.
            if table == "job_events" && row.iter().any(|cell| cell == "sample") {
                continue;
            }
            for (name, cell) in names.iter().zip(&row).filter(|(name, _)| columns.iter().any(|c| *name == c)) {
                assert!(!cell.to_string().contains(MARK), "{table}.{name}: {cell}");
            }
        }
    }
}

//! Traces: what a collector of OpenTelemetry gets of a request and of a job.

use std::sync::{Arc, Mutex};

use axum::body::Bytes;
use axum::extract::State;
use serde_json::{Value, json};

use crate::crash::server::{ADMIN_KEY, Place, Server};
use crate::support::copy_dir;
use crate::support::eventually::{LONG, eventually};
use crate::support::fixture;

type Spans = Arc<Mutex<Vec<Value>>>;

async fn take(State(spans): State<Spans>, body: Bytes) -> axum::Json<Value> {
    let sent: Value = serde_json::from_slice(&body).unwrap();
    for resource in sent["resourceSpans"].as_array().unwrap() {
        let named = resource["resource"]["attributes"].as_array().unwrap();
        let service = json!({"key": "service.name", "value": {"stringValue": "instructd"}});
        assert!(named.contains(&service), "{named:?}");
        for scope in resource["scopeSpans"].as_array().unwrap() {
            spans.lock().unwrap().extend(scope["spans"].as_array().unwrap().iter().cloned());
        }
    }
    axum::Json(json!({}))
}

/// A collector and its address.
async fn collector() -> (Spans, String) {
    let spans = Spans::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let router = axum::Router::new().route("/v1/traces", axum::routing::post(take)).with_state(spans.clone());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (spans, url)
}

fn attribute(span: &Value, key: &str) -> Value {
    let found = span["attributes"].as_array().into_iter().flatten().find(|a| a["key"] == key);
    let value = found.map(|a| a["value"].clone()).unwrap_or_default();
    value.as_object().and_then(|o| o.values().next().cloned()).unwrap_or_default()
}

fn named<'a>(spans: &'a [Value], name: &str) -> Vec<&'a Value> {
    spans.iter().filter(|span| span["name"] == name).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_and_jobs_are_traced() {
    let (spans, url) = collector().await;
    let dir = tempfile::tempdir().unwrap();
    let model = copy_dir(&fixture("llama-tied-tiny"));
    let template = json!({"chat_template": "{% for m in messages %}{{ m.content }} {% endfor %}"});
    std::fs::write(model.path().join("tokenizer_config.json"), template.to_string()).unwrap();
    let database = format!("sqlite://{}", dir.path().join("instructd.db").display());
    let place = Place { model: model.path().to_owned(), ..Place::new(&database, dir.path()) };
    let mut server = Server::start(&place.with("INSTRUCTD_LOG__TRACES_URL", url)).await;

    // A caller's trace goes on here.
    let (trace, parent) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
    let request = server.http.post(format!("{}/v1/completions", server.url)).bearer_auth(ADMIN_KEY);
    let request = request.header("traceparent", format!("00-{trace}-{parent}-01"));
    let answer =
        request.json(&json!({"prompt": "t1 t2 t3", "max_tokens": 4, "ignore_eos": true})).send().await.unwrap();
    assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
    let missing = server.call("GET", "/admin/jobs/none", None).await;
    assert_eq!(missing.status, 404);

    for i in 0..3 {
        let body = json!({"messages": [{"role": "user", "content": format!("t{i}")}], "completion": "t1 t2 t3"});
        server.call("POST", "/v1/demonstrations", Some(body)).await.expect(201);
    }
    let args = json!({"epochs": 1, "batch_size": 4, "max_length": 16, "device": "cpu", "publish_as": "traced"});
    let job = server.call("POST", "/admin/jobs", Some(json!({"kind": "sft", "args": args}))).await.expect(201);
    let id = job["id"].as_str().unwrap().to_owned();
    eventually(LONG, "the job's end", async || {
        let job = server.call("GET", &format!("/admin/jobs/{id}"), None).await.expect(200);
        (job["state"] == "succeeded").then_some(())
    })
    .await;
    // What is left is sent at the end.
    server.signal(libc::SIGTERM);
    server.end().await;

    let spans = spans.lock().unwrap().clone();
    let of_call = |span: &Value| span["traceId"] == trace;
    let requests = named(&spans, "request");
    let call = *requests.iter().find(|span| of_call(span)).expect("the caller's trace");
    assert_eq!(call["parentSpanId"], parent);
    let expected = [("http.request.method", json!("POST")), ("http.route", json!("/v1/completions"))];
    for (key, value) in expected {
        assert_eq!(attribute(call, key), value);
    }
    let number = |value: Value| value.as_str().map_or_else(|| value.as_i64().unwrap(), |text| text.parse().unwrap());
    assert_eq!(number(attribute(call, "http.response.status_code")), 200);
    let generate = *named(&spans, "generate").iter().find(|span| of_call(span)).expect("the text");
    assert_eq!(generate["parentSpanId"], call["spanId"]);
    assert_eq!(number(attribute(generate, "completion.tokens")), 4);
    let store = *named(&spans, "store").iter().find(|span| of_call(span)).expect("the storing");
    assert_eq!(store["parentSpanId"], generate["spanId"]);
    let lost = requests.iter().find(|span| attribute(span, "http.route") == "/admin/jobs/{id}" && !of_call(span));
    assert!(lost.is_some_and(|span| span["traceId"].as_str().is_some_and(|id| id.len() == 32)));

    let job = *named(&spans, "job").first().expect("the job");
    assert_eq!((attribute(job, "job.id"), attribute(job, "job.state")), (json!(id), json!("succeeded")));
    let steps: Vec<Value> = named(&spans, "step")
        .iter()
        .filter(|span| span["parentSpanId"] == job["spanId"] && span["traceId"] == job["traceId"])
        .map(|span| attribute(span, "job.step"))
        .collect();
    assert_eq!(steps, [json!("prepare"), json!("train"), json!("publish")]);
    let words = server.words();
    assert!(!words.contains("generate{") && !words.contains("job{"), "the log has no spans of traces: {words}");
}

#[tokio::test]
async fn an_unavailable_collector_does_not_affect_requests() {
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", free.local_addr().unwrap());
    drop(free);
    let dir = tempfile::tempdir().unwrap();
    let database = format!("sqlite://{}", dir.path().join("instructd.db").display());
    let mut server = Server::start(&Place::new(&database, dir.path()).with("INSTRUCTD_LOG__TRACES_URL", url)).await;
    let body = json!({"prompt": "t1 t2 t3", "max_tokens": 4});
    server.call("POST", "/v1/completions", Some(body)).await.expect(200);
    server.signal(libc::SIGTERM);
    assert!(server.end().await.success());
}

//! A server whose text comes from another OpenAI-compatible server: a scripted one that fails in every way,
//! and a second instructd with a real (tiny) model.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use http_body_util::BodyExt;
use instructd::config::Config;
use instructd::domain::{ModelKind, ModelVersionId};
use serde_json::{Value, json};
use tower::ServiceExt;

use super::client::{Server, admin, version};
use super::fake_upstream::{Act, Fake};
use crate::support::eventually::{LONG, eventually};
use crate::support::{copy_dir, fixture};

pub(super) async fn behind(url: &str, change: impl FnOnce(&mut Config)) -> Server {
    let server = Server::without_engine(|c| {
        c.upstream.url = Some(url.to_owned());
        c.upstream.kind = "vllm".into();
        c.upstream.retries = 2;
        c.upstream.response_timeout_seconds = 5;
        change(c);
    })
    .await;
    server.services.set_engine(instructd::app::upstream::start(&server.services).await.unwrap());
    server
}

pub(super) fn chat(extra: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "Hi"}]});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

pub(super) async fn idle(server: &Server, fake: &Fake) {
    eventually(LONG, "the end of all slots and upstream streams", async || {
        let running = server.services.engine().unwrap().stats().running;
        (running == 0 && fake.open.load(SeqCst) == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn chat_is_answered_streamed_and_stored_with_the_upstreams_model() {
    let fake = Fake::start(vec![Act::Write(vec!["Grüß", " 雨", " dich"], "stop")]).await;
    let server = behind(&fake.url, |c| c.upstream.api_key = Some("sk-up".into())).await;
    let body = server.open_post("/v1/chat/completions", chat(json!({"seed": 4}))).await.expect(200).json();
    assert_eq!(body["model"], "org-big-model");
    assert_eq!(body["choices"][0]["message"]["content"], "Grüß 雨 dich");
    assert_eq!(body["choices"][0]["finish_reason"], "stop");
    assert_eq!(body["usage"], json!({"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}));
    let id = body["instructd"]["completion_ids"][0].as_str().unwrap();
    let stored = server.services.store.completions().get(&id.into()).await.unwrap();
    assert_eq!(stored.text, "Grüß 雨 dich");
    let version = server.services.store.models().get(&stored.model_version_id.unwrap()).await.unwrap();
    assert_eq!((version.name.as_str(), version.stage.as_str()), ("org-big-model", "upstream"));
    assert_eq!(version.artifact_uri, "upstream:Org/Big Model");
    // No length was asked for: the upstream server's own default held, and the record does not invent one.
    assert!(stored.sampling["max_tokens"].is_null());
    let asked = fake.last_body();
    assert_eq!((&asked["model"], &asked["seed"]), (&json!("Org/Big Model"), &json!(4)));
    assert!(asked.get("max_tokens").is_none() && asked.get("logprobs").is_none());
    assert_eq!(fake.seen.lock().unwrap().keys.last().unwrap().as_deref(), Some("Bearer sk-up"));

    let request = chat(json!({"stream": true, "stream_options": {"include_usage": true}, "n": 2, "max_tokens": 9}));
    let events = server.open_post("/v1/chat/completions", request).await.expect(200).events();
    let chunks: Vec<Value> = events[..events.len() - 1].iter().map(|e| serde_json::from_str(e).unwrap()).collect();
    for index in 0..2 {
        let of = chunks.iter().filter_map(|c| c["choices"].get(0)).filter(|c| c["index"] == index);
        let text: String = of.filter_map(|c| c["delta"]["content"].as_str()).collect();
        assert_eq!(text, "Grüß 雨 dich");
    }
    assert_eq!(chunks.last().unwrap()["usage"]["completion_tokens"], 6);
    assert_eq!((&fake.last_body()["n"], &fake.last_body()["max_tokens"]), (&json!(2), &json!(9)));
    idle(&server, &fake).await;
}

#[tokio::test]
async fn raw_completions_keep_their_form() {
    let fake = Fake::start(vec![Act::Write(vec!["a", "b"], "length")]).await;
    let server = behind(&fake.url, |_| {}).await;
    let request = json!({"prompt": ["x", "y"], "echo": true, "top_k": 3, "stop": "END", "temperature": 0.7});
    let body = server.open_post("/v1/completions", request).await.expect(200).json();
    assert_eq!((&body["choices"][0]["text"], &body["choices"][1]["text"]), (&json!("xab"), &json!("yab")));
    assert_eq!(body["choices"][0]["finish_reason"], "length");
    let asked = fake.last_body();
    assert_eq!((&asked["top_k"], &asked["stop"], &asked["temperature"]), (&json!(3), &json!(["END"]), &json!(0.7)));
    assert!(fake.seen.lock().unwrap().paths.iter().all(|p| p == "/v1/completions"));
}

#[tokio::test]
async fn what_an_upstream_cannot_do_is_refused() {
    let fake = Fake::start(vec![]).await;
    let server = behind(&fake.url, |c| c.upstream.kind = "openai".into()).await;
    for (path, body, param) in [
        ("/v1/completions", json!({"prompt": [1, 2]}), "prompt"),
        ("/v1/completions", json!({"prompt": "x", "logprobs": 0}), "logprobs"),
        ("/v1/completions", json!({"prompt": "x", "best_of": 2}), "best_of"),
        ("/v1/completions", json!({"prompt": "x", "echo": true, "max_tokens": 0}), "max_tokens"),
        ("/v1/completions", json!({"prompt": "x", "min_p": 0.1}), "min_p"),
        ("/v1/completions", json!({"prompt": "x", "top_k": 4}), "top_k"),
        ("/v1/completions", json!({"prompt": "x", "ignore_eos": true}), "ignore_eos"),
        ("/v1/completions", json!({"prompt": "x", "min_tokens": 1}), "min_tokens"),
        ("/v1/completions", json!({"prompt": "x", "repetition_penalty": 1.2}), "repetition_penalty"),
        ("/v1/chat/completions", chat(json!({"logprobs": true})), "logprobs"),
        ("/tokenize", json!({"prompt": "x"}), "model"),
        ("/detokenize", json!({"tokens": [1]}), "model"),
    ] {
        let answer = server.open_post(path, body.clone()).await;
        assert_eq!(answer.status, 400, "{path} {body}: {}", answer.text);
        assert_eq!(answer.param().as_deref(), Some(param), "{path} {body}: {}", answer.text);
    }
    assert_eq!(fake.calls(), 0, "refused before the upstream server was asked");
    let local = version("local", ModelKind::Policy, None);
    server.services.store.models().put(local).await.unwrap();
    assert_eq!(server.post("/admin/models/local/promote", json!({})).await.expect(400).param().unwrap(), "model");
    // Its weights are elsewhere: nothing can be trained from it.
    let job = server.post("/admin/jobs", json!({"kind": "sft", "args": {}})).await.expect(400);
    assert_eq!(job.param().as_deref(), Some("args.model"));
}

#[tokio::test]
async fn models_readiness_and_labeling_draws_work_through_it() {
    let fake = Fake::start(["one", "two", "three"].map(|text| Act::Write(vec![text, "."], "stop")).into()).await;
    // llama.cpp takes one sample a call: the draws are asked for one by one, with seeds of their own.
    let server = behind(&fake.url, |c| c.upstream.kind = "llama.cpp".into()).await;
    let models = server.get("/v1/models").await.expect(200).json();
    assert_eq!(
        (&models["data"][0]["id"], &models["data"][0]["instructd"]["max_context"]),
        (&json!("org-big-model"), &json!(512))
    );
    server.get("/v1/models/org-big-model").await.expect(200);
    server.get("/ready").await.expect(200);
    let set = json!({"messages": [{"role": "user", "content": "q"}], "n": 3, "sampling": {"seed": 10}});
    let set = server.post("/v1/comparison-sets", set).await.expect(201).json();
    assert_eq!(set["completions"].as_array().unwrap().len(), 3);
    let seeds: Vec<_> = fake.seen.lock().unwrap().bodies.iter().map(|b| b["seed"].as_u64().unwrap()).collect();
    assert_eq!(seeds, [10, 11, 12]);
    let turn = server.get("/v1/label/next").await.expect(200).json();
    assert_eq!(turn["set_id"], set["id"]);
    let metrics = server.call("GET", "/metrics", &[admin()], None).await.expect(200).text;
    assert!(metrics.contains("instructd_upstream_calls_total{outcome=\"answered\"}"), "{metrics}");
}

#[tokio::test]
async fn a_known_model_keeps_its_version() {
    let fake = Fake::start(vec![]).await;
    let server = behind(&fake.url, |_| {}).await;
    let first = server.services.engine().unwrap().active().unwrap().version.id.clone();
    let again = instructd::app::upstream::start(&server.services).await.unwrap().active().unwrap();
    assert_eq!(again.version.id, first);
    let missing = Server::without_engine(|c| {
        c.upstream.url = Some(fake.url.clone());
        c.upstream.model = Some("not there".into());
    })
    .await;
    let error = instructd::app::upstream::start(&missing.services).await.err().unwrap().to_string();
    assert!(error.contains("not there") && error.contains("Org/Big Model"), "{error}");
}

#[tokio::test]
async fn unstarted_calls_are_retried_and_begun_ones_are_not() {
    let busy = || Act::Status(503, json!({"error": {"message": "loading"}}), None);
    let fake = Fake::start(vec![busy(), busy(), Act::Write(vec!["ok"], "stop")]).await;
    let server = behind(&fake.url, |_| {}).await;
    server.open_post("/v1/chat/completions", chat(json!({}))).await.expect(200);
    assert_eq!(fake.calls(), 3);

    fake.then(vec![Act::Break("half")]);
    let calls = fake.calls();
    let answer = server.open_post("/v1/chat/completions", chat(json!({}))).await.expect(503);
    assert_eq!(answer.json()["error"]["code"], "upstream_unavailable");
    assert_eq!(fake.calls(), calls + 1, "what was begun is not begun again");

    fake.then(vec![Act::Status(429, json!({"error": {"message": "slow down"}}), Some(30))]);
    let calls = fake.calls();
    let answer = server.open_post("/v1/chat/completions", chat(json!({}))).await.expect(429);
    assert_eq!(answer.headers["retry-after"], "30");
    assert_eq!(fake.calls(), calls + 1, "a wait that long is the client's to decide");

    fake.then(vec![Act::Status(500, json!({}), None)]);
    let calls = fake.calls();
    server.open_post("/v1/chat/completions", chat(json!({}))).await.expect(503);
    assert_eq!(fake.calls(), calls + 1);
}

#[tokio::test]
async fn refusals_name_the_field_and_never_open_the_breaker() {
    let refusal = json!({"error": {"message": "max_tokens is too large", "param": "max_tokens"}});
    let fake = Fake::start(vec![Act::Status(400, refusal, None)]).await;
    let server = behind(&fake.url, |c| c.upstream.breaker_failures = 2).await;
    for _ in 0..4 {
        let answer = server.open_post("/v1/chat/completions", chat(json!({"stream": true}))).await.expect(400);
        assert_eq!(answer.param().as_deref(), Some("max_tokens"));
        assert!(answer.text.contains("max_tokens is too large"));
    }
    server.get("/ready").await.expect(200);
}

#[tokio::test]
async fn failures_open_the_breaker_and_a_trial_closes_it() {
    let fake = Fake::start(vec![Act::Status(500, json!({}), None)]).await;
    let server = behind(&fake.url, |c| {
        c.upstream.breaker_failures = 3;
        c.upstream.breaker_pause_seconds = 1;
    })
    .await;
    for _ in 0..3 {
        server.open_post("/v1/chat/completions", chat(json!({}))).await.expect(503);
    }
    let calls = fake.calls();
    let refused = server.open_post("/v1/chat/completions", chat(json!({}))).await.expect(503);
    assert!(refused.headers.contains_key("retry-after"));
    assert_eq!(fake.calls(), calls, "nobody is sent");
    assert_eq!(server.get("/ready").await.expect(503).json()["error"]["code"], "upstream_unavailable");
    server.get("/health").await.expect(200);
    fake.then(vec![Act::Write(vec!["back"], "stop")]);
    eventually(LONG, "readiness", async || (server.get("/ready").await.status != 503).then_some(())).await;
    server.open_post("/v1/chat/completions", chat(json!({}))).await.expect(200);
    server.open_post("/v1/chat/completions", chat(json!({}))).await.expect(200);
}

#[tokio::test]
async fn broken_streams_are_error_events_without_details() {
    let fake = Fake::start(vec![]).await;
    let server = behind(&fake.url, |c| {
        c.upstream.breaker_failures = 100;
        c.upstream.response_timeout_seconds = 1;
    })
    .await;
    let cut = "data: {\"choices\": [{\"index\": 0, \"delta\": {\"content\": \"x\"}}]}\n\ndata: [DONE]\n\n";
    let stranger = "data: {\"choices\": [{\"index\": 7, \"delta\": {\"content\": \"x\"}}]}\n\n";
    for act in [
        Act::Break("some"),
        Act::ErrorEvent("some"),
        Act::Silence("some"),
        Act::Raw(cut),
        Act::Raw(stranger),
        Act::Raw("data: <html>\n\n"),
        Act::Raw(""),
    ] {
        fake.then(vec![act.clone()]);
        let events = server.open_post("/v1/chat/completions", chat(json!({"stream": true}))).await.expect(200).events();
        let error: Value = serde_json::from_str(&events[events.len() - 2]).unwrap();
        assert_eq!(error["error"]["code"], "upstream_unavailable", "{act:?}: {events:?}");
        assert!(!error.to_string().contains("secret"), "{error}");
        idle(&server, &fake).await;
    }
    fake.then(vec![Act::Hang]);
    server.open_post("/v1/chat/completions", chat(json!({}))).await.expect(503);
    idle(&server, &fake).await;
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_upstream_stream() {
    let fake = Fake::start(vec![Act::Silence("first")]).await;
    let server = behind(&fake.url, |c| c.upstream.max_running = 1).await;
    let request = http::Request::post("/v1/chat/completions").header("content-type", "application/json");
    let request = request.body(axum::body::Body::from(chat(json!({"stream": true})).to_string())).unwrap();
    let mut body = server.router.clone().oneshot(request).await.unwrap().into_body();
    body.frame().await.unwrap().unwrap();
    assert_eq!(fake.open.load(SeqCst), 1);
    // One slot is all there is.
    server.open_post("/v1/chat/completions", chat(json!({}))).await.expect(429);
    drop(body);
    idle(&server, &fake).await;
    fake.then(vec![]);
    server.open_post("/v1/chat/completions", chat(json!({}))).await.expect(200);
}

#[tokio::test]
async fn a_redirect_is_not_followed_and_no_connection_is_503() {
    let fake = Fake::start(vec![Act::Status(302, json!({}), None)]).await;
    let server = behind(&fake.url, |_| {}).await;
    server.open_post("/v1/chat/completions", chat(json!({}))).await.expect(503);
    // A port that nobody listens on.
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1", free.local_addr().unwrap());
    drop(free);
    let waiting = Server::without_engine(|c| c.upstream.url = Some(url)).await;
    let start = instructd::app::upstream::start(&waiting.services);
    // It waits for the server: until then requests hear 503.
    tokio::select! {
        _ = start => panic!("there is no server to start with"),
        () = tokio::time::sleep(Duration::from_millis(300)) => {}
    }
    waiting.get("/ready").await.expect(503);
}

/// The tiny real model behind a real socket, as the upstream of a second server.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_instructd_is_an_upstream() {
    let model = copy_dir(&fixture("llama-tied-tiny"));
    let template = json!({"chat_template": "{% for m in messages %}{{ m.content }} {% endfor %}"});
    std::fs::write(model.path().join("tokenizer_config.json"), template.to_string()).unwrap();
    let origin = Server::without_engine(|c| c.model = model.path().display().to_string()).await;
    origin.services.set_engine(instructd::app::model::start(&origin.services).await.unwrap());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    let router = origin.router.clone();
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    let front = behind(&url, |c| c.upstream.kind = "instructd".into()).await;

    let body = json!({"messages": [{"role": "user", "content": "t5 t6 t7"}], "seed": 3, "n": 2, "max_tokens": 12,
        "temperature": 0.9, "top_k": 40, "min_p": 0.01, "min_tokens": 3, "stop": ["t11 t12"]});
    let here = origin.open_post("/v1/chat/completions", body.clone()).await.expect(200).json();
    let there = front.open_post("/v1/chat/completions", body).await.expect(200).json();
    assert_eq!(there["usage"], here["usage"]);
    for i in 0..2 {
        assert_eq!(there["choices"][i]["message"], here["choices"][i]["message"]);
        assert_eq!(there["choices"][i]["finish_reason"], here["choices"][i]["finish_reason"]);
    }
    let body = json!({"prompt": "t1 t2", "seed": 9, "max_tokens": 8, "stream": true});
    let text = |events: Vec<String>| -> String {
        let chunks = events.iter().filter_map(|e| serde_json::from_str::<Value>(e).ok());
        chunks.filter_map(|c| c["choices"][0]["text"].as_str().map(str::to_owned)).collect()
    };
    let here = text(origin.open_post("/v1/completions", body.clone()).await.expect(200).events());
    assert!(!here.is_empty());
    assert_eq!(text(front.open_post("/v1/completions", body).await.expect(200).events()), here);
    // A context error travels through, with its field.
    let long = json!({"prompt": "t1 ".repeat(100), "max_tokens": 5});
    for server in [&origin, &front] {
        let refused = server.open_post("/v1/completions", long.clone()).await.expect(400);
        assert_eq!(refused.param().as_deref(), Some("prompt"));
        assert_eq!(refused.json()["error"]["code"], "context_length_exceeded");
    }
    // A message that speaks of a context is not a prompt that is too long for it.
    let refused = origin.open_post("/v1/completions", json!({"prompt": "t1", "model": "context"})).await.expect(404);
    assert_eq!(refused.json()["error"]["code"], "model_not_found");
    let set = json!({"messages": [{"role": "user", "content": "t9"}], "n": 2, "sampling": {"max_tokens": 8}});
    front.post("/v1/comparison-sets", set).await.expect(201);
    let version: ModelVersionId = front.services.engine().unwrap().active().unwrap().version.id.clone();
    assert_eq!(front.services.store.models().get(&version).await.unwrap().stage, "upstream");
}

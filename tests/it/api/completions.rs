//! Completions and chat: OpenAI's forms, streaming, log-probs, storage.

use std::time::Duration;

use crate::support::mock::MockOptions;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::client::{Server, admin};
use crate::support::eventually::{LONG, eventually};

#[tokio::test]
async fn a_completion_is_answered_and_stored() {
    let server = Server::start().await;
    let answer = server.open_post("/v1/completions", json!({"prompt": "Hello", "max_tokens": 20})).await.expect(200);
    let body = answer.json();
    assert_eq!(body["object"], "text_completion");
    assert_eq!(body["model"], "base");
    let text = body["choices"][0]["text"].as_str().unwrap();
    assert!(!text.is_empty());
    assert_eq!(body["usage"]["prompt_tokens"], 5);
    assert_eq!(body["usage"]["completion_tokens"], text.len());
    let id = body["instructd"]["completion_ids"][0].as_str().unwrap();
    let stored = server.services.store.completions().get(&id.into()).await.unwrap();
    assert_eq!(stored.text, text);
    assert_eq!(stored.token_ids.len(), stored.logprobs.len());
    assert_eq!(stored.model_version_id.unwrap().as_str(), body["instructd"]["model_version"].as_str().unwrap());
    assert_eq!(stored.seed, body["instructd"]["seed"].as_u64());
    assert_eq!(answer.headers["x-request-id"].to_str().unwrap(), stored.request_id.unwrap());
}

#[tokio::test]
async fn the_returned_seed_repeats_the_text() {
    let server = Server::start().await;
    let ask = |seed: Value| server.open_post("/v1/completions", json!({"prompt": "x", "max_tokens": 60, "seed": seed}));
    let first = ask(Value::Null).await.expect(200).json();
    let again = ask(first["instructd"]["seed"].clone()).await.expect(200).json();
    assert_eq!(first["choices"][0]["text"], again["choices"][0]["text"]);
    let other = ask(Value::Null).await.expect(200).json();
    assert_ne!(first["instructd"]["seed"], other["instructd"]["seed"]);
}

/// A length that nobody asked for never makes a request too long; one that was asked for does.
#[tokio::test]
async fn the_default_length_fits_the_context() {
    let server = Server::with(|_| {}, MockOptions { max_context: 12, ..MockOptions::default() }).await;
    let body = server.open_post("/v1/completions", json!({"prompt": "12345678"})).await.expect(200).json();
    assert!(body["usage"]["completion_tokens"].as_u64().unwrap() <= 4);
    let asked = server.open_post("/v1/completions", json!({"prompt": "12345678", "max_tokens": 16})).await.expect(400);
    assert_eq!(asked.json()["error"]["param"], "max_tokens");
}

#[tokio::test]
async fn all_four_prompt_shapes_agree() {
    let server = Server::start().await;
    let ids = |text: &str| text.bytes().map(u32::from).collect::<Vec<_>>();
    let text = |body: &Value, i: usize| body["choices"][i]["text"].as_str().unwrap().to_owned();
    let ask =
        |prompt: Value| server.open_post("/v1/completions", json!({"prompt": prompt, "seed": 3, "max_tokens": 30}));
    let one = ask(json!("ab")).await.expect(200).json();
    let as_ids = ask(json!(ids("ab"))).await.expect(200).json();
    let many = ask(json!(["cd", "ab"])).await.expect(200).json();
    let many_ids = ask(json!([ids("cd"), ids("ab")])).await.expect(200).json();
    assert_eq!(text(&one, 0), text(&as_ids, 0));
    assert_eq!(text(&one, 0), text(&many, 1));
    assert_eq!(text(&many, 0), text(&many_ids, 0));
    assert_eq!(many["usage"]["prompt_tokens"], 4);
}

#[tokio::test]
async fn echo_with_logprobs_and_no_tokens_gives_the_prompt() {
    let server = Server::start().await;
    let request = json!({"prompt": [104, 105, 33], "echo": true, "logprobs": 1, "max_tokens": 0});
    let body = server.open_post("/v1/completions", request).await.expect(200).json();
    let choice = &body["choices"][0];
    assert_eq!(choice["text"], "hi!");
    let logprobs = &choice["logprobs"];
    assert_eq!(logprobs["tokens"], json!(["h", "i", "!"]));
    assert_eq!(logprobs["token_ids"], json!([104, 105, 33]));
    assert_eq!(logprobs["text_offset"], json!([0, 1, 2]));
    assert!(logprobs["token_logprobs"][0].is_null() && logprobs["top_logprobs"][0].is_null());
    for i in 1..3 {
        let own = logprobs["token_logprobs"][i].as_f64().unwrap();
        assert!(own < 0.0);
        let token = logprobs["tokens"][i].as_str().unwrap();
        assert_eq!(logprobs["top_logprobs"][i][token].as_f64().unwrap(), own);
    }
    assert_eq!(body["usage"]["completion_tokens"], 0);
}

#[tokio::test]
async fn a_stream_has_the_text_of_the_whole_response() {
    let server = Server::start().await;
    let mut request = json!({"prompt": ["Hi", "Ho"], "n": 2, "seed": 5, "max_tokens": 40, "logprobs": 0, "echo": true});
    let whole = server.open_post("/v1/completions", request.clone()).await.expect(200).json();
    request["stream"] = json!(true);
    request["stream_options"] = json!({"include_usage": true});
    let answer = server.open_post("/v1/completions", request).await.expect(200);
    assert!(answer.headers["content-type"].to_str().unwrap().starts_with("text/event-stream"));
    let events = answer.events();
    assert_eq!(events.last().unwrap(), "[DONE]");
    let chunks: Vec<Value> = events[..events.len() - 1].iter().map(|e| serde_json::from_str(e).unwrap()).collect();
    let mut texts = vec![String::new(); 4];
    let mut tokens = vec![Vec::new(); 4];
    let mut offsets = vec![Vec::new(); 4];
    let mut finish = vec![Value::Null; 4];
    for choice in chunks.iter().filter_map(|c| c["choices"].get(0)) {
        let i = choice["index"].as_u64().unwrap() as usize;
        texts[i].push_str(choice["text"].as_str().unwrap());
        tokens[i].extend(choice["logprobs"]["tokens"].as_array().cloned().unwrap_or_default());
        offsets[i].extend(choice["logprobs"]["text_offset"].as_array().cloned().unwrap_or_default());
        if !choice["finish_reason"].is_null() {
            finish[i] = choice["finish_reason"].clone();
        }
    }
    for i in 0..4 {
        let expected = &whole["choices"][i];
        assert_eq!(texts[i], expected["text"].as_str().unwrap());
        assert_eq!(json!(tokens[i]), expected["logprobs"]["tokens"]);
        assert_eq!(json!(offsets[i]), expected["logprobs"]["text_offset"]);
        assert_eq!(finish[i], expected["finish_reason"]);
    }
    assert_eq!(chunks.last().unwrap()["usage"], whole["usage"]);
    let id = chunks[0]["instructd"]["completion_ids"][0].as_str().unwrap();
    server.services.store.completions().get(&id.into()).await.unwrap();
}

#[tokio::test]
async fn chat_streams_a_role_then_text_then_a_reason() {
    let server = Server::start().await;
    let mut request = json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}], "seed": 1, "max_tokens": 30});
    let whole = server.open_post("/v1/chat/completions", request.clone()).await.expect(200).json();
    assert_eq!(whole["object"], "chat.completion");
    request["stream"] = json!(true);
    let events = server.open_post("/v1/chat/completions", request).await.expect(200).events();
    let chunks: Vec<Value> = events[..events.len() - 1].iter().map(|e| serde_json::from_str(e).unwrap()).collect();
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    let text: String = chunks.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, whole["choices"][0]["message"]["content"].as_str().unwrap());
    assert!(chunks.last().unwrap()["choices"][0]["finish_reason"].is_string());
}

#[tokio::test]
async fn chat_logprobs_have_alternatives() {
    let server = Server::start().await;
    let request =
        json!({"messages": [{"role": "user", "content": "Hi"}], "logprobs": true, "top_logprobs": 3, "max_tokens": 4});
    let body = server.open_post("/v1/chat/completions", request).await.expect(200).json();
    let content = body["choices"][0]["logprobs"]["content"].as_array().unwrap().clone();
    assert_eq!(content.len(), body["usage"]["completion_tokens"].as_u64().unwrap() as usize);
    assert!(content.iter().all(|c| c["top_logprobs"].as_array().unwrap().len() == 3));
}

#[tokio::test]
async fn stop_strings_end_the_text_before_them() {
    let server = Server::start().await;
    let ask = |stop: Value| {
        server.open_post("/v1/completions", json!({"prompt": "x", "seed": 9, "max_tokens": 60, "stop": stop}))
    };
    let free = ask(Value::Null).await.expect(200).json();
    let free = free["choices"][0]["text"].as_str().unwrap().to_owned();
    let stop: String = free.chars().skip(3).take(3).collect();
    let body = ask(json!([stop])).await.expect(200).json();
    let at = free.find(&stop).unwrap();
    assert_eq!(body["choices"][0]["text"], free[..at]);
    assert_eq!(body["choices"][0]["finish_reason"], "stop");
}

#[tokio::test]
async fn best_of_returns_and_stores_the_best_n() {
    let server = Server::start().await;
    let request = json!({"prompt": "x", "seed": 2, "max_tokens": 30, "n": 2, "best_of": 5, "logprobs": 0});
    let best = server.open_post("/v1/completions", request).await.expect(200).json();
    let mean = |choice: &Value| {
        let all = choice["logprobs"]["token_logprobs"].as_array().unwrap();
        all.iter().map(|v| v.as_f64().unwrap()).sum::<f64>() / all.len() as f64
    };
    let request = json!({"prompt": "x", "seed": 2, "max_tokens": 30, "n": 5, "logprobs": 0});
    let all = server.open_post("/v1/completions", request).await.expect(200).json();
    let mut means: Vec<f64> = all["choices"].as_array().unwrap().iter().map(mean).collect();
    means.sort_by(|a, b| b.total_cmp(a));
    let chosen: Vec<f64> = best["choices"].as_array().unwrap().iter().map(mean).collect();
    assert_eq!(chosen, means[..2]);
}

#[tokio::test]
async fn a_failure_in_mid_stream_is_an_error_event() {
    let server = Server::with(|_| {}, MockOptions { fail_after: Some(3), ..MockOptions::default() }).await;
    let request = json!({"prompt": "x", "max_tokens": 50, "stream": true});
    let events = server.open_post("/v1/completions", request.clone()).await.expect(200).events();
    let error: Value = serde_json::from_str(&events[events.len() - 2]).unwrap();
    assert_eq!(error["error"]["type"], "server_error");
    assert!(!error.to_string().contains("told to fail"), "internals stay inside");
    let mut whole = request;
    whole["stream"] = json!(false);
    server.open_post("/v1/completions", whole).await.expect(500);
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_slot() {
    let mock = MockOptions { delay_per_token: Duration::from_millis(5), ..MockOptions::default() };
    let server = Server::with(|_| {}, mock).await;
    let body = json!({"prompt": "x", "max_tokens": 4000, "ignore_eos": true, "stream": true}).to_string();
    let request = http::Request::post("/v1/completions").header("content-type", "application/json");
    let response = server.router.clone().oneshot(request.body(axum::body::Body::from(body)).unwrap()).await.unwrap();
    let mut body = response.into_body();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    let first = String::from_utf8(first.to_vec()).unwrap();
    assert_eq!(server.services.engine().unwrap().stats().running, 1);
    drop(body);
    eventually(LONG, "the end of the request", async || {
        (server.services.engine().unwrap().stats().running == 0).then_some(())
    })
    .await;
    // What was seen is kept.
    let chunk: Value = serde_json::from_str(first.trim().strip_prefix("data: ").unwrap()).unwrap();
    let id = chunk["instructd"]["completion_ids"][0].as_str().unwrap().into();
    let stored =
        eventually(LONG, "the stored completion", async || server.services.store.completions().get(&id).await.ok())
            .await;
    assert_eq!(stored.finish_reason.as_deref(), Some("abort"));
}

#[tokio::test]
async fn overload_and_loading_are_errors_before_any_work() {
    let server = Server::with(|_| {}, MockOptions { max_running: 0, ..MockOptions::default() }).await;
    let answer = server.open_post("/v1/completions", json!({"prompt": "x"})).await.expect(429);
    assert_eq!(answer.headers["retry-after"], "1");
    let loading = Server::without_engine(|_| {}).await;
    loading.get("/ready").await.expect(503);
    loading.get("/health").await.expect(200);
    loading.open_post("/v1/completions", json!({"prompt": "x"})).await.expect(503);
    server.get("/ready").await.expect(200);
    server.services.shutdown.cancel();
    server.get("/ready").await.expect(503);
}

#[tokio::test]
async fn tokens_and_back() {
    let server = Server::start().await;
    let tokens = server.open_post("/tokenize", json!({"prompt": "雨 a"})).await.expect(200).json();
    assert_eq!(tokens["count"], 5);
    let text = server.open_post("/detokenize", json!({"tokens": tokens["tokens"]})).await.expect(200).json();
    assert_eq!(text["prompt"], "雨 a");
}

#[tokio::test]
async fn metrics_have_their_names() {
    let server = Server::start().await;
    server.open_post("/v1/completions", json!({"prompt": "x", "max_tokens": 8})).await.expect(200);
    let text = server.call("GET", "/metrics", &[admin()], None).await.expect(200).text;
    for name in [
        "instructd_requests_running",
        "instructd_requests_waiting",
        "instructd_time_to_first_token_seconds_bucket",
        "instructd_inter_token_latency_seconds_bucket",
        "instructd_request_duration_seconds_bucket",
        "instructd_prompt_tokens_total",
        "instructd_generated_tokens_total",
        "instructd_kv_tokens_used",
        "instructd_kv_tokens_total",
        "instructd_jobs{state=\"queued\"}",
    ] {
        assert!(text.contains(name), "{name} is missing from:\n{text}");
    }
    assert!(text.contains("route=\"/v1/completions\",outcome=\"ok\""), "{text}");
}

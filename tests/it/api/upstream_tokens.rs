//! Token ids and log-probs through upstream servers: answers equal those of the engine that the stand-ins run, stored
//! completions carry ids and log-probs, and an answer that is incomplete or impossible is an error.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use instructd::config::Config;
use serde_json::{Value, json};

use super::client::Server;
use super::token_server::{Fault, Stands, TokenServer};
use super::upstream::{behind, chat};
use crate::support::eventually::{LONG, eventually};
use crate::support::{copy_dir, fixture};

const ALL: [Stands; 3] = [Stands::Vllm, Stands::Sglang, Stands::LlamaCpp];

/// A server that runs a tiny model itself, and the model's directory.
async fn origin() -> (Arc<Server>, tempfile::TempDir) {
    let model = copy_dir(&fixture("llama-tied-tiny"));
    let template = json!({"chat_template": "{% for m in messages %}{{ m.content }} {% endfor %}"});
    std::fs::write(model.path().join("tokenizer_config.json"), template.to_string()).unwrap();
    let origin = Server::without_engine(|c| c.model = model.path().display().to_string()).await;
    origin.services.set_engine(instructd::app::model::start(&origin.services).await.unwrap());
    (Arc::new(origin), model)
}

async fn front(urls: &[String], stands: Stands, model: &tempfile::TempDir, change: impl FnOnce(&mut Config)) -> Server {
    behind(&urls[0], |c| {
        c.upstream.kind = match stands {
            Stands::Vllm => "vllm".into(),
            Stands::Sglang => "sglang".into(),
            Stands::LlamaCpp => "llama.cpp".into(),
        };
        c.upstream.token_ids = true;
        c.upstream.replicas = urls[1..].to_vec();
        c.model = model.path().display().to_string();
        change(c);
    })
    .await
}

/// The choices of an answer, without the ids of stored completions.
fn choices(answer: &Value) -> Value {
    assert!(!answer["choices"].as_array().unwrap().is_empty(), "{answer}");
    answer["choices"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn completions_have_the_ids_and_logprobs_of_the_generator() {
    let (origin, model) = origin().await;
    for stands in ALL {
        let server = TokenServer::start(stands, origin.clone()).await;
        let front = front(std::slice::from_ref(&server.url), stands, &model, |_| {}).await;
        assert!(!front.services.engine().unwrap().active().unwrap().takes_text, "{stands:?}");
        // The stand-in's slices for llama.cpp draw other random numbers; greedy answers do not depend on them.
        let greedy = stands == Stands::LlamaCpp;
        let (temperature, n) = if greedy { (0.0, 1) } else { (0.9, 2) };
        let sampled = json!({"temperature": temperature, "n": n, "seed": 3});
        let with = |mut body: Value| {
            body.as_object_mut().unwrap().extend(sampled.as_object().unwrap().clone());
            body
        };
        for (path, body) in [
            ("/v1/completions", json!({"prompt": "t5 t6 t7", "max_tokens": 40, "logprobs": 3, "ignore_eos": true})),
            ("/v1/completions", json!({"prompt": [5, 6, 7], "max_tokens": 9, "logprobs": 0, "stop_token_ids": [11]})),
            ("/v1/completions", json!({"prompt": "t5 t6", "max_tokens": 5, "logprobs": 2, "echo": true})),
            ("/v1/completions", json!({"prompt": "t5 t6 t9", "max_tokens": 0, "logprobs": 2, "echo": true})),
            ("/v1/completions", json!({"prompt": "t5 t6 t7", "max_tokens": 12, "best_of": n})),
            ("/v1/chat/completions", chat(json!({"max_tokens": 12, "logprobs": true, "top_logprobs": 2}))),
        ] {
            let body = with(body);
            let here = origin.open_post(path, body.clone()).await.expect(200).json();
            let there = front.open_post(path, body.clone()).await.expect(200).json();
            assert_eq!(choices(&there), choices(&here), "{stands:?} {body}");
            assert_eq!(there["usage"], here["usage"], "{stands:?} {body}");
            for (a, b) in there["instructd"]["completion_ids"]
                .as_array()
                .unwrap()
                .iter()
                .zip(here["instructd"]["completion_ids"].as_array().unwrap())
            {
                let (Some(a), Some(b)) = (a.as_str(), b.as_str()) else { continue };
                let a = front.services.store.completions().get(&a.into()).await.unwrap();
                let b = origin.services.store.completions().get(&b.into()).await.unwrap();
                assert_eq!((&a.token_ids, &a.logprobs, &a.text), (&b.token_ids, &b.logprobs, &b.text), "{stands:?}");
                assert!(!a.token_ids.is_empty() && a.token_ids.len() == a.logprobs.len());
            }
        }
    }
}

/// The text and the log-probs of a stream.
fn streamed(events: &[String]) -> (String, Vec<Value>) {
    let chunks: Vec<Value> = events.iter().filter_map(|e| serde_json::from_str(e).ok()).collect();
    let of = |c: &Value| c["choices"][0].clone();
    let text = chunks.iter().filter_map(|c| of(c)["text"].as_str().map(str::to_owned)).collect();
    (
        text,
        chunks
            .iter()
            .flat_map(|c| of(c)["logprobs"]["token_logprobs"].as_array().cloned().unwrap_or_default())
            .collect(),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_and_stop_strings_are_those_of_the_generator() {
    let (origin, model) = origin().await;
    for stands in ALL {
        let server = TokenServer::start(stands, origin.clone()).await;
        let front = front(std::slice::from_ref(&server.url), stands, &model, |_| {}).await;
        let body =
            json!({"prompt": "t5 t6 t7", "max_tokens": 40, "logprobs": 0, "ignore_eos": true, "temperature": 0.0});
        let whole = origin.open_post("/v1/completions", body.clone()).await.expect(200).json();
        let text = whole["choices"][0]["text"].as_str().unwrap();
        let words: Vec<&str> = text.split_whitespace().collect();
        for stop in [None, Some(words[4..6].join(" "))] {
            let mut body = body.clone();
            body["stream"] = json!(true);
            body["stop"] = json!(stop);
            let here = streamed(&origin.open_post("/v1/completions", body.clone()).await.expect(200).events());
            let there = streamed(&front.open_post("/v1/completions", body).await.expect(200).events());
            assert_eq!(there, here, "{stands:?} {stop:?}");
            assert!(!here.0.is_empty() && !here.1.is_empty());
        }
        eventually(LONG, "the end of all slots", async || {
            (front.services.engine().unwrap().stats().running == 0).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn choices_and_tokenizing_are_those_of_the_generator() {
    let (origin, model) = origin().await;
    for stands in ALL {
        let server = TokenServer::start(stands, origin.clone()).await;
        let front = front(std::slice::from_ref(&server.url), stands, &model, |_| {}).await;
        for body in [
            json!({"prompt": "t5 t9 t2", "choices": [" t4", " t17 t18", " t4 t4 t9"], "logprobs": true}),
            json!({"prompt": "t5 t9", "choices": [" t4", " t17"], "content_free": ["t8"], "normalize": "tokens"}),
            json!({"messages": [{"role": "user", "content": "t6 t9"}], "choices": ["t4", "t7"]}),
        ] {
            let here = origin.open_post("/v1/choices", body.clone()).await.expect(200).json();
            let there = front.open_post("/v1/choices", body.clone()).await.expect(200).json();
            assert_eq!((choices(&there), &there["usage"]), (choices(&here), &here["usage"]), "{stands:?} {body}");
        }
        for (path, body) in
            [("/tokenize", json!({"prompt": "t5 t6 x"})), ("/detokenize", json!({"tokens": [5, 6, 95]}))]
        {
            let here = origin.open_post(path, body.clone()).await.expect(200).json();
            assert_eq!(front.open_post(path, body).await.expect(200).json(), here, "{stands:?}");
        }
        let beyond = front.open_post("/v1/completions", json!({"prompt": [96]})).await.expect(400);
        assert_eq!(beyond.param().as_deref(), Some("prompt"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_incomplete_answer_is_an_error_and_nothing_is_made_up() {
    let (origin, model) = origin().await;
    for stands in ALL {
        let server = TokenServer::start(stands, origin.clone()).await;
        let front = front(std::slice::from_ref(&server.url), stands, &model, |c| {
            c.upstream.breaker_failures = 100;
        })
        .await;
        let body = json!({"prompt": "t5 t6", "max_tokens": 6, "ignore_eos": true, "temperature": 0.0});
        for fault in [Fault::NoLogprobs, Fault::FewerLogprobs, Fault::NotANumber, Fault::BeyondVocabulary, Fault::Cut] {
            if (stands, fault) == (Stands::LlamaCpp, Fault::Cut) {
                continue;
            }
            server.fail(Some(fault));
            let refused = front.open_post("/v1/completions", body.clone()).await.expect(503);
            assert_eq!(refused.json()["error"]["code"], "upstream_unavailable", "{stands:?} {fault:?}");
        }
        server.fail(None);
        front.open_post("/v1/completions", body).await.expect(200);
        let long = json!({"prompt": vec![5; 63], "max_tokens": 0, "echo": true, "logprobs": 0});
        let answer = front.open_post("/v1/completions", long).await;
        if stands == Stands::LlamaCpp {
            // Each token of a prompt would be a call.
            let refused = answer.expect(400);
            assert_eq!(refused.param().as_deref(), Some("logprobs"));
            assert!(refused.text.contains("llama.cpp does not report them"), "{}", refused.text);
        } else {
            answer.expect(200);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_are_used_only_with_the_same_tokenizer_and_plain_logprobs() {
    let (origin, model) = origin().await;
    for stands in ALL {
        for fault in [Fault::OtherTokenizer, Fault::NoTokenizer, Fault::AfterTemperature, Fault::NoLogprobs] {
            let server = TokenServer::start(stands, origin.clone()).await;
            server.fail(Some(fault));
            let front = front(std::slice::from_ref(&server.url), stands, &model, |_| {}).await;
            let refused = front.open_post("/v1/completions", json!({"prompt": "x", "logprobs": 0})).await.expect(400);
            assert_eq!(refused.param().as_deref(), Some("logprobs"), "{stands:?} {fault:?}");
            let answer = front.open_post("/v1/completions", json!({"prompt": "x"})).await.expect(200).json();
            assert_eq!(answer["choices"][0]["text"], "plain", "{stands:?} {fault:?}");
        }
        let server = TokenServer::start(stands, origin.clone()).await;
        let off = front(std::slice::from_ref(&server.url), stands, &model, |c| c.upstream.token_ids = false).await;
        assert!(off.services.engine().unwrap().active().unwrap().takes_text);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_with_another_tokenizer_gets_no_requests() {
    let (origin, model) = origin().await;
    let first = TokenServer::start(Stands::Vllm, origin.clone()).await;
    // The second one is away when the program starts.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let urls = [first.url.clone(), format!("http://{address}/v1")];
    let front = front(&urls, Stands::Vllm, &model, |c| c.upstream.health_seconds = 1).await;
    let ask = async || {
        let body = json!({"prompt": "t5", "max_tokens": 2, "logprobs": 0});
        front.open_post("/v1/completions", body).await.expect(200);
    };
    ask().await;
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    let second = TokenServer::start_at(Stands::Vllm, origin.clone(), listener);
    second.fail(Some(Fault::OtherTokenizer));
    // Longer than two health checks: both servers list the model.
    tokio::time::sleep(std::time::Duration::from_millis(2500)).await;
    for _ in 0..6 {
        ask().await;
    }
    assert_eq!(second.answers.load(SeqCst), 0);
    second.fail(None);
    eventually(LONG, "requests at the second server", async || {
        ask().await;
        // The check itself is two answers.
        (second.answers.load(SeqCst) > 2).then_some(())
    })
    .await;
}

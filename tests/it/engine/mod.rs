//! The serving engine from outside: same text in any company, exact log-probs, no leaked slot, live swaps.

mod adapters;
mod constrained;
mod device_adapters;
mod device_encoders;
mod device_rewards;
mod drafts;
mod families;
mod lora_versions;
mod replicas;

use std::sync::Arc;
use std::time::Duration;

use instructd::domain::{ModelKind, ModelState, ModelVersion, ModelVersionId};
use instructd::engine::{
    EngineError, EngineOptions, FinishReason, GenEvent, GenerateRequest, Generation, Generator, LocalEngine,
    SamplingParams, TokenLogprob, Warpers,
};

use crate::support::eventually::{LONG, eventually};
use crate::support::fixtures;

fn version(id: &str, fixture: &str) -> ModelVersion {
    ModelVersion {
        id: ModelVersionId::from(id),
        kind: ModelKind::Policy,
        name: id.to_owned(),
        stage: "base".into(),
        parent_id: None,
        job_id: None,
        artifact_uri: fixtures().join(fixture).to_string_lossy().into_owned(),
        sha256: String::new(),
        metrics: serde_json::json!({}),
        state: ModelState::Candidate,
        created: 0,
    }
}

/// `options` on the devices that `INSTRUCTD_TEST_DEVICE` names, with commas between them; on the CPU without it.
fn on_device(options: EngineOptions) -> EngineOptions {
    match std::env::var("INSTRUCTD_TEST_DEVICE") {
        Ok(devices) => EngineOptions { devices: devices.split(',').map(str::to_owned).collect(), ..options },
        Err(_) => options,
    }
}

async fn engine(options: EngineOptions) -> Arc<LocalEngine> {
    let engine = LocalEngine::start(on_device(options)).unwrap();
    let v = version("a", "llama-tiny");
    engine.load(&v).await.unwrap();
    engine.activate(&v.id).await.unwrap();
    engine
}

fn request(prompt: Vec<u32>, n: usize, params: SamplingParams) -> GenerateRequest {
    GenerateRequest {
        request_id: "r".into(),
        version: None,
        prompt_ids: prompt,
        n,
        params,
        prompt_logprobs: None,
        prompt_from: 0,
        soft_prompt: None,
        background: false,
    }
}

fn params(seed: u64, max_tokens: usize) -> SamplingParams {
    SamplingParams { seed, max_tokens, ignore_eos: true, logprobs: Some(2), ..SamplingParams::default() }
}

#[derive(Default, Debug, PartialEq, Clone)]
struct Collected {
    prompt: Vec<TokenLogprob>,
    tokens: Vec<Vec<TokenLogprob>>,
    text: Vec<String>,
    reasons: Vec<Option<FinishReason>>,
    failed: Option<EngineError>,
}

async fn collect(mut g: Generation, n: usize) -> Collected {
    let mut c = Collected {
        tokens: vec![vec![]; n],
        text: vec![String::new(); n],
        reasons: vec![None; n],
        ..Default::default()
    };
    while let Some(event) = g.events.recv().await {
        match event {
            GenEvent::Prompt { tokens } => c.prompt = tokens,
            GenEvent::Delta { index, text, tokens } => {
                c.text[index].push_str(&text);
                c.tokens[index].extend(tokens);
            }
            GenEvent::Finish { index, reason } => {
                assert_eq!(c.reasons[index].replace(reason), None, "one finish per sample");
            }
            GenEvent::Usage { .. } => panic!("the built-in engine's deltas carry their tokens"),
            GenEvent::Failed { error } => c.failed = Some(error),
        }
    }
    c
}

async fn run(engine: &LocalEngine, r: GenerateRequest) -> Collected {
    let n = r.n;
    collect(engine.generate(r).await.unwrap(), n).await
}

async fn idle(engine: &LocalEngine) {
    let ended = eventually(LONG, "free slots", async || {
        let stats = engine.stats();
        (stats.running + stats.waiting == 0).then_some(())
    });
    ended.await;
}

/// Prompts of many lengths, some sharing long prefixes.
fn requests() -> Vec<GenerateRequest> {
    (0..24u32)
        .map(|i| {
            let shared = (0..33u32).map(|t| (t * 5) % 96);
            let own = (0..i % 7 + 1).map(|t| (t * 11 + i) % 96);
            let prompt = if i % 3 == 0 { own.collect() } else { shared.chain(own).collect() };
            request(prompt, 1 + (i % 3) as usize, params(u64::from(i), 5 + (i % 9) as usize))
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn random_arrivals_change_nothing_in_any_answer() {
    let alone = engine(EngineOptions { max_running: 1, prefill_tokens: 1000, ..EngineOptions::default() }).await;
    let mut want = Vec::new();
    for r in requests() {
        want.push(run(&alone, r).await);
    }
    // Tiny budgets: chunked prompts, preemption and prefix reuse all happen.
    for (kv_tokens, prefill_tokens) in [(160, 7), (4096, 64)] {
        let crowded =
            engine(EngineOptions { max_running: 9, kv_tokens, prefill_tokens, ..EngineOptions::default() }).await;
        for stagger in [0u64, 3] {
            let mut tasks = Vec::new();
            for (i, r) in requests().into_iter().enumerate() {
                let engine = crowded.clone();
                tasks.push(tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(stagger * (i as u64 * 7 % 11))).await;
                    run(&engine, r).await
                }));
            }
            for (i, (task, want)) in tasks.into_iter().zip(&want).enumerate() {
                assert_eq!(&task.await.unwrap(), want, "request {i}, {kv_tokens} cached tokens");
            }
            idle(&crowded).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn prompt_logprobs_equal_the_reference() {
    let engine = engine(EngineOptions { prefill_tokens: 4, ..EngineOptions::default() }).await;
    let text = std::fs::read_to_string(fixtures().join("llama-tiny/expected.json")).unwrap();
    let expected: serde_json::Value = serde_json::from_str(&text).unwrap();
    let ids: Vec<u32> = serde_json::from_value(expected["input_ids"][0].clone()).unwrap();
    let want: Vec<f32> = serde_json::from_value(expected["token_logprobs"][0].clone()).unwrap();
    let echo = GenerateRequest { prompt_logprobs: Some(1), ..request(ids.clone(), 1, params(0, 0)) };
    for _ in 0..2 {
        let got = run(&engine, echo.clone()).await;
        assert_eq!(got.prompt.iter().map(|t| t.id).collect::<Vec<_>>(), ids);
        assert_eq!(got.prompt[0].logprob, None);
        for (g, w) in got.prompt[1..].iter().zip(&want) {
            assert!((g.logprob.unwrap() - w).abs() < 1e-4 * w.abs());
            assert!(g.top.len() == 1 && g.top[0].1 >= g.logprob.unwrap());
        }
        assert_eq!(got.tokens[0].len(), 0);
        assert_eq!(got.reasons, [Some(FinishReason::Length)]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_frees_its_slot() {
    let engine = engine(EngineOptions::default()).await;
    let long = request(vec![1, 2, 3], 4, SamplingParams { max_tokens: 60, ..params(1, 60) });
    let generations: Vec<_> =
        futures::future::join_all((0..20).map(|_| engine.generate(long.clone()))).await.into_iter().flatten().collect();
    assert_eq!(generations.len(), 20);
    drop(generations);
    idle(&engine).await;
    assert_eq!(run(&engine, request(vec![5], 1, params(1, 3))).await.tokens[0].len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_never_disturbs_requests_in_flight() {
    let engine = engine(EngineOptions::default()).await;
    let r = request((0..20).collect(), 1, params(3, 40));
    let before = run(&engine, r.clone()).await;
    let in_flight = engine.generate(r.clone()).await.unwrap();
    let b = version("b", "llama-tied-tiny");
    engine.load(&b).await.unwrap();
    engine.activate(&b.id).await.unwrap();
    assert_eq!(engine.active().unwrap().version.id, b.id);
    assert_eq!(in_flight.version.version.id.as_str(), "a");
    assert_eq!(collect(in_flight, 1).await, before);
    let after = engine.generate(r.clone()).await.unwrap();
    assert_eq!(after.version.version.id, b.id);
    assert_ne!(collect(after, 1).await.tokens, before.tokens);
    engine.activate(&ModelVersionId::from("a")).await.unwrap();
    assert_eq!(run(&engine, r).await, before, "rolled back");
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_beyond_the_limit_are_unloaded_once_they_have_answered() {
    let engine = engine(EngineOptions { max_loaded: 1, ..EngineOptions::default() }).await;
    let r = request((0..20).collect(), 1, params(3, 40));
    let in_flight = engine.generate(r.clone()).await.unwrap();
    let b = version("b", "llama-tied-tiny");
    engine.load(&b).await.unwrap();
    engine.activate(&b.id).await.unwrap();
    let loaded = || engine.loaded().iter().map(|m| m.version.id.to_string()).collect::<Vec<_>>();
    assert_eq!(loaded(), ["b"]);
    let got = collect(in_flight, 1).await;
    assert_eq!((got.failed, got.tokens[0].len()), (None, 40));
    let old = GenerateRequest { version: Some("a".into()), ..r.clone() };
    assert!(matches!(engine.generate(old).await, Err(EngineError::UnknownModel(_))));
    // The scheduler of the old version is gone, and with it its cache.
    let of_one = eventually(LONG, "one cache", async || {
        let got = run(&engine, r.clone()).await;
        assert_eq!(got.tokens[0].len(), 40);
        idle(&engine).await;
        let all = engine.stats().kv_tokens_total;
        (all == 64 * 64).then_some(())
    });
    of_one.await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_are_refused_before_any_work() {
    let engine = engine(EngineOptions { max_waiting: 0, ..EngineOptions::default() }).await;
    let refused = |r: GenerateRequest| async { engine.generate(r).await.err().unwrap() };
    let param = |e: EngineError| match e {
        EngineError::BadRequest { param, .. } | EngineError::TooLong { param, .. } => param,
        other => panic!("{other:?}"),
    };
    assert_eq!(param(refused(request(vec![], 1, params(0, 1))).await), "prompt");
    assert_eq!(param(refused(request(vec![96], 1, params(0, 1))).await), "prompt");
    assert_eq!(param(refused(request(vec![1], 1, params(0, 64))).await), "max_tokens");
    assert_eq!(param(refused(request(vec![1], 0, params(0, 1))).await), "n");
    let bias =
        SamplingParams { warpers: Warpers { logit_bias: vec![(96, 1.0)], ..Warpers::default() }, ..params(0, 1) };
    assert_eq!(param(refused(request(vec![1], 1, bias)).await), "logit_bias");
    assert!(matches!(refused(request(vec![1], 1, params(0, 1))).await, EngineError::Overloaded { .. }));
    let unknown = GenerateRequest { version: Some("nope".into()), ..request(vec![1], 1, params(0, 1)) };
    assert!(matches!(refused(unknown).await, EngineError::UnknownModel(_)));
    engine.drain(Duration::from_secs(1)).await;
    assert_eq!(refused(request(vec![1], 1, params(0, 1))).await, EngineError::Draining);
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_strings_and_minimum_lengths() {
    let engine = engine(EngineOptions::default()).await;
    let free = run(&engine, request(vec![7, 8, 9], 1, params(5, 12))).await;
    let words: Vec<&str> = free.text[0].split_whitespace().collect();
    assert_eq!(words.len(), 12, "WordLevel text has one word per token: {:?}", free.text[0]);
    let stop = |min_tokens| SamplingParams { stop: vec![words[4].to_owned()], min_tokens, ..params(5, 12) };
    let first = words.iter().position(|w| w.starts_with(words[4])).unwrap();
    let stopped = run(&engine, request(vec![7, 8, 9], 1, stop(0))).await;
    assert_eq!(stopped.reasons, [Some(FinishReason::Stop)]);
    assert_eq!(stopped.text[0].split_whitespace().collect::<Vec<_>>(), words[..first]);
    let later = run(&engine, request(vec![7, 8, 9], 1, stop(12))).await;
    assert!(later.tokens[0].len() >= 12);
}

//! The scheduler under random company: every sample ends once, budgets hold, nothing leaks, nobody starves.

use std::sync::Arc;

use instructd::domain::{ModelKind, ModelVersion};
use instructd::engine::{
    EngineError, EngineOptions, FinishReason, GenEvent, GenerateRequest, Generator, LocalEngine, SamplingParams,
};
use proptest::prelude::*;

use crate::store::fixture;
use crate::support;

/// One client: what it asks for, and after how many events it leaves (never, when `None`).
#[derive(Clone, Debug)]
struct Client {
    prompt: Vec<u32>,
    n: usize,
    max_tokens: usize,
    leaves_after: Option<usize>,
}

/// The tiny Llama reads at most this many tokens.
const CONTEXT: usize = 64;
/// Pages for two full contexts: many clients must wait and give way.
const KV_TOKENS: usize = 2 * CONTEXT;
const MAX_RUNNING: usize = 4;
const MAX_WAITING: usize = 16;

fn client() -> impl Strategy<Value = Client> {
    let prompt = prop_oneof![
        // Prefixes that are shared, and some that are not.
        (1usize..40).prop_map(|n| (0..n as u32).collect::<Vec<_>>()),
        prop::collection::vec(0u32..90, 1..40),
    ];
    (prompt, 1usize..4, 0usize..24, prop::option::weighted(0.3, 0usize..6))
        .prop_map(|(prompt, n, max_tokens, leaves_after)| Client { prompt, n, max_tokens, leaves_after })
}

async fn engine() -> Arc<LocalEngine> {
    let options = EngineOptions {
        max_running: MAX_RUNNING,
        max_waiting: MAX_WAITING,
        prefill_tokens: 16,
        kv_tokens: KV_TOKENS,
        ..EngineOptions::default()
    };
    let engine = LocalEngine::start(options).unwrap();
    let uri = support::fixture("llama-tiny").display().to_string();
    let version = ModelVersion { artifact_uri: uri, ..fixture::model("tiny", ModelKind::Policy) };
    engine.load(&version).await.unwrap();
    engine.activate(&version.id).await.unwrap();
    engine
}

/// Returns whether the request was admitted.
async fn ask(engine: &LocalEngine, client: Client, seed: u64) -> bool {
    let params = SamplingParams { max_tokens: client.max_tokens, seed, ignore_eos: true, ..SamplingParams::default() };
    let request = GenerateRequest {
        request_id: "r".into(),
        version: None,
        prompt_ids: client.prompt,
        n: client.n,
        params,
        prompt_logprobs: None,
        prompt_from: 0,
        soft_prompt: None,
        background: false,
    };
    let mut generation = match engine.generate(request).await {
        Ok(generation) => generation,
        Err(EngineError::Overloaded { .. }) => return false,
        Err(other) => panic!("{other}"),
    };
    let mut ended = vec![None; client.n];
    let mut tokens = vec![0; client.n];
    let mut events = 0;
    loop {
        if client.leaves_after.is_some_and(|n| events >= n) {
            return true;
        }
        let Some(event) = generation.events.recv().await else { break };
        events += 1;
        match event {
            GenEvent::Delta { index, tokens: new, .. } => {
                assert!(ended[index].is_none(), "a token after the end");
                tokens[index] += new.len();
            }
            GenEvent::Finish { index, reason } => assert!(ended[index].replace(reason).is_none(), "two ends"),
            GenEvent::Failed { error } => panic!("every request fits alone, yet: {error}"),
            GenEvent::Prompt { .. } | GenEvent::Usage { .. } => {}
        }
    }
    assert!(ended.iter().all(|e| *e == Some(FinishReason::Length)), "{ended:?}");
    assert!(tokens.iter().all(|n| *n == client.max_tokens), "{tokens:?} of {}", client.max_tokens);
    true
}

async fn crowd(clients: Vec<Client>) {
    let engine = engine().await;
    let asked: Vec<_> = clients
        .into_iter()
        .enumerate()
        .map(|(i, client)| {
            let engine = engine.clone();
            tokio::spawn(async move { ask(&engine, client, i as u64).await })
        })
        .collect();
    let watching = {
        let engine = engine.clone();
        tokio::spawn(async move {
            loop {
                let stats = engine.stats();
                assert!(stats.running <= MAX_RUNNING + 3 * MAX_RUNNING, "{stats:?}");
                assert!(stats.kv_tokens_used <= stats.kv_tokens_total, "{stats:?}");
                tokio::task::yield_now().await;
            }
        })
    };
    for one in asked {
        one.await.unwrap();
    }
    assert!(!watching.is_finished(), "a budget did not hold");
    watching.abort();
    // Those who left are noticed at the next step; then nothing is held but prefixes, which give way: two full
    // contexts at once are the whole cache.
    let full =
        |from: u32| Client { prompt: (from..from + 40).collect(), n: 1, max_tokens: CONTEXT - 40, leaves_after: None };
    let (a, b) = tokio::join!(ask(&engine, full(0), 1), ask(&engine, full(50), 2));
    assert!(a && b);
    while engine.stats().running + engine.stats().waiting > 0 {
        tokio::task::yield_now().await;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_sample_ends_and_nothing_leaks(clients in prop::collection::vec(client(), 1..16)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(crowd(clients));
    }
}

/// A request that needs the whole cache waits among short ones that never stop coming, and is served.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_request_is_not_starved_by_small_ones() {
    let engine = engine().await;
    let small = |seed: u64| Client { prompt: vec![seed as u32 % 90; 3], n: 1, max_tokens: 3, leaves_after: None };
    let crowd: Vec<_> = (0..6)
        .map(|i| {
            let engine = engine.clone();
            tokio::spawn(async move {
                for round in 0u64.. {
                    ask(&engine, small(i * 1000 + round), round).await;
                }
            })
        })
        .collect();
    for _ in 0..5 {
        let large = Client { prompt: (0..40).collect(), n: 3, max_tokens: CONTEXT - 40, leaves_after: None };
        while !ask(&engine, large.clone(), 7).await {}
    }
    for one in &crowd {
        assert!(!one.is_finished(), "a small request failed");
        one.abort();
    }
}

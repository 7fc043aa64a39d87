//! Guessed tokens change no text: the same tokens and log-probs for the same seed, with guesses and without, alone and in
//! company, for every family and exact format.

use std::sync::Arc;

use instructd::engine::{EngineOptions, GenerateRequest, Generator, LocalEngine, SamplingParams};
use instructd::generation::Warpers;
use instructd::ops::kv_blocks::KvFormat;
use instructd::ops::linear::WeightFormat;

use super::{engine, idle, params, request, requests, run, version};
use crate::support::eventually::{LONG, eventually};

async fn of(name: &str, options: EngineOptions) -> Arc<LocalEngine> {
    let engine = LocalEngine::start(options).unwrap();
    let v = version("v", name);
    engine.load(&v).await.unwrap();
    engine.activate(&v.id).await.unwrap();
    engine
}

/// Texts that repeat themselves, which is where guesses are made: low temperatures, few tokens to draw from.
fn repeating(n: u64) -> Vec<GenerateRequest> {
    (0..n)
        .map(|i| {
            let cycle = 2 + i as u32 % 5;
            let prompt = (0..18).map(|t| 3 + (t % cycle) * 7 + i as u32 % 11).collect();
            let temperature = [0.0, 0.2, 0.7, 1.0][i as usize % 4];
            let more = SamplingParams {
                warpers: Warpers {
                    temperature,
                    repetition_penalty: if i % 7 == 3 { 1.2 } else { 1.0 },
                    frequency_penalty: if i % 7 == 5 { 0.3 } else { 0.0 },
                    logit_bias: if i % 3 == 0 { vec![(10, 40.0), (17, 40.0)] } else { Vec::new() },
                    ..Warpers::default()
                },
                stop: if i % 6 == 1 { vec!["t17".into()] } else { Vec::new() },
                min_tokens: (i % 4) as usize,
                ignore_eos: i % 2 == 0,
                ..params(i, 3 + (i % 30) as usize)
            };
            request(prompt, 1 + (i % 3) as usize, more)
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn drafts_change_no_text() {
    let mut guessed = [0, 0];
    for name in crate::support::DECODERS {
        for (weights, kv_format) in [(WeightFormat::F32, KvFormat::F32), (WeightFormat::Q8_0, KvFormat::Q8_0)] {
            let formats = EngineOptions { weights, kv_format, ..EngineOptions::default() };
            let plain = of(name, formats.clone()).await;
            let all: Vec<_> = repeating(24).into_iter().chain(requests()).collect();
            let mut want = Vec::new();
            for r in &all {
                want.push(run(&plain, r.clone()).await);
            }
            for (draft_tokens, kv_tokens, max_running) in [(1, 0, 64), (5, 0, 64), (16, 260, 6)] {
                let options = EngineOptions { draft_tokens, kv_tokens, max_running, ..formats.clone() };
                let drafting = of(name, options).await;
                for (i, r) in all.iter().enumerate().filter(|_| kv_tokens == 0) {
                    assert_eq!(
                        run(&drafting, r.clone()).await,
                        want[i],
                        "{name} {weights:?} {draft_tokens}: request {i}"
                    );
                }
                let together = futures::future::join_all(all.iter().map(|r| run(&drafting, r.clone()))).await;
                for (i, got) in together.into_iter().enumerate() {
                    assert_eq!(got, want[i], "{name} {weights:?} {draft_tokens}, together: request {i}");
                }
                idle(&drafting).await;
                let stats = drafting.stats();
                assert!(stats.draft_tokens_right <= stats.draft_tokens);
                guessed[0] += stats.draft_tokens;
                guessed[1] += stats.draft_tokens_right;
                eventually(LONG, "no page of a rejected guess", async || {
                    (drafting.stats().kv_tokens_used == 0).then_some(())
                })
                .await;
            }
            assert_eq!(plain.stats().draft_tokens, 0);
        }
    }
    assert!(guessed[1] > 500, "right guesses: {guessed:?}");
    assert!(guessed[0] > guessed[1], "wrong guesses: {guessed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn drafts_use_spare_slots_only() {
    // With one place there is no room for a guess.
    let full = engine(EngineOptions { draft_tokens: 8, max_running: 1, ..EngineOptions::default() }).await;
    for r in repeating(8) {
        run(&full, GenerateRequest { n: 1, ..r }).await;
    }
    assert_eq!(full.stats().draft_tokens, 0);
}

/// Asks for six texts that may wait, then for six others, of an engine with two places. Returns how many of the first
/// ended before the last of the others, and holds all of them against what they are alone.
async fn overtaken(alone: &LocalEngine) -> usize {
    let crowded = engine(EngineOptions { max_running: 2, kv_tokens: 320, ..EngineOptions::default() }).await;
    let ask = |i: u64, background| {
        let prompt = (0..10).map(|t| (t * 5 + i as u32) % 90).collect();
        GenerateRequest { background, ..request(prompt, 1, params(i, 40)) }
    };
    let (ended, mut ends) = tokio::sync::mpsc::unbounded_channel();
    let mut tasks = Vec::new();
    for i in 0..12u64 {
        let background = i < 6;
        let (ended, generation) = (ended.clone(), crowded.generate(ask(i, background)).await.unwrap());
        tasks.push(tokio::spawn(async move {
            let got = super::collect(generation, 1).await;
            ended.send(background).unwrap();
            got
        }));
    }
    drop(ended);
    for (i, task) in tasks.into_iter().enumerate() {
        assert_eq!(
            task.await.unwrap(),
            run(alone, ask(i as u64, false)).await,
            "request {i}: giving way changes nothing"
        );
    }
    let mut order = Vec::new();
    while let Some(background) = ends.recv().await {
        order.push(background);
    }
    let last = order.iter().rposition(|background| !background).unwrap();
    order[..last].iter().filter(|background| **background).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn background_requests_yield() {
    let alone = engine(EngineOptions::default()).await;
    // The first six may be done before the others are asked for, where the machine is busy; not every time.
    let mut fewest = usize::MAX;
    for _ in 0..8 {
        fewest = fewest.min(overtaken(&alone).await);
    }
    assert!(fewest <= 1, "those that may wait ended before others: {fewest}");
}

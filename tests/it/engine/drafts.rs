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
    let formats = [(WeightFormat::F32, KvFormat::F32), (WeightFormat::Q8_0, KvFormat::Q8_0)];
    for (family, name) in crate::support::DECODERS.iter().enumerate() {
        // Neither formats nor the number of drafts depend on the family: every third one tries all of them.
        let all_settings = family % 3 == 0;
        for (weights, kv_format) in formats.into_iter().take(1 + usize::from(all_settings)) {
            let formats = EngineOptions { weights, kv_format, ..EngineOptions::default() };
            let plain = of(name, formats.clone()).await;
            let all: Vec<_> = repeating(24).into_iter().chain(requests()).collect();
            let want = futures::future::join_all(all.iter().map(|r| run(&plain, r.clone()))).await;
            let settings = [(1, 0, 64), (5, 0, 64), (16, 260, 6)];
            for (draft_tokens, kv_tokens, max_running) in settings.into_iter().skip(usize::from(!all_settings)) {
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

/// A draft model drafts for `served`, with at most `draft_tokens` tokens.
async fn drafted_by(draft: &str, served: &str, options: EngineOptions) -> Arc<LocalEngine> {
    let engine = of(served, options).await;
    engine.load_draft_model(&version("d", draft)).await.unwrap();
    engine
}

/// The texts of `engine` are those of `plain`, alone and together, and no page stays in use. Returns the numbers of
/// drafted and accepted tokens.
async fn changes_no_text(plain: &LocalEngine, engine: &LocalEngine, name: &str) -> (u64, u64) {
    let all: Vec<_> = repeating(24).into_iter().chain(requests()).collect();
    let want = futures::future::join_all(all.iter().map(|r| run(plain, r.clone()))).await;
    for (i, r) in all.iter().enumerate() {
        assert_eq!(run(engine, r.clone()).await, want[i], "{name}: request {i}");
    }
    let together = futures::future::join_all(all.iter().map(|r| run(engine, r.clone()))).await;
    for (i, got) in together.into_iter().enumerate() {
        assert_eq!(got, want[i], "{name}, together: request {i}");
    }
    idle(engine).await;
    eventually(LONG, "no page of a rejected draft", async || (engine.stats().kv_tokens_used == 0).then_some(())).await;
    let stats = engine.stats();
    (stats.draft_tokens, stats.draft_tokens_right)
}

#[tokio::test(flavor = "multi_thread")]
async fn drafts_of_a_model_change_no_text() {
    for name in crate::support::DECODERS {
        let plain = of(name, EngineOptions::default()).await;
        // The model itself draws what the sampler draws. Tokens drafted past the end of a text are not accepted.
        let same = drafted_by(name, name, EngineOptions { draft_tokens: 4, ..EngineOptions::default() }).await;
        let (drafted, accepted) = changes_no_text(&plain, &same, name).await;
        assert!(accepted <= drafted && accepted * 2 > drafted, "{name}: {accepted} of {drafted}");
        // Little memory and few places: samples are preempted, and drafts give way.
        let crowded = EngineOptions { draft_tokens: 7, kv_tokens: 260, max_running: 6, ..EngineOptions::default() };
        let other = if name == "llama-tiny" { "qwen2-tiny" } else { "llama-tiny" };
        let drafting = drafted_by(other, name, crowded).await;
        let (drafted, accepted) = changes_no_text(&plain, &drafting, name).await;
        assert!(drafted > accepted, "{name} by {other}: {accepted} of {drafted}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draft_model_has_the_tokens_of_the_served_one() {
    let options = EngineOptions { draft_tokens: 4, ..EngineOptions::default() };
    let engine = of("llama-tiny", options).await;
    let tokenizer = crate::support::byte_level(&["<|im_end|>"], &[]);
    let other = crate::support::random_model(&tokenizer, &serde_json::json!({}), 0);
    let mut unlike = version("d", "llama-tiny");
    unlike.artifact_uri = other.path().display().to_string();
    let refused = engine.load_draft_model(&unlike).await.unwrap_err().to_string();
    assert!(refused.contains("'d' cannot draft tokens for 'v': token id 0 is"), "{refused}");
    // A request is answered without drafts of it.
    run(&engine, request(vec![1, 2, 3], 1, params(1, 9))).await;
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

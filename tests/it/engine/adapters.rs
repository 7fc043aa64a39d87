//! Soft prompts in the engine: the numbers of a plain forward pass, several at once, none for a wrong base;
//! and prompt log-probs from the middle of a prompt, read over a shared prefix.

use candle_core::{Device, Tensor};
use instructd::domain::ModelKind;
use instructd::engine::{EngineError, EngineOptions, GenerateRequest, Generator, SoftPrompts};
use instructd::model::adapters::soft_prompt::SoftPromptInfo;
use instructd::model::{self, Decoder, PackedBatch, Purpose, SoftPrompt};

use super::{engine, params, request, run, version};
use crate::support::{fixture, noise};

const BASE_SHA: &str = "5eed";

/// A soft prompt of `n` noisy rows for a model of width `d`, saved in `dir`.
fn saved(dir: &std::path::Path, n: usize, d: usize, seed: u64) -> SoftPrompt {
    let vectors = Tensor::from_vec(noise(n * d, seed), (n, d), &Device::Cpu).unwrap();
    let info = SoftPromptInfo { base_model: "a".into(), base_sha256: BASE_SHA.into(), n_tokens: n, hidden_size: d };
    let soft = SoftPrompt { info, vectors };
    soft.save(dir).unwrap();
    soft
}

/// log p of every prompt token after the soft prompt, by one plain forward pass over the whole sequence.
fn plain(fixture_name: &str, soft: &SoftPrompt, prompt: &[u32]) -> Vec<f32> {
    let loaded = model::load(&fixture(fixture_name), &Device::Cpu).unwrap();
    let decoder = Decoder::new(&loaded.config, &loaded.weights, Purpose::Train).unwrap();
    let hidden = decoder.forward_soft(&soft.vectors, &PackedBatch::new(&[prompt])).unwrap();
    let hidden = hidden.narrow(0, soft.info.n_tokens - 1, prompt.len()).unwrap();
    decoder.token_logprobs(&hidden, prompt, 1.0).unwrap().logprobs.to_vec1().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn served_logprobs_are_those_of_a_plain_forward_pass() {
    for name in crate::support::DECODERS {
        // Seven rows a step: the soft prompt itself comes in pieces.
        let engine = engine(EngineOptions { prefill_tokens: 7, ..EngineOptions::default() }).await;
        let mut base = version("b", name);
        base.sha256 = BASE_SHA.into();
        let served = engine.load(&base).await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let width = model::describe(&fixture(name)).unwrap().config.hidden_size;
        let mut softs = Vec::new();
        for (i, n) in [5usize, 20, 1].into_iter().enumerate() {
            let path = dir.path().join(i.to_string());
            softs.push(saved(&path, n, width, i as u64 + 1));
            let mut v = version(&format!("soft{i}"), name);
            (v.kind, v.artifact_uri) = (ModelKind::PromptAdapter, path.display().to_string());
            assert_eq!(engine.load_soft_prompt(&v, &served).await.unwrap(), n);
        }
        let prompt: Vec<u32> = (0..23).map(|i| (i * 7 + 3) % 90).collect();
        let ask = |adapter: Option<usize>| GenerateRequest {
            version: Some(base.id.clone()),
            soft_prompt: adapter.map(|i| format!("soft{i}").into()),
            prompt_logprobs: Some(0),
            ..request(prompt.clone(), 2, params(3, 6))
        };
        let mut alone = Vec::new();
        for adapter in [None, Some(0), Some(1), Some(2)] {
            alone.push(run(&engine, ask(adapter)).await);
        }
        for (i, soft) in softs.iter().enumerate() {
            let got: Vec<f32> = alone[i + 1].prompt.iter().map(|t| t.logprob.unwrap()).collect();
            let want = plain(name, soft, &prompt);
            assert_eq!(got.len(), want.len(), "the first prompt token has a soft prompt before it");
            for (g, w) in got.iter().zip(&want) {
                assert!((g - w).abs() < 1e-4, "{name}, adapter {i}: {g} and {w}");
            }
        }
        assert_eq!(alone[0].prompt[0].logprob, None);
        // All at once, twice: one batch mixes adapters, the second round reads cached prefixes.
        for round in 0..2 {
            let order = [Some(2), None, Some(0), Some(1), None, Some(2)];
            let all = order.map(|a| {
                let quiet = GenerateRequest { prompt_logprobs: None, ..ask(a) };
                let engine = &engine;
                async move { (a, run(engine, quiet).await) }
            });
            for (adapter, got) in futures::future::join_all(all).await {
                let want = &alone[adapter.map_or(0, |i| i + 1)];
                assert_eq!(got.tokens, want.tokens, "{name}, adapter {adapter:?}, round {round}");
            }
        }
        assert_ne!(alone[1].tokens, alone[0].tokens);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_soft_prompt_for_another_base_is_refused() {
    let engine = engine(EngineOptions::default()).await;
    let served = engine.active().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut v = version("soft", "llama-tiny");
    v.artifact_uri = dir.path().display().to_string();
    let missing = engine.load_soft_prompt(&v, &served).await.unwrap_err();
    assert!(matches!(&missing, EngineError::Failed(m) if m.contains("soft_prompt.json")), "{missing}");
    saved(dir.path(), 4, 64, 1);
    let wrong = engine.load_soft_prompt(&v, &served).await.unwrap_err();
    assert!(
        matches!(&wrong, EngineError::BadRequest { param: "prompt_adapter", message } if message.contains(BASE_SHA)),
        "{wrong}"
    );
    // A file whose tensor is not what its description says.
    let facts = std::fs::read_to_string(dir.path().join("soft_prompt.json")).unwrap();
    std::fs::write(dir.path().join("soft_prompt.json"), facts.replace("\"n_tokens\": 4", "\"n_tokens\": 5")).unwrap();
    assert!(SoftPrompt::load(dir.path(), &Device::Cpu).is_err());
    let unknown = GenerateRequest { soft_prompt: Some("nope".into()), ..request(vec![1], 1, params(0, 1)) };
    assert!(matches!(engine.generate(unknown).await, Err(EngineError::BadRequest { param: "prompt_adapter", .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn prompt_logprobs_from_the_middle_are_the_same_bits() {
    let engine = engine(EngineOptions { prefill_tokens: 9, ..EngineOptions::default() }).await;
    let prompt: Vec<u32> = (0..50).map(|i| (i * 11 + 5) % 90).collect();
    let ask = |from: usize| GenerateRequest {
        prompt_logprobs: Some(0),
        prompt_from: from,
        ..request(prompt.clone(), 1, params(1, 0))
    };
    let whole = run(&engine, ask(0)).await.prompt;
    assert_eq!(whole.len(), prompt.len());
    for from in [1, 15, 16, 17, 33, 49, 50] {
        let part = run(&engine, ask(from)).await.prompt;
        assert_eq!(part, whole[from..], "from {from}");
    }
    // The shared pages were read, not computed again: 48 of 50 tokens lie in full pages, 32 before token 33.
    let before = engine.stats().prompt_tokens;
    run(&engine, ask(33)).await;
    assert_eq!(engine.stats().prompt_tokens - before, 18);
}

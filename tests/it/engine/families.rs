//! Every family served: company, chunks, shared prefixes and preemption change nothing, and log-probs of prompts are
//! those of a plain forward pass.

use candle_core::{Device, Tensor};
use instructd::engine::{EngineOptions, Generator, LocalEngine};
use instructd::model::{Decoder, PackedBatch, Purpose, load};
use instructd::ops::kv_blocks::KvFormat;

use super::{Collected, collect, idle, on_device, params, request, requests, run, version};
use crate::support::{DECODERS, fixture};

async fn engine(name: &str, options: EngineOptions) -> std::sync::Arc<LocalEngine> {
    let engine = LocalEngine::start(on_device(options)).unwrap();
    let v = version("a", name);
    engine.load(&v).await.unwrap();
    engine.activate(&v.id).await.unwrap();
    engine
}

/// log p of every token of a prompt but the first.
fn plain(name: &str, prompt: &[u32]) -> Vec<f32> {
    let loaded = load(&fixture(name), &Device::Cpu).unwrap();
    let decoder = Decoder::new(&loaded.config, &loaded.weights, Purpose::Train).unwrap();
    let hidden = decoder.forward(&PackedBatch::new(&[prompt])).unwrap().narrow(0, 0, prompt.len() - 1).unwrap();
    let logprobs: Tensor = decoder.token_logprobs(&hidden, &prompt[1..], 1.0).unwrap().logprobs;
    logprobs.to_vec1().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_family_is_batch_invariant() {
    batch_invariant(KvFormat::F32, 1e-4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_family_is_batch_invariant_with_a_cache_in_f16() {
    batch_invariant(KvFormat::F16, F16_TOLERANCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_family_is_batch_invariant_with_a_cache_in_q8_0() {
    batch_invariant(KvFormat::Q8_0, Q8_TOLERANCE).await;
}

/// Largest differences of a prompt's log-probs from those of a cache in f32, in nats.
const F16_TOLERANCE: f32 = 0.04;
const Q8_TOLERANCE: f32 = 0.5;

/// Answers are the same alone and in any batch, and log-probs are within `tolerance` of a forward pass in f32; the same
/// bits where the cache stores f32.
async fn batch_invariant(kv_format: KvFormat, tolerance: f32) {
    let of_the_format = EngineOptions { kv_format, ..EngineOptions::default() };
    let on_cpu = on_device(EngineOptions::default()).devices == ["cpu"];
    if !on_cpu && kv_format != KvFormat::F32 {
        println!("skipped: {} is a format of the CPU's cache", kv_format.as_str());
        return;
    }
    let mut farthest = 0f32;
    for name in DECODERS {
        let alone = engine(name, EngineOptions { max_running: 1, prefill_tokens: 1000, ..of_the_format.clone() }).await;
        let mut want: Vec<Collected> = Vec::new();
        for r in requests() {
            want.push(run(&alone, r).await);
        }
        // Little memory: samples give way and are computed again.
        let little = EngineOptions { max_running: 5, prefill_tokens: 16, kv_tokens: 160, ..of_the_format.clone() };
        // Enough, but not for all in windowed layers: they give up prefixes.
        let windows = EngineOptions { max_running: 2, prefill_tokens: 7, kv_tokens: 4096, ..of_the_format.clone() };
        let crowd = engine(name, little).await;
        for (crowd, rounds) in [(&crowd, 1), (&engine(name, windows).await, 2)] {
            for round in 0..rounds {
                let mut waiting = Vec::new();
                for r in requests() {
                    let n = r.n;
                    waiting.push((n, crowd.generate(r).await.unwrap()));
                }
                for (i, (n, generation)) in waiting.into_iter().enumerate() {
                    let got = collect(generation, n).await;
                    assert_eq!(got.failed, None, "{name}, request {i}, round {round}");
                    assert_eq!(got, want[i], "{name}, request {i}, round {round}");
                }
                idle(crowd).await;
            }
        }

        let prompt: Vec<u32> = (0..37u32).map(|i| (i * 7 + 3) % 90).collect();
        let asked =
            instructd::engine::GenerateRequest { prompt_logprobs: Some(0), ..request(prompt.clone(), 1, params(3, 2)) };
        let got: Vec<f32> = run(&crowd, asked).await.prompt[1..].iter().map(|t| t.logprob.unwrap()).collect();
        let want = plain(name, &prompt);
        if on_cpu && kv_format == KvFormat::F32 {
            assert_eq!(got, want, "{name}");
        }
        assert_eq!(got.len(), want.len());
        let far = got.iter().zip(&want).map(|(g, w)| (g - w).abs()).fold(0f32, f32::max);
        println!("{name} in {}: log-probs within {far:.1e}", kv_format.as_str());
        assert!(far < tolerance, "{name}: {far}");
        farthest = farthest.max(far);
    }
    assert_eq!(farthest > 0.0, kv_format != KvFormat::F32 || !on_cpu, "the format is used");
}

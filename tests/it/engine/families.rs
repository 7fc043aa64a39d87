//! Every family served: company, chunks, shared prefixes and preemption change nothing, and log-probs of prompts are
//! those of a plain forward pass.

use candle_core::{Device, Tensor};
use instructd::engine::{EngineOptions, Generator, LocalEngine};
use instructd::model::{Decoder, PackedBatch, Purpose, load};

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
    for name in DECODERS {
        let alone =
            engine(name, EngineOptions { max_running: 1, prefill_tokens: 1000, ..EngineOptions::default() }).await;
        let mut want: Vec<Collected> = Vec::new();
        for r in requests() {
            want.push(run(&alone, r).await);
        }
        // Little memory: samples give way and are computed again.
        let little = EngineOptions { max_running: 5, prefill_tokens: 16, kv_tokens: 160, ..EngineOptions::default() };
        // Enough, but not for all in windowed layers: they give up prefixes.
        let windows = EngineOptions { max_running: 2, prefill_tokens: 7, kv_tokens: 4096, ..EngineOptions::default() };
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
        if on_device(EngineOptions::default()).device == "cpu" {
            assert_eq!(got, want, "{name}");
        }
        assert_eq!(got.len(), want.len());
        for (g, w) in got.iter().zip(&want) {
            assert!((g - w).abs() < 1e-4, "{name}: {g} and {w}");
        }
    }
}

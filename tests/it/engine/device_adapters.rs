//! LoRA versions over one base on simulated devices: those of the CPU but for rounding, the same tokens on every replica
//! and in any company, and memory for the factors alone.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use instructd::domain::ModelVersion;
use instructd::engine::{EngineError, EngineOptions, GenerateRequest, Generator, LocalEngine, device};
use instructd::ops::linear::WeightFormat;

use super::device_encoders::embedded;
use super::device_rewards::{reward, scores};
use super::lora_versions::{ask, family, options};
use super::{collect, idle, run};
use crate::support::devices::{self, Control};
use crate::support::eventually::{LONG, eventually};
use crate::support::{fixture, write_reward_model};

/// A base and three LoRA versions of it, in `dir`.
fn versions(dir: &Path) -> Vec<ModelVersion> {
    family(&fixture("llama-tiny"), dir)
}

async fn serving(all: &[ModelVersion], options: EngineOptions) -> Arc<LocalEngine> {
    let engine = LocalEngine::start(options).unwrap();
    for version in all {
        engine.load(version).await.unwrap();
    }
    engine.activate(&all[0].id).await.unwrap();
    engine
}

fn sims(n: usize) -> Vec<String> {
    vec!["sim".to_owned(); n]
}

#[tokio::test(flavor = "multi_thread")]
async fn adapters_on_devices_are_those_of_the_cpu_on_every_replica_and_in_any_company() {
    let dir = tempfile::tempdir().unwrap();
    let all = versions(dir.path());
    let cpu = serving(&all, options(&all, true)).await;
    for (weights, tolerance) in [(WeightFormat::F32, 2e-4), (WeightFormat::Bf16, 0.15), (WeightFormat::Q8_0, 0.3)] {
        let own = |n| EngineOptions { devices: sims(n), weights, ..options(&all, true) };
        let alone = serving(&all, EngineOptions { max_running: 1, prefill_tokens: 1000, ..own(1) }).await;
        for version in &all {
            let echo = GenerateRequest { prompt_logprobs: Some(0), ..ask(version, 1, 1) };
            let of = |c: super::Collected| c.prompt.iter().filter_map(|t| t.logprob).collect::<Vec<_>>();
            let (want, got) = (of(run(&cpu, echo.clone()).await), of(run(&alone, echo).await));
            assert_eq!(want.len(), got.len());
            for (want, got) in want.iter().zip(&got) {
                assert!((want - got).abs() < tolerance, "{weights:?} {}: {want}, {got} on a device", version.id);
            }
        }
        let asked: Vec<_> = all.iter().cycle().take(16).enumerate().map(|(i, v)| ask(v, i as u64 % 9, 2)).collect();
        let mut want = Vec::new();
        for request in &asked {
            want.push(run(&alone, request.clone()).await);
        }
        let different: Vec<_> = all.iter().enumerate().map(|(i, _)| &want[i].tokens).collect();
        assert!(different.windows(2).all(|pair| pair[0] != pair[1]), "the adapters do something");
        // Few places and pages: chunks of prompts, preemption, prefixes of each version.
        let few = EngineOptions { max_running: 5, kv_tokens: 208, prefill_tokens: 7, ..own(2) };
        let crowded = serving(&all, few).await;
        for round in 0..2 {
            let got = futures::future::join_all(asked.iter().map(|request| run(&crowded, request.clone()))).await;
            for (i, got) in got.iter().enumerate() {
                assert_eq!(*got, want[i], "{weights:?}, request {i}, round {round}");
            }
        }
        idle(&crowded).await;
        assert_eq!(crowded.stats().kv_tokens_used, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn promotions_of_adapters_load_and_free_their_factors_alone() {
    let dir = tempfile::tempdir().unwrap();
    let all = versions(dir.path());
    let options = EngineOptions { devices: sims(2), max_loaded: 1, ..options(&all, true) };
    let engine = serving(&all[..1], options).await;
    let used = || engine.devices().iter().map(|device| device.models.used).collect::<Vec<_>>();
    let free = || engine.devices().iter().map(|device| device.models.total - device.models.used).collect::<Vec<_>>();
    let (base, room) = (used(), free());
    // A request of the base goes on while a version is promoted, and the version answers when it is active.
    let long = |version: &ModelVersion| {
        let mut request = ask(version, 2, 1);
        request.params.max_tokens = 30;
        request
    };
    let want = run(&engine, long(&all[0])).await;
    let running = engine.generate(long(&all[0])).await.unwrap();
    let mut sizes = Vec::new();
    for version in &all[1..] {
        engine.load(version).await.unwrap();
        engine.activate(&version.id).await.unwrap();
        let active = GenerateRequest { version: None, ..long(version) };
        assert_eq!(run(&engine, active).await, run(&engine, long(version)).await, "{}", version.id);
        let more: Vec<u64> = used().iter().zip(&base).map(|(now, base)| now - base).collect();
        assert!(more[0] == more[1] && more[0] > 0 && more[0] < base[0] / 2, "{}: {more:?} beside {base:?}", version.id);
        assert_eq!(free(), [room[0] - more[0], room[1] - more[1]]);
        sizes.push(more[0]);
    }
    // Each replaced the one before it: the second has the largest rank, the last the smallest.
    assert!(sizes[1] > sizes[0] && sizes[2] <= sizes[0], "{sizes:?}");
    assert_eq!(collect(running, 1).await, want);
    let gone = engine.generate(long(&all[1])).await;
    assert!(matches!(gone, Err(EngineError::UnknownModel(_))));
    // The base stays as long as an adapter needs it.
    assert_eq!(run(&engine, long(&all[0])).await, want);
}

/// An adapter gets the memory of reward models and encoders, which the next request loads again.
#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_adapter_unloads_reward_models_and_encoders_first() {
    let (dir, judge) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let all = versions(dir.path());
    write_reward_model("llama-tiny", judge.path());
    let judge = reward(judge.path());
    let engine = serving(&all[..1], EngineOptions { devices: sims(1), ..options(&all, true) }).await;
    let used = || engine.devices()[0].models.used;
    let base = used();
    let want = (scores(&engine, &judge).await.unwrap(), embedded(&engine).await.unwrap());
    let with = used();
    engine.load(&all[1]).await.unwrap();
    let adapter = used() - base;
    assert!(adapter > 0 && base + adapter < with, "{base}, {with} with a reward model and an encoder, {adapter}");
    assert_eq!((scores(&engine, &judge).await.unwrap(), embedded(&engine).await.unwrap()), want);
    assert_eq!(used(), with + adapter);
    // A version that is in memory is not loaded again.
    engine.load(&all[1]).await.unwrap();
    assert_eq!(used(), with + adapter);
}

/// A device without room for an adapter refuses it by name; all else goes on, and it can be loaded later.
#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_is_loaded_on_all_devices_or_refused() {
    static CONTROLS: [Control; 2] = [Control::new(), Control::new()];
    let open: device::Open = |name| devices::open(name, &CONTROLS);
    let dir = tempfile::tempdir().unwrap();
    let all = versions(dir.path());
    let engine = serving(&all[..1], EngineOptions { devices: sims(2), open, ..options(&all, true) }).await;
    let want = run(&engine, ask(&all[0], 1, 1)).await;
    CONTROLS[1].full.store(true, SeqCst);
    let error = engine.load(&all[1]).await.unwrap_err().to_string();
    assert!(error.contains("loading 'l0': sim:1: the device has 0 bytes free"), "{error}");
    let loaded: Vec<_> = engine.loaded().iter().map(|model| model.version.id.to_string()).collect();
    assert_eq!(loaded, ["b"]);
    CONTROLS[1].full.store(false, SeqCst);
    assert_eq!(run(&engine, ask(&all[0], 1, 1)).await, want);

    engine.load(&all[1]).await.unwrap();
    let own = run(&engine, ask(&all[1], 1, 1)).await;
    assert!(own.failed.is_none() && own.tokens != want.tokens);
    // A device that fails ends the requests of adapters like others, and serves them again.
    CONTROLS.iter().for_each(|control| control.broken.store(true, SeqCst));
    assert!(run(&engine, ask(&all[1], 1, 1)).await.failed.is_some());
    let error = engine.load(&all[2]).await.unwrap_err().to_string();
    assert!(error.contains("loading 'l1': sim:0: sim:0 is broken"), "{error}");
    CONTROLS.iter().for_each(|control| control.broken.store(false, SeqCst));
    eventually(LONG, "an answer", async || (run(&engine, ask(&all[1], 1, 1)).await == own).then_some(())).await;
    engine.load(&all[2]).await.unwrap();
    assert!(run(&engine, ask(&all[2], 1, 1)).await.failed.is_none());
}

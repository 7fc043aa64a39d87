//! Rollouts through the client of vLLM's wire format, from servers that run the built-in engine with pushed adapters.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use candle_core::{Device, Tensor};
use instructd::config::UpstreamConfig;
use instructd::generation::Warpers;
use instructd::jobs::upstream::{FleetGenerator, generator};
use instructd::model::adapters::{lora, peft};
use instructd::model::{self, Decoder, LoraConfig, PackedBatch, Purpose};
use instructd::train::TrainOutcome;
use instructd::train::remote::{GenParams, RemoteGenerator, Sample};
use serde_json::json;

use crate::api::token_server::{Fault, TokenServer};
use crate::loop_closes::world::World;
use crate::support::{Recorder, noise};
use crate::train::recipes::{rl, with};

fn config(servers: &[&Arc<TokenServer>]) -> UpstreamConfig {
    UpstreamConfig {
        url: Some(servers[0].url.clone()),
        replicas: servers[1..].iter().map(|server| server.url.clone()).collect(),
        kind: "vllm".into(),
        push: Some("vllm".into()),
        health_seconds: 1,
        retries: 1,
        // A server whose streams break ends its requests early, so it is the least busy one until the breaker opens.
        breaker_failures: 3,
        breaker_pause_seconds: 1,
        ..UpstreamConfig::default()
    }
}

/// Writes an adapter as a run that has trained it would.
fn adapter(dir: &Path, seed: u64) {
    let loaded = model::load(Path::new(&World::model()), &Device::Cpu).unwrap();
    let config = LoraConfig { rank: 4, alpha: 8.0, targets: Vec::new() };
    let mut adapters = lora::init(&loaded.config, &config, &loaded.weights, seed).unwrap();
    for (i, (_, b)) in adapters.iter_mut().filter(|(name, _)| name.ends_with("lora_B.weight")).enumerate() {
        let values: Vec<f32> = noise(b.elem_count(), seed + i as u64).into_iter().map(|v| v * 0.05).collect();
        *b = Tensor::from_vec(values, b.dims(), &Device::Cpu).unwrap();
    }
    peft::write(dir, &loaded.config, &config, &adapters, &loaded.weights, "tiny").unwrap();
}

/// The log-probs of a response by the base weights with the adapter added to them.
fn expected(dir: &Path, prompt: &[u32], response: &[u32]) -> Vec<f32> {
    let loaded = model::load(Path::new(&World::model()), &Device::Cpu).unwrap();
    let merged = peft::read(dir, &loaded.config).unwrap().merge(&loaded.config, &loaded.weights).unwrap();
    let decoder = Decoder::new(&loaded.config, &merged, Purpose::Serve).unwrap();
    let all = [prompt, response].concat();
    let hidden = decoder.forward(&PackedBatch::new(&[all.as_slice()])).unwrap();
    let hidden = hidden.narrow(0, prompt.len() - 1, response.len()).unwrap();
    decoder.token_logprobs(&hidden, response, 1.0).unwrap().logprobs.to_vec1().unwrap()
}

fn params() -> GenParams {
    GenParams { max_new_tokens: 12, warpers: Warpers::default(), eos_ids: vec![2], seed: 5, ..GenParams::default() }
}

fn generate(fleet: &dyn RemoteGenerator, version: u64, prompts: &[Vec<u32>]) -> Vec<Sample> {
    fleet.generate(version, prompts, &params(), &|| false).unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_version_writes_with_its_own_logprobs() {
    let server = TokenServer::with_adapters(Path::new(&World::model())).await;
    let check = move || {
        let dirs = [1, 2, 3].map(|seed| {
            let dir = tempfile::tempdir().unwrap();
            adapter(dir.path(), seed * 100);
            dir
        });
        let fleet = FleetGenerator::connect(&config(&[&server]), Path::new(&World::model())).unwrap();
        let prompts: Vec<Vec<u32>> = (5..15).map(|i| vec![i, i + 1, i + 2]).collect();
        let mut written = Vec::new();
        for (version, dir) in dirs.iter().enumerate() {
            fleet.load(version as u64, dir.path()).unwrap();
            // The version before the newest one is still there.
            for (number, dir) in dirs.iter().enumerate().take(version + 1).skip(version.saturating_sub(1)) {
                let samples = generate(&fleet, number as u64, &prompts);
                for (prompt, sample) in prompts.iter().zip(&samples) {
                    assert_eq!(sample.finished, sample.ids.last() == Some(&2));
                    assert!(sample.finished || sample.ids.len() == 12);
                    for (a, b) in sample.logprobs.iter().zip(expected(dir.path(), prompt, &sample.ids)) {
                        assert!((a - b).abs() < 1e-4, "version {number}: {a} and {b}");
                    }
                }
                assert!(samples.windows(2).any(|pair| pair[0].ids != pair[1].ids), "each response is drawn by itself");
                written.push(samples);
            }
        }
        assert_eq!(written[0], written[1], "a version's responses follow from the seed");
        assert_ne!(written[1], written[2]);
        assert_eq!(server.adapters().len(), 2, "earlier versions are unloaded");
        assert!(fleet.generate(0, &prompts, &params(), &|| false).unwrap_err().to_string().contains("version 0"));
        assert!(fleet.generate(2, &prompts, &params(), &|| true).unwrap().is_none(), "stopped");
        drop(fleet);
        assert!(server.adapters().is_empty(), "nothing stays loaded after the run");
    };
    tokio::task::spawn_blocking(check).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_replica_costs_no_response() {
    let model = World::model();
    let [first, second] =
        [TokenServer::with_adapters(Path::new(&model)).await, TokenServer::with_adapters(Path::new(&model)).await];
    let check = move || {
        let dir = tempfile::tempdir().unwrap();
        adapter(dir.path(), 7);
        let fleet = FleetGenerator::connect(&config(&[&first, &second]), Path::new(&World::model())).unwrap();
        fleet.load(0, dir.path()).unwrap();
        let prompts: Vec<Vec<u32>> = (5..25).map(|i| vec![i, i + 1]).collect();
        let whole = generate(&fleet, 0, &prompts);
        let both = [&first, &second].map(|server| server.answers.load(SeqCst));
        assert!(both.iter().all(|answers| *answers > 2), "{both:?}: the check at the start is two answers");
        // Streams of one server end in the middle: the responses are generated elsewhere.
        second.fail(Some(Fault::Cut));
        assert_eq!(generate(&fleet, 0, &prompts), whole);
        second.fail(Some(Fault::Down));
        assert_eq!(generate(&fleet, 0, &prompts), whole);
        fleet.load(1, dir.path()).unwrap();
        assert_eq!(generate(&fleet, 1, &prompts), whole, "the same adapter under another version");
        assert_eq!((first.adapters().len(), second.adapters().len()), (2, 1));
        first.fail(Some(Fault::Down));
        let error = format!("{:#}", fleet.load(2, dir.path()).unwrap_err());
        assert!(error.contains("no upstream server serves it"), "{error}");
        // It is back, and gets what it missed.
        second.fail(None);
        let started = std::time::Instant::now();
        while second.adapters().len() < 2 && started.elapsed() < crate::support::eventually::LONG {
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        assert_eq!(generate(&fleet, 1, &prompts), whole);
    };
    tokio::task::spawn_blocking(check).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_learns_from_what_the_servers_write() {
    let server = TokenServer::with_adapters(Path::new(&World::model())).await;
    let run = move || {
        let world = World::new();
        let args = with(
            &rl(&world, "fleet"),
            json!({"lora": {"rank": 4}, "rollouts": "upstream", "rollout_staleness": 1, "iterations": 3}),
        );
        let upstream = config(&[&server]);
        let mut recorder =
            Recorder { generator: generator(Some(&upstream), &World::model()).unwrap(), ..Recorder::default() };
        let outcome = (instructd::train::recipe("ppo").unwrap().run)(&args, &mut recorder).unwrap();
        assert!(matches!(outcome, TrainOutcome::Done { .. }));
        assert_eq!(recorder.curve("rollout_staleness"), [0.0, 1.0, 1.0]);
        let gaps = recorder.curve("sampling_gap");
        assert!(gaps[0] < 1e-4 && gaps[1..].iter().all(|gap| *gap > 1e-4), "{gaps:?}");
        assert_eq!(recorder.curve("importance_weight").len(), 3);
    };
    tokio::task::spawn_blocking(run).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_cannot_write_rollouts_are_refused() {
    let server = TokenServer::with_adapters(Path::new(&World::model())).await;
    let check = move || {
        let refused = |config: &UpstreamConfig| {
            let error = FleetGenerator::connect(config, Path::new(&World::model())).err().unwrap();
            format!("{error:#}")
        };
        let without = UpstreamConfig { push: None, ..config(&[&server]) };
        assert!(refused(&without).contains("upstream.push = \"vllm\""));
        let kind = UpstreamConfig { kind: "openai".into(), ..config(&[&server]) };
        assert!(refused(&kind).contains("no token ids"));
        server.fail(Some(Fault::OtherTokenizer));
        assert!(refused(&config(&[&server])).contains("its tokenizer is another"));
        assert!(generator(Some(&UpstreamConfig::default()), &World::model()).unwrap().is_none());
    };
    tokio::task::spawn_blocking(check).await.unwrap();
}

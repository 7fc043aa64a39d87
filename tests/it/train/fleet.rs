//! Rollouts by other servers, with a generator in this process that samples from the pushed adapters: an exact generator
//! gives the local run, a batch generated ahead is one update old, and a resumed run generates it again.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use candle_core::Device;
use instructd::generation::generate;
use instructd::model::adapters::peft;
use instructd::model::{self, Decoder, Purpose};
use instructd::train::TrainOutcome;
use instructd::train::remote::{GenParams, RemoteGenerator, Sample};
use serde_json::{Value, json};

use super::recipes::{rl, with};
use crate::loop_closes::world::{World, train};
use crate::support::Recorder;

/// What a generator was told, in order.
#[derive(Clone, Debug, PartialEq)]
enum Told {
    Load(u64),
    Generate(u64, Vec<Vec<u32>>),
}

/// Samples as a local run does, from the base weights with the pushed adapter added to them.
struct Exact {
    model: String,
    versions: Mutex<Vec<(u64, PathBuf)>>,
    told: Mutex<Vec<Told>>,
    /// Added to every log-prob that it reports.
    error: f32,
}

impl Exact {
    fn new(error: f32) -> Arc<Self> {
        Arc::new(Self { model: World::model(), versions: Mutex::default(), told: Mutex::default(), error })
    }

    fn generated(&self) -> Vec<u64> {
        let told = self.told.lock().unwrap();
        told.iter()
            .filter_map(|told| if let Told::Generate(version, _) = told { Some(*version) } else { None })
            .collect()
    }

    fn loaded(&self) -> Vec<u64> {
        let told = self.told.lock().unwrap();
        told.iter().filter_map(|told| if let Told::Load(version) = told { Some(*version) } else { None }).collect()
    }
}

impl RemoteGenerator for Exact {
    fn load(&self, version: u64, adapter: &Path) -> Result<()> {
        self.told.lock().unwrap().push(Told::Load(version));
        self.versions.lock().unwrap().push((version, adapter.to_owned()));
        Ok(())
    }

    fn generate(
        &self,
        version: u64,
        prompts: &[Vec<u32>],
        params: &GenParams,
        stop: &(dyn Fn() -> bool + Sync),
    ) -> Result<Option<Vec<Sample>>> {
        self.told.lock().unwrap().push(Told::Generate(version, prompts.to_vec()));
        let versions = self.versions.lock().unwrap().clone();
        let (_, dir) = versions.iter().rev().find(|(known, _)| *known == version).context("an unknown version")?;
        let loaded = model::load(Path::new(&self.model), &Device::Cpu)?;
        let merged = peft::read(dir, &loaded.config)?.merge(&loaded.config, &loaded.weights)?;
        let decoder = Decoder::new(&loaded.config, &merged, Purpose::Serve)?;
        let mut samples = generate(&decoder, prompts, params, &|| stop())?;
        samples.iter_mut().flat_map(|sample| &mut sample.logprobs).for_each(|logprob| *logprob += self.error);
        Ok(Some(samples).filter(|_| !stop()))
    }
}

fn args(world: &World, out: &str) -> Value {
    with(&rl(world, out), json!({"lora": {"rank": 4}, "iterations": 4, "minibatches": 2, "ppo_epochs": 2}))
}

fn upstream(staleness: u64) -> Value {
    json!({"rollouts": "upstream", "rollout_staleness": staleness})
}

fn run(recipe: &str, args: &Value, generator: &Arc<Exact>, stop_after: Option<u64>) -> (Recorder, TrainOutcome) {
    let mut recorder = Recorder { generator: Some(generator.clone()), stop_after, ..Recorder::default() };
    let outcome = (instructd::train::recipe(recipe).unwrap().run)(args, &mut recorder).unwrap();
    (recorder, outcome)
}

#[test]
fn an_exact_fleet_gives_the_local_run() {
    let world = World::new();
    for (recipe, more) in [("ppo", json!({})), ("rloo", json!({"group_size": 2})), ("raft", json!({}))] {
        let base = with(&args(&world, recipe), more);
        let (local, _) = train(recipe, &base);
        let generator = Exact::new(0.0);
        let (fleet, _) = run(recipe, &with(&base, upstream(0)), &generator, None);
        assert_eq!(generator.loaded(), [0, 1, 2, 3], "{recipe}");
        assert_eq!(generator.generated(), [0, 1, 2, 3], "{recipe}");
        // The generator adds the adapter to the weights; the local run computes its term apart: rounding differs.
        for name in ["reward", "kl", "entropy", "response_length", "grad_norm"] {
            let (local, fleet) = (local.curve(name), fleet.curve(name));
            assert_eq!((local.len(), fleet.len()), (4, 4), "{recipe} {name}");
            for (a, b) in local.iter().zip(&fleet) {
                assert!((a - b).abs() <= 1e-4 * (1.0 + a.abs()), "{recipe} {name}: {local:?} and {fleet:?}");
            }
        }
        assert_eq!(fleet.curve("rollout_staleness"), [0.0; 4], "{recipe}");
        assert!(fleet.curve("sampling_gap").iter().all(|gap| *gap < 1e-4), "{recipe}");
        assert!(local.curve("rollout_staleness").is_empty());
        let weights = fleet.curve("importance_weight");
        assert!(weights.iter().all(|weight| (weight - 1.0).abs() < 1e-4), "{recipe}: {weights:?}");
    }
}

#[test]
fn a_gap_of_the_generator_is_measured_and_corrected() {
    let world = World::new();
    let args = with(&args(&world, "gap"), upstream(0));
    let args = with(&args, json!({"sampler_correction": "token_truncate", "sampler_correction_cap": 1.0}));
    // Too small log-probs: every ratio is above 1, and truncated to it.
    let (low, _) = run("ppo", &args, &Exact::new(-0.05), None);
    assert!(
        low.curve("sampling_gap_mean").iter().all(|gap| (gap - 0.05).abs() < 1e-3),
        "{:?}",
        low.curve("sampling_gap_mean")
    );
    assert_eq!(low.curve("importance_weight"), [1.0; 4]);
    assert_eq!(low.curve("importance_beyond_cap"), [1.0; 4]);
    let (high, _) = run("ppo", &args, &Exact::new(0.05), None);
    let expected = (-0.05f64).exp();
    assert!(high.curve("importance_weight").iter().all(|weight| (weight - expected).abs() < 1e-3));
    // One that another model must have written ends the run.
    let mut recorder = Recorder { generator: Some(Exact::new(0.2)), ..Recorder::default() };
    let error = (instructd::train::recipe("ppo").unwrap().run)(&args, &mut recorder).unwrap_err().to_string();
    assert!(error.contains("0.200 nats") && error.contains("same base model"), "{error}");
}

#[test]
fn a_batch_generated_ahead_is_one_update_old() {
    let world = World::new();
    let args = with(&args(&world, "ahead"), upstream(1));
    let generator = Exact::new(0.0);
    let (run, _) = run("ppo", &args, &generator, None);
    assert_eq!(generator.loaded(), [0, 1, 2, 3]);
    assert_eq!(generator.generated(), [0, 0, 1, 2], "the batch of round n is by version n - 1");
    assert_eq!(run.curve("rollout_staleness"), [0.0, 1.0, 1.0, 1.0]);
    let gaps = run.curve("sampling_gap");
    assert!(gaps[0] < 1e-4 && gaps[1..].iter().all(|gap| *gap > 1e-3), "the update shows as a gap: {gaps:?}");
    let weights = run.curve("importance_weight_max");
    assert!(weights[1..].iter().all(|weight| *weight > 1.0 + 1e-3 && *weight <= 3.0), "{weights:?}");
    assert!(run.curve("start_ratio").iter().all(|ratio| (ratio - 1.0).abs() < 1e-5));
    // An update may be larger than the gap that a generator of the same weights may have.
    let large = with(&args, json!({"learning_rate": 1e-2, "output_dir": world.path("large")}));
    let (run, _) = self::run("ppo", &large, &Exact::new(0.0), None);
    assert!(run.curve("sampling_gap_mean").iter().any(|gap| *gap > 0.1), "{:?}", run.curve("sampling_gap_mean"));
    // The prompts of each round are those of a run that generates nothing ahead.
    let in_time = Exact::new(0.0);
    self::run(
        "ppo",
        &with(&args, json!({"rollout_staleness": 0, "output_dir": world.path("in_time")})),
        &in_time,
        None,
    );
    let prompts = |generator: &Exact| -> Vec<Vec<Vec<u32>>> {
        let told = generator.told.lock().unwrap();
        told.iter()
            .filter_map(|t| if let Told::Generate(_, prompts) = t { Some(prompts.clone()) } else { None })
            .collect()
    };
    assert_eq!(prompts(&generator), prompts(&in_time));
}

#[test]
fn a_resumed_run_generates_the_batch_again_that_was_under_way() {
    let world = World::new();
    let checkpoints = tempfile::tempdir().unwrap();
    let args = with(&args(&world, "resumed"), upstream(1));
    let args = with(&args, json!({"checkpoint_dir": checkpoints.path(), "resume": true}));
    let first = Exact::new(0.0);
    let (_, outcome) = run("ppo", &args, &first, Some(2));
    assert!(matches!(outcome, TrainOutcome::Stopped { checkpoint: Some(_) }), "{outcome:?}");
    let second = Exact::new(0.0);
    let (recorder, outcome) = run("ppo", &args, &second, None);
    assert!(matches!(outcome, TrainOutcome::Done { .. }));
    assert_eq!(second.loaded(), [2, 3]);
    assert_eq!(second.generated(), [2, 2], "round 2 by the weights of the checkpoint, round 3 ahead by the same");
    assert_eq!(recorder.curve("rollout_staleness"), [0.0, 1.0]);
}

#[test]
fn what_a_fleet_cannot_do_is_refused() {
    let world = World::new();
    let args = with(&args(&world, "refused"), upstream(0));
    for (change, field) in [
        (json!({"lora": null}), "rollouts"),
        (json!({"temperature": 0.7}), "temperature"),
        (json!({"numerics": "fast"}), "numerics"),
        (json!({"rollout_staleness": 2}), "rollout_staleness"),
        (json!({"rollouts": "local", "rollout_staleness": 1}), "rollout_staleness"),
    ] {
        let refused = (instructd::train::recipe("ppo").unwrap().validate)(&with(&args, change.clone())).unwrap_err();
        assert_eq!(refused.field, field, "{change}: {refused}");
    }
    let error = super::recipes::fails("ppo", &args);
    assert!(error.contains("[upstream] in config.toml"), "{error}");
}

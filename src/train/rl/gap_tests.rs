//! Tests of the difference between the log-probs of sampler and trainer, with a changed weight in the sampler.

use serde_json::{Value, json};

use super::rollout::{Rollout, RoundMonitor, Sampler};
use super::update::{Experience, Learner, UpdateSummary};
use super::{Algorithm, Ensemble, Reward, RewardServices, Sources};
use crate::data::PromptInput;
use crate::domain::{Metric, Progress};
use crate::model::{self, Decoder, Loaded, Purpose, Weights};
use crate::prompt::{ConversationIds, Texts};
use crate::train::Reporter;
use crate::train::args::{PpoArgs, parse};
use crate::train::optim::Params;
use crate::train::run::{Run, TrainPlan};
use crate::train::sft::backbone_and_output;
use crate::train::token_file::TokenFile;
use crate::train::trainable::{Trainable, with_prefix};
use crate::train::turns::StoredPrompt;

pub(super) struct Silent;

impl Reporter for Silent {
    fn progress(&mut self, _: &Progress) {}
    fn metrics(&mut self, _: &[Metric]) {}
    fn event(&mut self, _: &str, _: Value) {}
    fn should_stop(&self) -> bool {
        false
    }
}

/// A tiny model and the arguments of PPO with a rule.
pub(super) fn tiny(device: &str) -> (Loaded, PpoArgs) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llama-tied-tiny");
    let loaded = model::load(&path, &candle_core::Device::Cpu).unwrap();
    let args = json!({
        "model": path, "output_dir": "unused", "prompts": "unused", "reward": {"kind": "length", "target": 4},
        "rollout_batch_size": 6, "response_length": 6, "minibatches": 1, "ppo_epochs": 1, "critic": "shared",
        "device": device, "learning_rate": 1e-4,
    });
    (loaded, parse(&args).unwrap())
}

/// Prompts of three tokens each, in memory.
pub(super) fn six_prompts() -> Vec<StoredPrompt> {
    let mut file = TokenFile::new(std::path::Path::new("unused"));
    let stored = (5..11u32).map(|i| {
        let (prompt, ids) = (PromptInput::Text(format!("t{i}")), vec![i, i + 1, i + 2]);
        let conversation = ConversationIds { prompt, ids, next: Vec::new() };
        StoredPrompt::keep(conversation, String::new(), None, 64, &mut file).unwrap()
    });
    stored.collect()
}

/// One round and its update; the sampler's weights are the trainer's, but for one that is `nudge` larger.
/// `exact_sampler`: whether updates take the sampler's log-probs, as on the CPU, or those that the trainer computes
/// again.
fn round(nudge: f64, exact_sampler: bool) -> (UpdateSummary, Vec<f64>, Vec<f64>) {
    let (loaded, args) = tiny("cpu");
    let texts = Texts::new(&loaded).unwrap();
    let rl = args.rl();
    let policy = Trainable::<Decoder>::for_run(&loaded.config, backbone_and_output(&loaded), &rl.common).unwrap();
    let mut other: Weights = backbone_and_output(&loaded);
    for (name, weight) in &mut other {
        if name.ends_with("layers.0.mlp.down_proj.weight") {
            *weight = (&*weight + nudge).unwrap();
        }
    }
    let mut behaviour = Decoder::new(&loaded.config, &other, Purpose::Serve).unwrap();
    let reference = policy.reference(&loaded.weights).unwrap();
    let prompts = six_prompts();
    let ensemble = Ensemble { kind: rl.ensemble_reward, doubt: rl.ensemble_doubt };
    let sources =
        Sources { model: None, rule: rl.reward.as_ref(), field: "reward", ensemble, weights: None, for_critic: false };
    let (reward, _) =
        Reward::open(&sources, &rl.common, (&candle_core::Device::Cpu, None), &RewardServices::default()).unwrap();
    let sampler = Sampler {
        args: &rl,
        texts: &texts,
        prompts: &prompts,
        reward: &reward,
        reference: &reference,
        trainer: policy.decoder(),
        exact_sampler,
        max_length: 64,
        group: 1,
        redraws: 0,
        fleet: None,
        activations_for: None,
    };
    let watch = RoundMonitor { stop: &|| false, report: &|_, _| {} };
    let rollout: Rollout = sampler.collect(&mut behaviour, None, 0, &watch).unwrap().unwrap();
    let (sampled, old) = (rollout.sampled.clone(), rollout.logprobs.clone());
    let n = rollout.logprobs.len();
    let algorithm = Algorithm::Reinforce { baseline_rate: 0.1 };
    let params: Params = with_prefix("policy.", &policy.params).collect();
    let plan = TrainPlan {
        recipe: "reinforce",
        args: &args,
        common: rl.common.clone(),
        steps: 1,
        updates_per_step: 1,
        data: std::collections::BTreeMap::new(),
    };
    let mut silent = Silent;
    let mut run = Run::new(plan, &mut silent).unwrap();
    let learner =
        Learner { args: &rl, algorithm: &algorithm, policy: &policy, critic: None, params: &params, ptx: &[] };
    let mut experience = Experience { rollout, advantages: vec![0.5; n], returns: Vec::new(), selection: None };
    (learner.update(&mut run, &mut experience, 0.0).unwrap(), sampled, old)
}

#[test]
fn a_sampler_of_another_policy_is_refused() {
    let gap = |difference: f64| Rollout {
        logprobs: vec![-1.0, -2.0],
        sampled: vec![-1.0 + difference, -2.0],
        ..Rollout::default()
    };
    super::check_gap(&gap(0.19), 3).unwrap();
    let error = super::check_gap(&gap(0.21), 3).unwrap_err().to_string();
    assert!(error.contains("round 3") && error.contains("0.105 nats") && error.contains("`numerics`"), "{error}");
    assert!(super::check_gap(&gap(f64::NAN), 1).is_err());
}

#[test]
fn a_nudged_weight_of_the_sampler_shows_as_a_gap() {
    for exact_sampler in [true, false] {
        let (same, sampled, old) = round(0.0, exact_sampler);
        assert_eq!((same.sampling_gap.max, same.sampling_gap.mean()), (0.0, 0.0), "exact_sampler {exact_sampler}");
        assert_eq!(sampled, old, "kernels of the CPU give the same bits");
        assert_eq!(same.first.mean("ratio"), Some(1.0));
    }
    let (nudged, ..) = round(0.01, true);
    assert!(nudged.sampling_gap.max > 1e-4 && nudged.sampling_gap.mean() > 1e-5, "{:?}", nudged.sampling_gap);
    assert!(nudged.sampling_gap.mean() < nudged.sampling_gap.max);
    // Where log-probs are computed again, ratios start at 1 whatever the sampler did, and the gap says what it did.
    let (again, sampled, old) = round(0.01, false);
    assert_eq!(again.sampling_gap, nudged.sampling_gap);
    assert_eq!(again.first.mean("ratio"), Some(1.0));
    let largest = sampled.iter().zip(&old).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!((largest - again.sampling_gap.max).abs() < 1e-6, "{largest} {:?}", again.sampling_gap);
}

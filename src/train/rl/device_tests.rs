//! A round on a device: its first ratio and KL, and the memory that sampling has taken when log-probs are computed.

use std::cell::RefCell;

use super::gap_tests::{Silent, six_prompts, tiny};
use super::rollout::{RoundMonitor, Sampler};
use super::{Ensemble, Reward, RewardServices, Sources};
use crate::gpu::device::Device;
use crate::gpu::shared::Shared;
use crate::gpu::sim::Sim;
use crate::model::{Decoder, Recompute};
use crate::prompt::Texts;
use crate::train::args::Precision;
use crate::train::on_device::RunDevice;
use crate::train::run::{Run, TrainPlan};
use crate::train::sft::backbone_and_output;
use crate::train::trainable::Trainable;

#[test]
fn sampling_leaves_its_memory_before_log_probs_are_computed() {
    let (mut loaded, args) = tiny("sim");
    let texts = Texts::new(&loaded).unwrap();
    let rl = args.rl();
    let mut policy = Trainable::<Decoder>::for_run(&loaded.config, backbone_and_output(&loaded), &rl.common).unwrap();
    let mut reference = policy.reference(&loaded.weights).unwrap();
    loaded.weights.clear();
    let device = Shared::new(Box::new(Sim::new(64 << 20)));
    let kernels = RunDevice::new(Box::new(device.clone()), Precision::F32, Recompute::None);
    kernels.score(&mut reference).unwrap();
    let plan = TrainPlan {
        recipe: "ppo",
        args: &args,
        common: rl.common.clone(),
        steps: 1,
        updates_per_step: 1,
        data: std::collections::BTreeMap::new(),
    };
    let mut silent = Silent;
    let mut run = Run::new(plan, &mut silent).unwrap();
    kernels.train(&mut run, &mut policy, "policy.").unwrap();
    let prompts = six_prompts();
    let (ensemble, rule) = (Ensemble::default(), rl.reward.as_ref());
    let sources = Sources { model: None, rule, field: "reward", ensemble, weights: None, for_critic: false };
    let services = RewardServices::default();
    let (reward, _) =
        Reward::open(&sources, &rl.common, (&candle_core::Device::Cpu, Some(&kernels)), &services).unwrap();
    let trained = device.memory().0;
    // With redraws a device keeps the cache until the last response.
    for redraws in [0, 1] {
        let sampler = Sampler {
            args: &rl,
            texts: &texts,
            prompts: &prompts,
            reward: &reward,
            reference: &reference,
            trainer: policy.decoder(),
            exact_sampler: false,
            max_length: 64,
            group: 2,
            redraws,
            fleet: None,
            activations_for: None,
        };
        let mut behaviour = sampler.behaviour(&policy, 0).unwrap();
        let sampling = device.memory().0;
        assert!(sampling > trained);
        let seen = RefCell::new(Vec::new());
        let report = |phase: &str, _: Option<(u64, u64)>| seen.borrow_mut().push((phase.to_owned(), device.memory().0));
        let watch = RoundMonitor { stop: &|| false, report: &report };
        let rollout = sampler.collect(&mut behaviour, None, 0, &watch).unwrap().unwrap();
        let at = |phase: &str| seen.borrow().iter().find(|(name, _)| name == phase).unwrap().1;
        assert_eq!(at("scoring"), if redraws == 0 { trained } else { sampling });
        assert_eq!(at("reference"), trained);
        assert_eq!(rollout.logprobs, rollout.reference, "the first KL is 0");
        let gap = rollout.mean_gap();
        assert!(gap < 1e-5, "{gap}");
    }
    // The host has no copy of the reference.
    let error = reference.forward(&crate::model::PackedBatch::new(&[[1u32, 2]])).unwrap_err().to_string();
    assert!(error.contains("on a device"), "{error}");
    drop((reference, policy, run, kernels));
    assert_eq!(device.memory().0, 0);
}

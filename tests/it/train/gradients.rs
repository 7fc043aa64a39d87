//! Every variable that a recipe trains receives a finite gradient that is not zero, in every architecture.

use candle_core::{Device, Tensor};
use instructd::model::heads::reward;
use instructd::model::{Recompute, Trunk, load};
use instructd::objective::causal_lm;
use instructd::train::args::{FrozenPrecision, LoraArgs};
use instructd::train::optim::{AdamConfig, AdamW, Grads, Group, OptimizerInBackward, global_norm};
use instructd::train::step::{Accumulator, PredictionBatch, Sequence};
use instructd::train::trainable::{Freeze, Trainable};

use crate::support::fixture;

pub(super) use crate::support::DECODERS as MODELS;

pub(super) fn sequences() -> Vec<Sequence> {
    vec![Sequence::new(&[5, 6, 7], &[8, 9, 2]), Sequence::new(&[11], &[12, 13, 14, 15, 2])]
}

fn assert_all_flow(model: &str, expected: usize, grads: &Grads) {
    assert!(global_norm(grads).unwrap() > 0.0);
    assert_eq!(grads.len(), expected, "{model}: some variables got no gradient at all");
    for (name, grad) in grads {
        let norm = global_norm(&Grads::from([(name.clone(), grad.clone())])).unwrap();
        assert!(norm > 0.0, "{model}: the gradient of {name} is zero");
    }
}

pub(super) fn language_model_grads(policy: &Trainable) -> Grads {
    let sequences = sequences();
    let picked = PredictionBatch::new(&sequences.iter().collect::<Vec<_>>());
    let hidden = picked.hidden(policy.decoder()).unwrap();
    let logprobs = picked.logprobs(policy.decoder(), &hidden, 1.0).unwrap().logprobs;
    let mut sum = Accumulator::default();
    sum.add(&policy.params, &causal_lm::loss(&logprobs, 8.0).unwrap().0).unwrap();
    sum.grads
}

#[test]
fn full_parameters() {
    for model in MODELS {
        let loaded = load(&fixture(model), &Device::Cpu).unwrap();
        let policy = Trainable::new(&loaded.config, loaded.weights.clone(), None, 0).unwrap();
        assert_all_flow(model, policy.params.len(), &language_model_grads(&policy));
    }
}

#[test]
fn adapters() {
    let lora = LoraArgs { rank: 4, alpha: 8.0, targets: None };
    for model in MODELS {
        let loaded = load(&fixture(model), &Device::Cpu).unwrap();
        let policy = Trainable::new(&loaded.config, loaded.weights.clone(), Some(&lora), 0).unwrap();
        // B starts at zero, which keeps A's gradient at zero for the first step: move B first.
        for (name, var) in policy.params.iter().filter(|(name, _)| name.contains("lora_B")) {
            let noise: Vec<f32> = (0..var.elem_count()).map(|i| ((i + name.len()) as f32).sin() * 0.01).collect();
            var.set(&Tensor::from_vec(noise, var.shape(), &Device::Cpu).unwrap()).unwrap();
        }
        assert_all_flow(model, policy.params.len(), &language_model_grads(&policy));
    }
}

/// The adapters' sum and their merged form are the same function; the base stays as it was.
#[test]
fn merging_adapters_keeps_the_function() {
    let lora = LoraArgs { rank: 4, alpha: 8.0, targets: None };
    for model in MODELS {
        let loaded = load(&fixture(model), &Device::Cpu).unwrap();
        let policy = Trainable::new(&loaded.config, loaded.weights.clone(), Some(&lora), 0).unwrap();
        for var in policy.params.values() {
            let noise: Vec<f32> = (0..var.elem_count()).map(|i| (i as f32 * 0.37).sin() * 0.05).collect();
            var.set(&Tensor::from_vec(noise, var.shape(), &Device::Cpu).unwrap()).unwrap();
        }
        let sequences = sequences();
        let picked = PredictionBatch::new(&sequences.iter().collect::<Vec<_>>());
        let logprobs = |t: &Trainable| -> Vec<f32> {
            let decoder = t.frozen_decoder().unwrap();
            let hidden = picked.hidden(&decoder).unwrap();
            picked.logprobs(&decoder, &hidden, 1.0).unwrap().logprobs.to_vec1().unwrap()
        };
        let merged = Trainable::new(&loaded.config, policy.merged().unwrap(), None, 0).unwrap();
        let base = Trainable::new(&loaded.config, loaded.weights.clone(), None, 0).unwrap();
        let (adapted, merged, base) = (logprobs(&policy), logprobs(&merged), logprobs(&base));
        let distance = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(distance(&adapted, &merged) < 1e-4, "{model}: {}", distance(&adapted, &merged));
        // Multipliers make what a block adds smaller.
        let switches = &loaded.config.switches;
        let least = (1e-2 * switches.residual_scale / switches.logit_divisor) as f32;
        assert!(distance(&adapted, &base) > least, "{model}: the adapters did nothing");
    }
}

#[test]
fn a_score_reaches_every_backbone_variable() {
    for model in MODELS.into_iter().chain(crate::support::ENCODERS) {
        let loaded = load(&fixture(model), &Device::Cpu).unwrap();
        let weights = reward::below(&loaded.config, &loaded.weights);
        let config = reward::headless(&loaded.config);
        let backbone = Trainable::<Trunk>::of(
            &config,
            weights,
            None,
            Freeze::default(),
            Recompute::default(),
            FrozenPrecision::F32,
            0,
        )
        .unwrap();
        let sequences = sequences();
        let picked = PredictionBatch::new(&sequences.iter().collect::<Vec<_>>());
        let head: Vec<f32> = (0..loaded.config.hidden_size).map(|i| (i as f32).cos()).collect();
        let head = Tensor::from_vec(head, (1, loaded.config.hidden_size), &Device::Cpu).unwrap();
        let scores = backbone.model().summaries(&picked.batch, None).unwrap().matmul(&head.t().unwrap()).unwrap();
        let mut sum = Accumulator::default();
        sum.add(&backbone.params, &scores.sqr().unwrap().sum_all().unwrap()).unwrap();
        assert_all_flow(model, backbone.params.len(), &sum.grads);
    }
}

/// Variables are updated in place: a reference that shares their storage would follow the policy.
#[test]
fn a_frozen_decoder_does_not_follow_its_source() {
    let lora = LoraArgs { rank: 4, alpha: 8.0, targets: None };
    for model in MODELS {
        for lora in [None, Some(&lora)] {
            let loaded = load(&fixture(model), &Device::Cpu).unwrap();
            let policy = Trainable::new(&loaded.config, loaded.weights.clone(), lora, 0).unwrap();
            let sequences = sequences();
            let picked = PredictionBatch::new(&sequences.iter().collect::<Vec<_>>());
            let states =
                |d: &instructd::model::Decoder| -> Vec<Vec<f32>> { picked.hidden(d).unwrap().to_vec2().unwrap() };
            let frozen = policy.frozen_decoder().unwrap();
            let (before, before_live) = (states(&frozen), states(policy.decoder()));
            for var in policy.params.values() {
                var.set(&(var.as_detached_tensor() * 1.5).unwrap().affine(1.0, 0.01).unwrap()).unwrap();
            }
            assert!(before == states(&frozen), "{model}: the frozen decoder moved");
            assert!(before_live != states(policy.decoder()), "{model}: the training decoder did not");
        }
    }
}

/// Adapters whose B is not zero, so that every gradient is alive.
pub(super) fn stirred(model: &str, lora: Option<&LoraArgs>, recompute: Recompute) -> Trainable {
    stirred_over(model, lora, recompute, FrozenPrecision::F32)
}

pub(super) fn stirred_over(
    model: &str,
    lora: Option<&LoraArgs>,
    recompute: Recompute,
    precision: FrozenPrecision,
) -> Trainable {
    let loaded = load(&fixture(model), &Device::Cpu).unwrap();
    let policy: Trainable =
        Trainable::of(&loaded.config, loaded.weights, lora, Freeze::default(), recompute, precision, 0).unwrap();
    for (name, var) in policy.params.iter().filter(|(name, _)| name.contains("lora_B")) {
        let noise: Vec<f32> = (0..var.elem_count()).map(|i| ((i + name.len()) as f32).sin() * 0.05).collect();
        var.set(&Tensor::from_vec(noise, var.shape(), &Device::Cpu).unwrap()).unwrap();
    }
    policy
}

pub(super) fn largest(t: &Tensor) -> f32 {
    t.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
}

/// The blocks as one operation and the graph of single operations: the same values and gradients.
#[test]
fn fused_blocks_agree_with_the_graph() {
    let lora = LoraArgs { rank: 4, alpha: 8.0, targets: None };
    for model in MODELS {
        for lora in [None, Some(&lora)] {
            let policy = stirred(model, lora, Recompute::None);
            let sequences = sequences();
            let picked = PredictionBatch::new(&sequences.iter().collect::<Vec<_>>());
            let grads = |hidden: &Tensor| {
                let rows = Tensor::new(picked.rows.as_slice(), &Device::Cpu).unwrap();
                let logprobs = picked.logprobs(policy.decoder(), &hidden.index_select(&rows, 0).unwrap(), 1.0).unwrap();
                let mut sum = Accumulator::default();
                sum.add(&policy.params, &causal_lm::loss(&logprobs.logprobs, 8.0).unwrap().0).unwrap();
                sum.grads
            };
            let fused = policy.decoder().forward(&picked.batch).unwrap();
            let graph = policy.decoder().forward_graph(&picked.batch).unwrap();
            let frozen = policy.decoder().forward_frozen(&picked.batch).unwrap();
            assert!(largest(&(&fused - &frozen).unwrap()) == 0.0, "{model}: a gradient changed the forward pass");
            assert!(largest(&(&fused - &graph).unwrap()) < 1e-5 * largest(&graph), "{model}: values");
            let (fused, graph) = (grads(&fused), grads(&graph));
            assert_eq!(fused.keys().collect::<Vec<_>>(), graph.keys().collect::<Vec<_>>());
            for (name, expected) in &graph {
                let difference = largest(&(&fused[name] - expected).unwrap());
                // Without rotary positions the bias of k shifts all scores alike: its gradient is 0 up to rounding.
                assert!(difference <= 1e-4 * largest(expected) + 1e-7, "{model} {name}: {difference}");
            }
        }
    }
}

/// Frozen matrices in bfloat16: gradients of the adapters come near those of f32, and sampling and reference
/// still compute what the training decoder does, bit for bit.
#[test]
fn bf16_of_frozen_matrices_is_near_f32_and_the_same_for_all() {
    let lora = LoraArgs { rank: 4, alpha: 8.0, targets: None };
    for model in MODELS {
        let half = stirred_over(model, Some(&lora), Recompute::None, FrozenPrecision::Bf16);
        let exact = language_model_grads(&stirred(model, Some(&lora), Recompute::None));
        let rounded = language_model_grads(&half);
        assert_eq!(exact.keys().collect::<Vec<_>>(), rounded.keys().collect::<Vec<_>>());
        let norm = |grads: Grads| global_norm(&grads).unwrap();
        let differences = exact.iter().map(|(name, g)| (name.clone(), (g - &rounded[name]).unwrap())).collect();
        let share = norm(differences) / norm(exact);
        // The models of `families` that were made with larger weights amplify roundings more.
        let most = if model.contains('/') { 0.08 } else { 0.03 };
        assert!(share > 1e-5 && share < most, "{model}: gradients differ by a share of {share}");
        let batch = PredictionBatch::new(&sequences().iter().collect::<Vec<_>>()).batch;
        let states = |d: &instructd::model::Decoder| d.forward(&batch).unwrap();
        let now = states(half.decoder());
        let reference = half.reference(&load(&fixture(model), &Device::Cpu).unwrap().weights).unwrap();
        for other in [half.behaviour().unwrap(), reference] {
            assert!(largest(&(&now - states(&other)).unwrap()) == 0.0, "{model}");
        }
    }
}

/// Computing again what was not kept changes no bit.
#[test]
fn recomputation_changes_no_gradient() {
    let lora = LoraArgs { rank: 4, alpha: 8.0, targets: None };
    for model in MODELS {
        for lora in [None, Some(&lora)] {
            let kept = language_model_grads(&stirred(model, lora, Recompute::None));
            for recompute in [Recompute::Mlp, Recompute::Block] {
                let again = language_model_grads(&stirred(model, lora, recompute));
                for (name, grad) in &kept {
                    assert!(largest(&(grad - &again[name]).unwrap()) == 0.0, "{model} {name} {recompute:?}");
                }
            }
        }
    }
}

/// What sampling's decoder and the reference compute is what the training decoder computes, bit for bit.
#[test]
fn behaviour_and_reference_are_the_policy() {
    let lora = LoraArgs { rank: 4, alpha: 8.0, targets: None };
    for model in MODELS {
        for lora in [None, Some(&lora)] {
            let policy = stirred(model, lora, Recompute::None);
            let batch = PredictionBatch::new(&sequences().iter().collect::<Vec<_>>()).batch;
            let states = |d: &instructd::model::Decoder| d.forward(&batch).unwrap();
            let now = states(policy.decoder());
            let start = load(&fixture(model), &Device::Cpu).unwrap().weights;
            let reference = policy.reference(&start).unwrap();
            for other in [policy.behaviour().unwrap(), reference, policy.frozen_decoder().unwrap()] {
                assert!(largest(&(&now - states(&other)).unwrap()) == 0.0, "{model}");
            }
        }
    }
}

#[test]
fn a_backward_pass_outside_the_accumulator_is_refused() {
    let policy = stirred("llama-tiny", None, Recompute::None);
    let batch = PredictionBatch::new(&sequences().iter().collect::<Vec<_>>()).batch;
    let loss = policy.decoder().forward(&batch).unwrap().sum_all().unwrap();
    assert!(loss.backward().is_err(), "the gradients would go nowhere");
}

/// Updating block by block while gradients are computed is the update with all of them, bit for bit.
#[test]
fn applying_gradients_immediately_gives_the_same_update() {
    for model in MODELS {
        let updated = |at_once: bool| {
            let policy = stirred(model, None, Recompute::None);
            let sequences = sequences();
            let picked = PredictionBatch::new(&sequences.iter().collect::<Vec<_>>());
            let mut adam = AdamW::new(AdamConfig::default(), Group::standard(0.1));
            let mut norms = Vec::new();
            for _ in 0..2 {
                let hidden = picked.hidden(policy.decoder()).unwrap();
                let logprobs = picked.logprobs(policy.decoder(), &hidden, 1.0).unwrap().logprobs;
                let loss = causal_lm::loss(&logprobs, 8.0).unwrap().0;
                if at_once {
                    let mut sum = Accumulator::applying(OptimizerInBackward::begin(adam, &policy.params, 1e-3));
                    sum.add(&policy.params, &loss).unwrap();
                    assert!(sum.grads.is_empty());
                    let (optimizer, norm) = sum.into_optimizer().unwrap().finish();
                    adam = optimizer;
                    norms.push(norm);
                } else {
                    let mut sum = Accumulator::default();
                    sum.add(&policy.params, &loss).unwrap();
                    norms.push(adam.update(&policy.params, &sum.grads, 1e-3, None).unwrap());
                }
            }
            (policy, norms)
        };
        let ((a, norms), (b, expected)) = (updated(true), updated(false));
        for (name, var) in &b.params {
            assert!(largest(&(var.as_tensor() - a.params[name].as_tensor()).unwrap()) == 0.0, "{model} {name}");
        }
        for (norm, expected) in norms.iter().zip(expected) {
            assert!((norm / expected - 1.0).abs() < 1e-9, "{model}: {norm} {expected}");
        }
    }
}

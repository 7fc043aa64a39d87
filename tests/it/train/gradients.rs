//! Every variable that a recipe trains receives a finite gradient that is not zero, in every architecture.

use candle_core::{Device, Tensor};
use instructd::model::{load, reward};
use instructd::objective::causal_lm;
use instructd::train::args::LoraArgs;
use instructd::train::optim::{Grads, global_norm};
use instructd::train::step::{Accumulator, Picked, Sequence};
use instructd::train::trainable::Trainable;

use crate::support::fixture;

const MODELS: [&str; 4] = ["llama-tied-tiny", "llama-tiny", "qwen2-tiny", "gpt2-tiny"];

fn sequences() -> Vec<Sequence> {
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

fn language_model_grads(policy: &Trainable) -> Grads {
    let sequences = sequences();
    let picked = Picked::new(&sequences.iter().collect::<Vec<_>>());
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
        let picked = Picked::new(&sequences.iter().collect::<Vec<_>>());
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
        assert!(distance(&adapted, &base) > 1e-2, "{model}: the adapters did nothing");
    }
}

#[test]
fn a_score_reaches_every_backbone_variable() {
    for model in MODELS {
        let loaded = load(&fixture(model), &Device::Cpu).unwrap();
        let mut weights = loaded.weights.clone();
        weights.remove("lm_head.weight");
        let backbone = Trainable::new(&reward::headless(&loaded.config), weights, None, 0).unwrap();
        let sequences = sequences();
        let picked = Picked::new(&sequences.iter().collect::<Vec<_>>());
        let hidden = backbone.decoder().forward(&picked.batch).unwrap();
        let head: Vec<f32> = (0..loaded.config.hidden_size).map(|i| (i as f32).cos()).collect();
        let head = Tensor::from_vec(head, (1, loaded.config.hidden_size), &Device::Cpu).unwrap();
        let scores = reward::scores_of(&hidden, &picked.batch.last_rows(), &head).unwrap();
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
            let picked = Picked::new(&sequences.iter().collect::<Vec<_>>());
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

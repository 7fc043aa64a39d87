//! Every value of tests/fixtures/importance.json: weights of sampled responses in TRL's four modes, and the losses that
//! they enter through the advantages.

use candle_core::{Device, Tensor};
use instructd::objective::importance::{SamplerCorrection, weights};
use instructd::objective::{grpo, logprobs};
use serde_json::Value;

const TOLERANCE: f64 = 1e-9;

fn load() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/importance.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn list(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

#[track_caller]
fn close(actual: f64, expected: &Value) {
    let expected = expected.as_f64().unwrap();
    assert!((actual - expected).abs() <= TOLERANCE, "{actual} is not {expected}");
}

#[test]
fn importance_weights_and_their_losses_are_those_of_trl() {
    let all = load();
    let lengths: Vec<usize> = list(&all["lengths"]).into_iter().map(|n| n as usize).collect();
    let [sampler, trainer, new, reference] = ["sampler", "trainer", "new", "reference"].map(|name| list(&all[name]));
    let advantages = logprobs::per_token(&list(&all["advantages"]), &lengths);
    let tensor = |values: &[f64]| Tensor::new(values, &Device::Cpu).unwrap();
    let settings = grpo::Settings {
        clip_low: all["low"].as_f64().unwrap(),
        clip_high: all["high"].as_f64().unwrap(),
        level: grpo::RatioLevel::Token,
        surrogate: grpo::Surrogate::Clip,
        beta: all["beta"].as_f64().unwrap(),
    };
    for (name, expected) in all["modes"].as_object().unwrap() {
        let mode: SamplerCorrection = serde_json::from_value(name.as_str().into()).unwrap();
        let found = weights(&trainer, &sampler, &lengths, mode, all["cap"].as_f64().unwrap());
        for (a, e) in found.tokens.iter().zip(expected["tokens"].as_array().unwrap()) {
            close(*a, e);
        }
        assert_eq!(found.tokens.len(), expected["tokens"].as_array().unwrap().len());
        close(found.least, &expected["least"]);
        close(found.mean, &expected["mean"]);
        close(found.greatest, &expected["greatest"]);
        close(found.beyond, &expected["beyond"]);
        // A weight of a token's loss is a factor of its advantage: it is never negative.
        let weighted: Vec<f64> = advantages.iter().zip(&found.tokens).map(|(a, w)| a * w).collect();
        let ones = tensor(&vec![1.0; new.len()]);
        let (old, reference, weighted) = (tensor(&trainer), tensor(&reference), tensor(&weighted));
        let targets = grpo::Targets {
            old: &old,
            reference: &reference,
            advantages: &weighted,
            weights: &ones,
            lengths: &lengths,
        };
        let (loss, _) = grpo::loss(&tensor(&new), &targets, &settings, new.len() as f64).unwrap();
        close(loss.to_scalar::<f64>().unwrap(), &expected["loss"]);
    }
}

//! Adapters as peft keeps them: out of a training run and back onto the base.

use std::path::Path;

use candle_core::{Device, Tensor};
use instructd::model::adapters::peft;
use instructd::model::{Recompute, Weights, load};
use instructd::train::args::LoraArgs;
use serde_json::{Value, json};

use super::super::support::fixture;
use super::gradients::stirred;

fn flat(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn assert_near(got: &Weights, want: &Weights) {
    assert_eq!(got.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>());
    for (name, tensor) in want {
        for (g, w) in flat(&got[name]).iter().zip(flat(tensor)) {
            assert!((g - w).abs() <= 1e-5 * w.abs().max(1.0), "{name}: {g} {w}");
        }
    }
}

fn change(dir: &Path, key: &str, value: Value) {
    let path = dir.join("adapter_config.json");
    let mut about: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    about[key] = value;
    std::fs::write(&path, about.to_string()).unwrap();
}

#[test]
fn adapters_round_trip() {
    for (model, targets) in [
        ("gpt2-tiny", None),
        ("llama-tiny", None),
        ("qwen2-tiny", Some(vec!["q_proj".to_owned(), "down_proj".to_owned()])),
    ] {
        let lora = LoraArgs { rank: 4, alpha: 8.0, targets };
        let policy = stirred(model, Some(&lora), Recompute::default());
        let dir = tempfile::tempdir().unwrap();
        policy.save_adapter(dir.path(), "the-base").unwrap();
        let base = load(&fixture(model), &Device::Cpu).unwrap();
        let adapter = peft::read(dir.path(), &base.config).unwrap();
        assert_eq!(adapter.base.as_deref(), Some("the-base"));
        let merged = adapter.merge(&base.config, &base.weights).unwrap();
        assert_near(&merged, &policy.merged().unwrap());
        let changed = merged.iter().filter(|(name, t)| flat(t) != flat(&base.weights[*name])).count();
        assert!(changed > 1, "{model}: the adapter changes {changed} tensors");

        // Rank-stabilised: the scale is alpha over the root of the rank, twice as much here.
        change(dir.path(), "use_rslora", json!(true));
        change(dir.path(), "lora_alpha", json!(4.0));
        let again = peft::read(dir.path(), &base.config).unwrap().merge(&base.config, &base.weights).unwrap();
        assert_near(&again, &merged);
    }
}

#[test]
fn adapters_of_other_models_are_refused() {
    let policy = stirred("llama-tiny", Some(&LoraArgs { rank: 4, alpha: 8.0, targets: None }), Recompute::default());
    let base = load(&fixture("llama-tiny"), &Device::Cpu).unwrap();
    let fresh = || {
        let dir = tempfile::tempdir().unwrap();
        policy.save_adapter(dir.path(), "base").unwrap();
        dir
    };
    for (key, value, part) in [
        ("peft_type", json!("LOHA"), "LOHA"),
        ("use_dora", json!(true), "use_dora"),
        ("bias", json!("all"), "bias"),
        ("modules_to_save", json!(["lm_head"]), "lm_head"),
        ("r", json!(5), "rank 4"),
        ("rank_pattern", json!({"q_(proj": 4}), "rank_pattern"),
        ("lora_alpha", Value::Null, "lora_alpha"),
    ] {
        let dir = fresh();
        change(dir.path(), key, value);
        let error = peft::read(dir.path(), &base.config).unwrap_err().to_string();
        assert!(error.contains(part), "{key}: {error}");
    }
    let other = load(&fixture("gpt2-tiny"), &Device::Cpu).unwrap();
    let error = peft::read(fresh().path(), &other.config).unwrap().merge(&other.config, &other.weights).unwrap_err();
    assert!(error.to_string().contains("for another model"), "{error}");
    let dir = fresh();
    std::fs::write(dir.path().join("adapter_model.safetensors"), b"damage").unwrap();
    assert!(peft::read(dir.path(), &base.config).is_err());
    let error = peft::read(&fixture("llama-tiny"), &base.config).unwrap_err().to_string();
    assert!(error.contains("not a PEFT adapter"), "{error}");
}

#[test]
fn matrices_of_the_base_in_an_adapter_replace_those_of_the_base() {
    let lora = LoraArgs { rank: 4, alpha: 8.0, targets: Some(vec!["q_proj".to_owned()]) };
    for (model, carried, own) in [
        ("llama-tiny", "base_model.model.lm_head.base_layer.weight", "lm_head.weight"),
        ("llama-tiny", "base_model.model.model.embed_tokens.weight", "model.embed_tokens.weight"),
        ("llama-tied-tiny", "base_model.model.lm_head.weight", "model.embed_tokens.weight"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        stirred(model, Some(&lora), Recompute::default()).save_adapter(dir.path(), "base").unwrap();
        let base = load(&fixture(model), &Device::Cpu).unwrap();
        let path = dir.path().join("adapter_model.safetensors");
        let without = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
        let merge = |matrix: Tensor| {
            let mut tensors = without.clone();
            tensors.insert(carried.to_owned(), matrix);
            candle_core::safetensors::save(&tensors, &path).unwrap();
            let adapter = peft::read(dir.path(), &base.config).unwrap();
            assert!(adapter.carries_base());
            adapter.merge(&base.config, &base.weights)
        };
        let doubled = (&base.weights[own] * 2.0).unwrap();
        let merged = merge(doubled.clone()).unwrap();
        assert_eq!(flat(&merged[own]), flat(&doubled), "{model}, {carried}");
        assert_eq!(merged.len(), base.weights.len());
        let grown = Tensor::cat(&[&doubled, &doubled], 0).unwrap();
        let error = merge(grown).unwrap_err().to_string();
        assert!(error.contains("vocabulary"), "{error}");
    }
}

const SCRIPT: &str = r#"
import json, sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, adapter = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
model = PeftModel.from_pretrained(model, adapter)
model.eval()
with torch.no_grad():
    print(json.dumps(model(torch.tensor([[1, 5, 9, 33, 2, 70]])).logits[0].tolist()))
"#;

/// peft's own logits over the base are those of the merged weights here.
#[test]
fn peft_reads_what_is_written() {
    let python = std::env::var("INSTRUCTD_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    let there = std::process::Command::new(&python).args(["-c", "import peft, transformers, torch"]).output();
    if !there.is_ok_and(|o| o.status.success()) {
        eprintln!("skipped: {python} has no peft");
        return;
    }
    for model in ["gpt2-tiny", "llama-tiny", "qwen2-tiny"] {
        let policy = stirred(model, Some(&LoraArgs { rank: 4, alpha: 8.0, targets: None }), Recompute::default());
        let dir = tempfile::tempdir().unwrap();
        policy.save_adapter(dir.path(), model).unwrap();
        let output = std::process::Command::new(&python)
            .args(["-c", SCRIPT])
            .args([fixture(model).as_path(), dir.path()])
            .output()
            .unwrap();
        assert!(output.status.success(), "{model}: {}", String::from_utf8_lossy(&output.stderr));
        let want: Vec<Vec<f32>> = serde_json::from_slice(&output.stdout).unwrap();
        let merged = policy.frozen_model().unwrap();
        let batch = instructd::model::PackedBatch::new(&[vec![1, 5, 9, 33, 2, 70]]);
        let got: Vec<Vec<f32>> = merged.logits(&merged.forward(&batch).unwrap()).unwrap().to_vec2().unwrap();
        for (g, w) in got.iter().flatten().zip(want.iter().flatten()) {
            assert!((g - w).abs() < 1e-3 * w.abs().max(1.0), "{model}: {g} {w}");
        }
    }
}

//! Model files that tests read.

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use instructd::domain::RewardScore;
use instructd::model::{load, save_dir};
use serde_json::{Value, json};

use super::noise;

/// A file or directory under tests/fixtures.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// The real model that `INSTRUCTD_TEST_GGUF` names; without it the test says that it is skipped.
pub fn smollm2() -> Option<PathBuf> {
    let path = std::env::var_os("INSTRUCTD_TEST_GGUF").map(PathBuf::from);
    if path.is_none() {
        eprintln!("skipped: INSTRUCTD_TEST_GGUF names no SmolLM2-135M-Instruct GGUF");
    }
    path
}

/// Directories of models with expected.json in the one that `INSTRUCTD_TEST_FAMILIES` names; none without it.
pub fn further_models() -> Vec<PathBuf> {
    let Some(root) = std::env::var_os("INSTRUCTD_TEST_FAMILIES") else {
        eprintln!("skipped: INSTRUCTD_TEST_FAMILIES names no directory of models");
        return Vec::new();
    };
    let mut found: Vec<PathBuf> = std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.join("expected.json").is_file());
    found.sort();
    assert!(!found.is_empty(), "INSTRUCTD_TEST_FAMILIES has no model in it");
    found
}

/// A copy of a flat directory that a test may damage.
pub fn copy_dir(from: &Path) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    dir
}

/// Copies the files of a directory into another one, which is made.
pub fn copy_into(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// Writes a model with two random heads over the fixture `name`; `about` becomes instructd.json.
pub fn write_heads(name: &str, dir: &Path, about: &Value) {
    let mut loaded = load(&fixture(name), &Device::Cpu).unwrap();
    let d = loaded.config.hidden_size;
    let head = Tensor::from_vec(noise(2 * d, 5), (2, d), &Device::Cpu).unwrap();
    loaded.weights.insert("score.weight".to_owned(), head);
    let tokenizer = loaded.tokenizer.as_ref();
    save_dir(dir, &loaded.config, &loaded.hf_config, &loaded.weights, tokenizer, None, Some(about)).unwrap();
}

/// Writes an ensemble of two random reward models over the fixture `name`.
pub fn write_reward_model(name: &str, dir: &Path) {
    let about = json!({"kind": "reward", "reward": {"gain": [2.0, 0.5], "bias": [-1.0, 0.25]}});
    write_heads(name, dir, &about);
}

/// Asserts that the difference between scores is at most `tolerance` of them, by Euclidean norms.
pub fn assert_near(want: &[RewardScore], got: &[RewardScore], tolerance: f64, what: &str) {
    let lengths = |scores: &[RewardScore]| scores.iter().map(|score| score.tokens).collect::<Vec<_>>();
    assert_eq!(lengths(want), lengths(got), "{what}");
    let numbers = |scores: &[RewardScore]| scores.iter().flat_map(|score| [score.mean, score.std]).collect::<Vec<_>>();
    let (want, got) = (numbers(want), numbers(got));
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let off = norm(&mut want.iter().zip(&got).map(|(a, b)| a - b)) / norm(&mut want.iter().copied());
    assert!(off <= tolerance, "{what}: {off:.1e} off: {got:?}, not {want:?}");
}

/// A tiny decoder of every family and of every kind of scaling, window and bias, with values from transformers in
/// expected.json.
pub const DECODERS: [&str; 30] = [
    "gpt2-tiny",
    "llama-tiny",
    "llama-tied-tiny",
    "qwen2-tiny",
    "families/gemma",
    "families/gemma2",
    "families/gemma3",
    "families/gemma3-scaled",
    "families/gpt-neox",
    "families/gpt-neox-serial",
    "families/granite",
    "families/granite-llama3",
    "families/llama-dynamic",
    "families/llama-gelu",
    "families/llama-linear-rope",
    "families/llama-mlp-bias",
    "families/llama-yarn",
    "families/llama3-rope",
    "families/mistral-head",
    "families/mistral-window",
    "families/olmo2",
    "families/olmo2-bias",
    "families/phi3",
    "families/phi3-longrope",
    "families/phi4-mini",
    "families/qwen2-window",
    "families/qwen3",
    "families/qwen3-window",
    "families/smollm3",
    "families/smollm3-window",
];

/// A decoder that devices refuse.
pub const ON_CPU_ALONE: &str = "families/llama-relu";

/// The same of encoders.
pub const ENCODERS: [&str; 4] = ["bert-tiny", "families/distilbert", "families/modernbert", "families/roberta"];

/// Those of them with q, k and v, or gate and up, in one matrix, with norms in unusual places or other multipliers:
/// for tests that take long.
pub const UNLIKE: [&str; 7] = [
    "llama-tiny",
    "families/gemma2",
    "families/gemma3",
    "families/gpt-neox",
    "families/granite",
    "families/olmo2",
    "families/phi3",
];

//! Rounds of PPO on a device: sampling by the weights under training, scores, updates.

use candle_core::Device as Candle;
use instructd::domain::{Metric, Progress};
use instructd::model::init::{Heads, init};
use instructd::model::{ModelConfig, save_dir};
use instructd::tokenizer::Tokenizer;
use instructd::train::{Reporter, TrainOutcome, recipe};
use serde_json::{Value, json};

use super::{Table, normals};

/// A tokenizer of 96 words.
const TOKENIZER: &str = include_str!("../../tests/fixtures/llama-tied-tiny/tokenizer.json");

/// Keeps the metrics of a run.
#[derive(Default)]
struct Metrics(Vec<Metric>);

impl Reporter for Metrics {
    fn progress(&mut self, _: &Progress) {}

    fn metrics(&mut self, metrics: &[Metric]) {
        self.0.extend_from_slice(metrics);
    }

    fn event(&mut self, _: &str, _: Value) {}

    fn should_stop(&self) -> bool {
        false
    }
}

impl Metrics {
    fn curve(&self, name: &str) -> Vec<f64> {
        self.0.iter().filter(|m| m.name == name).map(|m| m.value).collect()
    }
}

/// Writes a model with random weights, in the shape of SmolLM2-135M but for its vocabulary.
fn write_model(dir: &std::path::Path, simulated: bool) -> Result<(), String> {
    let (hidden, inner, layers, heads, kv_heads) = if simulated { (96, 160, 2, 6, 2) } else { (576, 1536, 30, 9, 3) };
    let config = json!({
        "model_type": "llama", "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": 96, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 1024, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": true,
        "bos_token_id": 1, "eos_token_id": 2,
    });
    let parsed = ModelConfig::from_hf(&config, None).map_err(|e| e.to_string())?;
    let weights = init(&parsed, Heads::Backbone, &Candle::Cpu, normals()).map_err(|e| e.to_string())?;
    let tokenizer = Tokenizer::from_json(TOKENIZER, None, &[]).map_err(|e| e.to_string())?;
    save_dir(dir, &parsed, &config, &weights, Some(&tokenizer), None, None).map_err(|e| e.to_string())?;
    Ok(())
}

/// The last rounds of a run of PPO, by the metrics that every run reports.
fn ppo(simulated: bool) -> Result<String, String> {
    let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
    let model = dir.path().join("model");
    write_model(&model, simulated)?;
    let prompts: String =
        (0..64).map(|i| json!({"prompt": format!("t{} t{}", 3 + i, 3 + i / 2)}).to_string() + "\n").collect();
    std::fs::write(dir.path().join("prompts.jsonl"), prompts).map_err(|e| e.to_string())?;
    let (batch, length, rounds) = if simulated { (4, 6, 2) } else { (128, 256, 4) };
    let args = json!({
        "model": model, "output_dir": dir.path().join("out"), "prompts": dir.path().join("prompts.jsonl"),
        "device": if simulated { "sim" } else { "cuda" }, "precision": "bf16", "rollout_batch_size": batch,
        "response_length": length, "iterations": rounds, "max_length": 512, "micro_batch_tokens": 16_384,
        "reward": {"kind": "word_share", "words": ["t10", "t11", "t12"]}, "sample_prompts": 0, "learning_rate": 1e-5,
    });
    let mut metrics = Metrics::default();
    let recipe = recipe("ppo").ok_or("no recipe ppo")?;
    match (recipe.run)(&args, &mut metrics).map_err(|e| format!("{e:#}"))? {
        TrainOutcome::Done { .. } => {}
        TrainOutcome::Stopped { .. } => return Err("the run was stopped".to_owned()),
    }
    // The first round compiles the kernels.
    let later = |name: &str| -> Vec<f64> { metrics.curve(name).into_iter().skip(1).collect() };
    let mean = |values: Vec<f64>| values.iter().sum::<f64>() / values.len().max(1) as f64;
    let tokens = batch as f64 * mean(later("response_length"));
    let sampling = mean(later("seconds_generation"));
    let parts = ["reference", "forward", "backward", "optimizer"].map(|part| mean(later(&format!("seconds_{part}"))));
    let ratios = metrics.curve("start_ratio");
    if ratios.is_empty() || ratios.iter().any(|ratio| (ratio - 1.0).abs() > 1e-6) {
        return Err(format!("ratios before the first update of a round are {ratios:?}, not 1"));
    }
    Ok(format!(
        "sampling {:.0} tokens/s; a round of {tokens:.0} tokens takes {:.2} s; log-probs of sampler and trainer differ by {:.1e} nats on average",
        tokens / sampling,
        sampling + parts.iter().sum::<f64>(),
        mean(metrics.curve("sampling_gap_mean")),
    ))
}

/// Adds the phase of PPO to the table.
pub fn phase(table: &mut Table, simulated: bool) {
    table.phase("PPO, bf16", || ppo(simulated));
}

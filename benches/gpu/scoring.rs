//! Reward models on a device, loaded from files: scores against the CPU's, and the same bits alone and in a batch.

use std::path::Path;
use std::time::Instant;

use candle_core::{Device as Candle, Tensor};
use instructd::gpu::device::Device;
use instructd::gpu::shared::Shared;
use instructd::model::decoder::training::{Element, TrainerOptions};
use instructd::model::init::{Heads, init};
use instructd::model::{ModelConfig, Recompute, RewardModel, Trunk, load, open as open_files, save_dir};
use serde_json::{Value, json};

use super::{Table, hf_config, normals, open, prompt};

/// A model of the family `llama`, `bert` or `modernbert`.
fn model(family: &str) -> (Value, ModelConfig) {
    let [hidden, inner, layers, heads, vocab] = [96, 160, 3, 2, 200];
    if family == "llama" {
        return hf_config([hidden, inner, layers, heads, heads, vocab]);
    }
    let config = json!({
        "model_type": family, "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": heads, "vocab_size": vocab, "max_position_embeddings": 2048, "local_attention": 64,
    });
    let read = ModelConfig::from_hf(&config, None).expect("a valid configuration");
    (config, read)
}

/// Writes a reward model with random weights and two heads.
fn write(dir: &Path, family: &str) -> Result<(), String> {
    let (hf, config) = model(family);
    let weights = || -> candle_core::Result<_> {
        let mut weights = init(&config, Heads::Backbone, &Candle::Cpu, normals())?;
        let head: Vec<f32> = (0..2 * config.hidden_size).map(|i| (i as f32 * 0.7).sin()).collect();
        weights.insert("score.weight".to_owned(), Tensor::from_vec(head, (2, config.hidden_size), &Candle::Cpu)?);
        Ok(weights)
    };
    let weights = weights().map_err(|e| e.to_string())?;
    let about = json!({"kind": "reward", "reward": {"gain": [1.0, 1.0], "bias": [0.0, 0.0]}});
    save_dir(dir, &config, &hf, &weights, None, None, Some(&about)).map(drop).map_err(|e| e.to_string())
}

fn scores(simulated: bool, family: &str, element: Element, tolerance: f64) -> Result<String, String> {
    let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
    write(dir.path(), family)?;
    let long = if simulated { 70 } else { 1500 };
    let texts: Vec<Vec<u32>> = [long, 3, 17, 40].into_iter().enumerate().map(|(i, n)| prompt(n, 200, i)).collect();
    let host = load(dir.path(), &Candle::Cpu).map_err(|e| e.to_string())?;
    let host = RewardModel::new(&host).map_err(|e| e.to_string())?;
    let want = host.score(&texts, 4096).map_err(|e| e.to_string())?;
    let device = Shared::new(open(simulated)?);
    let before = device.memory().0;
    let opened = open_files(dir.path()).map_err(|e| e.to_string())?;
    let options = TrainerOptions::new(element, Recompute::None);
    let trunk = Trunk::on_device(&opened, device.clone(), options).map_err(|e| e.to_string())?;
    let heads = opened.into_heads().map_err(|e| e.to_string())?;
    let model = RewardModel::over(trunk, &heads).map_err(|e| e.to_string())?;
    let got = model.score(&texts, 4096).map_err(|e| e.to_string())?;
    let began = Instant::now();
    for (text, score) in texts.iter().zip(&got) {
        if model.score(std::slice::from_ref(text), 4096).map_err(|e| e.to_string())?[0] != *score {
            return Err("a text has other bits alone than in a batch".to_owned());
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    let size = want.iter().map(|v| v.abs()).fold(1.0, f64::max);
    let off = want.iter().zip(&got).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) / size;
    drop(model);
    if device.memory().0 != before {
        return Err("memory is still taken after the model is dropped".to_owned());
    }
    if off > tolerance || off.is_nan() {
        return Err(format!("off by {off:.1e}, more than {tolerance:.0e}"));
    }
    Ok(format!("off by {off:.1e}, equal bits alone and in a batch, {:.1} ms for a text", seconds * 250.0))
}

pub fn phases(table: &mut Table, simulated: bool) {
    for family in ["llama", "bert", "modernbert"] {
        for (element, tolerance) in [(Element::F32, 1e-4), (Element::Bf16, 5e-2)] {
            let phase = format!("rewards of {family}, {}", element.as_str());
            table.phase(&phase, || scores(simulated, family, element, tolerance));
        }
    }
}

//! Low-rank adapters (arXiv 2106.09685): y = Wx + (alpha/rank)·B·A·x, with A random and B zero at the start.

use candle_core::{Result, Tensor};
use rand::RngExt;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::model::{ModelConfig, Weights, quantized};
use crate::ops::linear::WeightLayout;

/// Which linear layers get adapters, and their rank.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoraConfig {
    /// Rank of the adapter.
    #[serde(default = "default_rank")]
    pub rank: usize,
    /// Scale is alpha / rank.
    #[serde(default = "default_alpha")]
    pub alpha: f64,
    /// Last parts of module names (`q_proj`, `down_proj`, `c_attn`…); empty = every linear layer of the blocks.
    #[serde(default)]
    pub targets: Vec<String>,
}

fn default_rank() -> usize {
    16
}

fn default_alpha() -> f64 {
    32.0
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self { rank: default_rank(), alpha: default_alpha(), targets: Vec::new() }
    }
}

impl LoraConfig {
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank as f64
    }

    fn wants(&self, module: &str) -> bool {
        let last = module.rsplit('.').next().unwrap_or(module);
        self.targets.is_empty() || self.targets.iter().any(|t| t == last)
    }
}

/// Names of the modules (without `.weight`) that carry adapters, in name order.
pub fn target_modules(config: &ModelConfig, lora: &LoraConfig, weights: &Weights) -> Vec<String> {
    weights
        .iter()
        .filter(|(name, w)| w.rank() == 2 && is_block_linear(config, name))
        .filter_map(|(name, _)| name.strip_suffix(".weight"))
        .filter(|module| lora.wants(module))
        .map(str::to_owned)
        .collect()
}

/// Checks that every target names a layer, since a misspelt target would silently add no adapter.
///
/// # Errors
/// Names the targets that match nothing, and the available names.
pub fn check_targets(config: &ModelConfig, lora: &LoraConfig, weights: &Weights) -> Result<()> {
    let all = target_modules(config, &LoraConfig { targets: Vec::new(), ..lora.clone() }, weights);
    let names: std::collections::BTreeSet<&str> = all.iter().filter_map(|module| module.rsplit('.').next()).collect();
    let unknown: Vec<String> =
        lora.targets.iter().filter(|t| !names.contains(t.as_str())).map(|t| format!("'{t}'")).collect();
    if !unknown.is_empty() {
        let known = names.into_iter().collect::<Vec<_>>().join(", ");
        candle_core::bail!("lora.targets: {} names no linear layer of this model; it has {known}", unknown.join(", "));
    }
    Ok(())
}

fn is_block_linear(config: &ModelConfig, name: &str) -> bool {
    name.starts_with(config.family().blocks) && name.ends_with(".weight")
}

/// Fresh adapters: `{module}.lora_A.weight` [rank, in] uniform(±√(3/in)) (Kaiming with a = √5, as peft),
/// `{module}.lora_B.weight` [out, rank] zero. Deterministic in `seed`.
pub fn init(config: &ModelConfig, lora: &LoraConfig, weights: &Weights, seed: u64) -> Result<Weights> {
    let mut adapters = Weights::new();
    for (stream, module) in target_modules(config, lora, weights).into_iter().enumerate() {
        let w = &weights[&format!("{module}.weight")];
        let (out, input) = quantized::out_in(config, &format!("{module}.weight"), w)?;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream as u64);
        let bound = 1.0 / (input as f32).sqrt();
        let a: Vec<f32> = (0..lora.rank * input).map(|_| (rng.random::<f32>() * 2.0 - 1.0) * bound).collect();
        let device = w.device();
        adapters.insert(format!("{module}.lora_A.weight"), Tensor::from_vec(a, (lora.rank, input), device)?);
        let zero = Tensor::zeros((out, lora.rank), candle_core::DType::F32, device)?;
        adapters.insert(format!("{module}.lora_B.weight"), zero);
    }
    Ok(adapters)
}

/// (alpha/rank)·B·A, [out, in].
pub(in crate::model) fn delta(lora: &LoraConfig, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    b.detach().matmul(&a.detach())? * lora.scale()
}

/// Base weights with every adapter merged: W + (alpha/rank)·B·A, computed in f32.
pub fn merge(config: &ModelConfig, lora: &LoraConfig, weights: &Weights, adapters: &Weights) -> Result<Weights> {
    let mut merged = weights.clone();
    for (name, a) in adapters {
        let Some(module) = name.strip_suffix(".lora_A.weight") else { continue };
        let Some(b) = adapters.get(&format!("{module}.lora_B.weight")) else {
            candle_core::bail!("adapter {module} has no lora_B");
        };
        let key = format!("{module}.weight");
        let Some(base) = weights.get(&key) else { candle_core::bail!("adapter for unknown module {module}") };
        let mut delta = delta(lora, a, b)?;
        if config.family().layout == WeightLayout::InOut {
            delta = delta.t()?;
        }
        merged.insert(key, (base.detach() + delta)?);
    }
    Ok(merged)
}

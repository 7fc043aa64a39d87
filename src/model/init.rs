//! Initial weights as in GPT-2 (Radford 2019, section 2.3) and BERT: N(0, 0.02), biases 0, norm gains 1, and in
//! pre-norm decoders the projections that write into the residual stream scaled by 1/√(2·layers).

use candle_core::{Device, Result, Tensor};

use super::{Arch, ModelConfig, Weights, names};

const STD: f64 = 0.02;

/// Heads that a new model gets beside its backbone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heads {
    /// What the model type computes with: the output matrix of an untied decoder.
    Backbone,
    /// BERT's masked-LM head as well.
    MaskedLm,
}

/// `normals(i, n)` gives `n` standard normal numbers for tensor number `i`: always the same ones, so that
/// the weights are a function of the configuration and the seed behind it.
pub fn init(
    config: &ModelConfig,
    heads: Heads,
    device: &Device,
    normals: impl Fn(u64, usize) -> Vec<f64>,
) -> Result<Weights> {
    let (d, vocab) = (config.hidden_size, config.vocab_size);
    let mut list = names::backbone(config);
    if config.arch != Arch::Bert && !config.tie_embeddings {
        list.push(("lm_head.weight".into(), vec![vocab, d]));
    }
    if config.arch == Arch::Bert {
        list.push(("bert.pooler.dense.weight".into(), vec![d, d]));
        list.push(("bert.pooler.dense.bias".into(), vec![d]));
    }
    if heads == Heads::MaskedLm {
        list.push(("cls.predictions.transform.dense.weight".into(), vec![d, d]));
        list.push(("cls.predictions.transform.dense.bias".into(), vec![d]));
        list.push(("cls.predictions.transform.LayerNorm.weight".into(), vec![d]));
        list.push(("cls.predictions.transform.LayerNorm.bias".into(), vec![d]));
        list.push(("cls.predictions.bias".into(), vec![vocab]));
    }
    let residual = STD / (2.0 * config.n_layers as f64).sqrt();
    let mut weights = Weights::new();
    for (i, (name, shape)) in (0u64..).zip(list) {
        let tensor = if shape.len() == 1 {
            let value = if is_norm_gain(&name) { 1f32 } else { 0f32 };
            Tensor::full(value, shape, device)?
        } else {
            let std = if writes_residual(config, &name) { residual } else { STD };
            let values: Vec<f32> = normals(i, shape.iter().product()).into_iter().map(|z| (z * std) as f32).collect();
            Tensor::from_vec(values, shape, device)?
        };
        weights.insert(name, tensor);
    }
    Ok(weights)
}

fn is_norm_gain(name: &str) -> bool {
    let norm = |part: &str| part.starts_with("ln_") || part.ends_with("norm") || part.ends_with("LayerNorm");
    name.strip_suffix(".weight").is_some_and(|stem| norm(stem.rsplit('.').next().unwrap_or(stem)))
}

fn writes_residual(config: &ModelConfig, name: &str) -> bool {
    let ends: &[&str] = match config.arch {
        Arch::Gpt2 => &[".attn.c_proj.weight", ".mlp.c_proj.weight"],
        Arch::Llama | Arch::Qwen2 => &[".self_attn.o_proj.weight", ".mlp.down_proj.weight"],
        // Post-norm: the sum is normalised after every block.
        Arch::Bert => &[],
    };
    ends.iter().any(|end| name.ends_with(end))
}

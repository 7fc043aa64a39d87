//! Initial weights as in GPT-2 (Radford 2019, section 2.3) and BERT: N(0, 0.02), biases 0, norm gains 1, and in
//! pre-norm decoders the projections that write into the residual stream scaled by 1/√(2·layers).

use candle_core::{Device, Result, Tensor};

use super::families::{NormKind, Parameter, Pooler, Role, parameters};
use crate::model::{ModelConfig, Weights};

const STD: f64 = 0.02;

/// The heads of a new model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heads {
    /// The heads that the model type needs: the output matrix of an untied decoder.
    Backbone,
    /// Also BERT's masked-LM head.
    MaskedLm,
}

/// `normals(i, n)` returns `n` standard normal numbers for tensor number `i` and must be deterministic, so that the
/// weights are a function of the configuration and the seed.
pub fn init(
    config: &ModelConfig,
    heads: Heads,
    device: &Device,
    normals: impl Fn(u64, usize) -> Vec<f64>,
) -> Result<Weights> {
    let (d, vocab) = (config.hidden_size, config.vocab_size);
    let mut list = parameters(config);
    let mut add = |name: String, shape: &[usize], role| list.push(Parameter { name, shape: shape.to_vec(), role });
    match config.family().encoder_heads() {
        None if config.tie_embeddings => {}
        None => add("lm_head.weight".into(), &[vocab, d], Role::Matrix),
        Some(own) => {
            if let Pooler::Tanh(pooler) = own.pooler {
                add(format!("{pooler}.weight"), &[d, d], Role::Matrix);
                add(format!("{pooler}.bias"), &[d], Role::Bias);
            }
            if heads == Heads::MaskedLm {
                add(format!("{}.weight", own.dense), &[d, d], Role::Matrix);
                add(format!("{}.bias", own.dense), &[d], Role::Bias);
                add(format!("{}.weight", own.norm), &[d], Role::Gain);
                add(format!("{}.bias", own.norm), &[d], Role::Bias);
                add(own.bias.to_owned(), &[vocab], Role::Bias);
            }
        }
    }
    // In post-norm blocks the sum is normalised after every part.
    let scaled = !config.is_encoder();
    let residual = STD / (2.0 * config.n_layers as f64).sqrt();
    let gain = if config.family().norm == NormKind::RmsPlusOne { 0f32 } else { 1f32 };
    let mut weights = Weights::new();
    for (i, Parameter { name, shape, role }) in (0u64..).zip(list) {
        let tensor = match role {
            Role::Gain => Tensor::full(gain, shape, device)?,
            Role::Bias => Tensor::zeros(shape, candle_core::DType::F32, device)?,
            Role::Embedding | Role::Matrix | Role::Residual => {
                let std = if role == Role::Residual && scaled { residual } else { STD };
                let count = shape.iter().product();
                let values: Vec<f32> = normals(i, count).into_iter().map(|z| (z * std) as f32).collect();
                Tensor::from_vec(values, shape, device)?
            }
        };
        weights.insert(name, tensor);
    }
    Ok(weights)
}

//! Building blocks that decoders and encoders share: linear with bias and adapter, the two norms.

use candle_core::{Result, Tensor};

use super::lora::LoraConfig;
use super::{Arch, ModelConfig, Purpose, Weights};
use crate::ops;
use crate::ops::linear::{Weight, WeightLayout, linear};

/// Everything needed to find and prepare the parameters of one model.
pub(super) struct Builder<'a> {
    pub config: &'a ModelConfig,
    pub weights: &'a Weights,
    pub lora: Option<(&'a LoraConfig, &'a Weights)>,
    pub purpose: Purpose,
}

impl Builder<'_> {
    /// Prepares one matrix for its purpose.
    pub fn weight(&self, w: &Tensor, layout: WeightLayout) -> Result<Weight> {
        match self.purpose {
            Purpose::Train => Weight::new(w, layout, true),
            Purpose::Serve => Weight::new(w, layout, false),
            Purpose::ServeQuantized => Weight::quantized(w, layout),
        }
    }

    pub fn tensor(&self, name: &str, dims: &[usize]) -> Result<Tensor> {
        let Some(t) = self.weights.get(name) else { candle_core::bail!("the weights have no tensor {name}") };
        if t.dims() != dims {
            candle_core::bail!("tensor {name} has shape {:?}, the configuration says {dims:?}", t.dims());
        }
        Ok(t.clone())
    }

    pub fn linear(&self, module: &str, out: usize, input: usize, bias: bool) -> Result<Linear> {
        let (layout, dims) = match self.config.arch {
            Arch::Gpt2 => (WeightLayout::InOut, [input, out]),
            _ => (WeightLayout::OutIn, [out, input]),
        };
        let weight = self.weight(&self.tensor(&format!("{module}.weight"), &dims)?, layout)?;
        let bias = if bias { Some(self.tensor(&format!("{module}.bias"), &[out])?) } else { None };
        let lora = match self.lora {
            Some((config, adapters)) => match adapters.get(&format!("{module}.lora_A.weight")) {
                Some(a) => {
                    let Some(b) = adapters.get(&format!("{module}.lora_B.weight")) else {
                        candle_core::bail!("adapter {module} has no lora_B")
                    };
                    Some(Adapter { a: a.clone(), b: b.clone(), scale: config.scale() })
                }
                None => None,
            },
            None => None,
        };
        Ok(Linear { weight, bias, lora })
    }

    pub fn layer_norm(&self, module: &str) -> Result<Norm> {
        let d = self.config.hidden_size;
        Ok(Norm::Layer {
            weight: self.tensor(&format!("{module}.weight"), &[d])?,
            bias: self.tensor(&format!("{module}.bias"), &[d])?,
            eps: self.config.norm_eps,
        })
    }

    pub fn rms_norm(&self, module: &str) -> Result<Norm> {
        let weight = self.tensor(&format!("{module}.weight"), &[self.config.hidden_size])?;
        Ok(Norm::Rms { weight, eps: self.config.norm_eps })
    }
}

#[derive(Debug, Clone)]
struct Adapter {
    a: Tensor,
    b: Tensor,
    scale: f64,
}

/// x·Wᵀ + b, plus the adapter's low-rank term.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Weight,
    bias: Option<Tensor>,
    lora: Option<Adapter>,
}

impl Linear {
    /// x [n, in] → [n, out].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut y = self.weight.apply(x)?;
        if let Some(Adapter { a, b, scale }) = &self.lora {
            let low = linear(x, a, WeightLayout::OutIn)?;
            y = (y + (linear(&low, b, WeightLayout::OutIn)? * *scale)?)?;
        }
        match &self.bias {
            Some(b) => y.broadcast_add(b),
            None => Ok(y),
        }
    }
}

#[derive(Debug, Clone)]
pub enum Norm {
    Rms { weight: Tensor, eps: f64 },
    Layer { weight: Tensor, bias: Tensor, eps: f64 },
}

impl Norm {
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Rms { weight, eps } => ops::norm::rms_norm(x, weight, *eps),
            Self::Layer { weight, bias, eps } => ops::norm::layer_norm(x, weight, bias, *eps),
        }
    }
}

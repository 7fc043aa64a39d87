//! Building blocks that decoders and encoders share: linear with bias and adapter, the two norms.

use candle_core::{Result, Tensor};

use super::gguf::GgufTensors;
use super::lora::LoraConfig;
use super::{Arch, ModelConfig, Purpose, Weights};
use crate::ops;
use crate::ops::linear::{Weight, WeightFormat, WeightLayout, linear};

/// Everything needed to find and prepare the parameters of one model.
pub(super) struct Builder<'a> {
    pub config: &'a ModelConfig,
    pub weights: &'a Weights,
    pub lora: Option<(&'a LoraConfig, &'a Weights)>,
    pub purpose: Purpose,
    /// Where `weights` came from, if that is a GGUF file: its blocks can be served as they are.
    pub stored: Option<&'a GgufTensors>,
}

impl Builder<'_> {
    /// Prepares the matrix `w`, called `name` in the file, for its purpose.
    pub fn weight(&self, name: &str, w: &Tensor, layout: WeightLayout) -> Result<Weight> {
        let format = match self.purpose {
            Purpose::Train => return Weight::new(w, layout, true),
            Purpose::Serve => return Weight::new(w, layout, false),
            Purpose::ServeAs(WeightFormat::File) => self.stored.map_or(WeightFormat::F32, |s| s.near_format(name)),
            Purpose::ServeAs(format) => format,
        };
        match self.blocks(&[name])? {
            Some(weight) if w.device().is_cpu() => Ok(weight),
            _ => Weight::served(w, layout, format),
        }
    }

    /// The rows of these tensors end to end, as the file holds them; `None` unless the file's own form is
    /// asked for and all are blocks of one kind.
    fn blocks(&self, names: &[&str]) -> Result<Option<Weight>> {
        let (Purpose::ServeAs(WeightFormat::File), Some(stored)) = (self.purpose, self.stored) else { return Ok(None) };
        let Some(kinds) = names.iter().map(|name| stored.block_kind(name)).collect::<Option<Vec<_>>>() else {
            return Ok(None);
        };
        let (kind, _, k) = kinds[0];
        if kinds.iter().any(|(other, _, width)| *other != kind || *width != k) {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        for name in names {
            bytes.extend(stored.bytes(name).map_err(candle_core::Error::wrap)?);
        }
        Ok(Some(Weight::blocks(&bytes, kind, kinds.iter().map(|(_, m, _)| m).sum(), k)))
    }

    /// Projections of the same input as one matrix, where no gradient and no adapter needs them apart: fewer,
    /// larger products. `None` where they must stay apart. `modules` are (name, outputs).
    pub fn joint(&self, modules: &[(String, usize)], input: usize, bias: bool) -> Result<Option<Linear>> {
        if self.purpose == Purpose::Train || self.lora.is_some() {
            return Ok(None);
        }
        let names: Vec<String> = modules.iter().map(|(module, _)| format!("{module}.weight")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let parts = names.iter().zip(modules).map(|(name, (_, out))| self.tensor(name, &[*out, input]));
        let parts = parts.collect::<Result<Vec<_>>>()?;
        let bias = match bias {
            true => {
                let parts = modules.iter().map(|(module, out)| self.tensor(&format!("{module}.bias"), &[*out]));
                Some(Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 0)?)
            }
            false => None,
        };
        let weight = match self.blocks(&names)? {
            Some(weight) if parts[0].device().is_cpu() => weight,
            _ if self.stored.is_some() && self.purpose == Purpose::ServeAs(WeightFormat::File) => return Ok(None),
            _ => self.weight("", &Tensor::cat(&parts, 0)?, WeightLayout::OutIn)?,
        };
        Ok(Some(Linear { weight, bias, lora: None }))
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
        let name = format!("{module}.weight");
        let weight = self.weight(&name, &self.tensor(&name, &dims)?, layout)?;
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

//! The weights of a model that was trained with adapters, computed one at a time while they are written: the file's
//! numbers with the adapters merged. Matrices that were quantized for training are never in memory as f32 at the same
//! time.

use std::path::Path;

use candle_core::{Device, Result, Tensor};

use super::adapters::lora::{self, LoraConfig};
use super::load::{self, ModelFiles};
use super::{ModelConfig, Weights, names, quantized};
use crate::ops::linear::WeightLayout;

/// Tensors by name; some are computed when they are read.
pub struct Merged {
    ready: Weights,
    rest: Option<Rest>,
}

struct Rest {
    config: ModelConfig,
    lora: LoraConfig,
    adapters: Weights,
    /// Quantized matrices, by name.
    quantized: Weights,
    file: Option<ModelFiles>,
}

impl From<Weights> for Merged {
    fn from(ready: Weights) -> Self {
        Self { ready, rest: None }
    }
}

impl Merged {
    /// `frozen` weights, of which some are quantized, with `adapters` merged; where `source` is known, the
    /// quantized ones are read from it again.
    pub fn new(
        config: &ModelConfig,
        lora: &LoraConfig,
        frozen: &Weights,
        adapters: Weights,
        source: Option<&Path>,
    ) -> Result<Self> {
        let (quantized, ready): (Weights, Weights) =
            frozen.iter().map(|(n, t)| (n.clone(), t.clone())).partition(|(_, t)| quantized::is_quantized(t));
        let (ours, others): (Weights, Weights) = adapters.into_iter().partition(|(name, _)| {
            name.split_once(".lora_").is_some_and(|(module, _)| ready.contains_key(&format!("{module}.weight")))
        });
        let ready = lora::merge(config, lora, &ready, &ours)?;
        let source = source.filter(|_| !quantized.is_empty());
        let open = |path| load::open(path).map(|opened| opened.files);
        let file = source.map(open).transpose().map_err(candle_core::Error::wrap)?;
        let (config, lora) = (config.clone(), lora.clone());
        Ok(Self { ready, rest: Some(Rest { config, lora, adapters: others, quantized, file }) })
    }

    /// Adds or replaces a tensor.
    pub fn insert(&mut self, name: String, tensor: Tensor) {
        self.ready.insert(name, tensor);
    }

    /// Names in order, with shapes.
    pub fn shapes(&self) -> Vec<(String, Vec<usize>)> {
        let ready = self.ready.iter().map(|(name, tensor)| (name.clone(), tensor.dims().to_vec()));
        let mut all: Vec<(String, Vec<usize>)> = ready.collect();
        if let Some(rest) = &self.rest {
            let quantized =
                names::backbone(&rest.config).into_iter().filter(|(name, _)| rest.quantized.contains_key(name));
            all.extend(quantized.filter(|(name, _)| !self.ready.contains_key(name)));
        }
        all.sort();
        all
    }

    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        match self.ready.get(name) {
            Some(tensor) => Some(tensor.dims().to_vec()),
            None => self.shapes().into_iter().find(|(found, _)| found == name).map(|(_, shape)| shape),
        }
    }

    /// A tensor, f32.
    ///
    /// # Errors
    /// When there is no tensor of this name, or its file cannot be read.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        match (self.ready.get(name), &self.rest) {
            (Some(tensor), _) => Ok(tensor.clone()),
            (None, Some(rest)) => rest.tensor(name),
            (None, None) => candle_core::bail!("there is no tensor {name}"),
        }
    }

    /// All tensors, f32.
    pub fn collect(&self) -> Result<Weights> {
        self.shapes().into_iter().map(|(name, _)| Ok((name.clone(), self.tensor(&name)?))).collect()
    }
}

impl Rest {
    fn tensor(&self, name: &str) -> Result<Tensor> {
        let base = match &self.file {
            Some(file) => {
                let tensor = file.tensor(name, &Device::Cpu).map_err(candle_core::Error::wrap)?;
                let known = names::backbone(&self.config).into_iter().find(|(known, _)| known == name);
                if known.is_some_and(|(_, shape)| shape != tensor.dims()) {
                    candle_core::bail!("tensor {name} has another shape than when the model was trained");
                }
                tensor
            }
            None => match self.quantized.get(name) {
                Some(matrix) => quantized::dequantize_one(&self.config, name, matrix)?,
                None => candle_core::bail!("there is no tensor {name}"),
            },
        };
        let module = name.strip_suffix(".weight").unwrap_or(name);
        let factors = ["A", "B"].map(|part| self.adapters.get(&format!("{module}.lora_{part}.weight")));
        let [Some(a), Some(b)] = factors else { return Ok(base) };
        let delta = lora::delta(&self.lora, a, b)?;
        let delta = if self.config.family().layout == WeightLayout::InOut { delta.t()? } else { delta };
        base + delta
    }
}

//! An encoder under training: its variables, and frozen copies for evaluation and files.

use candle_core::{Result, Var};

use super::optim::Params;
use crate::model::{Encoder, ModelConfig, Purpose, Weights};

pub struct TrainableEncoder {
    config: ModelConfig,
    pub params: Params,
    encoder: Encoder,
}

impl TrainableEncoder {
    /// Copies all `weights` to variables.
    pub fn new(config: &ModelConfig, weights: &Weights) -> Result<Self> {
        let params = weights.iter().map(|(name, t)| Ok((name.clone(), Var::from_tensor(t)?)));
        let params = params.collect::<Result<Params>>()?;
        let tensors = params.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect();
        let encoder = Encoder::new(config, &tensors, Purpose::Train)?;
        Ok(Self { config: config.clone(), params, encoder })
    }

    pub fn encoder(&self) -> &Encoder {
        &self.encoder
    }

    /// A copy of the current weights.
    pub fn weights(&self) -> Result<Weights> {
        self.params.iter().map(|(name, var)| Ok((name.clone(), var.as_tensor().copy()?.detach()))).collect()
    }

    /// A forward-only encoder with a copy of the current weights. They are not packed, because the masked-LM head joins
    /// its bias to the matrix.
    pub fn frozen(&self) -> Result<Encoder> {
        Encoder::new(&self.config, &self.weights()?, Purpose::Train)
    }
}

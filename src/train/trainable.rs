//! A decoder under training: which of its tensors are variables, and the frozen views that rollouts,
//! references and files are made from.

use candle_core::{Device, Result, Tensor, Var};

use super::args::LoraArgs;
use super::optim::Params;
use crate::model::{Decoder, LoraConfig, ModelConfig, Purpose, Weights, lora};

pub struct Trainable {
    pub config: ModelConfig,
    /// Variables by name: all weights, or the adapters `….lora_A.weight` and `….lora_B.weight`.
    pub params: Params,
    /// With adapters: the frozen weights. Without: tensors that no loss reaches (kept for the output).
    frozen: Weights,
    lora: Option<LoraConfig>,
    decoder: Decoder,
}

impl Trainable {
    /// `weights` become variables (copied), or stay frozen under fresh adapters drawn from `seed`.
    /// Heads (`score.weight`) are left to the caller: pass the backbone, and `lm_head.weight` where logits
    /// are computed.
    ///
    /// # Errors
    /// When weights do not fit the configuration, or no layer matches the adapter targets.
    pub fn new(config: &ModelConfig, weights: Weights, adapters: Option<&LoraArgs>, seed: u64) -> Result<Self> {
        let lora = adapters.map(|a| LoraConfig {
            rank: a.rank,
            alpha: a.alpha,
            targets: a.targets.clone().unwrap_or_default(),
        });
        let (trained, frozen) = match &lora {
            None => (weights, Weights::new()),
            Some(lora) => {
                let adapters = lora::init(config, lora, &weights, seed)?;
                if adapters.is_empty() {
                    candle_core::bail!("lora.targets {:?} match no linear layer of this model", lora.targets);
                }
                (adapters, weights)
            }
        };
        let params = trained.into_iter().map(|(name, t)| Ok((name, Var::from_tensor(&t)?)));
        let params = params.collect::<Result<Params>>()?;
        let decoder = build(config, &tensors(&params), &frozen, lora.as_ref(), Purpose::Train)?;
        Ok(Self { config: config.clone(), params, frozen, lora, decoder })
    }

    /// The decoder whose forward pass reaches the variables.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// A forward-only decoder of the weights as they are now; later updates do not reach it: variables are
    /// changed in place, so everything is copied.
    pub fn frozen_decoder(&self) -> Result<Decoder> {
        let now = self.copies()?;
        build(&self.config, &now, &self.frozen, self.lora.as_ref(), Purpose::Serve)
    }

    /// What a file holds: adapters merged into their weights. Copies, safe to keep while training goes on.
    pub fn merged(&self) -> Result<Weights> {
        let now = self.copies()?;
        match &self.lora {
            None => Ok(self.frozen.clone().into_iter().chain(now).collect()),
            Some(lora) => lora::merge(&self.config, lora, &self.frozen, &now),
        }
    }

    fn copies(&self) -> Result<Weights> {
        self.params.iter().map(|(name, var)| Ok((name.clone(), var.as_tensor().copy()?.detach()))).collect()
    }

    pub fn device(&self) -> Device {
        self.params.values().next().map_or(Device::Cpu, |var| var.device().clone())
    }
}

fn build(
    config: &ModelConfig,
    trained: &Weights,
    frozen: &Weights,
    lora: Option<&LoraConfig>,
    purpose: Purpose,
) -> Result<Decoder> {
    match lora {
        None => Decoder::new(config, trained, purpose),
        Some(lora) => Decoder::with_lora(config, frozen, lora, trained, purpose),
    }
}

fn tensors(params: &Params) -> Weights {
    params.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect()
}

/// Adds `head` under `prefix` to the parameters that an optimizer sees.
pub fn with_prefix(prefix: &str, params: &Params) -> impl Iterator<Item = (String, Var)> {
    params.iter().map(move |(name, var)| (format!("{prefix}{name}"), var.clone())).collect::<Vec<_>>().into_iter()
}

/// Normal(0, std) of the given shape, drawn from the `Init` stream.
pub fn normal_init(shape: (usize, usize), std: f64, seed: u64, device: &Device) -> Result<Tensor> {
    let mut rng = super::rng::rng(seed, super::rng::Stream::Init, 1);
    let values: Vec<f32> = (0..shape.0 * shape.1).map(|_| (super::rng::normal(&mut rng) * std) as f32).collect();
    Tensor::from_vec(values, shape, device)
}

//! A decoder under training: which of its tensors are variables, and the frozen views that rollouts,
//! references and files are made from.

use candle_core::{Device, Result, Tensor, Var};

use super::args::LoraArgs;
use super::optim::Params;
use crate::model::{Decoder, LoraConfig, ModelConfig, Purpose, Recompute, Weights, lora};

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
        let decoder = build(config, &tensors(&params), &frozen, lora.as_ref(), Purpose::Train)?.collected();
        Ok(Self { config: config.clone(), params, frozen, lora, decoder })
    }

    /// Chooses what backward passes compute again instead of keeping.
    pub fn with_recompute(mut self, recompute: Recompute) -> Self {
        self.decoder.recompute = recompute;
        self
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

    /// The policy to sample from, as it is now; only valid until the next update, because what need not be copied
    /// is shared with the variables.
    pub fn behaviour(&self) -> Result<Decoder> {
        let live = |t: &Tensor| Ok(Some(t.detach()));
        match &self.lora {
            // Weights that are packed already are packed once.
            Some(_) => self.decoder.with_changed_adapters(&live),
            None => build(&self.config, &self.live(), &self.frozen, None, Purpose::Serve),
        }
    }

    /// The model before any update, for scoring whole sequences. `start` are the weights it was made of; they are
    /// shared, not copied.
    pub fn reference(&self, start: &Weights) -> Result<Decoder> {
        match &self.lora {
            // Adapters that were never trained add nothing.
            Some(_) if self.adapters_are_zero()? => self.decoder.with_changed_adapters(&|_| Ok(None)),
            Some(_) => self.decoder.with_changed_adapters(&|t| Ok(Some(t.copy()?.detach()))),
            None => build(&self.config, start, &self.frozen, None, Purpose::Score),
        }
    }

    fn adapters_are_zero(&self) -> Result<bool> {
        for (_, b) in self.params.iter().filter(|(name, _)| name.ends_with(".lora_B.weight")) {
            if b.as_detached_tensor().abs()?.max_all()?.to_scalar::<f32>()? != 0.0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn live(&self) -> Weights {
        self.params.iter().map(|(name, var)| (name.clone(), var.as_detached_tensor())).collect()
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

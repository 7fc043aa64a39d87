//! A model under training: its variables, and the frozen copies and views for rollouts, references and files.

use std::path::PathBuf;

use candle_core::{Device, Result, Tensor, Var};

use super::args::{Common, FrozenPrecision, LoraArgs};
use super::device_tensors::DeviceTensors;
use super::optim::Params;
use crate::model::adapters::lora;
use crate::model::adapters::peft;
use crate::model::decoder::attached::Attached;
use crate::model::decoder::device::Room;
use crate::model::merged::Merged;
use crate::model::quantized::MatrixQuantizer;
use crate::model::{Build, Decoder, LoraConfig, ModelConfig, Purpose, Recompute, Source, Weights};
use crate::ops::linear::WeightFormat;

/// Parameters that are not trained, in addition to those under LoRA adapters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Freeze {
    /// Token, position and segment embeddings; with tied embeddings also the output matrix.
    pub embeddings: bool,
    /// Number of first blocks.
    pub layers: usize,
}

impl Freeze {
    fn includes(self, config: &ModelConfig, name: &str) -> bool {
        let family = config.family();
        let of = |module: &str| name.strip_prefix(module).is_some_and(|rest| rest.starts_with('.'));
        (self.embeddings && family.embeddings().any(of)) || family.block_of(name).is_some_and(|i| i < self.layers)
    }
}

/// A model under training.
pub struct Trainable<M = Decoder> {
    pub config: ModelConfig,
    /// Variables by name: all weights that are not frozen, or the adapters `….lora_A.weight` and `….lora_B.weight`.
    pub params: Params,
    /// Weights that are not trained.
    frozen: Weights,
    /// The file or directory of the frozen weights.
    source: Option<PathBuf>,
    lora: Option<LoraConfig>,
    model: M,
    /// The variables on a device that trains them; those of the host are then older.
    tensors: Option<DeviceTensors>,
}

impl Trainable<Decoder> {
    /// A decoder without frozen weights, except those under adapters. See `of`.
    pub fn new(config: &ModelConfig, weights: Weights, adapters: Option<&LoraArgs>, seed: u64) -> Result<Self> {
        let (recompute, precision) = (Recompute::default(), FrozenPrecision::default());
        Self::of(config, weights, adapters, Freeze::default(), recompute, precision, seed)
    }

    /// The decoder over the variables.
    pub fn decoder(&self) -> &Decoder {
        &self.model
    }

    /// The `frozen_model` of a decoder.
    pub fn frozen_decoder(&self) -> Result<Decoder> {
        self.frozen_model()
    }

    /// Sets which activations are recomputed in backward passes.
    pub fn with_recompute(mut self, recompute: Recompute) -> Self {
        self.model.recompute = recompute;
        self
    }

    /// The behaviour policy of a rollout: the current weights. It is only valid until the next update, because it
    /// shares memory with the variables.
    pub fn behaviour(&self) -> Result<Decoder> {
        self.pull()?;
        let live = |t: &Tensor| Ok(Some(t.detach()));
        match &self.lora {
            // Frozen weights are packed already.
            Some(_) => self.model.with_changed_adapters(&live),
            None => build(&self.config, self.live(), &self.frozen, None, Purpose::Serve),
        }
    }

    /// A behaviour policy that generates on the device that trains the variables, with log-probs at `temperature`.
    ///
    /// # Errors
    /// If the variables are not on a device; `OutOfMemory`; a failure of the device.
    pub fn behaviour_on_device(&self, room: Room, temperature: f32) -> Result<Decoder> {
        let Some(attached) = self.model.attached() else { candle_core::bail!("the model is not on a device") };
        let mut decoder = self.model.clone();
        decoder.attach(attached.with_steps(room, temperature)?);
        Ok(decoder)
    }

    /// A behaviour policy with adapters merged and matrices rounded to bfloat16. Its log-probs differ from those of the
    /// decoder.
    pub fn rounded_behaviour(&self) -> Result<Decoder> {
        let purpose = Purpose::ServeAs(WeightFormat::Bf16);
        match &self.lora {
            Some(_) => Decoder::new(&self.config, &self.merged()?, purpose),
            None => build(&self.config, self.live(), &self.frozen, None, purpose),
        }
    }

    /// The model before any update, for scoring whole sequences. `start` are its initial weights, which are shared.
    pub fn reference(&self, start: &Weights) -> Result<Decoder> {
        match &self.lora {
            // Initial adapters add nothing.
            Some(_) if self.adapters_are_zero()? => self.model.with_changed_adapters(&|_| Ok(None)),
            Some(_) => self.model.with_changed_adapters(&|t| Ok(Some(t.copy()?.detach()))),
            None => Decoder::new(&self.config, start, Purpose::Score),
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
}

impl<M: Build> Trainable<M> {
    /// The model under training for a recipe's arguments.
    pub fn for_run(config: &ModelConfig, weights: Weights, common: &Common) -> Result<Self> {
        let freeze = Freeze { embeddings: common.freeze_embeddings, layers: common.freeze_layers };
        if freeze.layers > config.n_layers {
            candle_core::bail!("freeze_layers: the model has {} blocks, not {}", config.n_layers, freeze.layers);
        }
        let (lora, precision) = (common.lora.as_ref(), common.frozen_precision);
        Self::of(config, weights, lora, freeze, common.recompute, precision, common.seed)
    }

    /// Copies `weights` to variables, or keeps them frozen under new adapters that are drawn with `seed`. The caller
    /// passes the backbone, and `lm_head.weight` if logits are computed, and handles other heads (`score.weight`).
    ///
    /// # Errors
    /// If weights do not match the configuration, no layer matches the adapter targets, or nothing is left to train.
    pub fn of(
        config: &ModelConfig,
        weights: Weights,
        adapters: Option<&LoraArgs>,
        freeze: Freeze,
        recompute: Recompute,
        precision: FrozenPrecision,
        seed: u64,
    ) -> Result<Self> {
        let lora = adapters.map(|a| LoraConfig {
            rank: a.rank,
            alpha: a.alpha,
            targets: a.targets.clone().unwrap_or_default(),
        });
        let (trained, mut frozen) = match &lora {
            None => (weights, Weights::new()),
            Some(lora) => {
                lora::check_targets(config, lora, &weights)?;
                let adapters = lora::init(config, lora, &weights, seed)?;
                if adapters.is_empty() {
                    candle_core::bail!("lora: this model has no linear layer in its blocks");
                }
                (adapters, weights)
            }
        };
        let (untrained, trained): (Weights, Weights) =
            trained.into_iter().partition(|(name, _)| freeze.includes(config, name));
        if trained.is_empty() {
            candle_core::bail!("freeze_layers and freeze_embeddings leave nothing to train");
        }
        // A frozen initial adapter adds nothing and is left out.
        if lora.is_none() {
            frozen.extend(untrained);
        }
        let params = trained.into_iter().map(|(name, t)| Ok((name, Var::from_tensor(&t)?)));
        let params = params.collect::<Result<Params>>()?;
        let now = params.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect();
        let purpose = match precision {
            FrozenPrecision::F32 => Purpose::Train,
            FrozenPrecision::Bf16 => Purpose::TrainOverBf16,
            FrozenPrecision::Q8_0 | FrozenPrecision::Q4 => Purpose::TrainOverQuantized,
        };
        if let Some(kind) = precision.blocks().filter(|_| lora.is_some()) {
            frozen = MatrixQuantizer::new(config, kind).quantize_all(frozen)?;
        }
        let model: M = build(config, now, &frozen, lora.as_ref(), purpose)?;
        let model = model.for_training(recompute);
        Ok(Self { config: config.clone(), params, frozen, source: None, lora, model, tensors: None })
    }

    /// Sets the source of the frozen weights. The published model is made from the source's values, not from rounded
    /// ones.
    pub fn with_source(mut self, source: &Source) -> Self {
        self.source = Some(source.path.clone());
        self
    }

    /// The model over the variables.
    pub fn model(&self) -> &M {
        &self.model
    }

    /// A forward-only model with a copy of the current weights.
    pub fn frozen_model(&self) -> Result<M> {
        build(&self.config, self.copies()?, &self.frozen, self.lora.as_ref(), Purpose::Serve)
    }

    /// A copy of the current weights, with adapters merged.
    pub fn merged(&self) -> Result<Weights> {
        self.published()?.collect()
    }

    /// A copy of the current weights, with adapters merged one tensor at a time when it is read.
    pub fn published(&self) -> Result<Merged> {
        let now = self.copies()?;
        match &self.lora {
            None => Ok(self.frozen.clone().into_iter().chain(now).collect::<Weights>().into()),
            Some(lora) => Merged::new(&self.config, lora, &self.frozen, now, self.source.as_deref()),
        }
    }

    /// Copies of the variables, which later updates do not change.
    pub fn copies(&self) -> Result<Weights> {
        self.pull()?;
        self.params.iter().map(|(name, var)| Ok((name.clone(), var.as_tensor().copy()?.detach()))).collect()
    }

    /// Copies weights that a device has changed to the variables of the host.
    pub fn pull(&self) -> Result<()> {
        self.tensors.as_ref().map_or(Ok(()), DeviceTensors::pull)
    }

    /// The decoder, for a device.
    ///
    /// # Errors
    /// If the model is an encoder.
    pub(super) fn decoder_for_device(&mut self) -> Result<&Decoder> {
        match self.model.decoder_mut() {
            Some(decoder) => Ok(decoder),
            None => candle_core::bail!("device: encoders are trained on the CPU; set device to cpu"),
        }
    }

    /// Lets a device train the variables, which `tensors` are.
    pub(super) fn attach(&mut self, attached: Attached, tensors: DeviceTensors) {
        if let Some(decoder) = self.model.decoder_mut() {
            decoder.attach(attached);
            self.tensors = Some(tensors);
        }
    }

    pub(super) fn tensors(&self) -> Option<&DeviceTensors> {
        self.tensors.as_ref()
    }

    pub fn is_on_device(&self) -> bool {
        self.tensors.is_some()
    }

    /// What computes scores without a gradient: the model on the device that trains it, or `copy`, a frozen model.
    pub fn scorer<'m>(&'m self, copy: Option<&'m M>) -> &'m M {
        copy.filter(|_| !self.is_on_device()).unwrap_or(&self.model)
    }

    /// A frozen model for [`Self::scorer`]; `None` where a device computes the scores.
    pub fn host_copy(&self) -> Result<Option<M>> {
        if self.is_on_device() { Ok(None) } else { self.frozen_model().map(Some) }
    }

    /// Writes the adapters to `dir` in the format of peft; writes nothing without adapters. `base` names the model
    /// under them.
    pub fn save_adapter(&self, dir: &std::path::Path, base: &str) -> anyhow::Result<()> {
        if let Some(lora) = &self.lora {
            peft::write(dir, &self.config, lora, &self.copies()?, &self.frozen, base)?;
        }
        Ok(())
    }

    pub fn device(&self) -> Device {
        self.params.values().next().map_or(Device::Cpu, |var| var.device().clone())
    }
}

/// Builds a model. `trained` are adapters if `lora` is given, else weights.
fn build<M: Build>(
    config: &ModelConfig,
    trained: Weights,
    frozen: &Weights,
    lora: Option<&LoraConfig>,
    purpose: Purpose,
) -> Result<M> {
    match lora {
        None => M::build(config, &frozen.clone().into_iter().chain(trained).collect(), None, purpose),
        Some(lora) => M::build(config, frozen, Some((lora, &trained)), purpose),
    }
}

/// The parameters with `prefix` before their names.
pub fn with_prefix(prefix: &str, params: &Params) -> impl Iterator<Item = (String, Var)> {
    params.iter().map(move |(name, var)| (format!("{prefix}{name}"), var.clone())).collect::<Vec<_>>().into_iter()
}

/// A tensor of the given shape with values from Normal(0, std), drawn from the `Init` stream.
pub fn normal_init(shape: (usize, usize), std: f64, seed: u64, device: &Device) -> Result<Tensor> {
    let mut rng = super::rng::rng(seed, super::rng::Stream::Init, 1);
    let values: Vec<f32> = (0..shape.0 * shape.1).map(|_| (super::rng::normal(&mut rng) * std) as f32).collect();
    Tensor::from_vec(values, shape, device)
}

//! A model under training: which of its tensors are variables, and the frozen views that rollouts,
//! references and files are made from.

use std::path::PathBuf;

use candle_core::{Device, Result, Tensor, Var};

use super::args::{Common, FrozenPrecision, LoraArgs};
use super::optim::Params;
use crate::model::adapters::lora;
use crate::model::adapters::peft;
use crate::model::hold::Holding;
use crate::model::merged::Merged;
use crate::model::{Build, Decoder, LoraConfig, ModelConfig, Purpose, Recompute, Source, Weights};
use crate::ops::linear::WeightFormat;

/// What stays as it is, beside what adapters leave alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Freeze {
    /// Token, position and segment embeddings; with tied embeddings that is the output matrix too.
    pub embeddings: bool,
    /// The first so many blocks.
    pub layers: usize,
}

impl Freeze {
    fn holds(self, config: &ModelConfig, name: &str) -> bool {
        let family = config.family();
        let of = |module: &str| name.strip_prefix(module).is_some_and(|rest| rest.starts_with('.'));
        (self.embeddings && family.embeddings().any(of)) || family.block_of(name).is_some_and(|i| i < self.layers)
    }
}

pub struct Trainable<M = Decoder> {
    pub config: ModelConfig,
    /// Variables by name: all weights, or the adapters `….lora_A.weight` and `….lora_B.weight`; without
    /// those that are frozen.
    pub params: Params,
    /// Weights that do not train.
    frozen: Weights,
    /// The file or directory that they come from.
    source: Option<PathBuf>,
    lora: Option<LoraConfig>,
    model: M,
}

impl Trainable<Decoder> {
    /// A decoder of which nothing is frozen but what adapters leave alone. See `of`.
    pub fn new(config: &ModelConfig, weights: Weights, adapters: Option<&LoraArgs>, seed: u64) -> Result<Self> {
        let (recompute, precision) = (Recompute::default(), FrozenPrecision::default());
        Self::of(config, weights, adapters, Freeze::default(), recompute, precision, seed)
    }

    /// The decoder whose forward pass reaches the variables.
    pub fn decoder(&self) -> &Decoder {
        &self.model
    }

    /// `frozen_model` by the name that most recipes know.
    pub fn frozen_decoder(&self) -> Result<Decoder> {
        self.frozen_model()
    }

    /// Chooses what backward passes compute again instead of keeping.
    pub fn with_recompute(mut self, recompute: Recompute) -> Self {
        self.model.recompute = recompute;
        self
    }

    /// The policy to sample from, as it is now; only valid until the next update, because what need not be copied
    /// is shared with the variables.
    pub fn behaviour(&self) -> Result<Decoder> {
        let live = |t: &Tensor| Ok(Some(t.detach()));
        match &self.lora {
            // Weights that are packed already are packed once.
            Some(_) => self.model.with_changed_adapters(&live),
            None => build(&self.config, self.live(), &self.frozen, None, Purpose::Serve),
        }
    }

    /// As `behaviour`, with matrices rounded to bfloat16 and adapters merged into them: its log-probs are not those of
    /// the decoder.
    pub fn rounded_behaviour(&self) -> Result<Decoder> {
        let purpose = Purpose::ServeAs(WeightFormat::Bf16);
        match &self.lora {
            Some(_) => Decoder::new(&self.config, &self.merged()?, purpose),
            None => build(&self.config, self.live(), &self.frozen, None, purpose),
        }
    }

    /// The model before any update, for scoring whole sequences. `start` are the weights it was made of; they are
    /// shared, not copied.
    pub fn reference(&self, start: &Weights) -> Result<Decoder> {
        match &self.lora {
            // Adapters that were never trained add nothing.
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
    /// What a recipe's arguments ask for.
    pub fn for_run(config: &ModelConfig, weights: Weights, common: &Common) -> Result<Self> {
        let freeze = Freeze { embeddings: common.freeze_embeddings, layers: common.freeze_layers };
        if freeze.layers > config.n_layers {
            candle_core::bail!("freeze_layers: the model has {} blocks, not {}", config.n_layers, freeze.layers);
        }
        let (lora, precision) = (common.lora.as_ref(), common.frozen_precision);
        Self::of(config, weights, lora, freeze, common.recompute, precision, common.seed)
    }

    /// `weights` become variables (copied), or stay frozen under fresh adapters drawn from `seed`.
    /// Heads (`score.weight`) are left to the caller: pass the backbone, and `lm_head.weight` where logits
    /// are computed.
    ///
    /// # Errors
    /// When weights do not fit the configuration, no layer matches the adapter targets, or nothing is left
    /// to train.
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
        let (held, trained): (Weights, Weights) = trained.into_iter().partition(|(name, _)| freeze.holds(config, name));
        if trained.is_empty() {
            candle_core::bail!("freeze_layers and freeze_embeddings leave nothing to train");
        }
        // A frozen adapter is one that was never made.
        if lora.is_none() {
            frozen.extend(held);
        }
        let params = trained.into_iter().map(|(name, t)| Ok((name, Var::from_tensor(&t)?)));
        let params = params.collect::<Result<Params>>()?;
        let now = params.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect();
        let purpose = match precision {
            FrozenPrecision::F32 => Purpose::Train,
            FrozenPrecision::Bf16 => Purpose::TrainOverBf16,
            FrozenPrecision::Q8_0 | FrozenPrecision::Q4 => Purpose::TrainOverHeld,
        };
        if let Some(kind) = precision.blocks().filter(|_| lora.is_some()) {
            frozen = Holding::new(config, kind).hold_all(frozen)?;
        }
        let model: M = build(config, now, &frozen, lora.as_ref(), purpose)?;
        let model = model.for_training(recompute);
        Ok(Self { config: config.clone(), params, frozen, source: None, lora, model })
    }

    /// Where the frozen weights come from: what is published is made of the file's numbers, not of what they were rounded
    /// to.
    pub fn with_source(mut self, source: &Source) -> Self {
        self.source = Some(source.path.clone());
        self
    }

    /// The model whose forward pass reaches the variables.
    pub fn model(&self) -> &M {
        &self.model
    }

    /// A forward-only model of the weights as they are now; later updates do not reach it: variables are
    /// changed in place, so everything is copied.
    pub fn frozen_model(&self) -> Result<M> {
        build(&self.config, self.copies()?, &self.frozen, self.lora.as_ref(), Purpose::Serve)
    }

    /// What a file holds: adapters merged into their weights. Copies, safe to keep while training goes on.
    pub fn merged(&self) -> Result<Weights> {
        self.published()?.collect()
    }

    /// The same, each tensor made when it is asked for.
    pub fn published(&self) -> Result<Merged> {
        let now = self.copies()?;
        match &self.lora {
            None => Ok(self.frozen.clone().into_iter().chain(now).collect::<Weights>().into()),
            Some(lora) => Merged::new(&self.config, lora, &self.frozen, now, self.source.as_deref()),
        }
    }

    fn copies(&self) -> Result<Weights> {
        copies(&self.params)
    }

    /// Writes the adapters to `dir` as peft keeps them; nothing where there are none. `base`: the model under them.
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

/// The variables as they are now; updates in place do not reach the copies.
pub fn copies(params: &Params) -> Result<Weights> {
    params.iter().map(|(name, var)| Ok((name.clone(), var.as_tensor().copy()?.detach()))).collect()
}

/// `trained` are adapters where there is a `lora`, else weights.
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

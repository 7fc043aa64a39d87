//! The gradients and updates of a policy: on the host, or on a device by kernel launches alone.
//!
//! On a device weights, gradients and moments stay there. They are copied to the host for evaluations, checkpoints and
//! the result; a checkpoint has the same format in both cases.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, Result, anyhow};
use candle_core::{Device as Candle, Tensor, Var};
use serde::Serialize;

use super::TrainOutcome;
use super::args::{Common, DeviceArg, Precision};
use super::optim::{AdamConfig, AdamForm, AdamW, Moments, Params};
use super::run::Run;
use super::step::{Accumulator, PredictionBatch};
use super::trainable::Trainable;
use crate::gpu::cuda::Cuda;
use crate::gpu::device::Device;
use crate::gpu::sim::{self, Sim};
use crate::model::decoder::training::{AdamStep, Element, State, TrainerOptions};
use crate::model::{Decoder, DeviceTrainer};
use crate::objective::Stats;

/// Computes the gradients of a policy and applies them.
pub enum Learner {
    Host(Accumulator),
    Device(Box<DeviceTrainer>),
}

/// The device that weights are loaded to: the host's memory where the own kernels train.
///
/// # Errors
/// Those of `run::device`.
pub fn loading_device(common: &Common) -> Result<Candle> {
    if common.uses_own_kernels() { Ok(Candle::Cpu) } else { super::run::device(common) }
}

fn open(device: DeviceArg) -> Result<Box<dyn Device>> {
    Ok(match device {
        DeviceArg::Sim => Box::new(Sim::new(sim::BYTES)),
        _ => Box::new(Cuda::open(0, None).map_err(|why| anyhow!("device: the GPU cannot be used: {why}"))?),
    })
}

/// The constants of update number `step` at a learning rate.
pub fn adam_step(config: AdamConfig, step: u64, rate: f64, decay: f64, max_norm: Option<f64>) -> AdamStep {
    let AdamConfig { beta1, beta2, eps, form } = config;
    let (first, second) = (1.0 - beta1.powf(step as f64), 1.0 - beta2.powf(step as f64));
    let corrections = match form {
        AdamForm::Torch => [first, second],
        // lr·√(1−β₂ᵗ)/(1−β₁ᵗ) · m / (√v + ε).
        AdamForm::Tf => [first / second.sqrt(), 1.0],
    };
    AdamStep { rate, beta1, beta2, eps, decay, corrections, max_norm }
}

impl Learner {
    /// The learner of a policy, with the weights and moments that `run.resume` has restored. Call it after that.
    ///
    /// # Errors
    /// A device that is missing or cannot train this model.
    pub fn new(run: &Run<'_>, policy: &Trainable) -> Result<Self> {
        if !run.common.uses_own_kernels() {
            return Ok(Self::Host(Accumulator::default()));
        }
        let names: HashMap<_, _> = policy.params.iter().map(|(name, var)| (var.id(), name.clone())).collect();
        let element = match run.common.precision {
            Precision::F32 => Element::F32,
            Precision::Bf16 => Element::Bf16,
        };
        let options = TrainerOptions::new(element, run.common.recompute);
        let device = open(run.common.device)?;
        let mut trainer = DeviceTrainer::new(policy.decoder(), &names, device, options).context("device")?;
        let (mut first, mut second) = (BTreeMap::new(), BTreeMap::new());
        for (name, moments) in &run.optimizer.moments {
            if let Moments::Host { m, v } = moments {
                first.insert(name.clone(), m.clone());
                second.insert(name.clone(), v.clone());
            }
        }
        trainer.write(State::M, &first)?;
        trainer.write(State::V, &second)?;
        Ok(Self::Device(Box::new(trainer)))
    }

    /// Adds the gradients of one micro-batch. `loss` computes a loss from the log-probs of the targets `[n]`.
    ///
    /// # Errors
    /// Those of the passes and of `loss`.
    pub fn add(
        &mut self,
        policy: &Trainable,
        packed: &PredictionBatch,
        loss: impl FnOnce(&Tensor) -> Result<(Tensor, Stats)>,
    ) -> Result<Stats> {
        match self {
            Self::Host(sum) => {
                let hidden = packed.hidden(policy.decoder())?;
                let (loss, stats) = loss(&packed.logprobs(policy.decoder(), &hidden, 1.0)?.logprobs)?;
                sum.add(&policy.params, &loss)?;
                Ok(stats)
            }
            Self::Device(trainer) => {
                let PredictionBatch { batch, rows, targets, .. } = packed;
                let scores = trainer.logprobs(policy.decoder(), batch, rows, targets, 1.0, true)?;
                let logprobs = Var::from_vec(scores.logprobs, targets.len(), &Candle::Cpu)?;
                let (loss, stats) = loss(&logprobs)?;
                let grads = loss.backward()?;
                let grad = match grads.get(&logprobs) {
                    Some(grad) => grad.to_vec1()?,
                    None => vec![0.0; targets.len()],
                };
                trainer.backward(&grad)?;
                Ok(stats)
            }
        }
    }

    /// Log-probs of the targets `[n]` by the current weights, without a gradient. `now` is a copy of them on the host.
    ///
    /// # Errors
    /// Those of a forward pass.
    pub fn logprobs(&mut self, policy: &Trainable, now: &Decoder, packed: &PredictionBatch) -> Result<Tensor> {
        match self {
            Self::Host(_) => Ok(packed.logprobs(now, &packed.hidden(now)?, 1.0)?.logprobs),
            Self::Device(trainer) => {
                let PredictionBatch { batch, rows, targets, .. } = packed;
                let scores = trainer.logprobs(policy.decoder(), batch, rows, targets, 1.0, false)?;
                Ok(Tensor::new(scores.logprobs, &Candle::Cpu)?)
            }
        }
    }

    /// Applies the gradients. Returns (gradient norm before clipping, learning rate).
    ///
    /// # Errors
    /// A gradient that is not finite; nothing is changed then.
    pub fn update(&mut self, run: &mut Run<'_>, policy: &Trainable) -> Result<(f64, f64)> {
        match self {
            Self::Host(sum) => run.update(&policy.params, &std::mem::take(sum).grads),
            Self::Device(trainer) => {
                let (rate, decay) = (run.schedule.at(run.optimizer.step), run.common.weight_decay);
                let number = run.optimizer.step + 1;
                let step = adam_step(run.optimizer.config, number, rate, decay, run.common.max_grad_norm);
                let norm = trainer.update(&step).with_context(|| {
                    format!("step {} was not applied; the last checkpoint before it is intact", run.step + 1)
                })?;
                run.optimizer.step = number;
                Ok((norm, rate))
            }
        }
    }

    /// Copies the weights to the host, for evaluations and the result.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn copy_weights(&mut self, policy: &Trainable) -> Result<()> {
        let Self::Device(trainer) = self else { return Ok(()) };
        for (name, values) in trainer.read(State::Weights)? {
            let Some(var) = policy.params.get(&name) else { continue };
            var.set(&Tensor::from_vec(values, var.shape(), &Candle::Cpu)?)?;
        }
        Ok(())
    }

    fn copy_moments(&mut self, optimizer: &mut AdamW) -> Result<()> {
        let Self::Device(trainer) = self else { return Ok(()) };
        let (first, mut second) = (trainer.read(State::M)?, trainer.read(State::V)?);
        for (name, m) in first {
            let Some(v) = second.remove(&name) else { continue };
            optimizer.moments.insert(name, Moments::Host { m, v });
        }
        Ok(())
    }

    /// `Run::pause`, with the states of the device in the checkpoint.
    ///
    /// # Errors
    /// A checkpoint that cannot be written; a failure of the device.
    pub fn pause(
        &mut self,
        run: &mut Run<'_>,
        policy: &Trainable,
        recipe: &impl Serialize,
    ) -> Result<Option<TrainOutcome>> {
        let params: &Params = &policy.params;
        let stop = run.step < run.total && run.reporter.should_stop();
        if !stop && !run.checkpoint_due() {
            return Ok(None);
        }
        self.copy_weights(policy)?;
        self.copy_moments(&mut run.optimizer)?;
        if stop {
            return run.stopped(params, recipe).map(Some);
        }
        run.save(params, recipe, false)?;
        Ok(None)
    }
}

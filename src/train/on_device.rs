//! The device that trains the models of a run by kernel launches alone, if it is not the host.
//!
//! On a device weights, gradients and moments stay there. They are copied to the host for samples, checkpoints and the
//! result; a checkpoint has the same format in both cases.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, anyhow, ensure};
use candle_core::Device as Candle;

use super::args::{Common, DeviceArg, Precision};
use super::device_tensors::DeviceTensors;
use super::optim::{Moments, Params};
use super::run::Run;
use super::trainable::{Trainable, with_prefix};
use crate::gpu::cuda::Cuda;
use crate::gpu::device::Device;
use crate::gpu::shared::Shared;
use crate::gpu::sim::{self, Sim};
use crate::model::decoder::attached::Attached;
use crate::model::decoder::training::{BaseOf, Element, State, TrainerOptions};
use crate::model::{self, Build, Decoder, DeviceTrainer, Loaded, Recompute, Trunk};

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

/// The device that a run trains on.
pub struct RunDevice {
    device: Shared,
    options: TrainerOptions,
}

impl RunDevice {
    /// The device of the arguments; `None` where the host trains.
    ///
    /// # Errors
    /// If it is missing.
    pub fn open(common: &Common) -> Result<Option<Self>> {
        if !common.uses_own_kernels() {
            return Ok(None);
        }
        Ok(Some(Self::new(open(common.device)?, common.precision, common.recompute)))
    }

    /// The device that evaluates a model; `None` where the host does.
    ///
    /// # Errors
    /// If it is missing; a precision that the host does not have.
    pub fn for_evaluation(device: DeviceArg, precision: Precision) -> Result<Option<Self>> {
        let device = match device {
            DeviceArg::Cpu => None,
            DeviceArg::Auto => Cuda::open(0, None).ok().map(|gpu| Box::new(gpu) as Box<dyn Device>),
            device => Some(open(device)?),
        };
        ensure!(
            device.is_some() || precision == Precision::F32,
            "precision: bf16 is for a GPU, with `device` cuda; set it to f32"
        );
        Ok(device.map(|device| Self::new(device, precision, Recompute::None)))
    }

    pub(super) fn new(device: Box<dyn Device>, precision: Precision, recompute: Recompute) -> Self {
        let element = match precision {
            Precision::F32 => Element::F32,
            Precision::Bf16 => Element::Bf16,
        };
        Self { device: Shared::new(device), options: TrainerOptions::new(element, recompute) }
    }

    /// Loads a decoder that is not trained from its files to the device; the host has no copy of it. It computes log-probs
    /// and hidden states. Also returns what the files say, with the heads of other tasks.
    ///
    /// # Errors
    /// An encoder; a model that the device cannot compute.
    pub fn load(&self, path: &Path) -> Result<(Decoder, Loaded)> {
        let opened = model::open(path)?;
        let decoder = Decoder::on_device(&opened, true, self.device.clone(), self.options).context("device")?;
        Ok((decoder, opened.into_heads()?))
    }

    /// Loads the backbone of a reward model or of a classifier from its files to the device; the host has no copy of it.
    /// Also returns what the files say, with the heads.
    ///
    /// # Errors
    /// A model that the device cannot compute.
    pub fn load_trunk(&self, path: &Path) -> Result<(Trunk, Loaded)> {
        let opened = model::open(path)?;
        let trunk = Trunk::on_device(&opened, self.device.clone(), self.options).context("device")?;
        Ok((trunk, opened.into_heads()?))
    }

    /// Copies a trained model of a run to the device, with the weights and moments that `run.resume` has restored; call
    /// it after that. `prefix` is that of the model's names among the run's parameters.
    ///
    /// # Errors
    /// A model that the device cannot train.
    pub fn train<M: Build>(&self, run: &mut Run<'_>, model: &mut Trainable<M>, prefix: &str) -> Result<()> {
        let vars: Params = with_prefix(prefix, &model.params).collect();
        let names: HashMap<_, _> = vars.iter().map(|(name, var)| (var.id(), name.clone())).collect();
        let mut trainer = self.trainer(model.decoder_for_device()?, &names)?;
        let (mut first, mut second) = (BTreeMap::new(), BTreeMap::new());
        for name in vars.keys() {
            if let Some(Moments::Host { m, v }) = run.optimizer.moments.remove(name) {
                first.insert(name.clone(), m);
                second.insert(name.clone(), v);
            }
        }
        trainer.write(State::M, &first)?;
        trainer.write(State::V, &second)?;
        let trainer = Arc::new(Mutex::new(trainer));
        let tensors = DeviceTensors::new(trainer.clone(), vars);
        run.devices.push(tensors.clone());
        model.attach(Attached::new(trainer), tensors);
        Ok(())
    }

    /// Moves a model that is not trained to the device, which then computes its passes. Its tensors leave the host unless
    /// another model shares them.
    ///
    /// # Errors
    /// A model that the device cannot compute.
    pub fn score(&self, decoder: &mut Decoder) -> Result<()> {
        let trainer = self.trainer(decoder, &HashMap::new())?;
        decoder.leave_host()?;
        decoder.attach(Attached::new(Arc::new(Mutex::new(trainer))));
        Ok(())
    }

    /// Lets the device compute the passes of the base under the adapters of `trained`, which is on the device.
    ///
    /// # Errors
    /// If `trained` is not.
    pub fn score_base(trained: &Trainable<Decoder>, decoder: &mut Decoder) -> Result<()> {
        let tensors = trained.tensors().context("the model is not on a device")?;
        decoder.attach(Attached::new(Arc::new(Mutex::new(BaseOf(tensors.shared())))));
        Ok(())
    }

    fn trainer(&self, decoder: &Decoder, names: &HashMap<candle_core::TensorId, String>) -> Result<DeviceTrainer> {
        DeviceTrainer::new(decoder, names, self.device.clone(), self.options).context("device")
    }
}

/// Trains a model on the device of the run, if it is not the host. Call it after `run.resume`.
///
/// # Errors
/// Those of [`RunDevice`].
pub fn attach<M: Build>(run: &mut Run<'_>, model: &mut Trainable<M>) -> Result<()> {
    match RunDevice::open(&run.common)? {
        Some(device) => device.train(run, model, ""),
        None => Ok(()),
    }
}

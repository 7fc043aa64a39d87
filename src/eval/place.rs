//! Where evaluated models are computed: on the CPU, or on a GPU.

use std::path::Path;

use anyhow::Result;
use candle_core::Device;
use serde::Deserialize;

use crate::model::heads::classifier::Classifier;
use crate::model::heads::reward::RewardModel;
use crate::model::{self, Decoder, Loaded, Purpose};
use crate::train::args::{DeviceArg, Precision};
use crate::train::on_device::RunDevice;

/// The arguments of every evaluation that say where models are computed.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    #[serde(default = "cpu")]
    pub device: DeviceArg,
    /// Of products on a GPU.
    #[serde(default)]
    pub precision: Precision,
}

fn cpu() -> DeviceArg {
    DeviceArg::Cpu
}

impl Default for Place {
    fn default() -> Self {
        Self { device: cpu(), precision: Precision::F32 }
    }
}

/// Loads models to the place of an evaluation.
pub struct Loader(Option<RunDevice>);

impl Loader {
    /// # Errors
    /// If the device is missing; a precision that the CPU does not have.
    pub fn new(place: Place) -> Result<Self> {
        Ok(Self(RunDevice::for_evaluation(place.device, place.precision)?))
    }

    /// A language model, and what its files say beside its weights.
    ///
    /// # Errors
    /// Files that cannot be read; a model that the device cannot compute.
    pub fn decoder(&self, path: &Path) -> Result<(Decoder, Loaded)> {
        if let Some(device) = &self.0 {
            return device.load(path);
        }
        let loaded = model::load(path, &Device::Cpu)?;
        Ok((Decoder::new(&loaded.config, &loaded.weights, Purpose::Serve)?, loaded))
    }

    /// A reward model, and what its files say.
    ///
    /// # Errors
    /// A model of another kind, and those of `decoder`.
    pub fn reward(&self, path: &Path) -> Result<(RewardModel, Loaded)> {
        if let Some(device) = &self.0 {
            let (trunk, loaded) = device.load_trunk(path)?;
            return Ok((RewardModel::over(trunk, &loaded)?, loaded));
        }
        let loaded = model::load(path, &Device::Cpu)?;
        Ok((RewardModel::new(&loaded)?, loaded))
    }

    /// # Errors
    /// A model of another kind, and those of `decoder`.
    pub fn classifier(&self, path: &Path) -> Result<Classifier> {
        if let Some(device) = &self.0 {
            let (trunk, loaded) = device.load_trunk(path)?;
            return Ok(Classifier::over(trunk, &loaded)?);
        }
        Ok(Classifier::new(&model::load(path, &Device::Cpu)?)?)
    }
}

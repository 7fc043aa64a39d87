//! Where models other than the served versions are computed: on a device of the engine, or on the CPU.

use std::path::Path;

use super::device::Devices;
use super::model_cache::ModelCache;
use crate::gpu::device::Device as _;
use crate::gpu::shared::Shared;
use crate::model::decoder::training::TrainerOptions;
use crate::model::{self, Opened};
use crate::ops::linear::WeightFormat;

/// Where models are loaded.
#[derive(Clone)]
pub struct Place {
    pub devices: Devices,
    pub weights: WeightFormat,
}

/// Memory of a model on a device.
pub struct Placed {
    /// The device's name.
    name: String,
    bytes: u64,
}

/// A model in memory.
pub struct Held<T> {
    pub model: T,
    /// The device that computes it, unless it is the CPU.
    pub device: Option<Placed>,
}

impl Place {
    /// Loads a model to the device with the most free memory. `None` without devices.
    ///
    /// # Errors
    /// A device that cannot be used, files that cannot be read, and those of `load`, with the device's name.
    fn load<T>(
        &self,
        path: &Path,
        load: impl FnOnce(Opened, Shared, TrainerOptions) -> Result<T, String>,
    ) -> Result<Option<Held<T>>, String> {
        let opened = model::open(path).map_err(|e| e.to_string())?;
        let Some((name, device)) = self.devices.open_emptiest()? else { return Ok(None) };
        let options = TrainerOptions::scoring(self.weights, &opened);
        let device = Shared::new(device);
        let before = device.memory().0;
        let model = load(opened, device.clone(), options).map_err(|why| format!("{name}: {why}"))?;
        let bytes = device.memory().0 - before;
        Ok(Some(Held { model, device: Some(Placed { name, bytes }) }))
    }
}

impl<T> Held<T> {
    /// Loads a model to `place` by `on_device`, or by `on_cpu` where that is the CPU or has no room, with a warning in the
    /// log. `what` is a word for the model.
    ///
    /// # Errors
    /// Those of `on_cpu`.
    pub fn load(
        what: &str,
        path: &Path,
        place: Option<&Place>,
        on_device: impl FnOnce(Opened, Shared, TrainerOptions) -> Result<T, String>,
        on_cpu: impl FnOnce(&Path) -> Result<T, String>,
    ) -> Result<Self, String> {
        if let Some(place) = place {
            match place.load(path, on_device) {
                Ok(Some(held)) => return Ok(held),
                Ok(None) => {}
                Err(why) => tracing::warn!(model = %path.display(), %why, "{what} is computed on the CPU"),
            }
        }
        Ok(Self { model: on_cpu(path)?, device: None })
    }
}

impl<T: Send + Sync + 'static> ModelCache<Held<T>> {
    /// Unloads the models that are on devices, to leave their memory to a version that is loaded now. The next request
    /// loads them again.
    pub fn leave_devices(&self) {
        self.retain(|_, held| held.device.is_none());
    }

    /// Bytes of the models on a device.
    pub fn bytes_on(&self, device: &str) -> u64 {
        let bytes = |placed: &Placed| if placed.name == device { placed.bytes } else { 0 };
        self.sum(|held| held.device.as_ref().map_or(0, bytes))
    }
}

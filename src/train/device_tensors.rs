//! The trained tensors of a model that are on a device.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{Device, Error, Result, Tensor};

use super::optim::{AdamConfig, AdamForm, Moments, Params};
use crate::model::DeviceTrainer;
use crate::model::decoder::training::{AdamStep, State};

/// The constants of update number `step` at a learning rate.
pub fn adam_step(config: AdamConfig, step: u64, rate: f64, decay: f64) -> AdamStep {
    let AdamConfig { beta1, beta2, eps, form } = config;
    let (first, second) = (1.0 - beta1.powf(step as f64), 1.0 - beta2.powf(step as f64));
    let corrections = match form {
        AdamForm::Torch => [first, second],
        // lr·√(1−β₂ᵗ)/(1−β₁ᵗ) · m / (√v + ε).
        AdamForm::Tf => [first / second.sqrt(), 1.0],
    };
    AdamStep { rate, beta1, beta2, eps, decay, corrections }
}

/// The trained tensors of a model, which a device holds, and the variables of the host that stand for them.
#[derive(Clone)]
pub struct DeviceTensors {
    trainer: Arc<Mutex<DeviceTrainer>>,
    /// By the names of the run's parameters.
    vars: Params,
    /// Number of changes of the weights that the host has.
    pulled: Arc<AtomicU64>,
}

impl DeviceTensors {
    /// `vars` have the values of the device.
    pub fn new(trainer: Arc<Mutex<DeviceTrainer>>, vars: Params) -> Self {
        let changes = trainer.lock().unwrap_or_else(PoisonError::into_inner).changes();
        Self { trainer, vars, pulled: Arc::new(AtomicU64::new(changes)) }
    }

    /// The names of the tensors among the run's parameters.
    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.vars.keys()
    }

    /// The trainer, which other models may use.
    pub fn shared(&self) -> Arc<Mutex<DeviceTrainer>> {
        self.trainer.clone()
    }

    pub fn trainer(&self) -> MutexGuard<'_, DeviceTrainer> {
        self.trainer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Copies the weights to the host, unless it has them.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn pull(&self) -> Result<()> {
        let mut trainer = self.trainer();
        let now = trainer.changes();
        if self.pulled.load(SeqCst) == now {
            return Ok(());
        }
        for (name, values) in trainer.read(State::Weights).map_err(Error::wrap)? {
            if let Some(var) = self.vars.get(&name) {
                var.set(&Tensor::from_vec(values, var.shape(), &Device::Cpu)?)?;
            }
        }
        self.pulled.store(now, SeqCst);
        Ok(())
    }

    /// The Euclidean norm of the gradients.
    ///
    /// # Errors
    /// If one is not finite.
    pub fn gradient_norm(&self) -> Result<f64> {
        self.trainer().gradient_norm().map_err(Error::wrap)
    }

    /// Drops the gradients.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn clear_gradients(&self) -> Result<()> {
        self.trainer().clear_gradients().map_err(Error::wrap)
    }

    /// One update by the gradients times `scale`.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn apply(&self, step: &AdamStep, scale: f64) -> Result<()> {
        self.trainer().apply(step, scale).map_err(Error::wrap)
    }

    /// The moments, by name.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn moments(&self) -> Result<BTreeMap<String, Moments>> {
        let mut trainer = self.trainer();
        let mut second = trainer.read(State::V).map_err(Error::wrap)?;
        let first = trainer.read(State::M).map_err(Error::wrap)?;
        let both = first.into_iter().filter_map(|(name, m)| {
            let v = second.remove(&name)?;
            Some((name, Moments::Host { m, v }))
        });
        Ok(both.collect())
    }
}

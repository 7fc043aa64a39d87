//! The passes of a trainer as `DevicePasses`.

use std::sync::{Arc, Mutex, PoisonError};

use super::{DeviceTrainer, Pass};
use crate::gpu::device::Device;
use crate::gpu::reserve::{Measure, Reserve};
use crate::gpu::shared::Shared;
use crate::gpu::{GpuError, Slice};
use crate::model::decoder::attached::{DevicePasses, Keep, TargetLogprobs, Wanted};
use crate::model::decoder::device::kernels::numbers;
use crate::model::decoder::device::{DeviceModel, Room};
use crate::model::{Decoder, PackedBatch};

impl DevicePasses for DeviceTrainer {
    fn is_trained(&self) -> bool {
        !self.storage.slabs.is_empty()
    }

    fn passes(&self) -> u64 {
        self.passes
    }

    fn hidden(&mut self, decoder: &Decoder, wanted: Wanted<'_>, keep: Keep) -> Result<Vec<f32>, GpuError> {
        let result = self.forward(decoder, wanted, keep).and_then(|pass| self.head_hidden(pass));
        self.finished(result, keep)
    }

    fn logprobs(
        &mut self,
        decoder: &Decoder,
        wanted: Wanted<'_>,
        temperature: f32,
        keep: Keep,
    ) -> Result<TargetLogprobs, GpuError> {
        let inverse = self.inverse(temperature);
        let result = self.forward(decoder, wanted, keep).and_then(|pass| self.head_logprobs(pass, inverse));
        self.finished(result, keep)
    }

    fn saved_logprobs(&mut self, temperature: f32) -> Result<TargetLogprobs, GpuError> {
        let inverse = self.inverse(temperature);
        let mut pass = self.saved_pass()?;
        let result = self.score(&pass.rows, &mut pass.head, inverse, pass.keep);
        self.pass = Some(pass);
        self.finished(result, Keep::All)
    }

    fn backward(&mut self, grad: &[f32]) -> Result<(), GpuError> {
        let result = self.saved_pass().and_then(|mut pass| {
            let gh = self.head_back(&mut pass, grad)?;
            self.backward_from(pass, gh)
        });
        self.finished(result, Keep::Nothing)
    }

    fn hidden_gradient(&mut self, grad: &[f32]) -> Result<Vec<f32>, GpuError> {
        let mut pass = self.saved_pass()?;
        let result = self.head_back(&mut pass, grad).and_then(|gh| {
            let values = self.downloaded(gh, pass.rows.picked_count * self.config.hidden_size)?;
            self.buffers.give(gh)?;
            Ok(values)
        });
        self.pass = Some(pass);
        self.finished(result, Keep::All)
    }

    fn backward_hidden(&mut self, grad: &[f32]) -> Result<(), GpuError> {
        let result = self.saved_pass().and_then(|pass| {
            let gh = self.buffers.numbers(grad, self.options.element)?;
            self.backward_from(pass, gh)
        });
        self.finished(result, Keep::Nothing)
    }

    fn reserve(&mut self, decoder: &Decoder, tokens: usize) -> Result<(), GpuError> {
        let device = self.buffers.device.clone();
        let mut most = 0;
        for batch in PackedBatch::largest(tokens, self.config.max_positions) {
            let rows = batch.last_rows();
            let measured = Measure::of(|measure| {
                self.buffers.device = measure;
                let wanted = Wanted { batch: &batch, rows: &rows, targets: None };
                self.hidden(decoder, wanted, Keep::Nothing).map(drop)
            });
            self.buffers.device = device.clone();
            most = most.max(measured?);
        }
        self.buffers.device = Shared::new(Box::new(Reserve::new(device, most)?));
        self.take_peak();
        Ok(())
    }

    fn stepping(&mut self, room: Room, temperature: f32) -> Result<DeviceModel, GpuError> {
        self.stepping_model(room, temperature)
    }
}

/// The passes of a trainer's model without its adapters, which take no memory of their own. They have no gradient.
pub struct BaseOf(pub Arc<Mutex<DeviceTrainer>>);

impl BaseOf {
    fn with_base<T>(&self, pass: impl FnOnce(&mut DeviceTrainer) -> Result<T, GpuError>) -> Result<T, GpuError> {
        let mut trainer = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        trainer.base_only = true;
        let result = pass(&mut trainer);
        trainer.base_only = false;
        result
    }
}

/// # Errors
/// Always: the model is not trained.
fn untrained<T>() -> Result<T, GpuError> {
    Err(GpuError::Launch("a model that is not trained has no gradient and generates nothing".to_owned()))
}

impl DevicePasses for BaseOf {
    fn is_trained(&self) -> bool {
        false
    }

    fn passes(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).passes
    }

    fn hidden(&mut self, decoder: &Decoder, wanted: Wanted<'_>, keep: Keep) -> Result<Vec<f32>, GpuError> {
        let keep = if keep == Keep::All { Keep::Hidden } else { keep };
        self.with_base(|trainer| trainer.hidden(decoder, wanted, keep))
    }

    fn logprobs(
        &mut self,
        decoder: &Decoder,
        wanted: Wanted<'_>,
        temperature: f32,
        _: Keep,
    ) -> Result<TargetLogprobs, GpuError> {
        self.with_base(|trainer| trainer.logprobs(decoder, wanted, temperature, Keep::Nothing))
    }

    fn saved_logprobs(&mut self, temperature: f32) -> Result<TargetLogprobs, GpuError> {
        self.with_base(|trainer| trainer.saved_logprobs(temperature))
    }

    fn backward(&mut self, _: &[f32]) -> Result<(), GpuError> {
        untrained()
    }

    fn hidden_gradient(&mut self, _: &[f32]) -> Result<Vec<f32>, GpuError> {
        untrained()
    }

    fn backward_hidden(&mut self, _: &[f32]) -> Result<(), GpuError> {
        untrained()
    }

    fn reserve(&mut self, decoder: &Decoder, tokens: usize) -> Result<(), GpuError> {
        self.with_base(|trainer| trainer.reserve(decoder, tokens))
    }

    fn stepping(&mut self, _: Room, _: f32) -> Result<DeviceModel, GpuError> {
        untrained()
    }
}

impl DeviceTrainer {
    /// The model's divisor of logits.
    pub(super) fn divisor(&self) -> f32 {
        self.config.switches.logit_divisor as f32
    }

    /// The factor of logits at a temperature. That of capped logits does not contain the divisor.
    fn inverse(&self, temperature: f32) -> f32 {
        match self.config.switches.logit_softcap {
            Some(_) => 1.0 / temperature,
            None => 1.0 / (self.divisor() * temperature),
        }
    }

    fn saved_pass(&mut self) -> Result<Pass, GpuError> {
        let none = || GpuError::Launch("a pass is needed that was not saved".to_owned());
        let pass = self.pass.take().ok_or_else(none)?;
        if pass.keep == Keep::Nothing {
            return Err(none());
        }
        Ok(pass)
    }

    /// Frees the buffers of a pass that failed or of which nothing is kept.
    fn finished<T>(&mut self, result: Result<T, GpuError>, keep: Keep) -> Result<T, GpuError> {
        if result.is_err() || keep == Keep::Nothing {
            self.pass = None;
            self.buffers.give_all()?;
        }
        result
    }

    /// `count` values of the element type, on the host as f32.
    pub(super) fn downloaded(&mut self, x: Slice, count: usize) -> Result<Vec<f32>, GpuError> {
        let wide = self.as_f32(x, count)?;
        let download = self.buffers.device.download(wide.slice)?;
        self.give(wide)?;
        self.buffers.device.wait()?;
        Ok(numbers(&self.buffers.device.take(download)?))
    }
}

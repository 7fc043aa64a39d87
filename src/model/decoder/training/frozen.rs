//! Decoders that are not trained, on a device alone: their weights go there from the model's files one block at a time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use super::layout::{Plan, Planner};
use super::storage::Storage;
use super::{DeviceTrainer, Element, MatrixId, TrainerOptions, wide, zeros};
use crate::gpu::GpuError;
use crate::gpu::allocations::all_or_nothing;
use crate::gpu::device::Device;
use crate::gpu::shared::Shared;
use crate::model::decoder::attached::Attached;
use crate::model::decoder::device::weights::{as_bytes, candle};
use crate::model::decoder::device::{Blocks, DeviceFormat};
use crate::model::decoder::embedding_table::EmbeddingTable;
use crate::model::layers::block::layer;
use crate::model::layers::{Builder, Parameters, rope_tables};
use crate::model::{Decoder, Opened, Purpose, Recompute};
use crate::ops::linear::WeightFormat;

/// Values of a table that are copied at a time.
const VALUES: usize = 2 << 20;

impl TrainerOptions {
    /// The options of a model that only scores, where versions are served with weights in `format`: their element type, or
    /// bf16 where that is f16, for which training has no kernels.
    pub fn scoring(format: WeightFormat, opened: &Opened) -> Self {
        let element = match DeviceFormat::new(format, Blocks::Files(opened)).element {
            Element::F32 => Element::F32,
            Element::Bf16 | Element::F16 => Element::Bf16,
        };
        Self::new(element, Recompute::None)
    }
}

impl Decoder {
    /// A decoder whose passes without gradients `device` computes. The host has no copy of its weights, and needs memory
    /// for one block as f32 while it is loaded. `logits`: whether the output matrix is loaded, without which there are
    /// hidden states only.
    ///
    /// # Errors
    /// `OutOfMemory`, after which nothing of it is on the device; heads of more than 256 channels; an encoder; a file
    /// that cannot be read.
    pub fn on_device(opened: &Opened, logits: bool, device: Shared, options: TrainerOptions) -> Result<Self, GpuError> {
        let mut decoder = Self::without_blocks(opened).map_err(candle)?;
        decoder.config.tie_embeddings |= !logits;
        let trainer = DeviceTrainer::from_files(&decoder, opened, device, options)?;
        decoder.leave_host().map_err(candle)?;
        decoder.attach(Attached::new(Arc::new(Mutex::new(trainer))));
        Ok(decoder)
    }
}

impl DeviceTrainer {
    /// Copies the weights of the files to a device; `decoder` has everything but the blocks and the output matrix.
    fn from_files(
        decoder: &Decoder,
        opened: &Opened,
        mut device: Shared,
        options: TrainerOptions,
    ) -> Result<Self, GpuError> {
        let wide = wide(&decoder.config)?;
        let ((plan, placed), _) = all_or_nothing(&mut device, |device| {
            let names = HashMap::new();
            let planner = Planner::new(&decoder.config, &names);
            let mut copies = Copies { planner, storage: Storage::empty(), device, element: options.element };
            let plan = copies.all(decoder, opened)?;
            let zeros = zeros(copies.device, &plan.matrices)?;
            Ok((plan, (copies.storage, zeros)))
        })?;
        Ok(Self::assembled(decoder, (plan, wide), placed, device, options))
    }
}

/// Plans matrices and copies them to the device.
struct Copies<'a> {
    planner: Planner<'a>,
    storage: Storage,
    device: &'a mut dyn Device,
    element: Element,
}

impl Copies<'_> {
    /// Copies the whole model.
    fn all(&mut self, decoder: &Decoder, opened: &Opened) -> Result<Plan, GpuError> {
        let (c, parameters) = (&decoder.config, Parameters::Files(&opened.files));
        let shape = (c.vocab_size, c.hidden_size);
        let embed = self.table(&decoder.embed, shape)?;
        let positions = decoder.positions.as_ref().map(|t| self.planner.whole(t, false)).transpose()?;
        let final_norm = self.planner.norm(&decoder.final_norm)?;
        self.copy()?;
        let b = Builder { config: c, parameters, lora: None, purpose: Purpose::Score };
        let ropes = rope_tables::tables(c);
        let mut blocks = Vec::with_capacity(c.n_layers);
        for i in 0..c.n_layers {
            blocks.push(self.planner.block(&layer(&b, i, &ropes).map_err(candle)?)?);
            self.copy()?;
        }
        let head = match c.tie_embeddings {
            true => embed,
            false => {
                let b = Builder { purpose: Purpose::Serve, ..b };
                self.table(&EmbeddingTable::new(&b, &c.head_name(), shape).map_err(candle)?, shape)?
            }
        };
        let (tensors, matrices) = (Vec::new(), std::mem::take(&mut self.planner.matrices));
        let lowest_trained = blocks.len();
        Ok(Plan { tensors, matrices, embed, positions, blocks, final_norm, head, lowest_trained })
    }

    /// Copies the planned matrices that are not on the device yet, and drops their tensors.
    fn copy(&mut self) -> Result<(), GpuError> {
        let Planner { tensors, matrices, .. } = &self.planner;
        self.storage.add_frozen(self.device, tensors, matrices, self.element)?;
        self.planner.drop_tensors();
        Ok(())
    }

    /// Copies a table [rows, width] part by part.
    fn table(&mut self, table: &EmbeddingTable, (rows, width): (usize, usize)) -> Result<MatrixId, GpuError> {
        let id = self.planner.without_values(rows, width);
        self.copy()?;
        let (to, mut at) = (self.storage.weights[id].value, 0);
        let (device, element) = (&mut *self.device, self.element);
        let mut put = |values: &[f32]| {
            let size = element.bytes();
            let uploaded = device.upload(to.part(at * size, values.len() * size), &as_bytes(element, values));
            at += values.len();
            // Each part is on the device before the next is read.
            uploaded.and_then(|()| device.wait()).map_err(candle_core::Error::wrap)
        };
        table.parts(VALUES, &mut put).map_err(candle)?;
        Ok(id)
    }
}

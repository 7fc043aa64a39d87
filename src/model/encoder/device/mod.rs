//! An encoder on a device: passes over whole texts by kernel launches alone, with one upload and one download. Its weights
//! and activations are in one element type; sums and the hidden states between blocks are f32.

mod pass;
mod weights;

use std::sync::Arc;

use self::pass::{Inputs, Pass};
use self::weights::{Output, Weights};
use crate::gpu::allocations::{all_or_nothing, free_all};
use crate::gpu::device::{Device, Download, launch};
use crate::gpu::launch::{Activate, GatherRows, Matmul};
use crate::gpu::reserve::{Measure, Reserve};
use crate::gpu::shared::Shared;
use crate::gpu::{GpuError, Slice};
use crate::model::decoder::device::Element;
use crate::model::decoder::device::kernels::{self, compiled_width, numbers, up};
use crate::model::decoder::device::scratch::{Packed, Scratch};
use crate::model::decoder::device::weights::Matrix;
use crate::model::layers::rope_tables;
use crate::model::{ModelConfig, Opened, PackedBatch};
use crate::ops::rope::RopeTable;

/// An encoder on a device alone. Its memory is freed when it is dropped.
pub(super) struct DeviceEncoder {
    config: ModelConfig,
    element: Element,
    device: Shared,
    weights: Weights,
    /// Tables of rotary positions of full and of windowed layers.
    ropes: [Option<Arc<RopeTable>>; 2],
    /// Channels of a head that attention's kernels are compiled for.
    wide: usize,
    owned: Vec<Slice>,
}

impl std::fmt::Debug for DeviceEncoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DeviceEncoder")
    }
}

impl Drop for DeviceEncoder {
    fn drop(&mut self) {
        free_all(&mut self.device, self.owned.drain(..));
    }
}

impl DeviceEncoder {
    /// See [`super::Encoder::on_device`].
    pub fn new(opened: &Opened, logits: bool, mut device: Shared, element: Element) -> Result<Self, GpuError> {
        let config = opened.described.config.clone();
        let wide = compiled_width(&config).map_err(GpuError::Launch)?;
        let load = |device: &mut dyn Device| weights::load(opened, logits, device, element);
        let (weights, owned) = all_or_nothing(&mut device, load)?;
        Ok(Self { ropes: rope_tables::tables(&config), config, element, device, weights, wide, owned })
    }

    /// See [`super::Encoder::reserve`].
    pub fn reserve(&mut self, tokens: usize, predicted: usize) -> Result<(), GpuError> {
        let device = self.device.clone();
        let measured = Measure::of(|measure| {
            self.device = measure;
            for batch in PackedBatch::largest(tokens, self.config.max_positions) {
                self.hidden(&batch, &vec![0; batch.len()], Some(&batch.first_rows()))?;
                self.pooler(&vec![0.0; batch.n_sequences() * self.config.hidden_size])?;
            }
            if predicted > 0 && self.mlm_parts() == [true, true] {
                self.mlm_logits(&vec![0.0; predicted * self.config.hidden_size])?;
            }
            Ok(())
        });
        self.device = device.clone();
        self.device = Shared::new(Box::new(Reserve::new(device, measured?)?));
        Ok(())
    }

    /// Final hidden states [rows, d] of some rows, or of all.
    ///
    /// # Errors
    /// No tokens or rows; an id, a segment or a row that does not exist; `OutOfMemory`; a failure of the device.
    pub fn hidden(&self, batch: &PackedBatch, types: &[u32], rows: Option<&[u32]>) -> Result<Vec<f32>, GpuError> {
        let inputs = Inputs::packed(&self.config, &self.ropes, batch, types, rows)?;
        let bytes = self.downloaded(|scratch| {
            let pass = Pass::new(scratch, self, &inputs)?;
            let hidden = pass.run(scratch.device)?;
            let Some(rows) = pass.picked() else { return scratch.device.download(hidden) };
            let (m, d) = (rows.bytes / 4, self.config.hidden_size);
            let picked = scratch.take(m * d * 4)?;
            let launched = GatherRows { x: hidden, rows, y: picked, d: d as i32 };
            launch(scratch.device, "gather_rows.f32", [m, up(d, 1024), 1], &launched)?;
            scratch.device.download(picked)
        })?;
        Ok(numbers(&bytes))
    }

    /// Whether the masked-LM head's dense layer and its output matrix are here.
    pub fn mlm_parts(&self) -> [bool; 2] {
        [self.weights.transform.is_some(), self.weights.output.is_some()]
    }

    /// The layer before a classifier, of rows [m, d], without its activation. `None` where the weights have none.
    ///
    /// # Errors
    /// No rows; `OutOfMemory`; a failure of the device.
    pub fn pooler(&self, rows: &[f32]) -> Result<Option<Vec<f32>>, GpuError> {
        let Some(pooler) = &self.weights.pooler else { return Ok(None) };
        let product = |scratch: &mut Scratch<'_>| {
            let (x, m) = self.rows(scratch, rows)?;
            self.output(scratch, x, pooler, m)
        };
        Ok(Some(with_bias(self.downloaded(product)?, pooler)))
    }

    /// The masked-LM head without its output matrix, of rows [m, d].
    ///
    /// # Errors
    /// Without such a head; those of `pooler`.
    pub fn mlm_transform(&self, rows: &[f32]) -> Result<Vec<f32>, GpuError> {
        let bytes = self.downloaded(|scratch| {
            let (x, _) = self.transformed(scratch, rows)?;
            scratch.device.download(x)
        })?;
        Ok(match self.element {
            Element::F32 => numbers(&bytes),
            Element::Bf16 => numbers(&bytes).into_iter().map(|bits| half::bf16::from_bits(bits).to_f32()).collect(),
            Element::F16 => numbers(&bytes).into_iter().map(|bits| half::f16::from_bits(bits).to_f32()).collect(),
        })
    }

    /// Logits [m, vocab] of rows [m, d].
    ///
    /// # Errors
    /// Those of `mlm_transform`.
    pub fn mlm_logits(&self, rows: &[f32]) -> Result<Vec<f32>, GpuError> {
        let Some(output) = &self.weights.output else { return Err(no_head()) };
        let bytes = self.downloaded(|scratch| {
            let (x, m) = self.transformed(scratch, rows)?;
            self.output(scratch, x, output, m)
        })?;
        Ok(with_bias(bytes, output))
    }

    /// Rows [m, d] in the element type, and m.
    fn rows(&self, scratch: &mut Scratch<'_>, rows: &[f32]) -> Result<(Slice, usize), GpuError> {
        let d = self.config.hidden_size;
        let m = rows.len() / d;
        if m == 0 {
            return Err(GpuError::Launch("a head without rows".to_owned()));
        }
        let mut packed = Packed::default();
        packed.floats(rows);
        packed.ints(0..m);
        let sections = scratch.upload(&packed)?;
        let y = scratch.take(m * d * self.element.bytes())?;
        let launched = GatherRows { x: sections[0], rows: sections[1], y, d: d as i32 };
        let name = format!("gather_rows.{}", self.element.as_str());
        launch(scratch.device, &name, [m, up(d, 1024), 1], &launched)?;
        Ok((y, m))
    }

    fn transformed(&self, scratch: &mut Scratch<'_>, rows: &[f32]) -> Result<(Slice, usize), GpuError> {
        let Some(transform) = &self.weights.transform else { return Err(no_head()) };
        let (x, m) = self.rows(scratch, rows)?;
        let (d, t) = (self.config.hidden_size, self.element.as_str());
        let bytes = m * d * self.element.bytes();
        let [projected, acted, y] = [scratch.take(bytes)?, scratch.take(bytes)?, scratch.take(bytes)?];
        self.product(scratch.device, x, &transform.dense, projected, m)?;
        let name = format!("{}.{t}", kernels::activation(transform.activation, false));
        let launched = Activate { x: projected, y: acted, inner: d as i32 };
        launch(scratch.device, &name, [m, up(d, 1024), 1], &launched)?;
        let norm = &transform.norm;
        let launched = norm.launched([acted, acted, y], [d; 2], 1.0);
        launch(scratch.device, &kernels::norm_of(norm.layer, self.element), [m, 1, 1], &launched)?;
        Ok((y, m))
    }

    /// y [n, out] = x [n, in] · wᵀ + bias, in the element type.
    fn product(&self, device: &mut dyn Device, x: Slice, w: &Matrix, y: Slice, n: usize) -> Result<(), GpuError> {
        let variant = if w.bias.is_some() { "_bias" } else { "" };
        let launched = self.matmul(x, w, y, n);
        let (name, grid) = kernels::matmul(variant, &launched, self.element)?;
        launch(device, &name, grid, &launched)
    }

    fn matmul(&self, x: Slice, w: &Matrix, y: Slice, n: usize) -> Matmul {
        let [n, m, k] = [n, w.out, w.input].map(|size| size as i32);
        Matmul { x, w: w.weight, bias: w.bias.unwrap_or(self.weights.zeros), y, n, m, k }
    }

    /// Requests x [m, in] · wᵀ [m, out], f32, without the bias.
    fn output(&self, scratch: &mut Scratch<'_>, x: Slice, output: &Output, m: usize) -> Result<Download, GpuError> {
        let y = scratch.take(m * output.matrix.out * 4)?;
        let launched = self.matmul(x, &output.matrix, y, m);
        let variant = if self.element == Element::F32 { "" } else { "_out" };
        let (name, grid) = kernels::matmul(variant, &launched, self.element)?;
        launch(scratch.device, &name, grid, &launched)?;
        scratch.device.download(y)
    }

    /// The bytes that `request` downloads; frees what it took.
    fn downloaded(
        &self,
        request: impl FnOnce(&mut Scratch<'_>) -> Result<Download, GpuError>,
    ) -> Result<Vec<u8>, GpuError> {
        let mut device = self.device.clone();
        let mut scratch = Scratch { device: &mut device, held: Vec::new() };
        let requested = request(&mut scratch);
        let freed = scratch.give();
        let done = device.wait();
        let download = requested?;
        freed.and(done)?;
        device.take(download)
    }
}

fn no_head() -> GpuError {
    GpuError::Launch(super::NO_HEAD.to_owned())
}

/// Downloaded f32 outputs, with the bias of their matrix.
fn with_bias(bytes: Vec<u8>, output: &Output) -> Vec<f32> {
    let mut values: Vec<f32> = numbers(&bytes);
    if !output.bias.is_empty() {
        for row in values.chunks_exact_mut(output.bias.len()) {
            row.iter_mut().zip(&output.bias).for_each(|(v, b)| *v += b);
        }
    }
    values
}

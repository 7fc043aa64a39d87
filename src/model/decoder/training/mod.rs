//! Training of a decoder on a device, by kernel launches alone.
//!
//! Weights, gradients and moments of trained tensors stay on the device in f32; frozen tensors are there once, in the
//! element type of the computation, and nothing else is allocated for them. A forward pass over packed sequences saves
//! the activations that its backward pass needs (`Recompute`), and returns log-probs of given tokens to the host, where
//! losses are computed; their gradient starts the backward pass. Sums have a fixed order, so a repeated step gives the
//! same bits.

mod backward;
mod forward;
mod frozen;
mod head;
mod layout;
mod passes;
mod rows;
mod stepping;
mod storage;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use candle_core::TensorId;

use self::forward::SavedBlock;
use self::layout::{Block, MatrixId, Plan, PlannedMatrix, plan};
pub use self::passes::BaseOf;
use self::rows::Rows;
pub use self::storage::State;
use self::storage::{Buffers, Storage, Weight};
use crate::gpu::allocations::{all_or_nothing, free_all};
use crate::gpu::device::{Counts, Device, launch};
use crate::gpu::launch::Launch;
use crate::gpu::launch::backward::{AdamWStep, Squares};
use crate::gpu::shared::Shared;
use crate::gpu::{GpuError, Slice};
use crate::model::decoder::attached::Keep;
use crate::model::decoder::device::kernels::{compiled_width, numbers, up};
pub use crate::model::decoder::device::weights::Element;
use crate::model::layers::rope_tables;
use crate::model::{Decoder, ModelConfig, Recompute};
use crate::ops::rope::RopeTable;

/// Most elements of one launch over a slab.
const MOST: usize = 1 << 30;

/// The settings of a trainer.
#[derive(Clone, Copy, Debug)]
pub struct TrainerOptions {
    /// Element type of weights and activations in products, norms and attention; sums, gradients of weights and the
    /// hidden states between blocks are f32.
    pub element: Element,
    /// The activations that backward passes recompute.
    pub recompute: Recompute,
    /// Most bytes of the logits that are in memory at a time.
    pub logit_bytes: usize,
}

impl TrainerOptions {
    pub fn new(element: Element, recompute: Recompute) -> Self {
        Self { element, recompute, logit_bytes: 256 << 20 }
    }
}

/// The constants of one update of AdamW.
#[derive(Clone, Copy, Debug)]
pub struct AdamStep {
    pub rate: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    /// Weight decay of matrices.
    pub decay: f64,
    /// Divisors of the first and of the second moment.
    pub corrections: [f64; 2],
}

/// A decoder under training on a device.
pub struct DeviceTrainer {
    config: ModelConfig,
    options: TrainerOptions,
    plan: Plan,
    blocks: Vec<Arc<Block>>,
    storage: Storage,
    buffers: Buffers,
    ropes: [Option<Arc<RopeTable>>; 2],
    /// Channels of a head that attention's kernels are compiled for.
    wide: usize,
    /// At least as many zeros as the widest vector.
    zeros: Slice,
    /// The forward pass that is saved.
    pass: Option<Pass>,
    /// Number of forward passes so far.
    passes: u64,
    /// Number of changes of the weights so far.
    changes: u64,
    /// Whether products leave adapters out.
    base_only: bool,
}

/// A forward pass that is saved.
struct Pass {
    rows: Rows,
    keep: Keep,
    /// The blocks from the lowest trained one up.
    blocks: Vec<SavedBlock>,
    head: head::SavedHead,
}

impl DeviceTrainer {
    /// Copies the weights of `decoder`, built for `Purpose::Train`, to a device. `names` are the trained tensors.
    ///
    /// # Errors
    /// `OutOfMemory`; heads of more than 256 channels; weights that are only present in packed form.
    pub fn new(
        decoder: &Decoder,
        names: &HashMap<TensorId, String>,
        mut device: Shared,
        options: TrainerOptions,
    ) -> Result<Self, GpuError> {
        let wide = wide(&decoder.config)?;
        let plan = plan(decoder, names)?;
        let place = |device: &mut dyn Device| {
            let storage = Storage::new(device, &plan, options.element)?;
            Ok((storage, zeros(device, &plan.matrices)?))
        };
        let (placed, _) = all_or_nothing(&mut device, place)?;
        Ok(Self::assembled(decoder, (plan, wide), placed, device, options))
    }

    /// A trainer of the matrices of a plan, which `storage` holds, and of `zeros`.
    fn assembled(
        decoder: &Decoder,
        (mut plan, wide): (Plan, usize),
        (storage, zeros): (Storage, Slice),
        device: Shared,
        options: TrainerOptions,
    ) -> Self {
        Self {
            ropes: rope_tables::tables(&decoder.config),
            buffers: Buffers::new(device),
            config: decoder.config.clone(),
            options,
            blocks: std::mem::take(&mut plan.blocks).into_iter().map(Arc::new).collect(),
            plan,
            storage,
            wide,
            zeros,
            pass: None,
            passes: 0,
            changes: 0,
            base_only: false,
        }
    }

    /// The Euclidean norm of all gradients.
    ///
    /// # Errors
    /// When a gradient is not finite, with the name of a tensor; a failure of the device.
    pub fn gradient_norm(&mut self) -> Result<f64, GpuError> {
        let each = 16 << 10;
        let mut parts = Vec::new();
        for number in 0..self.storage.slabs.len() {
            let (g, len) = (self.storage.slabs[number].g, self.storage.slabs[number].len);
            for from in (0..len).step_by(MOST) {
                let count = MOST.min(len - from);
                let sums = self.buffers.take(up(count, each) * 4)?;
                let launched = Squares { x: g.part(from * 4, count * 4), sums, count: count as i32 };
                self.launch("squares", [up(count, each), 1, 1], &launched)?;
                parts.push((number, from, self.buffers.device.download(sums)?));
                self.buffers.give(sums)?;
            }
        }
        self.buffers.device.wait()?;
        let mut total = 0f64;
        for (number, first, download) in parts {
            let sums: Vec<f32> = numbers(&self.buffers.device.take(download)?);
            for (i, sum) in sums.into_iter().enumerate() {
                if !sum.is_finite() {
                    let from = first + i * each;
                    let name = self.storage.name_at(&self.plan, number, from, from + each);
                    let name = name.unwrap_or_default();
                    return Err(GpuError::Launch(format!("the gradient of {name} is not finite")));
                }
                total += f64::from(sum);
            }
        }
        Ok(total.sqrt())
    }

    /// One update of the trained tensors by the gradients times `scale`, after which these are 0.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn apply(&mut self, step: &AdamStep, scale: f64) -> Result<(), GpuError> {
        self.changes += 1;
        for number in 0..self.storage.slabs.len() {
            let slab = &self.storage.slabs[number];
            let (len, decay) = (slab.len, if slab.decayed { step.decay } else { 0.0 });
            let (p, g, m, v, half) = (slab.p, slab.g, slab.m, slab.v, slab.half);
            for from in (0..len).step_by(MOST) {
                let count = MOST.min(len - from);
                let part = |slice: Slice| slice.part(from * 4, count * 4);
                let launched = AdamWStep {
                    p: part(p),
                    g: part(g),
                    m: part(m),
                    v: part(v),
                    half: half.map_or(part(p), |half| half.part(from * 2, count * 2)),
                    count: count as i32,
                    rate: step.rate as f32,
                    beta1: step.beta1 as f32,
                    beta2: step.beta2 as f32,
                    eps: step.eps as f32,
                    decay: decay as f32,
                    correct1: step.corrections[0] as f32,
                    correct2: step.corrections[1] as f32,
                    clip: scale as f32,
                };
                let name = if half.is_some() { "adamw.bf16" } else { "adamw.f32" };
                self.launch(name, [up(count, 1024), 1, 1], &launched)?;
            }
            self.buffers.device.zero(g)?;
        }
        Ok(())
    }

    /// Number of changes of the weights so far.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// Sets all gradients to 0.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn clear_gradients(&mut self) -> Result<(), GpuError> {
        self.storage.slabs.iter().try_for_each(|slab| self.buffers.device.zero(slab.g))
    }

    /// A state of every trained tensor by name, in the layout of the host.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn read(&mut self, state: State) -> Result<BTreeMap<String, Vec<f32>>, GpuError> {
        self.storage.read(&mut self.buffers.device, &self.plan, state)
    }

    /// Writes a state of trained tensors, in the layout of the host.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn write(&mut self, state: State, values: &BTreeMap<String, Vec<f32>>) -> Result<(), GpuError> {
        self.changes += u64::from(state == State::Weights);
        self.storage.write(&mut self.buffers.device, &self.plan, state, values)
    }

    /// Returns when all requested work is done.
    ///
    /// # Errors
    /// When any of it failed.
    pub fn wait(&mut self) -> Result<(), GpuError> {
        self.buffers.device.wait()
    }

    pub fn counts(&self) -> Counts {
        self.buffers.device.counts()
    }

    /// Bytes in use on the device, and its total bytes.
    pub fn memory(&self) -> (u64, u64) {
        self.buffers.device.memory()
    }

    /// The most bytes that were in use since the last call.
    pub fn take_peak(&mut self) -> u64 {
        std::mem::replace(&mut self.buffers.peak, self.buffers.device.memory().0)
    }

    fn launch<L: Launch>(&mut self, name: &str, grid: [usize; 3], arguments: &L) -> Result<(), GpuError> {
        launch(&mut self.buffers.device, name, grid, arguments)
    }

    fn weight(&self, id: MatrixId) -> Weight {
        self.storage.weights[id]
    }

    fn t(&self) -> &'static str {
        self.options.element.as_str()
    }

    fn residual(&self) -> f32 {
        self.config.switches.residual_scale as f32
    }
}

impl Drop for DeviceTrainer {
    /// Frees the memory of the device, which others may use. A device that has failed frees nothing.
    fn drop(&mut self) {
        let _ = self.buffers.give_all();
        free_all(&mut self.buffers.device, self.storage.slices().chain([self.zeros]));
    }
}

/// Channels of a head that attention's kernels are compiled for.
///
/// # Errors
/// Heads of more than 256 channels.
fn wide(config: &ModelConfig) -> Result<usize, GpuError> {
    compiled_width(config).map_err(|why| GpuError::Launch(format!("{why}; set device to cpu")))
}

/// At least as many zeros as the widest vector has numbers.
fn zeros(device: &mut dyn Device, matrices: &[PlannedMatrix]) -> Result<Slice, GpuError> {
    let widest = matrices.iter().map(|m| m.rows.max(m.width)).max().unwrap_or(1);
    let zeros = device.alloc(widest * 4)?;
    device.zero(zeros)?;
    device.wait()?;
    Ok(zeros)
}

//! Steps of cached sequences on a device: one upload of everything that a step needs, at most ten launches a block for
//! plain families and two more for each matrix that LoRA adapters of its rows change, one download of the requested
//! logits.

mod adapters;
mod formats;
pub(in crate::model) mod kernels;
pub(in crate::model) mod packing;
mod pass;
mod rows;
pub(in crate::model) mod scratch;
pub(in crate::model) mod weights;

use std::sync::Arc;

pub use self::adapters::AdapterImage;
use self::adapters::{Adapters, StepAdapters};
pub(in crate::model) use self::formats::DeviceFormat;
pub use self::formats::{Blocks, Element};
use self::kernels::{compiled_width, numbers};
use self::pass::{Pass, Pending};
use self::rows::{Inputs, buffers, most_scratch, pack};
use self::scratch::Scratch;
use self::weights::{Weights, candle};
use super::Decoder;
use super::kv_cache::{CachedSequence, PAGE, StepRows};
use crate::gpu::allocations::{all_or_nothing, free_all};
use crate::gpu::arena::GRAIN;
use crate::gpu::device::{Counts, Device, Download};
use crate::gpu::{GpuError, Slice};
use crate::model::ModelConfig;
use crate::model::adapters::served::ServedAdapter;
use crate::model::layers::rope_tables;
use crate::ops::linear::WeightFormat;
use crate::ops::rope::RopeTable;

/// The memory that a model on a device needs in addition to its weights.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Requested pages of the cache; fewer are allocated where the memory does not suffice.
    pub pages: usize,
    /// Most tokens of a sequence.
    pub longest: usize,
    /// Most tokens of a step, and most rows of a step whose logits are requested.
    pub rows: usize,
    pub wanted: usize,
}

/// A decoder on a device, with the pages of its cache. `KvCache` keeps the owners of the pages.
pub struct DeviceModel {
    config: ModelConfig,
    element: Element,
    device: Box<dyn Device>,
    weights: Weights,
    /// Keys and values of each block: [pages][kv heads][16][head_dim].
    pages: Vec<[Slice; 2]>,
    page_count: usize,
    ropes: [Option<Arc<RopeTable>>; 2],
    /// Channels that attention's kernels are compiled for.
    wide: usize,
    inverse: f32,
    cap: Option<f32>,
    /// 1 / temperature of the log-probs of drawn tokens.
    drawn_inverse: f32,
    /// Memory that is freed with the model: its pages, and weights that nothing else uses.
    owned: Vec<Slice>,
    room: Room,
    adapters: Adapters,
}

/// A token to be drawn on the device.
#[derive(Clone, Copy, Debug)]
pub struct Draw {
    /// The row of the step whose logits the token is drawn from.
    pub row: u32,
    /// 1 / temperature; 0 draws the most likely token.
    pub inverse_temperature: f32,
    /// A random number in [0, 1).
    pub uniform: f64,
}

/// The results of a step.
#[derive(Debug, Default)]
pub struct StepResult {
    /// Logits [wanted, vocab].
    pub logits: Vec<f32>,
    /// The id of each draw, and its natural log-prob under softmax(logits / temperature of the model's log-probs).
    pub drawn: Vec<(u32, f32)>,
}

impl DeviceModel {
    /// Copies the weights of `decoder`, whose blocks are in `blocks`, and allocates pages in the memory that the largest
    /// step leaves free: the requested number, or as many as fit.
    ///
    /// # Errors
    /// `OutOfMemory`, also when not even one whole context fits; heads of more than 256 channels, ReLU.
    pub fn new(
        decoder: &Decoder,
        blocks: Blocks<'_>,
        mut device: Box<dyn Device>,
        format: WeightFormat,
        room: Room,
    ) -> Result<Self, GpuError> {
        let c = decoder.config.clone();
        let format = DeviceFormat::new(format, blocks);
        let wide = compiled_width(&c).map_err(GpuError::Launch)?;
        let load = |device: &mut dyn Device| weights::load(decoder, blocks, device, format);
        let (weights, owned) = all_or_nothing(device.as_mut(), load)?;
        Self::with_weights(c, device, format.element, (weights, owned), wide, room)
    }

    /// A model of weights that are on the device, with pages in the memory that the largest step leaves free. `owned` is
    /// the memory of the weights that is freed with the model, also if there is no room for the pages.
    ///
    /// # Errors
    /// `OutOfMemory`, also when not even one whole context fits.
    pub(in crate::model::decoder) fn with_weights(
        c: ModelConfig,
        mut device: Box<dyn Device>,
        element: Element,
        (weights, mut owned): (Weights, Vec<Slice>),
        wide: usize,
        room: Room,
    ) -> Result<Self, GpuError> {
        let scratch = most_scratch(&c, element, &weights, room);
        let placed = all_or_nothing(device.as_mut(), |device| {
            let pages = pages(device, &c, element, scratch, room)?;
            // What the largest step needs is taken now, so that no other user of the device gets it first.
            let largest = device.alloc(scratch as usize)?;
            device.free(largest)?;
            device.wait()?;
            Ok(pages)
        });
        let ((pages, page_count), held) = match placed {
            Ok(placed) => placed,
            Err(error) => {
                free_all(device.as_mut(), owned);
                return Err(error);
            }
        };
        owned.extend(held);
        Ok(Self {
            ropes: rope_tables::tables(&c),
            inverse: 1.0 / c.switches.logit_divisor as f32,
            cap: c.switches.logit_softcap.map(|cap| cap as f32),
            config: c,
            element,
            device,
            weights,
            pages,
            page_count,
            wide,
            drawn_inverse: 1.0,
            owned,
            room,
            adapters: Adapters::default(),
        })
    }

    /// Sets the temperature of the log-probs of drawn tokens, which is 1 otherwise.
    pub(in crate::model::decoder) fn set_temperature(&mut self, temperature: f32) {
        self.drawn_inverse = 1.0 / temperature;
    }

    /// Number of pages.
    pub fn page_count(&self) -> usize {
        self.page_count
    }

    pub fn counts(&self) -> Counts {
        self.device.counts()
    }

    /// Bytes in use on the device, and its total bytes.
    pub fn memory(&self) -> (u64, u64) {
        self.device.memory()
    }

    /// The device's PCI address; see [`Device::bus_id`].
    pub fn bus_id(&self) -> Option<String> {
        self.device.bus_id()
    }

    /// Copies a page of every block, before the next step.
    ///
    /// # Errors
    /// When a page does not exist.
    pub fn copy_page(&mut self, from: u32, to: u32) -> Result<(), GpuError> {
        let bytes = self.config.n_kv_heads * PAGE * self.config.head_dim * self.element.bytes();
        for pool in self.pages.iter().flatten() {
            let page = |i: u32| pool.part(i as usize * bytes, bytes);
            self.device.copy(page(from), page(to))?;
        }
        Ok(())
    }

    /// The type of activations, and of adapters' factors.
    pub fn element(&self) -> Element {
        self.element
    }

    /// Copies an adapter of this model to the device, where rows of steps can name it (`StepRows::with_adapter`), and
    /// computes a step of two tokens with it. Its memory is freed by the first step or load after the last reference to
    /// `name` is gone. Returns its bytes.
    ///
    /// # Errors
    /// `OutOfMemory`, also if the largest step would not fit any more; logits that are not finite; a failure of the
    /// device. The adapter is not on the device then.
    pub fn load_adapter(
        &mut self,
        decoder: &Decoder,
        name: &Arc<ServedAdapter>,
        image: &AdapterImage,
    ) -> Result<usize, GpuError> {
        self.adapters.free_unused(self.device.as_mut())?;
        let slice = self.device.alloc(image.data().len())?;
        self.adapters.add(name, image, slice);
        let tried = self.device.upload(slice, image.data()).and_then(|()| self.try_adapter(decoder, name));
        if tried.is_err() {
            let held = self.adapters.take_back();
            held.map_or(Ok(()), |slice| self.device.free(slice))?;
            // An earlier error is the reason of this one.
            let _ = self.device.wait();
        }
        tried.map(|()| slice.bytes)
    }

    fn try_adapter(&mut self, decoder: &Decoder, name: &Arc<ServedAdapter>) -> Result<(), GpuError> {
        let (c, rows) = (&self.config, self.room.rows);
        let most = most_scratch(c, self.element, &self.weights, self.room)
            + self.adapters.most_scratch(&self.weights, rows)?;
        let scratch = self.device.alloc(most as usize)?;
        self.device.free(scratch)?;
        // The pages of the cache have owners: the step gets one of its own, which every block overwrites.
        let page = c.n_kv_heads * PAGE * c.head_dim * self.element.bytes();
        let pool = self.device.alloc(2 * page.next_multiple_of(16))?;
        let half = pool.bytes / 2;
        let mut rows = StepRows::default();
        rows.push(&[0, 1], &CachedSequence { pages: vec![0], ..CachedSequence::default() });
        rows.with_adapter(name, 2);
        let result = self.step_in(Some([pool.part(0, page), pool.part(half, page)]), decoder, &rows, &[1], &[]);
        self.device.free(pool)?;
        match result?.logits.iter().all(|logit| logit.is_finite()) {
            true => Ok(()),
            false => Err(GpuError::Launch("the logits with the adapter are not finite".to_owned())),
        }
    }

    /// Advances cached sequences as `Decoder::step` does. Returns the logits [wanted, vocab] of chosen rows, and the
    /// tokens of `draws`, whose logits stay on the device.
    ///
    /// # Errors
    /// A position or an id that the model does not have; `OutOfMemory`, which leaves the cache unchanged; a failure of
    /// the device.
    pub fn step(
        &mut self,
        decoder: &Decoder,
        rows: &StepRows,
        wanted: &[u32],
        draws: &[Draw],
    ) -> Result<StepResult, GpuError> {
        self.adapters.free_unused(self.device.as_mut())?;
        self.step_in(None, decoder, rows, wanted, draws)
    }

    /// `step` with the pages of the cache, or with keys and values of all blocks in `pool`.
    fn step_in(
        &mut self,
        pool: Option<[Slice; 2]>,
        decoder: &Decoder,
        rows: &StepRows,
        wanted: &[u32],
        draws: &[Draw],
    ) -> Result<StepResult, GpuError> {
        let positions = rows.positions();
        decoder.check_positions(&positions).map_err(candle)?;
        if let Some(id) = rows.ids().iter().find(|id| **id as usize >= self.config.vocab_size) {
            return Err(GpuError::Launch(format!(
                "token {id} is outside the vocabulary of {}",
                self.config.vocab_size
            )));
        }
        let mut adapters = self.adapters.choose(rows.adapters(), &self.weights)?;
        let Self { config, element, device, weights, pages, ropes, wide, inverse, cap, drawn_inverse, .. } = self;
        let mut scratch = Scratch { device: device.as_mut(), held: Vec::new() };
        let mut step = || -> Result<[Option<Download>; 2], GpuError> {
            let inputs = Inputs { rows, positions: &positions, wanted, draws, adapters: adapters.as_ref() };
            let at = pack(&mut scratch, decoder, config, ropes, &inputs)?;
            let buffers = buffers(&mut scratch, config, *element, weights, &at)?;
            let adapters = match adapters.take().zip(at.adapters) {
                Some((chosen, sections)) => Some(StepAdapters::new(&mut scratch, weights, chosen, sections)?),
                None => None,
            };
            let (element, adapters) = (*element, adapters.as_ref());
            let pass = Pass { config, element, weights, wide: *wide, rows: &at, b: &buffers, adapters };
            pass.embed(scratch.device, decoder, rows, &positions)?;
            let mut pending: Pending = None;
            for (i, (block, pools)) in weights.blocks.iter().zip(pages.iter()).enumerate() {
                let pools = pool.as_ref().unwrap_or(pools);
                pending = pass.block(scratch.device, (i, block), pools, pending)?;
            }
            pass.add(scratch.device, pending)?;
            if at.wanted_count == 0 {
                return Ok([None, None]);
            }
            let logits = pass.logits(&mut scratch, *inverse, *cap)?;
            let own = draws.len() * config.vocab_size * 4;
            let drawn = match draws.len() {
                0 => None,
                _ => Some(pass.draw(&mut scratch, logits.part(0, own), draws.len(), *drawn_inverse)?),
            };
            let drawn = drawn.map(|drawn| scratch.device.download(drawn)).transpose()?;
            let rest = logits.part(own, logits.bytes - own);
            let logits = (!wanted.is_empty()).then(|| scratch.device.download(rest)).transpose()?;
            Ok([logits, drawn])
        };
        let downloads = step();
        scratch.give()?;
        let waited = device.wait();
        let [logits, drawn] = downloads?;
        waited?;
        let mut result = StepResult::default();
        if let Some(logits) = logits {
            result.logits = numbers(&device.take(logits)?);
        }
        if let Some(drawn) = drawn {
            let words: Vec<u32> = numbers(&device.take(drawn)?);
            let (ids, logprobs) = words.split_at(words.len() / 2);
            result.drawn =
                ids.iter().zip(logprobs).take(draws.len()).map(|(id, bits)| (*id, f32::from_bits(*bits))).collect();
        }
        Ok(result)
    }
}

impl Drop for DeviceModel {
    /// Frees the memory of the device, which others may use. A device that has failed frees nothing.
    fn drop(&mut self) {
        let owned = std::mem::take(&mut self.owned);
        free_all(self.device.as_mut(), owned.into_iter().chain(self.adapters.slices()));
    }
}

/// Allocates pools of keys and values for each block in the memory that `scratch` bytes leave free. Returns them with
/// the number of their pages: the requested one, or as many as fit.
///
/// # Errors
/// `OutOfMemory`, also when not even one whole context fits.
fn pages(
    device: &mut dyn Device,
    c: &ModelConfig,
    element: Element,
    scratch: u64,
    room: Room,
) -> Result<(Vec<[Slice; 2]>, usize), GpuError> {
    let page = c.n_kv_heads * PAGE * c.head_dim * element.bytes();
    let (used, total) = device.memory();
    let free = (total - used).saturating_sub(scratch);
    // A pool of each kind and block ends at a multiple of the arena's grain.
    let pools = 2 * c.n_layers as u64;
    let fits = (free / pools).saturating_sub(GRAIN) / page as u64;
    let count = room.pages.min(usize::try_from(fits).unwrap_or(usize::MAX));
    let least = room.longest.min(c.max_positions).div_ceil(PAGE).min(room.pages);
    if count < least {
        let wanted = pools * (least * page) as u64;
        return Err(GpuError::OutOfMemory { wanted, free });
    }
    let bytes = count * page;
    let pools = (0..c.n_layers).map(|_| Ok([device.alloc(bytes)?, device.alloc(bytes)?]));
    Ok((pools.collect::<Result<_, GpuError>>()?, count))
}

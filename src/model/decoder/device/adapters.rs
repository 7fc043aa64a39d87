//! LoRA adapters on a device, beside the weights of one base: their factors, and the launches that add their terms to the
//! rows of a step. `kernels/adapters.py` describes how the factors of an adapter are stored.

use std::sync::{Arc, Weak};

use super::kernels::up;
use super::scratch::{Packed, Scratch};
use super::weights::{Element, Matrix, Weights, as_bytes};
use crate::gpu::arena::GRAIN;
use crate::gpu::device::{Device, launch};
use crate::gpu::launch::adapters::{LoraDown, LoraUp};
use crate::gpu::manifest::kernel;
use crate::gpu::{GpuError, Slice};
use crate::model::ModelConfig;
use crate::model::adapters::peft;
use crate::model::adapters::served::{AdapterRows, Factors, Joined, ServedAdapter, by_layer};
use crate::ops::read;

/// The matrices of a block, in the order of their tables.
#[derive(Clone, Copy)]
pub(super) enum Slot {
    Qkv,
    Out,
    Up,
    Down,
}

/// Matrices of a block.
const SLOTS: usize = 4;
/// Ints of a table for one matrix.
const TABLE: usize = 16;
/// Ranks are filled up to a multiple of this.
const RANKS: usize = 16;

/// The extent of an adapter's term of one matrix.
#[derive(Clone, Copy, Debug, Default)]
struct Term {
    /// Sum of the ranks of its modules; 0 where the matrix has no adapter.
    ranks: usize,
    modules: usize,
    /// Most outputs of a module.
    widest: usize,
}

impl Term {
    fn and(self, other: Self) -> Self {
        Self {
            ranks: self.ranks.max(other.ranks),
            modules: self.modules.max(other.modules),
            widest: self.widest.max(other.widest),
        }
    }
}

/// The factors of an adapter as the kernels read them.
pub struct AdapterImage {
    data: Vec<u8>,
    /// By block and matrix.
    terms: Vec<Term>,
}

impl AdapterImage {
    /// The factors of an adapter of a model of `config` in an element type.
    ///
    /// # Errors
    /// When the adapter is of another model, which lacks a module or has it in another shape.
    pub fn new(config: &ModelConfig, element: Element, adapter: &peft::Adapter) -> candle_core::Result<Self> {
        let layers = by_layer(config, adapter, |_| Joined { qkv: true, gate_up: true })?;
        let mut image = Self { data: Vec::new(), terms: vec![Term::default(); layers.len() * SLOTS] };
        let mut tables = vec![[0i32; TABLE]; image.terms.len()];
        image.add(bytemuck::cast_slice(tables.as_flattened()));
        for (layer, factors) in layers.iter().enumerate() {
            for slot in 0..SLOTS {
                let modules: Vec<&Factors<'_>> = factors.iter().filter(|module| module.slot == slot).collect();
                let matrix = layer * SLOTS + slot;
                image.terms[matrix] = image.matrix(element, &modules, &mut tables[matrix])?;
            }
        }
        let tables: &[u8] = bytemuck::cast_slice(tables.as_flattened());
        image.data[..tables.len()].copy_from_slice(tables);
        Ok(image)
    }

    /// Adds the modules of one matrix.
    fn matrix(
        &mut self,
        element: Element,
        modules: &[&Factors<'_>],
        table: &mut [i32; TABLE],
    ) -> candle_core::Result<Term> {
        let mut term = Term { modules: modules.len(), ..Term::default() };
        let mut joint = Vec::new();
        for (i, module) in modules.iter().enumerate() {
            if i > 0 {
                table[1 + i] = (term.ranks / RANKS) as i32;
            }
            let a = read(module.a)?;
            let rank = module.rank.next_multiple_of(RANKS);
            joint.extend_from_slice(&a);
            joint.resize(joint.len() + (rank - module.rank) * (a.len() / module.rank), 0.0);
            term.ranks += rank;
            term.widest = term.widest.max(module.width);
        }
        if modules.is_empty() {
            return Ok(term);
        }
        table[0] = (term.ranks / RANKS) as i32;
        table[1] = self.add(&as_bytes(element, &joint));
        for (i, module) in modules.iter().enumerate() {
            let rank = module.rank.next_multiple_of(RANKS);
            let mut b = vec![0f32; module.width * rank];
            for (to, from) in b.chunks_exact_mut(rank).zip(read(module.b)?.chunks_exact(module.rank)) {
                to[..from.len()].copy_from_slice(from);
            }
            let entry =
                [(rank / RANKS) as i32, self.add(&as_bytes(element, &b)), module.at as i32, module.width as i32];
            table[4 + 4 * i..8 + 4 * i].copy_from_slice(&entry);
        }
        Ok(term)
    }

    /// Adds a part; returns its unit.
    fn add(&mut self, bytes: &[u8]) -> i32 {
        let at = self.data.len();
        self.data.extend_from_slice(bytes);
        self.data.resize(self.data.len().next_multiple_of(GRAIN as usize), 0);
        (at / GRAIN as usize) as i32
    }

    pub(super) fn data(&self) -> &[u8] {
        &self.data
    }
}

/// An adapter on the device.
struct Held {
    name: Weak<ServedAdapter>,
    slice: Slice,
    terms: Vec<Term>,
}

/// The adapters on the device. Their memory is freed after the last reference to their name is gone.
#[derive(Default)]
pub(super) struct Adapters(Vec<Held>);

impl Adapters {
    /// Frees the adapters that nobody names any more.
    pub fn free_unused(&mut self, device: &mut dyn Device) -> Result<(), GpuError> {
        let mut unused = self.0.extract_if(.., |held| held.name.strong_count() == 0);
        unused.try_for_each(|held| device.free(held.slice))
    }

    /// Adds an adapter whose image is, or will be before the next step, at `slice`.
    pub fn add(&mut self, name: &Arc<ServedAdapter>, image: &AdapterImage, slice: Slice) {
        self.0.push(Held { name: Arc::downgrade(name), slice, terms: image.terms.clone() });
    }

    /// Takes the last adapter back; returns its memory.
    pub fn take_back(&mut self) -> Option<Slice> {
        self.0.pop().map(|held| held.slice)
    }

    /// All memory.
    pub fn slices(&self) -> impl Iterator<Item = Slice> {
        self.0.iter().map(|held| held.slice)
    }

    /// The most bytes that a step of `rows` rows needs for these adapters.
    pub fn most_scratch(&self, weights: &Weights, rows: usize) -> Result<u64, GpuError> {
        let Some(ranks) = self.0.iter().flat_map(|held| &held.terms).map(|term| term.ranks).max() else { return Ok(0) };
        let matrices = weights.blocks.iter().flat_map(|b| [&b.qkv, &b.out, &b.up, &b.down]);
        let splits = up(matrices.map(|m| m.input).max().unwrap_or(0), split()?);
        // Each row may have an adapter of its own: a row, a tile of four ints, a place.
        let packed = rows * (4 + 16 + 8) + 3 * 16;
        Ok([splits * rows * ranks * 4, packed].into_iter().map(|n| (n as u64).next_multiple_of(GRAIN)).sum())
    }

    /// The rows of a step that have adapters; `None` without any.
    ///
    /// # Errors
    /// When an adapter is not on this device.
    pub fn choose(&self, rows: &[AdapterRows], weights: &Weights) -> Result<Option<Chosen>, GpuError> {
        if rows.is_empty() {
            return Ok(None);
        }
        let height = kernel("lora_up.f32")?.constant("BN");
        let none = vec![Term::default(); weights.blocks.len() * SLOTS];
        let mut chosen = Chosen { places: Vec::new(), tiles: Vec::new(), rows: Vec::new(), terms: none };
        for (i, AdapterRows { adapter, rows }) in rows.iter().enumerate() {
            let held = self.0.iter().find(|held| std::ptr::eq(held.name.as_ptr(), Arc::as_ptr(adapter)));
            let held = held.ok_or_else(|| GpuError::Launch("an adapter is not on this device".to_owned()))?;
            let apart = held.slice.address.wrapping_sub(weights.zeros.address).cast_signed();
            if apart % GRAIN as i64 != 0 {
                return Err(GpuError::Launch(format!("an adapter is {apart} bytes from the weights")));
            }
            chosen.places.push(apart / GRAIN as i64);
            for (n, part) in rows.chunks(height).enumerate() {
                chosen.tiles.extend([chosen.rows.len() + n * height, part.len(), i, 0]);
            }
            chosen.rows.extend(rows.iter().map(|row| *row as usize));
            chosen.terms.iter_mut().zip(&held.terms).for_each(|(all, own)| *all = all.and(*own));
        }
        Ok(Some(chosen))
    }
}

/// Inputs that one program of `lora_down` sums.
fn split() -> Result<usize, GpuError> {
    Ok(kernel("lora_down.f32")?.constant("SPLIT"))
}

/// The rows of a step that have adapters.
pub(super) struct Chosen {
    /// Distance of each adapter from the weights, in units.
    places: Vec<i64>,
    tiles: Vec<usize>,
    rows: Vec<usize>,
    /// By block and matrix, the largest of the adapters.
    terms: Vec<Term>,
}

impl Chosen {
    /// Adds the sections of the step's upload: places, tiles, rows.
    pub fn pack(&self, packed: &mut Packed) -> [usize; 3] {
        let places = packed.push(bytemuck::cast_slice(&self.places));
        [places, packed.ints(self.tiles.iter().copied()), packed.ints(self.rows.iter().copied())]
    }
}

/// The adapters of a step on the device.
pub(super) struct StepAdapters {
    chosen: Chosen,
    /// A place from which adapters are found by their distance.
    origin: Slice,
    sections: [Slice; 3],
    low: Slice,
    split: usize,
}

impl StepAdapters {
    pub fn new(
        scratch: &mut Scratch<'_>,
        weights: &Weights,
        chosen: Chosen,
        sections: [Slice; 3],
    ) -> Result<Self, GpuError> {
        let split = split()?;
        let of_block = |(i, b): (usize, &super::weights::Block)| {
            let inputs = [&b.qkv, &b.out, &b.up, &b.down].map(|matrix| matrix.input);
            let terms = &chosen.terms[i * SLOTS..];
            inputs.iter().zip(terms).map(|(k, term)| up(*k, split) * term.ranks).max().unwrap_or(0)
        };
        let most = weights.blocks.iter().enumerate().map(of_block).max().unwrap_or(0);
        let low = scratch.take((most * chosen.rows.len() * 4).max(16))?;
        Ok(Self { chosen, origin: weights.zeros.part(0, 16), sections, low, split })
    }

    /// y += B · A · x in the rows that have adapters, for matrix `slot` of block `block`, whose outputs are in y: two
    /// launches, or none where no adapter changes the matrix.
    pub fn apply(
        &self,
        device: &mut dyn Device,
        element: Element,
        (block, slot): (usize, Slot),
        matrix: &Matrix,
        [x, y]: [Slice; 2],
    ) -> Result<(), GpuError> {
        let number = block * SLOTS + slot as usize;
        let term = self.chosen.terms[number];
        if term.ranks == 0 {
            return Ok(());
        }
        let ([places, tiles, rows], t, k) = (self.sections, element.as_str(), matrix.input);
        let (tile_count, splits) = (self.chosen.tiles.len() / 4, up(k, self.split));
        let [count, stride] = [self.chosen.rows.len(), term.ranks].map(|n| n as i32);
        let (factors, tables, low, number) = (self.origin, self.origin, self.low, number as i32);
        let k32 = k as i32;
        let down = LoraDown { x, factors, tables, places, tiles, rows, low, count, k: k32, stride, matrix: number };
        let name = format!("lora_down{}.{t}", if k.is_multiple_of(8) { "" } else { "_any" });
        let wide = kernel(&name)?.constant("BR");
        launch(device, &name, [tile_count, up(term.ranks, wide), splits], &down)?;
        let (m, splits) = (matrix.out as i32, splits as i32);
        let added = LoraUp { low, factors, tables, places, tiles, rows, y, count, splits, stride, m, matrix: number };
        let name = format!("lora_up.{t}");
        let wide = kernel(&name)?.constant("BM");
        launch(device, &name, [up(term.widest, wide), tile_count, term.modules], &added)
    }
}

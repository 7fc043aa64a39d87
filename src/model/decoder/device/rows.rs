//! The memory of one step on a device: its rows, packed for one upload, and buffers that are freed when it ends.

use std::sync::Arc;

use super::adapters::Chosen;
use super::scratch::{Packed, Scratch};
use super::weights::{Block, Element, Weights, candle};
use super::{Draw, Room};
use crate::gpu::arena::GRAIN;
use crate::gpu::{GpuError, Slice};
use crate::model::decoder::kv_cache::{PAGE, StepRows};
use crate::model::{Decoder, ModelConfig};
use crate::ops::rope::RopeTable;

/// Number of keys that one program of attention reads; compiled into every kernel.
const SPLIT: usize = 256;
/// Widths of page tables are multiples of this.
const TABLE_STEP: usize = 32;
/// Query rows and heads of a tile of attention.
const TILE: usize = 16;

/// The inputs of a step on the device.
pub(super) struct Rows {
    pub n: usize,
    pub ids: Slice,
    pub positions: Slice,
    pub every: Slice,
    pub slots: Slice,
    pub tables: Slice,
    pub table_width: usize,
    pub tiles: Slice,
    pub tile_count: usize,
    pub splits: usize,
    /// The rows of draws, then those whose logits are requested.
    pub wanted: Slice,
    pub wanted_count: usize,
    /// Of each draw, its random number (f64) and its inverse temperature.
    pub uniforms: Slice,
    pub inverses: Slice,
    /// cos and sin of each table, [n, half], and the pairs of channels.
    pub rope: [Option<(Slice, Slice, usize)>; 2],
    /// The sections of the rows that have adapters.
    pub adapters: Option<[Slice; 3]>,
}

/// Buffers of a step.
pub(super) struct Buffers {
    /// The hidden states [n, d], f32.
    pub x: Slice,
    pub normed: Slice,
    pub qkv: Slice,
    pub q: Slice,
    pub mixed: Slice,
    pub branch: [Slice; 2],
    pub up: Slice,
    pub act: Slice,
    pub partial: Slice,
    pub maxima: Slice,
    pub sums: Slice,
}

/// What a step computes.
pub(super) struct Inputs<'a> {
    pub rows: &'a StepRows,
    /// The position of each row.
    pub positions: &'a [u32],
    /// Rows whose logits are requested.
    pub wanted: &'a [u32],
    pub draws: &'a [Draw],
    /// The rows that have adapters.
    pub adapters: Option<&'a Chosen>,
}

/// Uploads the inputs of the step.
pub(super) fn pack(
    scratch: &mut Scratch<'_>,
    decoder: &Decoder,
    c: &ModelConfig,
    ropes: &[Option<Arc<RopeTable>>; 2],
    inputs: &Inputs<'_>,
) -> Result<Rows, GpuError> {
    let Inputs { rows, positions, wanted, draws, adapters } = *inputs;
    let mut packed = Packed::default();
    let n = positions.len();
    let ids = packed.ints(rows.ids().iter().map(|id| *id as usize));
    let at = packed.ints(positions.iter().map(|p| *p as usize));
    let every = packed.ints(0..n);
    // Widths in steps, so that the buffers of most steps have the same places and their launches repeat.
    let table_width = rows.spans().map(|s| s.pages.len()).max().unwrap_or(1).next_multiple_of(TABLE_STEP);
    let (mut slots, mut tables, mut tiles) = (Vec::new(), Vec::new(), Vec::new());
    let group = c.n_heads / c.n_kv_heads;
    let heads = group.min(TILE);
    for (sequence, span) in rows.spans().enumerate() {
        slots.extend((span.start..span.start + span.len).map(|p| span.pages[p / PAGE] as usize * PAGE + p % PAGE));
        tables.extend(span.pages.iter().map(|p| *p as usize));
        tables.resize((sequence + 1) * table_width, 0);
        for from in (0..span.len).step_by(TILE / heads) {
            let count = (TILE / heads).min(span.len - from);
            for head in (0..group).step_by(heads) {
                let some = heads.min(group - head);
                tiles.extend([span.first_row + from, count, sequence, span.start + from, head, some, 0, 0]);
            }
        }
    }
    let tile_count = tiles.len() / 8;
    let (slots, tables, tiles) = (packed.ints(slots), packed.ints(tables), packed.ints(tiles));
    let wanted_rows = packed.ints(draws.iter().map(|draw| draw.row).chain(wanted.iter().copied()).map(|r| r as usize));
    let uniforms: Vec<f64> = draws.iter().map(|draw| draw.uniform).collect();
    let uniforms = packed.push(bytemuck::cast_slice(&uniforms));
    let inverses: Vec<f32> = draws.iter().map(|draw| draw.inverse_temperature).collect();
    let inverses = packed.floats(&inverses);
    let rotary = decoder.rotary_of(rows);
    let mut turns = [None, None];
    for (turn, table) in turns.iter_mut().zip(ropes) {
        let Some(table) = table else { continue };
        table.check(&rotary).map_err(candle)?;
        let (mut cos, mut sin, mut own) = (Vec::new(), Vec::new(), Default::default());
        for row in &rotary {
            let (c, s) = table.cos_sin(*row, &mut own);
            cos.extend_from_slice(c);
            sin.extend_from_slice(s);
        }
        *turn = Some((packed.floats(&cos), packed.floats(&sin), table.half));
    }
    let adapters = adapters.map(|chosen| chosen.pack(&mut packed));
    let all = scratch.take(packed.data.len())?;
    scratch.device.upload(all, &packed.data)?;
    let part = |section: usize| all.part(packed.sections[section].0, packed.sections[section].1);
    Ok(Rows {
        n,
        ids: part(ids),
        positions: part(at),
        every: part(every),
        slots: part(slots),
        tables: part(tables),
        table_width,
        tiles: part(tiles),
        tile_count,
        splits: positions.iter().max().map_or(1, |p| *p as usize / SPLIT + 1),
        wanted: part(wanted_rows),
        wanted_count: draws.len() + wanted.len(),
        uniforms: part(uniforms),
        inverses: part(inverses),
        rope: turns.map(|turn| turn.map(|(cos, sin, half)| (part(cos), part(sin), half))),
        adapters: adapters.map(|sections| sections.map(part)),
    })
}

/// Bytes of each buffer of a step of `n` rows whose last position is in range `splits` of 256 keys, in the order of
/// `Buffers`; both branches are equal.
fn sizes(c: &ModelConfig, element: Element, weights: &Weights, n: usize, splits: usize) -> [usize; 12] {
    let size = element.bytes();
    let (d, mixed) = (c.hidden_size, c.n_heads * c.head_dim);
    let widest = |of: fn(&Block) -> usize| weights.blocks.iter().map(of).max().unwrap_or(0);
    let lines = splits * n * c.n_heads;
    [
        n * d * 4,
        n * d * size,
        n * widest(|b| b.qkv.out) * size,
        n * mixed * size,
        n * mixed * size,
        n * d * size,
        n * d * size,
        n * widest(|b| b.up.out) * size,
        n * widest(|b| b.down.input) * size,
        lines * c.head_dim * 4,
        lines * 4,
        lines * 4,
    ]
}

/// Bytes of the buffers of `logits`: selected rows of the hidden states, their norms, logits.
pub(super) fn logit_sizes(c: &ModelConfig, element: Element, wanted: usize) -> [usize; 3] {
    let (d, vocab) = (c.hidden_size, c.vocab_size);
    [wanted * d * 4, wanted * d * element.bytes(), wanted * vocab * 4]
}

/// The most bytes that steps within `room` need in addition to weights and pages.
pub(super) fn most_scratch(c: &ModelConfig, element: Element, weights: &Weights, room: Room) -> u64 {
    let longest = room.longest.min(c.max_positions);
    let splits = longest.div_ceil(SPLIT);
    let buffers = sizes(c, element, weights, room.rows, splits);
    // For each row: nine numbers, at most a tile of eight for each head, cos and sin of two tables.
    let packed = room.rows * (9 * 4 + c.n_heads * 8 * 4 + 4 * c.head_dim * 4);
    // For each sequence its pages; each row may be a sequence.
    let tables = room.rows * longest.div_ceil(PAGE).next_multiple_of(TABLE_STEP) * 4;
    // Drawn ids, log-probs, sums and entropies.
    let drawn = [2 * (room.wanted * 4 + 16); 2];
    let parts =
        buffers.into_iter().chain(logit_sizes(c, element, room.wanted)).chain([packed + tables + 16 * 16]).chain(drawn);
    parts.map(|bytes| (bytes as u64).next_multiple_of(GRAIN)).sum()
}

pub(super) fn buffers(
    scratch: &mut Scratch<'_>,
    c: &ModelConfig,
    element: Element,
    weights: &Weights,
    rows: &Rows,
) -> Result<Buffers, GpuError> {
    let sizes = sizes(c, element, weights, rows.n, rows.splits);
    let mut take = |i: usize| scratch.take(sizes[i]);
    Ok(Buffers {
        x: take(0)?,
        normed: take(1)?,
        qkv: take(2)?,
        q: take(3)?,
        mixed: take(4)?,
        branch: [take(5)?, take(6)?],
        up: take(7)?,
        act: take(8)?,
        partial: take(9)?,
        maxima: take(10)?,
        sums: take(11)?,
    })
}

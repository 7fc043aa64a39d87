//! The inputs of one pass on the device: tokens of packed sequences, their positions, and the rows that a loss reads.

use std::sync::Arc;

use super::storage::Buffers;
use crate::gpu::{GpuError, Slice};
use crate::model::Decoder;
use crate::model::decoder::attached::Wanted;
use crate::model::decoder::device::weights::candle;
use crate::ops::rope::RopeTable;

/// Rows of a gradient grouped by the row of a table that they are added to.
#[derive(Clone, Copy)]
pub(super) struct Groups {
    /// Rows of the gradient, group after group.
    pub order: Slice,
    /// Begin of each group in `order`, and the end of the last.
    pub starts: Slice,
    /// Row of the table of each group.
    pub ids: Slice,
    /// Number of groups.
    pub count: usize,
}

impl Groups {
    /// Groups the rows 0, 1, … by `ids`. Rows of the id `skip` are left out; `None` when none is left.
    fn new(
        buffers: &mut Buffers,
        ids: impl Iterator<Item = usize>,
        skip: Option<usize>,
    ) -> Result<Option<Self>, GpuError> {
        let mut order: Vec<(usize, usize)> =
            ids.enumerate().map(|(row, id)| (id, row)).filter(|(id, _)| Some(*id) != skip).collect();
        order.sort_unstable();
        let starts: Vec<usize> = (0..order.len()).filter(|i| *i == 0 || order[i - 1].0 != order[*i].0).collect();
        if starts.is_empty() {
            return Ok(None);
        }
        Ok(Some(Self {
            order: buffers.ints(order.iter().map(|(_, row)| *row))?,
            starts: buffers.ints(starts.iter().copied().chain([order.len()]))?,
            ids: buffers.ints(starts.iter().map(|start| order[*start].0))?,
            count: starts.len(),
        }))
    }
}

/// The inputs of a pass.
pub(super) struct Rows {
    /// Number of tokens.
    pub n: usize,
    pub ids: Slice,
    /// Positions in the sequences.
    pub positions: Slice,
    /// 0, 1, … for every token and every requested row.
    pub every: Slice,
    /// Begins of the sequences and the end of the last.
    pub offsets: Slice,
    pub sequences: usize,
    pub longest: usize,
    /// cos and sin of each table, [n, half], and the pairs of channels.
    pub rope: [Option<(Slice, Slice, usize)>; 2],
    /// Rows whose hidden states are requested, their number, and the targets there.
    pub picked: Slice,
    pub picked_count: usize,
    pub targets: Slice,
    pub picked_groups: Option<Groups>,
    /// Tokens by id, and by position.
    pub words: Option<Groups>,
    pub places: Option<Groups>,
}

impl Rows {
    /// Copies the inputs of a pass to the device. `grouped`: whether embeddings get a gradient.
    ///
    /// # Errors
    /// No tokens or rows; an id, a position, a row or a target that does not exist.
    pub fn new(
        buffers: &mut Buffers,
        decoder: &Decoder,
        ropes: &[Option<Arc<RopeTable>>; 2],
        Wanted { batch, rows: picked, targets }: Wanted<'_>,
        grouped: bool,
    ) -> Result<Self, GpuError> {
        let (n, vocab) = (batch.len(), decoder.config.vocab_size);
        if n == 0 || picked.is_empty() {
            return Err(GpuError::Launch("a pass without tokens or without rows".to_owned()));
        }
        decoder.check_positions(&batch.positions).map_err(candle)?;
        let ids = batch.ids.iter().chain(targets.unwrap_or_default());
        if let Some(id) = ids.into_iter().find(|id| **id as usize >= vocab) {
            return Err(GpuError::Launch(format!("token {id} is outside the vocabulary of {vocab}")));
        }
        if let Some(row) = picked.iter().find(|row| **row as usize >= n) {
            return Err(GpuError::Launch(format!("row {row} is outside the {n} tokens")));
        }
        let rotary = decoder.rows(batch).rotary;
        let mut turns = [None, None];
        for (turn, table) in turns.iter_mut().zip(ropes) {
            let Some(table) = table else { continue };
            table.check(&rotary).map_err(candle)?;
            let (mut cos, mut sin, mut own) = (Vec::new(), Vec::new(), Default::default());
            for row in rotary.iter() {
                let (c, s) = table.cos_sin(*row, &mut own);
                cos.extend_from_slice(c);
                sin.extend_from_slice(s);
            }
            let element = super::Element::F32;
            *turn = Some((buffers.numbers(&cos, element)?, buffers.numbers(&sin, element)?, table.half));
        }
        let wide = |values: &[u32]| values.iter().map(|v| *v as usize).collect::<Vec<_>>();
        let (ids, positions, picked) = (wide(&batch.ids), wide(&batch.positions), wide(picked));
        let padding = decoder.config.frozen_padding().map(|id| id as usize);
        let words = if grouped { Groups::new(buffers, ids.iter().copied(), padding)? } else { None };
        let places = if grouped { Groups::new(buffers, positions.iter().copied(), None)? } else { None };
        Ok(Self {
            n,
            ids: buffers.ints(ids)?,
            positions: buffers.ints(positions)?,
            every: buffers.ints(0..n.max(picked.len()))?,
            offsets: buffers.ints(batch.offsets.iter().copied())?,
            sequences: batch.n_sequences(),
            longest: batch.offsets.windows(2).map(|span| span[1] - span[0]).max().unwrap_or(0),
            rope: turns,
            picked_count: picked.len(),
            picked_groups: Groups::new(buffers, picked.iter().copied(), None)?,
            targets: buffers.ints(targets.map(wide).unwrap_or_else(|| vec![0; picked.len()]))?,
            picked: buffers.ints(picked)?,
            words,
            places,
        })
    }
}

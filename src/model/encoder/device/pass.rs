//! The launches of one pass over packed texts: eight for a block with norms of sums, nine for one with norms before its
//! parts and rotary positions.

use std::sync::Arc;

use super::DeviceEncoder;
use crate::gpu::device::{Device, launch};
use crate::gpu::launch::backward::Rotate;
use crate::gpu::launch::encoders::AttendBoth;
use crate::gpu::launch::{Activate, Add, Embed, GatherRows};
use crate::gpu::manifest::kernel;
use crate::gpu::{GpuError, Slice};
use crate::model::decoder::device::kernels::{self, up};
use crate::model::decoder::device::scratch::{Packed, Scratch};
use crate::model::decoder::device::weights::{Block, NormWeights, candle};
use crate::model::{ModelConfig, PackedBatch};
use crate::ops::rope::{RopeTable, Row};

/// The inputs of a pass, to be uploaded.
pub(super) struct Inputs {
    packed: Packed,
    n: usize,
    sequences: usize,
    longest: usize,
    /// Pairs of channels that each table of rotary positions rotates, and the sections of its cos and sin.
    ropes: [Option<(usize, [usize; 2])>; 2],
    picked: Option<usize>,
}

/// Sections of the upload that every pass has, in their order.
const IDS: usize = 0;
/// Rows of the table of positions.
const PLACES: usize = 1;
/// Positions in the sequences, which are the rows of the tables of rotary positions.
const POSITIONS: usize = 2;
const TYPES: usize = 3;
const OFFSETS: usize = 4;

impl Inputs {
    /// # Errors
    /// No tokens or rows; an id, a segment, a row or a rotary position that does not exist.
    pub fn packed(
        c: &ModelConfig,
        ropes: &[Option<Arc<RopeTable>>; 2],
        batch: &PackedBatch,
        types: &[u32],
        picked: Option<&[u32]>,
    ) -> Result<Self, GpuError> {
        let (n, refused) = (batch.len(), |why: String| Err(GpuError::Launch(why)));
        if n == 0 || picked.is_some_and(<[u32]>::is_empty) {
            return refused("a pass without tokens or without rows".to_owned());
        }
        if let Some(id) = batch.ids.iter().find(|id| **id as usize >= c.vocab_size) {
            return refused(format!("token {id} is outside the vocabulary of {}", c.vocab_size));
        }
        let segments = c.type_vocab_size;
        if let Some(segment) = types.iter().find(|segment| segments > 0 && **segment as usize >= segments) {
            return refused(format!("segment {segment} is outside the model's {segments}"));
        }
        if let Some(row) = picked.and_then(|rows| rows.iter().find(|row| **row as usize >= n)) {
            return refused(format!("row {row} is outside the {n} tokens"));
        }
        let wide = |values: &[u32]| values.iter().map(|v| *v as usize).collect::<Vec<_>>();
        let positions = wide(&batch.positions);
        let mut packed = Packed::default();
        packed.ints(wide(&batch.ids));
        packed.ints(positions.iter().map(|position| position + c.switches.position_offset));
        packed.ints(positions.iter().copied());
        packed.ints(wide(types));
        packed.ints(batch.offsets.iter().copied());
        let picked = picked.map(|rows| packed.ints(wide(rows)));
        let rows: Vec<Row> = (0..=positions.iter().copied().max().unwrap_or(0)).map(|p| p as Row).collect();
        let mut sections = [None, None];
        for (i, table) in ropes.iter().enumerate() {
            let Some(table) = table else { continue };
            if i == 1 && ropes[0].as_ref().is_some_and(|full| Arc::ptr_eq(full, table)) {
                sections[1] = sections[0];
                continue;
            }
            table.check(&rows).map_err(candle)?;
            let (mut cos, mut sin, mut own) = (Vec::new(), Vec::new(), Default::default());
            for row in &rows {
                let (c, s) = table.cos_sin(*row, &mut own);
                cos.extend_from_slice(c);
                sin.extend_from_slice(s);
            }
            sections[i] = Some((table.half, [packed.floats(&cos), packed.floats(&sin)]));
        }
        Ok(Self {
            packed,
            n,
            sequences: batch.n_sequences(),
            longest: batch.offsets.windows(2).map(|span| span[1] - span[0]).max().unwrap_or(0),
            ropes: sections,
            picked,
        })
    }
}

/// A pass whose inputs are on the device.
pub(super) struct Pass<'a> {
    encoder: &'a DeviceEncoder,
    inputs: &'a Inputs,
    sections: Vec<Slice>,
    /// Hidden states [n, d], f32.
    x: Slice,
    /// The input of the next part [n, d]: the hidden states, or their norm. This and the following have the element type.
    input: Slice,
    qkv: Slice,
    mixed: Slice,
    /// A term [n, d] that is to be added to the hidden states.
    branch: Slice,
    up: Slice,
    act: Slice,
}

impl<'a> Pass<'a> {
    pub fn new(scratch: &mut Scratch<'_>, encoder: &'a DeviceEncoder, inputs: &'a Inputs) -> Result<Self, GpuError> {
        let (c, n, size) = (&encoder.config, inputs.n, encoder.element.bytes());
        let widest = |of: fn(&Block) -> usize| encoder.weights.blocks.iter().map(of).max().unwrap_or(1);
        let sections = scratch.upload(&inputs.packed)?;
        let mut rows = |width: usize, size: usize| scratch.take(n * width * size);
        Ok(Self {
            encoder,
            inputs,
            sections,
            x: rows(c.hidden_size, 4)?,
            input: rows(c.hidden_size, size)?,
            qkv: rows(3 * c.n_heads * c.head_dim, size)?,
            mixed: rows(c.n_heads * c.head_dim, size)?,
            branch: rows(c.hidden_size, size)?,
            up: rows(widest(|block| block.up.out), size)?,
            act: rows(widest(|block| block.down.input), size)?,
        })
    }

    /// The rows whose hidden states are requested; `None` for all.
    pub fn picked(&self) -> Option<Slice> {
        self.inputs.picked.map(|section| self.sections[section])
    }

    fn t(&self) -> &'static str {
        self.encoder.element.as_str()
    }

    /// Starts the whole pass. Returns the hidden states [n, d], f32.
    pub fn run(&self, device: &mut dyn Device) -> Result<Slice, GpuError> {
        self.embed(device)?;
        let mut pending = false;
        for block in &self.encoder.weights.blocks {
            pending = self.block(device, block, pending)?;
        }
        match &self.encoder.weights.final_norm {
            Some(norm) => self.norm(device, norm, pending, true)?,
            None if pending => {
                let count = self.inputs.n * self.encoder.config.hidden_size;
                let launched = Add { x: self.x, branch: self.branch, count: count as i32, scale: 1.0 };
                launch(device, &format!("add.{}", self.t()), [up(count, 1024), 1, 1], &launched)?;
            }
            None => {}
        }
        Ok(self.x)
    }

    /// The norm of the embeddings: of words, positions and segments.
    fn embed(&self, device: &mut dyn Device) -> Result<(), GpuError> {
        let (weights, n, d) = (&self.encoder.weights, self.inputs.n, self.encoder.config.hidden_size);
        let launched = Embed {
            ids: self.sections[IDS],
            table: weights.words,
            positions: self.sections[PLACES],
            position_table: weights.positions.unwrap_or(weights.words),
            out: self.x,
            d: d as i32,
            scale: 1.0,
        };
        let at = if weights.positions.is_some() { "_at" } else { "" };
        launch(device, &format!("embed{at}.{}", self.t()), [n, 1, 1], &launched)?;
        if let Some(table) = weights.types {
            let launched = GatherRows { x: table, rows: self.sections[TYPES], y: self.branch, d: d as i32 };
            launch(device, &format!("gather_rows.{}", self.t()), [n, up(d, 1024), 1], &launched)?;
        }
        self.norm(device, &weights.embed_norm, weights.types.is_some(), true)
    }

    /// A block, after the pending term is added to the hidden states. Returns whether a term is pending after it.
    /// Without a norm before attention, the input is the hidden states, which no term is to be added to.
    fn block(&self, device: &mut dyn Device, block: &Block, pending: bool) -> Result<bool, GpuError> {
        let (e, n) = (self.encoder, self.inputs.n);
        if let Some(norm) = &block.attn_norm {
            self.norm(device, norm, pending, false)?;
        }
        e.product(device, self.input, &block.qkv, self.qkv, n)?;
        self.attention(device, block)?;
        e.product(device, self.mixed, &block.out, self.branch, n)?;
        if let Some(norm) = &block.attn_post {
            self.norm(device, norm, true, true)?;
        } else if let Some(norm) = &block.mlp_norm {
            self.norm(device, norm, true, false)?;
        }
        e.product(device, self.input, &block.up, self.up, n)?;
        let inner = block.down.input;
        let name = format!("{}.{}", kernels::activation(block.activation, block.gated), self.t());
        let launched = Activate { x: self.up, y: self.act, inner: inner as i32 };
        launch(device, &name, [n, up(inner, 1024), 1], &launched)?;
        e.product(device, self.act, &block.down, self.branch, n)?;
        match &block.mlp_post {
            Some(norm) => self.norm(device, norm, true, true).map(|()| false),
            None => Ok(true),
        }
    }

    /// The norm of the hidden states as the next input, after the term is added where `add`. Where `keep`, the hidden
    /// states become their norm.
    fn norm(&self, device: &mut dyn Device, norm: &NormWeights, add: bool, keep: bool) -> Result<(), GpuError> {
        let launched = norm.launched([self.x, self.branch, self.input], [self.encoder.config.hidden_size; 2], 1.0);
        let (add, keep) = (if add { "add_" } else { "" }, if keep { "_kept" } else { "" });
        let name = format!("{add}{}{keep}.{}", kernels::norm(norm.layer), self.t());
        launch(device, &name, [self.inputs.n, 1, 1], &launched)
    }

    fn attention(&self, device: &mut dyn Device, block: &Block) -> Result<(), GpuError> {
        let (c, t, wide, inputs) = (&self.encoder.config, self.t(), self.encoder.wide, self.inputs);
        let (heads, hd) = (c.n_heads, c.head_dim);
        if let Some((half, [cos, sin])) = block.rope.and_then(|table| inputs.ropes[table]) {
            // q and k are the first heads of a row.
            let launched = Rotate {
                x: self.qkv,
                cos: self.sections[cos],
                sin: self.sections[sin],
                rotary: self.sections[POSITIONS],
                heads: 3 * heads as i32,
                hd: hd as i32,
                half: half as i32,
                sign: 1.0,
            };
            launch(device, &format!("rotate.{wide}.{t}"), [inputs.n, 2 * heads, 1], &launched)?;
        }
        let launched = AttendBoth {
            qkv: self.qkv,
            offsets: self.sections[OFFSETS],
            out: self.mixed,
            heads: heads as i32,
            hd: hd as i32,
            window: block.window as i32,
            scale: c.attention_scale(),
        };
        let name = format!("attend_both{}.{wide}.{t}", if hd.is_multiple_of(8) { "" } else { "_any" });
        let tile = kernel(&name)?.constant("BM");
        launch(device, &name, [up(inputs.longest, tile), inputs.sequences, heads], &launched)
    }
}

//! The launches of one step.

use super::adapters::{Slot, StepAdapters};
use super::kernels::{self, up};
use super::packing::Factors;
use super::rows::{Buffers, Rows, logit_sizes};
use super::scratch::Scratch;
use super::weights::{Block, Element, Matrix, NormWeights, Weights, candle};
use crate::gpu::device::{Device, launch};
use crate::gpu::launch::{
    Activate, Add, Attend, Combine, Embed, GatherRows, Logprobs, Matmul, MatmulFine, MatmulQ4, MatmulQ8, RopeCache,
    Sample, ShapeLogits,
};
use crate::gpu::{GpuError, Slice};
use crate::model::decoder::Decoder;
use crate::model::decoder::kv_cache::StepRows;
use crate::model::{ModelConfig, QkNorm};

/// A term that is still to be added to the hidden states.
pub(super) type Pending = Option<Slice>;

/// The launches of one step.
pub(super) struct Pass<'a> {
    pub config: &'a ModelConfig,
    pub element: Element,
    pub weights: &'a Weights,
    pub wide: usize,
    pub rows: &'a Rows,
    pub b: &'a Buffers,
    pub adapters: Option<&'a StepAdapters>,
}

impl Pass<'_> {
    fn t(&self) -> &'static str {
        self.element.as_str()
    }

    fn d(&self) -> i32 {
        self.config.hidden_size as i32
    }

    fn residual(&self) -> f32 {
        self.config.switches.residual_scale as f32
    }

    /// The initial hidden states: token embeddings, replaced by soft rows where given, plus learned positions.
    pub fn embed(
        &self,
        device: &mut dyn Device,
        decoder: &Decoder,
        rows: &StepRows,
        at: &[u32],
    ) -> Result<(), GpuError> {
        let table = self.weights.positions;
        let name = format!("embed{}.{}", if table.is_some() { "_at" } else { "" }, self.t());
        let launched = Embed {
            ids: self.rows.ids,
            table: self.weights.embed,
            positions: self.rows.positions,
            position_table: table.unwrap_or(self.weights.embed),
            out: self.b.x,
            d: self.d(),
            scale: self.config.switches.embedding_scale as f32,
        };
        launch(device, &name, [self.rows.n, 1, 1], &launched)?;
        for soft in rows.soft() {
            let mut values = soft.embeddings.detach();
            let count = values.dim(0).map_err(candle)?;
            if let Some(table) = &decoder.positions {
                let at = candle_core::Tensor::new(&at[soft.row..soft.row + count], table.device()).map_err(candle)?;
                values = (values + table.detach().index_select(&at, 0).map_err(candle)?).map_err(candle)?;
            }
            let values: Vec<f32> = values.flatten_all().and_then(|v| v.to_vec1()).map_err(candle)?;
            let width = self.config.hidden_size * 4;
            device.upload(self.b.x.part(soft.row * width, count * width), bytemuck::cast_slice(&values))?;
        }
        Ok(())
    }

    /// x += scale · pending, where a term is pending.
    pub fn add(&self, device: &mut dyn Device, pending: Pending) -> Result<(), GpuError> {
        let Some(branch) = pending else { return Ok(()) };
        let count = self.rows.n * self.config.hidden_size;
        let launched = Add { x: self.b.x, branch, count: count as i32, scale: self.residual() };
        launch(device, &format!("add.{}", self.t()), [up(count, 1024), 1, 1], &launched)
    }

    /// The input of the next part: the norm of the hidden states, after the pending term is added.
    fn normed(&self, device: &mut dyn Device, norm: Option<&NormWeights>, pending: Pending) -> Result<Slice, GpuError> {
        let (d, t) = (self.d(), self.t());
        let Some(norm) = norm else {
            self.add(device, pending)?;
            if self.element == Element::F32 {
                return Ok(self.b.x);
            }
            let launched = GatherRows { x: self.b.x, rows: self.rows.every, y: self.b.normed, d };
            let grid = [self.rows.n, up(self.config.hidden_size, 1024), 1];
            launch(device, &format!("gather_rows.{t}"), grid, &launched)?;
            return Ok(self.b.normed);
        };
        let name = format!("{}{}.{t}", if pending.is_some() { "add_" } else { "" }, kernels::norm(norm.layer));
        let slices = [self.b.x, pending.unwrap_or(self.b.branch[0]), self.b.normed];
        let launched = norm.launched(slices, [self.config.hidden_size; 2], self.residual());
        launch(device, &name, [self.rows.n, 1, 1], &launched)?;
        Ok(self.b.normed)
    }

    /// Normalises `width` channels of rows with a stride of `stride` elements, in place.
    fn norm_in_place(
        &self,
        device: &mut dyn Device,
        norm: &NormWeights,
        x: Slice,
        sizes: [usize; 2],
    ) -> Result<(), GpuError> {
        let name = kernels::norm_of(norm.layer, self.element);
        let launched = norm.launched([x, x, x], sizes, 1.0);
        launch(device, &name, [self.rows.n, 1, 1], &launched)
    }

    /// The product of all rows with a matrix of a block, with the terms of their adapters.
    fn matmul(
        &self,
        device: &mut dyn Device,
        at: (usize, Slot),
        x: Slice,
        w: &Matrix,
        y: Slice,
    ) -> Result<(), GpuError> {
        self.product(device, x, w, y, self.rows.n, if w.bias.is_some() { "_bias" } else { "" })?;
        self.adapters.map_or(Ok(()), |adapters| adapters.apply(device, self.element, at, w, [x, y]))
    }

    fn product(
        &self,
        device: &mut dyn Device,
        x: Slice,
        w: &Matrix,
        y: Slice,
        n: usize,
        variant: &str,
    ) -> Result<(), GpuError> {
        let bias = w.bias.unwrap_or(self.weights.zeros);
        let [rows, m, k] = [n, w.out, w.input].map(|size| size as i32);
        let blocks = |kind| kernels::matmul_blocks(kind, variant, n, w.out, self.element);
        match w.factors {
            Factors::None => {
                let launched = Matmul { x, w: w.weight, bias, y, n: rows, m, k };
                let (name, grid) = kernels::matmul(variant, &launched, self.element)?;
                launch(device, &name, grid, &launched)
            }
            Factors::Q8 { scales } => {
                let (name, grid) = blocks("matmul_q8")?;
                launch(device, &name, grid, &MatmulQ8 { x, w: w.weight, scales, bias, y, n: rows, m, k })
            }
            Factors::Q4 { scales, minima } => {
                let (name, grid) = blocks("matmul_q4")?;
                launch(device, &name, grid, &MatmulQ4 { x, w: w.weight, scales, minima, bias, y, n: rows, m, k })
            }
            Factors::Fine { scales, minima } => {
                let (name, grid) = blocks("matmul_fine")?;
                launch(device, &name, grid, &MatmulFine { x, w: w.weight, scales, minima, bias, y, n: rows, m, k })
            }
        }
    }

    /// Block `i`; returns the term to be added to the hidden states after it.
    pub fn block(
        &self,
        device: &mut dyn Device,
        (i, block): (usize, &Block),
        pools: &[Slice; 2],
        pending: Pending,
    ) -> Result<Pending, GpuError> {
        let parallel = self.config.switches.parallel;
        let source = self.normed(device, block.attn_norm.as_ref(), pending)?;
        self.matmul(device, (i, Slot::Qkv), source, &block.qkv, self.b.qkv)?;
        self.attention(device, block, pools)?;
        self.matmul(device, (i, Slot::Out), self.b.mixed, &block.out, self.b.branch[0])?;
        let d = self.config.hidden_size;
        if let Some(norm) = &block.attn_post {
            self.norm_in_place(device, norm, self.b.branch[0], [d, d])?;
        }
        // In parallel blocks the feed-forward network reads the hidden states without the output of attention.
        let before = if parallel { None } else { Some(self.b.branch[0]) };
        let source = self.normed(device, block.mlp_norm.as_ref(), before)?;
        self.matmul(device, (i, Slot::Up), source, &block.up, self.b.up)?;
        let inner = block.down.input;
        let name = format!("{}.{}", kernels::activation(block.activation, block.gated), self.t());
        let launched = Activate { x: self.b.up, y: self.b.act, inner: inner as i32 };
        launch(device, &name, [self.rows.n, up(inner, 1024), 1], &launched)?;
        self.matmul(device, (i, Slot::Down), self.b.act, &block.down, self.b.branch[1])?;
        if let Some(norm) = &block.mlp_post {
            self.norm_in_place(device, norm, self.b.branch[1], [d, d])?;
        }
        if parallel {
            self.add(device, Some(self.b.branch[0]))?;
        }
        Ok(Some(self.b.branch[1]))
    }

    /// From q, k and v to the output of attention; keys and values are written into their pages.
    fn attention(&self, device: &mut dyn Device, block: &Block, pools: &[Slice; 2]) -> Result<(), GpuError> {
        let (c, rows, b, t) = (self.config, self.rows, self.b, self.t());
        let (hd, width) = (c.head_dim, block.qkv.out);
        let [heads, kv_heads] = [c.n_heads, c.n_kv_heads];
        let mut by_head_norm = None;
        match &block.qk_norm {
            // A norm per head is applied with the rotation; a norm over all heads, before it.
            Some(norms) if c.switches.qk_norm == QkNorm::Heads => by_head_norm = Some(norms),
            Some([q, k]) => {
                let size = self.element.bytes();
                self.norm_in_place(device, q, b.qkv, [heads * hd, width])?;
                let rest = b.qkv.part(heads * hd * size, b.qkv.bytes - heads * hd * size);
                self.norm_in_place(device, k, rest, [kv_heads * hd, width])?;
            }
            None => {}
        }
        let rope = block.rope.and_then(|i| rows.rope[i]);
        // Without rotation no table is read, so any slice serves as the argument.
        let (cos, sin, half) = rope.unwrap_or((b.x, b.x, 0));
        let zeros = self.weights.zeros;
        let (stride, k_base, v_base) = match block.by_head {
            true => (3 * hd, hd, 2 * hd),
            false => (hd, heads * hd, (heads + kv_heads) * hd),
        };
        let launched = RopeCache {
            qkv: b.qkv,
            cos,
            sin,
            rotary: rows.every,
            slots: rows.slots,
            q_weight: by_head_norm.map_or(zeros, |n| n[0].weight),
            k_weight: by_head_norm.map_or(zeros, |n| n[1].weight),
            q_out: b.q,
            keys: pools[0],
            values: pools[1],
            heads: heads as i32,
            kv_heads: kv_heads as i32,
            hd: hd as i32,
            half: half as i32,
            width: width as i32,
            head_stride: stride as i32,
            k_base: k_base as i32,
            v_base: v_base as i32,
            eps: by_head_norm.map_or(0.0, |n| n[0].eps),
            offset: by_head_norm.map_or(0.0, |n| n[0].offset),
        };
        let name = if by_head_norm.is_some() { "rope_cache_norm" } else { "rope_cache" };
        launch(device, &format!("{name}.{}.{t}", self.wide), [rows.n, heads + 2 * kv_heads, 1], &launched)?;
        let cap = c.switches.attention_softcap.map(|cap| cap as f32);
        let launched = Attend {
            q: b.q,
            keys: pools[0],
            values: pools[1],
            tables: rows.tables,
            tiles: rows.tiles,
            partial: b.partial,
            maxima: b.maxima,
            sums: b.sums,
            n: rows.n as i32,
            heads: heads as i32,
            kv_heads: kv_heads as i32,
            hd: hd as i32,
            table_width: rows.table_width as i32,
            window: block.window as i32,
            scale: c.attention_scale(),
            cap: cap.unwrap_or(0.0),
        };
        let name = if cap.is_some() { "attend_cap" } else { "attend" };
        let any = if hd.is_multiple_of(8) { "" } else { "_any" };
        launch(device, &format!("{name}{any}.{}.{t}", self.wide), [rows.tile_count, kv_heads, rows.splits], &launched)?;
        let launched = Combine {
            partial: b.partial,
            maxima: b.maxima,
            sums: b.sums,
            positions: rows.positions,
            out: b.mixed,
            n: rows.n as i32,
            heads: heads as i32,
            hd: hd as i32,
            window: block.window as i32,
        };
        launch(device, &format!("combine.{}.{t}", self.wide), [rows.n, heads, 1], &launched)
    }

    /// Logits [wanted, vocab], f32, of the requested rows of the final hidden states.
    pub fn logits(&self, scratch: &mut Scratch<'_>, inverse: f32, cap: Option<f32>) -> Result<Slice, GpuError> {
        let (d, m, vocab) = (self.config.hidden_size, self.rows.wanted_count, self.config.vocab_size);
        let [picked, hidden, logits] = logit_sizes(self.config, self.element, m).map(|bytes| scratch.take(bytes));
        let (picked, hidden, logits) = (picked?, hidden?, logits?);
        let device = &mut *scratch.device;
        let launched = GatherRows { x: self.b.x, rows: self.rows.wanted, y: picked, d: d as i32 };
        launch(device, "gather_rows.f32", [m, up(d, 1024), 1], &launched)?;
        let norm = &self.weights.final_norm;
        let launched = norm.launched([picked, hidden, hidden], [d; 2], 1.0);
        launch(device, &format!("{}.{}", kernels::norm(norm.layer), self.t()), [m, 1, 1], &launched)?;
        let variant = if self.element == Element::F32 { "" } else { "_out" };
        self.product(device, hidden, &self.weights.head, logits, m, variant)?;
        if inverse != 1.0 || cap.is_some() {
            let count = m * vocab;
            let launched = ShapeLogits { z: logits, count: count as i32, inverse, cap: cap.unwrap_or(0.0) };
            let name = if cap.is_some() { "cap_logits" } else { "scale_logits" };
            launch(device, name, [up(count, 1024), 1, 1], &launched)?;
        }
        Ok(logits)
    }

    /// Draws a token from each row of logits [n, vocab]. Returns n ids and n log-probs under softmax(logits · `inverse`),
    /// each padded to a multiple of 16 bytes.
    pub fn draw(&self, scratch: &mut Scratch<'_>, logits: Slice, n: usize, inverse: f32) -> Result<Slice, GpuError> {
        let (width, vocab) = ((n * 4).next_multiple_of(16), self.config.vocab_size as i32);
        let (drawn, sums) = (scratch.take(2 * width)?, scratch.take(2 * width)?);
        let (ids, logprob) = (drawn.part(0, width), drawn.part(width, width));
        let launched = Sample { z: logits, uniforms: self.rows.uniforms, inverses: self.rows.inverses, ids, vocab };
        launch(scratch.device, "sample", [n, 1, 1], &launched)?;
        let (lse, entropy) = (sums.part(0, width), sums.part(width, width));
        let launched = Logprobs { z: logits, targets: ids, logprob, lse, entropy, vocab, inverse };
        launch(scratch.device, "logprobs", [n, 1, 1], &launched)?;
        Ok(drawn)
    }
}

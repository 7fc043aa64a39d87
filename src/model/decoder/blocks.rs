//! The parts of a decoder's block on plain buffers, and all blocks as one step of the autograd graph: without a
//! graph node, a zeroed gradient or a copy per operation. `blocks_back` has the backward pass, `cached` the steps of
//! cached sequences with the same parts. `Decoder::forward_graph` is the reference implementation.

use std::sync::{Arc, Mutex};

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use crate::model::Decoder;
use crate::model::adapters::served::Group;
use crate::model::decoder::Rows;
use crate::model::decoder::output_rows::OutputRows;
use crate::model::layers::Norm;
use crate::model::layers::block::{Layer, Mlp, Projections};
use crate::ops::{activation, add_assign, attention, embedding, pool, read, rope};

/// Which activations of a block's forward pass are saved for its backward pass; the others are computed again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Recompute {
    /// Saves all activations except those that are cheap to recompute. Fastest.
    #[default]
    None,
    /// Saves all activations except the hidden values of the feed-forward network: about half the memory for
    /// activations, and less additional time than `Block`.
    Mlp,
    /// Saves only each block's input: least memory, about a fifth more time (1.19× measured, docs/benchmarks.md).
    Block,
}

/// The activations of one block that its backward pass reads: n is the number of tokens, d the hidden size. Dropping
/// `attn` and `mlp` returns their buffers to the pool.
#[derive(Default)]
pub(in crate::model) struct BlockActivations {
    /// The block's input [n, d].
    pub x: Vec<f32>,
    /// `None` where the backward pass computes them again.
    pub attn: Option<Attn>,
    /// `None` where the backward pass computes them again.
    pub mlp: Option<MlpHidden>,
    /// The input of `down` times A of its LoRA adapter, [n, rank]; empty without one.
    pub low: Vec<f32>,
    /// The output of the feed-forward network before its norm, [n, d]; empty without that norm.
    pub raw_out: Vec<f32>,
}

/// Activations of attention. `k`, `v` and what belongs to them have a row for every token; in the last block the others
/// have one for each of the [`OutputRows`] only.
#[derive(Default)]
pub(in crate::model) struct Attn {
    /// Queries with rotary positions, [n, heads · head size].
    pub q: Vec<f32>,
    /// Keys with rotary positions, [n, key-value heads · head size].
    pub k: Vec<f32>,
    /// Values, with the shape of `k`.
    pub v: Vec<f32>,
    /// The weighted sums of values, before the output projection, with the shape of `q`.
    pub mixed: Vec<f32>,
    /// The hidden states after attention, its residual included, [n, d].
    pub mid: Vec<f32>,
    /// q and k before their norm, and the output of attention before its norm; empty without these norms.
    pub raw_q: Vec<f32>,
    pub raw_k: Vec<f32>,
    pub raw_out: Vec<f32>,
    /// The inputs of q (or the joint projection), k, v and the output projection times A of their LoRA adapters, each
    /// [n, rank]; empty without an adapter.
    pub low: [Vec<f32>; 4],
}

/// The hidden values of the feed-forward network before its activation, [n, hidden width].
#[derive(Default)]
pub(in crate::model) struct MlpHidden {
    /// Empty where the network is not gated.
    pub gate: Vec<f32>,
    pub up: Vec<f32>,
    /// The network's input times A of the LoRA adapters of `gate` (or the joint projection) and `up`, [n, rank]; empty
    /// without an adapter.
    pub low: [Vec<f32>; 2],
}

impl Drop for Attn {
    fn drop(&mut self) {
        let own = [&mut self.q, &mut self.k, &mut self.v, &mut self.mixed, &mut self.mid];
        for buffer in own.into_iter().chain([&mut self.raw_q, &mut self.raw_k, &mut self.raw_out]) {
            pool::give(std::mem::take(buffer));
        }
    }
}

impl Drop for MlpHidden {
    fn drop(&mut self) {
        pool::give(std::mem::take(&mut self.gate));
        pool::give(std::mem::take(&mut self.up));
    }
}

/// The activations that a decoder's forward pass saves for its backward pass.
#[derive(Default)]
pub(in crate::model) struct SavedActivations {
    /// Of the blocks, from the lowest trained one to the last.
    pub blocks: Vec<BlockActivations>,
    /// The input of the final norm, [rows, d].
    pub last: Vec<f32>,
}

/// One forward pass and, once, its backward pass.
pub(in crate::model) struct Blocks {
    pub decoder: Decoder,
    pub ids: Arc<Vec<u32>>,
    pub rows: Rows,
    /// Set by the forward pass, or before it where sampling has computed the activations; taken by the backward pass.
    pub saved: Mutex<Option<SavedActivations>>,
}

/// Hidden states after the final norm, [rows, d], of every token or of the output rows in `rows`; differentiable if the
/// decoder has variables. `saved`: the activations of this pass, where sampling has computed them.
///
/// # Errors
/// When an id or a position is outside its table.
pub(in crate::model) fn forward(
    decoder: &Decoder,
    ids: &Arc<Vec<u32>>,
    rows: Rows,
    saved: Option<SavedActivations>,
) -> Result<Tensor> {
    match decoder.variable() {
        Some(variable) => variable.apply_op1(Blocks::new(decoder, ids, rows, saved)?),
        None => forward_frozen(decoder, ids, rows),
    }
}

/// Hidden states after the final norm, [rows, d], without a gradient.
///
/// # Errors
/// When an id or a position is outside its table.
pub(in crate::model) fn forward_frozen(decoder: &Decoder, ids: &Arc<Vec<u32>>, rows: Rows) -> Result<Tensor> {
    let blocks = Blocks::new(decoder, ids, rows, None)?;
    let x = blocks.run(usize::MAX)?.last;
    let hidden = finish(decoder, &x)?;
    pool::give(x);
    crate::ops::tensor(hidden, blocks.shape())
}

impl Blocks {
    /// # Errors
    /// When an id or a position is outside its table.
    fn new(decoder: &Decoder, ids: &Arc<Vec<u32>>, rows: Rows, saved: Option<SavedActivations>) -> Result<Self> {
        decoder.check_host()?;
        decoder.embed.check(ids)?;
        decoder.check_positions(&rows.positions)?;
        Ok(Self { decoder: decoder.clone(), ids: ids.clone(), rows, saved: Mutex::new(saved) })
    }

    fn shape(&self) -> (usize, usize) {
        let rows = self.rows.output.as_ref().map_or(self.ids.len(), |t| t.rows.len());
        (rows, self.decoder.config.hidden_size)
    }

    /// The rows for which block `layer` computes an output: `None`, for all rows, except in the last block.
    pub(in crate::model) fn output_rows(&self, layer: usize) -> Option<&OutputRows> {
        self.rows.output.as_ref().filter(|_| layer + 1 == self.decoder.layers.len())
    }

    /// Runs all blocks and saves the activations of the blocks from number `from`.
    fn run(&self, from: usize) -> Result<SavedActivations> {
        let (decoder, d) = (&self.decoder, self.decoder.config.hidden_size);
        let mut x = pool::take(self.ids.len() * d);
        decoder.embed.gather(&self.ids, d, &mut x)?;
        scale(&mut x, decoder.config.switches.embedding_scale);
        if let Some(table) = &decoder.positions {
            let mut at = pool::take(x.len());
            embedding::gather(&read(table)?, &self.rows.positions, d, &mut at);
            add_assign(&mut x, &at);
            pool::give(at);
        }
        let mut blocks = Vec::new();
        for (i, layer) in decoder.layers.iter().enumerate() {
            let attn = self.attn(i, &x)?;
            let mlp = self.mlp_hidden(i, &x, &attn.mid)?;
            let MlpOutput { out, raw_out, low } = mlp_output(decoder, layer, &attn.mid, &mlp, &[])?;
            if i < from {
                pool::give(raw_out);
                pool::give(std::mem::replace(&mut x, out));
                continue;
            }
            let mut all =
                BlockActivations { x: std::mem::replace(&mut x, out), attn: Some(attn), mlp: Some(mlp), low, raw_out };
            match decoder.recompute {
                Recompute::None => {}
                Recompute::Mlp => all.mlp = None,
                Recompute::Block => (all.attn, all.mlp) = (None, None),
            }
            blocks.push(all);
        }
        Ok(SavedActivations { blocks, last: x })
    }

    /// The activations of attention in block `layer` with the input `x` [n, d].
    pub(in crate::model) fn attn(&self, layer: usize, x: &[f32]) -> Result<Attn> {
        let output = self.output_rows(layer);
        let layer = &self.decoder.layers[layer];
        let spec = layer.attention(output.map_or(&self.rows.attention, |t| &t.attention));
        attn(&self.decoder, layer, x, &self.rows.rotary, output, &[], |q, k, v, mixed| {
            attention::forward(&spec, q, k, v, mixed);
        })
    }

    /// Computes the feed-forward network of block `layer` up to its activation, from the block's input and the hidden
    /// states after attention.
    pub(in crate::model) fn mlp_hidden(&self, layer: usize, x: &[f32], mid: &[f32]) -> Result<MlpHidden> {
        self.with_source(layer, x, mid, |source| mlp_hidden(&self.decoder.layers[layer], source, &[]))
    }

    /// Calls `f` with the input of the feed-forward network of block `layer`.
    pub(in crate::model) fn with_source<R>(
        &self,
        layer: usize,
        x: &[f32],
        mid: &[f32],
        f: impl FnOnce(&[f32]) -> R,
    ) -> R {
        if !self.decoder.config.switches.parallel {
            return f(mid);
        }
        match self.output_rows(layer) {
            None => f(x),
            Some(output) => {
                let own = output.pick(x, self.decoder.config.hidden_size);
                let result = f(&own);
                pool::give(own);
                result
            }
        }
    }
}

impl CustomOp1 for Blocks {
    fn name(&self) -> &'static str {
        "decoder-blocks"
    }

    /// The argument only ties the result to the graph: the blocks read their own weights.
    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut slot = self.saved.lock().unwrap_or_else(|e| e.into_inner());
        let saved = match slot.take() {
            Some(saved) => saved,
            None => self.run(self.decoder.lowest_trained())?,
        };
        let hidden = finish(&self.decoder, &saved.last)?;
        *slot = Some(saved);
        Ok(crate::ops::storage(hidden, self.shape()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, gy: &Tensor) -> Result<Option<Tensor>> {
        self.back(&read(&gy.contiguous()?)?)?;
        Ok(None)
    }
}

/// x ← factor · x.
pub(in crate::model) fn scale(x: &mut [f32], factor: f64) {
    if factor != 1.0 {
        x.iter_mut().for_each(|v| *v *= factor as f32);
    }
}

/// norm(x) in a buffer of the pool; `None` without a norm, which stands for x itself.
pub(in crate::model) fn normed(norm: Option<&Norm>, x: &[f32]) -> Result<Option<Vec<f32>>> {
    let Some(norm) = norm else { return Ok(None) };
    let mut y = pool::take(x.len());
    norm.run(x, &mut y)?;
    Ok(Some(y))
}

/// Replaces `x` by its norm and moves the previous values into `raw`.
fn norm_in_place(norm: Option<&Norm>, x: &mut Vec<f32>, raw: &mut Vec<f32>) -> Result<()> {
    if let Some(y) = normed(norm, x)? {
        *raw = std::mem::replace(x, y);
    }
    Ok(())
}

/// x + attention(norm(x)) for x [n, d], whose rows have the positions `rotary`; with `output`, of its rows only.
/// `attend(q, k, v, mixed)` computes attention from q and k with rotary positions and v into `mixed`. `adapters`: LoRA
/// adapters of some rows.
pub(in crate::model) fn attn(
    decoder: &Decoder,
    layer: &Layer,
    x: &[f32],
    rotary: &[rope::Row],
    output: Option<&OutputRows>,
    adapters: &[Group<'_>],
    attend: impl FnOnce(&[f32], &[f32], &[f32], &mut [f32]),
) -> Result<Attn> {
    let (n, c) = (rotary.len(), &decoder.config);
    let (d, width, kv_width) = (c.hidden_size, c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim);
    let queries = output.map_or(rotary, |t| &t.rotary);
    let own = normed(layer.attn_norm.as_ref(), x)?;
    let normed = own.as_deref().unwrap_or(x);
    let (mut k, mut v) = (pool::take(n * kv_width), pool::take(n * kv_width));
    let mut q = pool::take(queries.len() * width);
    let mut low: [Vec<f32>; 4] = Default::default();
    match (&layer.attn, output) {
        (Projections::Split { q: wq, k: wk, v: wv }, output) => {
            low[0] = match output {
                None => wq.run_with_adapters(normed, &mut q, n, adapters)?,
                Some(output) => {
                    let own = output.pick(normed, d);
                    let low = wq.run(&own, &mut q, queries.len())?;
                    pool::give(own);
                    low
                }
            };
            low[1] = wk.run_with_adapters(normed, &mut k, n, adapters)?;
            low[2] = wv.run_with_adapters(normed, &mut v, n, adapters)?;
        }
        (Projections::Joint { all, by_head }, output) => {
            let (mut joint, mut every) = (pool::take(n * (width + 2 * kv_width)), pool::take(n * width));
            low[0] = all.run_with_adapters(normed, &mut joint, n, adapters)?;
            let parts = [every.as_mut_slice(), &mut k, &mut v];
            for_each_qkv(&mut joint, parts, n, by_head.then_some(c.head_dim), |row, part| part.copy_from_slice(row));
            let unused = match output {
                None => std::mem::replace(&mut q, every),
                Some(output) => {
                    embedding::gather(&every, &output.rows, width, &mut q);
                    every
                }
            };
            pool::give(joint);
            pool::give(unused);
        }
    }
    pool::give(own.unwrap_or_default());
    let (mut raw_q, mut raw_k, mut raw_out) = (Vec::new(), Vec::new(), Vec::new());
    if let Some([q_norm, k_norm]) = &layer.qk_norm {
        norm_in_place(Some(q_norm), &mut q, &mut raw_q)?;
        norm_in_place(Some(k_norm), &mut k, &mut raw_k)?;
    }
    if let Some(table) = &layer.rope {
        rope::rotate(&mut q, table, queries, 1.0);
        rope::rotate(&mut k, table, rotary, 1.0);
    }
    let mut mixed = pool::take(q.len());
    attend(&q, &k, &v, &mut mixed);
    let mut mid = pool::take(queries.len() * d);
    low[3] = layer.out.run_with_adapters(&mixed, &mut mid, queries.len(), adapters)?;
    norm_in_place(layer.attn_post.as_ref(), &mut mid, &mut raw_out)?;
    scale(&mut mid, c.switches.residual_scale);
    match output {
        None => add_assign(&mut mid, x),
        Some(output) => {
            let own = output.pick(x, d);
            add_assign(&mut mid, &own);
            pool::give(own);
        }
    }
    Ok(Attn { q, k, v, mixed, mid, raw_q, raw_k, raw_out, low })
}

/// The feed-forward network of the input `source` [n, d], up to its activation. `adapters`: LoRA adapters of some rows.
pub(in crate::model) fn mlp_hidden(layer: &Layer, source: &[f32], adapters: &[Group<'_>]) -> Result<MlpHidden> {
    let own = normed(layer.mlp_norm.as_ref(), source)?;
    let normed = own.as_deref().unwrap_or(source);
    let n = source.len() / layer.mlp.down().out_features();
    let mut hidden = MlpHidden::default();
    match &layer.mlp {
        Mlp::Gated { gate, up, .. } => {
            hidden.gate = pool::take(n * gate.out_features());
            hidden.up = pool::take(n * up.out_features());
            hidden.low = [
                gate.run_with_adapters(normed, &mut hidden.gate, n, adapters)?,
                up.run_with_adapters(normed, &mut hidden.up, n, adapters)?,
            ];
        }
        Mlp::JointGated { gate_up, .. } => {
            let width = gate_up.out_features() / 2;
            let mut joint = pool::take(n * 2 * width);
            hidden.low[0] = gate_up.run_with_adapters(normed, &mut joint, n, adapters)?;
            (hidden.gate, hidden.up) = (pool::take(n * width), pool::take(n * width));
            let parts = [hidden.gate.as_mut_slice(), hidden.up.as_mut_slice()];
            for_each_part(&mut joint, parts, n, |row, part| part.copy_from_slice(row));
            pool::give(joint);
        }
        Mlp::Plain { up, .. } => {
            hidden.up = pool::take(n * up.out_features());
            hidden.low[1] = up.run_with_adapters(normed, &mut hidden.up, n, adapters)?;
        }
    }
    pool::give(own.unwrap_or_default());
    Ok(hidden)
}

/// The output of a block, [n, d], and what its feed-forward network saves for the backward pass.
pub(in crate::model) struct MlpOutput {
    pub out: Vec<f32>,
    /// The output of the feed-forward network before its norm, [n, d]; empty without that norm.
    pub raw_out: Vec<f32>,
    /// The input of `down` times A of its LoRA adapter, [n, rank]; empty without one.
    pub low: Vec<f32>,
}

/// The output of a block: mid + down(activation), where `mid` [n, d] are the hidden states after attention. `adapters`:
/// LoRA adapters of some rows.
pub(in crate::model) fn mlp_output(
    decoder: &Decoder,
    layer: &Layer,
    mid: &[f32],
    hidden: &MlpHidden,
    adapters: &[Group<'_>],
) -> Result<MlpOutput> {
    let mut acted = pool::take(hidden.up.len());
    match &layer.mlp {
        Mlp::Gated { activation, .. } | Mlp::JointGated { activation, .. } => {
            activation::gated_into(*activation, &hidden.gate, &hidden.up, &mut acted);
        }
        Mlp::Plain { activation, .. } => activation::activate_into(*activation, &hidden.up, &mut acted),
    }
    let (mut out, mut raw_out) = (pool::take(mid.len()), Vec::new());
    let down = layer.mlp.down();
    let low = down.run_with_adapters(&acted, &mut out, mid.len() / down.out_features(), adapters)?;
    norm_in_place(layer.mlp_post.as_ref(), &mut out, &mut raw_out)?;
    scale(&mut out, decoder.config.switches.residual_scale);
    add_assign(&mut out, mid);
    pool::give(acted);
    Ok(MlpOutput { out, raw_out, low })
}

/// Hidden states: the final norm of the last block's output.
pub(in crate::model) fn finish(decoder: &Decoder, x: &[f32]) -> Result<Vec<f32>> {
    let mut y = vec![0f32; x.len()];
    decoder.final_norm.run(x, &mut y)?;
    Ok(y)
}

/// Calls `f` with every row of each part and its range in the rows of `joint`, which concatenate the parts.
pub(in crate::model) fn for_each_part<const P: usize>(
    joint: &mut [f32],
    parts: [&mut [f32]; P],
    n: usize,
    f: impl Fn(&mut [f32], &mut [f32]),
) {
    let width = joint.len() / n.max(1);
    let mut at = 0;
    for part in parts {
        let own = part.len() / n.max(1);
        for (row, part) in joint.chunks_exact_mut(width.max(1)).zip(part.chunks_exact_mut(own.max(1))) {
            f(&mut row[at..at + own], part);
        }
        at += own;
    }
}

/// `for_each_part` of q, k and v; with `by_head`, the size of a head, the joint rows are ordered by head.
pub(in crate::model) fn for_each_qkv(
    joint: &mut [f32],
    parts: [&mut [f32]; 3],
    n: usize,
    by_head: Option<usize>,
    f: impl Fn(&mut [f32], &mut [f32]),
) {
    let Some(hd) = by_head else { return for_each_part(joint, parts, n, f) };
    for (i, part) in parts.into_iter().enumerate() {
        // Every head has as many channels in each part, so heads can be counted across rows.
        for (three, part) in joint.chunks_exact_mut(3 * hd).zip(part.chunks_exact_mut(hd)) {
            f(&mut three[i * hd..(i + 1) * hd], part);
        }
    }
}

//! The parts of a decoder's block on plain buffers, and all blocks as one step of the autograd graph: without a
//! graph node, a zeroed gradient or a copy per operation. `blocks_back` has the backward pass, `cached` the steps of
//! cached sequences with the same parts. `Decoder::forward_graph` is the reference implementation.

use std::sync::{Arc, Mutex};

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use crate::model::Decoder;
use crate::model::adapters::served::Group;
use crate::model::decoder::Rows;
use crate::model::decoder::tails::Tails;
use crate::model::layers::Norm;
use crate::model::layers::block::{Layer, Mlp, Projections};
use crate::ops::{activation, add_assign, attention, embedding, pool, read, rope};

/// How much of a block's forward pass is kept for its backward pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Recompute {
    /// Keeps all activations except those that are cheap to recompute. Fastest.
    #[default]
    None,
    /// Keeps all activations except the hidden values of the feed-forward network: about half the memory for
    /// activations, and less additional time than `Block`.
    Mlp,
    /// Keeps only each block's input: least memory, about a fifth more time (1.19× measured, docs/benchmarks.md).
    Block,
}

/// The values that the backward pass of one block needs. Dropping it returns its buffers to the pool.
#[derive(Default)]
pub(in crate::model) struct Kept {
    /// The block's input [n, d].
    pub x: Vec<f32>,
    pub attn: Option<Attn>,
    pub mlp: Option<Inner>,
    /// The inner values of the adapter of `down`; few enough to be always kept.
    pub low: Vec<f32>,
    /// The output of the feed-forward network before its norm, where it has one.
    pub given: Vec<f32>,
}

/// Values of attention: rotated q and k, v, its output, and the hidden states after it. k and v have a row for every
/// token, the others for requested tokens only.
#[derive(Default)]
pub(in crate::model) struct Attn {
    pub q: Vec<f32>,
    pub k: Vec<f32>,
    pub v: Vec<f32>,
    pub mixed: Vec<f32>,
    pub mid: Vec<f32>,
    /// q and k before their norm, and the output of attention before its norm; empty without these norms.
    pub raw_q: Vec<f32>,
    pub raw_k: Vec<f32>,
    pub given: Vec<f32>,
    /// Inner values of the adapters of q (or the joint projection), k, v and out.
    pub low: [Vec<f32>; 4],
}

/// The feed-forward network's values before its activation; only `up` where it is not gated.
#[derive(Default)]
pub(in crate::model) struct Inner {
    pub gate: Vec<f32>,
    pub up: Vec<f32>,
    pub low: [Vec<f32>; 2],
}

impl Drop for Attn {
    fn drop(&mut self) {
        let own = [&mut self.q, &mut self.k, &mut self.v, &mut self.mixed, &mut self.mid];
        for buffer in own.into_iter().chain([&mut self.raw_q, &mut self.raw_k, &mut self.given]) {
            pool::give(std::mem::take(buffer));
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        pool::give(std::mem::take(&mut self.gate));
        pool::give(std::mem::take(&mut self.up));
    }
}

/// The values that a forward pass keeps for its backward pass: one `Kept` per block from the lowest trained one up, and
/// the input of the final norm.
pub(in crate::model) type Trace = (Vec<Kept>, Vec<f32>);

/// One forward pass and, once, its backward pass.
pub(in crate::model) struct Blocks {
    pub decoder: Decoder,
    pub ids: Arc<Vec<u32>>,
    pub rows: Rows,
    /// Set by the forward pass, or given before it where the pass has already been computed.
    pub trace: Mutex<Option<Trace>>,
}

/// Hidden states after the final norm, of every token or of the tails in `rows`; differentiable if the decoder has
/// variables. `made`: the trace of this pass, where the sampler has already computed it.
pub(in crate::model) fn forward(
    decoder: &Decoder,
    ids: &Arc<Vec<u32>>,
    rows: Rows,
    made: Option<Trace>,
) -> Result<Tensor> {
    match decoder.variable() {
        Some(variable) => variable.apply_op1(Blocks::new(decoder, ids, rows, made)?),
        None => forward_frozen(decoder, ids, rows),
    }
}

/// Hidden states after the final norm, [n, d], without a gradient.
pub(in crate::model) fn forward_frozen(decoder: &Decoder, ids: &Arc<Vec<u32>>, rows: Rows) -> Result<Tensor> {
    let blocks = Blocks::new(decoder, ids, rows, None)?;
    let x = blocks.run(usize::MAX)?.1;
    let hidden = finish(decoder, &x)?;
    pool::give(x);
    crate::ops::tensor(hidden, blocks.shape())
}

impl Blocks {
    /// # Errors
    /// When an id or a position is outside its table.
    fn new(decoder: &Decoder, ids: &Arc<Vec<u32>>, rows: Rows, made: Option<Trace>) -> Result<Self> {
        decoder.embed.check(ids)?;
        decoder.check_positions(&rows.positions)?;
        Ok(Self { decoder: decoder.clone(), ids: ids.clone(), rows, trace: Mutex::new(made) })
    }

    fn shape(&self) -> (usize, usize) {
        let rows = self.rows.tails.as_ref().map_or(self.ids.len(), |t| t.rows.len());
        (rows, self.decoder.config.hidden_size)
    }

    /// The tails, in the last block.
    pub(in crate::model) fn tails(&self, layer: usize) -> Option<&Tails> {
        self.rows.tails.as_ref().filter(|_| layer + 1 == self.decoder.layers.len())
    }

    /// Runs all blocks and keeps the values that the backward pass needs, for the blocks from number `from`.
    fn run(&self, from: usize) -> Result<Trace> {
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
        let mut kept = Vec::new();
        for (i, layer) in decoder.layers.iter().enumerate() {
            let attn = self.attn(i, &x)?;
            let mlp = self.inner(i, &x, &attn.mid)?;
            let Outer { out, given, low } = outer(decoder, layer, &attn.mid, &mlp, &[])?;
            if i < from {
                pool::give(given);
                pool::give(std::mem::replace(&mut x, out));
                continue;
            }
            let mut all = Kept { x: std::mem::replace(&mut x, out), attn: Some(attn), mlp: Some(mlp), low, given };
            match decoder.recompute {
                Recompute::None => {}
                Recompute::Mlp => all.mlp = None,
                Recompute::Block => (all.attn, all.mlp) = (None, None),
            }
            kept.push(all);
        }
        Ok((kept, x))
    }

    pub(in crate::model) fn attn(&self, layer: usize, x: &[f32]) -> Result<Attn> {
        let tails = self.tails(layer);
        let layer = &self.decoder.layers[layer];
        let spec = layer.attention(tails.map_or(&self.rows.attention, |t| &t.attention));
        attn(&self.decoder, layer, x, &self.rows.rotary, tails, &[], |q, k, v, mixed| {
            attention::forward(&spec, q, k, v, mixed);
        })
    }

    /// Computes the feed-forward network of block `layer` up to its activation, from the block's input and the hidden
    /// states after attention.
    pub(in crate::model) fn inner(&self, layer: usize, x: &[f32], mid: &[f32]) -> Result<Inner> {
        self.with_source(layer, x, mid, |source| inner(&self.decoder.layers[layer], source, &[]))
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
        match self.tails(layer) {
            None => f(x),
            Some(tails) => {
                let own = tails.pick(x, self.decoder.config.hidden_size);
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
        let mut trace = self.trace.lock().unwrap_or_else(|e| e.into_inner());
        let (kept, x) = match trace.take() {
            Some(made) => made,
            None => self.run(self.decoder.lowest_trained())?,
        };
        let hidden = finish(&self.decoder, &x)?;
        *trace = Some((kept, x));
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

/// x + attention(norm(x)) for rows at `rotary` positions, of the tails only where they are given. `attend` computes
/// attention from rotated q and k, and v. `adapters`: adapters of some rows.
pub(in crate::model) fn attn(
    decoder: &Decoder,
    layer: &Layer,
    x: &[f32],
    rotary: &[rope::Row],
    tails: Option<&Tails>,
    adapters: &[Group<'_>],
    attend: impl FnOnce(&[f32], &[f32], &[f32], &mut [f32]),
) -> Result<Attn> {
    let (n, c) = (rotary.len(), &decoder.config);
    let (d, width, kv_width) = (c.hidden_size, c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim);
    let asking = tails.map_or(rotary, |t| &t.rotary);
    let own = normed(layer.attn_norm.as_ref(), x)?;
    let normed = own.as_deref().unwrap_or(x);
    let (mut k, mut v) = (pool::take(n * kv_width), pool::take(n * kv_width));
    let mut q = pool::take(asking.len() * width);
    let mut low: [Vec<f32>; 4] = Default::default();
    match (&layer.attn, tails) {
        (Projections::Split { q: wq, k: wk, v: wv }, tails) => {
            low[0] = match tails {
                None => wq.run_with_adapters(normed, &mut q, n, adapters)?,
                Some(tails) => {
                    let own = tails.pick(normed, d);
                    let low = wq.run(&own, &mut q, asking.len())?;
                    pool::give(own);
                    low
                }
            };
            low[1] = wk.run_with_adapters(normed, &mut k, n, adapters)?;
            low[2] = wv.run_with_adapters(normed, &mut v, n, adapters)?;
        }
        (Projections::Joint { all, by_head }, tails) => {
            let (mut joint, mut every) = (pool::take(n * (width + 2 * kv_width)), pool::take(n * width));
            low[0] = all.run_with_adapters(normed, &mut joint, n, adapters)?;
            let parts = [every.as_mut_slice(), &mut k, &mut v];
            for_each_qkv(&mut joint, parts, n, by_head.then_some(c.head_dim), |row, part| part.copy_from_slice(row));
            let unused = match tails {
                None => std::mem::replace(&mut q, every),
                Some(tails) => {
                    embedding::gather(&every, &tails.rows, width, &mut q);
                    every
                }
            };
            pool::give(joint);
            pool::give(unused);
        }
    }
    pool::give(own.unwrap_or_default());
    let (mut raw_q, mut raw_k, mut given) = (Vec::new(), Vec::new(), Vec::new());
    if let Some([q_norm, k_norm]) = &layer.qk_norm {
        norm_in_place(Some(q_norm), &mut q, &mut raw_q)?;
        norm_in_place(Some(k_norm), &mut k, &mut raw_k)?;
    }
    if let Some(table) = &layer.rope {
        rope::rotate(&mut q, table, asking, 1.0);
        rope::rotate(&mut k, table, rotary, 1.0);
    }
    let mut mixed = pool::take(q.len());
    attend(&q, &k, &v, &mut mixed);
    let mut mid = pool::take(asking.len() * d);
    low[3] = layer.out.run_with_adapters(&mixed, &mut mid, asking.len(), adapters)?;
    norm_in_place(layer.attn_post.as_ref(), &mut mid, &mut given)?;
    scale(&mut mid, c.switches.residual_scale);
    match tails {
        None => add_assign(&mut mid, x),
        Some(tails) => {
            let own = tails.pick(x, d);
            add_assign(&mut mid, &own);
            pool::give(own);
        }
    }
    Ok(Attn { q, k, v, mixed, mid, raw_q, raw_k, given, low })
}

/// The feed-forward network up to its activation.
pub(in crate::model) fn inner(layer: &Layer, source: &[f32], adapters: &[Group<'_>]) -> Result<Inner> {
    let own = normed(layer.mlp_norm.as_ref(), source)?;
    let normed = own.as_deref().unwrap_or(source);
    let n = source.len() / layer.mlp.down().out_features();
    let mut inner = Inner::default();
    match &layer.mlp {
        Mlp::Gated { gate, up, .. } => {
            inner.gate = pool::take(n * gate.out_features());
            inner.up = pool::take(n * up.out_features());
            inner.low = [
                gate.run_with_adapters(normed, &mut inner.gate, n, adapters)?,
                up.run_with_adapters(normed, &mut inner.up, n, adapters)?,
            ];
        }
        Mlp::JointGated { gate_up, .. } => {
            let width = gate_up.out_features() / 2;
            let mut joint = pool::take(n * 2 * width);
            inner.low[0] = gate_up.run_with_adapters(normed, &mut joint, n, adapters)?;
            (inner.gate, inner.up) = (pool::take(n * width), pool::take(n * width));
            let parts = [inner.gate.as_mut_slice(), inner.up.as_mut_slice()];
            for_each_part(&mut joint, parts, n, |row, part| part.copy_from_slice(row));
            pool::give(joint);
        }
        Mlp::Plain { up, .. } => {
            inner.up = pool::take(n * up.out_features());
            inner.low[1] = up.run_with_adapters(normed, &mut inner.up, n, adapters)?;
        }
    }
    pool::give(own.unwrap_or_default());
    Ok(inner)
}

/// The output of a block.
pub(in crate::model) struct Outer {
    pub out: Vec<f32>,
    /// The output of the feed-forward network before its norm; empty without one.
    pub given: Vec<f32>,
    /// The inner values of down's adapter.
    pub low: Vec<f32>,
}

/// mid + down(activation).
pub(in crate::model) fn outer(
    decoder: &Decoder,
    layer: &Layer,
    mid: &[f32],
    inner: &Inner,
    adapters: &[Group<'_>],
) -> Result<Outer> {
    let mut acted = pool::take(inner.up.len());
    match &layer.mlp {
        Mlp::Gated { activation, .. } | Mlp::JointGated { activation, .. } => {
            activation::gated_into(*activation, &inner.gate, &inner.up, &mut acted);
        }
        Mlp::Plain { activation, .. } => activation::activate_into(*activation, &inner.up, &mut acted),
    }
    let (mut out, mut given) = (pool::take(mid.len()), Vec::new());
    let down = layer.mlp.down();
    let low = down.run_with_adapters(&acted, &mut out, mid.len() / down.out_features(), adapters)?;
    norm_in_place(layer.mlp_post.as_ref(), &mut out, &mut given)?;
    scale(&mut out, decoder.config.switches.residual_scale);
    add_assign(&mut out, mid);
    pool::give(acted);
    Ok(Outer { out, given, low })
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

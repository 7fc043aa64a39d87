//! The blocks of a decoder as one step of the autograd graph: forward and backward on plain buffers, without
//! a graph node, a zeroed gradient or a copy per operation. Gradients of the weights go straight into the sums
//! of `ops::grad`; activations are freed block by block. The plain twin is `Decoder::forward_graph`.

use std::sync::{Arc, Mutex};

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::decoder::{Layer, Mlp, Projections, Rows};
use super::{Activation, Decoder};
use crate::ops::{activation, add_assign, attention, embedding, grad, pool, read, rope};

/// How much of a block's forward pass is kept for its backward pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Recompute {
    /// Everything that is dear to compute: fastest.
    #[default]
    None,
    /// All but the feed-forward part's inner values: half the memory, a sixth more time.
    Mlp,
    /// Only each block's input: least memory, a third more time.
    Block,
}

/// What the backward pass of one block needs. Buffers go back to the pool when it is dropped.
#[derive(Default)]
struct Kept {
    /// The block's input [n, d].
    x: Vec<f32>,
    attn: Option<Attn>,
    mlp: Option<Inner>,
}

/// The attention part: rotated q and k, v, what attention gave, and the stream after it.
struct Attn {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    mixed: Vec<f32>,
    mid: Vec<f32>,
    /// Adapters' inner values of q (or the joint projection), k, v and out.
    low: [Vec<f32>; 4],
}

/// The feed-forward part before its activation; `up` alone where it is not gated.
struct Inner {
    gate: Vec<f32>,
    up: Vec<f32>,
    low: [Vec<f32>; 2],
}

impl Drop for Attn {
    fn drop(&mut self) {
        for buffer in [&mut self.q, &mut self.k, &mut self.v, &mut self.mixed, &mut self.mid] {
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

/// One forward pass and, once, its backward pass.
struct Blocks {
    decoder: Decoder,
    ids: Arc<Vec<u32>>,
    rows: Rows,
    /// One per block from the lowest trained one up; then the input of the final norm.
    kept: Mutex<Option<(Vec<Kept>, Vec<f32>)>>,
}

/// Hidden states [n, d] after the final norm, differentiable if the decoder has variables.
pub(super) fn forward(decoder: &Decoder, ids: &Arc<Vec<u32>>, rows: Rows) -> Result<Tensor> {
    match decoder.variable() {
        Some(variable) => variable.apply_op1(Blocks::new(decoder, ids, rows)?),
        None => forward_frozen(decoder, ids, rows),
    }
}

/// The same without gradient.
pub(super) fn forward_frozen(decoder: &Decoder, ids: &Arc<Vec<u32>>, rows: Rows) -> Result<Tensor> {
    crate::ops::tensor(Blocks::new(decoder, ids, rows)?.run(usize::MAX)?, (ids.len(), decoder.config.hidden_size))
}

impl Blocks {
    /// # Errors
    /// An id or a position outside its table.
    fn new(decoder: &Decoder, ids: &Arc<Vec<u32>>, rows: Rows) -> Result<Self> {
        embedding::check(&decoder.embed, ids)?;
        match (&decoder.positions, &decoder.rope) {
            (Some(table), _) => embedding::check(table, &rows.positions)?,
            (None, Some(table)) => table.check(&rows.positions)?,
            (None, None) => {}
        }
        Ok(Self { decoder: decoder.clone(), ids: ids.clone(), rows, kept: Mutex::default() })
    }
}

impl CustomOp1 for Blocks {
    fn name(&self) -> &'static str {
        "decoder-blocks"
    }

    /// The argument only ties the result to the graph: the blocks read their own weights.
    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let hidden = self.run(self.decoder.lowest_trained())?;
        Ok(crate::ops::storage(hidden, (self.ids.len(), self.decoder.config.hidden_size)))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, gy: &Tensor) -> Result<Option<Tensor>> {
        if !grad::active() {
            candle_core::bail!("the backward pass of a decoder runs inside ops::grad::collecting");
        }
        let kept = self.kept.lock().unwrap_or_else(|e| e.into_inner()).take();
        let Some((kept, last)) = kept else { candle_core::bail!("a decoder's backward pass runs once") };
        let gy = gy.contiguous()?;
        self.back(kept, last, &read(&gy)?)?;
        Ok(None)
    }
}

impl Blocks {
    fn n(&self) -> usize {
        self.ids.len()
    }

    /// Runs all blocks and the final norm; keeps what backward needs from block `from` on.
    fn run(&self, from: usize) -> Result<Vec<f32>> {
        let (decoder, n, d) = (&self.decoder, self.n(), self.decoder.config.hidden_size);
        let mut x = pool::take(n * d);
        embedding::gather(&read(&decoder.embed)?, &self.ids, d, &mut x);
        if let Some(table) = &decoder.positions {
            let mut at = pool::take(n * d);
            embedding::gather(&read(table)?, &self.rows.positions, d, &mut at);
            add_assign(&mut x, &at);
            pool::give(at);
        }
        let mut kept = Vec::new();
        for (i, layer) in decoder.layers.iter().enumerate() {
            let attn = self.attn(layer, &x)?;
            let mlp = self.inner(layer, &attn.mid)?;
            let out = self.outer(layer, &attn.mid, &mlp)?;
            if i < from {
                pool::give(std::mem::replace(&mut x, out));
                continue;
            }
            let mut all = Kept { x: std::mem::replace(&mut x, out), attn: Some(attn), mlp: Some(mlp) };
            match decoder.recompute {
                Recompute::None => {}
                Recompute::Mlp => all.mlp = None,
                Recompute::Block => (all.attn, all.mlp) = (None, None),
            }
            kept.push(all);
        }
        let mut y = vec![0f32; n * d];
        decoder.final_norm.run(&x, &mut y)?;
        match from {
            usize::MAX => pool::give(x),
            _ => *self.kept.lock().unwrap_or_else(|e| e.into_inner()) = Some((kept, x)),
        }
        Ok(y)
    }

    /// x + attention(norm(x)).
    fn attn(&self, layer: &Layer, x: &[f32]) -> Result<Attn> {
        let (n, c) = (self.n(), &self.decoder.config);
        let (width, kv_width) = (c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim);
        let mut normed = pool::take(x.len());
        layer.attn_norm.run(x, &mut normed)?;
        let (mut q, mut k, mut v) = (pool::take(n * width), pool::take(n * kv_width), pool::take(n * kv_width));
        let mut low: [Vec<f32>; 4] = Default::default();
        match &layer.attn {
            Projections::Split { q: wq, k: wk, v: wv } => {
                low[0] = wq.run(&normed, &mut q, n)?;
                low[1] = wk.run(&normed, &mut k, n)?;
                low[2] = wv.run(&normed, &mut v, n)?;
            }
            Projections::Joint(all) => {
                let mut joint = pool::take(n * (width + 2 * kv_width));
                low[0] = all.run(&normed, &mut joint, n)?;
                for_each_part(&mut joint, [&mut q, &mut k, &mut v], n, |row, part| part.copy_from_slice(row));
                pool::give(joint);
            }
        }
        if let Some(table) = &self.decoder.rope {
            rope::rotate(&mut q, table, &self.rows.positions, 1.0);
            rope::rotate(&mut k, table, &self.rows.positions, 1.0);
        }
        let mut mixed = pool::take(n * width);
        attention::forward(&self.rows.attention, &q, &k, &v, &mut mixed);
        let mut mid = pool::take(x.len());
        low[3] = layer.out.run(&mixed, &mut mid, n)?;
        add_assign(&mut mid, x);
        pool::give(normed);
        Ok(Attn { q, k, v, mixed, mid, low })
    }

    /// The feed-forward part up to its activation.
    fn inner(&self, layer: &Layer, mid: &[f32]) -> Result<Inner> {
        let n = self.n();
        let mut normed = pool::take(mid.len());
        layer.mlp_norm.run(mid, &mut normed)?;
        let mut inner = Inner { gate: Vec::new(), up: Vec::new(), low: Default::default() };
        match &layer.mlp {
            Mlp::Gated { gate, up, .. } => {
                inner.gate = pool::take(n * gate.out_features());
                inner.up = pool::take(n * up.out_features());
                inner.low = [gate.run(&normed, &mut inner.gate, n)?, up.run(&normed, &mut inner.up, n)?];
            }
            Mlp::JointGated { gate_up, .. } => {
                let width = gate_up.out_features() / 2;
                let mut joint = pool::take(n * 2 * width);
                gate_up.run(&normed, &mut joint, n)?;
                (inner.gate, inner.up) = (pool::take(n * width), pool::take(n * width));
                let parts = [inner.gate.as_mut_slice(), inner.up.as_mut_slice()];
                for_each_part(&mut joint, parts, n, |row, part| part.copy_from_slice(row));
                pool::give(joint);
            }
            Mlp::Plain { up, .. } => {
                inner.up = pool::take(n * up.out_features());
                inner.low[1] = up.run(&normed, &mut inner.up, n)?;
            }
        }
        pool::give(normed);
        Ok(inner)
    }

    fn activate(&self, layer: &Layer, inner: &Inner) -> Vec<f32> {
        let mut acted = pool::take(inner.up.len());
        match &layer.mlp {
            Mlp::Gated { .. } | Mlp::JointGated { .. } => activation::swiglu_into(&inner.gate, &inner.up, &mut acted),
            Mlp::Plain { activation, .. } => {
                activation::gelu_into(&inner.up, &mut acted, *activation == Activation::GeluTanh);
            }
        }
        acted
    }

    /// mid + down(activation).
    fn outer(&self, layer: &Layer, mid: &[f32], inner: &Inner) -> Result<Vec<f32>> {
        let acted = self.activate(layer, inner);
        let mut out = pool::take(mid.len());
        layer.mlp.down().run(&acted, &mut out, self.n())?;
        add_assign(&mut out, mid);
        pool::give(acted);
        Ok(out)
    }

    fn back(&self, kept: Vec<Kept>, last: Vec<f32>, gy: &[f32]) -> Result<()> {
        let decoder = &self.decoder;
        let mut g = pool::take(gy.len());
        decoder.final_norm.back(&last, gy, &mut g, false)?;
        pool::give(last);
        let below = decoder.embeddings_trained();
        let lowest = decoder.layers.len() - kept.len();
        for (i, kept) in kept.into_iter().enumerate().rev() {
            let layer = &decoder.layers[lowest + i];
            let attn = match kept.attn {
                Some(attn) => attn,
                None => self.attn(layer, &kept.x)?,
            };
            let inner = match kept.mlp {
                Some(inner) => inner,
                None => self.inner(layer, &attn.mid)?,
            };
            self.back_mlp(layer, &attn.mid, inner, &mut g)?;
            self.back_attn(layer, &kept.x, attn, &mut g, i > 0 || below)?;
            pool::give(kept.x);
            grad::complete(layer.tensors())?;
        }
        grad::complete(decoder.final_norm.tensors())?;
        if below {
            embedding::scatter(&decoder.embed, &self.ids, &g)?;
            if let Some(table) = &decoder.positions {
                embedding::scatter(table, &self.rows.positions, &g)?;
            }
            // Tied or not, the output matrix has had its gradient: a pass begins at the loss.
            grad::complete(std::iter::once(&decoder.embed).chain(&decoder.positions))?;
        }
        pool::give(g);
        Ok(())
    }

    /// g: gradient of the block's output → of `mid`.
    fn back_mlp(&self, layer: &Layer, mid: &[f32], mut inner: Inner, g: &mut [f32]) -> Result<()> {
        let n = self.n();
        let acted = self.activate(layer, &inner);
        let mut g_inner = pool::take(acted.len());
        let down = layer.mlp.down();
        // The adapter's inner values are a sliver of the work: computed anew rather than kept.
        down.back(&acted, &down.inner(&acted, n)?, g, n, Some((&mut g_inner, false)))?;
        pool::give(acted);
        let mut normed = pool::take(mid.len());
        layer.mlp_norm.run(mid, &mut normed)?;
        let mut g_normed = pool::take(mid.len());
        match &layer.mlp {
            Mlp::Gated { gate, up, .. } => {
                activation::swiglu_grad(&mut inner.gate, &mut inner.up, &g_inner);
                gate.back(&normed, &inner.low[0], &inner.gate, n, Some((&mut g_normed, false)))?;
                up.back(&normed, &inner.low[1], &inner.up, n, Some((&mut g_normed, true)))?;
            }
            Mlp::JointGated { .. } => candle_core::bail!("joined matrices are for serving only"),
            Mlp::Plain { up, activation, .. } => {
                activation::gelu_grad(&mut inner.up, &g_inner, *activation == Activation::GeluTanh);
                up.back(&normed, &inner.low[1], &inner.up, n, Some((&mut g_normed, false)))?;
            }
        }
        pool::give(g_inner);
        pool::give(normed);
        layer.mlp_norm.back(mid, &g_normed, g, true)?;
        pool::give(g_normed);
        Ok(())
    }

    /// g: gradient of `mid` → of the block's input; that only where something below is trained.
    fn back_attn(&self, layer: &Layer, x: &[f32], attn: Attn, g: &mut [f32], below: bool) -> Result<()> {
        let n = self.n();
        let mut g_mixed = pool::take(attn.mixed.len());
        layer.out.back(&attn.mixed, &attn.low[3], g, n, Some((&mut g_mixed, false)))?;
        let [mut gq, mut gk, mut gv] = [&attn.q, &attn.k, &attn.v].map(|t| pool::take(t.len()));
        attention::backward(&self.rows.attention, [&attn.q, &attn.k, &attn.v, &g_mixed], [&mut gq, &mut gk, &mut gv]);
        pool::give(g_mixed);
        if let Some(table) = &self.decoder.rope {
            rope::rotate(&mut gq, table, &self.rows.positions, -1.0);
            rope::rotate(&mut gk, table, &self.rows.positions, -1.0);
        }
        let mut normed = pool::take(x.len());
        layer.attn_norm.run(x, &mut normed)?;
        let mut g_normed = pool::take(x.len());
        let needed = below || layer.attn_norm.trained();
        match &layer.attn {
            Projections::Split { q, k, v } => {
                for (w, low, gy, add) in
                    [(q, &attn.low[0], &gq, false), (k, &attn.low[1], &gk, true), (v, &attn.low[2], &gv, true)]
                {
                    let gx = needed.then_some((g_normed.as_mut_slice(), add));
                    w.back(&normed, low, gy, n, gx)?;
                }
            }
            Projections::Joint(all) => {
                let mut joint = pool::take(gq.len() + gk.len() + gv.len());
                for_each_part(&mut joint, [&mut gq, &mut gk, &mut gv], n, |row, part| row.copy_from_slice(part));
                let gx = needed.then_some((g_normed.as_mut_slice(), false));
                all.back(&normed, &attn.low[0], &joint, n, gx)?;
                pool::give(joint);
            }
        }
        if needed {
            layer.attn_norm.back(x, &g_normed, g, true)?;
        }
        for buffer in [gq, gk, gv, normed, g_normed] {
            pool::give(buffer);
        }
        Ok(())
    }
}

/// Calls `f` with every row of each part and its place in the rows of `joint`, where the parts lie side by side.
fn for_each_part<const P: usize>(
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

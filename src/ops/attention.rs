//! Multi-head attention over packed sequences, with a backward pass. Groups of query heads share keys and values
//! (grouped-query attention, arXiv 2305.13245). The backward pass recomputes the probabilities (FlashAttention, arXiv
//! 2205.14135).

use std::ops::Range;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};

pub use super::attention_spec::{Attend, AttentionSpec};
use super::attn_kernel::{
    MAX_ROWS, Scratch, attend, mix_block, padded, probabilities, put_key, score_block, spread_block,
};
use super::par::{SharedMut, split};
use super::simd::{LANES, dot, multiversion};
use super::{buffer, f32s, fused, plain, read, storage, tensor};

/// q `[rows, heads·head_dim]`, k and v `[rows, kv_heads·head_dim]` → `[rows, heads·head_dim]`. Rotary embeddings are
/// applied by the caller.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, spec: &AttentionSpec) -> Result<Tensor> {
    if fused(q) {
        let op = Attention { spec: spec.clone() };
        return q.contiguous()?.apply_op3(&k.contiguous()?, &v.contiguous()?, op);
    }
    plain::attention(q, k, v, spec)
}

struct Attention {
    spec: AttentionSpec,
}

/// The keys and values of one sequence and key/value head, in the layout of the kernel.
struct HeadBlocks {
    /// head_dim, padded.
    hd: usize,
    /// `[blocks, hd, 16]`.
    k_t: Vec<f32>,
    /// `[blocks · 16, hd]`.
    v: Vec<f32>,
}

impl HeadBlocks {
    fn gather(k: &[f32], v: &[f32], spec: &AttentionSpec, rows: Range<usize>, head: usize) -> Self {
        let (hd, width) = (padded(spec.head_dim), spec.n_kv_heads * spec.head_dim);
        let blocks = rows.len().div_ceil(LANES);
        let (mut k_t, mut v_rows) = (vec![0f32; blocks * LANES * hd], vec![0f32; blocks * LANES * hd]);
        for (j, row) in rows.enumerate() {
            let from = row * width + head * spec.head_dim;
            let block = &mut k_t[j / LANES * LANES * hd..][..LANES * hd];
            put_key(block, j % LANES, &k[from..from + spec.head_dim]);
            v_rows[j * hd..j * hd + spec.head_dim].copy_from_slice(&v[from..from + spec.head_dim]);
        }
        Self { hd, k_t, v: v_rows }
    }

    fn block<'a>(&self, of: &'a [f32], b: usize) -> &'a [f32] {
        &of[b * LANES * self.hd..(b + 1) * LANES * self.hd]
    }
}

/// The query rows of one kernel call: heads that share a key/value head, at neighbouring positions of a sequence.
struct Group {
    /// The (row of q, head) of each kernel row.
    at: Vec<(usize, usize)>,
    /// The keys to which each row attends.
    visible: Vec<Range<usize>>,
}

/// Number of positions per kernel call: as many as all heads of a group allow.
fn positions_per_group(spec: &AttentionSpec) -> usize {
    (MAX_ROWS / (spec.n_heads / spec.n_kv_heads)).max(1)
}

fn groups(spec: &AttentionSpec, seq: usize, kv_head: usize) -> impl Iterator<Item = Group> + '_ {
    let (per_kv, step) = (spec.n_heads / spec.n_kv_heads, positions_per_group(spec));
    let (rows, len) = (spec.query_rows(seq), spec.keys(seq).len());
    let before = len - rows.len();
    (0..rows.len()).step_by(step).flat_map(move |p0| {
        let (start, p1) = (rows.start, (p0 + step).min(rows.len()));
        // If a group has more heads than a kernel call has rows, each position takes several calls.
        (0..per_kv).step_by(MAX_ROWS).map(move |h0| {
            let heads = h0..(h0 + MAX_ROWS).min(per_kv);
            let mut group = Group { at: Vec::new(), visible: Vec::new() };
            for p in p0..p1 {
                for h in heads.clone() {
                    group.at.push((start + p, kv_head * per_kv + h));
                    group.visible.push(spec.visible_keys(before + p, len));
                }
            }
            group
        })
    })
}

/// Copies the rows of a group, times `scale`, to `[rows, hd]` with head_dim padded.
fn load_rows(from: &[f32], spec: &AttentionSpec, group: &Group, scale: f32, to: &mut Vec<f32>) {
    let (hd, d) = (padded(spec.head_dim), spec.head_dim);
    to.clear();
    to.resize(group.at.len() * hd, 0.0);
    for (i, (row, head)) in group.at.iter().enumerate() {
        let at = (row * spec.n_heads + head) * d;
        for (t, f) in to[i * hd..i * hd + d].iter_mut().zip(&from[at..at + d]) {
            *t = f * scale;
        }
    }
}

/// out = attention(q, k, v) on slices.
pub fn forward(spec: &AttentionSpec, q: &[f32], k: &[f32], v: &[f32], out: &mut [f32]) {
    let shared = SharedMut::new(out);
    let d = spec.head_dim;
    split((spec.offsets.len() - 1) * spec.n_kv_heads, spec.work(), |tasks| {
        let mut scratch = Scratch::default();
        for task in tasks {
            let (seq, head) = (task / spec.n_kv_heads, task % spec.n_kv_heads);
            let rows = spec.keys(seq);
            let stride = rows.len().div_ceil(LANES) * LANES;
            let blocks = HeadBlocks::gather(k, v, spec, rows, head);
            for group in groups(spec, seq, head) {
                load_rows(q, spec, &group, spec.scale(), &mut scratch.q);
                scratch.out.resize(scratch.q.len(), 0.0);
                let (kb, vb) = (|b| blocks.block(&blocks.k_t, b), |b| blocks.block(&blocks.v, b));
                let Scratch { scores, q, out } = &mut scratch;
                attend(q, &group.visible, spec.softcap, blocks.hd, kb, vb, scores, stride, out);
                for (i, (row, h)) in group.at.iter().enumerate() {
                    // SAFETY: each (row, head) belongs to one task.
                    let to = unsafe { shared.slice((row * spec.n_heads + h) * d, d) };
                    to.copy_from_slice(&scratch.out[i * blocks.hd..i * blocks.hd + d]);
                }
            }
        }
    });
}

/// Writes the gradients of q, k and v to `grads`; `inputs` are q, k, v and the gradient of the output.
pub fn backward(spec: &AttentionSpec, inputs: [&[f32]; 4], grads: [&mut [f32]; 3]) {
    let grads = grads.map(SharedMut::new);
    split((spec.offsets.len() - 1) * spec.n_kv_heads, 3 * spec.work(), |tasks| {
        for task in tasks {
            head_backward(spec, task / spec.n_kv_heads, task % spec.n_kv_heads, inputs, grads);
        }
    });
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (q, k) = (f32s(s1, l1, "attention")?, f32s(s2, l2, "attention")?);
        let v = f32s(s3, l3, "attention")?;
        check(&self.spec, l1, l2, l3)?;
        let mut out = buffer(q.len());
        forward(&self.spec, q, k, v, &mut out);
        Ok(storage(out, l1.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _out: &Tensor,
        gout: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (mut gq, mut gk, mut gv) = (buffer(q.elem_count()), buffer(k.elem_count()), buffer(v.elem_count()));
        let gout = gout.contiguous()?;
        backward(&self.spec, [&read(q)?, &read(k)?, &read(v)?, &read(&gout)?], [&mut gq, &mut gk, &mut gv]);
        Ok((Some(tensor(gq, q.shape())?), Some(tensor(gk, k.shape())?), Some(tensor(gv, v.shape())?)))
    }
}

/// The gradients for one sequence and key/value head, and its query heads.
fn head_backward(spec: &AttentionSpec, seq: usize, head: usize, inputs: [&[f32]; 4], grads: [SharedMut<f32>; 3]) {
    let [q, k, v, gout] = inputs;
    let (d, hd) = (spec.head_dim, padded(spec.head_dim));
    let rows = spec.keys(seq);
    let start = rows.start;
    let n_blocks = rows.len().div_ceil(LANES);
    let stride = n_blocks * LANES;
    let forward = HeadBlocks::gather(k, v, spec, rows.clone(), head);
    // With swapped roles: `k_t` has the blocks of Vᵀ, `v` the rows of K.
    let swapped = HeadBlocks::gather(v, k, spec, rows.clone(), head);
    let (mut gk_rows, mut gv_rows) = (vec![0f32; stride * hd], vec![0f32; stride * hd]);
    let (mut qs, mut gos) = (Vec::new(), Vec::new());
    let (mut probs, mut dprobs, mut out, mut slopes) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for group in groups(spec, seq, head) {
        let n = group.at.len();
        load_rows(q, spec, &group, spec.scale(), &mut qs);
        load_rows(gout, spec, &group, 1.0, &mut gos);
        out.resize(n * hd, 0.0);
        let kb = |b| forward.block(&forward.k_t, b);
        let sloped = spec.softcap.map(|_| &mut slopes);
        let blocks = probabilities(&qs, &group.visible, spec.softcap, hd, kb, &mut probs, stride, sloped);
        dprobs.resize(n * stride, 0.0);
        for b in blocks.clone() {
            spread_block(&probs, &gos, hd, b * LANES, stride, &mut gv_rows[b * LANES * hd..(b + 1) * LANES * hd]);
            score_block(&gos, swapped.block(&swapped.k_t, b), hd, b * LANES, stride, &mut dprobs);
        }
        for r in 0..n {
            let span = r * stride + blocks.start * LANES..r * stride + blocks.end * LANES;
            softmax_grad(&probs[span.clone()], &mut dprobs[span.clone()]);
            if spec.softcap.is_some() {
                dprobs[span.clone()].iter_mut().zip(&slopes[span]).for_each(|(g, slope)| *g *= slope);
            }
        }
        out.fill(0.0);
        for b in blocks {
            mix_block(&dprobs, swapped.block(&swapped.v, b), hd, b * LANES, stride, &mut out);
            // `qs` is already scaled.
            spread_block(&dprobs, &qs, hd, b * LANES, stride, &mut gk_rows[b * LANES * hd..(b + 1) * LANES * hd]);
        }
        for (i, (row, h)) in group.at.iter().enumerate() {
            // SAFETY: each (row, query head) belongs to one task.
            let to = unsafe { grads[0].slice((row * spec.n_heads + h) * d, d) };
            for (t, g) in to.iter_mut().zip(&out[i * hd..i * hd + d]) {
                *t = g * spec.scale();
            }
        }
    }
    for j in 0..rows.len() {
        let at = ((start + j) * spec.n_kv_heads + head) * d;
        // SAFETY: each (row, key/value head) belongs to one task.
        let (gk, gv) = unsafe { (grads[1].slice(at, d), grads[2].slice(at, d)) };
        gk.copy_from_slice(&gk_rows[j * hd..j * hd + d]);
        gv.copy_from_slice(&gv_rows[j * hd..j * hd + d]);
    }
}

multiversion! {
    /// Replaces dP by dS = P ⊙ (dP − Σ P·dP). Masked keys have P = 0, so dS = 0.
    fn softmax_grad(p: &[f32], dp: &mut [f32]) {
        let mean = dot(p, dp);
        for i in 0..p.len() {
            dp[i] = p[i] * (dp[i] - mean);
        }
    }
}

fn check(spec: &AttentionSpec, q: &Layout, k: &Layout, v: &Layout) -> Result<()> {
    let (n, qw) = q.shape().dims2()?;
    let kw = spec.n_kv_heads * spec.head_dim;
    let ends_right = spec.offsets.first() == Some(&0) && spec.offsets.last() == Some(&n);
    let ascending = spec.offsets.windows(2).all(|w| w[0] <= w[1]);
    if qw != spec.n_heads * spec.head_dim
        || k.shape().dims2()? != (n, kw)
        || v.shape().dims2()? != (n, kw)
        || !spec.n_heads.is_multiple_of(spec.n_kv_heads)
        || !ends_right
        || !ascending
        || spec.queries.is_some()
    {
        candle_core::bail!("attention: q {:?}, k {:?}, v {:?} do not fit {spec:?}", q.shape(), k.shape(), v.shape());
    }
    Ok(())
}

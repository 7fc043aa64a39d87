//! Scaled dot-product attention for a few query rows that share one key/value head.
//!
//! Keys are in blocks of 16 with the layout `[head_dim][16]`, so that the scores of 16 keys are one vector without
//! horizontal sums; blocks of values are `[16][head_dim]`. Every element is one fixed chain of operations, so a row's
//! result is the same for any grouping of rows and any chunking of a prompt, in training and in serving.

use std::ops::Range;

use super::simd::{LANES, exp, max, multiversion, sum};

/// Maximum number of query rows of one call.
pub const MAX_ROWS: usize = 24;

/// head_dim rounded up to full vectors. Layouts are padded with zeros.
pub fn padded(head_dim: usize) -> usize {
    head_dim.div_ceil(LANES) * LANES
}

/// 16 keys `[hd][16]` or 16 values `[16][hd]` of one head, with hd padded, in f32 or in the format of a cache.
pub trait Block: Copy {
    /// Writes the products of the rows of q `[rows, hd]` with the 16 keys to `scores[r][at..at + 16]`. The rows of
    /// `scores` are `stride` apart.
    fn score(self, q: &[f32], hd: usize, at: usize, stride: usize, scores: &mut [f32]);

    /// `out[r]` += Σ_j `p[r][at + j]` · value j for out `[rows, hd]`, in the order of the keys. The rows of `p` are
    /// `stride` apart.
    fn mix(self, p: &[f32], hd: usize, at: usize, stride: usize, out: &mut [f32]);
}

impl Block for &[f32] {
    fn score(self, q: &[f32], hd: usize, at: usize, stride: usize, scores: &mut [f32]) {
        score_block(q, self, hd, at, stride, scores);
    }

    fn mix(self, p: &[f32], hd: usize, at: usize, stride: usize, out: &mut [f32]) {
        mix_block(p, self, hd, at, stride, out);
    }
}

/// Scratch memory of one task: the scores of all rows, and the padded queries and outputs.
#[derive(Default)]
pub struct Scratch {
    pub scores: Vec<f32>,
    pub q: Vec<f32>,
    pub out: Vec<f32>,
}

/// `out[r] = softmax(q[r]·Kᵀ)·V` for q `[rows, hd]`, already scaled. Row r attends to the keys `visible[r]`. With
/// `cap`, scores become cap · tanh(score / cap). `k_blocks(b)` and `v_blocks(b)` are the keys and values 16b…16b+15;
/// they are called only for blocks with visible keys. On return `scores` has the probabilities of these blocks, rows
/// `stride` apart, with zeros for masked keys.
#[expect(clippy::too_many_arguments, reason = "a kernel's plain inputs")]
pub fn attend<K: Block, V: Block>(
    q: &[f32],
    visible: &[Range<usize>],
    cap: Option<f32>,
    hd: usize,
    k_blocks: impl Fn(usize) -> K,
    v_blocks: impl Fn(usize) -> V,
    scores: &mut Vec<f32>,
    stride: usize,
    out: &mut [f32],
) {
    assert_eq!(out.len(), q.len(), "size of the output");
    let blocks = probabilities(q, visible, cap, hd, k_blocks, scores, stride, None);
    out.fill(0.0);
    for b in blocks {
        v_blocks(b).mix(scores, hd, b * LANES, stride, out);
    }
}

/// Computes the probabilities of `attend` in `scores`. Returns the blocks with visible keys. `slopes` receives the
/// derivatives of the cap, in the layout of the scores.
#[expect(clippy::too_many_arguments, reason = "a kernel's plain inputs")]
pub fn probabilities<K: Block>(
    q: &[f32],
    visible: &[Range<usize>],
    cap: Option<f32>,
    hd: usize,
    k_blocks: impl Fn(usize) -> K,
    scores: &mut Vec<f32>,
    stride: usize,
    mut slopes: Option<&mut Vec<f32>>,
) -> Range<usize> {
    let rows = visible.len();
    let first = visible.iter().map(|s| s.start).min().unwrap_or(0) / LANES;
    let blocks = first..visible.iter().map(|s| s.end).max().unwrap_or(0).div_ceil(LANES);
    assert!(rows <= MAX_ROWS && stride >= blocks.end * LANES && q.len() == rows * hd, "sizes");
    scores.resize(rows * stride, 0.0);
    for b in blocks.clone() {
        k_blocks(b).score(q, hd, b * LANES, stride, scores);
    }
    if let Some(slopes) = &mut slopes {
        slopes.resize(rows * stride, 0.0);
    }
    let start = blocks.start * LANES;
    for (r, keys) in visible.iter().enumerate() {
        let span = r * stride + start..r * stride + blocks.end * LANES;
        if let Some(cap) = cap {
            soft_cap(&mut scores[span.clone()], cap, 1.0);
            if let Some(slopes) = &mut slopes {
                soft_cap_slopes(&scores[span.clone()], cap, &mut slopes[span.clone()]);
            }
        }
        softmax(&mut scores[span], keys.start - start, keys.end - start);
    }
    blocks
}

multiversion! {
    /// Replaces x by cap · tanh(factor · x / cap).
    pub fn soft_cap(x: &mut [f32], cap: f32, factor: f32) {
        for v in x.iter_mut() {
            // tanh(z) = 1 − 2/(e^{2z} + 1) saturates correctly at both ends.
            *v = cap * (1.0 - 2.0 / (exp(2.0 * factor * *v / cap) + 1.0));
        }
    }
}

multiversion! {
    /// The derivative of `soft_cap` with factor 1, from its result.
    pub fn soft_cap_slopes(capped: &[f32], cap: f32, slopes: &mut [f32]) {
        for i in 0..slopes.len() {
            let t = capped[i] / cap;
            slopes[i] = 1.0 - t * t;
        }
    }
}

multiversion! {
    /// `scores[r][at..at + 16]` = `q[r]` · K block, for all rows.
    pub fn score_block(q: &[f32], k: &[f32], hd: usize, at: usize, stride: usize, scores: &mut [f32]) {
        let (k, _) = k[..hd * LANES].as_chunks::<LANES>();
        let rows = q.len() / hd;
        let mut r = 0;
        while r + 4 <= rows {
            let q4 = [&q[r * hd..(r + 1) * hd], &q[(r + 1) * hd..(r + 2) * hd], &q[(r + 2) * hd..(r + 3) * hd], &q[(r + 3) * hd..(r + 4) * hd]];
            let mut acc = [[0f32; LANES]; 4];
            for d in 0..hd {
                let kv = k[d];
                for i in 0..4 {
                    let qv = q4[i][d];
                    for l in 0..LANES {
                        acc[i][l] = qv.mul_add(kv[l], acc[i][l]);
                    }
                }
            }
            for i in 0..4 {
                scores[(r + i) * stride + at..(r + i) * stride + at + LANES].copy_from_slice(&acc[i]);
            }
            r += 4;
        }
        while r < rows {
            let mut acc = [0f32; LANES];
            for d in 0..hd {
                let qv = q[r * hd + d];
                for l in 0..LANES {
                    acc[l] = qv.mul_add(k[d][l], acc[l]);
                }
            }
            scores[r * stride + at..r * stride + at + LANES].copy_from_slice(&acc);
            r += 1;
        }
    }
}

multiversion! {
    /// In-place softmax over the entries `from..to`; the others become exactly 0.
    fn softmax(scores: &mut [f32], from: usize, to: usize) {
        let max = max(&scores[from..to]);
        scores[..from].fill(f32::NEG_INFINITY);
        scores[to..].fill(f32::NEG_INFINITY);
        for s in scores.iter_mut() {
            *s = exp(*s - max);
        }
        let scale = 1.0 / sum(scores);
        for s in scores.iter_mut() {
            *s *= scale;
        }
    }
}

/// Width of a tile, in vectors.
const WIDE: usize = 4;

/// out[a][0..16·V] += Σ_i weights[a·across + i·along] · rows[i][0..16·V] for R rows of out, with i ascending. The rows
/// of out and of `rows` are `hd` apart.
#[inline(always)]
fn add_tile<const R: usize, const V: usize>(
    out: &mut [f32],
    weights: &[f32],
    (across, along): (usize, usize),
    n: usize,
    rows: &[f32],
    hd: usize,
) {
    let mut acc = [[[0f32; LANES]; V]; R];
    for a in 0..R {
        let (from, _) = out[a * hd..a * hd + V * LANES].as_chunks::<LANES>();
        acc[a].copy_from_slice(&from[..V]);
    }
    for i in 0..n {
        let (row, _) = rows[i * hd..i * hd + V * LANES].as_chunks::<LANES>();
        for a in 0..R {
            let w = weights[a * across + i * along];
            for v in 0..V {
                for l in 0..LANES {
                    acc[a][v][l] = w.mul_add(row[v][l], acc[a][v][l]);
                }
            }
        }
    }
    for a in 0..R {
        out[a * hd..a * hd + V * LANES].copy_from_slice(acc[a].as_flattened());
    }
}

/// `add_tile` for m rows of `hd` columns, a multiple of 16. Tiles have four rows, so that each value of `rows` is read
/// for four sums.
#[inline(always)]
fn add_product(out: &mut [f32], m: usize, weights: &[f32], at: (usize, usize), n: usize, rows: &[f32], hd: usize) {
    let mut a = 0;
    while a < m {
        let (out, weights, mut c) = (&mut out[a * hd..], &weights[a * at.0..], 0);
        while c + WIDE * LANES <= hd {
            match m - a {
                1 => add_tile::<1, WIDE>(&mut out[c..], weights, at, n, &rows[c..], hd),
                2 => add_tile::<2, WIDE>(&mut out[c..], weights, at, n, &rows[c..], hd),
                3 => add_tile::<3, WIDE>(&mut out[c..], weights, at, n, &rows[c..], hd),
                _ => add_tile::<4, WIDE>(&mut out[c..], weights, at, n, &rows[c..], hd),
            }
            c += WIDE * LANES;
        }
        while c < hd {
            for r in 0..(m - a).min(4) {
                add_tile::<1, 1>(&mut out[r * hd + c..], &weights[r * at.0..], at, n, &rows[c..], hd);
            }
            c += LANES;
        }
        a += 4;
    }
}

multiversion! {
    /// `out[r]` += Σ_j `p[r][at + j]` · `rows[j]` over the 16 rows of one block, in the order of the keys.
    pub fn mix_block(p: &[f32], rows: &[f32], hd: usize, at: usize, stride: usize, out: &mut [f32]) {
        let m = out.len() / hd;
        add_product(out, m, &p[at..], (stride, 1), LANES, rows, hd);
    }
}

multiversion! {
    /// `rows[j]` += Σ_r `p[r][at + j]` · `x[r]`: the transposed product, for the gradients of keys and values.
    pub fn spread_block(p: &[f32], x: &[f32], hd: usize, at: usize, stride: usize, rows: &mut [f32]) {
        add_product(rows, LANES, &p[at..], (1, stride), x.len() / hd, x, hd);
    }
}

/// Writes one key vector into its `[hd][16]` block.
pub fn put_key(block: &mut [f32], slot: usize, key: &[f32]) {
    for (d, v) in key.iter().enumerate() {
        block[d * LANES + slot] = *v;
    }
}

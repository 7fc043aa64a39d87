//! Scaled dot-product attention for a few query rows that share one key/value head.
//!
//! Keys come in blocks of 16 laid out `[head_dim][16]`, so scores of 16 keys are one vector without any
//! horizontal sum; values lie `[16][head_dim]`. A row's result is one fixed chain per element: it is the
//! same for any grouping of rows, any chunking of a prompt, training or serving.

use std::ops::Range;

use super::simd::{LANES, exp, max, multiversion, sum};

/// Most query rows handled at once.
pub const MAX_ROWS: usize = 24;

/// head_dim rounded up to full vectors; layouts are padded with zeros.
pub fn padded(head_dim: usize) -> usize {
    head_dim.div_ceil(LANES) * LANES
}

/// 16 keys or values of one head, with `hd` padded dimensions: keys are `[hd][16]`, values `[16][hd]`.
pub trait Block: Copy {
    /// `scores[r][at..at + 16]` = `q[r]` · the keys, for rows `q` [rows, hd] and scores that are `stride` apart.
    fn score(self, q: &[f32], hd: usize, at: usize, stride: usize, scores: &mut [f32]);

    /// `out[r]` += Σ_j `p[r][at + j]` · value j, in key order, for rows of `out` [rows, hd] and of `p`, `stride` apart.
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

/// Scratch of one worker: scores of all rows and the padded queries and outputs.
#[derive(Default)]
pub struct Scratch {
    pub scores: Vec<f32>,
    pub q: Vec<f32>,
    pub out: Vec<f32>,
}

/// `out[r] = softmax(q[r]·Kᵀ)·V` for `q` [rows, hd] (already scaled), row r seeing the keys of `seen[r]`; with `cap`,
/// scores become cap · tanh(score / cap) first. `k_blocks(b)` and `v_blocks(b)` are the keys and
/// values 16b…16b+15; blocks that no row sees are not asked for. On return `scores` holds the
/// probabilities of the blocks that any row sees, `stride` apart, zero out of sight.
#[expect(clippy::too_many_arguments, reason = "a kernel's plain inputs")]
pub fn attend<K: Block, V: Block>(
    q: &[f32],
    seen: &[Range<usize>],
    cap: Option<f32>,
    hd: usize,
    k_blocks: impl Fn(usize) -> K,
    v_blocks: impl Fn(usize) -> V,
    scores: &mut Vec<f32>,
    stride: usize,
    out: &mut [f32],
) {
    assert_eq!(out.len(), q.len(), "a row for every query");
    let blocks = probabilities(q, seen, cap, hd, k_blocks, scores, stride, None);
    out.fill(0.0);
    for b in blocks {
        v_blocks(b).mix(scores, hd, b * LANES, stride, out);
    }
}

/// The first half of `attend`: `scores` become the probabilities. Returns the blocks that any row sees. `slopes`
/// takes what the cap does to a gradient, laid out as the scores.
#[expect(clippy::too_many_arguments, reason = "a kernel's plain inputs")]
pub fn probabilities<K: Block>(
    q: &[f32],
    seen: &[Range<usize>],
    cap: Option<f32>,
    hd: usize,
    k_blocks: impl Fn(usize) -> K,
    scores: &mut Vec<f32>,
    stride: usize,
    mut slopes: Option<&mut Vec<f32>>,
) -> Range<usize> {
    let rows = seen.len();
    let first = seen.iter().map(|s| s.start).min().unwrap_or(0) / LANES;
    let blocks = first..seen.iter().map(|s| s.end).max().unwrap_or(0).div_ceil(LANES);
    assert!(rows <= MAX_ROWS && stride >= blocks.end * LANES && q.len() == rows * hd, "sizes");
    scores.resize(rows * stride, 0.0);
    for b in blocks.clone() {
        k_blocks(b).score(q, hd, b * LANES, stride, scores);
    }
    if let Some(slopes) = &mut slopes {
        slopes.resize(rows * stride, 0.0);
    }
    let start = blocks.start * LANES;
    for (r, see) in seen.iter().enumerate() {
        let span = r * stride + start..r * stride + blocks.end * LANES;
        if let Some(cap) = cap {
            soft_cap(&mut scores[span.clone()], cap, 1.0);
            if let Some(slopes) = &mut slopes {
                soft_cap_slopes(&scores[span.clone()], cap, &mut slopes[span.clone()]);
            }
        }
        softmax(&mut scores[span], see.start - start, see.end - start);
    }
    blocks
}

multiversion! {
    /// x becomes cap · tanh(factor · x / cap).
    pub fn soft_cap(x: &mut [f32], cap: f32, factor: f32) {
        for v in x.iter_mut() {
            // tanh(z) = 1 − 2/(e^{2z} + 1) saturates correctly at both ends.
            *v = cap * (1.0 - 2.0 / (exp(2.0 * factor * *v / cap) + 1.0));
        }
    }
}

multiversion! {
    /// The derivative of `soft_cap` with factor 1, from what it gave.
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
    /// In-place softmax over the entries from `from` to `visible`; the rest become exactly 0.
    fn softmax(scores: &mut [f32], from: usize, visible: usize) {
        let max = max(&scores[from..visible]);
        scores[..from].fill(f32::NEG_INFINITY);
        scores[visible..].fill(f32::NEG_INFINITY);
        for s in scores.iter_mut() {
            *s = exp(*s - max);
        }
        let scale = 1.0 / sum(scores);
        for s in scores.iter_mut() {
            *s *= scale;
        }
    }
}

/// Columns of a tile, in vectors.
const WIDE: usize = 4;

/// out[a][0..16·V] += Σ_i weights[a·across + i·along] · rows[i][0..16·V] for R rows of out, in order of i; rows of
/// out and `rows` are `hd` apart.
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

/// `add_tile` for `m` rows of `hd` columns, a multiple of 16: tiles of four rows, so that what is read of `rows`
/// serves four sums.
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
    /// `out[r]` += Σ_j `p[r][at + j]` · `rows[j]`, for the 16 rows of one block, in key order.
    pub fn mix_block(p: &[f32], rows: &[f32], hd: usize, at: usize, stride: usize, out: &mut [f32]) {
        let m = out.len() / hd;
        add_product(out, m, &p[at..], (stride, 1), LANES, rows, hd);
    }
}

multiversion! {
    /// `rows[j]` += Σ_r `p[r][at + j]` · `x[r]`: the transposed product, for gradients of keys and values.
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

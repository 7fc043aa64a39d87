//! Blocks of 16 keys or values of one head in the formats of a key-value cache: f32, f16, or 8-bit integers with a
//! scale for every 32 dimensions of a token. The attention kernels read them without a copy in f32: numbers are widened
//! in registers. What is stored of a token does not depend on other tokens.

use half::f16;

use super::attn_kernel::{Block, mix_block, put_key, score_block};
use super::simd::{LANES, multiversion};

/// How a cache stores keys and values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvFormat {
    /// As computed.
    #[default]
    F32,
    /// Rounded to half precision; numbers beyond its range become the largest that it has.
    F16,
    /// Integers of 8 bits, with an f32 scale for every 32 dimensions of a token.
    Q8_0,
}

/// Dimensions that share a scale.
const GROUP: usize = 32;

impl KvFormat {
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Q8_0];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Q8_0 => "q8_0",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.as_str() == name)
    }

    /// Bytes of one key or value of `hd` dimensions, which are padded.
    pub fn bytes(self, hd: usize) -> usize {
        match self {
            Self::F32 => hd * size_of::<f32>(),
            Self::F16 => hd * size_of::<u16>(),
            Self::Q8_0 => hd + hd.div_ceil(GROUP) * size_of::<f32>(),
        }
    }
}

/// Whether blocks hold keys `[hd][16]` with scales `[groups][16]`, or values `[16][hd]` with scales `[16][groups]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvKind {
    Keys,
    Values,
}

#[derive(Debug)]
enum Numbers {
    F32(Vec<f32>),
    F16(Vec<u16>),
    Q8(Vec<i8>),
}

/// Blocks of keys or of values, addressed by their number.
#[derive(Debug)]
pub struct KvBlocks {
    kind: KvKind,
    hd: usize,
    numbers: Numbers,
    scales: Vec<f32>,
}

impl KvBlocks {
    /// `blocks` blocks of zeros, for keys or values of `hd` dimensions (a multiple of 16). The memory is not touched
    /// until it is used.
    pub fn new(format: KvFormat, kind: KvKind, blocks: usize, hd: usize) -> Self {
        let n = blocks * hd * LANES;
        let (numbers, groups) = match format {
            KvFormat::F32 => (Numbers::F32(vec![0.0; n]), 0),
            KvFormat::F16 => (Numbers::F16(vec![0; n]), 0),
            KvFormat::Q8_0 => (Numbers::Q8(vec![0; n]), hd.div_ceil(GROUP)),
        };
        Self { kind, hd, numbers, scales: vec![0.0; blocks * groups * LANES] }
    }

    /// Scales of a block.
    fn scales(&self) -> usize {
        if self.scales.is_empty() { 0 } else { self.hd.div_ceil(GROUP) * LANES }
    }

    /// Memory for numbers and scales.
    pub fn bytes(&self) -> usize {
        let numbers = match &self.numbers {
            Numbers::F32(x) => size_of_val(x.as_slice()),
            Numbers::F16(x) => size_of_val(x.as_slice()),
            Numbers::Q8(x) => size_of_val(x.as_slice()),
        };
        numbers + size_of_val(self.scales.as_slice())
    }

    /// Stores the key or value of token `slot` (0 to 15) of a block; `row` may be shorter than `hd`.
    pub fn put(&mut self, block: usize, slot: usize, row: &[f32]) {
        let (kind, hd, scales) = (self.kind, self.hd, self.scales());
        let from = block * hd * LANES;
        let span = from..from + hd * LANES;
        match &mut self.numbers {
            Numbers::F32(x) => match kind {
                KvKind::Keys => put_key(&mut x[span], slot, row),
                KvKind::Values => x[from + slot * hd..][..row.len()].copy_from_slice(row),
            },
            Numbers::F16(x) => place(kind, hd, slot, row.iter().map(|v| to_f16(*v)), &mut x[span]),
            Numbers::Q8(x) => {
                let own = &mut self.scales[block * scales..(block + 1) * scales];
                for (g, group) in row.chunks(GROUP).enumerate() {
                    let (scale, inverse) = scale_of(group);
                    own[match kind {
                        KvKind::Keys => g * LANES + slot,
                        KvKind::Values => slot * (scales / LANES) + g,
                    }] = scale;
                    let step = if kind == KvKind::Keys { LANES } else { 1 };
                    let integers = group.iter().map(|v| (v * inverse).round_ties_even() as i8);
                    place(kind, hd, slot, integers, &mut x[from + g * GROUP * step..]);
                }
            }
        }
    }

    /// Copies `n` blocks.
    pub fn copy(&mut self, from: usize, to: usize, n: usize) {
        fn within<T: Copy>(x: &mut [T], from: usize, to: usize, n: usize, size: usize) {
            x.copy_within(from * size..(from + n) * size, to * size);
        }
        let (size, scales) = (self.hd * LANES, self.scales());
        match &mut self.numbers {
            Numbers::F32(x) => within(x, from, to, n, size),
            Numbers::F16(x) => within(x, from, to, n, size),
            Numbers::Q8(x) => within(x, from, to, n, size),
        }
        within(&mut self.scales, from, to, n, scales);
    }

    pub fn block(&self, block: usize) -> KvBlock<'_> {
        let (size, scales) = (self.hd * LANES, self.scales());
        let span = block * size..(block + 1) * size;
        match &self.numbers {
            Numbers::F32(x) => KvBlock::F32(&x[span]),
            Numbers::F16(x) => KvBlock::F16(&x[span]),
            Numbers::Q8(x) => KvBlock::Q8(&x[span], &self.scales[block * scales..(block + 1) * scales]),
        }
    }
}

/// Writes the numbers of one token into a block.
fn place<T>(kind: KvKind, hd: usize, slot: usize, row: impl Iterator<Item = T>, block: &mut [T]) {
    for (d, v) in row.enumerate() {
        block[match kind {
            KvKind::Keys => d * LANES + slot,
            KvKind::Values => slot * hd + d,
        }] = v;
    }
}

/// The scale of a group and its inverse; the largest magnitude becomes 127. The scale is NaN if a number of the group
/// is not finite, so that results of the group are NaN too.
fn scale_of(group: &[f32]) -> (f32, f32) {
    let most = group.iter().fold(0f32, |most, v| most.max(v.abs()));
    let inverse = if most > 0.0 { 127.0 / most } else { 0.0 };
    match group.iter().all(|v| v.is_finite()) {
        // The inverse of a subnormal number may be infinite: such a group is zero.
        true if inverse.is_finite() => (most / 127.0, inverse),
        true => (0.0, 0.0),
        false => (f32::NAN, 0.0),
    }
}

fn to_f16(x: f32) -> u16 {
    f16::from_f32(x.clamp(-f32::from(f16::MAX), f32::from(f16::MAX))).to_bits()
}

/// The f32 of the same value, by arithmetic that compilers vectorize.
#[inline(always)]
fn from_f16(h: u16) -> f32 {
    const REBIAS: u32 = (127 - 15) << 23;
    const SMALLEST: u32 = REBIAS + (1 << 23);
    let (sign, magnitude) = (u32::from(h & 0x8000) << 16, u32::from(h & 0x7fff));
    let bits = magnitude << 13;
    let normal = f32::from_bits(bits + REBIAS);
    let subnormal = f32::from_bits(bits + SMALLEST) - f32::from_bits(SMALLEST);
    let value = if magnitude < 0x0400 { subnormal } else { normal };
    let value = if magnitude > 0x7c00 { f32::NAN } else { value };
    f32::from_bits(value.to_bits() | sign)
}

#[inline(always)]
fn from_i8(x: i8) -> f32 {
    f32::from(x)
}

/// One block of [`KvBlocks`].
#[derive(Clone, Copy, Debug)]
pub enum KvBlock<'a> {
    F32(&'a [f32]),
    F16(&'a [u16]),
    /// Numbers and scales.
    Q8(&'a [i8], &'a [f32]),
}

impl Block for KvBlock<'_> {
    fn score(self, q: &[f32], hd: usize, at: usize, stride: usize, scores: &mut [f32]) {
        match self {
            Self::F32(k) => score_block(q, k, hd, at, stride, scores),
            Self::F16(k) => score_f16(q, k, hd, at, stride, scores),
            Self::Q8(k, scales) => score_q8(q, k, scales, hd, at, stride, scores),
        }
    }

    fn mix(self, p: &[f32], hd: usize, at: usize, stride: usize, out: &mut [f32]) {
        match self {
            Self::F32(v) => mix_block(p, v, hd, at, stride, out),
            Self::F16(v) => mix_f16(p, v, hd, at, stride, out),
            Self::Q8(v, scales) => mix_q8(p, v, scales, hd, at, stride, out),
        }
    }
}

/// Σ_d q[r][d] · k[d] over the given dimensions, for R rows of q that are `hd` apart: one chain for each of 16 keys.
#[inline(always)]
fn products<const R: usize, T: Copy>(
    q: &[f32],
    hd: usize,
    k: &[[T; LANES]],
    dims: std::ops::Range<usize>,
    widen: impl Fn(T) -> f32,
) -> [[f32; LANES]; R] {
    let mut acc = [[0f32; LANES]; R];
    for d in dims {
        let mut keys = [0f32; LANES];
        for l in 0..LANES {
            keys[l] = widen(k[d][l]);
        }
        for r in 0..R {
            let qv = q[r * hd + d];
            for l in 0..LANES {
                acc[r][l] = qv.mul_add(keys[l], acc[r][l]);
            }
        }
    }
    acc
}

/// Calls `tile` with the first of each four rows, then of each single row that is left.
macro_rules! by_four {
    ($rows:expr, $tile:ident, $($arg:expr),*) => {
        let (rows, mut r) = ($rows, 0);
        while r + 4 <= rows {
            $tile::<4>(r, $($arg),*);
            r += 4;
        }
        while r < rows {
            $tile::<1>(r, $($arg),*);
            r += 1;
        }
    };
}

#[inline(always)]
fn score_f16_rows<const R: usize>(
    r: usize,
    q: &[f32],
    k: &[[u16; LANES]],
    hd: usize,
    at: usize,
    stride: usize,
    scores: &mut [f32],
) {
    let acc: [[f32; LANES]; R] = products(&q[r * hd..], hd, k, 0..hd, from_f16);
    for i in 0..R {
        scores[(r + i) * stride + at..][..LANES].copy_from_slice(&acc[i]);
    }
}

#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "a kernel's plain inputs")]
fn score_q8_rows<const R: usize>(
    r: usize,
    q: &[f32],
    k: &[[i8; LANES]],
    scales: &[[f32; LANES]],
    hd: usize,
    at: usize,
    stride: usize,
    scores: &mut [f32],
) {
    let mut total = [[0f32; LANES]; R];
    for (g, scale) in scales.iter().enumerate() {
        let dims = g * GROUP..((g + 1) * GROUP).min(hd);
        let acc: [[f32; LANES]; R] = products(&q[r * hd..], hd, k, dims, from_i8);
        for i in 0..R {
            for l in 0..LANES {
                total[i][l] = acc[i][l].mul_add(scale[l], total[i][l]);
            }
        }
    }
    for i in 0..R {
        scores[(r + i) * stride + at..][..LANES].copy_from_slice(&total[i]);
    }
}

multiversion! {
    fn score_f16(q: &[f32], k: &[u16], hd: usize, at: usize, stride: usize, scores: &mut [f32]) {
        let (k, _) = k[..hd * LANES].as_chunks::<LANES>();
        by_four!(q.len() / hd, score_f16_rows, q, k, hd, at, stride, scores);
    }
}

multiversion! {
    fn score_q8(q: &[f32], k: &[i8], scales: &[f32], hd: usize, at: usize, stride: usize, scores: &mut [f32]) {
        let (k, _) = k[..hd * LANES].as_chunks::<LANES>();
        let (scales, _) = scales.as_chunks::<LANES>();
        by_four!(q.len() / hd, score_q8_rows, q, k, scales, hd, at, stride, scores);
    }
}

/// out[r][c..c + 16·V] += Σ_j weight(r, j) · v[j][c..c + 16·V] for R rows of out, in order of the block's 16 keys.
#[inline(always)]
fn add_values<const R: usize, const V: usize, T: Copy>(
    out: &mut [f32],
    hd: usize,
    c: usize,
    v: &[T],
    weight: impl Fn(usize, usize) -> f32,
    widen: impl Fn(T) -> f32,
) {
    let mut acc = [[[0f32; LANES]; V]; R];
    for r in 0..R {
        let (from, _) = out[r * hd + c..r * hd + c + V * LANES].as_chunks::<LANES>();
        acc[r].copy_from_slice(&from[..V]);
    }
    for j in 0..LANES {
        let (row, _) = v[j * hd + c..j * hd + c + V * LANES].as_chunks::<LANES>();
        let mut wide = [[0f32; LANES]; V];
        for i in 0..V {
            for l in 0..LANES {
                wide[i][l] = widen(row[i][l]);
            }
        }
        for r in 0..R {
            let w = weight(r, j);
            for i in 0..V {
                for l in 0..LANES {
                    acc[r][i][l] = w.mul_add(wide[i][l], acc[r][i][l]);
                }
            }
        }
    }
    for r in 0..R {
        out[r * hd + c..r * hd + c + V * LANES].copy_from_slice(acc[r].as_flattened());
    }
}

/// `add_values` for all columns: two vectors at a time, which share a scale. `weight` takes (group, row, key).
#[inline(always)]
fn add_columns<const R: usize, T: Copy>(
    out: &mut [f32],
    hd: usize,
    v: &[T],
    weight: impl Fn(usize, usize, usize) -> f32 + Copy,
    widen: impl Fn(T) -> f32 + Copy,
) {
    for g in 0..hd.div_ceil(GROUP) {
        let c = g * GROUP;
        match hd - c {
            LANES => add_values::<R, 1, T>(out, hd, c, v, |r, j| weight(g, r, j), widen),
            _ => add_values::<R, 2, T>(out, hd, c, v, |r, j| weight(g, r, j), widen),
        }
    }
}

#[inline(always)]
fn mix_f16_rows<const R: usize>(r: usize, p: &[f32], v: &[u16], hd: usize, at: usize, stride: usize, out: &mut [f32]) {
    add_columns::<R, u16>(&mut out[r * hd..], hd, v, |_, i, j| p[(r + i) * stride + at + j], from_f16);
}

#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "a kernel's plain inputs")]
fn mix_q8_rows<const R: usize>(
    r: usize,
    p: &[f32],
    v: &[i8],
    scales: &[f32],
    hd: usize,
    at: usize,
    stride: usize,
    out: &mut [f32],
) {
    let groups = hd.div_ceil(GROUP);
    let weight = |g: usize, i: usize, j: usize| p[(r + i) * stride + at + j] * scales[j * groups + g];
    add_columns::<R, i8>(&mut out[r * hd..], hd, v, weight, from_i8);
}

multiversion! {
    fn mix_f16(p: &[f32], v: &[u16], hd: usize, at: usize, stride: usize, out: &mut [f32]) {
        by_four!(out.len() / hd, mix_f16_rows, p, v, hd, at, stride, out);
    }
}

multiversion! {
    fn mix_q8(p: &[f32], v: &[i8], scales: &[f32], hd: usize, at: usize, stride: usize, out: &mut [f32]) {
        by_four!(out.len() / hd, mix_q8_rows, p, v, scales, hd, at, stride, out);
    }
}

#[cfg(test)]
mod tests;

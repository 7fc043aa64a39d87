//! Blocks of 16 keys or values of one head in the formats of a key-value cache: f32, f16, or 8-bit integers with a scale
//! for every 32 dimensions of a token. The attention kernels read them without a copy in f32: numbers are widened in
//! registers. Each token is stored by itself, so its contents do not depend on which tokens are stored with it.

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

/// Whether blocks hold keys, `[hd][16]`, or values, `[16][hd]`. Scales are laid out in the same order, `[groups][16]` or
/// `[16][groups]`.
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

/// The scale of a group and its inverse; the largest magnitude becomes 127. A group with a number that is not finite has
/// NaN as its scale, so that the fault shows in the results.
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

/// Exact, and plain arithmetic that compilers turn into vectors.
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

/// `add_values` for all columns: two vectors at a time, the columns of one scale. `weight` takes the scale's number first.
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
mod tests {
    use super::*;
    use crate::noise;

    /// Three blocks of rows of `d` dimensions, and what each format holds of them.
    fn filled(format: KvFormat, kind: KvKind, d: usize, hd: usize) -> (KvBlocks, Vec<Vec<f32>>) {
        let mut blocks = KvBlocks::new(format, kind, 3, hd);
        let mut held = Vec::new();
        for slot in 0..LANES {
            let row = noise(d, 7 + slot as u64);
            // Written over, as a rejected draft is.
            blocks.put(1, slot, &noise(d, 900 + slot as u64));
            blocks.put(1, slot, &row);
            let mut kept = vec![0f32; hd];
            for (group, kept) in row.chunks(GROUP).zip(kept.chunks_mut(GROUP)) {
                let (scale, inverse) = scale_of(group);
                for (v, kept) in group.iter().zip(kept) {
                    *kept = match format {
                        KvFormat::F32 => *v,
                        KvFormat::F16 => f16::from_f32(*v).to_f32(),
                        KvFormat::Q8_0 => (v * inverse).round_ties_even() * scale,
                    };
                    let error = (*kept - v).abs();
                    assert!(error <= 1.0 / 254.0 * 1.01, "{format:?}: {v} is held as {kept}");
                }
            }
            held.push(kept);
        }
        (blocks, held)
    }

    #[test]
    fn products_are_those_of_the_numbers_that_a_block_holds() {
        for format in KvFormat::ALL {
            for (d, hd) in [(8, 16), (16, 16), (48, 48), (64, 64), (80, 80), (100, 112), (128, 128)] {
                let (keys, held) = filled(format, KvKind::Keys, d, hd);
                let (values, same) = filled(format, KvKind::Values, d, hd);
                assert_eq!(held, same);
                for rows in [1usize, 3, 4, 6, 9] {
                    let mut q = noise(rows * hd, 31);
                    q.chunks_mut(hd).for_each(|row| row[d..].fill(0.0));
                    let (at, stride) = (16, 40);
                    let mut scores = vec![7.0; rows * stride];
                    keys.block(1).score(&q, hd, at, stride, &mut scores);
                    let p: Vec<f32> = noise(rows * stride, 5).iter().map(|x| x.abs()).collect();
                    let start = noise(rows * hd, 77);
                    let mut out = start.clone();
                    values.block(1).mix(&p, hd, at, stride, &mut out);
                    let close = |got: f32, want: f64| (f64::from(got) - want).abs() < 1e-4 * (1.0 + want.abs());
                    for r in 0..rows {
                        for j in 0..LANES {
                            let want: f64 = (0..hd).map(|i| f64::from(q[r * hd + i]) * f64::from(held[j][i])).sum();
                            assert!(close(scores[r * stride + at + j], want), "{format:?} {d}: score {r} {j}");
                        }
                        assert_eq!((scores[r * stride + at - 1], scores[r * stride + at + LANES]), (7.0, 7.0));
                        for c in 0..hd {
                            let mixed = (0..LANES).map(|j| f64::from(p[r * stride + at + j]) * f64::from(held[j][c]));
                            let want = f64::from(start[r * hd + c]) + mixed.sum::<f64>();
                            assert!(close(out[r * hd + c], want), "{format:?} {d}: value {r} {c}");
                        }
                        // The same bits as alone.
                        let mut alone = vec![0.0; stride];
                        keys.block(1).score(&q[r * hd..(r + 1) * hd], hd, at, stride, &mut alone);
                        assert_eq!(alone[at..at + LANES], scores[r * stride + at..][..LANES], "{format:?} {d}");
                        let mut alone = start[r * hd..(r + 1) * hd].to_vec();
                        values.block(1).mix(&p[r * stride..], hd, at, stride, &mut alone);
                        assert_eq!(alone, out[r * hd..(r + 1) * hd], "{format:?} {d}");
                    }
                }
            }
        }
    }

    #[test]
    fn f16_products_have_the_bits_of_f32_products_of_the_rounded_numbers() {
        let hd = 80;
        for kind in [KvKind::Keys, KvKind::Values] {
            let (half, held) = filled(KvFormat::F16, kind, hd, hd);
            let mut full = KvBlocks::new(KvFormat::F32, kind, 3, hd);
            held.iter().enumerate().for_each(|(slot, row)| full.put(1, slot, row));
            let (q, p) = (noise(5 * hd, 3), noise(5 * LANES, 4));
            let products = |blocks: &KvBlocks| match kind {
                KvKind::Keys => {
                    let mut scores = vec![0.0; 5 * LANES];
                    blocks.block(1).score(&q, hd, 0, LANES, &mut scores);
                    scores
                }
                KvKind::Values => {
                    let mut out = vec![0.0; 5 * hd];
                    blocks.block(1).mix(&p, hd, 0, LANES, &mut out);
                    out
                }
            };
            assert_eq!(products(&half), products(&full));
        }
    }

    #[test]
    fn every_f16_is_widened_exactly() {
        for bits in 0..=u16::MAX {
            let want = f16::from_bits(bits).to_f32();
            let got = from_f16(bits);
            if want.is_finite() {
                assert_eq!(got.to_bits(), want.to_bits(), "{bits:#x}");
            } else if want.is_nan() {
                assert!(got.is_nan(), "{bits:#x}");
            }
        }
        assert_eq!(from_f16(to_f16(1e9)), 65504.0, "too large for the format");
        assert!(from_f16(to_f16(f32::NAN)).is_nan());
    }

    #[test]
    fn numbers_that_are_not_finite_show_and_tiny_ones_vanish() {
        let mut keys = KvBlocks::new(KvFormat::Q8_0, KvKind::Keys, 1, 16);
        for (slot, first) in [(0, f32::NAN), (1, f32::INFINITY), (2, 1e-45), (3, 0.0)] {
            let mut row = vec![0.0; 16];
            row[0] = first;
            keys.put(0, slot, &row);
        }
        let mut scores = vec![0.0; LANES];
        keys.block(0).score(&[1.0; 16], 16, 0, LANES, &mut scores);
        assert!(scores[0].is_nan() && scores[1].is_nan());
        assert_eq!(scores[2..4], [0.0, 0.0]);
    }

    #[test]
    fn blocks_are_copied_with_their_scales_and_counted_with_them() {
        let hd = 64;
        let mut sizes = Vec::new();
        for format in KvFormat::ALL {
            let (mut blocks, _) = filled(format, KvKind::Values, hd, hd);
            blocks.copy(1, 2, 1);
            let mixed = |b: usize| {
                let mut out = vec![0.0; hd];
                blocks.block(b).mix(&[0.5; LANES], hd, 0, LANES, &mut out);
                out
            };
            assert_eq!(mixed(1), mixed(2));
            assert_ne!(mixed(1), mixed(0));
            assert_eq!(blocks.bytes(), 3 * LANES * format.bytes(hd));
            assert_eq!(KvFormat::parse(format.as_str()), Some(format));
            sizes.push(format.bytes(hd));
        }
        assert_eq!(sizes, [256, 128, 72]);
        assert_eq!(KvFormat::parse("q4_0"), None);
    }
}

//! y = x·Wᵀ in f32 with weights that stay quantised in memory. Each task dequantises a part of a panel into a buffer in
//! its cache and multiplies it there, in the chains of `gemm`. The results have the bits of the f32 product with the
//! dequantised matrix.

use std::cell::RefCell;

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::blocks::{self, BLOCK, BlockType};
use super::gemm::{MR, NR, Prefetch, micro, over_panels, with_tile};
use super::par::{SharedMut, split};
use super::served::ServedMatrix;
use super::simd::multiversion;

/// Depth of a part: a buffer of 128 × 64 × 4 bytes.
const DEPTH: usize = 4 * BLOCK;
/// Number of values with a common scale: half a block.
const HALF: usize = BLOCK / 2;
/// Number of columns that are dequantised together.
const STRIP: usize = 16;

/// Integers of a matrix, by panel of 64 columns and depth.
enum Integers {
    /// Two values in a byte, those of columns i and 32 + i; `offset` is subtracted.
    Nibbles { bytes: Vec<u8>, offset: i8 },
    /// One signed value in a byte.
    Bytes(Vec<u8>),
}

/// One number for each column of a panel and each group of values with a common one.
enum Factors {
    /// If all of them are exact in 16 bits.
    F16(Vec<[f16; NR]>),
    F32(Vec<[f32; NR]>),
}

impl Factors {
    fn new(values: Vec<[f32; NR]>) -> Self {
        let exact = |v: &f32| f16::from_f32(*v).to_f32() == *v;
        match values.iter().flatten().all(exact) {
            true => Self::F16(values.iter().map(|row| row.map(f16::from_f32)).collect()),
            false => Self::F32(values),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::F16(rows) => size_of_val(rows.as_slice()),
            Self::F32(rows) => size_of_val(rows.as_slice()),
        }
    }

    #[inline]
    fn read(&self, at: usize) -> [f32; NR] {
        match self {
            Self::F32(rows) => rows[at],
            Self::F16(rows) => {
                let mut wide = [0f32; NR];
                rows[at].convert_to_f32_slice(&mut wide);
                wide
            }
        }
    }
}

/// A matrix `[m, k]` of a GGUF file, w = scale · q + min, as ⌈m/64⌉ panels.
pub struct ExactBlocks {
    integers: Integers,
    scales: Factors,
    mins: Option<Factors>,
    /// Number of groups of a block: 2 if its halves have scales of their own.
    groups: usize,
    m: usize,
    k: usize,
}

thread_local! {
    static PART: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// What is subtracted from the nibbles of a type; `None` for types whose values need a byte.
fn nibble_offset(kind: BlockType) -> Option<i8> {
    match kind {
        BlockType::Q4_0 | BlockType::Q3K => Some(8),
        BlockType::Q4_1 | BlockType::Q4K | BlockType::Q2K => Some(0),
        _ => None,
    }
}

/// Writes the columns of a block as lines with a byte for each column. With `nibbles`, whose values are below 16, a byte
/// holds columns c (low half) and c + 32.
fn interleave(columns: &[[u8; BLOCK]; NR], nibbles: bool, lines: &mut [u8]) {
    let width = if nibbles { NR / 2 } else { NR };
    // Eight columns and eight lines at a time: a byte at a time took a quarter of the processor time of a start.
    for first in (0..BLOCK).step_by(8) {
        let tile = |column: usize| {
            let eight = |i: usize| {
                let q = &columns[column + i][first..first + 8];
                u64::from_le_bytes([q[0], q[1], q[2], q[3], q[4], q[5], q[6], q[7]])
            };
            transpose(std::array::from_fn(eight))
        };
        for column in (0..width).step_by(8) {
            let mut tile_lines = tile(column);
            if nibbles {
                tile_lines.iter_mut().zip(tile(column + NR / 2)).for_each(|(low, high)| *low |= high << 4);
            }
            for (i, bytes) in tile_lines.into_iter().enumerate() {
                lines[(first + i) * width + column..][..8].copy_from_slice(&bytes.to_le_bytes());
            }
        }
    }
}

/// The transpose of 8 × 8 bytes: byte j of row i becomes byte i of row j. It exchanges halves of 4, 2 and 1 bytes.
fn transpose(mut rows: [u64; 8]) -> [u64; 8] {
    for (distance, mask) in [(4, 0x0000_0000_FFFF_FFFF), (2, 0x0000_FFFF_0000_FFFF), (1, 0x00FF_00FF_00FF_00FF)] {
        for i in (0..8).filter(|i| i & distance == 0) {
            let (upper, lower) = (rows[i], rows[i + distance]);
            let exchanged = (upper >> (8 * distance) ^ lower) & mask;
            rows[i + distance] = lower ^ exchanged;
            rows[i] = upper ^ exchanged << (8 * distance);
        }
    }
    rows
}

impl ExactBlocks {
    /// Packs m rows of k values in blocks of `kind`.
    ///
    /// # Panics
    /// If `kind` is not quantised, or `bytes` has another size.
    pub fn from_gguf(bytes: &[u8], kind: BlockType, m: usize, k: usize) -> Self {
        assert!(kind.quantised() && k.is_multiple_of(kind.block().0) && bytes.len() == m * kind.bytes(k), "{kind:?}");
        let (panels, blocks, row_bytes) = (m.div_ceil(NR), k / BLOCK, kind.bytes(k));
        let offset = nibble_offset(kind);
        let groups = if matches!(kind, BlockType::Q2K | BlockType::Q3K | BlockType::Q6K) { 2 } else { 1 };
        let has_min =
            matches!(kind, BlockType::Q4_1 | BlockType::Q5_1 | BlockType::Q2K | BlockType::Q4K | BlockType::Q5K);
        let line = if offset.is_some() { NR / 2 } else { NR };
        let mut packed = vec![0u8; panels * k * line];
        let mut scales = vec![[0f32; NR]; panels * blocks * groups];
        let mut mins = vec![[0f32; NR]; if has_min { scales.len() } else { 0 }];
        let (to, to_scales, to_mins) =
            (SharedMut::new(&mut packed), SharedMut::new(&mut scales), SharedMut::new(&mut mins));
        split(panels, m * k, |range| {
            for p in range {
                let (from, count) = (p * blocks * groups, blocks * groups);
                // SAFETY: one panel per p.
                let (lines, scales) = unsafe { (to.slice(p * k * line, k * line), to_scales.slice(from, count)) };
                // SAFETY: one panel per p.
                let mins = unsafe { to_mins.slice(if has_min { from } else { 0 }, if has_min { count } else { 0 }) };
                // Block by block, so that the lines of a block stay in the cache while its columns are written.
                for b in 0..blocks {
                    let lines = &mut lines[b * BLOCK * line..][..BLOCK * line];
                    let mut columns = [[0u8; BLOCK]; NR];
                    for column in 0..NR.min(m - p * NR) {
                        let row = &bytes[(p * NR + column) * row_bytes..][..row_bytes];
                        let block = blocks::read(row, kind, b);
                        for g in 0..groups {
                            scales[b * groups + g][column] = block.scale[g];
                            if has_min {
                                mins[b * groups + g][column] = block.min[g];
                            }
                        }
                        columns[column] = block.q.map(|q| q.wrapping_add(offset.unwrap_or(0)) as u8);
                    }
                    interleave(&columns, offset.is_some(), lines);
                }
            }
        });
        let integers = match offset {
            Some(offset) => Integers::Nibbles { bytes: packed, offset },
            None => Integers::Bytes(packed),
        };
        Self { integers, scales: Factors::new(scales), mins: has_min.then(|| Factors::new(mins)), groups, m, k }
    }

    /// Dequantises the values of panel `p` from depth `k0` on to `out` `[·, 64]`.
    fn dequantize(&self, p: usize, k0: usize, out: &mut [[f32; NR]]) {
        for (i, out) in out.chunks_exact_mut(BLOCK).enumerate() {
            let first = k0 + i * BLOCK;
            let at = p * self.k + first;
            let group = (p * self.k / BLOCK + first / BLOCK) * self.groups;
            let mut factors = ([0.0; NR], [0.0; NR]);
            for (half, out) in out.chunks_exact_mut(HALF).enumerate() {
                if half < self.groups {
                    factors.0 = self.scales.read(group + half);
                    if let Some(mins) = &self.mins {
                        factors.1 = mins.read(group + half);
                    }
                }
                let (scales, mins) = &factors;
                let from = at + half * HALF;
                match &self.integers {
                    Integers::Nibbles { bytes, offset } => {
                        let bytes = &bytes[from * NR / 2..(from + HALF) * NR / 2];
                        let mut wide = [0u8; HALF * NR];
                        unpack(bytes, *offset as u8, &mut wide);
                        dequantize_bytes(&wide, scales, mins, out);
                    }
                    Integers::Bytes(bytes) => {
                        dequantize_bytes(&bytes[from * NR..(from + HALF) * NR], scales, mins, out);
                    }
                }
            }
        }
    }
}

multiversion! {
    /// Gives each of the two values in a byte a byte of its own.
    fn unpack(bytes: &[u8], offset: u8, out: &mut [u8; HALF * NR]) {
        for (line, out) in bytes.as_chunks::<{ NR / 2 }>().0.iter().zip(out.as_chunks_mut::<NR>().0) {
            for i in 0..NR / 2 {
                out[i] = (line[i] & 15).wrapping_sub(offset);
            }
            for i in 0..NR / 2 {
                out[NR / 2 + i] = (line[i] >> 4).wrapping_sub(offset);
            }
        }
    }
}

multiversion! {
    fn dequantize_bytes(bytes: &[u8], scales: &[f32; NR], mins: &[f32; NR], out: &mut [[f32; NR]]) {
        for s in 0..NR / STRIP {
            let (scales, mins) = (&scales[s * STRIP..][..STRIP], &mins[s * STRIP..][..STRIP]);
            for (line, out) in bytes.as_chunks::<NR>().0.iter().zip(out.iter_mut()) {
                let (line, out) = (&line[s * STRIP..][..STRIP], &mut out[s * STRIP..][..STRIP]);
                for i in 0..STRIP {
                    out[i] = scales[i] * f32::from(line[i] as i8) + mins[i];
                }
            }
        }
    }
}

impl ServedMatrix for ExactBlocks {
    fn shape(&self) -> (usize, usize) {
        (self.m, self.k)
    }

    fn bytes(&self) -> usize {
        let integers = match &self.integers {
            Integers::Nibbles { bytes, .. } => bytes.len(),
            Integers::Bytes(bytes) => bytes.len(),
        };
        integers + self.scales.bytes() + self.mins.as_ref().map_or(0, Factors::bytes)
    }

    fn matmul(&self, x: &[f32], y: &mut [f32], n: usize) {
        let (m, k) = (self.m, self.k);
        assert!(x.len() == n * k && y.len() == n * m, "matmul sizes");
        if k == 0 {
            return y.fill(0.0);
        }
        let out = SharedMut::new(y);
        over_panels(n, m, k, |p, rows| {
            // Taken out so that a nested call on this thread (work stealing) finds a buffer of its own.
            let mut part = PART.take();
            part.resize(DEPTH * NR, 0.0);
            let cols = NR.min(m - p * NR);
            for k0 in (0..k).step_by(DEPTH) {
                let depth = DEPTH.min(k - k0);
                let part = &mut part[..depth * NR];
                self.dequantize(p, k0, part.as_chunks_mut::<NR>().0);
                for r in rows.clone().step_by(MR) {
                    let count = MR.min(rows.end - r);
                    // SAFETY: this task alone owns rows × columns of this panel.
                    unsafe {
                        with_tile(out, r * m + p * NR, m, count, cols, k0 == 0, |to, width| {
                            micro(part, &x[r * k + k0..], k, count, depth, Prefetch::none(), to, width, k0 == 0);
                        });
                    }
                }
            }
            PART.set(part);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::tests::random_blocks;
    use crate::gemm::{PackedF32, WeightLayout};
    use crate::{noise, sizes};

    #[test]
    fn columns_become_lines() {
        let rows: [u64; 8] = std::array::from_fn(|i| u64::from_le_bytes(std::array::from_fn(|j| (8 * i + j) as u8)));
        let found = transpose(rows);
        for (j, row) in found.into_iter().enumerate() {
            assert_eq!(row.to_le_bytes(), std::array::from_fn(|i| (8 * i + j) as u8));
        }
        let columns: [[u8; BLOCK]; NR] = std::array::from_fn(|c| std::array::from_fn(|d| ((7 * c + 3 * d) % 16) as u8));
        let (mut bytes, mut halves) = (vec![0; BLOCK * NR], vec![0; BLOCK * NR / 2]);
        interleave(&columns, false, &mut bytes);
        interleave(&columns, true, &mut halves);
        for d in 0..BLOCK {
            for c in 0..NR {
                assert_eq!(bytes[d * NR + c], columns[c][d]);
            }
            for c in 0..NR / 2 {
                assert_eq!(halves[d * NR / 2 + c], columns[c][d] | columns[c + NR / 2][d] << 4);
            }
        }
    }

    #[test]
    fn products_have_the_bits_of_the_dequantised_matrix() {
        for kind in BlockType::ALL.into_iter().filter(|kind| kind.quantised()) {
            for (n, m, k) in sizes([(1, 64, 256), (1, 70, 512), (7, 130, 768), (40, 37, 256), (3, 1100, 256)]) {
                let (bytes, x) = (random_blocks(kind, m, k), noise(n * k, 2));
                let mut w = vec![0f32; m * k];
                blocks::dequantize(&bytes, kind, &mut w);
                let (mut want, mut got) = (vec![f32::NAN; n * m], vec![f32::NAN; n * m]);
                PackedF32::pack(&w, m, k, WeightLayout::OutIn).matmul(&x, &mut want, n);
                let packed = ExactBlocks::from_gguf(&bytes, kind, m, k);
                packed.matmul(&x, &mut got, n);
                assert_eq!(want, got, "{kind:?} {n}×{m}×{k}");
                assert!(packed.bytes() < m.next_multiple_of(NR) * k * 5 / 4 + 4096, "{kind:?}: {}", packed.bytes());
            }
        }
    }
}

//! Frozen matrices in quantised blocks of 32 values, for training adapters (QLoRA, arXiv 2305.14314). Forward and
//! backward products are f32 products with the dequantised values, in the chains of `gemm`. Each task dequantises the
//! panels that it uses.

use std::cell::RefCell;

use candle_core::{CpuStorage, DType, Device, Result, Storage, Tensor};
use half::f16;

use super::blocks::BlockType;
use super::gemm::{MR, NR, pack_panel, panel_rows};
use super::par::{SharedMut, split, split_panels};
use super::simd::multiversion;

const BLOCK: usize = 32;

/// Size in bytes of a block of Q8_0 and of Q4_1.
const Q8: usize = 34;
const Q4: usize = 20;

/// A matrix `[m, k]`: each row is ⌈k/32⌉ blocks of GGUF's Q8_0 or Q4_1, the last one padded with zeros.
#[derive(Clone, Debug)]
pub struct QuantizedMatrix {
    /// The blocks, U8 `[m, bytes of a row]`.
    rows: Tensor,
    kind: BlockType,
    pub m: usize,
    pub k: usize,
}

thread_local! {
    static PANEL: RefCell<(Vec<f32>, Vec<f32>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

impl QuantizedMatrix {
    /// Quantises w `[m, k]`.
    ///
    /// # Errors
    /// If `kind` is neither Q8_0 nor Q4_1.
    pub fn quantize(w: &[f32], m: usize, k: usize, kind: BlockType) -> Result<Self> {
        let size = size_of_block(kind)?;
        assert_eq!(w.len(), m * k, "weight size");
        let row = k.div_ceil(BLOCK) * size;
        let mut bytes = vec![0u8; m * row];
        let out = SharedMut::new(&mut bytes);
        split(m, m * k * 64, |rows| {
            for r in rows {
                // SAFETY: one row per r.
                let to = unsafe { out.slice(r * row, row) };
                let from = &w[r * k..(r + 1) * k];
                match kind {
                    BlockType::Q8_0 => quantize_q8(from, to),
                    _ => quantize_q4(from, to),
                }
            }
        });
        let rows = Tensor::from_vec(bytes, (m, row), &Device::Cpu)?;
        Ok(Self { rows, kind, m, k })
    }

    /// The matrix of k columns with the blocks `rows`, which `tensor` returned; `None` for any other tensor.
    pub fn from_blocks(rows: &Tensor, k: usize) -> Option<Self> {
        let (m, bytes) = rows.dims2().ok()?;
        if rows.dtype() != DType::U8 || !rows.device().is_cpu() || !rows.is_contiguous() {
            return None;
        }
        let kinds = [(BlockType::Q8_0, Q8), (BlockType::Q4_1, Q4)];
        let kind = kinds.into_iter().find(|(_, size)| k.div_ceil(BLOCK) * size == bytes)?.0;
        Some(Self { rows: rows.clone(), kind, m, k })
    }

    /// The blocks, U8 `[m, bytes of a row]`.
    pub fn tensor(&self) -> &Tensor {
        &self.rows
    }

    pub fn kind(&self) -> BlockType {
        self.kind
    }

    pub fn bytes(&self) -> usize {
        self.rows.elem_count()
    }

    /// The dequantised values, f32 `[m, k]`.
    pub fn dequantize(&self) -> Result<Tensor> {
        let mut values = vec![0f32; self.m * self.k];
        self.with_bytes(|bytes| {
            let out = SharedMut::new(&mut values);
            split(self.m, self.m * self.k, |rows| {
                for r in rows {
                    // SAFETY: one row per r.
                    self.row(bytes, r, 0, unsafe { out.slice(r * self.k, self.k) });
                }
            });
        })?;
        Tensor::from_vec(values, (self.m, self.k), &Device::Cpu)
    }

    /// y `[n, m]` = x `[n, k]` · Wᵀ.
    pub(super) fn forward(&self, x: &[f32], y: &mut [f32], n: usize) -> Result<()> {
        let (m, k) = (self.m, self.k);
        assert!(x.len() == n * k && y.len() == n * m, "product sizes");
        let shared = SharedMut::new(y);
        self.with_bytes(|bytes| {
            split_panels(m.div_ceil(NR), n.div_ceil(MR), n * m * k, |p, tiles| {
                // Taken out so that a nested product on this thread (work stealing) finds buffers of its own.
                let (mut panel, mut rows) = PANEL.take();
                panel.resize(k * NR, 0.0);
                let cols = NR.min(m - p * NR);
                rows.resize(cols * k, 0.0);
                for (r, row) in rows.chunks_exact_mut(k).enumerate() {
                    self.row(bytes, p * NR + r, 0, row);
                }
                pack_panel(&mut panel, &rows, 0, cols, k);
                panel_rows(&panel, x, shared, tiles.start * MR..(tiles.end * MR).min(n), p * NR, m, k, false);
                PANEL.set((panel, rows));
            });
        })
    }

    /// gx `[n, k]` (+)= gy `[n, m]` · W.
    pub(super) fn backward_input(&self, gy: &[f32], gx: &mut [f32], n: usize, add: bool) -> Result<()> {
        let (m, k) = (self.m, self.k);
        assert!(gy.len() == n * m && gx.len() == n * k, "product sizes");
        let shared = SharedMut::new(gx);
        self.with_bytes(|bytes| {
            split_panels(k.div_ceil(NR), n.div_ceil(MR), n * m * k, |p, tiles| {
                let (mut panel, rows) = PANEL.take();
                panel.resize(m * NR, 0.0);
                let cols = NR.min(k - p * NR);
                for (r, to) in panel.chunks_exact_mut(NR).enumerate() {
                    self.row(bytes, r, p * NR, &mut to[..cols]);
                    to[cols..].fill(0.0);
                }
                panel_rows(&panel, gy, shared, tiles.start * MR..(tiles.end * MR).min(n), p * NR, k, m, add);
                PANEL.set((panel, rows));
            });
        })
    }

    /// Dequantises row `r` from column `from` on, which is a multiple of 32.
    fn row(&self, bytes: &[u8], r: usize, from: usize, to: &mut [f32]) {
        let size = if self.kind == BlockType::Q8_0 { Q8 } else { Q4 };
        let row = self.k.div_ceil(BLOCK) * size;
        let blocks = &bytes[r * row + from / BLOCK * size..(r + 1) * row];
        match self.kind {
            BlockType::Q8_0 => read_q8(blocks, to),
            _ => read_q4(blocks, to),
        }
    }

    fn with_bytes<R>(&self, f: impl FnOnce(&[u8]) -> R) -> Result<R> {
        let (storage, layout) = self.rows.storage_and_layout();
        match (&*storage, layout.contiguous_offsets()) {
            (Storage::Cpu(CpuStorage::U8(bytes)), Some((start, end))) => Ok(f(&bytes[start..end])),
            _ => candle_core::bail!("expected blocks on the CPU"),
        }
    }
}

fn size_of_block(kind: BlockType) -> Result<usize> {
    match kind {
        BlockType::Q8_0 => Ok(Q8),
        BlockType::Q4_1 => Ok(Q4),
        other => {
            candle_core::bail!("{} is not supported for frozen matrices in training; use Q8_0 or Q4_1", other.as_str())
        }
    }
}

fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

multiversion! {
    fn read_q8(blocks: &[u8], to: &mut [f32]) {
        for (block, to) in blocks.as_chunks::<Q8>().0.iter().zip(to.chunks_mut(BLOCK)) {
            let scale = half_at(block, 0);
            for (to, q) in to.iter_mut().zip(&block[2..]) {
                *to = scale * f32::from(*q as i8);
            }
        }
    }
}

multiversion! {
    fn read_q4(blocks: &[u8], to: &mut [f32]) {
        for (block, to) in blocks.as_chunks::<Q4>().0.iter().zip(to.chunks_mut(BLOCK)) {
            let (scale, min) = (half_at(block, 0), half_at(block, 2));
            let mut values = [0f32; BLOCK];
            for i in 0..BLOCK / 2 {
                let byte = block[4 + i];
                values[i] = scale * f32::from(byte & 15) + min;
                values[i + BLOCK / 2] = scale * f32::from(byte >> 4) + min;
            }
            to.copy_from_slice(&values[..to.len()]);
        }
    }
}

multiversion! {
    /// Quantises one row to blocks of Q8_0, the last one padded with zeros.
    fn quantize_q8(x: &[f32], to: &mut [u8]) {
        for (to, from) in to.as_chunks_mut::<Q8>().0.iter_mut().zip(x.chunks(BLOCK)) {
            let mut block = [0f32; BLOCK];
            block[..from.len()].copy_from_slice(from);
            let max = block.iter().fold(0f32, |max, v| max.max(v.abs()));
            let scale = f16::from_f32(max / 127.0);
            let inverse = if scale.to_f32() > 0.0 { 1.0 / scale.to_f32() } else { 0.0 };
            to[..2].copy_from_slice(&scale.to_le_bytes());
            for (to, v) in to[2..].iter_mut().zip(&block) {
                *to = (v * inverse).round_ties_even().clamp(-127.0, 127.0) as i8 as u8;
            }
        }
    }
}

multiversion! {
    /// Quantises one row to blocks of Q4_1, the last one padded with zeros.
    fn quantize_q4(x: &[f32], to: &mut [u8]) {
        for (to, from) in to.as_chunks_mut::<Q4>().0.iter_mut().zip(x.chunks(BLOCK)) {
            let mut block = [0f32; BLOCK];
            let mut counts = [0f32; BLOCK];
            block[..from.len()].copy_from_slice(from);
            counts[..from.len()].fill(1.0);
            let (scale, min) = best_q4(&block, &counts, from);
            to[..2].copy_from_slice(&scale.to_le_bytes());
            to[2..4].copy_from_slice(&min.to_le_bytes());
            let q = steps(&block, (scale.to_f32(), min.to_f32()));
            for i in 0..BLOCK / 2 {
                to[4 + i] = q[i] as u8 | (q[i + BLOCK / 2] as u8) << 4;
            }
        }
    }
}

/// The scale and minimum with the smallest sum of squared errors, of several candidates near the range of `from`.
/// `counts` is 1 for values of `x` and 0 for padding.
#[inline(always)]
fn best_q4(x: &[f32; BLOCK], counts: &[f32; BLOCK], from: &[f32]) -> (f16, f16) {
    let (low, high) = from.iter().fold((f32::MAX, f32::MIN), |(l, h), v| (l.min(*v), h.max(*v)));
    let mut best = (f32::MAX, f16::ZERO, f16::ZERO);
    for step in 0..8 {
        // Both ends of the range are moved inwards; values outside are clamped.
        let inside = (high - low) * 0.02 * step as f32;
        let mut pair = ((high - low - 2.0 * inside) / 15.0, low + inside);
        for fits in 0..3 {
            if fits > 0 {
                pair = fitted(x, counts, pair);
            }
            // The error of the rounded scale and minimum, which the block stores.
            let (scale, min) = (f16::from_f32(pair.0), f16::from_f32(pair.1));
            let error = error_of(x, counts, (scale.to_f32(), min.to_f32()));
            if error < best.0 {
                best = (error, scale, min);
            }
        }
    }
    (best.1, best.2)
}

/// The integers 0…15 whose dequantised values are nearest to x.
#[inline(always)]
fn steps(x: &[f32; BLOCK], (scale, min): (f32, f32)) -> [f32; BLOCK] {
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    let mut q = [0f32; BLOCK];
    for (q, v) in q.iter_mut().zip(x) {
        *q = ((v - min) * inverse).round_ties_even().clamp(0.0, 15.0);
    }
    q
}

/// The sum of squared errors.
#[inline(always)]
fn error_of(x: &[f32; BLOCK], counts: &[f32; BLOCK], (scale, min): (f32, f32)) -> f32 {
    let q = steps(x, (scale, min));
    let mut sums = [0f32; 8];
    for i in 0..BLOCK {
        let error = scale * q[i] + min - x[i];
        sums[i % 8] += counts[i] * error * error;
    }
    sums.iter().sum()
}

/// Scale and minimum by least squares, for the integers that `pair` (scale, minimum) gives.
#[inline(always)]
fn fitted(x: &[f32; BLOCK], counts: &[f32; BLOCK], pair: (f32, f32)) -> (f32, f32) {
    let steps = steps(x, pair);
    let mut sums = [[0f32; 8]; 5];
    for i in 0..BLOCK {
        let (count, step) = (counts[i], counts[i] * steps[i]);
        sums[0][i % 8] += count;
        sums[1][i % 8] += step;
        sums[2][i % 8] += step * steps[i];
        sums[3][i % 8] += count * x[i];
        sums[4][i % 8] += step * x[i];
    }
    let [n, q, qq, v, qv] = sums.map(|lanes| lanes.iter().sum::<f32>());
    let spread = n * qq - q * q;
    if spread <= 0.0 {
        return pair;
    }
    let scale = (n * qv - q * v) / spread;
    if scale > 0.0 { (scale, (v - scale * q) / n) } else { pair }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::WeightLayout;
    use crate::product::{Dims, product};
    use crate::{noise, sizes};

    #[test]
    fn products_have_the_bits_of_products_with_the_dequantised_values() {
        for kind in [BlockType::Q8_0, BlockType::Q4_1] {
            for (n, m, k) in sizes([(1, 70, 64), (13, 130, 100), (70, 48, 33), (200, 200, 1056), (3, 5, 7)]) {
                let matrix = QuantizedMatrix::quantize(&noise(m * k, 1), m, k, kind).unwrap();
                let w: Vec<f32> = matrix.dequantize().unwrap().flatten_all().unwrap().to_vec1().unwrap();
                let (x, gy) = (noise(n * k, 2), noise(n * m, 3));
                let (mut got, mut want) = (vec![f32::NAN; n * m], vec![f32::NAN; n * m]);
                matrix.forward(&x, &mut got, n).unwrap();
                product(&x, &w, WeightLayout::OutIn, &mut want, Dims { n, m, k }, false);
                assert_eq!(got, want, "{kind:?} {n}×{m}×{k}");
                for add in [false, true] {
                    let (mut got, mut want) = (noise(n * k, 4), noise(n * k, 4));
                    matrix.backward_input(&gy, &mut got, n, add).unwrap();
                    product(&gy, &w, WeightLayout::InOut, &mut want, Dims { n, m: k, k: m }, add);
                    assert_eq!(got, want, "{kind:?} {n}×{m}×{k}, back");
                }
                let again = QuantizedMatrix::from_blocks(matrix.tensor(), k).unwrap();
                assert_eq!((again.kind(), again.m, again.k), (kind, m, k));
            }
        }
        assert!(QuantizedMatrix::quantize(&[0.0; 32], 1, 32, BlockType::Q6K).is_err());
    }

    #[test]
    fn errors_are_small_and_blocks_are_in_ggufs_format() {
        let (m, k) = (9, 320);
        let w = noise(m * k, 5);
        for (kind, limit) in [(BlockType::Q8_0, 0.0025), (BlockType::Q4_1, 0.037)] {
            let matrix = QuantizedMatrix::quantize(&w, m, k, kind).unwrap();
            let ours: Vec<f32> = matrix.dequantize().unwrap().flatten_all().unwrap().to_vec1().unwrap();
            let error = (ours.iter().zip(&w).map(|(a, b)| (a - b).powi(2)).sum::<f32>() / (m * k) as f32).sqrt();
            assert!(error < limit, "{kind:?}: {error}");
            let mut theirs = vec![0f32; m * k];
            let bytes: Vec<u8> = matrix.tensor().flatten_all().unwrap().to_vec1().unwrap();
            crate::blocks::dequantize(&bytes, kind, &mut theirs);
            assert_eq!(ours, theirs, "{kind:?}");
        }
        for flat in [0.0f32, 0.75, -2.0] {
            let matrix = QuantizedMatrix::quantize(&[flat; 40], 1, 40, BlockType::Q4_1).unwrap();
            let values: Vec<f32> = matrix.dequantize().unwrap().flatten_all().unwrap().to_vec1().unwrap();
            assert!(values.iter().all(|v| *v == flat), "{values:?}");
        }
    }
}

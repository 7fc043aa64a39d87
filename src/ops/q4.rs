//! y = x·Wᵀ with 4-bit weights and 8-bit activations: w = scale · q + min over blocks of 32 along k, to which GGUF's
//! Q4_0, Q4_1 and Q4_K are converted. Results are batch-invariant, and the same on every instruction set.

use half::f16;

use super::blocks::{self, BlockType};
use super::par::{SharedMut, split};
use super::q8_rows::{Activations, BLOCK, Dot, GROUP, Line, PANEL, Tile, dot_kernel, for_rows, over_tiles};
use super::served::ServedMatrix;
use super::simd::multiversion;

/// Registers of weights per block: each byte has two values, 16 apart along k.
const LINES: usize = BLOCK / GROUP / 2;

/// 32 values 0…15, with a scale and a minimum.
#[derive(Clone, Copy)]
pub struct Block {
    pub q: [u8; BLOCK],
    pub scale: f32,
    pub min: f32,
}

/// A weight matrix `[m, k]` as ⌈m/16⌉ panels. Line l of a block has the values 4l…4l+3 along k of 16 rows in the low
/// halves of its bytes, and 16+4l…16+4l+3 in the high halves.
pub struct PackedQ4 {
    lines: Vec<Line>,
    /// `[panels][blocks]`: 16 scales, then 16 minima.
    scales: Vec<[f16; 2 * PANEL]>,
    m: usize,
    k: usize,
    blocks: usize,
}

/// Block `b` of a row of blocks in Q4_0, Q4_1 or Q4_K.
pub fn read_block(row: &[u8], kind: BlockType, b: usize) -> Block {
    let found = blocks::read(row, kind, b);
    // Values of Q4_0 are −8…7.
    let offset = if kind == BlockType::Q4_0 { 8 } else { 0 };
    let min = found.min[0] - f32::from(offset) * found.scale[0];
    Block { q: found.q.map(|q| (q + offset) as u8), scale: found.scale[0], min }
}

/// Quantises a block of up to 32 values so that its minimum becomes 0 and its maximum 15. Scale and minimum are exact in
/// f16.
pub fn quantize_block(x: &[f32]) -> Block {
    let (low, high) = x.iter().fold((f32::MAX, f32::MIN), |(l, h), v| (l.min(*v), h.max(*v)));
    let scale = f16::from_f32((high - low) / 15.0).to_f32();
    let (min, inv) = (f16::from_f32(low).to_f32(), if scale > 0.0 { 1.0 / scale } else { 0.0 });
    let mut q = [0u8; BLOCK];
    for (q, v) in q.iter_mut().zip(x) {
        *q = ((v - min) * inv).round_ties_even().clamp(0.0, 15.0) as u8;
    }
    Block { q, scale, min }
}

impl PackedQ4 {
    /// Quantises a row-major f32 matrix `[m, k]`.
    pub fn quantize(w: &[f32], m: usize, k: usize) -> Self {
        assert_eq!(w.len(), m * k, "weight size");
        Self::pack(m, k, |row, b| {
            quantize_block(&w[row * k + b * BLOCK..(row * k + (b + 1) * BLOCK).min((row + 1) * k)])
        })
    }

    /// Packs the blocks of a GGUF file in Q4_0, Q4_1 or Q4_K: m rows of k values, k a multiple of the block size.
    pub fn from_gguf(bytes: &[u8], kind: BlockType, m: usize, k: usize) -> Self {
        assert!(matches!(kind, BlockType::Q4_0 | BlockType::Q4_1 | BlockType::Q4K), "{kind:?} has another layout");
        assert!(k.is_multiple_of(kind.block().0) && bytes.len() == m * kind.bytes(k), "{kind:?} size");
        let row_bytes = kind.bytes(k);
        Self::pack(m, k, |row, b| read_block(&bytes[row * row_bytes..(row + 1) * row_bytes], kind, b))
    }

    fn pack(m: usize, k: usize, block: impl Fn(usize, usize) -> Block + Sync + Send) -> Self {
        let (panels, blocks) = (m.div_ceil(PANEL), k.div_ceil(BLOCK));
        let mut lines = vec![Line([0; 64]); panels * blocks * LINES];
        let mut scales = vec![[f16::ZERO; 2 * PANEL]; panels * blocks];
        let (out, out_scales) = (SharedMut::new(&mut lines), SharedMut::new(&mut scales));
        split(panels, m * k, |range| {
            for p in range {
                // SAFETY: one panel per p.
                let (lines, scales) =
                    unsafe { (out.slice(p * blocks * LINES, blocks * LINES), out_scales.slice(p * blocks, blocks)) };
                for lane in 0..PANEL.min(m - p * PANEL) {
                    for b in 0..blocks {
                        let found = block(p * PANEL + lane, b);
                        scales[b][lane] = f16::from_f32(found.scale);
                        scales[b][PANEL + lane] = f16::from_f32(found.min);
                        for i in 0..BLOCK / 2 {
                            lines[b * LINES + i / GROUP].0[lane * GROUP + i % GROUP] =
                                found.q[i] | found.q[i + BLOCK / 2] << 4;
                        }
                    }
                }
            }
        });
        Self { lines, scales, m, k, blocks }
    }

    fn panel(&self, p: usize) -> (&[Line], &[[f16; 2 * PANEL]]) {
        let n = self.blocks;
        (&self.lines[p * n * LINES..(p + 1) * n * LINES], &self.scales[p * n..(p + 1) * n])
    }
}

impl ServedMatrix for PackedQ4 {
    fn shape(&self) -> (usize, usize) {
        (self.m, self.k)
    }

    fn bytes(&self) -> usize {
        self.lines.len() * 64 + self.scales.len() * size_of::<[f16; 2 * PANEL]>()
    }

    /// y = quantised(x) · Wᵀ.
    fn matmul(&self, x: &[f32], y: &mut [f32], n: usize) {
        assert!(x.len() == n * self.k && y.len() == n * self.m, "matmul sizes");
        let rows = Activations::quantize(x, n, self.k);
        over_tiles(y, (n, self.m), n * self.m * self.k / 4, |p, r0, count, tile| {
            let (lines, scales) = self.panel(p);
            tile_rows(dot_kernel(), lines, scales, &rows, r0, count, tile);
        });
    }
}

fn tile_rows(
    kind: Dot,
    lines: &[Line],
    scales: &[[f16; 2 * PANEL]],
    rows: &Activations,
    r0: usize,
    count: usize,
    tile: &mut Tile,
) {
    assert!(lines.len() == rows.blocks * LINES && scales.len() == rows.blocks);
    #[cfg(target_arch = "x86_64")]
    // SAFETY: `dot_kernel` has checked the features, the assertion the panel; rows r0..r0 + count exist.
    unsafe {
        match kind {
            Dot::Vnni => return for_rows!(count, x86::vnni; lines, scales, rows, r0, tile),
            Dot::Avx2 => return for_rows!(count, x86::avx2; lines, scales, rows, r0, tile),
            Dot::Plain => {}
        }
    }
    for (i, out) in tile.iter_mut().enumerate().take(count) {
        let (q, xs, sums) = rows.row(r0 + i);
        plain_row(lines, scales, q, xs, sums, out);
    }
}

multiversion! {
    fn plain_row(lines: &[Line], scales: &[[f16; 2 * PANEL]], q: &[i8], xs: &[f32], sums: &[i32], out: &mut [f32; PANEL]) {
        out.fill(0.0);
        for (b, (lines, q)) in lines.chunks_exact(LINES).zip(q.chunks_exact(BLOCK)).enumerate() {
            let mut acc = [0i32; PANEL];
            for (l, line) in lines.iter().enumerate() {
                for lane in 0..PANEL {
                    for j in 0..GROUP {
                        let byte = line.0[lane * GROUP + j];
                        let at = l * GROUP + j;
                        acc[lane] += i32::from(byte & 15) * i32::from(q[at]);
                        acc[lane] += i32::from(byte >> 4) * i32::from(q[at + BLOCK / 2]);
                    }
                }
            }
            let sum = xs[b] * sums[b] as f32;
            for lane in 0..PANEL {
                let scale = scales[b][lane].to_f32() * xs[b];
                out[lane] = (acc[lane] as f32).mul_add(scale, out[lane]);
                out[lane] = scales[b][PANEL + lane].to_f32().mul_add(sum, out[lane]);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use half::f16;

    use super::{Activations, BLOCK, GROUP, LINES, Line, PANEL, Tile};

    #[target_feature(enable = "avx512f,avx512bw,avx512vnni,f16c")]
    pub unsafe fn vnni<const R: usize>(
        lines: &[Line],
        scales: &[[f16; 2 * PANEL]],
        rows: &Activations,
        r0: usize,
        out: &mut Tile,
    ) {
        // SAFETY: the caller has checked the panel and the rows.
        unsafe {
            let low = _mm512_set1_epi8(15);
            let mut total = [_mm512_setzero_ps(); R];
            let w = lines.as_ptr().cast::<u8>();
            for b in 0..rows.blocks {
                let mut acc = [_mm512_setzero_si512(); R];
                let mut odd = [_mm512_setzero_si512(); R];
                for l in 0..LINES {
                    let at = w.add((b * LINES + l) * 64);
                    if R <= 2 {
                        _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(4096).cast());
                    }
                    let both = _mm512_load_si512(at.cast());
                    let w0 = _mm512_and_si512(both, low);
                    let w1 = _mm512_and_si512(_mm512_srli_epi16::<4>(both), low);
                    for r in 0..R {
                        let x = rows.q.as_ptr().add((r0 + r) * rows.blocks * BLOCK + b * BLOCK + l * GROUP);
                        let (x0, x1) = (x.cast::<i32>(), x.add(BLOCK / 2).cast::<i32>());
                        acc[r] = _mm512_dpbusd_epi32(acc[r], w0, _mm512_set1_epi32(x0.read_unaligned()));
                        odd[r] = _mm512_dpbusd_epi32(odd[r], w1, _mm512_set1_epi32(x1.read_unaligned()));
                    }
                }
                let s = scales.as_ptr().add(b).cast::<__m256i>();
                let (ws, wm) = (_mm512_cvtph_ps(_mm256_loadu_si256(s)), _mm512_cvtph_ps(_mm256_loadu_si256(s.add(1))));
                for r in 0..R {
                    let at = (r0 + r) * rows.blocks + b;
                    let xs = rows.scales[at];
                    let sum = _mm512_cvtepi32_ps(_mm512_add_epi32(acc[r], odd[r]));
                    total[r] = _mm512_fmadd_ps(sum, _mm512_mul_ps(ws, _mm512_set1_ps(xs)), total[r]);
                    total[r] = _mm512_fmadd_ps(wm, _mm512_set1_ps(xs * rows.sums[at] as f32), total[r]);
                }
            }
            for r in 0..R {
                _mm512_storeu_ps(out[r].as_mut_ptr(), total[r]);
            }
        }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    pub unsafe fn avx2<const R: usize>(
        lines: &[Line],
        scales: &[[f16; 2 * PANEL]],
        rows: &Activations,
        r0: usize,
        out: &mut Tile,
    ) {
        // SAFETY: the caller has checked the panel and the rows.
        unsafe {
            let (ones, low) = (_mm256_set1_epi16(1), _mm256_set1_epi8(15));
            let mut total = [[_mm256_setzero_ps(); R]; 2];
            for b in 0..rows.blocks {
                for side in 0..2 {
                    // The sum of a lane's products in a block fits into 16 bits: 16 · 15 · 127 = 30480.
                    let mut acc = [_mm256_setzero_si256(); R];
                    for l in 0..LINES {
                        let line = lines.as_ptr().add(b * LINES + l).cast::<u8>().add(32 * side);
                        if R <= 2 {
                            _mm_prefetch::<_MM_HINT_T0>(line.wrapping_add(2048).cast());
                        }
                        let both = _mm256_load_si256(line.cast());
                        let w0 = _mm256_and_si256(both, low);
                        let w1 = _mm256_and_si256(_mm256_srli_epi16::<4>(both), low);
                        for r in 0..R {
                            let x = rows.q.as_ptr().add(((r0 + r) * rows.blocks + b) * BLOCK + l * GROUP);
                            let x0 = _mm256_set1_epi32(x.cast::<i32>().read_unaligned());
                            let x1 = _mm256_set1_epi32(x.add(BLOCK / 2).cast::<i32>().read_unaligned());
                            let pairs = _mm256_add_epi16(_mm256_maddubs_epi16(w0, x0), _mm256_maddubs_epi16(w1, x1));
                            acc[r] = _mm256_add_epi16(acc[r], pairs);
                        }
                    }
                    let s = scales.as_ptr().add(b).cast::<f16>().add(8 * side);
                    let ws = _mm256_cvtph_ps(_mm_loadu_si128(s.cast()));
                    let wm = _mm256_cvtph_ps(_mm_loadu_si128(s.add(PANEL).cast()));
                    for r in 0..R {
                        let at = (r0 + r) * rows.blocks + b;
                        let xs = *rows.scales.get_unchecked(at);
                        let min = _mm256_set1_ps(xs * *rows.sums.get_unchecked(at) as f32);
                        let sum = _mm256_cvtepi32_ps(_mm256_madd_epi16(acc[r], ones));
                        let scaled = _mm256_mul_ps(ws, _mm256_set1_ps(xs));
                        total[side][r] = _mm256_fmadd_ps(sum, scaled, total[side][r]);
                        total[side][r] = _mm256_fmadd_ps(wm, min, total[side][r]);
                    }
                }
            }
            for r in 0..R {
                for side in 0..2 {
                    _mm256_storeu_ps(out[r].as_mut_ptr().add(8 * side), total[side][r]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use candle_core::quantized::{GgmlDType, QTensor};

    use super::*;
    use crate::q8_rows::kernels;
    use crate::{noise, sizes};

    /// The product with weights w `[m, k]`.
    fn expected(w: &[f32], x: &[f32], m: usize, k: usize) -> Vec<f32> {
        (0..m).map(|c| (0..k).map(|i| x[i] * w[c * k + i]).sum()).collect()
    }

    #[test]
    fn blocks_of_a_file_have_the_values_that_candle_reads() {
        for (kind, dtype) in
            [(BlockType::Q4_0, GgmlDType::Q4_0), (BlockType::Q4_1, GgmlDType::Q4_1), (BlockType::Q4K, GgmlDType::Q4K)]
        {
            let (m, k) = (19, 512);
            let w = candle_core::Tensor::from_vec(noise(m * k, 4), (m, k), &Device::Cpu).unwrap();
            let stored = QTensor::quantize(&w, dtype).unwrap();
            let packed = PackedQ4::from_gguf(&stored.data().unwrap(), kind, m, k);
            let w: Vec<f32> = stored.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            let x = noise(k, 9);
            let mut y = vec![f32::NAN; m];
            packed.matmul(&x, &mut y, 1);
            for (a, b) in expected(&w, &x, m, k).iter().zip(&y) {
                assert!((a - b).abs() < 0.12, "{kind:?}: {a} {b}");
            }
        }
    }

    #[test]
    fn products_are_close_to_f32_and_equal_in_any_batch_and_on_every_instruction_set() {
        for (n, m, k) in sizes([(1, 16, 32), (11, 70, 576), (3, 5, 48)]) {
            let (w, x) = (noise(m * k, 1), noise(n * k, 2));
            let packed = PackedQ4::quantize(&w, m, k);
            let mut y = vec![f32::NAN; n * m];
            packed.matmul(&x, &mut y, n);
            let rows = Activations::quantize(&x, n, k);
            for r in 0..n {
                let mut alone = vec![f32::NAN; m];
                packed.matmul(&x[r * k..(r + 1) * k], &mut alone, 1);
                assert_eq!(alone, y[r * m..(r + 1) * m]);
                for kind in kernels() {
                    let mut tile = Tile::default();
                    let (lines, scales) = packed.panel(0);
                    tile_rows(kind, lines, scales, &rows, r, 1, &mut tile);
                    assert_eq!(tile[0][..m.min(PANEL)], alone[..m.min(PANEL)], "{kind:?} has the same bits");
                }
                for (exact, got) in expected(&w, &x[r * k..(r + 1) * k], m, k).iter().zip(&alone) {
                    assert!((exact - got).abs() < 0.08 * (k as f32).sqrt(), "{exact} {got}");
                }
            }
        }
    }
}

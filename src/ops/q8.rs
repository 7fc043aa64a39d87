//! y = x·Wᵀ with 8-bit weights and activations (GGUF's Q8_0: blocks of 32 along k, with one f16 scale each). Integer
//! sums are exact, and blocks are added in ascending order, so results are batch-invariant and the same on every
//! instruction set.

use half::f16;

use super::par::{SharedMut, split};
use super::q8_rows::{Activations, BLOCK, Dot, GROUP, Line, PANEL, Tile, dot_kernel, for_rows, over_tiles};
use super::served::ServedMatrix;
use super::simd::multiversion;

/// Registers of weights per block.
const LINES: usize = BLOCK / GROUP;

/// A weight matrix `[m, k]` as ⌈m/16⌉ panels of `[k/4][16][4]` bytes, with 128 added because the dot-product
/// instruction needs one unsigned operand.
pub struct PackedQ8 {
    lines: Vec<Line>,
    /// `[panels][blocks][16]`.
    scales: Vec<f16>,
    m: usize,
    k: usize,
    blocks: usize,
}

/// Quantises one block of up to 32 values so that max |x| becomes 127. Returns the scale.
pub fn quantize_block(x: &[f32], out: &mut [i8; BLOCK]) -> f16 {
    let max = x.iter().fold(0f32, |m, v| m.max(v.abs()));
    // Rounded to f16 first, because the product uses the stored scale.
    let scale = f16::from_f32(max / 127.0);
    let inv = if scale > f16::ZERO { 1.0 / scale.to_f32() } else { 0.0 };
    out.fill(0);
    for (o, v) in out.iter_mut().zip(x) {
        *o = (v * inv).round_ties_even().clamp(-127.0, 127.0) as i8;
    }
    scale
}

impl PackedQ8 {
    /// Quantises a row-major f32 matrix `[m, k]`.
    pub fn quantize(w: &[f32], m: usize, k: usize) -> Self {
        assert_eq!(w.len(), m * k, "weight size");
        Self::pack(m, k, |row, b, q| {
            quantize_block(&w[row * k + b * BLOCK..(row * k + (b + 1) * BLOCK).min((row + 1) * k)], q)
        })
    }

    /// Packs GGUF's Q8_0 blocks `[m][k/32]` of (f16 scale, 32 × i8); k is a multiple of 32.
    pub fn from_gguf(bytes: &[u8], m: usize, k: usize) -> Self {
        const BYTES: usize = 2 + BLOCK;
        assert!(k.is_multiple_of(BLOCK) && bytes.len() == m * (k / BLOCK) * BYTES, "Q8_0 size");
        Self::pack(m, k, |row, b, q| {
            let block = &bytes[(row * (k / BLOCK) + b) * BYTES..][..BYTES];
            for (q, byte) in q.iter_mut().zip(&block[2..]) {
                *q = *byte as i8;
            }
            f16::from_le_bytes([block[0], block[1]])
        })
    }

    /// Packs a matrix; `block(row, b, out)` writes the values of one block and returns its scale.
    fn pack(m: usize, k: usize, block: impl Fn(usize, usize, &mut [i8; BLOCK]) -> f16 + Sync + Send) -> Self {
        let (panels, blocks) = (m.div_ceil(PANEL), k.div_ceil(BLOCK));
        let per_panel = blocks * LINES;
        let mut lines = vec![Line([128; 64]); panels * per_panel];
        let mut scales = vec![f16::ZERO; panels * blocks * PANEL];
        let (out, out_scales) = (SharedMut::new(&mut lines), SharedMut::new(&mut scales));
        split(panels, m * k, |range| {
            let mut q = [0i8; BLOCK];
            for p in range {
                // SAFETY: one panel per p.
                let (lines, scales) = unsafe {
                    (out.slice(p * per_panel, per_panel), out_scales.slice(p * blocks * PANEL, blocks * PANEL))
                };
                for lane in 0..PANEL.min(m - p * PANEL) {
                    for b in 0..blocks {
                        scales[b * PANEL + lane] = block(p * PANEL + lane, b, &mut q);
                        for (i, v) in q.iter().enumerate() {
                            lines[b * LINES + i / GROUP].0[lane * GROUP + i % GROUP] = (i16::from(*v) + 128) as u8;
                        }
                    }
                }
            }
        });
        Self { lines, scales, m, k, blocks }
    }

    fn panel(&self, p: usize) -> (&[Line], &[f16]) {
        let (lines, scales) = (self.blocks * LINES, self.blocks * PANEL);
        (&self.lines[p * lines..(p + 1) * lines], &self.scales[p * scales..(p + 1) * scales])
    }
}

impl ServedMatrix for PackedQ8 {
    fn shape(&self) -> (usize, usize) {
        (self.m, self.k)
    }

    fn bytes(&self) -> usize {
        self.lines.len() * 64 + self.scales.len() * 2
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

fn tile_rows(kind: Dot, lines: &[Line], scales: &[f16], rows: &Activations, r0: usize, count: usize, tile: &mut Tile) {
    assert!(lines.len() == rows.blocks * LINES && scales.len() == rows.blocks * PANEL);
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
    fn plain_row(lines: &[Line], scales: &[f16], q: &[i8], xs: &[f32], sums: &[i32], out: &mut [f32; PANEL]) {
        out.fill(0.0);
        for (b, (lines, q)) in lines.chunks_exact(LINES).zip(q.chunks_exact(BLOCK)).enumerate() {
            let mut acc = [-128 * sums[b]; PANEL];
            for (line, x) in lines.iter().zip(q.chunks_exact(GROUP)) {
                for lane in 0..PANEL {
                    for j in 0..GROUP {
                        acc[lane] += i32::from(line.0[lane * GROUP + j]) * i32::from(x[j]);
                    }
                }
            }
            for lane in 0..PANEL {
                let scale = scales[b * PANEL + lane].to_f32() * xs[b];
                out[lane] = (acc[lane] as f32).mul_add(scale, out[lane]);
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
    pub unsafe fn vnni<const R: usize>(lines: &[Line], scales: &[f16], rows: &Activations, r0: usize, out: &mut Tile) {
        // SAFETY: the caller has checked the panel and the rows.
        unsafe {
            let mut total = [_mm512_setzero_ps(); R];
            let w = lines.as_ptr().cast::<u8>();
            for b in 0..rows.blocks {
                let mut acc = [_mm512_setzero_si512(); R];
                let mut odd = [_mm512_setzero_si512(); R];
                for r in 0..R {
                    acc[r] = _mm512_set1_epi32(-128 * rows.sums[(r0 + r) * rows.blocks + b]);
                }
                for g in (0..LINES).step_by(2) {
                    let at = w.add((b * LINES + g) * 64);
                    if R <= 2 {
                        _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(4096).cast());
                        _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(4096 + 64).cast());
                    }
                    let (w0, w1) = (_mm512_load_si512(at.cast()), _mm512_load_si512(at.add(64).cast()));
                    for r in 0..R {
                        let x =
                            rows.q.as_ptr().add((r0 + r) * rows.blocks * BLOCK + b * BLOCK + g * GROUP).cast::<i32>();
                        acc[r] = _mm512_dpbusd_epi32(acc[r], w0, _mm512_set1_epi32(x.read_unaligned()));
                        odd[r] = _mm512_dpbusd_epi32(odd[r], w1, _mm512_set1_epi32(x.add(1).read_unaligned()));
                    }
                }
                let ws = _mm512_cvtph_ps(_mm256_loadu_si256(scales.as_ptr().add(b * PANEL).cast()));
                for r in 0..R {
                    let scale = _mm512_mul_ps(ws, _mm512_set1_ps(rows.scales[(r0 + r) * rows.blocks + b]));
                    let sum = _mm512_cvtepi32_ps(_mm512_add_epi32(acc[r], odd[r]));
                    total[r] = _mm512_fmadd_ps(sum, scale, total[r]);
                }
            }
            for r in 0..R {
                _mm512_storeu_ps(out[r].as_mut_ptr(), total[r]);
            }
        }
    }

    /// Without VNNI the 16-bit sums of biased bytes could overflow, so the signs of the weights are moved to the
    /// activations, and both operands stay within ±127.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub unsafe fn avx2<const R: usize>(lines: &[Line], scales: &[f16], rows: &Activations, r0: usize, out: &mut Tile) {
        // SAFETY: the caller has checked the panel and the rows.
        unsafe {
            let (ones, bias) = (_mm256_set1_epi16(1), _mm256_set1_epi8(-128));
            let mut total = [[_mm256_setzero_ps(); R]; 2];
            for b in 0..rows.blocks {
                for side in 0..2 {
                    let mut acc = [_mm256_setzero_si256(); R];
                    for g in 0..LINES {
                        let line = lines.as_ptr().add(b * LINES + g).cast::<u8>().add(32 * side);
                        if R <= 2 {
                            _mm_prefetch::<_MM_HINT_T0>(line.wrapping_add(2048).cast());
                        }
                        let w = _mm256_xor_si256(_mm256_load_si256(line.cast()), bias);
                        let size = _mm256_abs_epi8(w);
                        for r in 0..R {
                            let x = rows.q.as_ptr().add(((r0 + r) * rows.blocks + b) * BLOCK + g * GROUP);
                            let x = _mm256_set1_epi32(x.cast::<i32>().read_unaligned());
                            let pairs = _mm256_maddubs_epi16(size, _mm256_sign_epi8(x, w));
                            acc[r] = _mm256_add_epi32(acc[r], _mm256_madd_epi16(pairs, ones));
                        }
                    }
                    let ws = _mm256_cvtph_ps(_mm_loadu_si128(scales.as_ptr().add(b * PANEL + 8 * side).cast()));
                    for r in 0..R {
                        let xs = _mm256_set1_ps(*rows.scales.get_unchecked((r0 + r) * rows.blocks + b));
                        let sum = _mm256_cvtepi32_ps(acc[r]);
                        total[side][r] = _mm256_fmadd_ps(sum, _mm256_mul_ps(ws, xs), total[side][r]);
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
    use super::*;
    use crate::q8_rows::kernels;
    use crate::{noise, sizes};

    #[test]
    fn products_are_close_to_f32_and_equal_in_any_batch_and_on_every_instruction_set() {
        for (n, m, k) in sizes([(1, 16, 32), (11, 70, 576), (3, 5, 48)]) {
            let (w, x) = (noise(m * k, 1), noise(n * k, 2));
            let packed = PackedQ8::quantize(&w, m, k);
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
                for c in 0..m {
                    let exact: f32 = (0..k).map(|i| x[r * k + i] * w[c * k + i]).sum();
                    assert!((exact - alone[c]).abs() < 0.01 * (k as f32).sqrt(), "{exact} {}", alone[c]);
                }
            }
        }
    }

    #[test]
    fn blocks_of_a_file_are_packed_without_rounding() {
        let (m, k) = (18, 64);
        let mut bytes = Vec::new();
        let mut w = Vec::new();
        for i in 0..m * k / BLOCK {
            let scale = f16::from_f32(0.01 + i as f32 * 1e-4);
            bytes.extend(scale.to_le_bytes());
            let values: Vec<i8> =
                (0..BLOCK).map(|j| ((i * 37 + j * 11) % 255) as u8 as i8).map(|v| v.max(-127)).collect();
            bytes.extend(values.iter().map(|v| *v as u8));
            w.extend(values.iter().map(|v| scale.to_f32() * f32::from(*v)));
        }
        let x = noise(k, 3);
        let (mut y, mut exact) = (vec![0f32; m], vec![0f32; m]);
        PackedQ8::from_gguf(&bytes, m, k).matmul(&x, &mut y, 1);
        for (c, e) in exact.iter_mut().enumerate() {
            *e = (0..k).map(|i| x[i] * w[c * k + i]).sum();
            assert!((*e - y[c]).abs() < 0.05, "{e} {}", y[c]);
        }
    }
}

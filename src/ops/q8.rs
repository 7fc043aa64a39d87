//! y = x·Wᵀ with 8-bit weights and activations (GGUF's Q8_0: blocks of 32 along k, one f16 scale each).
//! Integer sums are exact and blocks are added in ascending order, so results are the same for every
//! instruction set and for any company of rows in a batch.

use half::f16;

use super::par::{SharedMut, split};
use super::simd::multiversion;

/// Values that share a scale.
pub const BLOCK: usize = 32;
/// Output rows per panel: one 512-bit register of i32 sums.
const PANEL: usize = 16;
/// k values per lane and instruction.
const GROUP: usize = 4;
/// Batch rows per pass over a panel.
const MAX_R: usize = 8;

/// 16 outputs × 4 k values, biased by 128 (the dot-product instruction wants one unsigned side).
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line([u8; 64]);

/// A weight matrix [m, k] as ⌈m/16⌉ panels of [k/4][16][4] biased bytes.
pub struct PackedQ8 {
    lines: Vec<Line>,
    /// [panel][block][16]
    scales: Vec<f16>,
    pub m: usize,
    pub k: usize,
    blocks: usize,
}

impl std::fmt::Debug for PackedQ8 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PackedQ8({}×{})", self.m, self.k)
    }
}

/// Scale and 32 rounded values of one block: max |x| maps to 127.
fn quantize_block(x: &[f32], out: &mut [i8; BLOCK]) -> f32 {
    let max = x.iter().fold(0f32, |m, v| m.max(v.abs()));
    // Through f16, as the stored scale is: what was rounded to is what will be multiplied.
    let scale = f16::from_f32(max / 127.0).to_f32();
    let inv = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    out.fill(0);
    for (o, v) in out.iter_mut().zip(x) {
        *o = (v * inv).round_ties_even().clamp(-127.0, 127.0) as i8;
    }
    scale
}

impl PackedQ8 {
    /// Quantises a row-major f32 matrix [m, k].
    pub fn quantize(w: &[f32], m: usize, k: usize) -> Self {
        assert_eq!(w.len(), m * k, "weight size");
        let (panels, blocks) = (m.div_ceil(PANEL), k.div_ceil(BLOCK));
        let per_panel = blocks * BLOCK / GROUP;
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
                    let row = &w[(p * PANEL + lane) * k..(p * PANEL + lane + 1) * k];
                    for (b, x) in row.chunks(BLOCK).enumerate() {
                        scales[b * PANEL + lane] = f16::from_f32(quantize_block(x, &mut q));
                        for (i, v) in q.iter().enumerate() {
                            lines[b * (BLOCK / GROUP) + i / GROUP].0[lane * GROUP + i % GROUP] =
                                (i16::from(*v) + 128) as u8;
                        }
                    }
                }
            }
        });
        Self { lines, scales, m, k, blocks }
    }

    pub fn bytes(&self) -> usize {
        self.lines.len() * 64 + self.scales.len() * 2
    }

    /// y [n, m] = quantised(x [n, k]) · Wᵀ. Overwrites y.
    pub fn matmul(&self, x: &[f32], y: &mut [f32], n: usize) {
        assert!(x.len() == n * self.k && y.len() == n * self.m, "matmul sizes");
        let rows = Activations::quantize(x, n, self.k, self.blocks);
        let panels = self.m.div_ceil(PANEL);
        let per_panel = self.blocks * BLOCK / GROUP;
        let out = SharedMut::new(y);
        split(panels, n * self.m * self.k / 4, |range| {
            let mut tile = [[0f32; PANEL]; MAX_R];
            for p in range {
                let lines = &self.lines[p * per_panel..(p + 1) * per_panel];
                let scales = &self.scales[p * self.blocks * PANEL..(p + 1) * self.blocks * PANEL];
                let cols = PANEL.min(self.m - p * PANEL);
                for r0 in (0..n).step_by(MAX_R) {
                    let count = MAX_R.min(n - r0);
                    panel_rows(lines, scales, &rows, r0, count, &mut tile);
                    for (i, row) in tile.iter().enumerate().take(count) {
                        // SAFETY: this task alone owns these columns.
                        unsafe { out.slice((r0 + i) * self.m + p * PANEL, cols) }.copy_from_slice(&row[..cols]);
                    }
                }
            }
        });
    }
}

/// Rows quantised like the weights.
struct Activations {
    /// [n][blocks · 32]
    q: Vec<i8>,
    /// [n][blocks]
    scales: Vec<f32>,
    /// −128 · Σ q of each block: takes the weights' bias out again.
    corrections: Vec<i32>,
    blocks: usize,
}

impl Activations {
    fn quantize(x: &[f32], n: usize, k: usize, blocks: usize) -> Self {
        let mut all = Self {
            q: vec![0; n * blocks * BLOCK],
            scales: vec![0.0; n * blocks],
            corrections: vec![0; n * blocks],
            blocks,
        };
        let (q, scales, corrections) =
            (SharedMut::new(&mut all.q), SharedMut::new(&mut all.scales), SharedMut::new(&mut all.corrections));
        split(n, n * k, |range| {
            for r in range {
                // SAFETY: one row per r.
                let (q, scales, corrections) = unsafe {
                    (
                        q.slice(r * blocks * BLOCK, blocks * BLOCK),
                        scales.slice(r * blocks, blocks),
                        corrections.slice(r * blocks, blocks),
                    )
                };
                quantize_row(&x[r * k..(r + 1) * k], q, scales, corrections);
            }
        });
        all
    }
}

multiversion! {
    fn quantize_row(x: &[f32], q: &mut [i8], scales: &mut [f32], corrections: &mut [i32]) {
        for (b, (x, q)) in x.chunks(BLOCK).zip(q.as_chunks_mut::<BLOCK>().0).enumerate() {
            let mut max = 0f32;
            for v in x {
                max = if v.abs() > max { v.abs() } else { max };
            }
            let scale = max / 127.0;
            let inv = if scale > 0.0 { 1.0 / scale } else { 0.0 };
            let mut sum = 0i32;
            for (o, v) in q.iter_mut().zip(x) {
                *o = (v * inv).round_ties_even() as i8;
                sum += i32::from(*o);
            }
            scales[b] = scale;
            corrections[b] = -128 * sum;
        }
    }
}

fn panel_rows(
    lines: &[Line],
    scales: &[f16],
    rows: &Activations,
    r0: usize,
    count: usize,
    tile: &mut [[f32; PANEL]; MAX_R],
) {
    #[cfg(target_arch = "x86_64")]
    if vnni::available() {
        // SAFETY: the features were checked; slices cover `blocks` blocks of every row by construction.
        unsafe {
            return match count {
                1 => vnni::tile::<1>(lines, scales, rows, r0, tile),
                2 => vnni::tile::<2>(lines, scales, rows, r0, tile),
                3 => vnni::tile::<3>(lines, scales, rows, r0, tile),
                4 => vnni::tile::<4>(lines, scales, rows, r0, tile),
                5 => vnni::tile::<5>(lines, scales, rows, r0, tile),
                6 => vnni::tile::<6>(lines, scales, rows, r0, tile),
                7 => vnni::tile::<7>(lines, scales, rows, r0, tile),
                _ => vnni::tile::<8>(lines, scales, rows, r0, tile),
            };
        }
    }
    for (i, out) in tile.iter_mut().enumerate().take(count) {
        let r = r0 + i;
        let q = &rows.q[r * rows.blocks * BLOCK..(r + 1) * rows.blocks * BLOCK];
        let (xs, corrections) = (&rows.scales[r * rows.blocks..], &rows.corrections[r * rows.blocks..]);
        plain_row(lines, scales, q, xs, corrections, out);
    }
}

multiversion! {
    fn plain_row(lines: &[Line], scales: &[f16], q: &[i8], xs: &[f32], corrections: &[i32], out: &mut [f32; PANEL]) {
        out.fill(0.0);
        for (b, (lines, q)) in lines.chunks_exact(BLOCK / GROUP).zip(q.chunks_exact(BLOCK)).enumerate() {
            let mut acc = [corrections[b]; PANEL];
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
mod vnni {
    use std::arch::x86_64::*;

    use half::f16;

    use super::{Activations, BLOCK, GROUP, Line, MAX_R, PANEL};

    pub fn available() -> bool {
        use std::sync::OnceLock;
        static HAS: OnceLock<bool> = OnceLock::new();
        *HAS.get_or_init(|| {
            is_x86_feature_detected!("avx512vnni")
                && is_x86_feature_detected!("f16c")
                && super::super::simd::isa() == super::super::simd::Isa::Avx512
        })
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vnni,f16c")]
    pub unsafe fn tile<const R: usize>(
        lines: &[Line],
        scales: &[f16],
        rows: &Activations,
        r0: usize,
        out: &mut [[f32; PANEL]; MAX_R],
    ) {
        const LINES: usize = BLOCK / GROUP;
        assert!(lines.len() == rows.blocks * LINES && scales.len() == rows.blocks * PANEL);
        // SAFETY: the assertion above and the sizes of `Activations` (rows r0..r0 + R exist).
        unsafe {
            let mut total = [_mm512_setzero_ps(); R];
            let w = lines.as_ptr().cast::<u8>();
            for b in 0..rows.blocks {
                let mut acc = [_mm512_setzero_si512(); R];
                let mut odd = [_mm512_setzero_si512(); R];
                for r in 0..R {
                    acc[r] = _mm512_set1_epi32(rows.corrections[(r0 + r) * rows.blocks + b]);
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::noise;

    #[test]
    fn close_to_f32_and_equal_in_any_company_and_instruction_set() {
        for (n, m, k) in [(1, 16, 32), (11, 70, 576), (3, 5, 48)] {
            let (w, x) = (noise(m * k, 1), noise(n * k, 2));
            let packed = PackedQ8::quantize(&w, m, k);
            let mut y = vec![f32::NAN; n * m];
            packed.matmul(&x, &mut y, n);
            let rows = Activations::quantize(&x, n, k, packed.blocks);
            for r in 0..n {
                let mut alone = vec![f32::NAN; m];
                packed.matmul(&x[r * k..(r + 1) * k], &mut alone, 1);
                assert_eq!(alone, y[r * m..(r + 1) * m]);
                let (mut plain, per_panel) = ([0f32; PANEL], packed.blocks * BLOCK / GROUP);
                let q = &rows.q[r * packed.blocks * BLOCK..(r + 1) * packed.blocks * BLOCK];
                let (xs, cs) = (&rows.scales[r * packed.blocks..], &rows.corrections[r * packed.blocks..]);
                plain_row(&packed.lines[..per_panel], &packed.scales[..packed.blocks * PANEL], q, xs, cs, &mut plain);
                assert_eq!(plain[..m.min(PANEL)], alone[..m.min(PANEL)], "plain and vector kernels agree exactly");
                for c in 0..m {
                    let exact: f32 = (0..k).map(|i| x[r * k + i] * w[c * k + i]).sum();
                    assert!((exact - alone[c]).abs() < 0.01 * (k as f32).sqrt(), "{exact} {}", alone[c]);
                }
            }
        }
    }
}

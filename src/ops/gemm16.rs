//! y = x·Wᵀ with weights stored in 16 bits (bfloat16 or half) and computed in f32: half the memory traffic of `gemm`,
//! and the same chain of operations. It is therefore exact for a model published in bfloat16.

use std::cell::RefCell;

use half::{bf16, f16};

use super::gemm::{MR, NR, WeightLayout, over_panels, pack_into, panel_rows};
use super::par::{SharedMut, split};
use super::served::ServedMatrix;
use super::simd::multiversion;

/// The 16-bit floating-point format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HalfKind {
    Bf16,
    F16,
}

/// A weight matrix `[m, k]` as ⌈m/64⌉ panels of `[k, 64]` 16-bit values, zero-padded.
pub struct PackedHalf {
    panels: Vec<u16>,
    kind: HalfKind,
    m: usize,
    k: usize,
}

/// Up to this number of rows, weights are converted in registers for every `MR` rows; for more rows, a panel is
/// converted once.
const FUSED_ROWS: usize = 48;

thread_local! {
    static PANEL: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

impl PackedHalf {
    /// Rounds a row-major f32 matrix in the given layout to nearest even.
    pub fn pack(w: &[f32], m: usize, k: usize, layout: WeightLayout, kind: HalfKind) -> Self {
        let mut wide = Vec::new();
        pack_into(&mut wide, w, m, k, layout);
        let mut panels = vec![0u16; wide.len()];
        let out = SharedMut::new(&mut panels);
        split(m.div_ceil(NR), wide.len(), |range| {
            let (from, len) = (range.start * k * NR, range.len() * k * NR);
            // SAFETY: disjoint panels.
            let out = unsafe { out.slice(from, len) };
            for (o, v) in out.iter_mut().zip(&wide[from..from + len]) {
                *o = match kind {
                    HalfKind::Bf16 => bf16::from_f32(*v).to_bits(),
                    HalfKind::F16 => f16::from_f32(*v).to_bits(),
                };
            }
        });
        Self { panels, kind, m, k }
    }
}

impl ServedMatrix for PackedHalf {
    fn shape(&self) -> (usize, usize) {
        (self.m, self.k)
    }

    fn bytes(&self) -> usize {
        self.panels.len() * 2
    }

    /// y `[n, m]` = x `[n, k]` · Wᵀ, bit for bit the f32 product with the rounded weights.
    fn matmul(&self, x: &[f32], y: &mut [f32], n: usize) {
        let (m, k) = (self.m, self.k);
        assert!(x.len() == n * k && y.len() == n * m, "matmul sizes");
        if k == 0 {
            return y.fill(0.0);
        }
        let out = SharedMut::new(y);
        over_panels(n, m, k, |p, rows| {
            let panel = &self.panels[p * k * NR..(p + 1) * k * NR];
            if n <= FUSED_ROWS && fused_rows(panel, self.kind, x, out, n, p * NR, m, k) {
                return;
            }
            // Taken out so that a nested call on this thread (work stealing) finds a buffer of its own.
            let mut wide = PANEL.take();
            wide.resize(panel.len(), 0.0);
            match self.kind {
                HalfKind::Bf16 => widen_bf16(panel, &mut wide),
                HalfKind::F16 => widen_f16(panel, &mut wide),
            }
            panel_rows(&wide, x, out, rows, p * NR, m, k, false);
            PANEL.set(wide);
        });
    }
}

multiversion! {
    fn widen_bf16(from: &[u16], to: &mut [f32]) {
        for (t, f) in to.iter_mut().zip(from) {
            *t = f32::from_bits(u32::from(*f) << 16);
        }
    }
}

fn widen_f16(from: &[u16], to: &mut [f32]) {
    // `half` selects the CPU's conversion instructions at run time.
    use half::slice::HalfFloatSliceExt;
    let from: &[f16] = bytemuck::cast_slice(from);
    from.convert_to_f32_slice(to);
}

/// The product for few rows, with weights converted in registers. `false` without AVX-512.
#[expect(clippy::too_many_arguments, reason = "a kernel's plain inputs")]
fn fused_rows(
    panel: &[u16],
    kind: HalfKind,
    x: &[f32],
    y: SharedMut<f32>,
    n: usize,
    c0: usize,
    m: usize,
    k: usize,
) -> bool {
    #[cfg(target_arch = "x86_64")]
    if super::simd::isa() == super::simd::Isa::Avx512 {
        assert!(panel.len() == k * NR && x.len() == n * k);
        let cols = NR.min(m - c0);
        let mut tile = [[0f32; NR]; MR];
        for (group, x) in x.chunks(MR * k).enumerate() {
            let rows = x.len() / k;
            // SAFETY: the feature and the sizes were checked.
            unsafe {
                match kind {
                    HalfKind::Bf16 => avx512::tile_of::<true>(rows, panel, x, k, &mut tile),
                    HalfKind::F16 => avx512::tile_of::<false>(rows, panel, x, k, &mut tile),
                }
            }
            for (r, row) in tile.iter().enumerate().take(rows) {
                // SAFETY: this task alone owns these columns.
                unsafe { y.slice((group * MR + r) * m + c0, cols) }.copy_from_slice(&row[..cols]);
            }
        }
        return true;
    }
    let _ = (panel, kind, x, y, n, c0, m, k);
    false
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use super::{MR, NR};

    #[target_feature(enable = "avx512f")]
    pub unsafe fn tile_of<const BF16: bool>(
        rows: usize,
        panel: &[u16],
        x: &[f32],
        k: usize,
        out: &mut [[f32; NR]; MR],
    ) {
        // SAFETY: the contract of `tile` is that of this function.
        unsafe {
            match rows {
                1 => tile::<1, BF16>(panel, x, k, out),
                2 => tile::<2, BF16>(panel, x, k, out),
                3 => tile::<3, BF16>(panel, x, k, out),
                4 => tile::<4, BF16>(panel, x, k, out),
                5 => tile::<5, BF16>(panel, x, k, out),
                _ => tile::<6, BF16>(panel, x, k, out),
            }
        }
    }

    #[target_feature(enable = "avx512f")]
    unsafe fn tile<const R: usize, const BF16: bool>(panel: &[u16], x: &[f32], k: usize, out: &mut [[f32; NR]; MR]) {
        // SAFETY: the caller has checked that the panel holds k × NR numbers and x R rows of k.
        unsafe {
            let mut acc = [[_mm512_setzero_ps(); 4]; R];
            for kk in 0..k {
                let p = panel.as_ptr().add(kk * NR);
                if R <= 2 {
                    _mm_prefetch::<_MM_HINT_T0>(p.wrapping_add(32 * NR).cast());
                    _mm_prefetch::<_MM_HINT_T0>(p.wrapping_add(32 * NR + 32).cast());
                }
                let mut w = [_mm512_setzero_ps(); 4];
                for (j, w) in w.iter_mut().enumerate() {
                    let bits = _mm256_loadu_si256(p.add(16 * j).cast());
                    *w = if BF16 {
                        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits)))
                    } else {
                        _mm512_cvtph_ps(bits)
                    };
                }
                for i in 0..R {
                    let xv = _mm512_set1_ps(*x.as_ptr().add(i * k + kk));
                    for j in 0..4 {
                        acc[i][j] = _mm512_fmadd_ps(xv, w[j], acc[i][j]);
                    }
                }
            }
            for i in 0..R {
                for j in 0..4 {
                    _mm512_storeu_ps(out[i].as_mut_ptr().add(16 * j), acc[i][j]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::PackedF32;
    use crate::{noise, sizes};

    #[test]
    fn equals_the_f32_product_of_the_rounded_weights_bit_for_bit() {
        for (n, m, k) in sizes([(1, 70, 33), (3, 64, 1500), (13, 130, 17), (60, 200, 2100)]) {
            let (w, x) = (noise(m * k, 3), noise(n * k, 5));
            for kind in [HalfKind::Bf16, HalfKind::F16] {
                let rounded: Vec<f32> = w
                    .iter()
                    .map(|v| match kind {
                        HalfKind::Bf16 => bf16::from_f32(*v).to_f32(),
                        HalfKind::F16 => f16::from_f32(*v).to_f32(),
                    })
                    .collect();
                let (mut want, mut got) = (vec![f32::NAN; n * m], vec![f32::NAN; n * m]);
                PackedF32::pack(&rounded, m, k, WeightLayout::OutIn).matmul(&x, &mut want, n);
                PackedHalf::pack(&w, m, k, WeightLayout::OutIn, kind).matmul(&x, &mut got, n);
                assert_eq!(want, got, "{kind:?} {n}×{m}×{k}");
            }
        }
    }
}

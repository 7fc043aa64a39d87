//! y = x·Wᵀ with x and W rounded to bfloat16, and products and sums in f32, for frozen weights in training (mixed
//! precision, arXiv 1710.03740). AVX-512 BF16 computes two multiply-adds in place of one. A row's result does not
//! depend on the other rows of the batch, but on whether the processor has this instruction, which sums in pairs.

use std::cell::RefCell;

use half::bf16;
use half::slice::HalfFloatSliceExt;

use super::gemm::{MR, NR, Prefetch, WeightLayout, pack_into, panel_rows, with_tile};
use super::low_rank::{LowRank, LowRankUpdate};
use super::par::{SharedMut, split, split_panels};
use super::pool;
use super::product::NARROW_ROWS;
use super::simd::multiversion;
#[cfg(target_arch = "x86_64")]
use super::simd::{Isa, isa};

/// Depth of one pass, in pairs: a panel slice of 1024 × NR × 4 bytes = 256 KiB stays in the L2 cache.
const KC: usize = 1024;
/// From this number of rows on, threads divide the rows instead of the panels.
const SPLIT_ROWS: usize = 192;
/// Size of the rounded rows that are multiplied by all panels in turn: half of a typical L2 cache.
const ROUNDED_BYTES: usize = 512 << 10;

/// A weight matrix `[m, k]` as ⌈m/64⌉ panels of `[⌈k/2⌉, 64]` pairs of neighbours along k, zero-padded.
#[derive(Debug)]
pub struct PackedBf16 {
    /// Pairs of bfloat16; the value with the even index is in the low half.
    panels: Vec<u32>,
    pub m: usize,
    pub k: usize,
}

thread_local! {
    static PANEL: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Whether the processor has instructions for products of bfloat16 (AVX-512 BF16).
pub fn native() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        use std::sync::OnceLock;
        static NATIVE: OnceLock<bool> = OnceLock::new();
        *NATIVE.get_or_init(|| isa() == Isa::Avx512 && is_x86_feature_detected!("avx512bf16"))
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

impl PackedBf16 {
    /// Rounds a row-major f32 matrix in the given layout to nearest even.
    pub fn pack(w: &[f32], m: usize, k: usize, layout: WeightLayout) -> Self {
        let mut wide = Vec::new();
        pack_into(&mut wide, w, m, k, layout);
        let pairs = k.div_ceil(2);
        let n_panels = m.div_ceil(NR);
        let mut panels = vec![0u32; n_panels * pairs * NR];
        let out = SharedMut::new(&mut panels);
        split(n_panels, m * k, |range| {
            for p in range {
                // SAFETY: one panel per p.
                let panel = unsafe { out.slice(p * pairs * NR, pairs * NR) };
                for (kk, row) in wide[p * k * NR..(p + 1) * k * NR].chunks_exact(NR).enumerate() {
                    for (to, v) in panel[kk / 2 * NR..kk / 2 * NR + NR].iter_mut().zip(row) {
                        *to |= u32::from(bf16::from_f32(*v).to_bits()) << (kk % 2 * 16);
                    }
                }
            }
        });
        Self { panels, m, k }
    }

    pub fn bytes(&self) -> usize {
        self.panels.len() * size_of::<u32>()
    }

    /// y `[n, m]` = x `[n, k]` · Wᵀ, plus a low-rank term of the unrounded x. With `add`, the sums start from the
    /// contents of y.
    pub fn matmul(&self, x: &[f32], y: &mut [f32], n: usize, add: bool, low_rank: Option<LowRankUpdate<'_>>) {
        let (m, k) = (self.m, self.k);
        assert!(x.len() == n * k && y.len() == n * m, "matmul sizes");
        if k == 0 || n == 0 {
            if !add {
                y.fill(0.0);
            }
            return;
        }
        let (factors, rank, projected) = match low_rank {
            Some(LowRankUpdate { factors, projected }) => (Some(factors), factors.rank, projected),
            None => (None, 0, Default::default()),
        };
        assert_eq!(projected.len(), n * rank, "size of the down projection");
        let (y, projected) = (SharedMut::new(y), SharedMut::new(projected));
        let width = if native() { k.div_ceil(2) } else { k };
        let (tiles, panels, work) = (n.div_ceil(MR), m.div_ceil(NR), n * m * k);
        if n < SPLIT_ROWS {
            // The pool's f32 buffers hold pairs: both have 32 bits.
            let mut rounded = pool::take(n * width);
            // SAFETY: no task has started.
            let projected = unsafe { projected.slice(0, n * rank) };
            self.prepare(x, &mut rounded, factors, projected);
            split_panels(panels, tiles, work, |p, tiles| {
                self.panel(p, &rounded, y, tiles.start * MR..(tiles.end * MR).min(n), add, factors, projected);
            });
            return pool::give(rounded);
        }
        // Chunks of rows, so that their parts of x and y stay in the cache for all panels.
        let max_tiles = (ROUNDED_BYTES / size_of::<f32>() / width / MR).max(1);
        split_panels(1, tiles, work, |_, run| {
            let chunks = run.len().div_ceil(max_tiles);
            for c in 0..chunks {
                let tiles = run.start + run.len() * c / chunks..run.start + run.len() * (c + 1) / chunks;
                let rows = tiles.start * MR..(tiles.end * MR).min(n);
                // SAFETY: disjoint runs of rows.
                let (y, projected) = unsafe {
                    (y.slice(rows.start * m, rows.len() * m), projected.slice(rows.start * rank, rows.len() * rank))
                };
                let mut rounded = pool::take(rows.len() * width);
                self.prepare(&x[rows.start * k..rows.end * k], &mut rounded, factors, projected);
                let y = SharedMut::new(y);
                for p in 0..panels {
                    self.panel(p, &rounded, y, 0..rows.len(), add, factors, projected);
                }
                pool::give(rounded);
            }
        });
    }

    /// Rounds rows of x, and computes their down projections.
    fn prepare(&self, x: &[f32], rounded: &mut [f32], factors: Option<&LowRank>, projected: &mut [f32]) {
        let (k, n) = (self.k, x.len() / self.k);
        let (width, rank) = (rounded.len() / n, projected.len() / n);
        for r0 in (0..n).step_by(NARROW_ROWS) {
            let rows = r0..(r0 + NARROW_ROWS).min(n);
            let x = &x[rows.start * k..rows.end * k];
            round_rows(x, &mut rounded[rows.start * width..rows.end * width], k);
            if let Some(factors) = factors {
                factors.project(x, &mut projected[rows.start * rank..rows.end * rank]);
            }
        }
    }

    /// Multiplies `rows` of the rounded x by panel `p` into y, and adds the low-rank term of these columns.
    #[expect(clippy::too_many_arguments, reason = "a kernel's plain inputs")]
    fn panel(
        &self,
        p: usize,
        x: &[f32],
        y: SharedMut<f32>,
        rows: std::ops::Range<usize>,
        add: bool,
        factors: Option<&LowRank>,
        projected: &[f32],
    ) {
        let pairs = self.k.div_ceil(2);
        self.rows(&self.panels[p * pairs * NR..(p + 1) * pairs * NR], x, y, rows.clone(), p * NR, add);
        if let Some(factors) = factors {
            factors.add_panel(p, projected, y, rows);
        }
    }

    /// Multiplies `rows` of the rounded x by one panel into columns `c0..` of y.
    fn rows(&self, panel: &[u32], x: &[f32], y: SharedMut<f32>, rows: std::ops::Range<usize>, c0: usize, add: bool) {
        let (m, k) = (self.m, self.k);
        #[cfg(target_arch = "x86_64")]
        if native() {
            return self.native_rows(panel, x, y, rows, c0, add);
        }
        // Taken out so that a nested call on this thread (work stealing) finds a buffer of its own.
        let mut wide = PANEL.take();
        wide.resize(panel.len() * 2, 0.0);
        widen(panel, &mut wide);
        panel_rows(&wide[..k * NR], x, y, rows, c0, m, k, add);
        PANEL.set(wide);
    }

    #[cfg(target_arch = "x86_64")]
    fn native_rows(
        &self,
        panel: &[u32],
        x: &[f32],
        y: SharedMut<f32>,
        rows: std::ops::Range<usize>,
        c0: usize,
        add: bool,
    ) {
        let (m, pairs, cols) = (self.m, self.k.div_ceil(2), NR.min(self.m - c0));
        for k0 in (0..pairs).step_by(KC) {
            let depth = KC.min(pairs - k0);
            let fresh = k0 == 0 && !add;
            let slice = &panel[k0 * NR..(k0 + depth) * NR];
            for (t, r) in rows.clone().step_by(MR).enumerate() {
                let (mr, prefetch) = (MR.min(rows.end - r), Prefetch::of(t, rows.len()));
                let x = &x[r * pairs + k0..(r + mr - 1) * pairs + k0 + depth];
                // SAFETY: this task alone owns rows × columns of this panel; `native` has checked the features; x
                // holds mr rows of pairs.
                unsafe {
                    with_tile(y, r * m + c0, m, mr, cols, fresh, |to, width| {
                        avx512::tile_of(
                            mr,
                            slice.as_ptr(),
                            x.as_ptr().cast(),
                            pairs,
                            depth,
                            prefetch,
                            to,
                            width,
                            fresh,
                        );
                    });
                }
            }
        }
    }
}

/// Rounds rows of k values to pairs of bfloat16, or to f32 if the processor has no instruction for pairs.
fn round_rows(x: &[f32], to: &mut [f32], k: usize) {
    let width = to.len() / (x.len() / k);
    for (x, to) in x.chunks_exact(k).zip(to.chunks_exact_mut(width)) {
        #[cfg(target_arch = "x86_64")]
        if native() {
            // SAFETY: `native` has checked the features.
            unsafe { avx512::round(x, to) };
            continue;
        }
        let mut half = vec![bf16::ZERO; k];
        half.convert_from_f32_slice(x);
        half.convert_to_f32_slice(to);
    }
}

multiversion! {
    /// Converts a panel of pairs `[pairs, 64]` to f32 `[2·pairs, 64]`.
    fn widen(from: &[u32], to: &mut [f32]) {
        for (pair, to) in from.chunks_exact(NR).zip(to.chunks_exact_mut(2 * NR)) {
            for c in 0..NR {
                to[c] = f32::from_bits(pair[c] << 16);
                to[NR + c] = f32::from_bits(pair[c] & 0xffff_0000);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use super::super::gemm::avx512::prefetch_row;
    use super::{NR, Prefetch};

    /// Rounds a row to nearest even, as pairs; an odd last value is paired with zero.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    pub unsafe fn round(x: &[f32], to: &mut [f32]) {
        let whole = x.len() / 16 * 16;
        for at in (0..whole).step_by(16) {
            // SAFETY: reads 16 values and writes 8, within both slices.
            unsafe {
                let pairs = _mm512_cvtneps_pbh(_mm512_loadu_ps(x.as_ptr().add(at)));
                let bits: __m256i = std::mem::transmute(pairs);
                _mm256_storeu_si256(to.as_mut_ptr().add(at / 2).cast(), bits);
            }
        }
        for at in (whole..x.len()).step_by(2) {
            let bits = |i: usize| x.get(i).map_or(0, |v| u32::from(half::bf16::from_f32(*v).to_bits()));
            to[at / 2] = f32::from_bits(bits(at) | bits(at + 1) << 16);
        }
    }

    /// # Safety
    /// The processor has AVX-512 BF16; `panel` holds `depth` rows of NR, `x` `mr` rows of `depth`, `stride` apart,
    /// `out` `mr` rows of NR, `width` apart.
    #[expect(clippy::too_many_arguments, reason = "a kernel's plain inputs")]
    pub unsafe fn tile_of(
        mr: usize,
        panel: *const u32,
        x: *const i32,
        stride: usize,
        depth: usize,
        prefetch: Prefetch,
        out: *mut f32,
        width: usize,
        fresh: bool,
    ) {
        // SAFETY: as the caller's.
        unsafe {
            match mr {
                1 => tile::<1>(panel, x, stride, depth, prefetch, out, width, fresh),
                2 => tile::<2>(panel, x, stride, depth, prefetch, out, width, fresh),
                3 => tile::<3>(panel, x, stride, depth, prefetch, out, width, fresh),
                4 => tile::<4>(panel, x, stride, depth, prefetch, out, width, fresh),
                5 => tile::<5>(panel, x, stride, depth, prefetch, out, width, fresh),
                _ => tile::<6>(panel, x, stride, depth, prefetch, out, width, fresh),
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "a kernel's plain inputs")]
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn tile<const R: usize>(
        panel: *const u32,
        x: *const i32,
        stride: usize,
        depth: usize,
        prefetch: Prefetch,
        out: *mut f32,
        width: usize,
        fresh: bool,
    ) {
        // SAFETY: the caller has checked bounds.
        unsafe {
            let mut acc = [[_mm512_setzero_ps(); 4]; R];
            for i in 0..R {
                for j in 0..4 {
                    let to = out.add(i * width + 16 * j);
                    // Prefetches the output for writing.
                    _mm_prefetch::<_MM_HINT_ET0>(to.cast());
                    if !fresh {
                        acc[i][j] = _mm512_loadu_ps(to);
                    }
                }
            }
            let mut next = prefetch.first;
            for kk in 0..depth {
                let p = panel.add(kk * NR);
                if kk == next {
                    prefetch_row(p.wrapping_add(depth * NR).cast());
                    next += prefetch.every;
                }
                // No closures: they might not be compiled for these instructions.
                let w0: __m512bh = std::mem::transmute(_mm512_loadu_si512(p.cast()));
                let w1: __m512bh = std::mem::transmute(_mm512_loadu_si512(p.add(16).cast()));
                let w2: __m512bh = std::mem::transmute(_mm512_loadu_si512(p.add(32).cast()));
                let w3: __m512bh = std::mem::transmute(_mm512_loadu_si512(p.add(48).cast()));
                for i in 0..R {
                    let pair: __m512bh = std::mem::transmute(_mm512_set1_epi32(*x.add(i * stride + kk)));
                    acc[i][0] = _mm512_dpbf16_ps(acc[i][0], pair, w0);
                    acc[i][1] = _mm512_dpbf16_ps(acc[i][1], pair, w1);
                    acc[i][2] = _mm512_dpbf16_ps(acc[i][2], pair, w2);
                    acc[i][3] = _mm512_dpbf16_ps(acc[i][3], pair, w3);
                }
            }
            for i in 0..R {
                for j in 0..4 {
                    _mm512_storeu_ps(out.add(i * width + 16 * j), acc[i][j]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{noise, sizes};

    fn rounded(v: f32) -> f64 {
        bf16::from_f32(v).to_f64()
    }

    #[test]
    fn is_the_product_of_the_rounded_values_and_batch_invariant() {
        for (n, m, k) in sizes([
            (1, 1, 1),
            (1, 70, 33),
            (7, 130, 1500),
            (13, 64, 17),
            (40, 200, 4100),
            (260, 70, 40),
            (200, 64, 4100),
        ]) {
            let (w, x) = (noise(m * k, 3), noise(n * k, 5));
            let packed = PackedBf16::pack(&w, m, k, WeightLayout::OutIn);
            let mut y = vec![f32::NAN; n * m];
            packed.matmul(&x, &mut y, n, false, None);
            for r in 0..n {
                let mut alone = vec![f32::NAN; m];
                packed.matmul(&x[r * k..(r + 1) * k], &mut alone, 1, false, None);
                assert_eq!(alone, y[r * m..(r + 1) * m], "row {r} of {n}×{m}×{k}");
                for c in 0..m {
                    let products = (0..k).map(|i| rounded(x[r * k + i]) * rounded(w[c * k + i]));
                    let (want, size) = products.fold((0.0, 0.0), |(sum, size), p| (sum + p, size + p.abs()));
                    let error = (f64::from(alone[c]) - want).abs();
                    assert!(error <= 1e-6 * size + 1e-30, "({r}, {c}) of {n}×{m}×{k}: off by {error}");
                }
            }
        }
    }

    #[test]
    fn add_starts_from_the_contents_of_the_output() {
        let (n, m, k) = (9, 70, 40);
        let packed = PackedBf16::pack(&noise(m * k, 1), m, k, WeightLayout::InOut);
        let x = noise(n * k, 2);
        let (mut fresh, mut onto) = (vec![0f32; n * m], vec![0f32; n * m]);
        packed.matmul(&x, &mut fresh, n, false, None);
        packed.matmul(&x, &mut onto, n, true, None);
        assert_eq!(fresh, onto, "from zeros");
        onto.fill(1.0);
        packed.matmul(&x, &mut onto, n, true, None);
        for (a, b) in fresh.iter().zip(&onto) {
            assert!((a + 1.0 - b).abs() <= 1e-4, "{a} {b}");
        }
    }
}

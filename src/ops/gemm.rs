//! y = x·Wᵀ in f32 with weights packed into column panels, for one row (decoding) to thousands (training). Each element
//! is one chain of fused multiply-adds over k in ascending order, for any number of rows and threads and on every
//! instruction set, so results are batch-invariant.

#[cfg(target_arch = "x86_64")]
mod avx2;

use std::ops::Range;

use super::par::{SharedMut, split};
#[cfg(target_arch = "x86_64")]
use super::simd::{Isa, isa};
use super::simd::{LANES, multiversion, prefetch};

/// Output columns per panel (four AVX-512 registers).
pub const NR: usize = 64;
/// Rows per register tile: 6 × 4 accumulators fill 24 of 32 registers.
pub(super) const MR: usize = 6;
/// Depth of one pass: a panel slice of KC × NR × 4 bytes = 256 KiB stays in the L2 cache.
const KC: usize = 1024;

/// The layout of a weight before packing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightLayout {
    /// `[out, in]`, as PyTorch's `Linear`.
    OutIn,
    /// `[in, out]`, as GPT-2's `Conv1D`.
    InOut,
}

impl WeightLayout {
    /// The layout of the transposed matrix.
    pub fn flipped(self) -> Self {
        match self {
            Self::OutIn => Self::InOut,
            Self::InOut => Self::OutIn,
        }
    }
}

/// A weight matrix `[m, k]` as ⌈m/64⌉ panels of `[k, 64]`, zero-padded.
#[derive(Debug)]
pub struct PackedF32 {
    panels: Vec<f32>,
    pub m: usize,
    pub k: usize,
}

impl PackedF32 {
    /// Packs a row-major matrix: `[m, k]` for `OutIn`, `[k, m]` for `InOut`.
    pub fn pack(w: &[f32], m: usize, k: usize, layout: WeightLayout) -> Self {
        let mut panels = Vec::new();
        pack_into(&mut panels, w, m, k, layout);
        Self { panels, m, k }
    }

    pub fn bytes(&self) -> usize {
        self.panels.len() * size_of::<f32>()
    }

    /// y `[n, m]` = x `[n, k]` · Wᵀ.
    pub fn matmul(&self, x: &[f32], y: &mut [f32], n: usize) {
        matmul_packed(&self.panels, x, y, n, self.m, self.k);
    }
}

/// Packs a matrix into a reusable buffer: in training, weights change and are packed at every call.
pub fn pack_into(panels: &mut Vec<f32>, w: &[f32], m: usize, k: usize, layout: WeightLayout) {
    assert_eq!(w.len(), m * k, "weight size");
    let n_panels = m.div_ceil(NR);
    panels.clear();
    panels.reserve_exact(n_panels * k * NR);
    // SAFETY: every element is written below: valid columns from w, padding columns with zero.
    unsafe {
        panels.set_len(n_panels * k * NR);
    }
    let out = SharedMut::new(panels);
    split(n_panels, m * k, |range| {
        for p in range {
            // SAFETY: one panel per p.
            let panel = unsafe { out.slice(p * k * NR, k * NR) };
            match layout {
                WeightLayout::OutIn => pack_panel(panel, w, p * NR, m, k),
                WeightLayout::InOut => pack_panel_in_out(panel, w, p * NR, m),
            }
        }
    });
}

/// `to[c·to_width + r] = from[r·width + c]` for r < rows, c < cols.
pub(super) fn transpose_block(from: &[f32], width: usize, rows: usize, cols: usize, to: &mut [f32], to_width: usize) {
    const TILE: usize = 16;
    if rows == 0 || cols == 0 {
        return;
    }
    assert!(from.len() >= (rows - 1) * width + cols && to.len() >= (cols - 1) * to_width + rows, "block bounds");
    // 16 × 16 tiles keep both the strided reads and the writes inside the L1 cache. Later tiles are prefetched, because
    // the hardware does not follow so many rows at once.
    let ahead = if cols > TILE { 2 * TILE } else { 4 * TILE * width };
    for c0 in (0..cols).step_by(TILE) {
        for r0 in (0..rows).step_by(TILE) {
            let (high, wide) = (TILE.min(rows - r0), TILE.min(cols - c0));
            for r in r0..r0 + high {
                prefetch(from, r * width + c0 + ahead);
            }
            #[cfg(target_arch = "x86_64")]
            if high == TILE && wide == TILE && isa() == Isa::Avx512 {
                // SAFETY: `isa` has checked the features, the assertion above the bounds.
                unsafe {
                    let (from, to) = (from.as_ptr().add(r0 * width + c0), to.as_mut_ptr().add(c0 * to_width + r0));
                    avx512::transpose16(from, width, to, to_width);
                }
                continue;
            }
            for r in r0..r0 + high {
                for c in c0..c0 + wide {
                    to[c * to_width + r] = from[r * width + c];
                }
            }
        }
    }
}

pub(super) fn pack_panel(panel: &mut [f32], w: &[f32], first: usize, m: usize, k: usize) {
    let cols = NR.min(m - first);
    if cols < NR {
        panel.fill(0.0);
    }
    transpose_block(&w[first * k..], k, cols, k, panel, NR);
}

pub(super) fn pack_panel_in_out(panel: &mut [f32], w: &[f32], first: usize, m: usize) {
    let cols = NR.min(m - first);
    if cols == NR {
        return copy_columns(panel, w, first, m);
    }
    for (to, from) in panel.chunks_exact_mut(NR).zip(w.chunks_exact(m)) {
        to[..cols].copy_from_slice(&from[first..first + cols]);
        to[cols..].fill(0.0);
    }
}

multiversion! {
    /// Copies columns `first..first + 64` of w `[k, m]` to a panel. Rows are far apart in memory and prefetched.
    fn copy_columns(panel: &mut [f32], w: &[f32], first: usize, m: usize) {
        const AHEAD: usize = 12;
        for (kk, to) in panel.as_chunks_mut::<NR>().0.iter_mut().enumerate() {
            for c in 0..NR / LANES {
                prefetch(w, (kk + AHEAD) * m + first + c * LANES);
            }
            let from = &w[kk * m + first..kk * m + first + NR];
            for c in 0..NR / LANES {
                for l in 0..LANES {
                    to[c * LANES + l] = from[c * LANES + l];
                }
            }
        }
    }
}

/// Calls `work(panel, rows)` in parallel for every panel of a product `[n, k]` · `[k, m]`. With few panels rows are divided
/// too, into parts that are large enough to reuse a panel from the L2 cache.
pub(super) fn over_panels(n: usize, m: usize, k: usize, work: impl Fn(usize, Range<usize>) + Sync + Send) {
    let panels = m.div_ceil(NR);
    let rows_per_task = if panels >= 16 || n <= 4 * MR { n.max(1) } else { 32 * MR };
    let row_tasks = n.div_ceil(rows_per_task);
    split(panels * row_tasks, n * m * k, |range| {
        for task in range {
            let r0 = task % row_tasks * rows_per_task;
            work(task / row_tasks, r0..(r0 + rows_per_task).min(n));
        }
    });
}

/// y `[n, m]` = x `[n, k]` · Wᵀ for a W packed by [`pack_into`].
pub fn matmul_packed(panels: &[f32], x: &[f32], y: &mut [f32], n: usize, m: usize, k: usize) {
    assert_eq!(x.len(), n * k, "input size");
    assert_eq!(y.len(), n * m, "output size");
    let n_panels = m.div_ceil(NR);
    assert_eq!(panels.len(), n_panels * k * NR, "panel size");
    if k == 0 {
        return y.fill(0.0);
    }
    let out = SharedMut::new(y);
    over_panels(n, m, k, |panel, rows| {
        panel_rows(&panels[panel * k * NR..(panel + 1) * k * NR], x, out, rows, panel * NR, m, k, false);
    });
}

/// The rows of the next panel that a tile prefetches. With few rows of x, a panel is done before the hardware has
/// loaded the next one.
#[derive(Clone, Copy)]
pub(super) struct Prefetch {
    pub first: usize,
    pub every: usize,
}

impl Prefetch {
    /// Prefetches nothing.
    pub fn none() -> Self {
        Self { first: usize::MAX, every: 1 }
    }

    /// The rows for tile `t` of `rows` rows: all tiles together prefetch the whole panel; more than eight tiles
    /// prefetch nothing.
    pub fn of(t: usize, rows: usize) -> Self {
        let tiles = rows.div_ceil(MR);
        Self { first: if (2..=8).contains(&tiles) { t } else { usize::MAX }, every: tiles }
    }
}

/// Multiplies `rows` of x by one panel into columns `c0..` of y. With `add`, the sums start from the contents of y.
#[expect(clippy::too_many_arguments, reason = "a kernel's plain inputs")]
pub(super) fn panel_rows(
    panel: &[f32],
    x: &[f32],
    y: SharedMut<f32>,
    rows: Range<usize>,
    c0: usize,
    m: usize,
    k: usize,
    add: bool,
) {
    let cols = NR.min(m - c0);
    for k0 in (0..k).step_by(KC) {
        let depth = KC.min(k - k0);
        let fresh = k0 == 0 && !add;
        let slice = &panel[k0 * NR..(k0 + depth) * NR];
        for (t, r) in rows.clone().step_by(MR).enumerate() {
            let mr = MR.min(rows.end - r);
            let x = &x[r * k + k0..];
            let prefetch = Prefetch::of(t, rows.len());
            // SAFETY: this task alone owns rows × columns of this panel.
            unsafe {
                with_tile(y, r * m + c0, m, mr, cols, fresh, |to, width| {
                    micro(slice, x, k, mr, depth, prefetch, to, width, fresh);
                });
            }
        }
    }
}

/// Calls `f` with a pointer to `mr` rows of NR columns, and the distance between the rows: y itself from `start` on,
/// with rows `m` apart, or, for a panel of fewer columns, a temporary tile that is copied to y afterwards. With
/// `fresh`, f overwrites the tile without reading it.
///
/// # Safety
/// No other task uses these rows × columns of y during the call.
pub(super) unsafe fn with_tile(
    y: SharedMut<f32>,
    start: usize,
    m: usize,
    mr: usize,
    cols: usize,
    fresh: bool,
    f: impl FnOnce(*mut f32, usize),
) {
    if cols == NR {
        return f(y.at(start, (mr - 1) * m + NR), m);
    }
    let mut tile = [[0f32; NR]; MR];
    for (i, row) in tile.iter_mut().enumerate().take(if fresh { 0 } else { mr }) {
        // SAFETY: by the caller's contract.
        row[..cols].copy_from_slice(unsafe { y.slice(start + i * m, cols) });
    }
    f(tile.as_mut_ptr().cast(), NR);
    for (i, row) in tile.iter().enumerate().take(mr) {
        // SAFETY: by the caller's contract.
        unsafe { y.slice(start + i * m, cols) }.copy_from_slice(&row[..cols]);
    }
}

/// out[i·width + c] (+)= Σ_k x[i·stride + k] · panel[k][c], with k ascending and fused multiply-adds. With `fresh` the
/// sums start from zero.
///
/// # Safety
/// `out` points to `mr` rows of NR elements, `width` apart, that no other task uses during the call.
#[expect(clippy::too_many_arguments, reason = "a kernel's plain inputs")]
pub(super) unsafe fn micro(
    panel: &[f32],
    x: &[f32],
    stride: usize,
    mr: usize,
    depth: usize,
    prefetch: Prefetch,
    out: *mut f32,
    width: usize,
    fresh: bool,
) {
    assert!(panel.len() >= depth * NR && x.len() >= (mr - 1) * stride + depth, "tile bounds");
    #[cfg(target_arch = "x86_64")]
    // SAFETY: `isa` has checked the features, the assertion above the bounds, the caller `out`.
    unsafe {
        let (panel, x) = (panel.as_ptr(), x.as_ptr());
        match (isa(), mr) {
            (Isa::Avx512, 1) => return avx512::tile::<1>(panel, x, stride, depth, prefetch, out, width, fresh),
            (Isa::Avx512, 2) => return avx512::tile::<2>(panel, x, stride, depth, prefetch, out, width, fresh),
            (Isa::Avx512, 3) => return avx512::tile::<3>(panel, x, stride, depth, prefetch, out, width, fresh),
            (Isa::Avx512, 4) => return avx512::tile::<4>(panel, x, stride, depth, prefetch, out, width, fresh),
            (Isa::Avx512, 5) => return avx512::tile::<5>(panel, x, stride, depth, prefetch, out, width, fresh),
            (Isa::Avx512, _) => return avx512::tile::<6>(panel, x, stride, depth, prefetch, out, width, fresh),
            (Isa::Avx2, _) => return avx2::tile(panel, x, stride, mr, depth, out, width, fresh),
            (Isa::Portable, _) => {}
        }
    }
    for i in 0..mr {
        // SAFETY: one row of `out`, by the caller's contract.
        let acc = unsafe { &mut *out.add(i * width).cast::<[f32; NR]>() };
        if fresh {
            *acc = [0.0; NR];
        }
        for (xv, row) in x[i * stride..i * stride + depth].iter().zip(panel.as_chunks::<NR>().0) {
            for c in 0..NR {
                acc[c] = xv.mul_add(row[c], acc[c]);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) mod avx512 {
    use std::arch::x86_64::*;

    use super::{NR, Prefetch};

    /// Prefetches a row of a panel into the L2 cache. The address need not be valid.
    #[inline(always)]
    pub fn prefetch_row(row: *const f32) {
        // SAFETY: prefetches are hints.
        unsafe {
            _mm_prefetch::<_MM_HINT_T1>(row.cast());
            _mm_prefetch::<_MM_HINT_T1>(row.wrapping_add(16).cast());
            _mm_prefetch::<_MM_HINT_T1>(row.wrapping_add(32).cast());
            _mm_prefetch::<_MM_HINT_T1>(row.wrapping_add(48).cast());
        }
    }

    /// Transposes a 16 × 16 block in registers: neighbouring rows are interleaved in pairs and fours, then quarters are
    /// exchanged twice.
    #[target_feature(enable = "avx512f")]
    pub unsafe fn transpose16(from: *const f32, width: usize, to: *mut f32, to_width: usize) {
        // SAFETY: the caller has checked bounds: 16 rows of 16, `width` and `to_width` apart.
        unsafe {
            let mut rows = [_mm512_setzero_ps(); 16];
            for i in 0..16 {
                rows[i] = _mm512_loadu_ps(from.add(i * width));
            }
            let mut pairs = [_mm512_setzero_pd(); 16];
            for i in 0..8 {
                pairs[2 * i] = _mm512_castps_pd(_mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]));
                pairs[2 * i + 1] = _mm512_castps_pd(_mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]));
            }
            // fours[4·b + j]: in quarter q, entries 4q + j of rows 4b..4b + 4.
            let mut fours = [_mm512_setzero_ps(); 16];
            for b in 0..4 {
                for h in 0..2 {
                    let (low, high) = (pairs[4 * b + h], pairs[4 * b + 2 + h]);
                    fours[4 * b + 2 * h] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
                    fours[4 * b + 2 * h + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
                }
            }
            for j in 0..4 {
                // Even and odd quarters of rows 0..8 and of rows 8..16. No closures: they might not be
                // compiled for these instructions.
                let (a, b, c, d) = (fours[j], fours[4 + j], fours[8 + j], fours[12 + j]);
                let even = _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b);
                let even_below = _mm512_shuffle_f32x4::<0b10_00_10_00>(c, d);
                let odd = _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b);
                let odd_below = _mm512_shuffle_f32x4::<0b11_01_11_01>(c, d);
                let [first, second, third, fourth] =
                    [j * to_width, (4 + j) * to_width, (8 + j) * to_width, (12 + j) * to_width];
                _mm512_storeu_ps(to.add(first), _mm512_shuffle_f32x4::<0b10_00_10_00>(even, even_below));
                _mm512_storeu_ps(to.add(second), _mm512_shuffle_f32x4::<0b10_00_10_00>(odd, odd_below));
                _mm512_storeu_ps(to.add(third), _mm512_shuffle_f32x4::<0b11_01_11_01>(even, even_below));
                _mm512_storeu_ps(to.add(fourth), _mm512_shuffle_f32x4::<0b11_01_11_01>(odd, odd_below));
            }
        }
    }

    #[target_feature(enable = "avx512f")]
    #[expect(clippy::too_many_arguments, reason = "a kernel's plain inputs")]
    pub unsafe fn tile<const R: usize>(
        panel: *const f32,
        x: *const f32,
        stride: usize,
        depth: usize,
        prefetch: Prefetch,
        out: *mut f32,
        width: usize,
        fresh: bool,
    ) {
        // SAFETY: the caller has checked bounds of panel (depth × NR), x (R rows of `stride`) and out (of `width`).
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
                // Weights are read from memory once per token: prefetch further than the hardware does.
                if R <= 2 {
                    _mm_prefetch::<_MM_HINT_T0>(p.add(16 * NR).cast());
                    _mm_prefetch::<_MM_HINT_T0>(p.add(16 * NR + 16).cast());
                    _mm_prefetch::<_MM_HINT_T0>(p.add(16 * NR + 32).cast());
                    _mm_prefetch::<_MM_HINT_T0>(p.add(16 * NR + 48).cast());
                }
                let w0 = _mm512_loadu_ps(p);
                let w1 = _mm512_loadu_ps(p.add(16));
                let w2 = _mm512_loadu_ps(p.add(32));
                let w3 = _mm512_loadu_ps(p.add(48));
                for i in 0..R {
                    let xv = _mm512_set1_ps(*x.add(i * stride + kk));
                    acc[i][0] = _mm512_fmadd_ps(xv, w0, acc[i][0]);
                    acc[i][1] = _mm512_fmadd_ps(xv, w1, acc[i][1]);
                    acc[i][2] = _mm512_fmadd_ps(xv, w2, acc[i][2]);
                    acc[i][3] = _mm512_fmadd_ps(xv, w3, acc[i][3]);
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

    #[test]
    fn blocks_of_any_size_and_stride_are_transposed() {
        for (rows, cols, width, to_width) in [(16, 16, 16, 16), (40, 33, 50, 64), (3, 70, 70, 5), (64, 48, 48, 64)] {
            let from = noise(rows * width, 3);
            let mut to = vec![7f32; cols * to_width];
            transpose_block(&from, width, rows, cols, &mut to, to_width);
            for c in 0..cols {
                for r in 0..to_width {
                    let want = if r < rows { from[r * width + c] } else { 7.0 };
                    assert_eq!(to[c * to_width + r], want, "row {r}, column {c} of {rows}×{cols}");
                }
            }
        }
    }

    #[test]
    fn every_element_is_the_chain_of_fused_multiply_adds_in_any_batch() {
        for (n, m, k) in sizes([(1, 1, 1), (1, 70, 33), (7, 130, 1500), (13, 64, 17), (40, 200, 2100)]) {
            let (w, x) = (noise(m * k, 3), noise(n * k, 5));
            let packed = PackedF32::pack(&w, m, k, WeightLayout::OutIn);
            let mut y = vec![f32::NAN; n * m];
            packed.matmul(&x, &mut y, n);
            for r in 0..n {
                let mut alone = vec![f32::NAN; m];
                packed.matmul(&x[r * k..(r + 1) * k], &mut alone, 1);
                assert_eq!(alone, y[r * m..(r + 1) * m], "row {r} of {n}×{m}×{k}");
                for c in [0, m / 2, m - 1] {
                    let chain = (0..k).fold(0f32, |a, i| x[r * k + i].mul_add(w[c * k + i], a));
                    assert_eq!(chain, alone[c]);
                }
            }
        }
    }
}

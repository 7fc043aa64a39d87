//! Matrix products of training: many rows, and operands that change at every step. Each task packs the panels that it
//! uses into a buffer in its cache, so packed panels are not written to memory. Elements are the chains of `gemm`:
//! fused multiply-adds in ascending depth.

use std::cell::RefCell;

use super::gemm::{MR, NR, WeightLayout, pack_panel, pack_panel_in_out, panel_rows, transpose_block};
use super::par::{SharedMut, split, split_panels};
use super::pool;
use super::simd::{LANES, multiversion, prefetch};

thread_local! {
    static PANEL: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Sizes of one product: `n` rows, `m` columns, depth `k`.
#[derive(Clone, Copy, Debug)]
pub struct Dims {
    pub n: usize,
    pub m: usize,
    pub k: usize,
}

/// out `[n, m]` = a `[n, k]` · bᵀ for b `[m, k]` (`OutIn`), or a · b for b `[k, m]` (`InOut`). With `add` the sums
/// start from the contents of `out`.
pub fn product(a: &[f32], b: &[f32], layout: WeightLayout, out: &mut [f32], dims: Dims, add: bool) {
    let Dims { n, m, k } = dims;
    assert!(a.len() == n * k && b.len() == m * k && out.len() == n * m, "product sizes");
    if k == 0 {
        if !add {
            out.fill(0.0);
        }
        return;
    }
    if m <= 2 * LANES {
        return narrow(a, b, layout, out, dims, add);
    }
    if k <= 2 * LANES {
        return shallow(a, b, layout, out, dims, add);
    }
    if n <= THIN_ROWS && layout == WeightLayout::InOut {
        return thin(a, b, out, dims, add);
    }
    let shared = SharedMut::new(out);
    split_panels(m.div_ceil(NR), n.div_ceil(MR), n * m * k, |p, tiles| {
        // Taken out so that a nested product on this thread (work stealing) finds a buffer of its own.
        let mut panel = PANEL.take();
        panel.resize(k * NR, 0.0);
        match layout {
            WeightLayout::OutIn => pack_panel(&mut panel, b, p * NR, m, k),
            WeightLayout::InOut => pack_panel_in_out(&mut panel, b, p * NR, m),
        }
        panel_rows(&panel, a, shared, tiles.start * MR..(tiles.end * MR).min(n), p * NR, m, k, add);
        PANEL.set(panel);
    });
}

/// The product for few columns (adapters), with panels of one vector instead of four, to avoid padding.
fn narrow(a: &[f32], b: &[f32], layout: WeightLayout, out: &mut [f32], dims: Dims, add: bool) {
    let Dims { n, m, k } = dims;
    for c0 in (0..m).step_by(LANES) {
        let panel = narrow_panel(b, layout, m, k, c0);
        let shared = SharedMut::new(out);
        split(n.div_ceil(NARROW_ROWS), n * LANES.min(m - c0) * k, |tiles| {
            let (r0, r1) = (tiles.start * NARROW_ROWS, (tiles.end * NARROW_ROWS).min(n));
            // SAFETY: disjoint tiles of rows.
            let rows = unsafe { shared.slice(r0 * m, (r1 - r0) * m) };
            narrow_rows(&a[r0 * k..r1 * k], &panel, rows, m, c0, k, add);
        });
    }
}

/// Rows `c0..c0 + 16` of b `[m, k]` (`OutIn`), or columns of b `[k, m]` (`InOut`), as a panel `[k, 16]`, zero-padded.
pub(super) fn narrow_panel(b: &[f32], layout: WeightLayout, m: usize, k: usize, c0: usize) -> Vec<f32> {
    let mut panel = vec![0f32; k * LANES];
    let cols = LANES.min(m - c0);
    match layout {
        WeightLayout::OutIn => transpose_block(&b[c0 * k..], k, cols, k, &mut panel, LANES),
        WeightLayout::InOut => {
            for (to, from) in panel.chunks_exact_mut(LANES).zip(b.chunks_exact(m)) {
                to[..cols].copy_from_slice(&from[c0..c0 + cols]);
            }
        }
    }
    panel
}

/// Number of rows that `narrow_rows` computes together.
pub(super) const NARROW_ROWS: usize = 12;

multiversion! {
    /// Multiplies the rows of a `[·, k]` by one panel `[k, 16]` into columns `c0..` of out `[·, m]`.
    pub(super) fn narrow_rows(a: &[f32], panel: &[f32], out: &mut [f32], m: usize, c0: usize, k: usize, add: bool) {
        let (panel, rows, mut r) = (panel.as_chunks::<LANES>().0, a.len() / k, 0);
        while r < rows {
            let (a, out) = (&a[r * k..], &mut out[r * m..]);
            // At least four independent chains hide the latency of additions.
            r += match rows - r {
                NARROW_ROWS.. => narrow_tile::<NARROW_ROWS>(a, panel, out, m, c0, k, add),
                8.. => narrow_tile::<8>(a, panel, out, m, c0, k, add),
                4.. => narrow_tile::<4>(a, panel, out, m, c0, k, add),
                _ => narrow_tile::<1>(a, panel, out, m, c0, k, add),
            };
        }
    }
}

/// Computes R rows of `narrow_rows`. Returns R.
#[inline(always)]
fn narrow_tile<const R: usize>(
    a: &[f32],
    panel: &[[f32; LANES]],
    out: &mut [f32],
    m: usize,
    c0: usize,
    k: usize,
    add: bool,
) -> usize {
    let cols = LANES.min(m - c0);
    let mut acc = [[0f32; LANES]; R];
    if add {
        for r in 0..R {
            acc[r][..cols].copy_from_slice(&out[r * m + c0..r * m + c0 + cols]);
        }
    }
    let a = &a[..R * k];
    for kk in 0..k {
        let w = &panel[kk];
        for r in 0..R {
            let x = a[r * k + kk];
            for l in 0..LANES {
                acc[r][l] = x.mul_add(w[l], acc[r][l]);
            }
        }
    }
    for r in 0..R {
        out[r * m + c0..r * m + c0 + cols].copy_from_slice(&acc[r][..cols]);
    }
    R
}

/// Up to this number of rows b is read without packing, which would cost more than it saves.
const THIN_ROWS: usize = 8;
const THIN_COLUMNS: usize = 2 * LANES;

/// Depth of one pass: the number of rows of b that are read in parallel.
const THIN_DEPTH: usize = 32;

/// The product for few rows (gradients of adapters): a `[n, k]` · b `[k, m]`.
fn thin(a: &[f32], b: &[f32], out: &mut [f32], dims: Dims, add: bool) {
    let Dims { n, m, k } = dims;
    let shared = SharedMut::new(out);
    split(m.div_ceil(THIN_COLUMNS), n * m * k, |strips| {
        for k0 in (0..k).step_by(THIN_DEPTH) {
            for c0 in strips.clone().map(|s| s * THIN_COLUMNS) {
                thin_strip(a, b, shared, dims, c0, k0, add || k0 > 0);
            }
        }
    });
}

multiversion! {
    /// Columns `c0..c0 + 32` of `thin`, at depth `k0..k0 + 32`.
    fn thin_strip(a: &[f32], b: &[f32], out: SharedMut<f32>, dims: Dims, c0: usize, k0: usize, add: bool) {
        let Dims { n, m, k } = dims;
        let (cols, depth) = (THIN_COLUMNS.min(m - c0), k0..(k0 + THIN_DEPTH).min(k));
        let mut acc = [[[0f32; LANES]; 2]; THIN_ROWS];
        for (r, acc) in acc.iter_mut().enumerate().take(if add { n } else { 0 }) {
            // SAFETY: one strip of columns per task.
            acc.as_flattened_mut()[..cols].copy_from_slice(unsafe { out.slice(r * m + c0, cols) });
        }
        if cols == THIN_COLUMNS && n == THIN_ROWS {
            for kk in depth {
                prefetch(b, (kk + THIN_DEPTH) * m + c0);
                prefetch(b, (kk + THIN_DEPTH) * m + c0 + LANES);
                let (row, _) = b[kk * m + c0..kk * m + c0 + THIN_COLUMNS].as_chunks::<LANES>();
                for r in 0..THIN_ROWS {
                    let x = a[r * k + kk];
                    for l in 0..LANES {
                        acc[r][0][l] = x.mul_add(row[0][l], acc[r][0][l]);
                        acc[r][1][l] = x.mul_add(row[1][l], acc[r][1][l]);
                    }
                }
            }
        } else {
            for (r, acc) in acc.iter_mut().enumerate().take(n) {
                let acc = acc.as_flattened_mut();
                for kk in depth.clone() {
                    let (x, row) = (a[r * k + kk], &b[kk * m + c0..kk * m + c0 + cols]);
                    for (sum, w) in acc.iter_mut().zip(row) {
                        *sum = x.mul_add(*w, *sum);
                    }
                }
            }
        }
        for (r, acc) in acc.iter().enumerate().take(n) {
            // SAFETY: one strip of columns per task.
            unsafe { out.slice(r * m + c0, cols) }.copy_from_slice(&acc.as_flattened()[..cols]);
        }
    }
}

/// The product for small depth (adapters): one pass over the rows of the output.
fn shallow(a: &[f32], b: &[f32], layout: WeightLayout, out: &mut [f32], dims: Dims, add: bool) {
    let Dims { n, m, k } = dims;
    let mut turned = Vec::new();
    let b = match layout {
        WeightLayout::InOut => b,
        WeightLayout::OutIn => {
            turned.resize(m * k, 0.0);
            transpose(b, m, k, 0, k, &mut turned);
            &turned
        }
    };
    let shared = SharedMut::new(out);
    split(n, n * m * k, |rows| {
        // SAFETY: disjoint ranges of rows.
        let out = unsafe { shared.slice(rows.start * m, rows.len() * m) };
        shallow_rows(&a[rows.start * k..rows.end * k], b, out, m, k, add);
    });
}

multiversion! {
    /// out `[rows, m]` = a `[rows, k]` · b `[k, m]`.
    fn shallow_rows(a: &[f32], b: &[f32], out: &mut [f32], m: usize, k: usize, add: bool) {
        const WIDE: usize = 4 * LANES;
        for (a, out) in a.chunks_exact(k).zip(out.chunks_exact_mut(m)) {
            let mut c0 = 0;
            while c0 + WIDE <= m {
                let (to, _) = out[c0..c0 + WIDE].as_chunks_mut::<LANES>();
                let mut acc = [[0f32; LANES]; WIDE / LANES];
                if add {
                    acc = [to[0], to[1], to[2], to[3]];
                }
                for (kk, x) in a.iter().enumerate() {
                    let (row, _) = b[kk * m + c0..kk * m + c0 + WIDE].as_chunks::<LANES>();
                    for v in 0..WIDE / LANES {
                        for l in 0..LANES {
                            acc[v][l] = x.mul_add(row[v][l], acc[v][l]);
                        }
                    }
                }
                to.copy_from_slice(&acc);
                c0 += WIDE;
            }
            for c in c0..m {
                let start = if add { out[c] } else { 0.0 };
                out[c] = a.iter().enumerate().fold(start, |sum, (kk, x)| x.mul_add(b[kk * m + c], sum));
            }
        }
    }
}

/// Number of columns of `a` that are transposed at a time. Bounds the scratch memory for the gradient of an output
/// matrix.
const STRIP: usize = 2048;

/// out `[m, k]` (+)= aᵀ·b for a `[n, m]` and b `[n, k]`: the gradient of a weight. The sums run over the n rows in
/// order, so adding one micro-batch after the other gives the bits of one large batch.
pub fn product_transposed(a: &[f32], b: &[f32], out: &mut [f32], dims: Dims, add: bool) {
    let Dims { n, m, k } = dims;
    assert!(a.len() == n * m && b.len() == n * k && out.len() == m * k, "product sizes");
    if k <= 2 * LANES && m > k {
        // With few columns, the transposed product avoids a transposed copy of the large `a`.
        let mut turned = vec![0f32; m * k];
        if add {
            transpose(out, m, k, 0, k, &mut turned);
        }
        product_transposed(b, a, &mut turned, Dims { n, m: k, k: m }, add);
        return transpose(&turned, k, m, 0, m, out);
    }
    let mut strip = pool::take(n * STRIP.min(m));
    for c0 in (0..m).step_by(STRIP) {
        let cols = STRIP.min(m - c0);
        transpose(a, n, m, c0, cols, &mut strip[..n * cols]);
        let dims = Dims { n: cols, m: k, k: n };
        product(&strip[..n * cols], b, WeightLayout::InOut, &mut out[c0 * k..(c0 + cols) * k], dims, add);
    }
    pool::give(strip);
}

/// Writes columns `c0..c0 + cols` of x `[rows, width]` as rows of y `[cols, rows]`.
fn transpose(x: &[f32], rows: usize, width: usize, c0: usize, cols: usize, y: &mut [f32]) {
    const TILE: usize = 16;
    if rows == 0 {
        return;
    }
    let out = SharedMut::new(y);
    split(cols.div_ceil(TILE), rows * cols, |blocks| {
        for b in blocks {
            let (c, n) = (b * TILE, TILE.min(cols - b * TILE));
            // SAFETY: one block of output rows per b.
            let y = unsafe { out.slice(c * rows, n * rows) };
            transpose_block(&x[c0 + c..], width, rows, n, y, rows);
        }
    });
}

/// out `[m]` (+)= column sums of x `[n, m]`, in row order.
pub fn column_sums(x: &[f32], out: &mut [f32], add: bool) {
    if !add {
        out.fill(0.0);
    }
    for row in x.chunks_exact(out.len()) {
        for (o, v) in out.iter_mut().zip(row) {
            *o += v;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::PackedF32;
    use crate::{noise, sizes};

    #[test]
    fn products_have_the_bits_of_products_with_packed_weights() {
        let all = [(1, 3, 5), (70, 130, 33), (200, 64, 1100), (13, 200, 17), (50, 8, 90), (7, 20, 40), (9, 150, 8)];
        for (n, m, k) in sizes(all) {
            let (x, w) = (noise(n * k, 1), noise(m * k, 2));
            let mut want = vec![0f32; n * m];
            PackedF32::pack(&w, m, k, WeightLayout::OutIn).matmul(&x, &mut want, n);
            let mut y = vec![f32::NAN; n * m];
            product(&x, &w, WeightLayout::OutIn, &mut y, Dims { n, m, k }, false);
            assert_eq!(y, want, "{n}×{m}×{k}");
            let mut wt = vec![0f32; m * k];
            transpose(&w, m, k, 0, k, &mut wt);
            y.fill(f32::NAN);
            product(&x, &wt, WeightLayout::InOut, &mut y, Dims { n, m, k }, false);
            assert_eq!(y, want, "{n}×{m}×{k}");
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "seven million products")]
    fn a_weight_gradient_in_two_parts_has_the_bits_of_the_whole() {
        let (n, m, k) = (45, 2100, 70);
        let (gy, x) = (noise(n * m, 3), noise(n * k, 4));
        let (mut whole, mut parts) = (vec![f32::NAN; m * k], vec![f32::NAN; m * k]);
        product_transposed(&gy, &x, &mut whole, Dims { n, m, k }, false);
        let cut = 19;
        product_transposed(&gy[..cut * m], &x[..cut * k], &mut parts, Dims { n: cut, m, k }, false);
        product_transposed(&gy[cut * m..], &x[cut * k..], &mut parts, Dims { n: n - cut, m, k }, true);
        assert_eq!(whole, parts);
        let chain = (0..n).fold(0f32, |sum, i| gy[i * m + 7].mul_add(x[i * k + 3], sum));
        assert_eq!(chain, whole[7 * k + 3]);
        // An adapter's gradient: few columns.
        let k = 8;
        let (x, mut narrow) = (&x[..n * k], vec![f32::NAN; m * k]);
        product_transposed(&gy[..cut * m], &x[..cut * k], &mut narrow, Dims { n: cut, m, k }, false);
        product_transposed(&gy[cut * m..], &x[cut * k..], &mut narrow, Dims { n: n - cut, m, k }, true);
        let chain = (0..n).fold(0f32, |sum, i| gy[i * m + 7].mul_add(x[i * k + 3], sum));
        assert_eq!(chain, narrow[7 * k + 3]);
    }
}

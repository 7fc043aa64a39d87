//! The low-rank term beside a matrix: y += scale·(x·Aᵀ)·Bᵀ in f32 (LoRA, arXiv 2106.09685, section 4.1), fused into the
//! product with the matrix, while the rows of x and y are in the cache. Elements are the chains of `gemm`.

use super::gemm::{NR, WeightLayout, pack_into, panel_rows};
use super::par::{SharedMut, split};
use super::product::{NARROW_ROWS, narrow_panel, narrow_rows};
use super::simd::LANES;

/// Both factors in the panels that kernels read.
#[derive(Debug)]
pub struct LowRank {
    /// A [rank, k] as panels [k, 16].
    down: Vec<f32>,
    /// B [m, rank] as panels [rank, 64].
    up: Vec<f32>,
    pub rank: usize,
    k: usize,
    m: usize,
    scale: f32,
}

/// A term and where its inner values scale·x·Aᵀ go, [n, rank].
pub struct Beside<'a> {
    pub term: &'a LowRank,
    pub inner: &'a mut [f32],
}

impl LowRank {
    /// `a` [rank, k] and `b` [m, rank] for `OutIn`; for `InOut` both are given transposed: what gradients of the
    /// input pass through is the term (Bᵀ, Aᵀ).
    pub fn new(a: &[f32], b: &[f32], layout: WeightLayout, rank: usize, scale: f32) -> Self {
        assert!(rank > 0 && a.len().is_multiple_of(rank) && b.len().is_multiple_of(rank), "factors of one rank");
        let (k, m) = (a.len() / rank, b.len() / rank);
        let down = (0..rank).step_by(LANES).flat_map(|c0| narrow_panel(a, layout, rank, k, c0)).collect();
        let mut up = Vec::new();
        pack_into(&mut up, b, m, rank, layout);
        Self { down, up, rank, k, m, scale }
    }

    /// inner = scale · x·Aᵀ for the rows of x.
    pub fn inner(&self, x: &[f32], inner: &mut [f32]) {
        for (p, panel) in self.down.chunks_exact(self.k * LANES).enumerate() {
            narrow_rows(x, panel, inner, self.rank, p * LANES, self.k, false);
        }
        inner.iter_mut().for_each(|v| *v *= self.scale);
    }

    /// Columns 64·p… of `rows` of y [·, m] += inner [·, rank] · Bᵀ.
    pub(super) fn add_panel(&self, p: usize, inner: &[f32], y: SharedMut<f32>, rows: std::ops::Range<usize>) {
        let panel = &self.up[p * self.rank * NR..(p + 1) * self.rank * NR];
        panel_rows(panel, inner, y, rows, p * NR, self.m, self.rank, true);
    }
}

impl Beside<'_> {
    /// The whole term, for a y that the matrix has written already.
    pub fn add(self, x: &[f32], y: &mut [f32], n: usize) {
        let Self { term, inner } = self;
        let (k, m, rank) = (term.k, term.m, term.rank);
        assert!(x.len() == n * k && y.len() == n * m && inner.len() == n * rank, "sizes of the low-rank term");
        let (y, inner) = (SharedMut::new(y), SharedMut::new(inner));
        split(n.div_ceil(NARROW_ROWS), n * (k + m) * rank, |tiles| {
            for t in tiles {
                let rows = t * NARROW_ROWS..((t + 1) * NARROW_ROWS).min(n);
                // SAFETY: one tile of rows per t.
                let (inner, y) = unsafe {
                    (inner.slice(rows.start * rank, rows.len() * rank), y.slice(rows.start * m, rows.len() * m))
                };
                term.inner(&x[rows.start * k..rows.end * k], inner);
                for p in 0..m.div_ceil(NR) {
                    term.add_panel(p, inner, SharedMut::new(y), 0..rows.len());
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bf16::PackedBf16;
    use crate::noise;
    use crate::product::{Dims, product};

    /// The term by the products it is made of.
    fn composed(x: &[f32], a: &[f32], b: &[f32], y: &mut [f32], n: usize, rank: usize, scale: f32) -> Vec<f32> {
        let (k, m) = (a.len() / rank, b.len() / rank);
        let mut inner = vec![0f32; n * rank];
        product(x, a, WeightLayout::OutIn, &mut inner, Dims { n, m: rank, k }, false);
        inner.iter_mut().for_each(|v| *v *= scale);
        product(&inner, b, WeightLayout::OutIn, y, Dims { n, m, k: rank }, true);
        inner
    }

    #[test]
    fn is_the_same_to_the_bit_with_the_matrix_or_after_it() {
        for (n, m, k, rank) in [(1, 70, 33, 8), (16, 200, 96, 4), (29, 64, 130, 20), (700, 130, 70, 8)] {
            let (w, x) = (noise(m * k, 1), noise(n * k, 2));
            let (a, b) = (noise(rank * k, 3), noise(m * rank, 4));
            let packed = PackedBf16::pack(&w, m, k, WeightLayout::OutIn);
            let mut want = vec![f32::NAN; n * m];
            packed.matmul(&x, &mut want, n, false, None);
            let mut apart = want.clone();
            let want_inner = composed(&x, &a, &b, &mut want, n, rank, 2.0);

            let term = LowRank::new(&a, &b, WeightLayout::OutIn, rank, 2.0);
            let mut inner = vec![f32::NAN; n * rank];
            Beside { term: &term, inner: &mut inner }.add(&x, &mut apart, n);
            assert_eq!((&apart, &inner), (&want, &want_inner), "after: {n}×{m}×{k}, rank {rank}");

            let (mut y, mut inner) = (vec![f32::NAN; n * m], vec![f32::NAN; n * rank]);
            packed.matmul(&x, &mut y, n, false, Some(Beside { term: &term, inner: &mut inner }));
            assert_eq!((&y, &inner), (&want, &want_inner), "with: {n}×{m}×{k}, rank {rank}");
        }
    }

    #[test]
    fn factors_may_come_transposed() {
        let (n, m, k, rank) = (13, 70, 40, 5);
        let (x, a, b) = (noise(n * k, 1), noise(rank * k, 2), noise(m * rank, 3));
        let turned = |t: &[f32], rows: usize, cols: usize| -> Vec<f32> {
            (0..cols).flat_map(|c| (0..rows).map(move |r| t[r * cols + c])).collect()
        };
        let results = [
            LowRank::new(&a, &b, WeightLayout::OutIn, rank, 1.0),
            LowRank::new(&turned(&a, rank, k), &turned(&b, m, rank), WeightLayout::InOut, rank, 1.0),
        ]
        .map(|term| {
            let (mut y, mut inner) = (vec![0f32; n * m], vec![f32::NAN; n * rank]);
            Beside { term: &term, inner: &mut inner }.add(&x, &mut y, n);
            (y, inner)
        });
        assert_eq!(results[0], results[1]);
        assert!(results[0].0.iter().any(|v| *v != 0.0));
    }
}

//! The low-rank term of LoRA (arXiv 2106.09685, equation 3): y += scale·(x·Aᵀ)·Bᵀ in f32. It is added as part of the
//! product with the base matrix, while the rows of x and y are in the processor's cache. Every element is a chain of
//! fused multiply-adds as in `gemm`.

use super::gemm::{NR, WeightLayout, pack_into, panel_rows};
use super::par::{SharedMut, split};
use super::product::{NARROW_ROWS, narrow_panel, narrow_rows};
use super::simd::LANES;

/// Both factors, packed into panels.
#[derive(Debug)]
pub struct LowRank {
    /// A `[rank, k]` as panels `[k, 16]`.
    down: Vec<f32>,
    /// B `[m, rank]` as panels `[rank, 64]`.
    up: Vec<f32>,
    pub rank: usize,
    k: usize,
    m: usize,
    scale: f32,
}

/// A low-rank term to be added to a product, and the buffer for its down projection.
pub struct LowRankUpdate<'a> {
    pub factors: &'a LowRank,
    /// Receives scale·x·Aᵀ, `[n, rank]`.
    pub projected: &'a mut [f32],
}

impl LowRank {
    /// Packs `a` `[rank, k]` and `b` `[m, rank]`; with `InOut` both are passed transposed. The gradient of the input is
    /// the term with the factors (Bᵀ, Aᵀ).
    pub fn new(a: &[f32], b: &[f32], layout: WeightLayout, rank: usize, scale: f32) -> Self {
        assert!(rank > 0 && a.len().is_multiple_of(rank) && b.len().is_multiple_of(rank), "sizes of the factors");
        let (k, m) = (a.len() / rank, b.len() / rank);
        let down = (0..rank).step_by(LANES).flat_map(|c0| narrow_panel(a, layout, rank, k, c0)).collect();
        let mut up = Vec::new();
        pack_into(&mut up, b, m, rank, layout);
        Self { down, up, rank, k, m, scale }
    }

    /// Writes scale·x·Aᵀ `[n, rank]` to `projected`, for x `[n, k]`.
    pub fn project(&self, x: &[f32], projected: &mut [f32]) {
        for (p, panel) in self.down.chunks_exact(self.k * LANES).enumerate() {
            narrow_rows(x, panel, projected, self.rank, p * LANES, self.k, false);
        }
        projected.iter_mut().for_each(|v| *v *= self.scale);
    }

    /// Adds projected `[·, rank]` · Bᵀ to the columns of panel `p` (64·p…) of `rows` of y `[·, m]`.
    pub(super) fn add_panel(&self, p: usize, projected: &[f32], y: SharedMut<f32>, rows: std::ops::Range<usize>) {
        let panel = &self.up[p * self.rank * NR..(p + 1) * self.rank * NR];
        panel_rows(panel, projected, y, rows, p * NR, self.m, self.rank, true);
    }
}

impl LowRankUpdate<'_> {
    /// Adds the whole term of x `[n, k]` to y `[n, m]`.
    pub fn add(self, x: &[f32], y: &mut [f32], n: usize) {
        let Self { factors, projected } = self;
        let (k, m, rank) = (factors.k, factors.m, factors.rank);
        assert!(x.len() == n * k && y.len() == n * m && projected.len() == n * rank, "sizes of the low-rank term");
        let (y, projected) = (SharedMut::new(y), SharedMut::new(projected));
        split(n.div_ceil(NARROW_ROWS), n * (k + m) * rank, |tiles| {
            for t in tiles {
                let rows = t * NARROW_ROWS..((t + 1) * NARROW_ROWS).min(n);
                // SAFETY: one tile of rows per t.
                let (projected, y) = unsafe {
                    (projected.slice(rows.start * rank, rows.len() * rank), y.slice(rows.start * m, rows.len() * m))
                };
                factors.project(&x[rows.start * k..rows.end * k], projected);
                for p in 0..m.div_ceil(NR) {
                    factors.add_panel(p, projected, SharedMut::new(y), 0..rows.len());
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bf16::PackedBf16;
    use crate::product::{Dims, product};
    use crate::{noise, sizes};

    /// The term as two products. Returns the down projection.
    fn composed(x: &[f32], a: &[f32], b: &[f32], y: &mut [f32], n: usize, rank: usize, scale: f32) -> Vec<f32> {
        let (k, m) = (a.len() / rank, b.len() / rank);
        let mut projected = vec![0f32; n * rank];
        product(x, a, WeightLayout::OutIn, &mut projected, Dims { n, m: rank, k }, false);
        projected.iter_mut().for_each(|v| *v *= scale);
        product(&projected, b, WeightLayout::OutIn, y, Dims { n, m, k: rank }, true);
        projected
    }

    #[test]
    fn the_fused_term_has_the_bits_of_separate_products() {
        for (n, m, k, rank) in [(1, 70, 33, 8), (16, 200, 96, 4), (29, 64, 130, 20), (700, 130, 70, 8)] {
            if sizes([(n, m, k)]).next().is_none() {
                continue;
            }
            let (w, x) = (noise(m * k, 1), noise(n * k, 2));
            let (a, b) = (noise(rank * k, 3), noise(m * rank, 4));
            let packed = PackedBf16::pack(&w, m, k, WeightLayout::OutIn);
            let mut want = vec![f32::NAN; n * m];
            packed.matmul(&x, &mut want, n, false, None);
            let mut apart = want.clone();
            let want_projected = composed(&x, &a, &b, &mut want, n, rank, 2.0);

            let term = LowRank::new(&a, &b, WeightLayout::OutIn, rank, 2.0);
            let mut projected = vec![f32::NAN; n * rank];
            LowRankUpdate { factors: &term, projected: &mut projected }.add(&x, &mut apart, n);
            assert_eq!((&apart, &projected), (&want, &want_projected), "after: {n}×{m}×{k}, rank {rank}");

            let (mut y, mut projected) = (vec![f32::NAN; n * m], vec![f32::NAN; n * rank]);
            packed.matmul(&x, &mut y, n, false, Some(LowRankUpdate { factors: &term, projected: &mut projected }));
            assert_eq!((&y, &projected), (&want, &want_projected), "with: {n}×{m}×{k}, rank {rank}");
        }
    }

    #[test]
    fn transposed_factors_give_the_same_term() {
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
            let (mut y, mut projected) = (vec![0f32; n * m], vec![f32::NAN; n * rank]);
            LowRankUpdate { factors: &term, projected: &mut projected }.add(&x, &mut y, n);
            (y, projected)
        });
        assert_eq!(results[0], results[1]);
        assert!(results[0].0.iter().any(|v| *v != 0.0));
    }
}

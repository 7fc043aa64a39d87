//! Activations quantised to 8 bits, for products with quantised weights: blocks of 32 along k, with one f32 scale each.
//! Each row is quantised separately, so its result is batch-invariant.

use super::par::{SharedMut, split};
use super::simd::multiversion;

/// Number of values with a common scale, in weights and activations (GGUF's Q8_0, Q4_0 and Q4_1).
pub const BLOCK: usize = 32;
/// Outputs per weight panel: one 512-bit register of i32 sums.
pub(super) const PANEL: usize = 16;
/// Number of values along k per lane and dot-product instruction.
pub(super) const GROUP: usize = 4;
/// Maximum number of batch rows per pass over a panel.
pub(super) const MAX_R: usize = 8;

/// The results of a kernel for one panel and up to `MAX_R` rows.
pub(super) type Tile = [[f32; PANEL]; MAX_R];

/// 64 weights of one panel, 16 outputs × 4 k values: one register.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct Line(pub [u8; 64]);

/// Quantised activations `[n, k]`.
pub(super) struct Activations {
    /// `[n, blocks · 32]`, zero past k.
    pub q: Vec<i8>,
    /// `[n, blocks]`.
    pub scales: Vec<f32>,
    /// Σ q of each block, `[n, blocks]`: the factor of an offset or minimum of the weights.
    pub sums: Vec<i32>,
    pub blocks: usize,
}

impl Activations {
    pub fn quantize(x: &[f32], n: usize, k: usize) -> Self {
        let blocks = k.div_ceil(BLOCK);
        let mut all =
            Self { q: vec![0; n * blocks * BLOCK], scales: vec![0.0; n * blocks], sums: vec![0; n * blocks], blocks };
        let (q, scales, sums) =
            (SharedMut::new(&mut all.q), SharedMut::new(&mut all.scales), SharedMut::new(&mut all.sums));
        split(n, n * k, |range| {
            for r in range {
                // SAFETY: one row per r.
                let (q, scales, sums) = unsafe {
                    (
                        q.slice(r * blocks * BLOCK, blocks * BLOCK),
                        scales.slice(r * blocks, blocks),
                        sums.slice(r * blocks, blocks),
                    )
                };
                quantize_row(&x[r * k..(r + 1) * k], q, scales, sums);
            }
        });
        all
    }

    /// (values, scales, sums) of row `r`.
    pub fn row(&self, r: usize) -> (&[i8], &[f32], &[i32]) {
        let (all, blocks) = (self.blocks * BLOCK, self.blocks);
        (
            &self.q[r * all..(r + 1) * all],
            &self.scales[r * blocks..(r + 1) * blocks],
            &self.sums[r * blocks..(r + 1) * blocks],
        )
    }
}

multiversion! {
    fn quantize_row(x: &[f32], q: &mut [i8], scales: &mut [f32], sums: &mut [i32]) {
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
            sums[b] = sum;
        }
    }
}

/// Runs `kernel(panel, first_row, rows, tile)` for all panels and groups of rows of y `[n, m]`, in parallel.
pub(super) fn over_tiles(
    y: &mut [f32],
    (n, m): (usize, usize),
    work: usize,
    kernel: impl Fn(usize, usize, usize, &mut Tile) + Sync + Send,
) {
    let out = SharedMut::new(y);
    split(m.div_ceil(PANEL), work, |range| {
        let mut tile = [[0f32; PANEL]; MAX_R];
        for p in range {
            let cols = PANEL.min(m - p * PANEL);
            for r0 in (0..n).step_by(MAX_R) {
                let count = MAX_R.min(n - r0);
                kernel(p, r0, count, &mut tile);
                for (i, row) in tile.iter().enumerate().take(count) {
                    // SAFETY: this task alone owns these columns.
                    unsafe { out.slice((r0 + i) * m + p * PANEL, cols) }.copy_from_slice(&row[..cols]);
                }
            }
        }
    });
}

/// Calls a kernel that is generic over its number of rows (1 to `MAX_R`), and optionally over a layout of weights.
macro_rules! for_rows {
    ($count:expr, $($kernel:ident)::+ $(of $layout:ident)?; $($arg:expr),*) => {
        match $count {
            1 => $($kernel)::+::<$($layout,)? 1>($($arg),*),
            2 => $($kernel)::+::<$($layout,)? 2>($($arg),*),
            3 => $($kernel)::+::<$($layout,)? 3>($($arg),*),
            4 => $($kernel)::+::<$($layout,)? 4>($($arg),*),
            5 => $($kernel)::+::<$($layout,)? 5>($($arg),*),
            6 => $($kernel)::+::<$($layout,)? 6>($($arg),*),
            7 => $($kernel)::+::<$($layout,)? 7>($($arg),*),
            _ => $($kernel)::+::<$($layout,)? 8>($($arg),*),
        }
    };
}
pub(super) use for_rows;

/// The dot-product kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dot {
    Plain,
    Avx2,
    /// AVX-512 with VNNI.
    Vnni,
}

/// The fastest kernel that this CPU supports.
pub(super) fn dot_kernel() -> Dot {
    use std::sync::OnceLock;
    static KIND: OnceLock<Dot> = OnceLock::new();
    *KIND.get_or_init(|| {
        #[cfg(target_arch = "x86_64")]
        {
            use super::simd::{Isa, isa};
            let f16c = is_x86_feature_detected!("f16c");
            if isa() == Isa::Avx512 && f16c && is_x86_feature_detected!("avx512vnni") {
                return Dot::Vnni;
            }
            if isa() != Isa::Portable && f16c {
                return Dot::Avx2;
            }
        }
        Dot::Plain
    })
}

/// All kernels that this CPU supports.
#[cfg(test)]
pub(super) fn kernels() -> Vec<Dot> {
    match dot_kernel() {
        Dot::Vnni => vec![Dot::Plain, Dot::Avx2, Dot::Vnni],
        Dot::Avx2 => vec![Dot::Plain, Dot::Avx2],
        Dot::Plain => vec![Dot::Plain],
    }
}

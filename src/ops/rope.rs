//! Rotary position embedding (RoFormer, arXiv 2104.09864) with the half-split layout of transformers, and its backward
//! pass.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::par::{SharedMut, split};
pub use super::rope_table::{RopeTable, Row, frequencies, grown_row};
use super::simd::multiversion;
use super::{f32s, fused, plain, read, storage, tensor};

/// Rotates every head of x `[n, heads·head_dim]` by the angles of its row.
pub fn rope(x: &Tensor, table: &Arc<RopeTable>, positions: &Arc<Vec<Row>>) -> Result<Tensor> {
    table.check(positions)?;
    if fused(x) {
        return x.contiguous()?.apply_op1(Rope { table: table.clone(), positions: positions.clone() });
    }
    plain::rope(x, table, positions)
}

/// Rotates x `[n, heads·head_dim]` in place. With `sign` −1 rotates back, which is the gradient.
pub fn rotate(x: &mut [f32], table: &RopeTable, positions: &[Row], sign: f32) {
    let width = x.len() / positions.len().max(1);
    let work = x.len() * 4;
    let rows = SharedMut::new(x);
    split(positions.len(), work, |range| {
        let mut buffer = Default::default();
        for r in range {
            let (cos, sin) = table.cos_sin(positions[r], &mut buffer);
            // SAFETY: one row per r.
            let row = unsafe { rows.slice(r * width, width) };
            rotate_row(row, table.head_dim, cos, sin, sign);
        }
    });
}

multiversion! {
    fn rotate_row(row: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32], sign: f32) {
        let half = cos.len();
        for head in row.chunks_exact_mut(head_dim) {
            let (x1, x2) = head[..2 * half].split_at_mut(half);
            for i in 0..half {
                let (a, b, s) = (x1[i], x2[i], sin[i] * sign);
                x1[i] = a * cos[i] - b * s;
                x2[i] = b * cos[i] + a * s;
            }
        }
    }
}

struct Rope {
    table: Arc<RopeTable>,
    positions: Arc<Vec<Row>>,
}

impl CustomOp1 for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = f32s(s, l, "rope")?;
        let (n, width) = l.shape().dims2()?;
        if n != self.positions.len() || width % self.table.head_dim != 0 {
            candle_core::bail!("rope: input {n}×{width} for {} positions", self.positions.len());
        }
        let mut y = x.to_vec();
        rotate(&mut y, &self.table, &self.positions, 1.0);
        Ok(storage(y, l.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, gy: &Tensor) -> Result<Option<Tensor>> {
        let mut gx = read(&gy.contiguous()?)?.to_vec();
        rotate(&mut gx, &self.table, &self.positions, -1.0);
        Ok(Some(tensor(gx, x.shape())?))
    }
}

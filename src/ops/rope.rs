//! Rotary position embedding (arXiv 2104.09864), half-split layout as in Hugging Face, with backward.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::par::{SharedMut, split};
use super::{buffer, f32s, fused, plain, storage, tensor, with_f32s};

/// cos and sin for every position, [max_positions, head_dim / 2], computed in f64 steps of f32 angles
/// exactly as PyTorch does: inv_freq and the angle are f32.
#[derive(Debug)]
pub struct RopeTable {
    pub cos: Vec<f32>,
    pub sin: Vec<f32>,
    pub half: usize,
}

impl RopeTable {
    pub fn new(theta: f64, head_dim: usize, max_positions: usize) -> Self {
        let half = head_dim / 2;
        let inv: Vec<f32> = (0..half).map(|i| 1.0 / (theta as f32).powf((2 * i) as f32 / head_dim as f32)).collect();
        let angles = (0..max_positions).flat_map(|p| inv.iter().map(move |f| p as f32 * f));
        let (cos, sin) = angles.map(|a| (a.cos(), a.sin())).unzip();
        Self { cos, sin, half }
    }

    pub fn max_positions(&self) -> usize {
        self.cos.len().checked_div(self.half).unwrap_or(0)
    }
}

/// Rotates every head of x [n, heads · head_dim] by its row's position.
pub fn rope(x: &Tensor, table: &Arc<RopeTable>, positions: &Arc<Vec<u32>>) -> Result<Tensor> {
    if let Some(p) = positions.iter().find(|p| **p as usize >= table.max_positions()) {
        candle_core::bail!("position {p} is outside the model's {} positions", table.max_positions());
    }
    if fused(x) {
        return x.contiguous()?.apply_op1(Rope { table: table.clone(), positions: positions.clone() });
    }
    plain::rope(x, table, positions)
}

struct Rope {
    table: Arc<RopeTable>,
    positions: Arc<Vec<u32>>,
}

impl Rope {
    /// `sign` −1 rotates back, which is the gradient.
    fn rotate(&self, x: &[f32], y: &mut [f32], width: usize, sign: f32) {
        let half = self.table.half;
        let out = SharedMut::new(y);
        split(self.positions.len(), x.len() * 4, |rows| {
            for r in rows {
                let at = self.positions[r] as usize * half;
                let (cos, sin) = (&self.table.cos[at..at + half], &self.table.sin[at..at + half]);
                let x = &x[r * width..(r + 1) * width];
                // SAFETY: one row per r.
                let y = unsafe { out.slice(r * width, width) };
                for (x, y) in x.chunks_exact(2 * half).zip(y.chunks_exact_mut(2 * half)) {
                    let (x1, x2) = x.split_at(half);
                    let (y1, y2) = y.split_at_mut(half);
                    for i in 0..half {
                        let s = sin[i] * sign;
                        y1[i] = x1[i] * cos[i] - x2[i] * s;
                        y2[i] = x2[i] * cos[i] + x1[i] * s;
                    }
                }
            }
        });
    }
}

impl CustomOp1 for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = f32s(s, l, "rope")?;
        let (n, width) = l.shape().dims2()?;
        if n != self.positions.len() || width % (2 * self.table.half) != 0 {
            candle_core::bail!("rope: input {n}×{width} for {} positions", self.positions.len());
        }
        let mut y = buffer(x.len());
        self.rotate(x, &mut y, width, 1.0);
        Ok(storage(y, l.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, gy: &Tensor) -> Result<Option<Tensor>> {
        let mut gx = buffer(x.elem_count());
        let width = x.dim(1)?;
        with_f32s(gy, |gy| {
            self.rotate(gy, &mut gx, width, -1.0);
            Ok(())
        })?;
        Ok(Some(tensor(gx, x.shape())?))
    }
}

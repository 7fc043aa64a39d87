//! Weight matrices in formats for serving only, without gradients.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape};

use super::{f32s, storage};

/// A packed matrix W `[m, k]` on the CPU that multiplies f32 rows.
pub trait ServedMatrix: Send + Sync {
    /// (outputs m, inputs k).
    fn shape(&self) -> (usize, usize);
    /// Size in memory.
    fn bytes(&self) -> usize;
    /// y `[n, m]` = x `[n, k]` · Wᵀ. A row's result does not depend on the other rows.
    fn matmul(&self, x: &[f32], y: &mut [f32], n: usize);
}

impl std::fmt::Debug for dyn ServedMatrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (m, k) = self.shape();
        write!(f, "ServedMatrix({m}×{k}, {} bytes)", self.bytes())
    }
}

/// Applies a served matrix to a tensor `[n, k]`.
pub(super) struct Serve(pub Arc<dyn ServedMatrix>);

impl CustomOp1 for Serve {
    fn name(&self) -> &'static str {
        "linear-served"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = f32s(s, l, "linear-served")?;
        let (n, k) = l.shape().dims2()?;
        let (m, expected) = self.0.shape();
        if k != expected {
            candle_core::bail!("linear: input has {k} columns, weight has {expected}");
        }
        let mut y = super::buffer(n * m);
        self.0.matmul(x, &mut y, n);
        Ok(storage(y, (n, m)))
    }
}

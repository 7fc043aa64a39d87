//! RMSNorm (arXiv 1910.07467) and LayerNorm (arXiv 1607.06450) over the last dimension, with backward.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};

use super::par::{SharedMut, split};
use super::simd::{dot, multiversion, sum};
use super::{buffer, f32s, fused, plain, storage, tensor, with_f32s};

/// x [n, d] · 1/√(mean(x²) + eps) ⊙ weight [d].
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    if fused(x) {
        return x.contiguous()?.apply_op2(&weight.contiguous()?, RmsNorm { eps: eps as f32 });
    }
    plain::rms_norm(x, weight, eps)
}

/// (x − mean)/√(var + eps) ⊙ weight [d] + bias [d], for x [n, d]; biased variance.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    if fused(x) {
        let op = LayerNorm { eps: eps as f32 };
        return x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, op);
    }
    plain::layer_norm(x, weight, bias, eps)
}

/// Rows per partial sum of the weight gradient: fixed, so that the sum's order never depends on threads.
const GRAD_ROWS: usize = 128;

struct RmsNorm {
    eps: f32,
}

multiversion! {
    fn rms_rows(x: &[f32], w: &[f32], eps: f32, y: &mut [f32]) {
        let d = w.len();
        for (x, y) in x.chunks_exact(d).zip(y.chunks_exact_mut(d)) {
            let scale = 1.0 / (dot(x, x) / d as f32 + eps).sqrt();
            for i in 0..d {
                y[i] = x[i] * scale * w[i];
            }
        }
    }
}

multiversion! {
    fn rms_rows_bwd(x: &[f32], w: &[f32], gy: &[f32], eps: f32, gx: &mut [f32], gw: &mut [f32]) {
        let d = w.len();
        for ((x, gy), gx) in x.chunks_exact(d).zip(gy.chunks_exact(d)).zip(gx.chunks_exact_mut(d)) {
            let scale = 1.0 / (dot(x, x) / d as f32 + eps).sqrt();
            for i in 0..d {
                gx[i] = gy[i] * w[i];
                gw[i] += gy[i] * x[i] * scale;
            }
            let shared = dot(gx, x) * scale * scale * scale / d as f32;
            for i in 0..d {
                gx[i] = gx[i] * scale - x[i] * shared;
            }
        }
    }
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, w) = (f32s(s1, l1, "rms-norm")?, f32s(s2, l2, "rms-norm")?);
        let (n, d) = l1.shape().dims2()?;
        let mut y = buffer(n * d);
        let out = SharedMut::new(&mut y);
        split(n, n * d * 4, |r| {
            // SAFETY: disjoint row ranges.
            rms_rows(&x[r.start * d..r.end * d], w, self.eps, unsafe { out.slice(r.start * d, r.len() * d) });
        });
        Ok(storage(y, (n, d)))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _y: &Tensor, gy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (n, d) = x.dims2()?;
        let mut gx = buffer(n * d);
        let mut partial = buffer(n.div_ceil(GRAD_ROWS) * d);
        with_f32s(x, |x| {
            with_f32s(w, |w| {
                with_f32s(gy, |gy| {
                    let (gx, gw) = (SharedMut::new(&mut gx), SharedMut::new(&mut partial));
                    split(n.div_ceil(GRAD_ROWS), n * d * 8, |blocks| {
                        for b in blocks {
                            let (r0, r1) = (b * GRAD_ROWS, ((b + 1) * GRAD_ROWS).min(n));
                            // SAFETY: one block of rows and one partial sum per b.
                            let (gx, gw) = unsafe { (gx.slice(r0 * d, (r1 - r0) * d), gw.slice(b * d, d)) };
                            rms_rows_bwd(&x[r0 * d..r1 * d], w, &gy[r0 * d..r1 * d], self.eps, gx, gw);
                        }
                    });
                    Ok(())
                })
            })
        })?;
        Ok((Some(tensor(gx, (n, d))?), Some(tensor(sum_rows(&partial, d), d)?)))
    }
}

/// Column sums of [rows, d] in ascending row order.
fn sum_rows(x: &[f32], d: usize) -> Vec<f32> {
    let mut total = vec![0f32; d];
    for row in x.chunks_exact(d) {
        for (t, v) in total.iter_mut().zip(row) {
            *t += v;
        }
    }
    total
}

struct LayerNorm {
    eps: f32,
}

/// Mean and 1/√(var + eps) of one row.
#[inline(always)]
fn moments(x: &[f32], eps: f32) -> (f32, f32) {
    let d = x.len() as f32;
    let mean = sum(x) / d;
    let mut var = 0f32;
    for v in x {
        var = (v - mean).mul_add(v - mean, var);
    }
    (mean, 1.0 / (var / d + eps).sqrt())
}

multiversion! {
    fn layer_rows(x: &[f32], w: &[f32], b: &[f32], eps: f32, y: &mut [f32]) {
        let d = w.len();
        for (x, y) in x.chunks_exact(d).zip(y.chunks_exact_mut(d)) {
            let (mean, scale) = moments(x, eps);
            for i in 0..d {
                y[i] = (x[i] - mean) * scale * w[i] + b[i];
            }
        }
    }
}

multiversion! {
    /// `gwb` is [2, d]: the weight's gradient, then the bias's.
    fn layer_rows_bwd(x: &[f32], w: &[f32], gy: &[f32], eps: f32, gx: &mut [f32], gwb: &mut [f32]) {
        let d = w.len();
        let (gw, gb) = gwb.split_at_mut(d);
        for ((x, gy), gx) in x.chunks_exact(d).zip(gy.chunks_exact(d)).zip(gx.chunks_exact_mut(d)) {
            let (mean, scale) = moments(x, eps);
            let (mut g_sum, mut gh_sum) = (0f32, 0f32);
            for i in 0..d {
                let h = (x[i] - mean) * scale;
                gw[i] += gy[i] * h;
                gb[i] += gy[i];
                let g = gy[i] * w[i];
                g_sum += g;
                gh_sum += g * h;
            }
            let (g_mean, gh_mean) = (g_sum / d as f32, gh_sum / d as f32);
            for i in 0..d {
                let h = (x[i] - mean) * scale;
                gx[i] = (gy[i] * w[i] - g_mean - h * gh_mean) * scale;
            }
        }
    }
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, w) = (f32s(s1, l1, "layer-norm")?, f32s(s2, l2, "layer-norm")?);
        let b = f32s(s3, l3, "layer-norm")?;
        let (n, d) = l1.shape().dims2()?;
        let mut y = buffer(n * d);
        let out = SharedMut::new(&mut y);
        split(n, n * d * 6, |r| {
            // SAFETY: disjoint row ranges.
            layer_rows(&x[r.start * d..r.end * d], w, b, self.eps, unsafe { out.slice(r.start * d, r.len() * d) });
        });
        Ok(storage(y, (n, d)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _b: &Tensor,
        _y: &Tensor,
        gy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (n, d) = x.dims2()?;
        let mut gx = buffer(n * d);
        let mut partial = buffer(n.div_ceil(GRAD_ROWS) * 2 * d);
        with_f32s(x, |x| {
            with_f32s(w, |w| {
                with_f32s(gy, |gy| {
                    let (gx, gwb) = (SharedMut::new(&mut gx), SharedMut::new(&mut partial));
                    split(n.div_ceil(GRAD_ROWS), n * d * 10, |blocks| {
                        for b in blocks {
                            let (r0, r1) = (b * GRAD_ROWS, ((b + 1) * GRAD_ROWS).min(n));
                            // SAFETY: one block of rows and one partial sum per b.
                            let (gx, gwb) = unsafe { (gx.slice(r0 * d, (r1 - r0) * d), gwb.slice(b * 2 * d, 2 * d)) };
                            layer_rows_bwd(&x[r0 * d..r1 * d], w, &gy[r0 * d..r1 * d], self.eps, gx, gwb);
                        }
                    });
                    Ok(())
                })
            })
        })?;
        let total = sum_rows(&partial, 2 * d);
        let (gw, gb) = (total[..d].to_vec(), total[d..].to_vec());
        Ok((Some(tensor(gx, (n, d))?), Some(tensor(gw, d)?), Some(tensor(gb, d)?)))
    }
}

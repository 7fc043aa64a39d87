//! RMSNorm (arXiv 1910.07467) and LayerNorm (arXiv 1607.06450) over the last dimension, with backward
//! passes.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};

use super::par::{SharedMut, split};
use super::simd::{dot, multiversion, sum};
use super::{buffer, f32s, fused, plain, read, storage, tensor};

/// x `[n, d]` · 1/√(mean(x²) + eps) ⊙ weight `[d]`.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    if fused(x) {
        return x.contiguous()?.apply_op2(&weight.contiguous()?, RmsNorm { eps: eps as f32 });
    }
    plain::rms_norm(x, weight, eps)
}

/// (x − mean)/√(var + eps) ⊙ weight `[d]` + bias `[d]`, for x `[n, d]`, with the biased variance.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    if fused(x) {
        let op = LayerNorm { eps: eps as f32 };
        return x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, op);
    }
    plain::layer_norm(x, weight, bias, eps)
}

/// Number of rows per partial sum of the weight's gradient. Fixed, so that the order of the sum does not depend on
/// threads.
const GRAD_ROWS: usize = 128;

/// A norm on slices: RMSNorm without a bias, LayerNorm with one.
#[derive(Clone, Copy)]
pub struct Norm<'a> {
    pub weight: &'a [f32],
    pub bias: Option<&'a [f32]>,
    pub eps: f32,
}

impl Norm<'_> {
    /// y = norm(x), both `[n, d]`.
    pub fn forward(self, x: &[f32], y: &mut [f32]) {
        let d = self.weight.len();
        let out = SharedMut::new(y);
        split(x.len() / d, x.len() * 4, |r| {
            // SAFETY: disjoint row ranges.
            let (x, y) = (&x[r.start * d..r.end * d], unsafe { out.slice(r.start * d, r.len() * d) });
            match self.bias {
                None => rms_rows(x, self.weight, self.eps, y),
                Some(bias) => layer_rows(x, self.weight, bias, self.eps, y),
            }
        });
    }

    /// gx (+)= the gradient of x. With `trained` returns the gradient of the weight `[d]`, followed by that of the bias
    /// `[d]` for LayerNorm; else an empty vector.
    pub fn backward(self, x: &[f32], gy: &[f32], gx: &mut [f32], add: bool, trained: bool) -> Vec<f32> {
        let d = self.weight.len();
        let width = if self.bias.is_some() { 2 * d } else { d };
        let n = x.len() / d;
        let blocks = n.div_ceil(GRAD_ROWS);
        let mut partial = vec![0f32; if trained { blocks * width } else { 0 }];
        let (gx, gw) = (SharedMut::new(gx), SharedMut::new(&mut partial));
        split(blocks, x.len() * 8, |blocks| {
            let mut scratch = vec![0f32; d];
            for b in blocks {
                let r = b * GRAD_ROWS * d..((b + 1) * GRAD_ROWS).min(n) * d;
                // SAFETY: one block of rows and one partial sum per b.
                let (gx, gw) = unsafe {
                    (
                        gx.slice(r.start, r.len()),
                        gw.slice(b * width * usize::from(trained), width * usize::from(trained)),
                    )
                };
                let (x, gy) = (&x[r.clone()], &gy[r]);
                match self.bias {
                    None => rms_rows_bwd(x, self.weight, gy, self.eps, gx, gw, &mut scratch, add),
                    Some(_) => layer_rows_bwd(x, self.weight, gy, self.eps, gx, gw, add),
                }
            }
        });
        if trained { sum_rows(&partial, width) } else { Vec::new() }
    }
}

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
    #[expect(clippy::too_many_arguments, reason = "a kernel's plain inputs")]
    fn rms_rows_bwd(x: &[f32], w: &[f32], gy: &[f32], eps: f32, gx: &mut [f32], gw: &mut [f32], scratch: &mut [f32], add: bool) {
        let d = w.len();
        let scratch = &mut scratch[..d];
        for ((x, gy), gx) in x.chunks_exact(d).zip(gy.chunks_exact(d)).zip(gx.chunks_exact_mut(d)) {
            let scale = 1.0 / (dot(x, x) / d as f32 + eps).sqrt();
            for i in 0..d {
                scratch[i] = gy[i] * w[i];
            }
            for (i, gw) in gw.iter_mut().enumerate() {
                *gw += gy[i] * x[i] * scale;
            }
            let shared = dot(scratch, x) * scale * scale * scale / d as f32;
            if add {
                for i in 0..d {
                    gx[i] += scratch[i] * scale - x[i] * shared;
                }
            } else {
                for i in 0..d {
                    gx[i] = scratch[i] * scale - x[i] * shared;
                }
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
        let mut y = buffer(x.len());
        Norm { weight: w, bias: None, eps: self.eps }.forward(x, &mut y);
        Ok(storage(y, l1.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _y: &Tensor, gy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gy = gy.contiguous()?;
        let mut gx = buffer(x.elem_count());
        let weight = read(w)?;
        let norm = Norm { weight: &weight, bias: None, eps: self.eps };
        let gw = norm.backward(&read(x)?, &read(&gy)?, &mut gx, false, true);
        Ok((Some(tensor(gx, x.shape())?), Some(tensor(gw, w.shape())?)))
    }
}

/// The sums of the columns of x `[rows, d]`, in ascending order of rows.
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
    /// `gwb` `[2, d]` has the gradients of weight and bias; it is empty if they are not trained.
    fn layer_rows_bwd(x: &[f32], w: &[f32], gy: &[f32], eps: f32, gx: &mut [f32], gwb: &mut [f32], add: bool) {
        let d = w.len();
        for ((x, gy), gx) in x.chunks_exact(d).zip(gy.chunks_exact(d)).zip(gx.chunks_exact_mut(d)) {
            let (mean, scale) = moments(x, eps);
            let (mut g_sum, mut gh_sum) = (0f32, 0f32);
            for i in 0..d {
                let h = (x[i] - mean) * scale;
                let g = gy[i] * w[i];
                g_sum += g;
                gh_sum += g * h;
            }
            if !gwb.is_empty() {
                let (gw, gb) = gwb.split_at_mut(d);
                for i in 0..d {
                    gw[i] += gy[i] * ((x[i] - mean) * scale);
                    gb[i] += gy[i];
                }
            }
            let (g_mean, gh_mean) = (g_sum / d as f32, gh_sum / d as f32);
            for i in 0..d {
                let h = (x[i] - mean) * scale;
                let g = (gy[i] * w[i] - g_mean - h * gh_mean) * scale;
                gx[i] = if add { gx[i] + g } else { g };
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
        let mut y = buffer(x.len());
        Norm { weight: w, bias: Some(b), eps: self.eps }.forward(x, &mut y);
        Ok(storage(y, l1.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _y: &Tensor,
        gy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let gy = gy.contiguous()?;
        let mut gx = buffer(x.elem_count());
        let (weight, bias) = (read(w)?, read(b)?);
        let norm = Norm { weight: &weight, bias: Some(&bias), eps: self.eps };
        let mut gw = norm.backward(&read(x)?, &read(&gy)?, &mut gx, false, true);
        let gb = gw.split_off(w.elem_count());
        Ok((Some(tensor(gx, x.shape())?), Some(tensor(gw, w.shape())?), Some(tensor(gb, b.shape())?)))
    }
}

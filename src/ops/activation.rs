//! Element-wise activations with backward: SwiGLU (arXiv 2002.05202) and GELU (arXiv 1606.08415).

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};

use super::par::{SharedMut, split};
use super::simd::{exp, multiversion};
use super::{buffer, f32s, fused, plain, storage, tensor, with_f32s};

/// silu(gate) ⊙ up, both [n, d].
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if fused(gate) && fused(up) {
        return gate.contiguous()?.apply_op2(&up.contiguous()?, SwiGlu);
    }
    plain::swiglu(gate, up)
}

/// SwiGLU of rows that hold gate and up side by side, [n, 2·d] → [n, d]. Forward only.
pub fn swiglu_joint(both: &Tensor) -> Result<Tensor> {
    let d = both.dim(1)? / 2;
    if fused(both) {
        return both.contiguous()?.apply_op1_no_bwd(&SwiGluJoint);
    }
    plain::swiglu(&both.narrow(1, 0, d)?, &both.narrow(1, d, d)?)
}

/// GELU; `tanh` picks GPT-2's approximation, else the exact form through erf.
pub fn gelu(x: &Tensor, tanh: bool) -> Result<Tensor> {
    if fused(x) {
        return x.contiguous()?.apply_op1(Gelu { tanh });
    }
    if tanh { x.gelu() } else { x.gelu_erf() }
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

multiversion! {
    fn swiglu_fwd(gate: &[f32], up: &[f32], y: &mut [f32]) {
        for i in 0..y.len() {
            y[i] = gate[i] * sigmoid(gate[i]) * up[i];
        }
    }
}

multiversion! {
    fn swiglu_bwd(gate: &[f32], up: &[f32], gy: &[f32], ggate: &mut [f32], gup: &mut [f32]) {
        for i in 0..gy.len() {
            let s = sigmoid(gate[i]);
            gup[i] = gy[i] * gate[i] * s;
            ggate[i] = gy[i] * up[i] * s * (1.0 + gate[i] * (1.0 - s));
        }
    }
}

struct SwiGlu;

impl CustomOp2 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (f32s(s1, l1, "swiglu")?, f32s(s2, l2, "swiglu")?);
        let mut y = buffer(gate.len());
        let out = SharedMut::new(&mut y);
        split(gate.len(), gate.len() * 8, |r| {
            // SAFETY: disjoint ranges.
            swiglu_fwd(&gate[r.clone()], &up[r.clone()], unsafe { out.slice(r.start, r.len()) });
        });
        Ok(storage(y, l1.shape().clone()))
    }

    fn bwd(&self, gate: &Tensor, up: &Tensor, _y: &Tensor, gy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (mut ggate, mut gup) = (buffer(gate.elem_count()), buffer(gate.elem_count()));
        with_f32s(gate, |gate| {
            with_f32s(up, |up| {
                with_f32s(gy, |gy| {
                    let (a, b) = (SharedMut::new(&mut ggate), SharedMut::new(&mut gup));
                    split(gy.len(), gy.len() * 12, |r| {
                        // SAFETY: disjoint ranges.
                        let (a, b) = unsafe { (a.slice(r.start, r.len()), b.slice(r.start, r.len())) };
                        swiglu_bwd(&gate[r.clone()], &up[r.clone()], &gy[r], a, b);
                    });
                    Ok(())
                })
            })
        })?;
        Ok((Some(tensor(ggate, gate.shape())?), Some(tensor(gup, up.shape())?)))
    }
}

struct SwiGluJoint;

impl CustomOp1 for SwiGluJoint {
    fn name(&self) -> &'static str {
        "swiglu-joint"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, width) = l.shape().dims2()?;
        let (x, d) = (f32s(s, l, "swiglu-joint")?, width / 2);
        let mut y = buffer(n * d);
        let out = SharedMut::new(&mut y);
        split(n, n * d * 8, |rows| {
            for r in rows {
                let (gate, up) = x[r * width..(r + 1) * width].split_at(d);
                // SAFETY: one row per r.
                swiglu_fwd(gate, up, unsafe { out.slice(r * d, d) });
            }
        });
        Ok(storage(y, (n, d)))
    }
}

const SQRT_2_OVER_PI: f32 = 0.797_884_6;
const CUBIC: f32 = 0.044_715;

#[inline(always)]
fn tanh(x: f32) -> f32 {
    // tanh(x) = 1 − 2/(e^{2x} + 1): saturates correctly at both ends.
    1.0 - 2.0 / (exp(2.0 * x) + 1.0)
}

multiversion! {
    fn gelu_tanh_fwd(x: &[f32], y: &mut [f32]) {
        for i in 0..y.len() {
            let v = x[i];
            y[i] = 0.5 * v * (1.0 + tanh(SQRT_2_OVER_PI * (v + CUBIC * v * v * v)));
        }
    }
}

multiversion! {
    fn gelu_tanh_bwd(x: &[f32], gy: &[f32], gx: &mut [f32]) {
        for i in 0..gx.len() {
            let v = x[i];
            let t = tanh(SQRT_2_OVER_PI * (v + CUBIC * v * v * v));
            let inner = SQRT_2_OVER_PI * (1.0 + 3.0 * CUBIC * v * v);
            gx[i] = gy[i] * (0.5 * (1.0 + t) + 0.5 * v * (1.0 - t * t) * inner);
        }
    }
}

/// Φ(x), the standard normal distribution function, in f64 for the last digits of the exact GELU.
fn phi(x: f32) -> f64 {
    0.5 * (1.0 + candle_core::cpu::erf::erf_f64(f64::from(x) / std::f64::consts::SQRT_2))
}

fn gelu_erf_fwd(x: &[f32], y: &mut [f32]) {
    for (x, y) in x.iter().zip(y) {
        *y = (f64::from(*x) * phi(*x)) as f32;
    }
}

fn gelu_erf_bwd(x: &[f32], gy: &[f32], gx: &mut [f32]) {
    for ((x, gy), gx) in x.iter().zip(gy).zip(gx) {
        let v = f64::from(*x);
        let density = (-0.5 * v * v).exp() / (2.0 * std::f64::consts::PI).sqrt();
        *gx = (f64::from(*gy) * (phi(*x) + v * density)) as f32;
    }
}

struct Gelu {
    tanh: bool,
}

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = f32s(s, l, "gelu")?;
        let mut y = buffer(x.len());
        let out = SharedMut::new(&mut y);
        split(x.len(), x.len() * 10, |r| {
            // SAFETY: disjoint ranges.
            let y = unsafe { out.slice(r.start, r.len()) };
            if self.tanh { gelu_tanh_fwd(&x[r], y) } else { gelu_erf_fwd(&x[r], y) }
        });
        Ok(storage(y, l.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, gy: &Tensor) -> Result<Option<Tensor>> {
        let mut gx = buffer(x.elem_count());
        with_f32s(x, |x| {
            with_f32s(gy, |gy| {
                let out = SharedMut::new(&mut gx);
                split(x.len(), x.len() * 16, |r| {
                    // SAFETY: disjoint ranges.
                    let gx = unsafe { out.slice(r.start, r.len()) };
                    if self.tanh {
                        gelu_tanh_bwd(&x[r.clone()], &gy[r], gx)
                    } else {
                        gelu_erf_bwd(&x[r.clone()], &gy[r], gx)
                    }
                });
                Ok(())
            })
        })?;
        Ok(Some(tensor(gx, x.shape())?))
    }
}

//! Element-wise activations with backward passes: SiLU and GELU (arXiv 1606.08415), ReLU, and their gated versions (GLU
//! variants, arXiv 2002.05202).

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};

pub use super::activation_kind::Activation;
use super::par::{SharedMut, split};
use super::simd::{exp, multiversion};
use super::{buffer, f32s, fused, plain, read, storage, tensor};

/// silu(gate) ⊙ up, both `[n, d]`.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gated(Activation::Silu, gate, up)
}

/// activation(gate) ⊙ up, both `[n, d]`.
pub fn gated(kind: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if fused(gate) && fused(up) {
        return gate.contiguous()?.apply_op2(&up.contiguous()?, Gated { kind });
    }
    plain::gated(kind, gate, up)
}

/// activation(gate) ⊙ up for rows with gate and up side by side: `[n, 2·d]` → `[n, d]`. Differentiable.
pub fn gated_joint(kind: Activation, both: &Tensor) -> Result<Tensor> {
    let d = both.dim(1)? / 2;
    if fused(both) && !both.track_op() {
        return both.contiguous()?.apply_op1_no_bwd(&GatedJoint { kind });
    }
    gated(kind, &both.narrow(1, 0, d)?, &both.narrow(1, d, d)?)
}

/// GELU: the tanh approximation with `tanh`, else the exact function.
pub fn gelu(x: &Tensor, tanh: bool) -> Result<Tensor> {
    activate(if tanh { Activation::GeluTanh } else { Activation::GeluErf }, x)
}

pub fn activate(kind: Activation, x: &Tensor) -> Result<Tensor> {
    if fused(x) {
        return x.contiguous()?.apply_op1(Activate { kind });
    }
    plain::activate(kind, x)
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
    fn swiglu_bwd(gate: &mut [f32], up: &mut [f32], gy: &mut [f32]) {
        for i in 0..gy.len() {
            let (g, u, by) = (gate[i], up[i], gy[i]);
            let s = sigmoid(g);
            gy[i] = g * s * u;
            up[i] = by * g * s;
            gate[i] = by * u * s * (1.0 + g * (1.0 - s));
        }
    }
}

/// y = activation(gate) ⊙ up.
pub fn gated_into(kind: Activation, gate: &[f32], up: &[f32], y: &mut [f32]) {
    assert!(gate.len() == y.len() && up.len() == y.len(), "sizes");
    let out = SharedMut::new(y);
    split(gate.len(), gate.len() * 8, |r| {
        // SAFETY: disjoint ranges.
        gated_fwd(kind, &gate[r.clone()], &up[r.clone()], unsafe { out.slice(r.start, r.len()) });
    });
}

fn gated_fwd(kind: Activation, gate: &[f32], up: &[f32], y: &mut [f32]) {
    match kind {
        Activation::Silu => return swiglu_fwd(gate, up, y),
        Activation::GeluTanh => gelu_tanh_fwd(gate, y),
        Activation::GeluErf => gelu_erf_fwd(gate, y),
        Activation::Relu => relu_fwd(gate, y),
    }
    y.iter_mut().zip(up).for_each(|(y, u)| *y *= u);
}

/// Replaces `gate` and `up` by their gradients, and `gy` by the output of the forward pass, which the caller needs for
/// the gradient of the next weight.
pub fn gated_grad(kind: Activation, gate: &mut [f32], up: &mut [f32], gy: &mut [f32]) {
    let n = gy.len();
    assert!(gate.len() == n && up.len() == n, "sizes");
    let (a, b, y) = (SharedMut::new(gate), SharedMut::new(up), SharedMut::new(gy));
    split(n, n * 12, |r| {
        // SAFETY: disjoint ranges.
        let (a, b, y) = unsafe { (a.slice(r.start, r.len()), b.slice(r.start, r.len()), y.slice(r.start, r.len())) };
        if kind == Activation::Silu {
            return swiglu_bwd(a, b, y);
        }
        // The gradient of the activation's output is gy ⊙ up; the output is the factor of up's gradient.
        let mut acted: Vec<f32> = y.iter().zip(b.iter()).map(|(g, u)| g * u).collect();
        activate_bwd(kind, a, &mut acted);
        for ((y, u), acted) in y.iter_mut().zip(b).zip(acted) {
            (*y, *u) = (acted * *u, acted * *y);
        }
    });
}

/// y = activation(x).
pub fn activate_into(kind: Activation, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "sizes");
    let out = SharedMut::new(y);
    split(x.len(), x.len() * 10, |r| {
        // SAFETY: disjoint ranges.
        let y = unsafe { out.slice(r.start, r.len()) };
        match kind {
            Activation::Silu => silu_fwd(&x[r], y),
            Activation::GeluTanh => gelu_tanh_fwd(&x[r], y),
            Activation::GeluErf => gelu_erf_fwd(&x[r], y),
            Activation::Relu => relu_fwd(&x[r], y),
        }
    });
}

/// Replaces `x` by its gradient, and `gy` by the output of the forward pass.
pub fn activate_grad(kind: Activation, x: &mut [f32], gy: &mut [f32]) {
    let n = gy.len();
    assert_eq!(x.len(), n, "sizes");
    let (x, y) = (SharedMut::new(x), SharedMut::new(gy));
    split(n, n * 16, |r| {
        // SAFETY: disjoint ranges.
        let (x, y) = unsafe { (x.slice(r.start, r.len()), y.slice(r.start, r.len())) };
        activate_bwd(kind, x, y);
    });
}

fn activate_bwd(kind: Activation, x: &mut [f32], gy: &mut [f32]) {
    match kind {
        Activation::Silu => silu_bwd(x, gy),
        Activation::GeluTanh => gelu_tanh_bwd(x, gy),
        Activation::GeluErf => gelu_erf_bwd(x, gy),
        Activation::Relu => relu_bwd(x, gy),
    }
}

multiversion! {
    fn silu_fwd(x: &[f32], y: &mut [f32]) {
        for i in 0..y.len() {
            y[i] = x[i] * sigmoid(x[i]);
        }
    }
}

multiversion! {
    fn silu_bwd(x: &mut [f32], gy: &mut [f32]) {
        for i in 0..gy.len() {
            let (v, by) = (x[i], gy[i]);
            let s = sigmoid(v);
            gy[i] = v * s;
            x[i] = by * s * (1.0 + v * (1.0 - s));
        }
    }
}

multiversion! {
    fn relu_fwd(x: &[f32], y: &mut [f32]) {
        for i in 0..y.len() {
            y[i] = if x[i] > 0.0 { x[i] } else { 0.0 };
        }
    }
}

multiversion! {
    fn relu_bwd(x: &mut [f32], gy: &mut [f32]) {
        for i in 0..gy.len() {
            let (v, by) = (x[i], gy[i]);
            gy[i] = if v > 0.0 { v } else { 0.0 };
            x[i] = if v > 0.0 { by } else { 0.0 };
        }
    }
}

struct Gated {
    kind: Activation,
}

impl CustomOp2 for Gated {
    fn name(&self) -> &'static str {
        "gated"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (f32s(s1, l1, "gated")?, f32s(s2, l2, "gated")?);
        let mut y = buffer(gate.len());
        gated_into(self.kind, gate, up, &mut y);
        Ok(storage(y, l1.shape().clone()))
    }

    fn bwd(&self, gate: &Tensor, up: &Tensor, _y: &Tensor, gy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (mut ggate, mut gup) = (read(gate)?.to_vec(), read(up)?.to_vec());
        gated_grad(self.kind, &mut ggate, &mut gup, &mut read(&gy.contiguous()?)?.to_vec());
        Ok((Some(tensor(ggate, gate.shape())?), Some(tensor(gup, up.shape())?)))
    }
}

struct GatedJoint {
    kind: Activation,
}

impl CustomOp1 for GatedJoint {
    fn name(&self) -> &'static str {
        "gated-joint"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, width) = l.shape().dims2()?;
        let (x, d) = (f32s(s, l, "gated-joint")?, width / 2);
        let mut y = buffer(n * d);
        let out = SharedMut::new(&mut y);
        split(n, n * d * 8, |rows| {
            for r in rows {
                let (gate, up) = x[r * width..(r + 1) * width].split_at(d);
                // SAFETY: one row per r.
                gated_fwd(self.kind, gate, up, unsafe { out.slice(r * d, d) });
            }
        });
        Ok(storage(y, (n, d)))
    }
}

const SQRT_2_OVER_PI: f32 = 0.797_884_6;
const CUBIC: f32 = 0.044_715;

#[inline(always)]
fn tanh(x: f32) -> f32 {
    // 1 − 2/(e^{2x} + 1) saturates correctly at both ends.
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
    fn gelu_tanh_bwd(x: &mut [f32], gy: &mut [f32]) {
        for i in 0..gy.len() {
            let (v, by) = (x[i], gy[i]);
            let t = tanh(SQRT_2_OVER_PI * (v + CUBIC * v * v * v));
            let inner = SQRT_2_OVER_PI * (1.0 + 3.0 * CUBIC * v * v);
            gy[i] = 0.5 * v * (1.0 + t);
            x[i] = by * (0.5 * (1.0 + t) + 0.5 * v * (1.0 - t * t) * inner);
        }
    }
}

/// Φ(x), the standard normal distribution function, in f64 for the precision of the exact GELU.
fn phi(x: f32) -> f64 {
    0.5 * (1.0 + candle_core::cpu::erf::erf_f64(f64::from(x) / std::f64::consts::SQRT_2))
}

fn gelu_erf_fwd(x: &[f32], y: &mut [f32]) {
    for (x, y) in x.iter().zip(y) {
        *y = (f64::from(*x) * phi(*x)) as f32;
    }
}

fn gelu_erf_bwd(x: &mut [f32], gy: &mut [f32]) {
    for (x, gy) in x.iter_mut().zip(gy) {
        let (v, by, phi) = (f64::from(*x), f64::from(*gy), phi(*x));
        let density = (-0.5 * v * v).exp() / (2.0 * std::f64::consts::PI).sqrt();
        *gy = (v * phi) as f32;
        *x = (by * (phi + v * density)) as f32;
    }
}

struct Activate {
    kind: Activation,
}

impl CustomOp1 for Activate {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = f32s(s, l, "activation")?;
        let mut y = buffer(x.len());
        activate_into(self.kind, x, &mut y);
        Ok(storage(y, l.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, gy: &Tensor) -> Result<Option<Tensor>> {
        let mut gx = read(x)?.to_vec();
        activate_grad(self.kind, &mut gx, &mut read(&gy.contiguous()?)?.to_vec());
        Ok(Some(tensor(gx, x.shape())?))
    }
}

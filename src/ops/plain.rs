//! Reference versions of this crate's operations, built from candle's differentiable operations: slow, but simple and
//! for any device. The fused kernels are tested against them.

use candle_core::{D, DType, Result, Tensor};

use super::activation_kind::Activation;
use super::attention_spec::AttentionSpec;
use super::rope_table::{RopeTable, Row};

/// RMSNorm over the last dimension.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let x32 = x.to_dtype(DType::F32)?;
    let scale = (x32.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    x32.broadcast_div(&scale)?.to_dtype(x.dtype())?.broadcast_mul(weight)
}

/// LayerNorm over the last dimension.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let x32 = x.to_dtype(DType::F32)?;
    let centred = x32.broadcast_sub(&x32.mean_keepdim(D::Minus1)?)?;
    let scale = (centred.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    centred.broadcast_div(&scale)?.to_dtype(x.dtype())?.broadcast_mul(weight)?.broadcast_add(bias)
}

/// silu(gate) ⊙ up.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gated(Activation::Silu, gate, up)
}

/// activation(gate) ⊙ up.
pub fn gated(kind: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    activate(kind, gate)? * up
}

pub fn activate(kind: Activation, x: &Tensor) -> Result<Tensor> {
    match kind {
        Activation::Silu => x.silu(),
        Activation::GeluTanh => x.gelu(),
        Activation::GeluErf => x.gelu_erf(),
        Activation::Relu => x.relu(),
    }
}

/// Rotates every head of x `[n, heads·head_dim]` by the angles of its row.
pub fn rope(x: &Tensor, table: &RopeTable, positions: &[Row]) -> Result<Tensor> {
    let (n, width) = x.dims2()?;
    let half = table.half;
    let (mut cos, mut sin, mut buffer) = (Vec::new(), Vec::new(), Default::default());
    for p in positions {
        let row = table.cos_sin(*p, &mut buffer);
        cos.extend_from_slice(row.0);
        sin.extend_from_slice(row.1);
    }
    let pick = |rows: Vec<f32>| Tensor::from_vec(rows, (n, 1, half), x.device())?.to_dtype(x.dtype());
    let (cos, sin) = (pick(cos)?, pick(sin)?);
    let x = x.reshape((n, width / table.head_dim, table.head_dim))?;
    let (x1, x2) = (x.narrow(2, 0, half)?, x.narrow(2, half, half)?);
    let y1 = (x1.broadcast_mul(&cos)? - x2.broadcast_mul(&sin)?)?;
    let y2 = (x2.broadcast_mul(&cos)? + x1.broadcast_mul(&sin)?)?;
    let rest = table.head_dim - 2 * half;
    let y = if rest == 0 { vec![y1, y2] } else { vec![y1, y2, x.narrow(2, 2 * half, rest)?] };
    Tensor::cat(&y, 2)?.reshape((n, width))
}

/// Softmax over the last dimension, with a gradient (candle's fused version has none).
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    let shifted = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?.exp()?;
    shifted.broadcast_div(&shifted.sum_keepdim(D::Minus1)?)
}

/// log-softmax over the last dimension, with a gradient.
pub fn log_softmax(x: &Tensor) -> Result<Tensor> {
    let shifted = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?;
    shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(D::Minus1)?.log()?)
}

/// cap · tanh(x / cap).
pub fn soft_cap(x: &Tensor, cap: f64) -> Result<Tensor> {
    (x / cap)?.tanh()? * cap
}

/// Attention, one sequence at a time, with scores `[heads, len, len]`.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, spec: &AttentionSpec) -> Result<Tensor> {
    attention_with_probabilities(q, k, v, spec, &mut |_| Ok(()))
}

/// Attention, one sequence at a time. Calls `record` with the probabilities `[heads, queries, keys]` of each sequence.
pub fn attention_with_probabilities(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    spec: &AttentionSpec,
    record: &mut dyn FnMut(&Tensor) -> Result<()>,
) -> Result<Tensor> {
    let mut outs = Vec::new();
    for w in spec.offsets.windows(2) {
        let (start, len) = (w[0], w[1] - w[0]);
        if len == 0 {
            continue;
        }
        let heads = |x: &Tensor, n: usize| -> Result<Tensor> {
            x.narrow(0, start, len)?.reshape((len, n, spec.head_dim))?.transpose(0, 1)?.contiguous()
        };
        let repeat = |x: Tensor| -> Result<Tensor> {
            let copies = spec.n_heads / spec.n_kv_heads;
            let copied = x.unsqueeze(1)?.expand((spec.n_kv_heads, copies, len, spec.head_dim))?;
            copied.reshape((spec.n_heads, len, spec.head_dim))
        };
        let q = heads(q, spec.n_heads)?;
        let k = repeat(heads(k, spec.n_kv_heads)?)?.contiguous()?;
        let v = repeat(heads(v, spec.n_kv_heads)?)?.contiguous()?;
        let scale = spec.scale.map_or_else(|| 1.0 / (spec.head_dim as f64).sqrt(), f64::from);
        let mut scores = (q.matmul(&k.transpose(1, 2)?)? * scale)?.to_dtype(DType::F32)?;
        if let Some(cap) = spec.softcap {
            scores = soft_cap(&scores, f64::from(cap))?;
        }
        if spec.causal || spec.window.is_some() {
            let row = |i: usize| {
                let visible = spec.visible_keys(i, len);
                (0..len).map(move |j| if visible.contains(&j) { 0.0 } else { f32::NEG_INFINITY })
            };
            let mask: Vec<f32> = (0..len).flat_map(row).collect();
            scores = scores.broadcast_add(&Tensor::from_vec(mask, (1, len, len), scores.device())?)?;
        }
        let probabilities = softmax(&scores)?;
        record(&probabilities)?;
        let out = probabilities.to_dtype(v.dtype())?.matmul(&v)?;
        outs.push(out.transpose(0, 1)?.reshape((len, spec.n_heads * spec.head_dim))?);
    }
    Tensor::cat(&outs, 0)
}

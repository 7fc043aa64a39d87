//! log p(target | hidden row) and entropy straight from hidden states and the output matrix, without ever
//! keeping [rows, vocab] in the autograd graph: logits live in chunks and are rebuilt in the backward.

use std::sync::{Arc, Mutex};

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};

use super::gemm::PackedF32;
use super::linear::{Weight, WeightLayout};
use super::par::{SharedMut, split};
use super::simd::{exp, max, multiversion};
use super::{buffer, f32s, fused, plain, storage, tensor, with_f32s};

/// Logits of at most this many bytes are kept from forward to backward instead of being rebuilt.
const KEEP_BYTES: usize = 192 << 20;
/// Rows of logits held at once otherwise.
const CHUNK_ROWS: usize = 192;

/// Per-row results, both [m], f32.
pub struct TokenLogprobs {
    /// log-softmax(logits / temperature) at the target, differentiable in hidden and weight.
    pub logprobs: Tensor,
    /// Entropy of softmax(logits / temperature) in nats; carries no gradient.
    pub entropy: Tensor,
}

/// `hidden` [m, d], output matrix [vocab, d], `targets` [m] < vocab; `temperature` > 0 divides the logits.
pub fn token_logprobs(hidden: &Tensor, head: &Weight, targets: &[u32], temperature: f32) -> Result<TokenLogprobs> {
    let (m, _) = hidden.dims2()?;
    let vocab = head.out_features();
    if targets.len() != m {
        candle_core::bail!("token_logprobs: {m} rows, {} targets", targets.len());
    }
    if let Some(t) = targets.iter().find(|t| **t as usize >= vocab) {
        candle_core::bail!("token_logprobs: target {t} is outside the vocabulary of {vocab}");
    }
    if m > 0 && fused(hidden) && !matches!(head, Weight::Served(_)) {
        let op =
            Op { targets: targets.to_vec(), inv_t: 1.0 / temperature, frozen: head.frozen(), kept: Mutex::default() };
        let hidden = hidden.contiguous()?;
        let both = match &op.frozen {
            Some(_) => hidden.apply_op1(op)?,
            None => hidden.apply_op2(&head.dense()?.contiguous()?, op)?,
        };
        let entropy = both.narrow(1, 1, 1)?.squeeze(1)?.detach();
        return Ok(TokenLogprobs { logprobs: both.narrow(1, 0, 1)?.squeeze(1)?, entropy });
    }
    let logits = (head.apply(hidden)?.to_dtype(candle_core::DType::F32)? / f64::from(temperature))?;
    let all = plain::log_softmax(&logits)?;
    let index = Tensor::new(targets, hidden.device())?.unsqueeze(1)?;
    let entropy = (all.exp()? * &all)?.sum(1)?.neg()?.detach();
    Ok(TokenLogprobs { logprobs: all.gather(&index, 1)?.squeeze(1)?, entropy })
}

struct Op {
    targets: Vec<u32>,
    inv_t: f32,
    frozen: Option<(Arc<PackedF32>, Option<Tensor>)>,
    /// Logits of all rows and log-sum-exp of each, if they were small enough to keep.
    kept: Mutex<Option<Vec<f32>>>,
}

multiversion! {
    /// Scales a row of logits by 1/T in place; returns (log-sum-exp, Σ p·z).
    fn row_stats(z: &mut [f32], inv_t: f32) -> (f32, f32) {
        for v in z.iter_mut() {
            *v *= inv_t;
        }
        let max = max(z);
        let (mut total, mut weighted) = ([0f32; 16], [0f32; 16]);
        let (head, tail) = z.as_chunks::<16>();
        for c in head {
            for l in 0..16 {
                let e = exp(c[l] - max);
                total[l] += e;
                weighted[l] = e.mul_add(c[l] - max, weighted[l]);
            }
        }
        let (mut sum, mut mean) = (total.iter().sum::<f32>(), weighted.iter().sum::<f32>());
        for v in tail {
            let e = exp(v - max);
            sum += e;
            mean += e * (v - max);
        }
        (sum.ln() + max, mean / sum + max)
    }
}

multiversion! {
    /// z ← (onehot(target) − softmax(z)) · g, the gradient of the log-prob with respect to the raw logits.
    fn row_grad(z: &mut [f32], lse: f32, target: usize, g: f32) {
        for v in z.iter_mut() {
            *v = -g * exp(*v - lse);
        }
        z[target] += g;
    }
}

/// Natural log of the normaliser of `logits · inv_t`, the very value that the fused op computes.
pub fn log_sum_exp(logits: &[f32], inv_t: f32) -> f32 {
    row_normaliser(logits, inv_t)
}

multiversion! {
    /// `row_stats` without the scaled logits and the entropy.
    fn row_normaliser(logits: &[f32], inv_t: f32) -> f32 {
        // Scaling keeps the order, also after rounding.
        let max = max(logits) * inv_t;
        let mut total = [0f32; 16];
        let (head, tail) = logits.as_chunks::<16>();
        for c in head {
            for l in 0..16 {
                total[l] += exp(c[l] * inv_t - max);
            }
        }
        let mut sum = total.iter().sum::<f32>();
        for v in tail {
            sum += exp(v * inv_t - max);
        }
        sum.ln() + max
    }
}

impl Op {
    /// (log-prob, entropy) rows [m, 2].
    fn forward(&self, x: &[f32], packed: &PackedF32) -> Vec<f32> {
        let (m, d, vocab) = (self.targets.len(), packed.k, packed.m);
        let keep = m * vocab * size_of::<f32>() <= KEEP_BYTES;
        let rows = if keep { m } else { CHUNK_ROWS };
        let mut out = buffer(m * 2);
        let mut logits = buffer(rows.min(m) * vocab);
        for r0 in (0..m).step_by(rows) {
            let n = rows.min(m - r0);
            packed.matmul(&x[r0 * d..(r0 + n) * d], &mut logits[..n * vocab], n);
            let (shared, results) = (SharedMut::new(&mut logits), SharedMut::new(&mut out));
            split(n, n * vocab * 4, |range| {
                for r in range {
                    // SAFETY: one row of logits and results per r.
                    let (z, out) = unsafe { (shared.slice(r * vocab, vocab), results.slice((r0 + r) * 2, 2)) };
                    let (lse, mean) = row_stats(z, self.inv_t);
                    out[0] = z[self.targets[r0 + r] as usize] - lse;
                    out[1] = lse - mean;
                }
            });
        }
        if keep {
            *self.kept.lock().unwrap_or_else(|e| e.into_inner()) = Some(logits);
        }
        out
    }

    /// Gradients of the hidden rows and, if `gw` is given, of the matrix.
    fn backward(
        &self,
        x: &[f32],
        w: &[f32],
        packed: Option<&PackedF32>,
        g: &[f32],
        gx: &mut [f32],
        mut gw: Option<&mut [f32]>,
    ) {
        let m = self.targets.len();
        let d = x.len() / m;
        let vocab = w.len() / d;
        let mut kept = self.kept.lock().unwrap_or_else(|e| e.into_inner()).take();
        let rows = if kept.is_some() { m } else { CHUNK_ROWS };
        let repacked = (kept.is_none() && packed.is_none()).then(|| PackedF32::pack(w, vocab, d, WeightLayout::OutIn));
        let mut scratch = if kept.is_some() { Vec::new() } else { buffer(rows.min(m) * vocab) };
        for r0 in (0..m).step_by(rows) {
            let n = rows.min(m - r0);
            let (logits, fresh) = match &mut kept {
                Some(kept) => (kept.as_mut_slice(), false),
                None => (&mut scratch[..n * vocab], true),
            };
            if let (true, Some(packed)) = (fresh, packed.or(repacked.as_ref())) {
                packed.matmul(&x[r0 * d..(r0 + n) * d], logits, n);
            }
            let shared = SharedMut::new(logits);
            split(n, n * vocab * 4, |range| {
                for r in range {
                    // SAFETY: one row per r.
                    let z = unsafe { shared.slice(r * vocab, vocab) };
                    let lse = row_stats(z, if fresh { self.inv_t } else { 1.0 }).0;
                    row_grad(z, lse, self.targets[r0 + r] as usize, g[(r0 + r) * 2] * self.inv_t);
                }
            });
            matmul_into(&mut gx[r0 * d..(r0 + n) * d], logits, (n, vocab, false), w, d, false);
            if let Some(gw) = gw.as_deref_mut() {
                matmul_into(gw, logits, (n, vocab, true), &x[r0 * d..(r0 + n) * d], d, true);
            }
        }
    }
}

/// out = op(a)·b (+ out), row-major; `a` is (rows, cols), transposed when its flag says so.
fn matmul_into(
    out: &mut [f32],
    a: &[f32],
    (rows, cols, transposed): (usize, usize, bool),
    b: &[f32],
    n: usize,
    add: bool,
) {
    let (m, k) = if transposed { (cols, rows) } else { (rows, cols) };
    let (a_cs, a_rs) = if transposed { (cols as isize, 1) } else { (1, cols as isize) };
    assert!(out.len() == m * n && a.len() == rows * cols && b.len() == k * n, "matmul sizes");
    let threads = gemm::Parallelism::Rayon(rayon::current_num_threads());
    // SAFETY: sizes and strides are checked above; the three buffers do not overlap (borrow rules).
    unsafe {
        let (out, a, b) = (out.as_mut_ptr(), a.as_ptr(), b.as_ptr());
        gemm::gemm(
            m, n, k, out, 1, n as isize, add, a, a_cs, a_rs, b, 1, n as isize, 1.0, 1.0, false, false, false, threads,
        );
    }
}

impl CustomOp2 for Op {
    fn name(&self) -> &'static str {
        "token-logprobs"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, w) = (f32s(s1, l1, "token-logprobs")?, f32s(s2, l2, "token-logprobs")?);
        let (m, d) = l1.shape().dims2()?;
        let (vocab, d2) = l2.shape().dims2()?;
        if d != d2 {
            candle_core::bail!("token-logprobs: hidden has {d} columns, the matrix {d2}");
        }
        Ok(storage(self.forward(x, &PackedF32::pack(w, vocab, d, WeightLayout::OutIn)), (m, 2)))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _y: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (mut gx, mut gw) = (buffer(x.elem_count()), buffer(w.elem_count()));
        with_f32s(x, |xs| {
            with_f32s(w, |ws| {
                with_f32s(g, |g| {
                    self.backward(xs, ws, None, g, &mut gx, Some(&mut gw));
                    Ok(())
                })
            })
        })?;
        Ok((Some(tensor(gx, x.shape())?), Some(tensor(gw, w.shape())?)))
    }
}

impl CustomOp1 for Op {
    fn name(&self) -> &'static str {
        "token-logprobs-frozen"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = f32s(s, l, "token-logprobs")?;
        match &self.frozen {
            Some((packed, _)) => Ok(storage(self.forward(x, packed), (self.targets.len(), 2))),
            None => candle_core::bail!("token-logprobs: no frozen matrix"),
        }
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let Some((packed, Some(w))) = &self.frozen else {
            candle_core::bail!("token-logprobs: the output matrix was loaded for serving only");
        };
        let mut gx = buffer(x.elem_count());
        with_f32s(x, |xs| {
            with_f32s(w, |ws| {
                with_f32s(g, |g| {
                    self.backward(xs, ws, Some(packed), g, &mut gx, None);
                    Ok(())
                })
            })
        })?;
        Ok(Some(tensor(gx, x.shape())?))
    }
}

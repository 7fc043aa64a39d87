//! log p(target | hidden row) and entropy straight from hidden states and the output matrix, without keeping
//! [rows, vocab] in the autograd graph: forward computes the gradient too, up to each row's factor.

use std::sync::Mutex;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};

use super::attn_kernel::{soft_cap, soft_cap_slopes};
use super::linear::Weight;
use super::par::{SharedMut, split};
use super::simd::{exp, max, multiversion};
use super::{buffer, f32s, fused, plain, pool, read, storage, tensor};

/// Of a trained matrix, logits of at most this many bytes are kept for its gradient instead of being rebuilt.
const KEEP_BYTES: usize = 160 << 20;
/// Rows of logits held at once otherwise.
const CHUNK_ROWS: usize = 384;

/// Per-row results, both `[m]`, f32.
pub struct TokenLogprobs {
    /// log-softmax(logits / temperature) at the target, differentiable in hidden and weight.
    pub logprobs: Tensor,
    /// Entropy of softmax(logits / temperature) in nats; carries a gradient only where it was asked for.
    pub entropy: Tensor,
}

/// What becomes of the products of hidden states and output matrix before they are logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogitShape {
    pub divisor: f32,
    /// Logits become cap · tanh(logit / cap), after the division.
    pub cap: Option<f32>,
}

impl Default for LogitShape {
    fn default() -> Self {
        Self { divisor: 1.0, cap: None }
    }
}

impl LogitShape {
    /// Products [m, vocab] to logits, f32.
    pub fn apply(self, products: &Tensor) -> Result<Tensor> {
        let x = products.to_dtype(candle_core::DType::F32)?;
        if self == Self::default() {
            return Ok(x);
        }
        if fused(&x) && !x.track_op() {
            let mut z = read(&x.contiguous()?)?.to_vec();
            let width = x.dim(candle_core::D::Minus1)?.max(1);
            for row in z.chunks_exact_mut(width) {
                self.apply_to(row);
            }
            return tensor(z, x.shape());
        }
        let x = (x / f64::from(self.divisor))?;
        self.cap.map_or(Ok(x.clone()), |cap| plain::soft_cap(&x, f64::from(cap)))
    }

    /// Products of one row `[vocab]` to logits, in place.
    pub fn apply_to(self, z: &mut [f32]) {
        match self.cap {
            Some(cap) => soft_cap(z, cap, 1.0 / self.divisor),
            None if self.divisor != 1.0 => z.iter_mut().for_each(|v| *v /= self.divisor),
            None => {}
        }
    }

    /// The gradient `g` of logits becomes that of the products; `slopes` are those of the cap.
    fn back(self, g: &mut [f32], slopes: &[f32]) {
        g.iter_mut().zip(slopes).for_each(|(g, slope)| *g *= slope);
        if self.divisor != 1.0 {
            g.iter_mut().for_each(|g| *g /= self.divisor);
        }
    }
}

/// `hidden` `[m, d]`, output matrix `[vocab, d]`, `targets` `[m]` < vocab; `temperature` > 0 divides the logits.
pub fn token_logprobs(hidden: &Tensor, head: &Weight, targets: &[u32], temperature: f32) -> Result<TokenLogprobs> {
    shaped_logprobs(hidden, head, targets, temperature, LogitShape::default())
}

/// As `token_logprobs`, of logits that `shape` divides and caps first.
pub fn shaped_logprobs(
    hidden: &Tensor,
    head: &Weight,
    targets: &[u32],
    temperature: f32,
    shape: LogitShape,
) -> Result<TokenLogprobs> {
    let TokenLogprobs { logprobs, entropy } = both(hidden, head, targets, temperature, shape, false)?;
    Ok(TokenLogprobs { logprobs, entropy: entropy.detach() })
}

/// The same values, with a gradient of the entropies as well. Nothing of the logits is kept: the backward pass computes
/// them again.
pub fn with_entropy(
    hidden: &Tensor,
    head: &Weight,
    targets: &[u32],
    temperature: f32,
    shape: LogitShape,
) -> Result<TokenLogprobs> {
    both(hidden, head, targets, temperature, shape, true)
}

fn both(
    hidden: &Tensor,
    head: &Weight,
    targets: &[u32],
    temperature: f32,
    shape: LogitShape,
    entropy: bool,
) -> Result<TokenLogprobs> {
    let (m, _) = hidden.dims2()?;
    let vocab = head.out_features();
    if targets.len() != m {
        candle_core::bail!("token_logprobs: {m} rows, {} targets", targets.len());
    }
    if let Some(t) = targets.iter().find(|t| **t as usize >= vocab) {
        candle_core::bail!("token_logprobs: target {t} is outside the vocabulary of {vocab}");
    }
    if m > 0 && fused(hidden) && head.on_host() && !matches!(head, Weight::Served(_)) {
        let hidden = hidden.contiguous()?;
        let op = Op {
            head: head.clone(),
            targets: targets.to_vec(),
            inv_t: 1.0 / temperature,
            shape,
            slopes: hidden.track_op(),
            entropy,
            kept: Mutex::default(),
        };
        let both = if head.trained() { hidden.apply_op2(head.dense()?, op)? } else { hidden.apply_op1(op)? };
        let entropy = both.narrow(1, 1, 1)?.squeeze(1)?;
        return Ok(TokenLogprobs { logprobs: both.narrow(1, 0, 1)?.squeeze(1)?, entropy });
    }
    let logits = (shape.apply(&head.apply(hidden)?)? / f64::from(temperature))?;
    let all = plain::log_softmax(&logits)?;
    let index = Tensor::new(targets, hidden.device())?.unsqueeze(1)?;
    let entropy = (all.exp()? * &all)?.sum(1)?.neg()?;
    Ok(TokenLogprobs { logprobs: all.gather(&index, 1)?.squeeze(1)?, entropy })
}

/// Entropy in nats of softmax(logits / temperature), bit-identical to training's.
pub fn entropy(logits: &[f32], temperature: f32) -> f32 {
    let mut z = logits.to_vec();
    let (lse, mean) = row_stats(&mut z, 1.0 / temperature);
    lse - mean
}

struct Op {
    head: Weight,
    targets: Vec<u32>,
    inv_t: f32,
    shape: LogitShape,
    /// Whether hidden wants a gradient.
    slopes: bool,
    /// Whether the entropies have one.
    entropy: bool,
    kept: Mutex<Kept>,
}

/// What forward leaves for backward.
#[derive(Default)]
struct Kept {
    /// d log p(target) / d hidden [m, d]: the gradient of row r is g_r times row r, whatever g_r will be.
    slopes: Vec<f32>,
    /// d log p(target) / d logits [m, vocab], where the matrix is trained and this is small.
    logits: Option<Vec<f32>>,
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
    /// z ← (onehot(target) − softmax(z)) · inv_t, the gradient of the log-prob with respect to the raw logits.
    fn row_grad(z: &mut [f32], lse: f32, target: usize, inv_t: f32) {
        for v in z.iter_mut() {
            *v = -inv_t * exp(*v - lse);
        }
        z[target] += inv_t;
    }
}

multiversion! {
    /// z, scaled by 1/T → the gradient of `g[0]`·log p(target) + `g[1]`·entropy with respect to the raw logits, with the
    /// log-sum-exp and Σ p·z of z. Of the entropy it is −p·(log p + entropy) = −p·(z − Σ p·z).
    fn row_grad_of_both(z: &mut [f32], lse: f32, mean: f32, target: usize, g: [f32; 2], inv_t: f32) {
        for v in z.iter_mut() {
            *v = -inv_t * exp(*v - lse) * (g[0] + g[1] * (*v - mean));
        }
        z[target] += inv_t * g[0];
    }
}

/// What becomes of a row of logits once its results are known.
#[derive(Clone, Copy)]
enum Slopes<'a> {
    /// It stays.
    None,
    /// The gradient of the log-prob.
    OfLogprob,
    /// The gradient of the log-prob and of the entropy, each times its factor: [m, 2].
    OfBoth(&'a [f32]),
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
    /// Logits of rows `r0..` of x, turned into gradients with respect to them as `grads` says; results go to `out`.
    fn rows(&self, x: &[f32], r0: usize, z: &mut [f32], out: Option<&mut [f32]>, grads: Slopes<'_>) -> Result<()> {
        let vocab = self.head.out_features();
        let n = z.len() / vocab;
        let d = x.len() / self.targets.len();
        self.head.forward(&x[r0 * d..(r0 + n) * d], z, n, None)?;
        let mut unused = Vec::new();
        let out = out.unwrap_or_else(|| {
            unused = vec![0f32; 2 * n];
            &mut unused
        });
        let (shared, results) = (SharedMut::new(z), SharedMut::new(out));
        split(n, n * vocab * 4, |range| {
            for r in range {
                // SAFETY: one row of logits and results per r.
                let (z, out) = unsafe { (shared.slice(r * vocab, vocab), results.slice(r * 2, 2)) };
                let target = self.targets[r0 + r] as usize;
                self.shape.apply_to(z);
                let mut slopes = Vec::new();
                if let Some(cap) = self.shape.cap.filter(|_| !matches!(grads, Slopes::None)) {
                    slopes.resize(vocab, 0.0);
                    soft_cap_slopes(z, cap, &mut slopes);
                }
                let (lse, mean) = row_stats(z, self.inv_t);
                out[0] = z[target] - lse;
                out[1] = lse - mean;
                match grads {
                    Slopes::None => continue,
                    Slopes::OfLogprob => row_grad(z, lse, target, self.inv_t),
                    Slopes::OfBoth(g) => {
                        let at = (r0 + r) * 2;
                        row_grad_of_both(z, lse, mean, target, [g[at], g[at + 1]], self.inv_t);
                    }
                }
                self.shape.back(z, &slopes);
            }
        });
        Ok(())
    }

    /// (log-prob, entropy) rows [m, 2].
    fn forward(&self, x: &[f32]) -> Result<Vec<f32>> {
        let (m, vocab) = (self.targets.len(), self.head.out_features());
        let d = x.len() / m;
        let keep = !self.entropy && self.head.trained() && m * vocab * size_of::<f32>() <= KEEP_BYTES;
        let slopes = self.slopes && !self.entropy;
        let rows = if keep { m } else { CHUNK_ROWS.min(m) };
        let mut kept = Kept::default();
        if slopes {
            kept.slopes = pool::take(m * d);
        }
        let mut out = buffer(m * 2);
        let mut logits = pool::take(rows * vocab);
        for r0 in (0..m).step_by(rows) {
            let n = rows.min(m - r0);
            let z = &mut logits[..n * vocab];
            let grads = if slopes || keep { Slopes::OfLogprob } else { Slopes::None };
            self.rows(x, r0, z, Some(&mut out[r0 * 2..(r0 + n) * 2]), grads)?;
            if slopes {
                self.head.backward_input(z, &mut kept.slopes[r0 * d..(r0 + n) * d], n, false, None)?;
            }
        }
        if keep {
            kept.logits = Some(logits);
        } else {
            pool::give(logits);
        }
        *self.kept.lock().unwrap_or_else(|e| e.into_inner()) = kept;
        Ok(out)
    }

    /// Gradients of hidden and of the matrix for `g` [m, 2].
    fn backward(&self, x: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        match self.entropy {
            true => self.backward_of_both(x, g),
            false => self.backward_of_logprobs(x, g),
        }
    }

    /// The logits again, a chunk of rows at a time, and their gradient.
    fn backward_of_both(&self, x: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (m, d) = x.dims2()?;
        let vocab = self.head.out_features();
        let g = g.contiguous()?;
        let (g, x) = (read(&g)?, read(x)?);
        let mut gx = if self.slopes { pool::take(m * d) } else { Vec::new() };
        let mut gw = None;
        let rows = CHUNK_ROWS.min(m);
        let mut logits = pool::take(rows * vocab);
        for r0 in (0..m).step_by(rows) {
            let n = rows.min(m - r0);
            let z = &mut logits[..n * vocab];
            self.rows(&x, r0, z, None, Slopes::OfBoth(&g))?;
            if self.slopes {
                self.head.backward_input(z, &mut gx[r0 * d..(r0 + n) * d], n, false, None)?;
            }
            if self.head.trained() {
                let part = self.head.backward_weight(&x[r0 * d..(r0 + n) * d], z, n)?;
                gw = match (gw, part) {
                    (Some(sum), Some(part)) => Some((sum + part)?),
                    (sum, part) => sum.or(part),
                };
            }
        }
        pool::give(logits);
        let gx = if self.slopes { Some(tensor(gx, (m, d))?) } else { None };
        Ok((gx, gw))
    }

    /// Entropy's column of `g` carries nothing.
    fn backward_of_logprobs(&self, x: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (m, d) = x.dims2()?;
        let vocab = self.head.out_features();
        let Kept { mut slopes, logits } = std::mem::take(&mut *self.kept.lock().unwrap_or_else(|e| e.into_inner()));
        let g = g.contiguous()?;
        let g: Vec<f32> = read(&g)?.iter().step_by(2).copied().collect();
        let mut gw = None;
        if self.head.trained() {
            let x = read(x)?;
            let mut scaled = pool::take(m * d);
            for ((to, from), g) in scaled.chunks_exact_mut(d).zip(x.chunks_exact(d)).zip(&g) {
                to.iter_mut().zip(from).for_each(|(t, f)| *t = f * g);
            }
            match logits {
                Some(z) => {
                    gw = self.head.backward_weight(&scaled, &z, m)?;
                    pool::give(z);
                }
                None => {
                    let rows = CHUNK_ROWS.min(m);
                    let mut logits = pool::take(rows * vocab);
                    for r0 in (0..m).step_by(rows) {
                        let n = rows.min(m - r0);
                        let z = &mut logits[..n * vocab];
                        self.rows(&x, r0, z, None, Slopes::OfLogprob)?;
                        let part = self.head.backward_weight(&scaled[r0 * d..(r0 + n) * d], z, n)?;
                        gw = match (gw, part) {
                            (Some(sum), Some(part)) => Some((sum + part)?),
                            (sum, part) => sum.or(part),
                        };
                    }
                    pool::give(logits);
                }
            }
            pool::give(scaled);
        }
        if !self.slopes {
            return Ok((None, gw));
        }
        slopes.chunks_exact_mut(d).zip(&g).for_each(|(row, g)| row.iter_mut().for_each(|v| *v *= g));
        Ok((Some(tensor(slopes, (m, d))?), gw))
    }
}

impl CustomOp2 for Op {
    fn name(&self) -> &'static str {
        "token-logprobs"
    }

    /// The second argument is the trained matrix: it ties the result to the graph and is read through `head`.
    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok(storage(self.forward(f32s(s, l, "token-logprobs")?)?, (self.targets.len(), 2)))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, _: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        self.backward(x, g)
    }
}

impl CustomOp1 for Op {
    fn name(&self) -> &'static str {
        "token-logprobs-frozen"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok(storage(self.forward(f32s(s, l, "token-logprobs")?)?, (self.targets.len(), 2)))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        Ok(self.backward(x, g)?.0)
    }
}

//! Log-probs of target tokens and entropies, computed from hidden states and the output matrix without logits `[rows,
//! vocab]` in the autograd graph. The forward pass also computes the gradient of each row, up to the factor of the row.

use std::sync::Mutex;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};

use super::attn_kernel::{soft_cap, soft_cap_slopes};
use super::linear::Weight;
use super::par::{SharedMut, split};
use super::simd::{exp, max, multiversion};
use super::{buffer, f32s, fused, plain, pool, read, storage, tensor};

/// For a trained output matrix, gradients of logits up to this size are saved for the backward pass; larger ones are
/// recomputed.
const SAVED_BYTES: usize = 160 << 20;
/// Number of rows whose logits are in memory at a time otherwise.
const CHUNK_ROWS: usize = 384;

/// The results, both f32 `[m]`.
pub struct TokenLogprobs {
    /// log-softmax(logits / temperature) of the target in nats, differentiable in hidden states and weight.
    pub logprobs: Tensor,
    /// The entropy of softmax(logits / temperature) in nats. Only `with_entropy` gives it a gradient.
    pub entropy: Tensor,
}

/// How logits are computed from the products of hidden states and output matrix.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogitShape {
    /// Divides the products.
    pub divisor: f32,
    /// After the division, logits become cap · tanh(logit / cap).
    pub cap: Option<f32>,
}

impl Default for LogitShape {
    fn default() -> Self {
        Self { divisor: 1.0, cap: None }
    }
}

impl LogitShape {
    /// Converts products `[m, vocab]` to logits, f32.
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

    /// Converts the products of one row `[vocab]` to logits, in place.
    pub fn apply_to(self, z: &mut [f32]) {
        match self.cap {
            Some(cap) => soft_cap(z, cap, 1.0 / self.divisor),
            None if self.divisor != 1.0 => z.iter_mut().for_each(|v| *v /= self.divisor),
            None => {}
        }
    }

    /// Converts the gradient `g` of the logits to that of the products. `slopes` are the derivatives of the cap.
    fn backward(self, g: &mut [f32], slopes: &[f32]) {
        g.iter_mut().zip(slopes).for_each(|(g, slope)| *g *= slope);
        if self.divisor != 1.0 {
            g.iter_mut().for_each(|g| *g /= self.divisor);
        }
    }
}

/// The log-probs of `targets` `[m]` and the entropies, for hidden states `[m, hidden]` and the output matrix
/// `[vocab, hidden]`. `temperature` > 0 divides the logits.
pub fn token_logprobs(hidden: &Tensor, head: &Weight, targets: &[u32], temperature: f32) -> Result<TokenLogprobs> {
    shaped_logprobs(hidden, head, targets, temperature, LogitShape::default())
}

/// The log-probs of `targets` `[m]` and the entropies, with logits that `shape` divides and caps.
pub fn shaped_logprobs(
    hidden: &Tensor,
    head: &Weight,
    targets: &[u32],
    temperature: f32,
    shape: LogitShape,
) -> Result<TokenLogprobs> {
    let TokenLogprobs { logprobs, entropy } = compute(hidden, head, targets, temperature, shape, false)?;
    Ok(TokenLogprobs { logprobs, entropy: entropy.detach() })
}

/// The log-probs of `targets` `[m]` and the entropies, both differentiable. The backward pass recomputes the logits.
pub fn with_entropy(
    hidden: &Tensor,
    head: &Weight,
    targets: &[u32],
    temperature: f32,
    shape: LogitShape,
) -> Result<TokenLogprobs> {
    compute(hidden, head, targets, temperature, shape, true)
}

fn compute(
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
        let op = TokenLogprobsOp {
            head: head.clone(),
            targets: targets.to_vec(),
            inv_t: 1.0 / temperature,
            shape,
            slopes: hidden.track_op(),
            entropy,
            saved: Mutex::default(),
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

/// The entropy in nats of softmax(logits / temperature), with the bits that training's forward pass gives.
pub fn entropy(logits: &[f32], temperature: f32) -> f32 {
    let mut z = logits.to_vec();
    let (lse, mean) = row_stats(&mut z, 1.0 / temperature);
    lse - mean
}

struct TokenLogprobsOp {
    head: Weight,
    targets: Vec<u32>,
    inv_t: f32,
    shape: LogitShape,
    /// Whether the hidden states need a gradient.
    slopes: bool,
    /// Whether the entropies have a gradient.
    entropy: bool,
    saved: Mutex<SavedGradients>,
}

/// Gradients that the forward pass saves for the backward pass.
#[derive(Default)]
struct SavedGradients {
    /// d log p(target) / d hidden, `[m, hidden]`: the gradient of row r is g_r times this row.
    slopes: Vec<f32>,
    /// d log p(target) / d logits, `[m, vocab]`, if the matrix is trained and this is small.
    logits: Option<Vec<f32>>,
}

multiversion! {
    /// Multiplies a row of logits by 1/T in place. Returns (log-sum-exp, Σ p·z).
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
    /// Replaces z by (onehot(target) − softmax(z)) · inv_t, the gradient of the log-prob with respect to the logits.
    fn row_grad(z: &mut [f32], lse: f32, target: usize, inv_t: f32) {
        for v in z.iter_mut() {
            *v = -inv_t * exp(*v - lse);
        }
        z[target] += inv_t;
    }
}

multiversion! {
    /// Replaces z (logits / T, with their log-sum-exp and mean Σ p·z) by the gradient of g[0]·log p(target) +
    /// g[1]·entropy with respect to the logits. The gradient of the entropy is −p·(log p + entropy) = −p·(z − Σ p·z).
    fn row_grad_of_both(z: &mut [f32], lse: f32, mean: f32, target: usize, g: [f32; 2], inv_t: f32) {
        for v in z.iter_mut() {
            *v = -inv_t * exp(*v - lse) * (g[0] + g[1] * (*v - mean));
        }
        z[target] += inv_t * g[0];
    }
}

/// The gradient by which a row of logits is replaced.
#[derive(Clone, Copy)]
enum RowGradient<'a> {
    /// None: the logits stay.
    None,
    /// The gradient of the log-prob.
    OfLogprob,
    /// The gradient of the log-prob and of the entropy, each times its factor in `[m, 2]`.
    OfBoth(&'a [f32]),
}

/// The log-sum-exp of `logits · inv_t`, with the bits that the fused operation gives.
pub fn log_sum_exp(logits: &[f32], inv_t: f32) -> f32 {
    row_normaliser(logits, inv_t)
}

multiversion! {
    /// The log-sum-exp of `row_stats`, without changing the logits.
    fn row_normaliser(logits: &[f32], inv_t: f32) -> f32 {
        // Scaling preserves the order, also after rounding.
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

impl TokenLogprobsOp {
    /// Computes the logits z of rows `r0..` of x and replaces them by the gradients that `grads` requests. Writes
    /// (log-prob, entropy) of each row to `out`.
    fn rows(&self, x: &[f32], r0: usize, z: &mut [f32], out: Option<&mut [f32]>, grads: RowGradient<'_>) -> Result<()> {
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
                if let Some(cap) = self.shape.cap.filter(|_| !matches!(grads, RowGradient::None)) {
                    slopes.resize(vocab, 0.0);
                    soft_cap_slopes(z, cap, &mut slopes);
                }
                let (lse, mean) = row_stats(z, self.inv_t);
                out[0] = z[target] - lse;
                out[1] = lse - mean;
                match grads {
                    RowGradient::None => continue,
                    RowGradient::OfLogprob => row_grad(z, lse, target, self.inv_t),
                    RowGradient::OfBoth(g) => {
                        let at = (r0 + r) * 2;
                        row_grad_of_both(z, lse, mean, target, [g[at], g[at + 1]], self.inv_t);
                    }
                }
                self.shape.backward(z, &slopes);
            }
        });
        Ok(())
    }

    /// Computes (log-prob, entropy) of each row, `[m, 2]`.
    fn forward(&self, x: &[f32]) -> Result<Vec<f32>> {
        let (m, vocab) = (self.targets.len(), self.head.out_features());
        let d = x.len() / m;
        let save = !self.entropy && self.head.trained() && m * vocab * size_of::<f32>() <= SAVED_BYTES;
        let slopes = self.slopes && !self.entropy;
        let rows = if save { m } else { CHUNK_ROWS.min(m) };
        let mut saved = SavedGradients::default();
        if slopes {
            saved.slopes = pool::take(m * d);
        }
        let mut out = buffer(m * 2);
        let mut logits = pool::take(rows * vocab);
        for r0 in (0..m).step_by(rows) {
            let n = rows.min(m - r0);
            let z = &mut logits[..n * vocab];
            let grads = if slopes || save { RowGradient::OfLogprob } else { RowGradient::None };
            self.rows(x, r0, z, Some(&mut out[r0 * 2..(r0 + n) * 2]), grads)?;
            if slopes {
                self.head.backward_input(z, &mut saved.slopes[r0 * d..(r0 + n) * d], n, false, None)?;
            }
        }
        if save {
            saved.logits = Some(logits);
        } else {
            pool::give(logits);
        }
        *self.saved.lock().unwrap_or_else(|e| e.into_inner()) = saved;
        Ok(out)
    }

    /// The gradients of hidden states and output matrix, for the gradient `g` `[m, 2]` of the results.
    fn backward(&self, x: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        match self.entropy {
            true => self.backward_of_both(x, g),
            false => self.backward_of_logprobs(x, g),
        }
    }

    /// Recomputes the logits, a chunk of rows at a time, and their gradients.
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
            self.rows(&x, r0, z, None, RowGradient::OfBoth(&g))?;
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

    /// Uses the saved gradients. The entropy's column of `g` is ignored.
    fn backward_of_logprobs(&self, x: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (m, d) = x.dims2()?;
        let vocab = self.head.out_features();
        let SavedGradients { mut slopes, logits } =
            std::mem::take(&mut *self.saved.lock().unwrap_or_else(|e| e.into_inner()));
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
                        self.rows(&x, r0, z, None, RowGradient::OfLogprob)?;
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

impl CustomOp2 for TokenLogprobsOp {
    fn name(&self) -> &'static str {
        "token-logprobs"
    }

    /// The second argument is the trained matrix. It connects the result to the graph; its data is read through `head`.
    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok(storage(self.forward(f32s(s, l, "token-logprobs")?)?, (self.targets.len(), 2)))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, _: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        self.backward(x, g)
    }
}

impl CustomOp1 for TokenLogprobsOp {
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

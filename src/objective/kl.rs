//! KL divergence between policy and reference: per-token estimators (<http://joschu.net/blog/kl-approx.html>), rewards
//! with a KL penalty, and the controller of the coefficient.

use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};

/// k1 = log π − log π_ref per token: unbiased, may be negative.
pub fn k1(logprobs: &[f64], reference: &[f64]) -> Vec<f64> {
    logprobs.iter().zip(reference).map(|(p, r)| p - r).collect()
}

/// k3 = e^d − 1 − d with d = log π_ref − log π, for samples of π: unbiased and never negative.
pub fn k3(logprobs: &[f64], reference: &[f64]) -> Vec<f64> {
    logprobs.iter().zip(reference).map(|(p, r)| (r - p).exp_m1() - (r - p)).collect()
}

/// `logprobs [n]` with a gradient, `reference [n]` → k3 per token `[n]`, with a gradient.
pub fn k3_tensor(logprobs: &Tensor, reference: &Tensor) -> Result<Tensor> {
    let d = (reference - logprobs)?;
    (d.exp()? - 1.0)? - d
}

/// r_t = −β·k1_t, plus the score of an answer at its last token. `kl` has the concatenated tokens of all answers;
/// consecutive ones may be the turns of a conversation. The score of an empty answer is ignored.
pub fn shaped_rewards(kl: &[f64], lengths: &[usize], scores: &[f64], coef: f64) -> Vec<f64> {
    debug_assert_eq!(lengths.len(), scores.len());
    let mut rewards: Vec<f64> = kl.iter().map(|k| -coef * k).collect();
    let mut end = 0;
    for (&n, score) in lengths.iter().zip(scores) {
        end += n;
        if n > 0 {
            rewards[end - 1] += score;
        }
    }
    rewards
}

/// β, fixed or adaptive (arXiv 1909.08593, section 2.2): β ← β·(1 + clip(KL/target − 1, ±0.2)·n/horizon).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KlController {
    pub coef: f64,
    /// `None` means a fixed β.
    pub adaptive: Option<AdaptiveKl>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdaptiveKl {
    /// KL in nats per sequence.
    pub target: f64,
    /// Number of episodes over which β is corrected.
    pub horizon: f64,
}

impl KlController {
    /// Updates an adaptive β. `kl` is the mean over sequences of their sums of k1, `n` the number of sequences since
    /// the last update.
    pub fn update(&mut self, kl: f64, n: usize) {
        if let Some(AdaptiveKl { target, horizon }) = self.adaptive {
            let error = (kl / target - 1.0).clamp(-0.2, 0.2);
            self.coef *= 1.0 + error * n as f64 / horizon;
        }
    }
}

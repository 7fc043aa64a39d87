//! KL between policy and reference: per-token estimators, KL-shaped rewards, and the coefficient's controller.

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

/// `logprobs [n]` (with gradient), `reference [n]` → k3 per token `[n]`, with gradient.
pub fn k3_tensor(logprobs: &Tensor, reference: &Tensor) -> Result<Tensor> {
    let d = (reference - logprobs)?;
    (d.exp()? - 1.0)? - d
}

/// r_t = −β·k1_t, and the score of a sequence added at its last token.
/// `kl` holds all response tokens end to end; every length must be at least 1 for its score to land.
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

/// β, fixed or adaptive (Ziegler et al.): β ← β·(1 + clip(KL/target − 1, ±0.2)·n/horizon).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KlController {
    pub coef: f64,
    /// Nats per sequence to aim for, and the number of episodes over which to correct; `None` = fixed.
    pub adaptive: Option<AdaptiveKl>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdaptiveKl {
    pub target: f64,
    pub horizon: f64,
}

impl KlController {
    /// `kl` = mean over sequences of the sum of k1, `n` = sequences seen since the last update.
    pub fn update(&mut self, kl: f64, n: usize) {
        if let Some(AdaptiveKl { target, horizon }) = self.adaptive {
            let error = (kl / target - 1.0).clamp(-0.2, 0.2);
            self.coef *= 1.0 + error * n as f64 / horizon;
        }
    }
}

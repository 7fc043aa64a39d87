//! REINFORCE with a baseline: −A·Σ_t log π, mean over sequences. RLOO shares the loss.

use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};

use super::{Stats, sum_f64};

/// `logprobs [n]` with gradient, `advantages [n]` (that of its sequence at every token), sequences of the
/// global batch → −Σ A·log π / total_sequences. Stats: `policy_loss` per sequence of `n_sequences` here.
pub fn loss(
    logprobs: &Tensor,
    advantages: &Tensor,
    n_sequences: usize,
    total_sequences: f64,
) -> Result<(Tensor, Stats)> {
    let terms = (logprobs * advantages)?.neg()?;
    let mut stats = Stats::default();
    stats.add("policy_loss", sum_f64(&terms)?, n_sequences as f64);
    Ok(((terms.sum_all()? / total_sequences)?, stats))
}

/// Subtracts the mean of the batch from every return.
pub fn centered(returns: &[f64]) -> Vec<f64> {
    let (mean, _) = super::whiten::moments(returns);
    returns.iter().map(|r| r - mean).collect()
}

/// Exponential running mean of returns, the classical baseline. The first batch sets it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunningBaseline {
    pub mean: Option<f64>,
}

impl RunningBaseline {
    /// Advantages against the mean *before* this batch (unbiased), then moves the mean by `rate`.
    pub fn advantages(&mut self, returns: &[f64], rate: f64) -> Vec<f64> {
        let (batch, _) = super::whiten::moments(returns);
        let baseline = self.mean.unwrap_or(batch);
        self.mean = Some(baseline + rate * (batch - baseline));
        returns.iter().map(|r| r - baseline).collect()
    }
}

//! REINFORCE with a baseline: the mean over sequences of −A·Σ_t log π. RLOO uses the same loss.

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

/// Returns minus the mean of the batch.
pub fn centered(returns: &[f64]) -> Vec<f64> {
    let (mean, _) = super::whiten::moments(returns);
    returns.iter().map(|r| r - mean).collect()
}

/// An exponential moving average of returns as the baseline. The first batch initialises it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunningBaseline {
    pub mean: Option<f64>,
}

impl RunningBaseline {
    /// Returns minus the mean before this batch, which is unbiased. Then updates the mean with `rate`.
    pub fn advantages(&mut self, returns: &[f64], rate: f64) -> Vec<f64> {
        let (batch, _) = super::whiten::moments(returns);
        let baseline = self.mean.unwrap_or(batch);
        self.mean = Some(baseline + rate * (batch - baseline));
        returns.iter().map(|r| r - baseline).collect()
    }
}

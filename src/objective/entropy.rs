//! Entropy bonus: the loss decreases with the mean entropy of the policy's distributions, for exploration.

use candle_core::{Result, Tensor};

use super::{Stats, sum_f64};

/// `entropy [n]` in nats with a gradient, `weights [n]`, of which tokens with a weight above 0 count, and the number of
/// such tokens in the whole batch → −Σ entropy / `total_tokens`. As in TRL, the bonus is the mean per token for any
/// normalisation of the policy's loss. Stats: `update_entropy`.
pub fn loss(entropy: &Tensor, weights: &Tensor, total_tokens: f64) -> Result<(Tensor, Stats)> {
    let counts = weights.gt(0.0)?;
    let counted = counts.where_cond(entropy, &entropy.zeros_like()?)?;
    let mut stats = Stats::default();
    stats.add("update_entropy", sum_f64(&counted)?, sum_f64(&counts)?);
    Ok(((counted.sum_all()?.neg()? / total_tokens.max(1.0))?, stats))
}

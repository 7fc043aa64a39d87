//! Entropy bonus: the loss falls with the mean entropy of the policy's distributions, which keeps it exploring.

use candle_core::{Result, Tensor};

use super::{Stats, sum_f64};

/// `entropy [n]` in nats with gradient, `weights [n]` of which those above 0 count, the tokens that count in the global
/// batch → −Σ entropy / `total_tokens`: the bonus is the mean per token whatever the policy's loss is normalised by, as
/// in TRL. Stats: `update_entropy`.
pub fn loss(entropy: &Tensor, weights: &Tensor, total_tokens: f64) -> Result<(Tensor, Stats)> {
    let counts = weights.gt(0.0)?;
    let kept = counts.where_cond(entropy, &entropy.zeros_like()?)?;
    let mut stats = Stats::default();
    stats.add("update_entropy", sum_f64(&kept)?, sum_f64(&counts)?);
    Ok(((kept.sum_all()?.neg()? / total_tokens.max(1.0))?, stats))
}

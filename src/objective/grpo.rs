//! GRPO (2402.03300): advantages normalised in their group, clipped loss averaged per sequence, k3 in the loss.

use candle_core::{Result, Tensor};

use super::{Stats, kl, ppo, sum_f64};

/// `rewards` of consecutive groups → (r − mean) / (population std + eps).
/// `None` when a group has fewer than two samples or is not full: its advantage would always be 0.
pub fn advantages(rewards: &[f64], group: usize, eps: f64) -> Option<Vec<f64>> {
    if group < 2 || !rewards.len().is_multiple_of(group) {
        return None;
    }
    let mut out = Vec::with_capacity(rewards.len());
    for samples in rewards.chunks(group) {
        let (mean, variance) = super::whiten::moments(samples);
        out.extend(samples.iter().map(|r| (r - mean) / (variance.sqrt() + eps)));
    }
    Some(out)
}

/// The numbers that the loss is taken against; all `[n]`, without gradient.
pub struct Targets<'a> {
    pub old: &'a Tensor,
    pub reference: &'a Tensor,
    pub advantages: &'a Tensor,
    /// 1 / (length of its sequence) at every token: every sequence counts the same.
    pub weights: &'a Tensor,
}

/// Σ weight·(clipped surrogate + β·k3) / total_sequences. Stats as in PPO, `k3` is the mean per token.
pub fn loss(
    new: &Tensor,
    targets: &Targets<'_>,
    clip: f64,
    beta: f64,
    total_sequences: f64,
) -> Result<(Tensor, Stats)> {
    let log_ratio = ppo::log_ratio(new, targets.old)?;
    let ratio = log_ratio.exp()?;
    let unclipped = (&ratio * targets.advantages)?.neg()?;
    let clipped = (ratio.detach().clamp(1.0 - clip, 1.0 + clip)? * targets.advantages)?.neg()?;
    let is_clipped = clipped.gt(&unclipped.detach())?;
    let k3 = kl::k3_tensor(new, targets.reference)?;
    let surrogate = is_clipped.where_cond(&clipped, &unclipped)?;
    let terms = ((&surrogate + (&k3 * beta)?)? * targets.weights)?;

    let mut stats = Stats::default();
    let n = new.elem_count() as f64;
    stats.add("policy_loss", sum_f64(&surrogate)?, n);
    stats.add("ratio", sum_f64(&ratio)?, n);
    stats.add("clip_fraction", sum_f64(&is_clipped)?, n);
    stats.add("approx_kl", 0.5 * sum_f64(&log_ratio.detach().sqr()?)?, n);
    stats.add("loss_k3", sum_f64(&k3)?, n);
    Ok(((terms.sum_all()? / total_sequences)?, stats))
}

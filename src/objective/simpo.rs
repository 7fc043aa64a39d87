//! SimPO (arXiv 2405.14734): the reward is the mean log-prob of a response's tokens, without a reference and
//! independent of the length, and the preferred response must have a larger reward by a margin.

use candle_core::{Result, Tensor};

use super::{Stats, dpo::smoothed, sum_f64};

/// Constants of the loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    pub beta: f64,
    /// γ, the margin between the two rewards.
    pub gamma: f64,
    /// ε of cDPO.
    pub label_smoothing: f64,
}

/// Mean log-probs per token `[m]` with gradient, `weights [m]` and their global sum →
/// Σ weight·−log σ(β·(chosen − rejected) − γ) / total, smoothed by ε as in cDPO. Stats: `loss`, `accuracy`, `margin`
/// (of the rewards), `chosen_reward`, `rejected_reward` (β · mean log-prob).
pub fn loss(
    chosen: &Tensor,
    rejected: &Tensor,
    weights: &Tensor,
    settings: &Settings,
    total_weight: f64,
) -> Result<(Tensor, Stats)> {
    let &Settings { beta, gamma, label_smoothing } = settings;
    let h = (chosen - rejected)?;
    let terms = (smoothed(&((&h * beta)? - gamma)?, label_smoothing)? * weights)?;

    let mut stats = Stats::default();
    let n = h.elem_count() as f64;
    stats.add("loss", sum_f64(&terms)?, sum_f64(weights)?);
    stats.add("accuracy", sum_f64(&h.detach().gt(0.0)?)?, n);
    stats.add("margin", beta * sum_f64(&h)?, n);
    stats.add("chosen_reward", beta * sum_f64(chosen)?, n);
    stats.add("rejected_reward", beta * sum_f64(rejected)?, n);
    Ok(((terms.sum_all()? / total_weight)?, stats))
}

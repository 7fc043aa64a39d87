//! Direct preference optimisation (2305.18290) and IPO (2310.12036) on summed sequence log-probs.

use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};

use super::{Stats, log_sigmoid, sum_f64};

/// How a log-ratio margin h becomes a loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DpoLoss {
    /// −log σ(β h)
    #[default]
    Sigmoid,
    /// (h − 1/(2β))², on per-sequence sums.
    Ipo,
}

/// Sequence log-probs, all `[m]`: policy with gradient, reference without.
pub struct Logps<'a> {
    pub policy_chosen: &'a Tensor,
    pub policy_rejected: &'a Tensor,
    pub ref_chosen: &'a Tensor,
    pub ref_rejected: &'a Tensor,
}

/// h = (π_c − ref_c) − (π_r − ref_r). `weights [m]` (1/#pairs of a set, or ones) and their global sum.
/// Stats: `loss`, `accuracy` (h > 0), `margin` (β·h), `chosen_reward`, `rejected_reward`.
pub fn loss(
    logps: &Logps<'_>,
    weights: &Tensor,
    kind: DpoLoss,
    beta: f64,
    total_weight: f64,
) -> Result<(Tensor, Stats)> {
    let chosen = (logps.policy_chosen - logps.ref_chosen)?;
    let rejected = (logps.policy_rejected - logps.ref_rejected)?;
    let h = (&chosen - &rejected)?;
    let terms = match kind {
        DpoLoss::Sigmoid => log_sigmoid(&(&h * beta)?)?.neg()?,
        DpoLoss::Ipo => (&h - 1.0 / (2.0 * beta))?.sqr()?,
    };
    let terms = (terms * weights)?;

    let mut stats = Stats::default();
    let n = h.elem_count() as f64;
    stats.add("loss", sum_f64(&terms)?, sum_f64(weights)?);
    stats.add("accuracy", sum_f64(&h.detach().gt(0.0)?)?, n);
    stats.add("margin", beta * sum_f64(&h)?, n);
    stats.add("chosen_reward", beta * sum_f64(&chosen)?, n);
    stats.add("rejected_reward", beta * sum_f64(&rejected)?, n);
    Ok(((terms.sum_all()? / total_weight)?, stats))
}

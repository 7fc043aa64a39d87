//! Direct preference optimisation (DPO, arXiv 2305.18290) on summed sequence log-probs, with label smoothing (cDPO,
//! <https://ericmitchell.ai/cdpo.pdf>), IPO (arXiv 2310.12036), and the robust form of `robust_dpo`.

use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};

use super::{Stats, log_sigmoid, robust_dpo, sum_f64};

/// How a log-ratio margin h becomes a loss. ε is the assumed share of flipped preferences.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DpoLoss {
    /// −(1 − ε)·log σ(β h) − ε·log σ(−β h): DPO without smoothing, cDPO with it.
    #[default]
    Sigmoid,
    /// (h − 1/(2β))², on per-sequence sums.
    Ipo,
    /// DPO's loss without the bias of noisy labels (rDPO).
    Robust,
}

/// The loss and its constants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    pub kind: DpoLoss,
    pub beta: f64,
    /// ε, from 0 to below ½. IPO ignores it.
    pub label_smoothing: f64,
}

/// Summed log-probs of sequences, all `[m]`: those of the policy with a gradient, those of the reference without.
pub struct Logps<'a> {
    pub policy_chosen: &'a Tensor,
    pub policy_rejected: &'a Tensor,
    pub ref_chosen: &'a Tensor,
    pub ref_rejected: &'a Tensor,
}

/// −(1 − ε)·log σ(x) − ε·log σ(−x), element-wise.
pub(super) fn smoothed(x: &Tensor, epsilon: f64) -> Result<Tensor> {
    let plain = log_sigmoid(x)?.neg()?;
    if epsilon == 0.0 {
        return Ok(plain);
    }
    (plain * (1.0 - epsilon))? - (log_sigmoid(&x.neg()?)? * epsilon)?
}

/// The weighted mean loss of margins h = (π_c − ref_c) − (π_r − ref_r), with `weights [m]` (1/#pairs of a set, or ones)
/// and their sum over the whole batch. Stats: `loss`, `accuracy` (h > 0), `margin` (β·h), `chosen_reward`,
/// `rejected_reward`.
pub fn loss(logps: &Logps<'_>, weights: &Tensor, settings: &Settings, total_weight: f64) -> Result<(Tensor, Stats)> {
    let &Settings { kind, beta, label_smoothing } = settings;
    let chosen = (logps.policy_chosen - logps.ref_chosen)?;
    let rejected = (logps.policy_rejected - logps.ref_rejected)?;
    let h = (&chosen - &rejected)?;
    let terms = match kind {
        DpoLoss::Sigmoid => smoothed(&(&h * beta)?, label_smoothing)?,
        DpoLoss::Ipo => (&h - 1.0 / (2.0 * beta))?.sqr()?,
        DpoLoss::Robust => robust_dpo::terms(&(&h * beta)?, label_smoothing)?,
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

/// The share ε of flipped judgments, if two people agree on a share `agreement` of pairs: if each judgment is wrong
/// with probability ε, independently, they agree with probability (1 − ε)² + ε². At most `MAX_NOISE`, also for an
/// agreement of ½ or less.
pub fn noise_from_agreement(agreement: f64) -> f64 {
    let signal = (2.0 * agreement - 1.0).clamp(0.0, 1.0).sqrt();
    (0.5 * (1.0 - signal)).min(MAX_NOISE)
}

/// Maximum ε: the robust loss divides by 1 − 2ε.
pub const MAX_NOISE: f64 = 0.45;

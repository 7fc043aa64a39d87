//! ORPO (arXiv 2403.07691): the language-model loss of the preferred response and the odds ratio of both, without a
//! reference.

use candle_core::{Result, Tensor};

use super::{Stats, log_sigmoid, sum_f64};

/// Mean log-probs are limited to −this, because the odds of a response with probability 1 are infinite.
const CERTAIN: f64 = 1e-7;

/// log(p / (1 − p)) for p = e^x and x ≤ 0, with a gradient.
fn log_odds(x: &Tensor) -> Result<Tensor> {
    let x = x.minimum(-CERTAIN)?;
    // 1 − e^x = −2t / (1 − t) with t = tanh(x/2), which is accurate near 0, where 1 − e^x is not.
    let t = (&x * 0.5)?.tanh()?;
    let rest = ((&t * -2.0)?.log()? - (1.0 - t)?.log()?)?;
    x - rest
}

/// Mean log-probs per token `[m]` with gradient, `weights [m]` and their global sum → Σ weight·(−chosen − λ·log σ(log
/// odds(chosen) − log odds(rejected))) / total. λ is TRL's `beta`. Stats: `loss`, `nll_loss` (−chosen), `accuracy`,
/// `margin`, `log_odds_ratio`, `chosen_reward`, `rejected_reward` (λ · mean log-prob).
pub fn loss(
    chosen: &Tensor,
    rejected: &Tensor,
    weights: &Tensor,
    lambda: f64,
    total_weight: f64,
) -> Result<(Tensor, Stats)> {
    let ratio = (log_odds(chosen)? - log_odds(rejected)?)?;
    let terms = ((chosen.neg()? - (log_sigmoid(&ratio)? * lambda)?)? * weights)?;

    let mut stats = Stats::default();
    let n = ratio.elem_count() as f64;
    let weight = sum_f64(weights)?;
    stats.add("loss", sum_f64(&terms)?, weight);
    stats.add("nll_loss", -sum_f64(&(chosen.detach() * weights)?)?, weight);
    stats.add("accuracy", sum_f64(&ratio.detach().gt(0.0)?)?, n);
    stats.add("log_odds_ratio", sum_f64(&ratio)?, n);
    stats.add("margin", lambda * (sum_f64(chosen)? - sum_f64(rejected)?), n);
    stats.add("chosen_reward", lambda * sum_f64(chosen)?, n);
    stats.add("rejected_reward", lambda * sum_f64(rejected)?, n);
    Ok(((terms.sum_all()? / total_weight)?, stats))
}

//! Proximal policy optimisation (arXiv 1707.06347): clipped policy loss and clipped value loss.

use candle_core::{Result, Tensor};

use super::{Stats, sum_f64};

/// Log-ratios are limited to ± this. Beyond it e^x overflows f32, and the infinity of a branch that was not selected
/// would give a NaN gradient.
const LOG_RATIO_LIMIT: f64 = 60.0;

/// log π_new − log π_old, limited.
pub(super) fn log_ratio(new: &Tensor, old: &Tensor) -> Result<Tensor> {
    (new - old)?.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
}

/// `new [n]` with gradient, `old [n]`, `advantages [n]` → Σ max(−Aρ, −A·clip(ρ, 1 ± clip)) / total_tokens,
/// ρ = e^(new − old). Stats: `policy_loss`, `ratio`, `clip_fraction` (clipped term strictly larger),
/// `approx_kl` (½ mean (new − old)²).
pub fn policy_loss(
    new: &Tensor,
    old: &Tensor,
    advantages: &Tensor,
    clip: f64,
    total_tokens: f64,
) -> Result<(Tensor, Stats)> {
    let log_ratio = log_ratio(new, old)?;
    let ratio = log_ratio.exp()?;
    let unclipped = (&ratio * advantages)?.neg()?;
    let clipped = (ratio.detach().clamp(1.0 - clip, 1.0 + clip)? * advantages)?.neg()?;
    // If the clipped term is larger, the ratio is out of range and has no gradient.
    let is_clipped = clipped.gt(&unclipped.detach())?;
    let terms = is_clipped.where_cond(&clipped, &unclipped)?;

    let mut stats = Stats::default();
    let n = new.elem_count() as f64;
    stats.add("policy_loss", sum_f64(&terms)?, n);
    stats.add("ratio", sum_f64(&ratio)?, n);
    stats.add("clip_fraction", sum_f64(&is_clipped)?, n);
    stats.add("approx_kl", 0.5 * sum_f64(&log_ratio.detach().sqr()?)?, n);
    Ok(((terms.sum_all()? / total_tokens)?, stats))
}

/// `values [n]` with gradient, `old [n]`, `returns [n]` →
/// ½ Σ max((V − R)², (clip(V, V_old ± clip) − R)²) / total_tokens. Stats: `value_loss`, `value_clip_fraction`.
pub fn value_loss(
    values: &Tensor,
    old: &Tensor,
    returns: &Tensor,
    clip: f64,
    total_tokens: f64,
) -> Result<(Tensor, Stats)> {
    let unclipped = (values - returns)?.sqr()?;
    let near = values.detach().maximum(&(old - clip)?)?.minimum(&(old + clip)?)?;
    let clipped = (near - returns)?.sqr()?;
    let is_clipped = clipped.gt(&unclipped.detach())?;
    let terms = (is_clipped.where_cond(&clipped, &unclipped)? * 0.5)?;

    let mut stats = Stats::default();
    let n = values.elem_count() as f64;
    stats.add("value_loss", sum_f64(&terms)?, n);
    stats.add("value_clip_fraction", sum_f64(&is_clipped)?, n);
    Ok(((terms.sum_all()? / total_tokens)?, stats))
}

/// 1 − Var(returns − values) / Var(returns); 0 if the returns have no variance.
pub fn explained_variance(values: &[f64], returns: &[f64]) -> f64 {
    let residuals: Vec<f64> = returns.iter().zip(values).map(|(r, v)| r - v).collect();
    let (_, total) = super::whiten::moments(returns);
    if total <= 0.0 { 0.0 } else { 1.0 - super::whiten::moments(&residuals).1 / total }
}

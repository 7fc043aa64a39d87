//! Kahneman-Tversky optimisation (KTO, arXiv 2402.01306): single responses with a thumb up or down, instead of pairs.

use candle_core::{Result, Tensor};

use super::{Stats, log_sigmoid, sum_f64};

/// Constants of the loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    pub beta: f64,
    /// λ_D, the weight of liked responses.
    pub desirable_weight: f64,
    /// λ_U, the weight of other responses.
    pub undesirable_weight: f64,
}

/// The reference point z₀ = max(0, mean of log π − log π_ref) over responses to mismatched prompts, an estimate of the
/// KL of the policy to the reference, without a gradient. 0 for empty inputs.
pub fn reference_point(policy: &[f64], reference: &[f64]) -> f64 {
    debug_assert_eq!(policy.len(), reference.len());
    let log_ratios: Vec<f64> = policy.iter().zip(reference).map(|(p, r)| p - r).collect();
    super::whiten::moments(&log_ratios).0.max(0.0)
}

/// Summed log-probs `[m]`, the policy's with gradient; `liked [m]`; z₀; the responses of the global batch → Σ λ·(1 −
/// σ(±β·(r − z₀))) / total with r = log π − log π_ref, + and λ_D where liked, − and λ_U where not. Stats: `loss`,
/// `accuracy` (r on the right side of z₀), `chosen_reward` and `rejected_reward` (β·r of the liked and of the others).
pub fn loss(
    policy: &Tensor,
    reference: &Tensor,
    liked: &[bool],
    z0: f64,
    settings: &Settings,
    total: f64,
) -> Result<(Tensor, Stats)> {
    let column = |of: &dyn Fn(bool) -> f64| -> Result<Tensor> {
        let values: Vec<f64> = liked.iter().map(|liked| of(*liked)).collect();
        Tensor::new(values, policy.device())?.to_dtype(policy.dtype())
    };
    let signs = column(&|liked| if liked { 1.0 } else { -1.0 })?;
    let weights = column(&|liked| if liked { settings.desirable_weight } else { settings.undesirable_weight })?;
    let r = (policy - reference)?;
    let gains = ((&r - z0)? * &signs)?;
    // 1 − σ(x) = σ(−x).
    let terms = (log_sigmoid(&(&gains * -settings.beta)?)?.exp()? * weights)?;

    let mut stats = Stats::default();
    let n = liked.len() as f64;
    stats.add("loss", sum_f64(&terms)?, n);
    stats.add("accuracy", sum_f64(&gains.detach().gt(0.0)?)?, n);
    let rewards = (r.detach() * settings.beta)?;
    let (up, down) = (column(&|liked| f64::from(u8::from(liked)))?, column(&|liked| f64::from(!liked))?);
    stats.add("chosen_reward", sum_f64(&(&rewards * &up)?)?, sum_f64(&up)?);
    stats.add("rejected_reward", sum_f64(&(&rewards * &down)?)?, sum_f64(&down)?);
    Ok(((terms.sum_all()? / total)?, stats))
}

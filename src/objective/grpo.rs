//! Group-relative policy optimisation (GRPO, arXiv 2402.03300) and its variants: the normalisations of DAPO (arXiv
//! 2503.14476) and Dr. GRPO (arXiv 2503.20783), asymmetric clipping (DAPO), ratios of whole sequences (GSPO, arXiv
//! 2507.18071) and clipped importance weights (CISPO, arXiv 2506.13585).

use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};

use super::{Stats, kl, logprobs, ppo, sum_f64};

/// The divisor of the centred rewards of a group. TRL's `scale_rewards`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ScaleRewards {
    /// The standard deviation of the group (GRPO).
    #[default]
    Group,
    /// The standard deviation of all rewards of the round (arXiv 2508.08221).
    Batch,
    /// 1 (Dr. GRPO): easy and hard prompts have the same weight.
    None,
}

/// How the losses of tokens are averaged. TRL's names are values of its `loss_type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LossNormalization {
    /// The mean of every response, then the mean of the responses (GRPO; TRL's `grpo`).
    Sequence,
    /// The mean of all tokens of the batch (DAPO; TRL's `dapo`).
    #[default]
    Token,
    /// The sum over a response divided by the longest length, then the mean of the responses (Dr. GRPO; TRL's
    /// `dr_grpo`).
    Constant,
}

impl LossNormalization {
    /// The factor of each token of a response of `length` tokens; `longest` is the length limit of responses.
    pub fn weight(self, length: usize, longest: usize) -> f64 {
        match self {
            Self::Sequence => 1.0 / length as f64,
            Self::Token => 1.0,
            Self::Constant => 1.0 / longest as f64,
        }
    }

    /// The divisor of the weighted sum: the number of responses of the whole batch, or of its tokens that count.
    pub fn total(self, sequences: usize, tokens: usize) -> f64 {
        match self {
            Self::Sequence | Self::Constant => sequences as f64,
            Self::Token => tokens.max(1) as f64,
        }
    }
}

/// The unit of a probability ratio. TRL's `importance_sampling_level`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RatioLevel {
    /// Each token.
    #[default]
    Token,
    /// The whole response: e^(mean log-ratio of its tokens) (GSPO).
    Sequence,
}

/// How the ratio enters the loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Surrogate {
    /// PPO's: max(−Aρ, −A·clip(ρ)). A clipped token has no gradient.
    #[default]
    Clip,
    /// CISPO's: −min(ρ, 1 + ε_high)·A·log π, the ratio without gradient. Every token keeps its gradient.
    Cispo,
}

/// (r − mean of its group) / (population standard deviation + eps) for consecutive groups of rewards, with the
/// deviation that `scale` specifies; `ScaleRewards::None` does not divide. `None` if `group` is less than two or the
/// last group is not full.
pub fn advantages(rewards: &[f64], group: usize, scale: ScaleRewards, eps: f64) -> Option<Vec<f64>> {
    if group < 2 || !rewards.len().is_multiple_of(group) {
        return None;
    }
    let of_batch = super::whiten::moments(rewards).1.sqrt();
    let mut out = Vec::with_capacity(rewards.len());
    for samples in rewards.chunks(group) {
        let (mean, variance) = super::whiten::moments(samples);
        let divisor = match scale {
            ScaleRewards::Group => variance.sqrt() + eps,
            ScaleRewards::Batch => of_batch + eps,
            ScaleRewards::None => 1.0,
        };
        out.extend(samples.iter().map(|r| (r - mean) / divisor));
    }
    Some(out)
}

/// For each consecutive group of rewards, whether it has no variance, so that its advantages are 0.
pub fn without_variance(rewards: &[f64], group: usize) -> Vec<bool> {
    rewards.chunks(group.max(1)).map(|samples| samples.iter().all(|r| *r == samples[0])).collect()
}

/// Constants of the loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// ε_low: ratios below 1 − ε_low are clipped.
    pub clip_low: f64,
    /// ε_high: ratios above 1 + ε_high are clipped.
    pub clip_high: f64,
    pub level: RatioLevel,
    pub surrogate: Surrogate,
    /// Weight β of the KL estimate k3.
    pub beta: f64,
}

/// Per-token inputs of the loss, all `[n]` and without a gradient.
pub struct Targets<'a> {
    pub old: &'a Tensor,
    pub reference: &'a Tensor,
    pub advantages: &'a Tensor,
    /// The factor of every token; 0 leaves the token out.
    pub weights: &'a Tensor,
    /// Number of tokens of each response.
    pub lengths: &'a [usize],
}

/// `new [n]` with gradient → Σ weight·(surrogate + β·k3) / total. Stats over the tokens whose weight is not 0:
/// `policy_loss`, `ratio`, `clip_fraction` and its parts `clip_fraction_low` (A < 0) and `clip_fraction_high` (A > 0),
/// `approx_kl`, `loss_k3`.
pub fn loss(new: &Tensor, targets: &Targets<'_>, settings: &Settings, total: f64) -> Result<(Tensor, Stats)> {
    let (low, high) = (1.0 - settings.clip_low, 1.0 + settings.clip_high);
    let by_token = ppo::log_ratio(new, targets.old)?;
    let log_ratio = match settings.level {
        RatioLevel::Token => by_token.clone(),
        RatioLevel::Sequence => logprobs::sequence_means_tensor(&by_token, targets.lengths)?,
    };
    let ratio = log_ratio.exp()?;
    let (surrogate, is_clipped) = match settings.surrogate {
        Surrogate::Clip => {
            let unclipped = (&ratio * targets.advantages)?.neg()?;
            let clipped = (ratio.detach().clamp(low, high)? * targets.advantages)?.neg()?;
            // If the clipped term is larger, the ratio is out of range and has no gradient.
            let is_clipped = clipped.gt(&unclipped.detach())?;
            (is_clipped.where_cond(&clipped, &unclipped)?, is_clipped)
        }
        Surrogate::Cispo => {
            let capped = ratio.detach().minimum(high)?;
            (((capped * targets.advantages)? * new)?.neg()?, ratio.detach().gt(high)?)
        }
    };
    let k3 = kl::k3_tensor(new, targets.reference)?;
    let terms = if settings.beta == 0.0 { surrogate.clone() } else { (&surrogate + (&k3 * settings.beta)?)? };
    let counts = targets.weights.gt(0.0)?;
    let terms = (terms * targets.weights)?;

    let mut stats = Stats::default();
    let n = sum_f64(&counts)?;
    let zeros = targets.weights.zeros_like()?;
    let mut add = |name, values: &Tensor| -> Result<()> {
        let values = values.detach().to_dtype(zeros.dtype())?;
        stats.add(name, sum_f64(&counts.where_cond(&values, &zeros)?)?, n);
        Ok(())
    };
    add("policy_loss", &surrogate)?;
    add("ratio", &ratio)?;
    add("clip_fraction", &is_clipped)?;
    add("clip_fraction_low", &(&is_clipped * targets.advantages.lt(0.0)?)?)?;
    add("clip_fraction_high", &(&is_clipped * targets.advantages.gt(0.0)?)?)?;
    add("approx_kl", &(by_token.sqr()? * 0.5)?)?;
    add("loss_k3", &k3)?;
    Ok(((terms.sum_all()? / total)?, stats))
}

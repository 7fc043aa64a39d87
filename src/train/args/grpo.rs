//! Arguments of `grpo`. Defaults are DAPO's (2503.14476) for the normalisation of the loss and the upper clip range,
//! and GRPO's (2402.03300) for the rest; options that cost time or need long responses are off.

use std::collections::BTreeMap;

use super::rl::{
    EnsembleReward, MissingEos, Numerics, REQUIRED, RewardSpec, RlCommon, RolloutSource, SamplerCorrection, Turns,
    rl_args,
};
use super::{RecipeArgs, ensure, recipe_args};
use crate::objective::grpo::{LossNormalization, RatioLevel, ScaleRewards, Surrogate};
use crate::train::ArgsError;

rl_args!(
    /// Group-relative policy optimisation (arXiv 2402.03300): advantages normalised per prompt, KL (k3) in the loss.
    GrpoArgs (learning_rate = 1e-5, kl_coef = 0.04, passes = 1) {
        /// Ratio clip range.
        cliprange: f64 = 0.2,
        /// Clip range above 1 (DAPO: 0.28); null = `cliprange`. With the surrogate `cispo`, 1 plus this is the maximum
        /// of ratios.
        cliprange_high: Option<f64> = Some(0.28),
        /// Number of samples per prompt.
        group_size: usize = 8,
        /// How losses of tokens are averaged: `token` (equal weights of all tokens of the batch, DAPO), `sequence`
        /// (equal weights of all responses, GRPO) or `constant` (sums over responses divided by `response_length`,
        /// Dr. GRPO).
        loss_normalization: LossNormalization = LossNormalization::Token,
        /// Divisor of a group's rewards after the subtraction of their mean: the standard deviation of the group
        /// (`group`) or of the round (`batch`), or 1 (`none`, Dr. GRPO).
        scale_rewards: ScaleRewards = ScaleRewards::Group,
        /// Ratios of single tokens (`token`) or of whole responses (`sequence`, GSPO, whose clip ranges are about
        /// 0.0003 and 0.0004, with `loss_normalization` `sequence`).
        importance_sampling_level: RatioLevel = RatioLevel::Token,
        /// How ratios are limited: `clip` as in PPO, or `cispo`.
        surrogate: Surrogate = Surrogate::Clip,
        /// Leave responses without an end token out of the loss (DAPO). Not for a short `response_length`, which
        /// truncates most responses.
        mask_truncated_completions: bool = false,
        /// Maximum number of attempts to replace groups whose responses all have the same score by groups of other
        /// prompts (DAPO); 0 = never.
        dynamic_sampling: u64 = 0,
        /// Weight of the mean entropy per token in the objective.
        entropy_coef: f64 = 0.0,
    }
);

/// Maximum number of attempts to replace groups without variance in one round.
const MAX_ATTEMPTS: u64 = 100;

impl RecipeArgs for GrpoArgs {
    const REQUIRED: &'static [&'static str] = REQUIRED;
    const OWN_KERNELS: bool = true;
    const EARLIER_DEFAULTS: &'static [(&'static str, &'static str)] =
        &[("cliprange_high", "null"), ("loss_normalization", "\"sequence\"")];

    fn check(&self) -> Result<(), ArgsError> {
        ensure(self.group_size >= 2, "group_size", "must be at least 2: one sample has no other to compare with")?;
        // At 1 and more nothing is clipped below.
        ensure(self.cliprange.is_finite() && self.cliprange > 0.0, "cliprange", "must be above 0")?;
        ensure(
            self.cliprange_high.is_none_or(|high| high.is_finite() && high > 0.0),
            "cliprange_high",
            "must be above 0, or null for the same as cliprange",
        )?;
        ensure(
            self.dynamic_sampling <= MAX_ATTEMPTS,
            "dynamic_sampling",
            &format!("must be at most {MAX_ATTEMPTS} attempts"),
        )?;
        ensure(self.entropy_coef.is_finite() && self.entropy_coef >= 0.0, "entropy_coef", "must be 0 or more")?;
        let rl = self.rl();
        ensure(
            self.entropy_coef == 0.0 || !rl.common.uses_own_kernels(),
            "entropy_coef",
            "must be 0 on a GPU, whose kernels have no gradient of entropies; or set `device` to cpu",
        )?;
        rl.check(self.group_size)
    }
}

//! Arguments of the recipes that learn from some of their own samples: `online_dpo` from the best and the worst of each
//! prompt, `raft` from the best.

use std::collections::BTreeMap;

use super::preference::check_dpo_loss;
use super::rl::{
    EnsembleReward, MissingEos, Numerics, REQUIRED, RewardSpec, RlCommon, RolloutSource, SamplerCorrection, Turns,
    rl_args,
};
use super::{RecipeArgs, ensure, recipe_args};
use crate::objective::dpo::DpoLoss;
use crate::train::ArgsError;

rl_args!(
    /// Online DPO (arXiv 2402.04792): the best and the worst of a prompt's new samples form a pair.
    OnlineDpoArgs (learning_rate = 5e-6, kl_coef = 0.1, passes = 1) {
        /// Number of samples per prompt. The best and the worst are trained on.
        group_size: usize = 2,
        /// `sigmoid` (DPO; cDPO with `label_smoothing`), `ipo`, or `robust` (rDPO, which needs `label_smoothing`);
        /// their β is `kl_coef`.
        loss: DpoLoss = DpoLoss::Sigmoid,
        /// Assumed share of inverted preferences, from 0 to 0.45.
        label_smoothing: f64 = 0.0,
    }
);

rl_args!(
    /// Best-of-n distillation (RAFT, arXiv 2304.06767): supervised training on the best of a prompt's new samples.
    RaftArgs (learning_rate = 1e-5, kl_coef = 0.0, passes = 1) {
        /// Number of samples per prompt. The best is trained on.
        group_size: usize = 4,
        /// Leave out prompts whose best reward is below this; null = leave out only those whose samples all have the
        /// same reward.
        least_reward: Option<f64> = None,
        /// Share of a round's best samples that are trained on, from the highest reward.
        keep_share: f64 = 1.0,
    }
);

const ONE_SAMPLE: &str = "must be at least 2: one sample has no other to compare with";

impl RecipeArgs for OnlineDpoArgs {
    const REQUIRED: &'static [&'static str] = REQUIRED;
    const OWN_KERNELS: bool = true;

    fn check(&self) -> Result<(), ArgsError> {
        ensure(self.group_size >= 2, "group_size", ONE_SAMPLE)?;
        ensure(self.kl_coef > 0.0, "kl_coef", "must be above 0: it is the loss's β")?;
        check_dpo_loss(self.loss, self.label_smoothing, None)?;
        self.rl().check(self.group_size)?;
        check_minibatches(self.minibatches, self.rollout_batch_size, self.group_size)
    }
}

impl RecipeArgs for RaftArgs {
    const REQUIRED: &'static [&'static str] = REQUIRED;
    const OWN_KERNELS: bool = true;

    fn check(&self) -> Result<(), ArgsError> {
        ensure(self.group_size >= 2, "group_size", ONE_SAMPLE)?;
        ensure(self.least_reward.is_none_or(f64::is_finite), "least_reward", "must be a finite number, or null")?;
        ensure(self.keep_share > 0.0 && self.keep_share <= 1.0, "keep_share", "must be above 0 and at most 1")?;
        self.rl().check(self.group_size)?;
        check_minibatches(self.minibatches, self.rollout_batch_size, self.group_size)
    }
}

/// Checks the number of minibatches: a round has at most one pair or one best sample for each prompt.
fn check_minibatches(minibatches: usize, responses: usize, group: usize) -> Result<(), ArgsError> {
    ensure(
        minibatches <= responses / group,
        "minibatches",
        "must be at most rollout_batch_size / group_size: each prompt gives one pair or one best sample",
    )
}

//! Arguments of the recipes that learn from preferences without a reward model: dpo, simpo, orpo, kto.

use super::supervised::check_data;
use super::{RecipeArgs, ensure, recipe_args};
use crate::objective::dpo::{DpoLoss, MAX_NOISE};
use crate::prompt::Reasoning;
use crate::train::ArgsError;

recipe_args!(
    /// Direct preference optimisation (arXiv 2305.18290) on ranked completions.
    DpoArgs (learning_rate = 5e-6) {
        /// JSONL of ranked completions, as for `reward`.
        comparisons: String = String::new(),
        /// Number of passes over the data.
        epochs: u64 = 1,
        /// Number of comparison sets per optimizer step.
        batch_size: usize = 16,
        /// Share of held-out prompts, for data without `split`.
        heldout_fraction: f64 = 0.1,
        /// Whether answers are learned with their reasoning (`<think>…</think>`): `keep`, or `remove`.
        reasoning: Reasoning = Reasoning::Keep,
        /// Coefficient of the KL penalty towards the reference.
        beta: f64 = 0.1,
        /// `sigmoid` (DPO; cDPO with `label_smoothing`), `ipo`, or `robust` (rDPO, which needs `label_smoothing`).
        loss: DpoLoss = DpoLoss::Sigmoid,
        /// Assumed share of inverted preferences, from 0 to 0.45.
        label_smoothing: f64 = 0.0,
        /// Estimate `label_smoothing` from the agreement of people who ranked the same completions.
        smoothing_from_agreement: bool = false,
    }
);

recipe_args!(
    /// SimPO (arXiv 2405.14734): preferences on the mean log-prob per token, without a reference.
    SimpoArgs (learning_rate = 1e-6) {
        /// JSONL of ranked completions, as for `reward`.
        comparisons: String = String::new(),
        /// Number of passes over the data.
        epochs: u64 = 1,
        /// Number of comparison sets per optimizer step.
        batch_size: usize = 16,
        /// Share of held-out prompts, for data without `split`.
        heldout_fraction: f64 = 0.1,
        /// Whether answers are learned with their reasoning (`<think>…</think>`): `keep`, or `remove`.
        reasoning: Reasoning = Reasoning::Keep,
        /// Scale of the rewards. The paper's values are 2 to 10.
        beta: f64 = 2.0,
        /// Target margin between the rewards of the two completions. The paper's values are about half of `beta`.
        simpo_gamma: f64 = 1.0,
        /// Assumed share of inverted preferences, from 0 to 0.45.
        label_smoothing: f64 = 0.0,
    }
);

recipe_args!(
    /// ORPO (arXiv 2403.07691): language-model loss and odds ratio of the completions, without a reference.
    OrpoArgs (learning_rate = 8e-6) {
        /// JSONL of ranked completions, as for `reward`.
        comparisons: String = String::new(),
        /// Number of passes over the data.
        epochs: u64 = 1,
        /// Number of comparison sets per optimizer step.
        batch_size: usize = 16,
        /// Share of held-out prompts, for data without `split`.
        heldout_fraction: f64 = 0.1,
        /// Whether answers are learned with their reasoning (`<think>…</think>`): `keep`, or `remove`.
        reasoning: Reasoning = Reasoning::Keep,
        /// Weight λ of the odds ratio.
        beta: f64 = 0.1,
    }
);

recipe_args!(
    /// Kahneman-Tversky optimisation (arXiv 2402.01306) on single completions with thumbs up or down.
    KtoArgs (learning_rate = 5e-6) {
        /// JSONL of `{"prompt": …, "completion": "…", "label": true or false}`.
        feedback: String = String::new(),
        /// Number of passes over the data.
        epochs: u64 = 1,
        /// Number of completions per optimizer step. The reference point is estimated from them, so few make it noisy.
        batch_size: usize = 16,
        /// Share of held-out prompts, for data without `split`.
        heldout_fraction: f64 = 0.1,
        /// Whether answers are learned with their reasoning (`<think>…</think>`): `keep`, or `remove`.
        reasoning: Reasoning = Reasoning::Keep,
        /// Coefficient of the KL penalty towards the reference.
        beta: f64 = 0.1,
        /// Weight of liked completions; null = such that liked and disliked ones have the same total weight.
        desirable_weight: Option<f64> = None,
        /// Weight of disliked completions; null = such that liked and disliked ones have the same total weight.
        undesirable_weight: Option<f64> = None,
    }
);

fn check_beta(beta: f64) -> Result<(), ArgsError> {
    ensure(beta.is_finite() && beta > 0.0, "beta", "must be above 0")
}

fn check_smoothing(epsilon: f64) -> Result<(), ArgsError> {
    ensure((0.0..=MAX_NOISE).contains(&epsilon), "label_smoothing", &format!("must be 0 to {MAX_NOISE}"))
}

/// Checks that a loss supports this smoothing. `measured` is whether the smoothing will be measured from the data, for
/// recipes that can.
pub(super) fn check_dpo_loss(loss: DpoLoss, label_smoothing: f64, measured: Option<bool>) -> Result<(), ArgsError> {
    check_smoothing(label_smoothing)?;
    let smoothed = label_smoothing > 0.0 || measured == Some(true);
    let or_measured = if measured.is_some() { " (or set smoothing_from_agreement)" } else { "" };
    match loss {
        DpoLoss::Sigmoid => Ok(()),
        DpoLoss::Ipo => ensure(!smoothed, "label_smoothing", "has no effect with ipo"),
        DpoLoss::Robust => ensure(
            smoothed,
            "label_smoothing",
            &format!("must be above 0 with robust: without noise it is DPO{or_measured}"),
        ),
    }
}

impl RecipeArgs for DpoArgs {
    const REQUIRED: &'static [&'static str] = &["model", "output_dir", "comparisons"];
    const OWN_KERNELS: bool = true;

    fn check(&self) -> Result<(), ArgsError> {
        self.common().check()?;
        check_beta(self.beta)?;
        ensure(
            !self.smoothing_from_agreement || self.label_smoothing == 0.0,
            "smoothing_from_agreement",
            "give label_smoothing or have it measured, not both",
        )?;
        check_dpo_loss(self.loss, self.label_smoothing, Some(self.smoothing_from_agreement))?;
        check_data(self.epochs, self.batch_size, self.heldout_fraction)
    }
}

impl RecipeArgs for SimpoArgs {
    const REQUIRED: &'static [&'static str] = &["model", "output_dir", "comparisons"];
    const OWN_KERNELS: bool = true;

    fn check(&self) -> Result<(), ArgsError> {
        self.common().check()?;
        check_beta(self.beta)?;
        ensure(self.simpo_gamma.is_finite() && self.simpo_gamma >= 0.0, "simpo_gamma", "must be 0 or more")?;
        check_smoothing(self.label_smoothing)?;
        check_data(self.epochs, self.batch_size, self.heldout_fraction)
    }
}

impl RecipeArgs for OrpoArgs {
    const REQUIRED: &'static [&'static str] = &["model", "output_dir", "comparisons"];
    const OWN_KERNELS: bool = true;

    fn check(&self) -> Result<(), ArgsError> {
        self.common().check()?;
        check_beta(self.beta)?;
        check_data(self.epochs, self.batch_size, self.heldout_fraction)
    }
}

impl RecipeArgs for KtoArgs {
    const REQUIRED: &'static [&'static str] = &["model", "output_dir", "feedback"];
    const OWN_KERNELS: bool = true;

    fn check(&self) -> Result<(), ArgsError> {
        self.common().check()?;
        check_beta(self.beta)?;
        for (name, weight) in
            [("desirable_weight", self.desirable_weight), ("undesirable_weight", self.undesirable_weight)]
        {
            ensure(
                weight.is_none_or(|w| w.is_finite() && w > 0.0),
                name,
                "must be above 0, or null for one that follows from the data",
            )?;
        }
        ensure(self.batch_size >= 2, "batch_size", "must be at least 2: the reference point is a mean over a batch")?;
        check_data(self.epochs, self.batch_size, self.heldout_fraction)
    }
}

//! Arguments of the recipes that learn from preferences without a reward model: dpo, simpo, orpo, kto.

use super::supervised::check_data;
use super::{RecipeArgs, ensure, recipe_args};
use crate::objective::dpo::{DpoLoss, MAX_NOISE};
use crate::train::ArgsError;

recipe_args!(
    /// Direct preference optimisation on the same rankings, offline.
    DpoArgs (learning_rate = 5e-6) {
        /// JSONL of ranked completions, as for `reward`.
        comparisons: String = String::new(),
        /// Passes over the data.
        epochs: u64 = 1,
        /// Comparison sets in one optimizer step.
        batch_size: usize = 16,
        /// Share of prompts kept aside where the data does not say `split`.
        heldout_fraction: f64 = 0.1,
        /// Strength of the pull towards the reference.
        beta: f64 = 0.1,
        /// `sigmoid` (DPO; cDPO with `label_smoothing`), `ipo`, or `robust` (rDPO, which needs `label_smoothing`).
        loss: DpoLoss = DpoLoss::Sigmoid,
        /// Share of the preferences taken to be turned around, from 0 to 0.45.
        label_smoothing: f64 = 0.0,
        /// Take `label_smoothing` from how often two people agree who ranked the same completions.
        smoothing_from_agreement: bool = false,
    }
);

recipe_args!(
    /// SimPO: preferences on the mean log-prob per token, without a reference.
    SimpoArgs (learning_rate = 1e-6) {
        /// JSONL of ranked completions, as for `reward`.
        comparisons: String = String::new(),
        /// Passes over the data.
        epochs: u64 = 1,
        /// Comparison sets in one optimizer step.
        batch_size: usize = 16,
        /// Share of prompts kept aside where the data does not say `split`.
        heldout_fraction: f64 = 0.1,
        /// Scale of the rewards; the paper's runs use 2 to 10.
        beta: f64 = 2.0,
        /// Margin by which the preferred completion's reward must lead (about half of `beta` in the paper).
        simpo_gamma: f64 = 1.0,
        /// Share of the preferences taken to be turned around, from 0 to 0.45.
        label_smoothing: f64 = 0.0,
    }
);

recipe_args!(
    /// ORPO: the language-model loss of preferred completions and the odds ratio of both, without a reference.
    OrpoArgs (learning_rate = 8e-6) {
        /// JSONL of ranked completions, as for `reward`.
        comparisons: String = String::new(),
        /// Passes over the data.
        epochs: u64 = 1,
        /// Comparison sets in one optimizer step.
        batch_size: usize = 16,
        /// Share of prompts kept aside where the data does not say `split`.
        heldout_fraction: f64 = 0.1,
        /// Weight λ of the odds ratio.
        beta: f64 = 0.1,
    }
);

recipe_args!(
    /// Kahneman-Tversky optimisation: thumbs up and down on single completions, no pairs.
    KtoArgs (learning_rate = 5e-6) {
        /// JSONL of `{"prompt": …, "completion": "…", "label": true or false}`.
        feedback: String = String::new(),
        /// Passes over the data.
        epochs: u64 = 1,
        /// Completions in one optimizer step; few make a poor estimate of the reference point.
        batch_size: usize = 16,
        /// Share of prompts kept aside where the data does not say `split`.
        heldout_fraction: f64 = 0.1,
        /// Strength of the pull towards the reference.
        beta: f64 = 0.1,
        /// Weight of liked completions; null = such that liked and others weigh the same in all.
        desirable_weight: Option<f64> = None,
        /// Weight of completions that were not liked; null likewise.
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

    fn check(&self) -> Result<(), ArgsError> {
        self.common().check()?;
        check_beta(self.beta)?;
        check_data(self.epochs, self.batch_size, self.heldout_fraction)
    }
}

impl RecipeArgs for KtoArgs {
    const REQUIRED: &'static [&'static str] = &["model", "output_dir", "feedback"];

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

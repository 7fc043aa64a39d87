//! Arguments of the recipes that learn from written data: sft, reward.

use serde::{Deserialize, Serialize};

use super::{RecipeArgs, ensure, recipe_args};
use crate::train::ArgsError;

recipe_args!(
    /// Supervised fine-tuning on demonstrations; only response tokens are learned, the end token included.
    SftArgs (learning_rate = 2e-5) {
        /// JSONL of `{"prompt": […], "completion": "…"}`.
        demonstrations: String = String::new(),
        /// Instead of demonstrations: a mixture of templated tasks (JSON file with `tasks`), for instruction
        /// tuning.
        mixture: Option<String> = None,
        /// Passes over the data.
        epochs: u64 = 1,
        /// Demonstrations in one optimizer step.
        batch_size: usize = 16,
        /// Share of prompts kept aside for evaluation.
        heldout_fraction: f64 = 0.1,
    }
);

recipe_args!(
    /// Reward model from K-wise rankings.
    RewardArgs (learning_rate = 2e-5) {
        /// JSONL of ranked completions: `{"prompt": […], "completions": [{"text", "tier"}]}`.
        comparisons: String = String::new(),
        /// Passes over the data; more than one overfits.
        epochs: u64 = 1,
        /// Comparison sets in one optimizer step.
        batch_size: usize = 16,
        /// Share of prompts kept aside where the data does not say `split`.
        heldout_fraction: f64 = 0.1,
        /// After training, shift and scale so that reference completions score mean 0, variance 1.
        normalize: bool = true,
        /// Which completions are the reference.
        normalize_on: NormalizeOn = NormalizeOn::Completions,
        /// JSONL of demonstrations to normalise on.
        reference_demonstrations: Option<String> = None,
        /// Heads on one trunk. Each learns from a random half of the sets; their spread says how unsure the
        /// score is.
        heads: usize = 1,
        /// Score margins by strength of preference: significantly 1, clearly ⅔, slightly ⅓, barely 0,
        /// times this number; 0 = none.
        margin: f64 = 0.0,
    }
);

/// Completions that a reward model's scores are normalised on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum NormalizeOn {
    /// The ranked completions of training prompts.
    #[default]
    Completions,
    /// Demonstrations, as in InstructGPT.
    Demonstrations,
}

pub(super) fn check_data(epochs: u64, batch_size: usize, heldout_fraction: f64) -> Result<(), ArgsError> {
    ensure(epochs >= 1, "epochs", "must be at least 1")?;
    ensure(batch_size >= 1, "batch_size", "must be at least 1")?;
    ensure((0.0..=0.9).contains(&heldout_fraction), "heldout_fraction", "must be 0 to 0.9")
}

impl RecipeArgs for SftArgs {
    const REQUIRED: &'static [&'static str] = &["model", "output_dir"];

    fn check(&self) -> Result<(), ArgsError> {
        self.common().check()?;
        ensure(!self.demonstrations.is_empty() || self.mixture.is_some(), "demonstrations", "is required")?;
        check_data(self.epochs, self.batch_size, self.heldout_fraction)
    }
}

impl RecipeArgs for RewardArgs {
    const REQUIRED: &'static [&'static str] = &["model", "output_dir", "comparisons"];

    fn check(&self) -> Result<(), ArgsError> {
        self.common().check()?;
        ensure(self.margin.is_finite() && self.margin >= 0.0, "margin", "must be 0 or more")?;
        ensure((1..=64).contains(&self.heads), "heads", "must be 1 to 64")?;
        ensure(
            self.heads == 1 || self.normalize,
            "normalize",
            "must be true with several heads: each has its own zero",
        )?;
        ensure(
            self.normalize_on == NormalizeOn::Completions || self.reference_demonstrations.is_some(),
            "reference_demonstrations",
            "is required to normalise on demonstrations",
        )?;
        check_data(self.epochs, self.batch_size, self.heldout_fraction)
    }
}

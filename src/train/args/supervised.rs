//! Arguments of the recipes that learn from written data: sft, reward.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{RecipeArgs, ensure, recipe_args};
use crate::domain::RANKING;
use crate::prompt::Reasoning;
use crate::train::ArgsError;

recipe_args!(
    /// Supervised fine-tuning on demonstrations. The loss is on response tokens, including the end token.
    SftArgs (learning_rate = 2e-5) {
        /// JSONL of `{"prompt": […], "completion": "…"}`.
        demonstrations: String = String::new(),
        /// A mixture of templated tasks (JSON file with `tasks`) for instruction tuning, instead of demonstrations.
        mixture: Option<String> = None,
        /// Number of passes over the data.
        epochs: u64 = 1,
        /// Number of demonstrations per optimizer step.
        batch_size: usize = 16,
        /// Share of held-out prompts.
        heldout_fraction: f64 = 0.1,
        /// Whether answers are learned with their reasoning (`<think>…</think>`): `keep`, or `remove`.
        reasoning: Reasoning = Reasoning::Keep,
    }
);

recipe_args!(
    /// A reward model from K-wise rankings, as in InstructGPT (arXiv 2203.02155).
    RewardArgs (learning_rate = 2e-5) {
        /// JSONL of ranked completions: `{"prompt": […], "completions": [{"text", "tier"}]}`.
        comparisons: String = String::new(),
        /// Number of passes over the data. More than one tends to overfit.
        epochs: u64 = 1,
        /// Number of comparison sets per optimizer step.
        batch_size: usize = 16,
        /// Share of held-out prompts, for data without `split`.
        heldout_fraction: f64 = 0.1,
        /// Whether answers are scored with their reasoning (`<think>…</think>`): `keep`, or `remove`. The trained model
        /// records it, and whoever scores with it does the same.
        reasoning: Reasoning = Reasoning::Keep,
        /// After training, shift and scale scores to mean 0 and variance 1 on reference completions.
        normalize: bool = true,
        /// The reference completions.
        normalize_on: NormalizeOn = NormalizeOn::Completions,
        /// JSONL of demonstrations as reference completions.
        reference_demonstrations: Option<String> = None,
        /// Number of heads on one trunk. Each is trained on a random half of the sets. The standard deviation of their
        /// scores estimates the uncertainty.
        heads: usize = 1,
        /// Weights of heads that learn a rubric's dimensions, by key of a scale or flag: `{"helpful": 1, "harmful": -1}`.
        /// The score is the weighted sum of all heads, each scaled to variance 1. `ranking` is the head of the
        /// labelers' ranking, which has weight 1 if it is not named. null = only the ranking.
        dimensions: Option<BTreeMap<String, f64>> = None,
        /// Version of the rubric with these dimensions. It may be absent if the file has ratings by one rubric only.
        rubric: Option<String> = None,
        /// Factor of the margins between scores, which depend on the strength of a preference: significantly 1,
        /// clearly ⅔, slightly ⅓, barely 0. 0 = no margins.
        margin: f64 = 0.0,
        /// Whether the length of answers is kept out of the score. The loss adds to each difference of scores the log-odds
        /// that the lengths explain, a slope per doubling that is fitted with the model, so the model learns the rest.
        length_control: bool = false,
    }
);

/// The completions on which a reward model's scores are normalised.
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
    const OWN_KERNELS: bool = true;

    fn check(&self) -> Result<(), ArgsError> {
        self.common().check()?;
        ensure(!self.demonstrations.is_empty() || self.mixture.is_some(), "demonstrations", "is required")?;
        check_data(self.epochs, self.batch_size, self.heldout_fraction)
    }
}

impl RecipeArgs for RewardArgs {
    const REQUIRED: &'static [&'static str] = &["model", "output_dir", "comparisons"];
    const OWN_KERNELS: bool = true;

    fn check(&self) -> Result<(), ArgsError> {
        self.common().check()?;
        ensure(self.margin.is_finite() && self.margin >= 0.0, "margin", "must be 0 or more")?;
        ensure((1..=64).contains(&self.heads), "heads", "must be 1 to 64")?;
        ensure(
            self.heads == 1 || self.normalize,
            "normalize",
            "must be true with several heads: each has its own zero",
        )?;
        if let Some(weights) = &self.dimensions {
            ensure(weights.keys().any(|key| key != RANKING), "dimensions", "must name a dimension of a rubric")?;
            ensure(weights.len() <= 33, "dimensions", "must be at most 32, and the ranking")?;
            ensure(weights.values().all(|w| w.is_finite()), "dimensions", "must have finite weights")?;
            ensure(
                weights.get(RANKING) != Some(&0.0) || weights.values().any(|w| *w != 0.0),
                "dimensions",
                "must have a weight other than 0",
            )?;
            ensure(self.heads == 1, "heads", "must be 1 with dimensions, each of which has a head")?;
            ensure(self.normalize, "normalize", "must be true with dimensions: each head has its own zero")?;
        }
        ensure(self.rubric.is_none() || self.dimensions.is_some(), "rubric", "goes with dimensions")?;
        ensure(
            self.normalize_on == NormalizeOn::Completions || self.reference_demonstrations.is_some(),
            "reference_demonstrations",
            "is required to normalise on demonstrations",
        )?;
        check_data(self.epochs, self.batch_size, self.heldout_fraction)
    }
}

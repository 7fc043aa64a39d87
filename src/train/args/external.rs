//! Arguments of `external`.

use serde::{Deserialize, Serialize};

use super::{DeviceArg, RecipeArgs, ensure};
use crate::train::ArgsError;

/// A kind of data that is written for an external trainer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DataKind {
    /// Pairs of a preferred and a rejected answer.
    Comparisons,
    /// Prompts with answers written by people.
    Demonstrations,
    /// Prompts without answers.
    Prompts,
}

impl DataKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Comparisons => "comparisons",
            Self::Demonstrations => "demonstrations",
            Self::Prompts => "prompts",
        }
    }
}

/// Training by another program. The trained model is checked and becomes a version.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ExternalArgs {
    /// The model to start from: a Hugging Face directory or a .gguf file.
    pub model: String,
    /// Where the trained model directory is written.
    pub output_dir: String,
    /// Directory of the trainer's checkpoints. Without it the run cannot resume.
    pub checkpoint_dir: Option<String>,
    /// Not used: curves are read from the trainer's output.
    pub log_dir: Option<String>,
    /// Resume from the trainer's checkpoints, if there are any.
    pub resume: bool,
    /// The trainer's seed. It also determines the samples of the check.
    pub seed: u64,
    /// Name of a trainer in the configuration's `[trainers]`.
    pub trainer: String,
    /// The data for the trainer.
    pub data: Vec<DataKind>,
    /// Rankings, as JSON lines.
    pub comparisons: Option<String>,
    /// Demonstrations, as JSON lines.
    pub demonstrations: Option<String>,
    /// Prompts, as JSON lines.
    pub prompts: Option<String>,
    /// A reward model. The trainer receives its directory.
    pub reward_model: Option<String>,
    /// Settings of the trainer, which are written to its job.json.
    pub options: serde_json::Map<String, serde_json::Value>,
    /// Number of prompts on which the KL divergence from the initial model is measured.
    pub kl_prompts: usize,
    /// Number of tokens that are sampled for each of these prompts.
    pub kl_tokens: usize,
    /// A trained model with a larger KL, in nats per sequence, is refused; null = no limit.
    pub max_kl: Option<f64>,
    /// The device for the check.
    pub device: DeviceArg,
}

impl Default for ExternalArgs {
    fn default() -> Self {
        Self {
            model: String::new(),
            output_dir: String::new(),
            checkpoint_dir: None,
            log_dir: None,
            resume: false,
            seed: 0,
            trainer: String::new(),
            data: vec![DataKind::Comparisons],
            comparisons: None,
            demonstrations: None,
            prompts: None,
            reward_model: None,
            options: serde_json::Map::new(),
            kl_prompts: 32,
            kl_tokens: 64,
            max_kl: None,
            device: DeviceArg::Auto,
        }
    }
}

impl ExternalArgs {
    /// The file of a kind of data.
    pub fn file(&self, kind: DataKind) -> Option<&str> {
        match kind {
            DataKind::Comparisons => self.comparisons.as_deref(),
            DataKind::Demonstrations => self.demonstrations.as_deref(),
            DataKind::Prompts => self.prompts.as_deref(),
        }
    }
}

impl RecipeArgs for ExternalArgs {
    const REQUIRED: &'static [&'static str] = &["model", "output_dir", "trainer"];

    fn check(&self) -> Result<(), ArgsError> {
        ensure(!self.data.is_empty(), "data", "must name something to learn from")?;
        let mut seen = self.data.clone();
        seen.sort_unstable();
        seen.dedup();
        ensure(seen.len() == self.data.len(), "data", "names something twice")?;
        for kind in &self.data {
            ensure(self.file(*kind).is_some(), kind.as_str(), "is required, because data names it")?;
        }
        ensure((1..=4096).contains(&self.kl_prompts), "kl_prompts", "must be 1 to 4096")?;
        ensure((1..=4096).contains(&self.kl_tokens), "kl_tokens", "must be 1 to 4096")?;
        ensure(self.max_kl.is_none_or(|kl| kl.is_finite() && kl > 0.0), "max_kl", "must be above 0, or null")?;
        ensure(self.device != DeviceArg::Sim, "device", "the simulated device is not for this recipe")?;
        ensure(!self.resume || self.checkpoint_dir.is_some(), "resume", "needs checkpoint_dir")
    }
}

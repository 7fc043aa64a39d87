//! Arguments of `external`.

use serde::{Deserialize, Serialize};

use super::{DeviceArg, RecipeArgs, ensure};
use crate::train::ArgsError;

/// Data that is laid out for another trainer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DataKind {
    /// Pairs of a preferred and a rejected answer.
    Comparisons,
    /// Prompts with the answer that a person wrote.
    Demonstrations,
    /// Prompts alone.
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

/// Another program trains the model; its result is checked and becomes a version.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ExternalArgs {
    /// The model to start from: a Hugging Face directory or a .gguf file.
    pub model: String,
    /// Where the trained model directory is written.
    pub output_dir: String,
    /// Where the trainer keeps its own checkpoints; without it the run cannot resume.
    pub checkpoint_dir: Option<String>,
    /// Not used: curves come from the trainer's own lines.
    pub log_dir: Option<String>,
    /// Go on from the trainer's own checkpoints, if there are any.
    pub resume: bool,
    /// Given to the trainer; the samples of the check follow from it too.
    pub seed: u64,
    /// Which trainer of the configuration's `[trainers]` runs.
    pub trainer: String,
    /// What the trainer learns from.
    pub data: Vec<DataKind>,
    /// Rankings, as JSON lines.
    pub comparisons: Option<String>,
    /// Demonstrations, as JSON lines.
    pub demonstrations: Option<String>,
    /// Prompts, as JSON lines.
    pub prompts: Option<String>,
    /// A reward model whose directory the trainer is told.
    pub reward_model: Option<String>,
    /// Settings of the trainer: it finds them in its job.json.
    pub options: serde_json::Map<String, serde_json::Value>,
    /// Prompts that the KL divergence from the model before is measured on.
    pub kl_prompts: usize,
    /// Tokens that are sampled for each of them.
    pub kl_tokens: usize,
    /// A result further away than this, in nats per sequence, is refused; null = it is measured only.
    pub max_kl: Option<f64>,
    /// Where the check computes.
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
        ensure(!self.resume || self.checkpoint_dir.is_some(), "resume", "needs checkpoint_dir")
    }
}

//! Arguments of `judge`.

use serde::{Deserialize, Serialize};

use super::{DeviceArg, Precision, RecipeArgs, ensure, helpful_and_harmless};
use crate::domain::SetsToJudge;
use crate::train::ArgsError;

/// Rankings of stored sets by a language model, which takes part as a labeler of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct JudgeSetsArgs {
    /// Sets to rank, as JSON lines.
    pub sets: String,
    /// Where the rankings are written without a `checkpoint_dir`.
    pub output_dir: String,
    /// Where the rankings are written. A run continues those that it finds.
    pub checkpoint_dir: Option<String>,
    /// Not used.
    pub log_dir: Option<String>,
    /// Not used: a run always continues the rankings that it finds.
    pub resume: bool,
    /// Name of a judge in the configuration's `[judges]`; null = `judge_model`.
    pub host: Option<String>,
    /// A language model on this server that judges.
    pub judge_model: Option<String>,
    /// A description of good answers, for the model.
    pub criteria: String,
    /// The sets: those of the queue, those that people have ranked, or both.
    pub which: SetsToJudge,
    /// Maximum number of sets; the newest are taken first.
    pub max_sets: usize,
    /// Maximum number of tokens in one forward pass of `judge_model`.
    pub micro_batch_tokens: usize,
    /// The device of `judge_model`.
    pub device: DeviceArg,
    /// Element type of weights and activations in products of `judge_model` on a GPU.
    pub precision: Precision,
}

impl Default for JudgeSetsArgs {
    fn default() -> Self {
        Self {
            sets: String::new(),
            output_dir: String::new(),
            checkpoint_dir: None,
            log_dir: None,
            resume: false,
            host: None,
            judge_model: None,
            criteria: helpful_and_harmless(),
            which: SetsToJudge::All,
            max_sets: 1000,
            micro_batch_tokens: 4096,
            device: DeviceArg::Auto,
            precision: Precision::F32,
        }
    }
}

impl RecipeArgs for JudgeSetsArgs {
    const REQUIRED: &'static [&'static str] = &["sets", "output_dir"];

    fn check(&self) -> Result<(), ArgsError> {
        let named = |text: &Option<String>| text.as_deref().is_some_and(|text| !text.trim().is_empty());
        ensure(self.host.is_none() || named(&self.host), "host", "must name a judge of the configuration, or be null")?;
        let one = named(&self.host) != named(&self.judge_model);
        ensure(one, "host", "exactly one of host and judge_model must name the judge")?;
        ensure(!self.criteria.trim().is_empty(), "criteria", "must say what a good answer is")?;
        ensure(self.criteria.len() <= 20_000, "criteria", "must have at most 20000 bytes")?;
        ensure((1..=100_000).contains(&self.max_sets), "max_sets", "must be 1 to 100000")?;
        ensure(self.micro_batch_tokens >= 1, "micro_batch_tokens", "must be at least 1")?;
        let on_gpu = matches!(self.device, DeviceArg::Cuda | DeviceArg::Sim);
        let message = "bf16 is for a GPU, with `device` cuda; set it to f32";
        ensure(on_gpu || self.precision == Precision::F32, "precision", message)
    }
}

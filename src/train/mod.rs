//! The training recipes: `sft`, `reward`, `ppo`, … Each takes a JSON object of arguments with paths of files, reports
//! its progress to a `Reporter`, writes checkpoints, and produces a Hugging Face model directory. Recipes use no SQL
//! and no HTTP: a job writes its data to JSONL files first.

pub mod args;
pub mod assumption;
mod baselines;
mod bidirectional;
mod card;
pub mod checkpoint;
mod data_report;
pub mod device_tensors;
pub mod estimate;
mod external;
mod finetune;
pub mod fit;
pub mod judge;
pub mod judging;
mod kto;
mod logs;
mod meter;
mod mlm;
pub mod on_device;
pub mod optim;
pub mod optim_bytes;
mod output;
mod preference;
mod pretrain;
mod prompt_tuning;
pub mod ranked;
pub mod remote;
mod reward;
mod reward_heads;
mod rl;
pub mod rng;
mod run;
mod samples;
pub mod schedule;
mod sft;
pub mod step;
mod sweep;
pub mod thumbed;
pub mod token_file;
pub mod trainable;
pub mod trl_names;
pub mod turns;

pub use baselines::Baseline;
pub use rl::{WinRate, check_rule, score_texts};

use serde::{Deserialize, Serialize};

use crate::domain::{Metric, Progress};

/// Receives the reports of a running recipe. The command line shows a progress bar; the child process of a job writes
/// JSON lines.
pub trait Reporter: Send {
    fn progress(&mut self, progress: &Progress);
    fn metrics(&mut self, metrics: &[Metric]);
    /// `log`, `warning`, `sample`, `checkpoint`, …
    fn event(&mut self, kind: &str, data: serde_json::Value);
    /// The client for reward services, if any are allowed.
    fn remote(&self) -> Option<std::sync::Arc<dyn remote::RemoteReward>> {
        None
    }
    /// The client of the judge of this name, if it is configured.
    fn judge(&self, _name: &str) -> Option<std::sync::Arc<dyn judge::Judge>> {
        None
    }
    /// The command of the external trainer of this name, if it is configured.
    fn trainer(&self, _name: &str) -> Option<Vec<String>> {
        None
    }
    /// The client for the servers that generate rollouts, if they are configured. They must run the model at the path
    /// `model`.
    ///
    /// # Errors
    /// If the servers do not answer, or cannot be used for rollouts.
    fn generator(&self, _model: &str) -> anyhow::Result<Option<std::sync::Arc<dyn remote::RemoteGenerator>>> {
        Ok(None)
    }
    /// Whether a cancellation or shutdown was requested. Recipes check after every step, write a checkpoint, and return
    /// `TrainOutcome::Stopped`.
    fn should_stop(&self) -> bool;
}

/// The outcome of a recipe.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "lowercase")]
pub enum TrainOutcome {
    /// `model_dir` holds the new model (config.json, safetensors, tokenizer.json, instructd.json). `judge` makes
    /// no model.
    Done { model_dir: String, metrics: serde_json::Value },
    /// Stopped on request after writing a checkpoint.
    Stopped { checkpoint: Option<String> },
}

/// A recipe of the table that the command line, jobs, and the admin form use.
pub struct Recipe {
    pub name: &'static str,
    pub about: &'static str,
    /// JSON Schema of the arguments (schemars), with defaults and descriptions.
    pub schema: fn() -> serde_json::Value,
    /// Parses and validates arguments; the error names the field.
    pub validate: fn(&serde_json::Value) -> Result<(), ArgsError>,
    /// A single run, without a sweep.
    pub run: fn(&serde_json::Value, &mut dyn Reporter) -> anyhow::Result<TrainOutcome>,
}

impl Recipe {
    /// Runs once, or every run of the arguments' `sweep`.
    ///
    /// # Errors
    /// If the sweep is invalid, and those of the runs.
    pub fn execute(&self, args: &serde_json::Value, reporter: &mut dyn Reporter) -> anyhow::Result<TrainOutcome> {
        match args::sweep_of(args)? {
            None => (self.run)(args, reporter),
            Some(sweep) => sweep::run(self, args, &sweep, reporter),
        }
    }
}

/// An invalid argument of a recipe; `field` is a JSON path such as `kl_coef`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct ArgsError {
    pub field: String,
    pub message: String,
}

/// All recipes: first those that train on raw text, then in the order in which the InstructGPT loop uses them.
pub fn recipes() -> &'static [Recipe] {
    KINDS.split_last().map_or(KINDS, |(_, recipes)| recipes)
}

/// What a job can run: all recipes, and `judge`, which trains no model.
pub fn job_kinds() -> &'static [Recipe] {
    KINDS
}

/// The kind of job in which a language model ranks sets.
pub const JUDGE: &str = "judge";

/// The recipe of this name.
pub fn recipe(name: &str) -> Option<&'static Recipe> {
    recipes().iter().find(|recipe| recipe.name == name)
}

/// The recipes, and `judge` at the end.
static KINDS: &[Recipe] = &[
    entry::<args::PretrainArgs>("pretrain", "Decoder pretraining from raw text", pretrain::run),
    entry::<args::MlmArgs>("mlm", "Masked-LM pretraining of an encoder from raw text", mlm::run),
    entry::<args::FinetuneArgs>("finetune", "A classifier on labelled texts", finetune::run),
    entry::<args::PromptTuningArgs>("prompt_tuning", "A soft prompt before a frozen model", prompt_tuning::run),
    entry::<args::SftArgs>("sft", "Supervised fine-tuning on demonstrations", sft::run),
    entry::<args::RewardArgs>("reward", "Reward model from rankings", reward::run),
    entry::<args::PpoArgs>("ppo", "Proximal policy optimisation against a reward", rl::ppo),
    entry::<args::ReinforceArgs>("reinforce", "REINFORCE with a running baseline", rl::reinforce),
    entry::<args::RlooArgs>("rloo", "REINFORCE leave-one-out", rl::rloo),
    entry::<args::GrpoArgs>("grpo", "Group-relative policy optimisation", rl::grpo),
    entry::<args::OnlineDpoArgs>("online_dpo", "DPO on the best and the worst of fresh samples", rl::online_dpo),
    entry::<args::RaftArgs>("raft", "Supervised learning on the best of fresh samples", rl::raft),
    entry::<args::DpoArgs>("dpo", "Direct preference optimisation from rankings", preference::dpo),
    entry::<args::SimpoArgs>("simpo", "SimPO: preferences by mean log-probs, no reference", preference::simpo),
    entry::<args::OrpoArgs>("orpo", "ORPO: language-model loss and odds ratio, no reference", preference::orpo),
    entry::<args::KtoArgs>("kto", "KTO from thumbs on single answers", kto::run),
    entry::<args::ExternalArgs>("external", "Training by another program, whose result is checked", external::run),
    entry::<args::JudgeSetsArgs>(JUDGE, "Rankings of stored sets by a language model", judging::run),
];

type Run = fn(&serde_json::Value, &mut dyn Reporter) -> anyhow::Result<TrainOutcome>;

const fn entry<T: args::RecipeArgs>(name: &'static str, about: &'static str, run: Run) -> Recipe {
    Recipe { name, about, schema: args::schema::<T>, validate: args::check::<T>, run }
}

//! The arguments of the recipes, a struct for each. Unknown keys are refused, ranges are checked, and errors name the
//! field. The structs also define the JSON Schema that the admin form and `--help` show.

mod earlier_defaults;
mod external;
mod grpo;
mod judging;
mod preference;
mod pretrain;
mod reward_spec;
mod rl;
pub mod roles;
mod selected;
mod supervised;
mod sweep;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::ArgsError;
use super::optim::{AdamForm, AdamStates};
use super::schedule::Decay;
use crate::model::Recompute;
use crate::ops::blocks::BlockType;

pub use earlier_defaults::{parse_for_run, with_earlier_defaults};
pub use external::{DataKind, ExternalArgs};
pub use grpo::GrpoArgs;
pub use judging::JudgeSetsArgs;
pub use preference::{DpoArgs, KtoArgs, OrpoArgs, SimpoArgs};
pub use pretrain::{FinetuneArgs, MlmArgs, PretrainArgs, PromptTuningArgs};
use reward_spec::helpful_and_harmless;
pub use reward_spec::{JudgeBy, LengthUnit, RewardSpec, Term, named_judges};
pub use rl::{
    CriticKind, EnsembleReward, MissingEos, Numerics, PpoArgs, ReinforceArgs, RlCommon, RlooArgs, RolloutSource, Turns,
};
pub use selected::{OnlineDpoArgs, RaftArgs};
pub use supervised::{NormalizeOn, RewardArgs, SftArgs};
pub use sweep::{Cell, SweepArgs, check, run_args, sweep_of};

/// Low-rank adapters (arXiv 2106.09685) instead of all parameters. They are merged into the weights at the end of the
/// run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoraArgs {
    /// Rank of the update.
    #[serde(default = "LoraArgs::default_rank")]
    pub rank: usize,
    /// The update is scaled by alpha / rank.
    #[serde(default = "LoraArgs::default_alpha")]
    pub alpha: f64,
    /// Names of the linear layers that get an adapter, such as `q_proj`; all linear layers if absent.
    #[serde(default)]
    pub targets: Option<Vec<String>>,
}

impl LoraArgs {
    fn default_rank() -> usize {
        16
    }

    fn default_alpha() -> f64 {
        32.0
    }
}

/// The device of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DeviceArg {
    /// The first GPU if this build and machine have one that works, else the CPU.
    #[default]
    Auto,
    Cpu,
    Cuda,
    /// The simulated device: the kernels of a GPU, computed slowly on the CPU. It is meant for tests.
    Sim,
}

/// The element type of weights and activations in products on a GPU. Sums, gradients, moments and the weights that an
/// update changes are always f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    #[default]
    F32,
    /// Rounded to bfloat16: less memory, and less exact.
    Bf16,
}

/// The format of frozen matrices on the CPU. On a GPU only f32 is possible.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FrozenPrecision {
    /// Exact.
    #[default]
    F32,
    /// Inputs and weights rounded to bfloat16, sums in f32, as mixed-precision training does.
    Bf16,
    /// Block matrices quantised in groups of 32 with 8 bits per weight and a scale: a quarter of the memory of f32.
    /// Products are computed in f32.
    #[serde(rename = "q8_0")]
    Q8_0,
    /// Block matrices quantised in groups of 32 with 4 bits per weight, a scale and a minimum: a sixth of the memory of
    /// f32, as in QLoRA (arXiv 2305.14314). Products are computed in f32.
    Q4,
}

impl FrozenPrecision {
    /// The block type of quantised frozen matrices.
    pub fn blocks(self) -> Option<BlockType> {
        match self {
            Self::F32 | Self::Bf16 => None,
            Self::Q8_0 => Some(BlockType::Q8_0),
            Self::Q4 => Some(BlockType::Q4_1),
        }
    }
}

/// The arguments that all recipes share.
#[derive(Clone, Debug, PartialEq)]
pub struct Common {
    pub model: String,
    pub output_dir: String,
    pub checkpoint_dir: Option<String>,
    pub log_dir: Option<String>,
    pub resume: bool,
    pub seed: u64,
    pub max_steps: Option<u64>,
    pub micro_batch_tokens: usize,
    pub recompute: Recompute,
    pub learning_rate: f64,
    pub warmup_steps: u64,
    pub lr_schedule: Decay,
    pub weight_decay: f64,
    pub max_grad_norm: Option<f64>,
    pub adam_beta2: f64,
    pub adam_eps: f64,
    pub adam_form: AdamForm,
    pub adam_states: AdamStates,
    pub lora: Option<LoraArgs>,
    pub frozen_precision: FrozenPrecision,
    pub freeze_embeddings: bool,
    pub freeze_layers: usize,
    pub max_length: Option<usize>,
    pub checkpoint_every: u64,
    pub eval_every: u64,
    pub device: DeviceArg,
    pub precision: Precision,
    /// Whether the recipe trains on a GPU with the own kernels.
    pub own_kernels: bool,
}

/// Declares a recipe's arguments: the common ones, then its own, with their defaults.
macro_rules! recipe_args {
    (
        $(#[$meta:meta])*
        $name:ident (learning_rate = $learning_rate:expr) {
            $($(#[$doc:meta])* $field:ident: $ty:ty = $default:expr),* $(,)?
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name {
            /// The model to start from: a Hugging Face directory or a .gguf file.
            pub model: String,
            /// Where the trained model directory is written.
            pub output_dir: String,
            /// Directory of checkpoints. Without it the run cannot resume.
            pub checkpoint_dir: Option<String>,
            /// Directory of metrics.jsonl, samples.jsonl and TensorBoard event files. Without it none are written.
            pub log_dir: Option<String>,
            /// Resume from the newest checkpoint, if there is one.
            pub resume: bool,
            /// Seed of all random choices.
            pub seed: u64,
            /// Maximum number of steps (RL: iterations); null = no limit.
            pub max_steps: Option<u64>,
            /// Number of tokens per forward and backward pass. Smaller values need less memory; results do not change.
            pub micro_batch_tokens: usize,
            /// What backward passes recompute instead of storing: `none` (fastest), `mlp` (about half the memory of
            /// activations, less extra time than `block`) or `block` (least memory, about a fifth more time).
            pub recompute: crate::model::Recompute,
            /// Peak learning rate.
            pub learning_rate: f64,
            /// Number of optimizer steps of linear warm-up.
            pub warmup_steps: u64,
            /// Schedule of the learning rate after the warm-up.
            pub lr_schedule: super::super::schedule::Decay,
            /// Decoupled weight decay of matrices.
            pub weight_decay: f64,
            /// Gradients are scaled down to this global norm; null = no clipping.
            pub max_grad_norm: Option<f64>,
            /// Decay of Adam's second moment.
            pub adam_beta2: f64,
            /// Adam's ε.
            pub adam_eps: f64,
            /// Position of ε: PyTorch's form or TensorFlow's.
            pub adam_form: super::super::optim::AdamForm,
            /// Format of Adam's moments: `f32`, or `8bit` (rounded in blocks of 256) in a quarter of the memory.
            pub adam_states: super::super::optim::AdamStates,
            /// Low-rank adapters; null = all parameters are trained.
            pub lora: Option<super::LoraArgs>,
            /// Format of matrices that are not trained, such as those with adapters: `f32` (exact), `bf16` (about twice
            /// as fast if the processor multiplies bfloat16; also for reward models), or `q8_0` and `q4` (QLoRA: a
            /// quarter and a sixth of the memory). Adapters are always f32.
            pub frozen_precision: super::FrozenPrecision,
            /// Do not train the embeddings (nor the output matrix, if it is tied to them).
            pub freeze_embeddings: bool,
            /// Number of blocks, from the first, that are not trained.
            pub freeze_layers: usize,
            /// Maximum length of a sequence in tokens, including the prompt. Longer prompts are truncated at the start.
            /// null = the 99th percentile of the data's lengths, at most the model's context (raw text: 1024).
            pub max_length: Option<usize>,
            /// Number of steps between checkpoints; 0 = only on a stop.
            pub checkpoint_every: u64,
            /// Number of steps between evaluations; 0 = only at the end.
            pub eval_every: u64,
            /// The device for the computation.
            pub device: super::DeviceArg,
            /// Element type of weights and activations in products on a GPU: `f32`, or `bf16`: less memory, and
            /// less exact. Sums, gradients and the weights that an update changes are always f32.
            pub precision: super::Precision,
            /// Run a grid of arguments with several seeds. The best model and a table are published.
            pub sweep: Option<super::SweepArgs>,
            $($(#[$doc])* pub $field: $ty,)*
        }

        impl Default for $name {
            fn default() -> Self {
                Self {
                    model: String::new(),
                    output_dir: String::new(),
                    checkpoint_dir: None,
                    log_dir: None,
                    resume: false,
                    seed: 0,
                    max_steps: None,
                    micro_batch_tokens: 1024,
                    recompute: crate::model::Recompute::None,
                    learning_rate: $learning_rate,
                    warmup_steps: 0,
                    lr_schedule: super::super::schedule::Decay::Constant,
                    weight_decay: 0.0,
                    max_grad_norm: Some(1.0),
                    adam_beta2: 0.999,
                    adam_eps: 1e-5,
                    adam_form: super::super::optim::AdamForm::Torch,
                    adam_states: super::super::optim::AdamStates::F32,
                    lora: None,
                    frozen_precision: super::FrozenPrecision::F32,
                    freeze_embeddings: false,
                    freeze_layers: 0,
                    max_length: None,
                    checkpoint_every: 20,
                    eval_every: 0,
                    device: super::DeviceArg::Auto,
                    precision: super::Precision::F32,
                    sweep: None,
                    $($field: $default,)*
                }
            }
        }

        impl $name {
            /// The arguments that all recipes share.
            pub fn common(&self) -> super::Common {
                super::Common {
                    model: self.model.clone(),
                    output_dir: self.output_dir.clone(),
                    checkpoint_dir: self.checkpoint_dir.clone(),
                    log_dir: self.log_dir.clone(),
                    resume: self.resume,
                    seed: self.seed,
                    max_steps: self.max_steps,
                    micro_batch_tokens: self.micro_batch_tokens,
                    recompute: self.recompute,
                    learning_rate: self.learning_rate,
                    warmup_steps: self.warmup_steps,
                    lr_schedule: self.lr_schedule,
                    weight_decay: self.weight_decay,
                    max_grad_norm: self.max_grad_norm,
                    adam_beta2: self.adam_beta2,
                    adam_eps: self.adam_eps,
                    adam_form: self.adam_form,
                    adam_states: self.adam_states,
                    lora: self.lora.clone(),
                    frozen_precision: self.frozen_precision,
                    freeze_embeddings: self.freeze_embeddings,
                    freeze_layers: self.freeze_layers,
                    max_length: self.max_length,
                    checkpoint_every: self.checkpoint_every,
                    eval_every: self.eval_every,
                    device: self.device,
                    precision: self.precision,
                    own_kernels: <Self as super::RecipeArgs>::OWN_KERNELS,
                }
            }
        }
    };
}
pub(crate) use recipe_args;

/// The arguments of a recipe, which can be checked.
pub trait RecipeArgs: DeserializeOwned + Serialize + Default + schemars::JsonSchema {
    /// Fields without a usable default.
    const REQUIRED: &'static [&'static str];
    /// Values (as JSON) that describe the behaviour before an argument existed, if its default is another one. A
    /// checkpoint without the argument was written with this value.
    const EARLIER_DEFAULTS: &'static [(&'static str, &'static str)] = &[];
    /// Whether the recipe trains on a GPU with the own kernels; others use the cargo feature `cuda`.
    const OWN_KERNELS: bool = false;

    fn check(&self) -> Result<(), ArgsError>;
}

/// Parses and checks arguments.
///
/// # Errors
/// Unknown keys, wrong types and values out of range, with the path of the field.
pub fn parse<T: RecipeArgs>(value: &Value) -> Result<T, ArgsError> {
    if !value.is_object() {
        return Err(ArgsError { field: "args".to_owned(), message: "must be a JSON object".to_owned() });
    }
    for &field in T::REQUIRED {
        let given = value.get(field).is_some_and(|v| !v.is_null() && v.as_str() != Some(""));
        if !given {
            return Err(ArgsError { field: field.to_owned(), message: "is required".to_owned() });
        }
    }
    let args: T = serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let message = error.into_inner().to_string();
        // At the root, serde names the field in the message only.
        let quoted = message.split('`').nth(1).unwrap_or("args").to_owned();
        let message = crate::domain::with_nearest(message);
        ArgsError { field: if path == "." || path == "?" { quoted } else { path }, message }
    })?;
    args.check()?;
    Ok(args)
}

/// The JSON Schema of `T`, with the required fields marked.
pub fn schema<T: RecipeArgs>() -> Value {
    let mut schema = schemars::schema_for!(T).to_value();
    for field in T::REQUIRED {
        if let Some(property) = schema.pointer_mut(&format!("/properties/{field}")).and_then(Value::as_object_mut) {
            property.remove("default");
        }
    }
    schema["required"] = Value::from(T::REQUIRED.to_vec());
    schema
}

/// `Err` naming `field` unless `holds`.
pub(crate) fn ensure(holds: bool, field: &str, message: &str) -> Result<(), ArgsError> {
    if holds { Ok(()) } else { Err(ArgsError { field: field.to_owned(), message: message.to_owned() }) }
}

impl Common {
    /// Refuses options to freeze parameters, for recipes in which they would have no effect.
    pub(crate) fn check_unfrozen(&self) -> Result<(), ArgsError> {
        ensure(!self.freeze_embeddings, "freeze_embeddings", "is not for this recipe")?;
        ensure(self.freeze_layers == 0, "freeze_layers", "is not for this recipe")
    }

    /// Whether the run trains on a device with the own kernels.
    pub(crate) fn uses_own_kernels(&self) -> bool {
        self.own_kernels && matches!(self.device, DeviceArg::Cuda | DeviceArg::Sim)
    }

    /// Refuses options that the own kernels do not follow, or that only they follow.
    fn check_own_kernels(&self) -> Result<(), ArgsError> {
        if !self.uses_own_kernels() {
            let message = "the simulated device is not for this recipe; set it to cpu";
            ensure(self.device != DeviceArg::Sim, "device", message)?;
            let message = "bf16 is for recipes that a GPU's kernels train, with `device` cuda; set it to f32";
            return ensure(self.precision == Precision::F32, "precision", message);
        }
        ensure(
            self.frozen_precision == FrozenPrecision::F32,
            "frozen_precision",
            "other precisions than f32 are for the CPU; set `precision` to bf16, or `device` to cpu",
        )?;
        ensure(
            self.adam_states == AdamStates::F32,
            "adam_states",
            "moments of 8 bits are for the CPU; set `device` to cpu, or f32 here",
        )
    }

    /// Refuses options of the CPU's kernels, which have no effect on a GPU.
    pub(crate) fn check_gpu(&self) -> Result<(), ArgsError> {
        let plain = self.recompute == Recompute::None;
        ensure(
            plain,
            "recompute",
            "is for the CPU: on a GPU it would have no effect; set `device` to cpu, or none here",
        )?;
        let exact = self.frozen_precision == FrozenPrecision::F32;
        ensure(
            exact,
            "frozen_precision",
            "other precisions than f32 are for the CPU: a GPU computes in f32; set `device` to cpu, or f32 here",
        )
    }

    /// Checks the ranges of the common arguments.
    pub(crate) fn check(&self) -> Result<(), ArgsError> {
        ensure(self.learning_rate.is_finite() && self.learning_rate > 0.0, "learning_rate", "must be above 0")?;
        ensure(self.weight_decay.is_finite() && self.weight_decay >= 0.0, "weight_decay", "must be 0 or more")?;
        ensure(
            self.max_grad_norm.is_none_or(|n| n.is_finite() && n > 0.0),
            "max_grad_norm",
            "must be above 0, or null for no clipping",
        )?;
        ensure((0.0..1.0).contains(&self.adam_beta2), "adam_beta2", "must be in [0, 1)")?;
        ensure(self.adam_eps.is_finite() && self.adam_eps > 0.0, "adam_eps", "must be above 0")?;
        ensure(self.max_length.is_none_or(|n| n >= 2), "max_length", "must be at least 2 tokens")?;
        ensure(self.micro_batch_tokens >= 1, "micro_batch_tokens", "must be at least 1")?;
        ensure(self.max_steps != Some(0), "max_steps", "must be at least 1, or null for no limit")?;
        ensure(!self.resume || self.checkpoint_dir.is_some(), "resume", "needs checkpoint_dir")?;
        // Without adapters the reference would differ from the policy at the start.
        let exact = self.frozen_precision == FrozenPrecision::F32;
        let message = "another precision than f32 needs lora: without it nothing is frozen";
        ensure(exact || self.lora.is_some(), "frozen_precision", message)?;
        self.check_own_kernels()?;
        if self.device == DeviceArg::Cuda && !self.own_kernels {
            self.check_gpu()?;
        }
        if let Some(lora) = &self.lora {
            ensure((1..=4096).contains(&lora.rank), "lora.rank", "must be 1 to 4096")?;
            ensure(lora.alpha.is_finite() && lora.alpha > 0.0, "lora.alpha", "must be above 0")?;
            ensure(
                lora.targets.as_ref().is_none_or(|t| !t.is_empty()),
                "lora.targets",
                "must name a layer, or be absent",
            )?;
        }
        Ok(())
    }
}

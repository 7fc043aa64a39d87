//! The serving engine: owns the loaded models, batches requests continuously, and swaps versions between steps. The
//! rest of the program uses the `Generator` trait, which takes and returns no tensors.

mod attention;
pub mod attention_maps;
mod blocking;
pub mod capabilities;
mod constraint;
pub mod device;
mod drafter;
mod encoders;
mod limits;
mod loaded;
mod local;
mod lookup;
mod model_cache;
pub mod model_text;
mod output;
mod place;
mod prefix;
mod prefix_index;
mod queue;
mod rewards;
mod scheduler;
mod sequence;
mod soft_prompts;
mod stats;
mod text;
mod tokenizing;
pub mod upstream;

pub use crate::generation::Warpers;
pub use crate::model::encoder::text::Pooling;
pub use crate::tokenizer::Piece;
pub use attention::Attention;
pub use blocking::{BlockingPool, CancelToken};
pub use capabilities::{EncoderModels, Inspection, RewardScorer, SoftPrompts, Tokens};
pub use constraint::{Constraint, ConstraintKind};
pub use encoders::{EmbedRequest, Embeddings, EncoderInput, FillCandidate, FillInput, FillRequest, FillResult};
pub use local::{EngineOptions, LocalEngine};
pub use upstream::{UpstreamEngine, UpstreamOptions};

use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::domain::{Message, ModelVersion, ModelVersionId, RewardScore};
use crate::prompt::Conversation;
use crate::prompt::answer::Dialect;

/// Parameters of sampling. The defaults are those of OpenAI's API.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SamplingParams {
    pub max_tokens: usize,
    /// Changes to the distribution before a draw. In JSON these fields are on the same level as the others.
    #[serde(flatten)]
    pub warpers: Warpers,
    /// Generation ends at the first of these strings, which is not part of the text.
    pub stop: Vec<String>,
    /// Generation ends with any of these tokens, which are not part of the text.
    pub stop_token_ids: Vec<u32>,
    /// The stop string that was found is part of the text.
    pub include_stop_str_in_output: bool,
    pub seed: u64,
    /// Generation does not stop at the model's end tokens.
    pub ignore_eos: bool,
    /// Generation does not end, by an end token or a stop string, before this many tokens.
    pub min_tokens: usize,
    /// `Some(k)`: report each token's log-prob and the k most likely alternatives (k ≤ 20).
    pub logprobs: Option<usize>,
    /// The constraint that the text must satisfy. Stored completions have its name in the field `constrained`.
    #[serde(skip)]
    pub constraint: Option<Arc<Constraint>>,
    /// Special tokens that are part of the text, such as those around tool calls.
    #[serde(skip)]
    pub shown: Vec<String>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            max_tokens: 16,
            warpers: Warpers::default(),
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            include_stop_str_in_output: false,
            seed: 0,
            ignore_eos: false,
            min_tokens: 0,
            logprobs: None,
            constraint: None,
            shown: Vec::new(),
        }
    }
}

/// A request for `n` samples of one prompt. Sample i draws from the random stream (seed, i).
#[derive(Clone, Debug)]
pub struct GenerateRequest {
    pub request_id: String,
    /// The version that answers; `None` means the active one.
    pub version: Option<ModelVersionId>,
    pub prompt_ids: Vec<u32>,
    pub n: usize,
    pub params: SamplingParams,
    /// `Some(k)`: also report the prompt's log-probs with k alternatives (OpenAI `echo` + `logprobs`).
    pub prompt_logprobs: Option<usize>,
    /// Index of the first prompt token that `prompt_logprobs` reports. Tokens before it may be read from the cache.
    pub prompt_from: usize,
    /// A soft prompt that precedes the prompt. It must have been loaded by `load_soft_prompt`.
    pub soft_prompt: Option<ModelVersionId>,
    /// The request yields to others: it is admitted last and preempted first.
    pub background: bool,
}

/// How a text is tokenized: the tokens that are added around it, and whether its special tokens are recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextForm<'a> {
    /// A complete text; with `special`, the tokens that the model expects around it are added.
    Whole { special: bool, parse_special: bool },
    /// A text that continues: with `special`, the tokens that the model expects before it are added, and none after it.
    Open { special: bool, parse_special: bool },
    /// A text that continues after these ids.
    After(&'a [u32]),
}

impl TextForm<'_> {
    /// The default for prompts.
    pub const PROMPT: Self = Self::Open { special: true, parse_special: false };
}

/// A conversation rendered for a model, and the format in which the model answers.
#[derive(Clone, Debug, Default)]
pub struct ChatPrompt {
    pub ids: Vec<u32>,
    pub dialect: Dialect,
}

/// A prompt for generators that take text instead of token ids (`ServedModel::takes_text`).
#[derive(Clone, Debug, PartialEq)]
pub enum TextPrompt {
    Raw(String),
    /// The generator renders its own chat template. Without `limited` the client gave no length: the generator's
    /// default applies instead of `SamplingParams::max_tokens`.
    Chat {
        messages: Vec<Message>,
        limited: bool,
    },
}

/// A token with log-probs of the distribution from which it was drawn: log-softmax of the unwarped logits.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprob {
    pub id: u32,
    /// Natural log. `None` only for the first token of a prompt.
    pub logprob: Option<f32>,
    /// The requested number of alternatives, most likely first.
    pub top: Vec<(u32, f32)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    Stop,
    Length,
    Abort,
}

impl FinishReason {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
        }
    }
}

/// The events of a request, in order: at most one `Prompt`, then the `Delta`s of all samples, interleaved, and one
/// `Finish` per sample. `Usage` comes from generators that report no tokens. `Failed` ends the request.
#[derive(Clone, Debug)]
pub enum GenEvent {
    /// Sent only if `prompt_logprobs` was requested: one entry per prompt token from `prompt_from` on.
    Prompt {
        tokens: Vec<TokenLogprob>,
    },
    /// `text` consists of whole characters and never contains a part of a stop string; it is empty while bytes are held
    /// back. `tokens` are the tokens drawn since the last delta.
    Delta {
        index: usize,
        text: String,
        tokens: Vec<TokenLogprob>,
    },
    Finish {
        index: usize,
        reason: FinishReason,
    },
    /// Counts of the whole request, from generators whose deltas have no tokens. Sent before the last `Finish`.
    Usage {
        prompt_tokens: usize,
        completion_tokens: usize,
    },
    Failed {
        error: EngineError,
    },
}

/// A request that is being answered. Dropping it cancels the request and frees its pages within one step.
pub struct Generation {
    pub version: Arc<ServedModel>,
    pub prompt_tokens: usize,
    pub events: mpsc::UnboundedReceiver<GenEvent>,
}

/// Properties of a loaded version.
#[derive(Clone, Debug)]
pub struct ServedModel {
    pub version: ModelVersion,
    /// 0 if token ids are not known.
    pub vocab_size: usize,
    /// In tokens; `usize::MAX` if it is not known.
    pub max_context: usize,
    /// Prompts are text for `Generator::generate_text`; token ids and log-probs are not known.
    pub takes_text: bool,
    pub eos_ids: Vec<u32>,
    /// Format of the weights: `f32`, `q8_0`, …
    pub weights: String,
    pub parameters: u64,
    pub has_chat_template: bool,
    /// Ids that precede a prompt and are not part of its text.
    pub before_text: Vec<u32>,
}

#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum EngineError {
    #[error("{message}")]
    BadRequest { param: &'static str, message: String },
    /// The request does not fit the model's context.
    #[error("{message}")]
    TooLong { param: &'static str, message: String },
    #[error("model '{0}' does not exist")]
    UnknownModel(String),
    #[error("the server has no room for this request now")]
    Overloaded { retry_after_s: u64 },
    #[error("the server is shutting down")]
    Draining,
    #[error("no model is loaded yet")]
    NotReady,
    /// An upstream server cannot be reached at the moment.
    #[error("{message}")]
    Unavailable { message: String, retry_after_s: u64 },
    /// A model's files could not be written to this machine's disk.
    #[error("the disk is full: {0}")]
    DiskFull(String),
    #[error("the engine failed: {0}")]
    Failed(String),
}

/// Current figures for `/metrics` and `/ready`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct EngineStats {
    pub running: usize,
    pub waiting: usize,
    /// Cached tokens that running samples hold.
    pub kv_tokens_used: usize,
    /// Cached tokens of prefixes that no running sample uses; evicted when pages are needed.
    pub kv_tokens_remembered: usize,
    pub kv_tokens_total: usize,
    pub tokens_generated: u64,
    pub prompt_tokens: u64,
    /// Drafted tokens.
    pub draft_tokens: u64,
    /// Drafted tokens that the sampler drew.
    pub draft_tokens_right: u64,
}

/// Current figures of a device that serves.
#[derive(Clone, Debug, PartialEq, Serialize, schemars::JsonSchema)]
pub struct DeviceStats {
    /// Name, such as `cuda:0`.
    pub device: String,
    /// Whether its last steps succeeded. A device that fails gets no requests while another one works.
    pub works: bool,
    /// Samples that it generates.
    pub running: usize,
    /// Memory that loaded models use, and all that models may use.
    pub models: DeviceMemory,
    /// Pages of the key-value cache that running samples hold. A page has 16 tokens.
    pub pages_used: usize,
    /// All pages of the key-value cache.
    pub pages_total: usize,
    /// Share of the last second in which the device computed, 0 to 1, from NVML.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub utilization: Option<f64>,
    /// Memory that all programs use, and that the device has, from NVML.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub all_programs: Option<DeviceMemory>,
}

/// Memory of a device, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct DeviceMemory {
    pub used: u64,
    pub total: u64,
}

/// Finds the files of a version, and fetches them from the artifact store if necessary.
#[async_trait]
pub trait ModelFiles: std::fmt::Debug + Send + Sync {
    /// The directory or file to load.
    ///
    /// # Errors
    /// `DiskFull` when the files cannot be stored here; `Failed` with the reason why there are none.
    async fn path(&self, version: &ModelVersion) -> Result<std::path::PathBuf, EngineError>;
    /// The version from which this one was trained, if it is known.
    async fn parent(&self, version: &ModelVersion) -> Option<ModelVersion> {
        let _ = version;
        None
    }
}

/// Versions whose files are under one local directory.
#[derive(Debug)]
pub struct DataDir(pub std::path::PathBuf);

#[async_trait]
impl ModelFiles for DataDir {
    async fn path(&self, version: &ModelVersion) -> Result<std::path::PathBuf, EngineError> {
        Ok(self.0.join(&version.artifact_uri))
    }
}

/// A generator of text: the local engine, a mock, or an upstream server. Optional capabilities are the traits of
/// [`capabilities`]; `dyn Generator` has their methods, which return an error if the generator lacks the capability.
#[async_trait]
pub trait Generator: Send + Sync + 'static {
    /// Admits or refuses a request without waiting for computation, except for the compilation of a constraint.
    async fn generate(&self, request: GenerateRequest) -> Result<Generation, EngineError>;
    /// Generates from text; `request.prompt_ids` is empty. Waits until a remote generator has accepted the request.
    async fn generate_text(&self, request: GenerateRequest, prompt: TextPrompt) -> Result<Generation, EngineError> {
        drop((request, prompt));
        Err(EngineError::BadRequest { param: "prompt", message: "this generator takes token ids".into() })
    }
    /// Whether a request would be admitted now.
    fn ready(&self) -> Result<(), EngineError> {
        self.active().map(drop).ok_or(EngineError::NotReady)
    }
    /// The active policy version, if loaded.
    fn active(&self) -> Option<Arc<ServedModel>>;
    /// All versions that can be named in `GenerateRequest::version` without loading.
    fn loaded(&self) -> Vec<Arc<ServedModel>>;
    /// Loads, validates and warms up a version if it is not loaded, without making it active.
    async fn load(&self, version: &ModelVersion) -> Result<Arc<ServedModel>, EngineError>;
    /// Makes a loaded version the active one between two steps. Requests in flight keep their version.
    async fn activate(&self, version: &ModelVersionId) -> Result<(), EngineError>;
    /// Frees what serves a version that gets no further requests. Has no effect on the active version and on unknown
    /// ones.
    async fn release(&self, version: &ModelVersionId) {
        let _ = version;
    }
    /// Conversion between text and token ids; `None` for generators that take text.
    fn tokens(&self) -> Option<&dyn Tokens> {
        None
    }
    fn rewards(&self) -> Option<&dyn RewardScorer> {
        None
    }
    fn soft_prompts(&self) -> Option<&dyn SoftPrompts> {
        None
    }
    fn encoders(&self) -> Option<&dyn EncoderModels> {
        None
    }
    fn inspection(&self) -> Option<&dyn Inspection> {
        None
    }
    fn stats(&self) -> EngineStats;
    /// Figures of the devices that run the kernels of `gpu`; none on the CPU. Reads them from the driver, which may take
    /// some milliseconds; call it on a blocking thread.
    fn devices(&self) -> Vec<DeviceStats> {
        Vec::new()
    }
    /// Stops admitting requests. Returns when the last request has ended or the deadline has passed.
    async fn drain(&self, deadline: std::time::Duration);
}

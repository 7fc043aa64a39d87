//! Serving engine: owns the models, batches requests continuously, swaps versions between steps.
//! HTTP and services see only the `Generator` trait; tensors stay behind it.

mod adapters;
mod attention;
pub mod attention_maps;
pub mod capabilities;
mod constraint;
pub mod device;
mod encoders;
mod loaded;
mod local;
mod lookup;
mod output;
mod prefix;
mod recent;
mod rewards;
mod scheduler;
mod sequence;
mod stats;
mod text;
mod turns;
pub mod upstream;

pub use crate::generation::Warpers;
pub use crate::model::encoder::text::Pooling;
pub use crate::tokenizer::Piece;
pub use attention::Attention;
pub use capabilities::{EncoderModels, Inspection, RewardScorer, SoftPrompts, Tokens};
pub use constraint::{Constraint, Form};
pub use encoders::{EmbedRequest, Embeddings, EncoderInput, FillRequest, Filled, Filling, Gapped};
pub use local::{EngineOptions, LocalEngine};
pub use turns::{Asker, Turns};
pub use upstream::{UpstreamEngine, UpstreamOptions};

use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::domain::{Message, ModelVersion, ModelVersionId, RewardScore};
use crate::prompt::Conversation;
use crate::prompt::answer::Dialect;

/// How a text is sampled. Defaults are OpenAI's; every field is honoured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SamplingParams {
    pub max_tokens: usize,
    /// What reshapes the distribution before a draw. In JSON its fields stand beside the others.
    #[serde(flatten)]
    pub warpers: Warpers,
    /// Generation ends before the first of these strings; it is not part of the text.
    pub stop: Vec<String>,
    /// Generation ends with any of these tokens, which are not part of the text.
    pub stop_token_ids: Vec<u32>,
    /// The stop string that was found is part of the text after all.
    pub include_stop_str_in_output: bool,
    pub seed: u64,
    /// Do not stop at the end token.
    pub ignore_eos: bool,
    /// No end token and no stop string before this many tokens.
    pub min_tokens: usize,
    /// `Some(k)`: report each token's log-prob and the k most likely alternatives (k ≤ 20).
    pub logprobs: Option<usize>,
    /// The form that the text must have. A stored completion names its kind as `constrained`.
    #[serde(skip)]
    pub constraint: Option<Arc<Constraint>>,
    /// Special tokens that are text here, such as those around calls of tools.
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

/// One prompt, `n` samples. Sample i draws from the random stream (seed, i).
#[derive(Clone, Debug)]
pub struct GenerateRequest {
    pub request_id: String,
    /// Which version answers; `None` = the active one.
    pub version: Option<ModelVersionId>,
    pub prompt_ids: Vec<u32>,
    pub n: usize,
    pub params: SamplingParams,
    /// `Some(k)`: also report the prompt's log-probs with k alternatives (OpenAI `echo` + `logprobs`).
    pub prompt_logprobs: Option<usize>,
    /// The first prompt token that `prompt_logprobs` reports; what comes before may be read from the cache.
    pub prompt_from: usize,
    /// A soft prompt to stand before the prompt, made ready by `load_adapter`.
    pub adapter: Option<ModelVersionId>,
    /// May wait: it takes its turn behind other requests, and gives way to them.
    pub background: bool,
}

/// What stands around a text that is tokenized, and what it may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextForm<'a> {
    /// A whole text, with what the model expects around it if `special`.
    Whole { special: bool, parse_special: bool },
    /// A text that goes on: with what the model expects before it if `special`, and nothing behind it.
    Open { special: bool, parse_special: bool },
    /// A text that goes on from these ids.
    After(&'a [u32]),
}

impl TextForm<'_> {
    /// A prompt as it is by default.
    pub const PROMPT: Self = Self::Open { special: true, parse_special: false };
}

/// A conversation as its model reads it, and how the model's answers are to be read.
#[derive(Clone, Debug, Default)]
pub struct ChatPrompt {
    pub ids: Vec<u32>,
    pub dialect: Dialect,
}

/// A prompt for generators that take text instead of token ids (`ServedModel::takes_text`).
#[derive(Clone, Debug, PartialEq)]
pub enum TextPrompt {
    Raw(String),
    /// The generator renders its own chat template. Without `limited` the client named no length: the
    /// generator's own default holds, not `SamplingParams::max_tokens`.
    Chat {
        messages: Vec<Message>,
        limited: bool,
    },
}

/// A token with the distribution it was drawn from: log-softmax of the unwarped logits.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprob {
    pub id: u32,
    /// Natural log; `None` only for the first token of a prompt with nothing before it.
    pub logprob: Option<f32>,
    /// Most likely first; empty unless asked for.
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

/// What a request yields, in order: at most one `Prompt`, then `Delta`s of all samples mixed, and one
/// `Finish` per sample (and `Usage` where tokens are not seen). `Failed` ends everything.
#[derive(Clone, Debug)]
pub enum GenEvent {
    /// Sent only when `prompt_logprobs` was asked for; one entry per prompt token from `prompt_from` on, the
    /// very first without log-prob.
    Prompt {
        tokens: Vec<TokenLogprob>,
    },
    /// `text` never splits a character and never contains a part of a stop string; it may be empty
    /// while bytes are held back. `tokens` are the tokens drawn since the last delta.
    Delta {
        index: usize,
        text: String,
        tokens: Vec<TokenLogprob>,
    },
    Finish {
        index: usize,
        reason: FinishReason,
    },
    /// Counts of the whole request, from generators whose deltas carry no tokens. Comes before the last `Finish`.
    Usage {
        prompt_tokens: usize,
        completion_tokens: usize,
    },
    Failed {
        error: EngineError,
    },
}

/// A running request. Dropping it cancels the request and frees its slot within one step.
pub struct Generation {
    pub version: Arc<ServedModel>,
    pub prompt_tokens: usize,
    pub events: mpsc::UnboundedReceiver<GenEvent>,
}

/// Facts about a loaded version that callers need without touching tensors.
#[derive(Clone, Debug)]
pub struct ServedModel {
    pub version: ModelVersion,
    /// 0 where ids are not known.
    pub vocab_size: usize,
    /// `usize::MAX` where it is not known.
    pub max_context: usize,
    /// Prompts are text for `Generator::generate_text`; token ids and log-probs are not known here.
    pub takes_text: bool,
    pub eos_ids: Vec<u32>,
    /// `f32`, `q8_0`, …
    pub weights: String,
    pub parameters: u64,
    pub has_chat_template: bool,
    /// Ids that stand before a prompt and are not part of its text.
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
    /// What writes the text is away for a while (an upstream server).
    #[error("{message}")]
    Unavailable { message: String, retry_after_s: u64 },
    #[error("the engine failed: {0}")]
    Failed(String),
}

/// Live numbers for `/metrics` and `/ready`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct EngineStats {
    pub running: usize,
    pub waiting: usize,
    /// Held by running samples.
    pub kv_tokens_used: usize,
    /// Prefixes kept for later prompts; given up when room is needed.
    pub kv_tokens_remembered: usize,
    pub kv_tokens_total: usize,
    pub tokens_generated: u64,
    pub prompt_tokens: u64,
    /// Guessed tokens, and those of them that were drawn.
    pub draft_tokens: u64,
    pub draft_tokens_right: u64,
    /// Memory of the devices that models are on: none on the CPU.
    pub device: Option<DeviceMemory>,
}

/// Bytes that weights and caches of the loaded models hold on devices, and bytes of those devices that are ours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct DeviceMemory {
    pub used: u64,
    pub total: u64,
}

/// Finds the files of a version, bringing them from elsewhere if need be.
#[async_trait]
pub trait ModelFiles: std::fmt::Debug + Send + Sync {
    /// The directory or file to load, or why there is none.
    async fn path(&self, version: &ModelVersion) -> Result<std::path::PathBuf, String>;
    /// The version that this one was trained from, where it is known.
    async fn parent(&self, version: &ModelVersion) -> Option<ModelVersion> {
        let _ = version;
        None
    }
}

/// Versions whose files lie under one directory of this machine.
#[derive(Debug)]
pub struct DataDir(pub std::path::PathBuf);

#[async_trait]
impl ModelFiles for DataDir {
    async fn path(&self, version: &ModelVersion) -> Result<std::path::PathBuf, String> {
        Ok(self.0.join(&version.artifact_uri))
    }
}

/// Anything that writes text: the local engine, a mock, or an upstream server. What else it can do is in the traits of
/// [`capabilities`]; `dyn Generator` has their methods, which refuse where the capability is missing.
#[async_trait]
pub trait Generator: Send + Sync + 'static {
    /// Admits or refuses at once; never waits for compute, but for the compiling of a constraint.
    async fn generate(&self, request: GenerateRequest) -> Result<Generation, EngineError>;
    /// As `generate`, from text: `request.prompt_ids` is empty. Waits until a remote generator has accepted.
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
    /// Loads (if needed), validates and warms up a version, without making it active.
    async fn load(&self, version: &ModelVersion) -> Result<Arc<ServedModel>, EngineError>;
    /// Makes a loaded version the active one between two steps; requests in flight keep theirs.
    async fn activate(&self, version: &ModelVersionId) -> Result<(), EngineError>;
    /// A version that is not active gets no further requests, so what serves it may be used otherwise. Unknown versions and
    /// the active one are passed over.
    async fn release(&self, version: &ModelVersionId) {
        let _ = version;
    }
    /// Text ↔ token ids; `None` where only text goes in and out.
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
    /// Stops admitting; resolves when the last request has ended or the deadline has passed.
    async fn drain(&self, deadline: std::time::Duration);
}

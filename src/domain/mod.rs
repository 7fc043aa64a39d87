//! The entities of the loop: ids, prompts, completions, comparison sets, judgments, model versions, jobs. Plain data
//! without behaviour, usable by every module.

mod conversations;
mod draws;
mod error_chain;
pub mod files;
pub mod hash;
mod ids;
mod job_notes;
mod names;
mod nearest;
mod prompt_input;
pub mod time;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

pub use conversations::{Conversation, ConversationTurn, Span, TextSpan};
pub use draws::{DrawReport, TournamentPlace};
pub use error_chain::error_chain;
pub use ids::*;
pub use job_notes::JobNotes;
pub use names::{is_file_name, is_model_name, is_path_part};
pub use nearest::{nearest, unknown_name, with_nearest};
pub use prompt_input::{PromptInput, user_turns};
pub use time::Micros;

/// Target of spans that appear in traces only, not in the log.
pub const TRACE: &str = "trace";

/// Declares a closed set of lower-case names that serde, the database and the API share.
macro_rules! name_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema)]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $text)] $variant),+ }

        impl $name {
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }

            /// The variant of this name, or `None` when no variant has it.
            pub fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$variant),)+ _ => None }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

// Behind the macro that it uses.
mod batches;
mod judges;
mod projects;
mod rubric;
mod webhooks;
pub use batches::*;
pub use judges::*;
pub use projects::*;
pub use rubric::*;
pub use webhooks::*;

// ---------------------------------------------------------------- prompts and completions

/// One turn of a conversation. `role` is `system`, `user` or `assistant`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Message {
    pub role: String,
    pub content: String,
}

name_enum!(
    /// The side of the train/held-out split that a prompt is on. Data is split by prompt, never by pair.
    Split { Train = "train", Heldout = "heldout" }
);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Prompt {
    pub id: PromptId,
    #[serde(default = "ProjectId::first")]
    pub project_id: ProjectId,
    pub messages: Vec<Message>,
    pub lang: Option<String>,
    /// The source: `api`, `page`, `import:<file>`, `chat`, `completions`.
    pub source: String,
    /// SHA-256 (hex) of the canonical JSON of `messages`, and of the project where it is not the first; unique.
    pub content_hash: String,
    pub split: Split,
    pub tags: Vec<String>,
    /// The reference answer, for rewards that compare with one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    pub created: Micros,
}

name_enum!(CompletionOrigin { Model = "model", Human = "human", Edit = "edit", Import = "import" });

/// A text written for a prompt, and the behaviour policy that generated it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Completion {
    pub id: CompletionId,
    pub prompt_id: PromptId,
    /// The model version that wrote it; `None` for human, edited and imported text.
    pub model_version_id: Option<ModelVersionId>,
    pub origin: CompletionOrigin,
    pub parent_completion_id: Option<CompletionId>,
    pub text: String,
    pub token_ids: Vec<u32>,
    /// Natural-log probabilities of `token_ids` under the behaviour policy, same length (or empty).
    pub logprobs: Vec<f32>,
    /// Sampling parameters as given, JSON.
    pub sampling: serde_json::Value,
    pub seed: Option<u64>,
    /// `stop`, `length`, `abort`.
    pub finish_reason: Option<String>,
    pub request_id: Option<String>,
    /// Proxy reward by the reward model at that time, if scored.
    pub reward: Option<f64>,
    pub created: Micros,
}

// ---------------------------------------------------------------- comparison sets and judgments

name_enum!(SetKind { Normal = "normal", Gold = "gold", Calibration = "calibration" });
name_enum!(SetStatus { Open = "open", Done = "done", Retired = "retired" });

/// K ≥ 2 completions of one prompt, to be ranked by `target_overlap` people.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ComparisonSet {
    pub id: SetId,
    pub prompt_id: PromptId,
    pub kind: SetKind,
    pub target_overlap: i64,
    /// `random`, `uncertainty`, `disagreement`, `versus`, `stored`, `import`, `ask`.
    pub selection_policy: String,
    pub selection_score: Option<f64>,
    pub status: SetStatus,
    /// In storage order; labelers see them in the order of the assignment's `order_seed`.
    pub completion_ids: Vec<CompletionId>,
    pub created: Micros,
}

name_enum!(AssignmentState { Leased = "leased", Submitted = "submitted", Expired = "expired", Released = "released" });

/// One labeler's turn at one set. The lease reserves one of the set's judgments for this person.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Assignment {
    pub id: AssignmentId,
    pub set_id: SetId,
    pub labeler_id: LabelerId,
    pub state: AssignmentState,
    pub lease_token: String,
    pub expires_at: Micros,
    /// Seed of the order in which the completions are shown.
    pub order_seed: u64,
}

name_enum!(Outcome { Ranked = "ranked", AllBad = "all_bad", Unrankable = "unrankable", Skip = "skip" });
name_enum!(
    /// The information about a set that a labeler had been shown before judging it: none, the authors of the
    /// completions, or the expected answer. Only blind judgments count in figures and data sets.
    Knowledge { Blind = "blind", Authors = "authors", Answer = "answer" }
);
name_enum!(
    /// How strongly the best is preferred; pairwise sets only.
    Strength { Significantly = "significantly", Clearly = "clearly", Slightly = "slightly", Barely = "barely" }
);

name_enum!(DrawState { Running = "running", Done = "done", Failed = "failed", Cancelled = "cancelled" });

/// Sets being drawn in the background from stored prompts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct SetDraw {
    pub id: DrawId,
    /// The request's parameters.
    pub request: serde_json::Value,
    pub state: DrawState,
    /// Numbers of sets to make, of prompts (or sets) examined, and of sets made.
    pub wanted: i64,
    pub looked_at: i64,
    pub made: i64,
    /// Counts of candidates and of those left out, by reason.
    pub report: DrawReport,
    pub error: Option<String>,
    pub created: Micros,
    /// The last update; a running draw without updates for a long time has ended with its server.
    pub updated: Micros,
}

/// One person's judgment of one set. Append-only: a correction is a new revision that supersedes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Judgment {
    pub id: JudgmentId,
    pub assignment_id: Option<AssignmentId>,
    pub set_id: SetId,
    pub labeler_id: LabelerId,
    pub revision: i64,
    pub supersedes_id: Option<JudgmentId>,
    pub outcome: Outcome,
    pub strength: Option<Strength>,
    pub rationale: Option<String>,
    pub active_ms: i64,
    pub wall_ms: i64,
    pub guideline_version: Option<String>,
    /// Of the rubric that `ratings` are by; null for a judgment without a rubric.
    pub rubric_version: Option<String>,
    pub idempotency_key: String,
    /// One entry for each completion of the set when `outcome` is `ranked`; else may be empty.
    pub items: Vec<JudgmentItem>,
    pub flags: Vec<JudgmentFlag>,
    /// In the order of completion id and dimension.
    pub ratings: Vec<Rating>,
    /// Spans marked as wrong, in the order of completion id and start.
    pub spans: Vec<Span>,
    pub created: Micros,
    /// The labeler's knowledge when judging; set by the store.
    pub knowledge: Knowledge,
}

/// Tier 0 is best; equal tiers are a tie.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct JudgmentItem {
    pub completion_id: CompletionId,
    pub tier: i64,
    pub shown_position: i64,
    pub rating: Option<i64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct JudgmentFlag {
    pub completion_id: Option<CompletionId>,
    pub code: String,
    pub note: Option<String>,
}

/// A human-written ideal answer: SFT data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Demonstration {
    pub prompt_id: PromptId,
    pub completion_id: CompletionId,
    pub labeler_id: Option<LabelerId>,
    pub created: Micros,
}

/// A set with its latest judgment by one labeler and the texts: the input of reward training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RankedSet {
    pub set_id: SetId,
    pub project_id: ProjectId,
    pub judgment_id: JudgmentId,
    pub labeler_id: LabelerId,
    pub prompt_id: PromptId,
    pub split: Split,
    pub messages: Vec<Message>,
    pub strength: Option<Strength>,
    pub outcome: Outcome,
    pub items: Vec<RankedItem>,
    pub knowledge: Knowledge,
    /// Of the rubric that the ratings of the items are by.
    pub rubric_version: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RankedItem {
    pub completion_id: CompletionId,
    pub model_version_id: Option<ModelVersionId>,
    pub text: String,
    pub tier: i64,
    pub shown_position: i64,
    pub ratings: Ratings,
    /// Spans marked as wrong, in their order.
    pub spans: Vec<TextSpan>,
}

/// A labeler's latest judgment of a set without texts: the input of quality figures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JudgedSet {
    pub judgment_id: JudgmentId,
    pub set_id: SetId,
    pub prompt_id: PromptId,
    pub labeler_id: LabelerId,
    pub kind: SetKind,
    pub outcome: Outcome,
    pub active_ms: i64,
    /// Whether it was given on the page under a lease, in the lease's random order.
    pub leased: bool,
    pub created: Micros,
    pub items: Vec<JudgedItem>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JudgedItem {
    pub completion_id: CompletionId,
    pub model_version_id: Option<ModelVersionId>,
    pub origin: CompletionOrigin,
    /// Lengths in characters.
    pub length: i64,
    pub tier: i64,
    pub shown_position: i64,
}

/// One rating that counts, with what figures group it by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GivenRating {
    pub rubric_version: String,
    pub set_id: SetId,
    pub labeler_id: LabelerId,
    pub rating: Rating,
}

mod access;

pub use access::*;

// ---------------------------------------------------------------- models and jobs

name_enum!(
    /// The use of a version's weights; each kind has its own routes.
    ModelKind {
        /// A decoder that generates text.
        Policy = "policy",
        Reward = "reward",
        /// A bidirectional encoder: embeddings and fill-mask.
        Encoder = "encoder",
        /// A transformer with a classification head.
        Classifier = "classifier",
        /// A soft prompt for one base model.
        PromptAdapter = "prompt_adapter",
    }
);
name_enum!(ModelState { Candidate = "candidate", Active = "active", Retired = "retired" });

/// Stage of versions whose weights are on another server.
pub const STAGE_UPSTREAM: &str = "upstream";

/// An immutable set of weights on disk (or behind an upstream server). At most one version of each kind is active.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ModelVersion {
    pub id: ModelVersionId,
    pub kind: ModelKind,
    /// Unique, `[a-z0-9][a-z0-9._-]{0,63}`; the value of `model` in API requests.
    pub name: String,
    /// `base`, `sft`, `reward`, `ppo`, …
    pub stage: String,
    pub parent_id: Option<ModelVersionId>,
    pub job_id: Option<JobId>,
    /// Directory or .gguf file; relative paths are under the data directory. `upstream:NAME` = no files here.
    pub artifact_uri: String,
    /// SHA-256 (hex) of the weights file(s).
    pub sha256: String,
    pub metrics: serde_json::Value,
    pub state: ModelState,
    pub created: Micros,
}

name_enum!(JobState {
    Queued = "queued",
    Running = "running",
    Succeeded = "succeeded",
    Failed = "failed",
    Cancelled = "cancelled",
});

impl JobState {
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// The progress of a running job; a total of `None` is not known yet.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Progress {
    /// The phase: `loading` the model, `preparing` the data, `sampling`, `scoring`, `updating`, `train`,
    /// `evaluate`, `saving`, …
    pub phase: String,
    /// Progress of the phase within one step: tokens of the samples, passes of the update.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase_done: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase_total: Option<u64>,
    pub step: u64,
    pub total_steps: Option<u64>,
    pub eta_seconds: Option<f64>,
    pub tokens_per_second: Option<f64>,
    pub memory_bytes: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Job {
    pub id: JobId,
    /// Recipe name: `sft`, `reward`, `ppo`, …
    pub kind: String,
    pub args: serde_json::Value,
    pub state: JobState,
    /// Unique among non-terminal jobs, if given.
    pub unique_key: Option<String>,
    pub priority: i64,
    pub attempt: i64,
    /// Crashes and lost leases since the last new checkpoint.
    pub crash_count: i64,
    pub lease_owner: Option<String>,
    pub lease_expires: Option<Micros>,
    pub cancel_requested: bool,
    pub checkpoint_uri: Option<String>,
    pub external_ref: Option<String>,
    pub progress: Option<Progress>,
    /// The recipe's result when it succeeded (metrics, published version…).
    pub result: Option<serde_json::Value>,
    pub error: Option<String>,
    #[serde(flatten)]
    pub notes: JobNotes,
    pub created: Micros,
    pub started: Option<Micros>,
    pub finished: Option<Micros>,
}

/// One line of a job's log: `state`, `progress`, `log`, `sample`, `warning`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct JobEvent {
    pub job_id: JobId,
    pub seq: i64,
    pub kind: String,
    pub data: serde_json::Value,
    pub created: Micros,
}

/// A reward model's score of one completion.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RewardScore {
    /// The score: the mean over the heads of an ensemble, or the weighted sum of the heads of a rubric's dimensions.
    pub mean: f64,
    /// Standard deviation over the heads of an ensemble, on the scale of the score: the model's uncertainty. 0 for other
    /// models.
    pub std: f64,
    /// Scores by name of a head, of a model with heads for a rubric's dimensions; without the weights.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub parts: BTreeMap<String, f64>,
    /// Number of tokens that were read.
    #[serde(default)]
    pub tokens: usize,
}

/// One point of a curve.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Metric {
    pub step: i64,
    pub name: String,
    pub value: f64,
}

/// A frozen list of the judgments that a training run uses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct DatasetVersion {
    pub id: DatasetId,
    /// Unique, if given; versions made by jobs have none.
    #[serde(default)]
    pub name: Option<String>,
    pub filter: serde_json::Value,
    pub as_of: Micros,
    /// SHA-256 (hex) of the exported JSONL.
    pub sha256: String,
    pub n_sets: i64,
    pub n_pairs: i64,
}

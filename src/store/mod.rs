//! All SQL statements, for SQLite and PostgreSQL; the URL's scheme selects the database. There is no policy, clock or
//! randomness here: callers pass ids, times and seeds.

mod access;
mod batches;
mod browse;
mod connect;
mod conversations;
mod draws;
pub mod dump;
mod erasure;
mod evidence;
mod groups;
mod imports;
mod jobs;
mod judgments;
mod key_maps;
mod keys;
mod leases;
mod locks;
mod many_leases;
mod many_submits;
mod migrations;
mod model_judgments;
mod models;
mod names;
mod people;
mod postgres;
mod privacy;
pub mod private;
mod projects;
mod prompts;
mod quality;
mod responses;
mod reveals;
mod rows;
mod rubrics;
mod rules;
mod searches;
mod sets;
mod settings;
mod sql;
mod submits;
mod throughput;
mod turns;
pub mod views;
mod webhooks;

use std::sync::Arc;

use crate::domain::*;

pub use access::OpenSession;
pub use batches::BatchEnd;
pub use browse::{JudgmentFilter, JudgmentRow, Named, SetFilter, SetRow};
pub use conversations::NewTurn;
pub use erasure::{Erase, Erased, PersonalData};
pub use evidence::{Activation, JobFilter, Meeting, SharedPrompt};
pub use imports::{ImportLine, Imported, ImportedLine, ImportedRanking};
pub use leases::Queue;
pub use model_judgments::ToJudge;
pub use names::{find_version, unknown_version};
pub use privacy::{
    Amount, Candidate, Cuts, ErasedPerson, Expiring, Position, RequestCounts, Stretch, learns_from_requests,
};
pub use projects::{LabelerProject, ProjectCounts, ProjectQuota};
pub use searches::{Part, PartEnd};
pub use sql::Store;
pub use submits::Question;
pub use turns::{Leased, Outlook, OutlookRequest, Place, SetContent};
pub use webhooks::{DeliveryEnd, DueDelivery, NewDelivery, Subscription};

/// Opens the store at `sqlite:PATH`, `sqlite://PATH` or `postgres://…`, creating it and applying missing migrations
/// first. Refuses a schema written by a newer program, and SQLite before 3.51.3.
pub async fn connect(url: &str) -> Result<Arc<Store>> {
    Ok(Arc::new(Store::open(url).await?))
}

/// Applies missing migrations and closes again (`instructd migrate`).
pub async fn migrate(url: &str) -> Result<()> {
    let store = Store::open(url).await?;
    store.close().await;
    Ok(())
}

/// What can go wrong in the store; the HTTP layer maps each to one status.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    #[error("no such {what}: {id}")]
    NotFound { what: &'static str, id: String },
    /// A uniqueness or state rule refused the write.
    #[error("{0}")]
    Conflict(String),
    /// The idempotency key is that of another request; nothing was stored. The text says what the key was used for.
    #[error("the idempotency_key was used for {0}; use a new one")]
    KeyReused(&'static str),
    /// The lease has ended or belongs to another worker or labeler.
    #[error("the lease on {0} is no longer held")]
    LeaseLost(String),
    /// The database cannot be reached or is overloaded; try again.
    #[error("the database is not available: {0}")]
    Unavailable(String),
    /// Nothing can be written until there is space on the disk; stored data can be read.
    #[error("the disk is full: {0}")]
    Full(String),
    #[error("database error: {0}")]
    Internal(String),
}

pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// Newest first, at most `limit` rows, starting after the id `after` (exclusive).
#[derive(Clone, Debug, Default)]
pub struct Page {
    pub after: Option<String>,
    pub limit: i64,
}

/// A judgment to be stored, together with all of its effects, in one transaction.
#[derive(Clone, Debug)]
pub struct SubmitJudgment {
    pub judgment: Judgment,
    /// Must equal the assignment's token; `None` only for rankings that come by API.
    pub lease_token: Option<String>,
    /// Ideal answer given with the judgment: stored as a human completion + demonstration.
    pub ideal_answer: Option<Completion>,
    /// Corrected completions, each with the one that it corrects as its parent: stored as the ideal answer is.
    pub corrections: Vec<Completion>,
    pub now: Micros,
    /// What the response to this judgment reveals to the labeler, unless it is a skip. Later revisions are made with
    /// that knowledge.
    pub reveals: Vec<Knowledge>,
    /// (since, maximum number) of first judgments; checked when no current lease was counted.
    pub quota: Option<(Micros, i64)>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Submitted {
    pub judgment: Judgment,
    /// True when the idempotency key had been seen with the same judgment: the stored one is returned unchanged.
    pub replayed: bool,
    /// What has been revealed to the labeler about the set, including by this judgment.
    pub revealed: Vec<Knowledge>,
}

/// First judgments of one labeler (revisions do not count) and skips: since a given time, and in total.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct LabelerCounts {
    pub today: i64,
    pub total: i64,
    pub skipped_today: i64,
    pub skipped_total: i64,
}

/// Why a labeler gets no lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoLease {
    /// There is no open set for them.
    Empty,
    /// There is none but those that they hold.
    Held,
    /// Judged and held sets have reached the day's quota.
    Quota,
    /// They have judged or skipped the named set.
    Judged,
    /// Others hold or have filled all places of the named set.
    Taken,
    /// The named set is done or out of the queue.
    Closed,
}

/// Counts for the overview of the loop.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, schemars::JsonSchema)]
pub struct Counts {
    pub prompts: i64,
    pub completions: i64,
    pub sets_open: i64,
    pub sets_done: i64,
    /// Open sets that every active labeler has judged or skipped.
    pub sets_stuck: i64,
    pub judgments: i64,
    pub demonstrations: i64,
    pub labelers: i64,
    /// Leases that were renewed within the last minutes.
    pub leases: i64,
    pub jobs_queued: i64,
    pub jobs_running: i64,
    pub feedback_events: i64,
}

/// A setting that was changed while the server ran.
#[derive(Clone, Debug, PartialEq, serde::Serialize, schemars::JsonSchema)]
#[schemars(rename = "SettingChange")]
pub struct Setting {
    pub name: String,
    pub value: serde_json::Value,
    pub updated: Micros,
    /// The labeler who changed it.
    pub updated_by: String,
}

/// A version of a project's guidelines in a language, valid from `created`.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct GuidelineVersion {
    pub id: String,
    pub project_id: ProjectId,
    pub lang: String,
    /// Markdown; empty = the configured file or the built-in text.
    pub text: String,
    pub created: Micros,
    pub created_by: LabelerId,
}

/// A version of a rubric, and who stored it.
#[derive(Clone, Debug, PartialEq)]
pub struct RubricVersion {
    pub rubric: Rubric,
    pub created: Micros,
    pub created_by: LabelerId,
}

/// Completions of a model version, and feedback on them.
#[derive(Clone, Debug, PartialEq, serde::Serialize, schemars::JsonSchema)]
pub struct VersionUse {
    pub model_version_id: ModelVersionId,
    pub requests: i64,
    pub completions: i64,
    pub tokens: i64,
    /// Ended by the length limit.
    pub cut: i64,
    /// Aborted by the client.
    pub aborted: i64,
    pub thumbs_up: i64,
    pub thumbs_down: i64,
}

/// Judgments of one day.
#[derive(Clone, Debug, PartialEq, serde::Serialize, schemars::JsonSchema)]
pub struct DayCount {
    /// Days since the epoch, UTC.
    pub day: i64,
    pub judgments: i64,
    /// Of these, skips.
    pub skips: i64,
}

/// Rate of judgments; days without any are left out.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Throughput {
    pub days: Vec<DayCount>,
    pub median_active_ms: Option<i64>,
}

/// Filter of a data set's judgments. Empty = all.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RankedFilter {
    pub split: Option<Split>,
    pub labeler_id: Option<LabelerId>,
    /// `normal` when absent. Sets with known answers are judged by everybody and would outweigh the rest.
    pub set_kind: Option<SetKind>,
    /// Only judgments created at or before this time.
    pub as_of: Option<Micros>,
    /// Only sets of prompts with this tag.
    pub tag: Option<String>,
    /// Only sets of this project (id).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub project: Option<ProjectId>,
    /// Include the judgments of others on sets that a reviewer has settled; otherwise only the reviewer's.
    pub unsettled: bool,
    /// Include preferences derived from applications' feedback: edits, thumbs, scores.
    pub feedback: bool,
    /// Take the latest revisions even if the authors or the expected answer had been revealed; otherwise the latest
    /// blind ones.
    pub informed: bool,
    /// Leave out prompts that came in only as requests, and feedback on answers to requests. Always set when
    /// `privacy.learn_from_requests` is off.
    pub without_requests: bool,
    /// Rank the completions by their ratings on a dimension of a rubric; sets with fewer than two ratings on it are
    /// left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by_rating: Option<ByRating>,
    /// Whose rankings: those of people (`human`), of language models that rank as labelers (`model`), or `all`.
    #[serde(skip_serializing_if = "LabelersUsed::is_human")]
    pub labelers: LabelersUsed,
}

/// The judgments whose figures are computed. Empty = all.
#[derive(Clone, Debug, Default)]
pub struct JudgedFilter {
    pub kind: Option<SetKind>,
    /// Only judgments created at or after this time.
    pub since: Option<Micros>,
    /// Only sets of this project.
    pub project: Option<ProjectId>,
}

/// New lease request. The store picks the set; seeds and ids come from the caller.
#[derive(Clone, Debug)]
pub struct LeaseRequest {
    pub labeler_id: LabelerId,
    /// The project whose sets are handed out.
    pub project_id: ProjectId,
    pub assignment_id: AssignmentId,
    pub lease_token: String,
    pub order_seed: u64,
    pub now: Micros,
    pub expires_at: Micros,
    /// Lease this set; otherwise the best open one that `pick` allows.
    pub set_id: Option<SetId>,
    pub pick: Pick,
    /// (since, maximum number) of judgments and current leases; beyond, no lease is given.
    pub quota: Option<(Micros, i64)>,
    /// Prefer a set that the labeler holds already, the one leased first, except for these.
    pub resume: Option<Vec<SetId>>,
}

/// Which kinds of sets a lease may be on. A named set may be of any kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pick {
    /// Ordinary work.
    Normal,
    /// A set of this kind if there is one, in place of an ordinary one; nothing when there are no ordinary ones.
    Instead(SetKind),
    /// A set of this kind if there is one, otherwise an ordinary one.
    First(SetKind),
}

/// Number of prompts that match a `PromptFilter`; those that a draw excludes are counted under the first reason that
/// applies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PromptCounts {
    pub found: i64,
    /// Came in only as requests, which `PromptFilter::without_requests` leaves out.
    pub requests: i64,
    /// Raw text given to `/v1/completions`.
    pub raw_text: i64,
    pub has_set: i64,
    /// Fewer stored completions than asked for.
    pub few_completions: i64,
}

/// Filter of the prompts of a draw. Empty = all.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PromptFilter {
    /// Only prompts of this project (id).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub project: Option<ProjectId>,
    pub source: Option<String>,
    /// With this tag.
    pub tag: Option<String>,
    pub lang: Option<String>,
    pub split: Option<Split>,
    /// Include prompts that have an open or finished set.
    pub with_sets: bool,
    /// Only prompts with at least this many stored completions.
    pub min_completions: i64,
    /// Leave out prompts and completions that came in only as requests; follows the setting
    /// `privacy.learn_from_requests`.
    #[serde(skip)]
    #[schemars(skip)]
    pub without_requests: bool,
}

/// Filter of the audit trail.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AuditFilter {
    pub actor: Option<String>,
    pub action: Option<String>,
    pub target: Option<String>,
    pub since: Option<Micros>,
    pub until: Option<Micros>,
}

/// Selection of feedback events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FeedbackFilter {
    /// Only events at or before this time.
    pub as_of: Option<Micros>,
    /// Leave out events on completions of requests.
    pub without_requests: bool,
}

/// A feedback event with the completion and prompt it is about.
#[derive(Clone, Debug, PartialEq)]
pub struct FeedbackFact {
    pub event: FeedbackEvent,
    pub completion: Completion,
    pub prompt: Prompt,
}

/// A claimed job: the fence is (id, attempt, lease_owner, state = running).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    pub job_id: JobId,
    pub attempt: i64,
    pub lease_owner: String,
}

/// What a running job has reported since the last time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct JobReport {
    pub progress: Option<Progress>,
    pub checkpoint: Option<String>,
    pub metrics: Vec<Metric>,
    /// (kind, data)
    pub events: Vec<(String, serde_json::Value)>,
}

/// One file of a model version; `path` is relative to the version's directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct ModelFile {
    pub path: String,
    pub bytes: i64,
    /// SHA-256, hex.
    pub sha256: String,
}

//! The only room that knows SQL. One trait over two databases; `connect` picks by URL scheme.
//! No policy, no clock, no randomness in here: callers pass ids, times and seeds.

mod access;
mod batches;
mod browse;
mod connect;
mod draws;
pub mod dump;
mod erasure;
mod evidence;
mod feedback;
mod groups;
mod imports;
mod jobs;
mod judgments;
mod leases;
mod models;
mod names;
mod people;
mod postgres;
mod privacy;
pub mod private;
mod prompts;
mod quality;
mod responses;
mod reveals;
mod rows;
mod rules;
mod sets;
mod settings;
mod sql;
mod submits;
mod throughput;
mod turns;

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::watch;

use crate::domain::*;

pub use access::{AccessStore, OpenSession};
pub use batches::{BatchEnd, BatchStore};
pub use browse::{BrowseStore, JudgmentFilter, JudgmentRow, Named, SetFilter, SetRow};
pub use erasure::{Erase, Erased, PersonalData};
pub use evidence::{Activation, EvidenceStore, JobFilter, Meeting, SharedPrompt};
pub use feedback::FeedbackStore;
pub use imports::{ImportLine, Imported, ImportedLine, ImportedRanking};
pub use names::{find_version, unknown_version};
pub use privacy::{Amount, Cuts, ErasedPerson, Expiring, PrivacyStore, RequestCounts, learns_from_requests};
pub use responses::ResponseStore;
pub use submits::Question;
pub use turns::{LabelStore, Leased, Outlook, OutlookRequest, Place, SetContent};

/// Opens the store at `sqlite:PATH`, `sqlite://PATH` or `postgres://…`, making it and applying missing
/// migrations first. Refuses a schema written by a newer program, and SQLite before 3.51.3.
pub async fn connect(url: &str) -> Result<Arc<dyn Store>> {
    Ok(Arc::new(sql::SqlStore::open(url).await?))
}

/// Applies missing migrations and closes again (`instructd migrate`).
pub async fn migrate(url: &str) -> Result<()> {
    let store = sql::SqlStore::open(url).await?;
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
    /// The lease is gone or belongs to another worker or labeler.
    #[error("the lease on {0} is no longer held")]
    LeaseLost(String),
    /// The database cannot be reached or is overloaded; try again.
    #[error("the database is not available: {0}")]
    Unavailable(String),
    /// Nothing can be written until somebody makes room; what is stored stays readable.
    #[error("the database's disk is full: {0}")]
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

/// A judgment to be stored together with what it changes, in one transaction.
#[derive(Clone, Debug)]
pub struct SubmitJudgment {
    pub judgment: Judgment,
    /// Must equal the assignment's token; `None` only for rankings that come by API.
    pub lease_token: Option<String>,
    /// Ideal answer given with the judgment: stored as a human completion + demonstration.
    pub ideal_answer: Option<Completion>,
    pub now: Micros,
    /// What the answer to this judgment shows to the labeler, unless it is a skip: later revisions know it.
    pub reveals: Vec<Knowledge>,
    /// First judgments since this time, at most this many; checked where no current lease was counted.
    pub quota: Option<(Micros, i64)>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Submitted {
    pub judgment: Judgment,
    /// True when the idempotency key had been seen: the stored judgment is returned unchanged.
    pub replayed: bool,
    /// What the labeler has been shown of the set, by this judgment too.
    pub revealed: Vec<Knowledge>,
}

/// First judgments of one labeler (revisions do not count), skips apart: since a given time, and in all.
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
    /// Nothing is open for them.
    Empty,
    /// Judged and held sets have reached the day's quota.
    Quota,
    /// They have judged or skipped the named set.
    Judged,
    /// Others hold or have filled all places of the named set.
    Taken,
    /// The named set is done or out of the queue.
    Closed,
}

/// Counts behind the picture of the loop.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, schemars::JsonSchema)]
pub struct Counts {
    pub prompts: i64,
    pub completions: i64,
    pub sets_open: i64,
    pub sets_done: i64,
    /// Open sets that no active labeler can get any more: everybody has judged or skipped them.
    pub sets_stuck: i64,
    pub judgments: i64,
    pub demonstrations: i64,
    pub labelers: i64,
    /// Leases whose holder gave a sign of life within the last minutes.
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

/// The guidelines of a language as they were from `created` on.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct GuidelineVersion {
    pub id: String,
    pub lang: String,
    /// Markdown; empty = the configured file or the built-in text.
    pub text: String,
    pub created: Micros,
    pub created_by: LabelerId,
}

/// What a model version wrote, and how it was received.
#[derive(Clone, Debug, PartialEq, serde::Serialize, schemars::JsonSchema)]
pub struct VersionUse {
    pub model_version_id: ModelVersionId,
    pub requests: i64,
    pub completions: i64,
    pub tokens: i64,
    /// Ended by the length limit.
    pub cut: i64,
    /// Left by the client.
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

/// How fast judgments come in; days without any are left out.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Throughput {
    pub days: Vec<DayCount>,
    pub median_active_ms: Option<i64>,
}

/// Which judgments a dataset takes. Empty = all.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RankedFilter {
    pub split: Option<Split>,
    pub labeler_id: Option<LabelerId>,
    /// `normal` when absent: everybody judges the sets with known answers, which would outweigh the rest.
    pub set_kind: Option<SetKind>,
    /// Only judgments created at or before this time.
    pub as_of: Option<Micros>,
    /// Only sets of prompts with this tag.
    pub tag: Option<String>,
    /// Also the judgments of others on sets that a reviewer has settled; else only the reviewer's.
    pub unsettled: bool,
    /// Also preferences that follow from applications' feedback: edits, thumbs, scores.
    pub feedback: bool,
    /// The latest revisions even where they were made after the authors or the expected answer were shown;
    /// else the latest blind ones.
    pub informed: bool,
    /// Leave out prompts that came in only as requests, and feedback on answers to requests. Always so where
    /// `privacy.learn_from_requests` is off.
    pub without_requests: bool,
}

/// New lease request. The store picks the set; seeds and ids come from the caller.
#[derive(Clone, Debug)]
pub struct LeaseRequest {
    pub labeler_id: LabelerId,
    pub assignment_id: AssignmentId,
    pub lease_token: String,
    pub order_seed: u64,
    pub now: Micros,
    pub expires_at: Micros,
    /// Restrict to this set (reopening); else the best open one of those that `pick` allows.
    pub set_id: Option<SetId>,
    pub pick: Pick,
    /// Judgments and current leases since this time, at most this many; then no lease.
    pub quota: Option<(Micros, i64)>,
    /// Give a set again that the labeler holds already, the one leased first, except for these.
    pub resume: Option<Vec<SetId>>,
}

/// Which kinds of sets a lease may be on. A named set may be of any kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pick {
    /// Ordinary work.
    Normal,
    /// A set of this kind if there is one, in the place of ordinary work: nothing without ordinary work.
    Instead(SetKind),
    /// A set of this kind if there is one, else ordinary work.
    First(SetKind),
}

/// Prompts that a `PromptFilter` fits; those that a draw leaves out are counted under the first reason that holds.
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

/// Which prompts sets are drawn for. Empty = all of them.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PromptFilter {
    pub source: Option<String>,
    /// With this tag.
    pub tag: Option<String>,
    pub lang: Option<String>,
    pub split: Option<Split>,
    /// Also prompts that have an open or finished set already.
    pub with_sets: bool,
    /// Only prompts with at least this many stored completions.
    pub min_completions: i64,
    /// Leave out prompts and completions that came in only as requests; follows the setting
    /// `privacy.learn_from_requests`.
    #[serde(skip)]
    #[schemars(skip)]
    pub without_requests: bool,
}

/// Which lines of the audit trail.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AuditFilter {
    pub actor: Option<String>,
    pub action: Option<String>,
    pub target: Option<String>,
    pub since: Option<Micros>,
    pub until: Option<Micros>,
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

/// What a running job has to say since the last time.
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

#[async_trait]
pub trait Store:
    FeedbackStore + AccessStore + BatchStore + BrowseStore + EvidenceStore + PrivacyStore + LabelStore + ResponseStore
{
    /// `sqlite` or `postgres`.
    fn backend(&self) -> &'static str;
    /// Cheap round trip for `/ready`.
    async fn ping(&self) -> Result<()>;
    /// The database's own clock, µs UTC.
    async fn now(&self) -> Result<Micros>;
    async fn counts(&self) -> Result<Counts>;
    async fn close(&self);

    // prompts: `put` returns the stored row when the content hash is known already
    async fn put_prompt(&self, prompt: Prompt) -> Result<Prompt>;
    async fn get_prompt(&self, id: &PromptId) -> Result<Prompt>;
    async fn list_prompts(&self, page: Page, source: Option<&str>) -> Result<Vec<Prompt>>;

    // completions
    async fn put_completions(&self, completions: Vec<Completion>) -> Result<()>;
    async fn get_completion(&self, id: &CompletionId) -> Result<Completion>;
    async fn list_completions(&self, prompt_id: &PromptId) -> Result<Vec<Completion>>;
    async fn set_completion_reward(&self, id: &CompletionId, reward: f64) -> Result<()>;

    // comparison sets
    async fn put_set(&self, set: ComparisonSet) -> Result<()>;
    async fn get_set(&self, id: &SetId) -> Result<ComparisonSet>;
    async fn list_sets(&self, page: Page, status: Option<SetStatus>) -> Result<Vec<ComparisonSet>>;
    async fn retire_set(&self, id: &SetId) -> Result<()>;
    /// Expected tiers of a gold set, by completion.
    async fn put_gold(&self, set_id: &SetId, tiers: &[(CompletionId, i64)]) -> Result<()>;
    async fn get_gold(&self, set_id: &SetId) -> Result<Vec<(CompletionId, i64)>>;

    // leases: at most one current lease per (set, labeler), and never more current leases +
    // submitted assignments (+ rankings by API) on a set than its target_overlap. A labeler never gets
    // a set again that he has judged or skipped, nor one he holds (unless he names it: then the same
    // lease again, extended). A lease that ran out or was released unjudged may come back to him, as the
    // same assignment with the same token and order.
    async fn lease_next(&self, request: LeaseRequest) -> Result<Option<Assignment>>;
    async fn get_assignment(&self, id: &AssignmentId) -> Result<Assignment>;
    async fn renew_lease(&self, id: &AssignmentId, lease_token: &str, now: Micros, expires_at: Micros) -> Result<()>;
    async fn release_lease(&self, id: &AssignmentId, lease_token: &str) -> Result<()>;

    // judgments: append-only. A replayed idempotency key returns the stored judgment.
    // An expired lease still submits as long as nobody else took the place (overlap not full).
    // The store numbers revisions; a skip gives the place back; a revision needs no lease.
    // The labelers `admin` and `import` exist from the start.
    async fn submit_judgment(&self, submit: SubmitJudgment) -> Result<Submitted>;
    async fn get_judgment(&self, id: &JudgmentId) -> Result<Judgment>;
    async fn list_judgments(&self, page: Page, labeler: Option<&LabelerId>) -> Result<Vec<Judgment>>;
    /// How many first judgments (revisions do not count) the labeler gave since `since`, and in all.
    async fn judgment_counts(&self, labeler: &LabelerId, since: Micros) -> Result<LabelerCounts>;
    /// First judgments since `since`; what was imported does not count.
    async fn throughput(&self, since: Micros) -> Result<Throughput>;
    /// Latest revisions only, joined with texts, ordered by judgment id.
    async fn ranked_sets(&self, filter: &RankedFilter) -> Result<Vec<RankedSet>>;
    async fn put_demonstration(
        &self,
        prompt: Prompt,
        completion: Completion,
        labeler: Option<LabelerId>,
        now: Micros,
    ) -> Result<Demonstration>;
    async fn demonstrations(&self) -> Result<Vec<(Prompt, Completion)>>;
    async fn put_feedback(&self, event: FeedbackEvent) -> Result<FeedbackEvent>;
    async fn list_feedback(&self, page: Page) -> Result<Vec<FeedbackEvent>>;

    // people
    async fn put_labeler(&self, labeler: Labeler) -> Result<()>;
    async fn get_labeler(&self, id: &LabelerId) -> Result<Labeler>;
    async fn list_labelers(&self) -> Result<Vec<Labeler>>;
    async fn set_labeler_active(&self, id: &LabelerId, active: bool) -> Result<()>;
    async fn put_invite(&self, invite: Invite) -> Result<()>;
    /// Marks the invite used by a new labeler, in one transaction. Conflict when used or expired.
    async fn redeem_invite(&self, token_hash: &str, labeler: Labeler, now: Micros) -> Result<Labeler>;
    async fn list_invites(&self) -> Result<Vec<Invite>>;
    async fn put_session(&self, session: Session) -> Result<()>;
    async fn get_session(&self, token_hash: &str, now: Micros) -> Result<Option<Session>>;
    /// Notes that the session was used.
    async fn touch_session(&self, token_hash: &str, now: Micros) -> Result<()>;
    async fn delete_session(&self, token_hash: &str) -> Result<()>;
    async fn put_api_key(&self, key: ApiKey) -> Result<()>;
    async fn find_api_key(&self, key_hash: &str) -> Result<Option<ApiKey>>;
    async fn list_api_keys(&self) -> Result<Vec<ApiKey>>;
    /// Also ends the sessions that the key opened.
    async fn revoke_api_key(&self, id: &ApiKeyId) -> Result<()>;
    /// Tokens charged to the key on a day (days since 1970-01-01 UTC).
    async fn key_tokens(&self, id: &ApiKeyId, day: i64) -> Result<i64>;
    async fn add_key_tokens(&self, id: &ApiKeyId, day: i64, tokens: i64) -> Result<()>;
    async fn audit(
        &self,
        by: &Signature,
        action: &str,
        target: &str,
        detail: serde_json::Value,
        now: Micros,
    ) -> Result<()>;

    // models
    async fn put_model(&self, model: ModelVersion) -> Result<()>;
    async fn get_model(&self, id: &ModelVersionId) -> Result<ModelVersion>;
    async fn find_model(&self, name: &str) -> Result<Option<ModelVersion>>;
    async fn list_models(&self) -> Result<Vec<ModelVersion>>;
    async fn active_model(&self, kind: ModelKind) -> Result<Option<ModelVersion>>;
    /// Makes it the only active version of its kind, in one transaction; the former one becomes a candidate.
    async fn activate_model(&self, id: &ModelVersionId, now: Micros) -> Result<ModelVersion>;
    async fn retire_model(&self, id: &ModelVersionId) -> Result<()>;
    /// Which files a version is made of; a second call replaces the first.
    async fn put_model_files(&self, id: &ModelVersionId, files: Vec<ModelFile>) -> Result<()>;
    /// Empty when nobody said. Ordered by path.
    async fn model_files(&self, id: &ModelVersionId) -> Result<Vec<ModelFile>>;
    /// Changes when this or another server may have activated a version: within a second of it. Says so too
    /// when nothing happened, for instance after a lost connection; who is woken looks for itself.
    fn activations(&self) -> watch::Receiver<()>;

    /// What each version wrote since `since`; versions that wrote nothing are left out.
    async fn version_use(&self, since: Micros) -> Result<Vec<VersionUse>>;

    // settings that are changed while the server runs
    async fn settings(&self) -> Result<Vec<Setting>>;
    /// `None` removes it.
    async fn put_setting(&self, name: &str, value: Option<serde_json::Value>, by: &str, now: Micros) -> Result<()>;

    // datasets
    async fn put_dataset(&self, dataset: DatasetVersion) -> Result<()>;
    async fn list_datasets(&self) -> Result<Vec<DatasetVersion>>;

    // job queue: the database's clock decides about leases. Whatever ends a job or puts it back also
    // appends the event `state`, in the same transaction.
    /// Conflict when a non-terminal job has the same unique key.
    async fn enqueue_job(&self, job: Job) -> Result<Job>;
    async fn get_job(&self, id: &JobId) -> Result<Job>;
    async fn list_jobs(&self, page: Page, state: Option<JobState>) -> Result<Vec<Job>>;
    async fn count_jobs(&self, state: JobState) -> Result<i64>;
    /// Takes the next queued job, or a running one whose lease has expired (then crash_count + 1; at
    /// `max_crashes` it becomes failed instead and the next is tried).
    async fn claim_job(
        &self,
        lease_owner: &str,
        lease_seconds: i64,
        kinds: &[&str],
        max_crashes: i64,
    ) -> Result<Option<(Job, Fence)>>;
    /// Extends the lease; returns whether cancel was requested. `LeaseLost` when the fence does not hold.
    async fn heartbeat_job(&self, fence: &Fence, lease_seconds: i64, progress: Option<&Progress>) -> Result<bool>;
    async fn checkpoint_job(&self, fence: &Fence, checkpoint_uri: &str) -> Result<()>;
    /// Writes down what the job says and extends its lease, all or nothing; returns whether cancel was
    /// requested. `LeaseLost` when the fence does not hold: a worker that slept too long writes nothing.
    async fn report_job(&self, fence: &Fence, lease_seconds: i64, report: JobReport) -> Result<bool>;
    /// Succeeded with a new version: registers it with its files and ends the job in one transaction, so
    /// that a job has one version whoever finishes it.
    async fn complete_job(
        &self,
        fence: &Fence,
        model: ModelVersion,
        files: Vec<ModelFile>,
        result: serde_json::Value,
    ) -> Result<()>;
    async fn finish_job(
        &self,
        fence: &Fence,
        state: JobState,
        result: Option<serde_json::Value>,
        error: Option<&str>,
    ) -> Result<()>;
    /// Back to queued: without counting the attempt (shutdown), or, with the child's last words in
    /// `crash`, counting a crash; at `max_crashes` it becomes failed, and cancelled if that was asked for.
    async fn requeue_job(&self, fence: &Fence, crash: Option<&str>, max_crashes: i64) -> Result<JobState>;
    /// Queued → cancelled at once; running → `cancel_requested`. Conflict when terminal.
    async fn cancel_job(&self, id: &JobId) -> Result<Job>;
    /// Failed or cancelled → queued again, keeping its checkpoint.
    async fn resume_job(&self, id: &JobId) -> Result<Job>;
    /// `seq` is given by the store, ascending per job.
    async fn append_job_events(&self, job_id: &JobId, events: &[(String, serde_json::Value)]) -> Result<i64>;
    async fn job_events(&self, job_id: &JobId, after_seq: i64, limit: i64) -> Result<Vec<JobEvent>>;
    async fn put_metrics(&self, job_id: &JobId, metrics: &[Metric]) -> Result<()>;
    async fn metrics(&self, job_id: &JobId, names: &[String]) -> Result<Vec<Metric>>;
}

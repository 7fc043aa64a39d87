//! The `Store` trait over either database: reads borrow a connection, writes run in their own task and
//! return after the commit. The statements are in the files beside this one.

use async_trait::async_trait;

use super::connect::Db;
use super::groups::Groups;
use super::rows::{Conn, args};
use super::*;

/// SQLite or Postgres behind one set of statements.
pub(super) struct SqlStore {
    pub(super) db: Db,
    pub(super) groups: Groups,
    pub(super) open_counts: turns::OpenCounts,
}

impl SqlStore {
    pub(super) async fn open(url: &str) -> Result<Self> {
        Ok(Self { db: Db::open(url).await?, groups: Groups::default(), open_counts: turns::OpenCounts::default() })
    }
}

macro_rules! read {
    ($self:ident, |$c:ident| $body:expr) => {{
        let mut conn = $self.db.read().await?;
        let $c = &mut conn;
        $self.db.in_time($body).await
    }};
}

/// The arguments named before `=>` are made owned first, because the write outlives its caller.
macro_rules! write {
    ($self:ident, |$tx:ident| $body:expr) => {
        $self.db.write(move |$tx| Box::pin(async move { $body.await })).await
    };
    ($self:ident, $($owned:ident = $value:expr),+ => |$tx:ident| $body:expr) => {{
        $(let $owned = $value;)+
        write!($self, |$tx| $body)
    }};
}

/// As `write!`, in a transaction that is shared with other labelers' writes and alone in taking places. The work may
/// run twice, so it clones the names in the parentheses.
macro_rules! place {
    ($self:ident, |$tx:ident| ($($owned:ident),+) => $body:expr) => {
        $self
            .groups
            .write(&$self.db, move |$tx| {
                $(let $owned = $owned.clone();)+
                Box::pin(async move { $body.await })
            })
            .await
    };
}

async fn counts(conn: &mut Conn) -> Result<Counts> {
    let now = conn.now().await?;
    let mut counts = Counts::default();
    for (field, sql) in [
        (&mut counts.prompts, "SELECT COUNT(*) AS n FROM prompts"),
        (&mut counts.completions, "SELECT COUNT(*) AS n FROM completions"),
        (&mut counts.sets_open, "SELECT COUNT(*) AS n FROM comparison_sets WHERE status = 'open' AND kind = 'normal'"),
        (&mut counts.sets_done, "SELECT COUNT(*) AS n FROM comparison_sets WHERE status = 'done'"),
        (&mut counts.judgments, "SELECT COUNT(*) AS n FROM judgments WHERE supersedes_id IS NULL"),
        (&mut counts.demonstrations, "SELECT COUNT(*) AS n FROM demonstrations"),
        (
            &mut counts.labelers,
            "SELECT COUNT(*) AS n FROM labelers WHERE id NOT IN ('admin', 'import') AND id NOT LIKE 'import-%'",
        ),
        (&mut counts.jobs_queued, "SELECT COUNT(*) AS n FROM jobs WHERE state = 'queued'"),
        (&mut counts.jobs_running, "SELECT COUNT(*) AS n FROM jobs WHERE state = 'running'"),
        (&mut counts.feedback_events, "SELECT COUNT(*) AS n FROM feedback_events"),
    ] {
        *field = conn.count(sql, vec![]).await?;
    }
    counts.leases = leases::count_live(conn, now).await?;
    counts.sets_stuck = leases::count_stuck(conn, now).await?;
    Ok(counts)
}

/// Bytes of texts on one page of a list: it ends early behind the row that fills it, and goes on after that one's id.
pub(super) const PAGE_BYTES: usize = 4 << 20;

pub(super) use {place, read, write};

#[async_trait]
impl Store for SqlStore {
    fn backend(&self) -> &'static str {
        self.db.backend()
    }

    async fn ping(&self) -> Result<()> {
        // A row of each table that requests need, by a column that no index has: a damaged file must not pass for a
        // sound one.
        let sql = "SELECT (SELECT COUNT(messages) FROM (SELECT messages FROM prompts LIMIT 1) a)
                 + (SELECT COUNT(text) FROM (SELECT text FROM completions LIMIT 1) b)
                 + (SELECT COUNT(selection_policy) FROM (SELECT selection_policy FROM comparison_sets LIMIT 1) c)
                 + (SELECT COUNT(wall_ms) FROM (SELECT wall_ms FROM judgments LIMIT 1) d)
                 + (SELECT COUNT(name) FROM (SELECT name FROM api_keys LIMIT 1) e)
                 + (SELECT COUNT(role) FROM (SELECT role FROM sessions LIMIT 1) f) AS n";
        let damaged = |error| match error {
            StoreError::Internal(error) => StoreError::Unavailable(format!("the database cannot be read: {error}")),
            other => other,
        };
        read!(self, |c| c.count(sql, vec![])).map_err(damaged)?;
        self.db.takes_writes().await
    }

    async fn now(&self) -> Result<Micros> {
        read!(self, |c| c.now())
    }

    async fn counts(&self) -> Result<Counts> {
        read!(self, |c| counts(c))
    }

    async fn close(&self) {
        self.db.close().await
    }

    async fn put_prompt(&self, prompt: Prompt) -> Result<Prompt> {
        write!(self, |tx| prompts::put(tx, &prompt))
    }

    async fn get_prompt(&self, id: &PromptId) -> Result<Prompt> {
        read!(self, |c| prompts::get(c, id))
    }

    async fn list_prompts(&self, page: Page, source: Option<&str>) -> Result<Vec<Prompt>> {
        read!(self, |c| prompts::list(c, &page, source))
    }

    async fn put_completions(&self, completions: Vec<Completion>) -> Result<()> {
        write!(self, |tx| async move {
            for completion in &completions {
                prompts::put_completion(tx, completion, None).await?;
            }
            Ok(())
        })
    }

    async fn get_completion(&self, id: &CompletionId) -> Result<Completion> {
        read!(self, |c| prompts::get_completion(c, id))
    }

    async fn list_completions(&self, prompt_id: &PromptId) -> Result<Vec<Completion>> {
        read!(self, |c| prompts::list_completions(c, prompt_id))
    }

    async fn set_completion_reward(&self, id: &CompletionId, reward: f64) -> Result<()> {
        write!(self, id = id.clone() => |tx| prompts::set_reward(tx, &id, reward))
    }

    async fn put_set(&self, set: ComparisonSet) -> Result<()> {
        write!(self, |tx| sets::put(tx, &set))
    }

    async fn get_set(&self, id: &SetId) -> Result<ComparisonSet> {
        read!(self, |c| sets::get(c, id))
    }

    async fn list_sets(&self, page: Page, status: Option<SetStatus>) -> Result<Vec<ComparisonSet>> {
        read!(self, |c| sets::list(c, &page, status, None))
    }

    async fn retire_set(&self, id: &SetId) -> Result<()> {
        write!(self, id = id.clone() => |tx| sets::retire(tx, &id))
    }

    async fn put_gold(&self, set_id: &SetId, tiers: &[(CompletionId, i64)]) -> Result<()> {
        write!(self, set_id = set_id.clone(), tiers = tiers.to_vec() => |tx| sets::put_gold(tx, &set_id, &tiers))
    }

    async fn get_gold(&self, set_id: &SetId) -> Result<Vec<(CompletionId, i64)>> {
        read!(self, |c| sets::get_gold(c, set_id))
    }

    async fn lease_next(&self, request: LeaseRequest) -> Result<Option<Assignment>> {
        let seen = self.seen(&turns::for_lease(&request)).await?;
        Ok(match self.lease_by(request, seen).await? {
            Leased::Set(assignment) => Some(assignment),
            Leased::Nothing(_) => None,
        })
    }

    async fn get_assignment(&self, id: &AssignmentId) -> Result<Assignment> {
        read!(self, |c| leases::get_assignment(c, id))
    }

    async fn renew_lease(&self, id: &AssignmentId, lease_token: &str, now: Micros, expires_at: Micros) -> Result<()> {
        let (id, token) = (id.clone(), lease_token.to_owned());
        place!(self, |tx| (id, token) => leases::renew(tx, &id, &token, now, expires_at))
    }

    async fn release_lease(&self, id: &AssignmentId, lease_token: &str) -> Result<()> {
        let (id, token) = (id.clone(), lease_token.to_owned());
        place!(self, |tx| (id, token) => leases::release(tx, &id, &token))
    }

    async fn submit_judgment(&self, submit: SubmitJudgment) -> Result<Submitted> {
        place!(self, |tx| (submit) => submits::submit(tx, &submit))
    }

    async fn get_judgment(&self, id: &JudgmentId) -> Result<Judgment> {
        read!(self, |c| judgments::get(c, id))
    }

    async fn list_judgments(&self, page: Page, labeler: Option<&LabelerId>) -> Result<Vec<Judgment>> {
        read!(self, |c| judgments::list(c, &page, labeler))
    }

    async fn judgment_counts(&self, labeler: &LabelerId, since: Micros) -> Result<LabelerCounts> {
        read!(self, |c| judgments::counts(c, labeler, since))
    }

    async fn throughput(&self, since: Micros) -> Result<Throughput> {
        read!(self, |c| throughput::since(c, since))
    }

    async fn ranked_sets(&self, filter: &RankedFilter) -> Result<Vec<RankedSet>> {
        read!(self, |c| judgments::ranked_sets(c, filter))
    }

    async fn put_demonstration(
        &self,
        prompt: Prompt,
        completion: Completion,
        labeler: Option<LabelerId>,
        now: Micros,
    ) -> Result<Demonstration> {
        write!(self, |tx| prompts::put_demonstration(tx, &prompt, completion, labeler.as_ref(), now))
    }

    async fn demonstrations(&self) -> Result<Vec<(Prompt, Completion)>> {
        read!(self, |c| prompts::demonstrations(c))
    }

    async fn put_feedback(&self, event: FeedbackEvent) -> Result<FeedbackEvent> {
        write!(self, |tx| prompts::put_feedback(tx, &event))
    }

    async fn list_feedback(&self, page: Page) -> Result<Vec<FeedbackEvent>> {
        read!(self, |c| prompts::list_feedback(c, &page))
    }

    async fn put_labeler(&self, labeler: Labeler) -> Result<()> {
        write!(self, |tx| people::put_labeler(tx, &labeler))
    }

    async fn get_labeler(&self, id: &LabelerId) -> Result<Labeler> {
        read!(self, |c| people::get_labeler(c, id))
    }

    async fn list_labelers(&self) -> Result<Vec<Labeler>> {
        read!(self, |c| people::list_labelers(c))
    }

    async fn set_labeler_active(&self, id: &LabelerId, active: bool) -> Result<()> {
        write!(self, id = id.clone() => |tx| people::set_active(tx, &id, active))
    }

    async fn put_invite(&self, invite: Invite) -> Result<()> {
        write!(self, |tx| people::put_invite(tx, &invite))
    }

    async fn redeem_invite(&self, token_hash: &str, labeler: Labeler, now: Micros) -> Result<Labeler> {
        write!(self, token_hash = token_hash.to_owned() => |tx| people::redeem_invite(tx, &token_hash, labeler, now))
    }

    async fn list_invites(&self) -> Result<Vec<Invite>> {
        read!(self, |c| people::list_invites(c))
    }

    async fn put_session(&self, session: Session) -> Result<()> {
        write!(self, |tx| people::put_session(tx, &session))
    }

    async fn get_session(&self, token_hash: &str, now: Micros) -> Result<Option<Session>> {
        read!(self, |c| people::get_session(c, token_hash, now))
    }

    async fn touch_session(&self, token_hash: &str, now: Micros) -> Result<()> {
        write!(self, token_hash = token_hash.to_owned() => |tx| people::touch_session(tx, &token_hash, now))
    }

    async fn key_tokens(&self, id: &ApiKeyId, day: i64) -> Result<i64> {
        read!(self, |c| people::key_tokens(c, id, day))
    }

    async fn add_key_tokens(&self, id: &ApiKeyId, day: i64, tokens: i64) -> Result<()> {
        write!(self, id = id.clone() => |tx| people::add_key_tokens(tx, &id, day, tokens))
    }

    async fn delete_session(&self, token_hash: &str) -> Result<()> {
        write!(self, token_hash = token_hash.to_owned() => |tx| people::delete_session(tx, &token_hash))
    }

    async fn put_api_key(&self, key: ApiKey) -> Result<()> {
        write!(self, |tx| people::put_api_key(tx, &key))
    }

    async fn find_api_key(&self, key_hash: &str) -> Result<Option<ApiKey>> {
        read!(self, |c| people::find_api_key(c, key_hash))
    }

    async fn list_api_keys(&self) -> Result<Vec<ApiKey>> {
        read!(self, |c| people::list_api_keys(c))
    }

    async fn revoke_api_key(&self, id: &ApiKeyId) -> Result<()> {
        write!(self, id = id.clone() => |tx| people::revoke_api_key(tx, &id))
    }

    async fn audit(
        &self,
        by: &Signature,
        action: &str,
        target: &str,
        detail: serde_json::Value,
        now: Micros,
    ) -> Result<()> {
        write!(self, by = by.clone(), action = action.to_owned(), target = target.to_owned() => |tx| people::audit(tx, &by, &action, &target, &detail, now))
    }

    async fn put_model(&self, model: ModelVersion) -> Result<()> {
        write!(self, |tx| models::put(tx, &model))
    }

    async fn get_model(&self, id: &ModelVersionId) -> Result<ModelVersion> {
        read!(self, |c| models::get(c, id))
    }

    async fn find_model(&self, name: &str) -> Result<Option<ModelVersion>> {
        read!(self, |c| models::find(c, name))
    }

    async fn list_models(&self) -> Result<Vec<ModelVersion>> {
        read!(self, |c| models::list(c))
    }

    async fn active_model(&self, kind: ModelKind) -> Result<Option<ModelVersion>> {
        read!(self, |c| models::active(c, kind))
    }

    async fn activate_model(&self, id: &ModelVersionId, now: Micros) -> Result<ModelVersion> {
        write!(self, id = id.clone() => |tx| models::activate(tx, &id, now))
    }

    async fn retire_model(&self, id: &ModelVersionId) -> Result<()> {
        write!(self, id = id.clone() => |tx| models::retire(tx, &id))
    }

    async fn version_use(&self, since: Micros) -> Result<Vec<VersionUse>> {
        read!(self, |c| settings::version_use(c, since))
    }

    async fn settings(&self) -> Result<Vec<Setting>> {
        read!(self, |c| settings::list(c))
    }

    async fn put_setting(&self, name: &str, value: Option<serde_json::Value>, by: &str, now: Micros) -> Result<()> {
        write!(self, name = name.to_owned(), by = by.to_owned() => |tx| settings::put(tx, &name, value.as_ref(), &by, now))
    }

    async fn put_model_files(&self, id: &ModelVersionId, files: Vec<ModelFile>) -> Result<()> {
        write!(self, id = id.clone() => |tx| models::put_files(tx, &id, &files))
    }

    async fn model_files(&self, id: &ModelVersionId) -> Result<Vec<ModelFile>> {
        read!(self, |c| models::files(c, id))
    }

    fn activations(&self) -> watch::Receiver<()> {
        self.db.activations()
    }

    async fn put_dataset(&self, dataset: DatasetVersion) -> Result<()> {
        write!(self, |tx| models::put_dataset(tx, &dataset))
    }

    async fn list_datasets(&self) -> Result<Vec<DatasetVersion>> {
        read!(self, |c| models::list_datasets(c))
    }

    async fn enqueue_job(&self, job: Job) -> Result<Job> {
        write!(self, |tx| jobs::enqueue(tx, &job))
    }

    async fn get_job(&self, id: &JobId) -> Result<Job> {
        read!(self, |c| jobs::get(c, id))
    }

    async fn list_jobs(&self, page: Page, state: Option<JobState>) -> Result<Vec<Job>> {
        read!(self, |c| jobs::list(c, &page, state))
    }

    async fn count_jobs(&self, state: JobState) -> Result<i64> {
        let sql = "SELECT COUNT(*) AS n FROM jobs WHERE state = $1";
        read!(self, |c| c.count(sql, args![state.as_str()]))
    }

    async fn claim_job(
        &self,
        lease_owner: &str,
        lease_seconds: i64,
        kinds: &[&str],
        max_crashes: i64,
    ) -> Result<Option<(Job, Fence)>> {
        write!(self, lease_owner = lease_owner.to_owned(), kinds = kinds.iter().map(|k| (*k).to_owned()).collect::<Vec<_>>() => |tx| jobs::claim(tx, &lease_owner, lease_seconds, &kinds, max_crashes))
    }

    async fn heartbeat_job(&self, fence: &Fence, lease_seconds: i64, progress: Option<&Progress>) -> Result<bool> {
        write!(self, fence = fence.clone(), progress = progress.cloned() => |tx| jobs::heartbeat(tx, &fence, lease_seconds, progress.as_ref()))
    }

    async fn place_job(&self, fence: &Fence, external_ref: Option<&str>) -> Result<()> {
        write!(self, fence = fence.clone(), external_ref = external_ref.map(str::to_owned) => |tx| jobs::place(tx, &fence, external_ref.as_deref()))
    }

    async fn checkpoint_job(&self, fence: &Fence, checkpoint_uri: &str) -> Result<()> {
        write!(self, fence = fence.clone(), checkpoint_uri = checkpoint_uri.to_owned() => |tx| jobs::checkpoint(tx, &fence, &checkpoint_uri))
    }

    async fn report_job(&self, fence: &Fence, lease_seconds: i64, report: JobReport) -> Result<bool> {
        write!(self, fence = fence.clone() => |tx| jobs::report(tx, &fence, lease_seconds, report))
    }

    async fn complete_job(
        &self,
        fence: &Fence,
        model: ModelVersion,
        files: Vec<ModelFile>,
        result: serde_json::Value,
    ) -> Result<()> {
        write!(self, fence = fence.clone() => |tx| jobs::complete(tx, &fence, &model, &files, result))
    }

    async fn finish_job(
        &self,
        fence: &Fence,
        state: JobState,
        result: Option<serde_json::Value>,
        error: Option<&str>,
    ) -> Result<()> {
        write!(self, fence = fence.clone(), error = error.map(str::to_owned) => |tx| jobs::finish(tx, &fence, state, result, error.as_deref()))
    }

    async fn requeue_job(&self, fence: &Fence, crash: Option<&str>, max_crashes: i64) -> Result<JobState> {
        write!(self, fence = fence.clone(), crash = crash.map(str::to_owned) => |tx| jobs::requeue(tx, &fence, crash.as_deref(), max_crashes))
    }

    async fn cancel_job(&self, id: &JobId) -> Result<Job> {
        write!(self, id = id.clone() => |tx| jobs::cancel(tx, &id))
    }

    async fn resume_job(&self, id: &JobId) -> Result<Job> {
        write!(self, id = id.clone() => |tx| jobs::resume(tx, &id))
    }

    async fn append_job_events(&self, job_id: &JobId, events: &[(String, serde_json::Value)]) -> Result<i64> {
        write!(self, job_id = job_id.clone(), events = events.to_vec() => |tx| jobs::append_events(tx, &job_id, &events))
    }

    async fn job_events(&self, job_id: &JobId, after_seq: i64, limit: i64) -> Result<Vec<JobEvent>> {
        read!(self, |c| jobs::events(c, job_id, after_seq, limit))
    }

    async fn put_metrics(&self, job_id: &JobId, metrics: &[Metric]) -> Result<()> {
        write!(self, job_id = job_id.clone(), metrics = metrics.to_vec() => |tx| jobs::put_metrics(tx, &job_id, &metrics))
    }

    async fn metrics(&self, job_id: &JobId, names: &[String]) -> Result<Vec<Metric>> {
        read!(self, |c| jobs::metrics(c, job_id, names))
    }
}

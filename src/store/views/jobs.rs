//! The job queue. Leases use the database's clock. Every change of a job's state appends the event `state` in the same
//! transaction.

use crate::domain::*;
use crate::store::rows::args;
use crate::store::sql::{read, write};
use crate::store::views::Jobs;
use crate::store::*;

impl Jobs<'_> {
    /// Conflict when a non-terminal job has the same unique key, or will publish its model under the same name.
    pub async fn enqueue(self, job: Job) -> Result<Job> {
        write!(self.0, |tx| jobs::enqueue(tx, &job))
    }

    /// One job. `NotFound` when there is none with this id.
    pub async fn get(self, id: &JobId) -> Result<Job> {
        read!(self.0, |c| jobs::get(c, id))
    }

    /// A page of jobs, newest first, optionally in one state.
    pub async fn list(self, page: Page, state: Option<JobState>) -> Result<Vec<Job>> {
        read!(self.0, |c| jobs::list(c, &page, state))
    }

    /// How many jobs are in a state.
    pub async fn count(self, state: JobState) -> Result<i64> {
        let sql = "SELECT COUNT(*) AS n FROM jobs WHERE state = $1";
        read!(self.0, |c| c.count(sql, args![state.as_str()]))
    }

    /// Takes the next queued job, or a running one whose lease has expired (then crash_count + 1; at
    /// `max_crashes` it becomes failed instead and the next is tried).
    pub async fn claim(
        self,
        lease_owner: &str,
        lease_seconds: i64,
        kinds: &[&str],
        max_crashes: i64,
    ) -> Result<Option<(Job, Fence)>> {
        let kinds: Vec<String> = kinds.iter().map(|k| (*k).to_owned()).collect();
        // Workers poll this, so a read checks for a job before a write transaction begins.
        if !read!(self.0, |c| jobs::any_waiting(c, lease_seconds, &kinds))? {
            return Ok(None);
        }
        write!(self.0, lease_owner = lease_owner.to_owned() => |tx| jobs::claim(tx, &lease_owner, lease_seconds, &kinds, max_crashes))
    }

    /// Extends the lease; returns whether cancel was requested. `LeaseLost` when the fence does not hold.
    pub async fn heartbeat(self, fence: &Fence, lease_seconds: i64, progress: Option<&Progress>) -> Result<bool> {
        write!(self.0, fence = fence.clone(), progress = progress.cloned() => |tx| jobs::heartbeat(tx, &fence, lease_seconds, progress.as_ref()))
    }

    /// Stores the reference `PLACE/ID` of the job's attempt; `None` = it runs in a child process. `LeaseLost` when the
    /// fence does not hold.
    pub async fn place(self, fence: &Fence, external_ref: Option<&str>) -> Result<()> {
        write!(self.0, fence = fence.clone(), external_ref = external_ref.map(str::to_owned) => |tx| jobs::place(tx, &fence, external_ref.as_deref()))
    }

    /// Stores where the last checkpoint is; one other than before sets `crash_count` to 0. `LeaseLost` when the fence does not hold.
    pub async fn checkpoint(self, fence: &Fence, checkpoint_uri: &str) -> Result<()> {
        write!(self.0, fence = fence.clone(), checkpoint_uri = checkpoint_uri.to_owned() => |tx| jobs::checkpoint(tx, &fence, &checkpoint_uri))
    }

    /// Stores a job's report and extends its lease, atomically; returns whether cancel was requested. `LeaseLost` when
    /// the fence does not hold: a worker that paused too long writes nothing.
    pub async fn report(self, fence: &Fence, lease_seconds: i64, report: JobReport) -> Result<bool> {
        write!(self.0, fence = fence.clone() => |tx| jobs::report(tx, &fence, lease_seconds, report))
    }

    /// Succeeded with a new version: registers it with its files and ends the job in one transaction, so that a job has
    /// one version whichever worker finishes it.
    pub async fn complete(
        self,
        fence: &Fence,
        model: ModelVersion,
        files: Vec<ModelFile>,
        result: serde_json::Value,
    ) -> Result<()> {
        write!(self.0, fence = fence.clone() => |tx| jobs::complete(tx, &fence, &model, &files, result))
    }

    /// Ends the job in a final state. `LeaseLost` when the fence does not hold.
    pub async fn finish(
        self,
        fence: &Fence,
        state: JobState,
        result: Option<serde_json::Value>,
        error: Option<&str>,
    ) -> Result<()> {
        write!(self.0, fence = fence.clone(), error = error.map(str::to_owned) => |tx| jobs::finish(tx, &fence, state, result, error.as_deref()))
    }

    /// Puts a job back into the queue: without counting the attempt (shutdown), or, with an error in `crash`, counting
    /// a crash. At `max_crashes` it becomes failed, or cancelled if that was requested.
    pub async fn requeue(self, fence: &Fence, crash: Option<&str>, max_crashes: i64) -> Result<JobState> {
        write!(self.0, fence = fence.clone(), crash = crash.map(str::to_owned) => |tx| jobs::requeue(tx, &fence, crash.as_deref(), max_crashes))
    }

    /// Queued → cancelled at once; running → `cancel_requested`. Conflict when terminal.
    pub async fn cancel(self, id: &JobId) -> Result<Job> {
        write!(self.0, id = id.clone() => |tx| jobs::cancel(tx, &id))
    }

    /// Failed or cancelled → queued again, keeping its checkpoint.
    pub async fn resume(self, id: &JobId) -> Result<Job> {
        write!(self.0, id = id.clone() => |tx| jobs::resume(tx, &id))
    }

    /// The store assigns `seq`, ascending for each job.
    pub async fn append_events(self, job_id: &JobId, events: &[(String, serde_json::Value)]) -> Result<i64> {
        write!(self.0, job_id = job_id.clone(), events = events.to_vec() => |tx| jobs::append_events(tx, &job_id, &events))
    }

    /// Events with a number over `after_seq`, ascending, at most `limit`.
    pub async fn events(self, job_id: &JobId, after_seq: i64, limit: i64) -> Result<Vec<JobEvent>> {
        read!(self.0, |c| jobs::events(c, job_id, after_seq, limit))
    }

    /// Appends metrics of a job.
    pub async fn put_metrics(self, job_id: &JobId, metrics: &[Metric]) -> Result<()> {
        write!(self.0, job_id = job_id.clone(), metrics = metrics.to_vec() => |tx| jobs::put_metrics(tx, &job_id, &metrics))
    }

    /// The metrics with these names, by step; all of them when `names` is empty.
    pub async fn metrics(self, job_id: &JobId, names: &[String]) -> Result<Vec<Metric>> {
        read!(self.0, |c| jobs::metrics(c, job_id, names))
    }

    /// A page of the jobs that match the filter, newest first.
    pub async fn find(self, page: Page, filter: &JobFilter) -> Result<Vec<Job>> {
        read!(self.0, |c| jobs::find(c, &page, filter))
    }

    /// The jobs of a part of the list that match the filter, and the part's last job; `None` when there is none older.
    pub async fn search(self, filter: &JobFilter, part: Part) -> Result<(Vec<Job>, Option<PartEnd>)> {
        read!(self.0, |c| jobs::search(c, &part, filter))
    }

    /// Changes name, note and tags (not the author).
    pub async fn describe(self, id: &JobId, notes: JobNotes) -> Result<Job> {
        write!(self.0, id = id.clone() => |tx| jobs::describe(tx, &id, &notes))
    }

    /// Samples that a job wrote, oldest first.
    pub async fn samples(self, id: &JobId, limit: i64) -> Result<Vec<serde_json::Value>> {
        read!(self.0, |c| evidence::samples(c, id, limit))
    }
}

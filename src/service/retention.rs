//! Retention: removes requests, feedback and files of ended jobs by age and by size. Data that a set, judgment,
//! demonstration, dataset version or published model depends on is kept.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::people::Actor;
use super::{Result, ServiceError, Services};
use crate::config::RetentionConfig;
use crate::domain::time::{DAY, before};
use crate::domain::{Micros, Signature};
use crate::jobs::leftovers::{self, Leftover};
use crate::store::{Amount, Candidate, Cuts, Expiring, Position, Store, Stretch};

const MEGABYTE: i64 = 1_000_000;
/// A time earlier than any record.
const NEVER: Micros = -Micros::MAX;
/// Interval between two removals.
const EVERY: Duration = Duration::from_secs(3600);
/// Records considered in one transaction that removes, so that other writers can run in between.
const BATCH: i64 = 500;
/// Records considered in one statement that only reads.
const CONSIDERED: i64 = 5000;
/// Records whose sizes one statement adds up.
const ADDED_UP: i64 = 50_000;
/// How long the page waits for amounts that are computed for the first time.
const PATIENCE: Duration = Duration::from_millis(1500);
/// Actor of automatic removals in the audit trail.
const ACTOR: &str = "retention";

/// Amounts by kind of record; `job_files` counts jobs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Amounts {
    pub completions: Amount,
    /// Completions of requests.
    pub prompts: Amount,
    pub feedback_events: Amount,
    /// Files of ended jobs on this machine.
    pub job_files: Amount,
}

impl Amounts {
    /// Whether every amount is zero.
    pub fn is_empty(&self) -> bool {
        let Self { completions, prompts, feedback_events, job_files } = self;
        [completions, prompts, feedback_events, job_files].iter().all(|amount| amount.records == 0)
    }
}

/// What is stored, and what the current limits remove.
#[derive(Clone, Debug, Default, PartialEq, Serialize, schemars::JsonSchema)]
#[schemars(rename = "RetentionOutlook")]
pub struct Outlook {
    /// When the amounts were computed (µs UTC). In a large database that is up to some minutes ago.
    pub counted: Micros,
    pub stored: Amounts,
    pub goes: Amounts,
    /// Feedback and prompts up to these times (µs) are kept, because dataset versions depend on them; `None` = none.
    pub kept_feedback_until: Option<Micros>,
    pub kept_prompts_until: Option<Micros>,
}

/// Progress of the current or last removal of this process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, schemars::JsonSchema)]
#[schemars(rename = "RetentionProgress")]
pub struct Progress {
    pub running: bool,
    /// Kind of record that is being removed.
    pub removing: Option<&'static str>,
    /// Removed so far, or by the last run.
    pub removed: Amounts,
    pub started: Option<Micros>,
    pub ended: Option<Micros>,
    /// Why the last run ended early.
    pub error: Option<String>,
}

/// Shared between the removal and readers of its progress.
#[derive(Debug, Default)]
pub struct Status(Mutex<Progress>);

impl Status {
    pub fn now(&self) -> Progress {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn change(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// What a run is going to remove.
struct RemovalPlan {
    cuts: Cuts,
    jobs: Vec<Leftover>,
}

/// Times up to which records are kept for dataset versions: of feedback, and of prompts of requests.
async fn kept(store: &Store) -> Result<(Micros, Micros)> {
    let (mut feedback, mut prompts) = (NEVER, NEVER);
    for version in store.datasets().list().await? {
        let filter = &version.filter["filter"];
        let has_requests = !filter["without_requests"].as_bool().unwrap_or(false);
        if has_requests && filter["feedback"].as_bool().unwrap_or(false) {
            feedback = feedback.max(version.as_of);
        }
        if has_requests && version.filter["data"] == "prompts" {
            prompts = prompts.max(version.as_of);
        }
    }
    Ok((feedback, prompts))
}

/// The later of two cuts by age and by size.
async fn cut(store: &Store, what: Expiring, cuts: Cuts, now: Micros, days: u32, mb: u32) -> Result<Micros> {
    let by_age = if days == 0 { NEVER } else { before(now, days, DAY) };
    let by_size = match mb {
        0 => None,
        mb => size_cut(store, what, cuts, i64::from(mb) * MEGABYTE).await?,
    };
    Ok(by_age.max(by_size.unwrap_or(NEVER)))
}

/// The cut by which removable records shrink to `most_bytes`; `None` when they are not more. Prompts and completions are
/// one sum. Reads the newest records, until they exceed the limit.
async fn size_cut(store: &Store, what: Expiring, cuts: Cuts, most_bytes: i64) -> Result<Option<Micros>> {
    let (kinds, cuts): (&[Expiring], _) = match what {
        Expiring::Feedback => (&[Expiring::Feedback], Cuts { feedback: Micros::MAX, requests: NEVER, ..cuts }),
        _ => (&[Expiring::Completions, Expiring::Prompts], Cuts { requests: Micros::MAX, ..cuts }),
    };
    let mut newest = Vec::new();
    for kind in kinds {
        newest.push(NewestFirst { store, kind: *kind, cuts, page: VecDeque::new(), before: None, done: false });
    }
    let mut total = 0;
    loop {
        let mut next: Option<(Position, usize)> = None;
        for (i, records) in newest.iter_mut().enumerate() {
            if let Some(candidate) = records.peek().await?
                && next.as_ref().is_none_or(|(position, _)| candidate.position > *position)
            {
                next = Some((candidate.position.clone(), i));
            }
        }
        let Some(candidate) = next.and_then(|(_, i)| newest[i].page.pop_front()) else { return Ok(None) };
        total += if candidate.goes { candidate.bytes } else { 0 };
        if total > most_bytes {
            return Ok(Some(candidate.position.created + 1));
        }
    }
}

/// The records of a kind that retention considers, newest first.
struct NewestFirst<'s> {
    store: &'s Store,
    kind: Expiring,
    cuts: Cuts,
    page: VecDeque<Candidate>,
    before: Option<Position>,
    done: bool,
}

impl NewestFirst<'_> {
    /// The next record, which is the first of the page.
    async fn peek(&mut self) -> Result<Option<&Candidate>> {
        if self.page.is_empty() && !self.done {
            let stretch = Stretch::Before(self.before.as_ref());
            let page = self.store.privacy().candidates(self.kind, self.cuts, stretch, CONSIDERED).await?;
            self.done = (page.len() as i64) < CONSIDERED;
            self.before = page.last().map(|candidate| candidate.position.clone());
            self.page = page.into();
        }
        Ok(self.page.front())
    }
}

/// The amount of removable records of a kind.
async fn expiring(store: &Store, what: Expiring, cuts: Cuts) -> Result<Amount> {
    let (mut all, mut after) = (Amount::default(), None);
    loop {
        let (amount, last) = store.privacy().expiring(what, cuts, after.as_ref(), CONSIDERED).await?;
        all += amount;
        after = last;
        if after.is_none() {
            return Ok(all);
        }
    }
}

async fn plan(store: &Store, data_dir: &Path, limits: &RetentionConfig, now: Micros) -> Result<RemovalPlan> {
    let (kept_feedback, kept_prompts) = kept(store).await?;
    let mut cuts = Cuts { feedback: NEVER, requests: NEVER, kept_feedback, kept_prompts };
    cuts.feedback = cut(store, Expiring::Feedback, cuts, now, limits.feedback_days, limits.feedback_mb).await?;
    cuts.requests = cut(store, Expiring::Completions, cuts, now, limits.request_days, limits.request_mb).await?;
    let mut jobs = leftovers::leftovers(store, data_dir).await?;
    let before = if limits.job_days == 0 { NEVER } else { before(now, limits.job_days, DAY) };
    let most = if limits.job_mb == 0 { u64::MAX } else { u64::from(limits.job_mb) * MEGABYTE.unsigned_abs() };
    let mut left: u64 = jobs.iter().map(|job| job.bytes).sum();
    jobs.retain(|job| {
        let goes = job.ended < before || left > most;
        left -= if goes { job.bytes } else { 0 };
        goes
    });
    Ok(RemovalPlan { cuts, jobs })
}

fn files(jobs: &[Leftover]) -> Amount {
    let bytes = jobs.iter().map(|job| i64::try_from(job.bytes).unwrap_or(i64::MAX)).sum();
    Amount { records: jobs.len() as i64, bytes }
}

/// The amount of stored records of a kind. It is added up in parts, because a statement over a large table would exceed
/// its time limit, and would keep SQLite from cutting its log for as long.
async fn stored_of(store: &Store, what: Expiring) -> Result<Amount> {
    let (mut all, mut after) = (Amount::default(), None);
    loop {
        let (amount, last) = store.privacy().stored(what, after.as_ref(), ADDED_UP).await?;
        all += amount;
        after = last;
        if after.is_none() {
            return Ok(all);
        }
    }
}

/// The amounts of stored records. Reads all of them.
///
/// # Errors
/// What the store says; a job's directory that cannot be read.
pub async fn stored(store: &Store, data_dir: &Path) -> Result<Amounts> {
    Ok(Amounts {
        completions: stored_of(store, Expiring::Completions).await?,
        prompts: stored_of(store, Expiring::Prompts).await?,
        feedback_events: stored_of(store, Expiring::Feedback).await?,
        job_files: files(&leftovers::leftovers(store, data_dir).await?),
    })
}

/// What is `stored` and what would be removed now. Removes nothing.
///
/// # Errors
/// What the store says; a job's directory that cannot be read.
pub async fn outlook(
    store: &Store,
    data_dir: &Path,
    limits: &RetentionConfig,
    now: Micros,
    stored: Amounts,
) -> Result<Outlook> {
    let RemovalPlan { cuts, jobs } = plan(store, data_dir, limits, now).await?;
    let goes = Amounts {
        completions: expiring(store, Expiring::Completions, cuts).await?,
        prompts: expiring(store, Expiring::Prompts, cuts).await?,
        feedback_events: expiring(store, Expiring::Feedback, cuts).await?,
        job_files: files(&jobs),
    };
    let until = |time: Micros| (time > NEVER).then_some(time);
    let (kept_feedback_until, kept_prompts_until) = (until(cuts.kept_feedback), until(cuts.kept_prompts));
    Ok(Outlook { counted: now, stored, goes, kept_feedback_until, kept_prompts_until })
}

/// Removes records past the limits in small transactions, and records the amounts in the audit trail. `status` shows the
/// removal as running, also after its end.
///
/// # Errors
/// What the store says; a file that cannot be removed. Earlier removals are kept and recorded.
pub async fn apply(
    store: &Store,
    data_dir: &Path,
    limits: &RetentionConfig,
    now: Micros,
    by: &Signature,
    status: &Status,
) -> Result<Amounts> {
    status.change(|p| *p = Progress { running: true, started: Some(now), ..Progress::default() });
    let done = remove(store, data_dir, limits, now, status).await;
    let removed = status.now().removed;
    let noted = match removed.is_empty() {
        true => Ok(()),
        false => {
            let _ = store.privacy().flush_erased().await;
            let Amounts { completions, prompts, feedback_events, job_files } = removed;
            let bytes = [completions, prompts, feedback_events, job_files].iter().map(|a| a.bytes).sum::<i64>();
            let mut detail = json!({
                "completions": completions.records, "prompts": prompts.records,
                "feedback_events": feedback_events.records, "jobs": job_files.records, "bytes": bytes,
            });
            if let Err(error) = &done {
                detail["error"] = error.to_string().into();
            }
            store.audit_log().append(by, "retention", "retention", detail, now).await
        }
    };
    done?;
    noted?;
    Ok(removed)
}

async fn remove(store: &Store, data_dir: &Path, limits: &RetentionConfig, now: Micros, status: &Status) -> Result<()> {
    let RemovalPlan { cuts, jobs } = plan(store, data_dir, limits, now).await?;
    for (what, name) in [
        (Expiring::Feedback, "feedback_events"),
        (Expiring::Completions, "completions"),
        (Expiring::Prompts, "prompts"),
    ] {
        status.change(|p| p.removing = Some(name));
        // A record that refers to an older one may go, so that the older one goes in the next pass.
        while remove_once(store, what, cuts, status).await? > 0 {}
    }
    status.change(|p| p.removing = Some("job_files"));
    for job in jobs {
        let amount = files(std::slice::from_ref(&job));
        if leftovers::remove(store, data_dir, job).await? {
            status.change(|p| p.removed.job_files += amount);
        }
    }
    Ok(())
}

/// Removes the removable records of a kind in one pass over them; returns their number.
async fn remove_once(store: &Store, what: Expiring, cuts: Cuts, status: &Status) -> Result<i64> {
    let (mut records, mut after) = (0, None);
    loop {
        let (batch, last) = store.privacy().expire(what, cuts, after, BATCH).await?;
        records += batch.records;
        status.change(|p| match what {
            Expiring::Feedback => p.removed.feedback_events += batch,
            Expiring::Completions => p.removed.completions += batch,
            Expiring::Prompts => p.removed.prompts += batch,
        });
        after = last;
        if after.is_none() {
            return Ok(records);
        }
    }
}

/// The current limits, their effect, and the progress of a removal.
#[derive(Clone, Debug, PartialEq, Serialize, schemars::JsonSchema)]
pub struct Retention {
    pub limits: RetentionConfig,
    /// `None` while the amounts are computed for the first time, or for the first time with these limits.
    pub outlook: Option<Outlook>,
    pub progress: Progress,
}

/// An outlook and the limits that it is for.
#[derive(Clone, Debug)]
pub struct LimitedOutlook {
    limits: RetentionConfig,
    outlook: Outlook,
}

/// The current limits, their effect, and the progress of a removal. The effect is computed in the background when that
/// takes long; see [`Cached`](super::cached::Cached).
///
/// # Errors
/// What the store says.
pub async fn describe(services: &Arc<Services>) -> Result<Retention> {
    // Read first: amounts that are counted after the end of a removal are those that it left.
    let progress = services.retention.now();
    let limits = services.live().config.retention.clone();
    let (all, of, wanted) = (services.clone(), limits.clone(), limits.clone());
    let compute = async move {
        let again = all.clone();
        let amounts = async move { stored(&again.store, &again.config.data_dir).await };
        let stored = all.stored_amounts.wait(|_| true, amounts).await?;
        let outlook = outlook(&all.store, &all.config.data_dir, &of, all.now(), stored).await?;
        Ok::<_, ServiceError>(LimitedOutlook { limits: of, outlook })
    };
    let found = services.retention_outlook.get(PATIENCE, move |found| found.limits == wanted, compute).await?;
    Ok(Retention { limits, outlook: found.map(|found| found.outlook), progress })
}

/// Starts a removal in the background.
///
/// # Errors
/// `Conflict` while one is running in this process.
pub fn start(services: &Arc<Services>, by: &Actor) -> Result<Progress> {
    let now = services.now();
    let mut was_running = false;
    services.retention.change(|p| {
        was_running = std::mem::replace(&mut p.running, true);
    });
    if was_running {
        return Err(ServiceError::Conflict("a removal is running; wait for its end".into()));
    }
    services.retention.change(|p| *p = Progress { running: true, started: Some(now), ..Progress::default() });
    let (all, signature) = (services.clone(), by.signature());
    tokio::spawn(async move { run(&all, &signature).await });
    Ok(services.retention.now())
}

async fn run(services: &Services, by: &Signature) {
    let limits = services.live().config.retention.clone();
    let (store, data_dir) = (services.store.as_ref(), &services.config.data_dir);
    let now = services.now();
    let applied = apply(store, data_dir, &limits, now, by, &services.retention).await;
    // Before the end is shown, so that nobody sees the amounts of before with it.
    services.stored_amounts.clear();
    services.retention_outlook.clear();
    let error = applied.as_ref().err().map(ToString::to_string);
    services.retention.change(|p| (p.running, p.removing, p.ended, p.error) = (false, None, Some(now), error));
    match applied {
        Ok(removed) if removed.is_empty() => {}
        Ok(removed) => tracing::info!(
            completions = removed.completions.records,
            prompts = removed.prompts.records,
            feedback_events = removed.feedback_events.records,
            jobs = removed.job_files.records,
            "retention removed what is past its limits"
        ),
        Err(error) => tracing::warn!(%error, "retention ended early and continues within the hour"),
    }
}

/// Runs a removal once an hour until shutdown.
pub async fn follow(services: Arc<Services>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = services.shutdown.cancelled() => return,
        }
        // In a worker, nothing else reads the stored settings.
        if let Err(error) = super::live::refresh(&services).await {
            tracing::warn!(%error, "the settings cannot be read; nothing is removed");
            continue;
        }
        if let Err(error) = super::responses::expire(&services).await {
            tracing::warn!(%error, "old responses cannot be removed");
        }
        if services.live().config.retention != RetentionConfig::default() && !services.retention.now().running {
            run(&services, &ACTOR.into()).await;
        }
    }
}

//! The supervisor: claims jobs, extends their leases, stores what their trainers report, and decides how they end.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::checkpoints::{self, CheckpointUploader};
use super::executors::{Attempt, Executors, Work};
use super::judging::{self, JudgeLabeler};
use super::materialise::{PrepareError, Prepared, prepare};
use super::process::TrainerOutput;
use super::publish::{PublishedFiles, Release, publish_files};
use super::queue;
use super::settings::SupervisorConfig;
use super::spans;
use super::wire::{Line, SPEC, Spec};
use crate::artifacts::Artifacts;
use crate::domain::files::write_atomically;
use crate::domain::*;
use crate::store::{Fence, JobReport, Store, StoreError};
use crate::train::{Recipe, TrainOutcome};

/// Runs the jobs of one process.
pub struct Supervisor {
    store: Arc<Store>,
    artifacts: Arc<Artifacts>,
    recipes: &'static [Recipe],
    config: SupervisorConfig,
    executors: Executors,
}

/// A job whose data files are written.
struct ReadyJob {
    prepared: Prepared,
    /// The labeler of a job of kind `judge`.
    judge: Option<JudgeLabeler>,
    publish_as: Option<String>,
    spec: Spec,
}

/// How an attempt ended.
enum AttemptEnd {
    Done {
        model_dir: String,
        metrics: Value,
    },
    Stopped,
    Failed(String),
    /// It ended without an outcome, or did not start.
    Crashed(String),
    /// Another worker has the lease: nothing more may be written.
    Lost,
}

impl Supervisor {
    pub fn new(store: Arc<Store>, recipes: &'static [Recipe], config: SupervisorConfig) -> Self {
        let artifacts = Artifacts::with(config.data_dir.clone(), store.clone(), None);
        Self::sharing(store, artifacts, recipes, config)
    }

    /// A supervisor that downloads and uploads models and checkpoints through `artifacts`.
    pub fn sharing(
        store: Arc<Store>,
        artifacts: Arc<Artifacts>,
        recipes: &'static [Recipe],
        config: SupervisorConfig,
    ) -> Self {
        let executors =
            Executors::new(&config.executors, &config.launch, config.threads, config.grace, config.tick / 2);
        Self { store, artifacts, recipes, config, executors }
    }

    /// Runs jobs until `shutdown`; then running jobs write a checkpoint and go back to the queue. Returns when all
    /// children have ended.
    pub async fn run(&self, shutdown: CancellationToken) {
        let places = self.kinds_by_place();
        let slots = places.iter().flat_map(|(kinds, slots)| (0..*slots).map(move |_| kinds.as_slice()));
        futures::future::join_all(slots.map(|kinds| self.run_slot(kinds, &shutdown))).await;
    }

    /// (recipes, slots) of this machine and of every place that runs any. No recipes = all.
    fn kinds_by_place(&self) -> Vec<(Vec<&str>, usize)> {
        let executors = &self.config.executors;
        let of = |place: Option<&str>| -> Vec<&str> {
            let kinds = self.recipes.iter().map(|recipe| recipe.name);
            kinds.filter(|kind| executors.place_of(kind) == place).collect()
        };
        let mut all = Vec::new();
        for (name, place) in &executors.places {
            all.push((of(Some(name)), place.slots));
        }
        all.retain(|(kinds, _)| !kinds.is_empty());
        // Without places, jobs of recipes that this program does not know are claimed too, and fail.
        let here = if all.is_empty() { Vec::new() } else { of(None) };
        if all.is_empty() || !here.is_empty() {
            all.push((here, self.config.slots.max(1)));
        }
        all
    }

    async fn run_slot(&self, kinds: &[&str], shutdown: &CancellationToken) {
        while !shutdown.is_cancelled() {
            match self.run_one_of(kinds, shutdown).await {
                Ok(Some(_)) => continue,
                Ok(None) => {}
                // The store may be unavailable for a while; jobs stay in the queue.
                Err(error) => tracing::warn!(%error, "no job can be claimed"),
            }
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = tokio::time::sleep(self.config.tick) => {}
            }
        }
    }

    /// Claims one job, if there is any, and runs it to its end; returns its state.
    ///
    /// # Errors
    /// Errors of the store. The job's lease then expires and another worker takes the job.
    pub async fn run_one(&self, shutdown: &CancellationToken) -> Result<Option<JobState>, StoreError> {
        self.run_one_of(&[], shutdown).await
    }

    async fn run_one_of(&self, kinds: &[&str], shutdown: &CancellationToken) -> Result<Option<JobState>, StoreError> {
        // A fresh owner for every claim, so that a fence never fits a later claim of the same process.
        let owner = format!("{}-{}", std::process::id(), JobId::new());
        let claimed =
            self.store.jobs().claim(&owner, self.config.lease_seconds, kinds, self.config.max_crashes).await?;
        let Some((job, fence)) = claimed else { return Ok(None) };
        tracing::info!(job.id = %job.id, job.kind = %job.kind, job.attempt = job.attempt, "job started");
        let span = spans::job(&job);
        let mut ended = self.run_claimed(&job, &fence, shutdown).instrument(span.clone()).await;
        if let Err(error @ (StoreError::Unavailable(_) | StoreError::Full(_))) = &ended {
            // The job is not at fault: it goes back to the queue without counting a crash, once the store is available.
            tracing::warn!(job.id = %job.id, %error, "the job goes back to the queue");
            ended =
                self.retry_store(shutdown, || self.store.jobs().requeue(&fence, None, self.config.max_crashes)).await;
        }
        if let Err(StoreError::LeaseLost(_)) = &ended {
            tracing::warn!(job.id = %job.id, "the job's lease was lost");
            return Ok(Some(JobState::Running));
        }
        let state = ended?;
        span.record("job.state", state.as_str());
        tracing::info!(job.id = %job.id, job.state = %state, "job ended");
        Ok(Some(state))
    }

    async fn run_claimed(
        &self,
        job: &Job,
        fence: &Fence,
        shutdown: &CancellationToken,
    ) -> Result<JobState, StoreError> {
        let job_dir = self.job_dir(&job.id);
        // First of all: an earlier attempt may still write a checkpoint.
        let previous = self.executors.end_previous_attempt(job, &job_dir, self.config.lease_seconds);
        if let Err(error) = self.with_lease(fence, previous).await? {
            return self.requeue(fence, Some(&format!("an earlier attempt of the job cannot be ended: {error}"))).await;
        }
        if let Err(error) =
            self.with_lease(fence, checkpoints::download_newest(&self.artifacts, &job.id, &job_dir)).await?
        {
            tracing::warn!(job.id = %job.id, %error, "the checkpoint cannot be downloaded from the artifact store");
            if error.is_transient() {
                self.with_lease(fence, tokio::time::sleep(self.config.heartbeat())).await?;
                return self.requeue(fence, Some(&error.to_string())).await;
            }
        }
        let ReadyJob { prepared, judge, publish_as, spec } =
            match self.prepare_with_lease(job, fence).instrument(spans::step("prepare")).await? {
                Ok(ready) => ready,
                Err(PrepareError::Store(error)) => return Err(error),
                // The job is not at fault, but the number of retries is limited.
                Err(PrepareError::Later(error)) => {
                    tracing::warn!(job.id = %job.id, error, "the job cannot start now");
                    self.with_lease(fence, tokio::time::sleep(self.config.heartbeat())).await?;
                    return self.requeue(fence, Some(&error)).await;
                }
                Err(error) => return self.fail(fence, &error.to_string()).await,
            };
        let end = match self.start_attempt(job, fence, &job_dir, &spec).await? {
            Ok(attempt) => self.watch(job, fence, attempt, shutdown).instrument(spans::step("train")).await?,
            Err(error) => AttemptEnd::Crashed(format!("the training process did not start: {error}")),
        };
        let cancelled = self.retry_store(shutdown, || self.store.jobs().get(&job.id)).await?.cancel_requested;
        if let Some(judge) = judge.as_ref().filter(|_| !matches!(end, AttemptEnd::Lost)) {
            let written = job_dir.join("checkpoints");
            let write = || judge.store_rankings(&self.store, &written);
            self.with_lease(fence, self.retry_store(shutdown, write)).await??;
        }
        match end {
            AttemptEnd::Lost => Err(StoreError::LeaseLost(job.id.to_string())),
            AttemptEnd::Done { metrics, .. } if judge.is_some() => {
                let result = json!({"metrics": metrics});
                let done = || self.store.jobs().finish(fence, JobState::Succeeded, Some(result.clone()), None);
                self.retry_store(shutdown, done).await.map(|()| JobState::Succeeded)
            }
            AttemptEnd::Done { model_dir, metrics } => {
                let release = Release {
                    job,
                    parent: prepared.parent.as_ref(),
                    publish_as: publish_as.as_deref(),
                    model_dir: &job_dir.join(model_dir),
                    metrics,
                    datasets: &prepared.datasets,
                    now: self.retry_store(shutdown, || self.store.now()).await?,
                };
                self.release(job, fence, release, shutdown).instrument(spans::step("publish")).await
            }
            // Cancelled jobs have a state of their own and no error.
            _ if cancelled => self.finish(fence, JobState::Cancelled, None).await,
            AttemptEnd::Failed(error) => self.fail(fence, &error).await,
            _ if shutdown.is_cancelled() => self.requeue(fence, None).await,
            AttemptEnd::Stopped => self.requeue(fence, Some("the training process stopped without being asked")).await,
            AttemptEnd::Crashed(error) => self.requeue(fence, Some(&error)).await,
        }
    }

    /// Publishes the model and completes the job. Without the lease the published files are removed again.
    async fn release(
        &self,
        job: &Job,
        fence: &Fence,
        release: Release<'_>,
        shutdown: &CancellationToken,
    ) -> Result<JobState, StoreError> {
        let (metrics, datasets) = (release.metrics.clone(), release.datasets.clone());
        let wanted = release.publish_as.map(str::to_owned);
        let publishing = self.with_lease(fence, publish_files(&self.store, &self.artifacts, release)).await?;
        let PublishedFiles { version, files, dir } = match publishing {
            Ok(files) => files,
            Err(error) => return self.fail(fence, &format!("publishing failed: {error:#}")).await,
        };
        if let Some(taken) = wanted.filter(|wanted| *wanted != version.name) {
            let message = format!("the name '{taken}' was taken in the meantime; the model is '{}'", version.name);
            let event = [("warning".to_owned(), json!({"message": message}))];
            if let Err(error) = self.store.jobs().append_events(&job.id, &event).await {
                tracing::warn!(job.id = %job.id, %error, "{message}");
            }
        }
        let result = json!({"model": version.name, "model_version_id": version.id, "metrics": metrics,
            "datasets": datasets});
        let complete = || self.store.jobs().complete(fence, version.clone(), files.clone(), result.clone());
        let done = self.retry_store(shutdown, complete).await;
        // A write whose response was lost may have succeeded: the version shows it.
        let registered = match &done {
            Ok(()) => true,
            Err(_) => self.store.models().get(&version.id).await.is_ok(),
        };
        if registered {
            // A job that has succeeded is never resumed, and checkpoints are large.
            let _ = tokio::fs::remove_dir_all(self.job_dir(&job.id).join("checkpoints")).await;
            if let Err(error) = self.artifacts.remove_snapshots(&job.id).await {
                tracing::warn!(job.id = %job.id, %error, "the job's checkpoints cannot be removed from the artifact store");
            }
            return Ok(JobState::Succeeded);
        }
        match done {
            Err(StoreError::Conflict(message)) => {
                let _ = tokio::fs::remove_dir_all(dir).await;
                self.fail(fence, &format!("cannot register the model: {message}")).await
            }
            Err(lost @ StoreError::LeaseLost(_)) => {
                let _ = tokio::fs::remove_dir_all(dir).await;
                Err(lost)
            }
            other => other.map(|()| JobState::Succeeded),
        }
    }

    /// Repeats a write while the store is unavailable, until shutdown: an outage of minutes must not cost hours of
    /// training. The lease's fence prevents double writes.
    async fn retry_store<T, F>(&self, shutdown: &CancellationToken, write: impl Fn() -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        loop {
            match write().await {
                Err(StoreError::Unavailable(_) | StoreError::Full(_)) if !shutdown.is_cancelled() => {
                    tokio::select! {
                        () = shutdown.cancelled() => {}
                        () = tokio::time::sleep(self.config.tick) => {}
                    }
                }
                done => return done,
            }
        }
    }

    /// Runs `work` while extending the lease.
    ///
    /// # Errors
    /// `LeaseLost`, without waiting for the end of `work`.
    async fn with_lease<T>(&self, fence: &Fence, work: impl Future<Output = T>) -> Result<T, StoreError> {
        let mut beat = tokio::time::interval(self.config.heartbeat());
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Ok(done),
                _ = beat.tick() => match self.store.jobs().heartbeat(fence, self.config.lease_seconds, None).await {
                    Err(lost @ StoreError::LeaseLost(_)) => return Err(lost),
                    Err(error) => tracing::warn!(job.id = %fence.job_id, %error, "cannot extend the lease"),
                    Ok(_) => {}
                },
            }
        }
    }

    async fn prepare_with_lease(&self, job: &Job, fence: &Fence) -> Result<Result<ReadyJob, PrepareError>, StoreError> {
        self.with_lease(fence, self.prepare(job)).await
    }

    /// Begins the attempt on this machine or at the place of its recipe. The attempt's reference is stored first, so
    /// that another supervisor can end it.
    async fn start_attempt(
        &self,
        job: &Job,
        fence: &Fence,
        job_dir: &Path,
        spec: &Spec,
    ) -> Result<std::io::Result<Box<dyn Attempt>>, StoreError> {
        let (executor, lease_seconds) = (self.executors.of(&job.kind), self.config.lease_seconds);
        let reference = executor.reference(fence);
        if reference != job.external_ref {
            self.store.jobs().place(fence, reference.as_deref()).await?;
        }
        let work = Work { job, fence, job_dir, spec, lease_seconds };
        self.with_lease(fence, executor.start(work)).await
    }

    fn job_dir(&self, id: &JobId) -> PathBuf {
        // Any id gives a directory inside of `jobs`.
        let name: String =
            id.as_str().chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect();
        let dir = self.config.data_dir.join("jobs").join(name);
        std::path::absolute(&dir).unwrap_or(dir)
    }

    /// Writes the data files and spec.json.
    async fn prepare(&self, job: &Job) -> Result<ReadyJob, PrepareError> {
        let recipe = self.recipes.iter().find(|r| r.name == job.kind);
        let recipe = recipe.ok_or_else(|| PrepareError::Job(format!("this program has no recipe '{}'", job.kind)))?;
        let mut args = queue::check(recipe, &job.args).map_err(|e| PrepareError::Job(format!("args.{e}")))?;
        // A restored database may hold any id.
        if !crate::domain::is_path_part(job.id.as_str()) {
            return Err(PrepareError::Job(format!("'{}' is not a valid job id", job.id)));
        }
        let job_dir = self.job_dir(&job.id);
        let (checkpoint_dir, output_dir) = (job_dir.join("checkpoints"), job_dir.join("output"));
        std::fs::create_dir_all(&checkpoint_dir)?;
        let judge = judging::prepare(&self.store, job, &mut args.recipe, &job_dir, &self.config).await?;
        let prepared =
            prepare(&self.store, recipe, &args, &self.artifacts, &job_dir, self.config.learn_from_requests).await?;
        let spec = Spec {
            recipe: job.kind.clone(),
            args: Value::Object(prepared.args.clone()),
            job_id: job.id.clone(),
            resume: std::fs::read_dir(&checkpoint_dir)?.next().is_some(),
            checkpoint_dir,
            output_dir,
            reward_hosts: self.config.reward_hosts.clone(),
            judges: queue::judges_of(&self.config.judges, &job.args),
            by_files: false,
            rollouts: self.config.upstream.clone().filter(|_| queue::asks_for_fleet(&job.args)),
            trainer: queue::command_of(&self.config.trainers, &job.kind, &job.args),
        };
        let text = serde_json::to_vec_pretty(&spec).map_err(std::io::Error::from)?;
        write_atomically(&job_dir.join(SPEC), &text)?;
        Ok(ReadyJob { prepared, judge, publish_as: args.publish_as, spec })
    }

    /// Reads the trainer's output until it ends; requests a stop on cancel and shutdown.
    async fn watch(
        &self,
        job: &Job,
        fence: &Fence,
        mut child: Box<dyn Attempt>,
        shutdown: &CancellationToken,
    ) -> Result<AttemptEnd, StoreError> {
        let mut pending = JobReport::default();
        let mut uploader =
            CheckpointUploader::new(self.artifacts.clone(), &job.id, fence.attempt, &self.job_dir(&job.id));
        let mut end = None;
        // The claim has just begun the lease.
        child.extend_lease(self.config.lease_seconds).await;
        let mut beat = Instant::now();
        let mut tick = tokio::time::interval(self.config.tick);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut stop_requested = false;
        loop {
            tokio::select! {
                output = child.next_output() => match output {
                    Some(output) => {
                        if let Some(path) = written_checkpoint(&output) {
                            uploader.checkpoint_written(path);
                        }
                        end = collect(&mut pending, output).or(end);
                    }
                    None => break,
                },
                () = shutdown.cancelled(), if !stop_requested => {
                    stop_requested = true;
                    child.request_stop(self.config.grace).await;
                }
                _ = tick.tick() => {
                    let due = beat.elapsed() >= self.config.heartbeat();
                    match self.write_report(job, fence, &mut pending, due).await {
                        Ok(cancelled) => {
                            if due {
                                beat = Instant::now();
                                child.extend_lease(self.config.lease_seconds).await;
                            }
                            if cancelled {
                                child.request_stop(self.config.cancel_grace).await;
                            }
                        }
                        Err(StoreError::LeaseLost(_)) => {
                            child.kill();
                            let _ = child.wait().await;
                            return Ok(AttemptEnd::Lost);
                        }
                        // The store is unavailable: the child goes on while this process may still hold the lease.
                        Err(error) => {
                            tracing::warn!(job.id = %job.id, %error, "the job's reports cannot be stored");
                            if beat.elapsed().as_secs() as i64 >= self.config.lease_seconds {
                                child.kill();
                                let _ = child.wait().await;
                                return Err(error);
                            }
                        }
                    }
                    uploader.start_next();
                    child.escalate();
                }
            }
        }
        let how = child.wait().await;
        let report = || self.store.jobs().report(fence, self.config.lease_seconds, pending.clone());
        self.retry_store(shutdown, report).await?;
        if !matches!(end, Some(AttemptEnd::Done { .. })) {
            // A shutdown waits only briefly: the previous checkpoint is already stored.
            let patience = if shutdown.is_cancelled() { self.config.grace } else { Duration::from_secs(3600) };
            let _ = self.with_lease(fence, tokio::time::timeout(patience, uploader.finish())).await?;
        }
        Ok(end.unwrap_or(AttemptEnd::Crashed(how)))
    }

    /// Stores the pending report, and extends the lease when `due`. Returns whether a cancel was requested. On an error
    /// the report stays pending.
    async fn write_report(
        &self,
        job: &Job,
        fence: &Fence,
        pending: &mut JobReport,
        due: bool,
    ) -> Result<bool, StoreError> {
        if !due && *pending == JobReport::default() {
            return Ok(self.store.jobs().get(&job.id).await?.cancel_requested);
        }
        let cancelled = self.store.jobs().report(fence, self.config.lease_seconds, pending.clone()).await?;
        *pending = JobReport::default();
        Ok(cancelled)
    }

    async fn fail(&self, fence: &Fence, error: &str) -> Result<JobState, StoreError> {
        self.finish(fence, JobState::Failed, Some(error)).await
    }

    async fn finish(&self, fence: &Fence, state: JobState, error: Option<&str>) -> Result<JobState, StoreError> {
        self.store.jobs().finish(fence, state, None, error).await?;
        Ok(state)
    }

    async fn requeue(&self, fence: &Fence, crash: Option<&str>) -> Result<JobState, StoreError> {
        let kind = if crash.is_some() { "crash" } else { "log" };
        let words = json!({"message": crash.unwrap_or("the server is shutting down")});
        let report = JobReport { events: vec![(kind.to_owned(), words)], ..JobReport::default() };
        self.store.jobs().report(fence, self.config.lease_seconds, report).await?;
        self.store.jobs().requeue(fence, crash, self.config.max_crashes).await
    }
}

/// The path of the checkpoint that an output line announces.
fn written_checkpoint(output: &TrainerOutput) -> Option<&str> {
    match output {
        TrainerOutput::Line(Line::Event { kind, data }) if kind == "checkpoint" => data["path"].as_str(),
        TrainerOutput::Line(Line::Outcome(TrainOutcome::Stopped { checkpoint })) => checkpoint.as_deref(),
        _ => None,
    }
}

/// Adds an output line to the pending report; returns the end that the line announces, if any.
fn collect(pending: &mut JobReport, output: TrainerOutput) -> Option<AttemptEnd> {
    match output {
        TrainerOutput::Line(Line::Progress(progress)) => pending.progress = Some(progress),
        TrainerOutput::Line(Line::Metrics { metrics }) => pending.metrics.extend(metrics),
        TrainerOutput::Line(Line::Event { kind, data }) => {
            if kind == "checkpoint"
                && let Some(path) = data.get("path").and_then(Value::as_str)
            {
                pending.checkpoint = Some(path.to_owned());
            }
            pending.events.push((kind, data));
        }
        TrainerOutput::Other(text) => pending.events.push(("log".into(), json!({"message": text}))),
        TrainerOutput::Line(Line::Failed { error }) => return Some(AttemptEnd::Failed(error)),
        TrainerOutput::Line(Line::Outcome(TrainOutcome::Done { model_dir, metrics })) => {
            return Some(AttemptEnd::Done { model_dir, metrics });
        }
        TrainerOutput::Line(Line::Outcome(TrainOutcome::Stopped { checkpoint })) => {
            pending.checkpoint = checkpoint.or(pending.checkpoint.take());
            return Some(AttemptEnd::Stopped);
        }
    }
    None
}

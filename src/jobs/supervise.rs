//! The parent's side: claims jobs, keeps their leases, writes down what the child says, and decides what
//! its end means.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::executors::{Attempt, Executors, Work};
use super::materialise::{PrepareError, Prepared, prepare, write_whole};
use super::process::{Launch, Said};
use super::publish::{Placed, Release, place};
use super::queue;
use super::spans;
use super::travel::{self, Courier};
use super::wire::{Line, SPEC, Spec};
use crate::artifacts::Artifacts;
use crate::config::ExecutorsConfig;
use crate::domain::*;
use crate::store::{Fence, JobReport, Store, StoreError};
use crate::train::{Recipe, TrainOutcome};

#[derive(Clone, Debug)]
pub struct SupervisorConfig {
    /// Jobs live in `jobs/<id>`, published models in `models/<name>`.
    pub data_dir: PathBuf,
    pub launch: Launch,
    /// Jobs run at the same time.
    pub slots: usize,
    pub lease_seconds: i64,
    pub max_crashes: i64,
    /// Compute threads of a child (`RAYON_NUM_THREADS`); 0 = its own choice.
    pub threads: usize,
    /// At shutdown: between asking a child to stop, SIGTERM, and SIGKILL.
    pub grace: Duration,
    /// After a cancel: how long the child may take to its next step's end and its checkpoint.
    pub cancel_grace: Duration,
    /// Hosts that a reward by HTTP may ask.
    pub reward_hosts: Vec<String>,
    /// Commands of other trainers, by name.
    pub trainers: BTreeMap<String, Vec<String>>,
    /// Which recipes run elsewhere.
    pub executors: ExecutorsConfig,
    /// Whether requests to the model may be learned from, where no setting is stored.
    pub learn_from_requests: bool,
    /// How often to look for work, and how often a running job is written down.
    pub tick: Duration,
}

impl SupervisorConfig {
    /// The usual times: leases of 60 s, a heartbeat every 10 s, written down once a second.
    pub fn new(data_dir: PathBuf, launch: Launch) -> Self {
        Self {
            data_dir,
            launch,
            slots: 1,
            lease_seconds: 60,
            max_crashes: 3,
            threads: 0,
            grace: Duration::from_secs(10),
            cancel_grace: Duration::from_secs(600),
            reward_hosts: Vec::new(),
            trainers: BTreeMap::new(),
            executors: ExecutorsConfig::default(),
            learn_from_requests: false,
            tick: Duration::from_secs(1),
        }
    }

    fn heartbeat(&self) -> Duration {
        Duration::from_secs_f64(self.lease_seconds.max(1) as f64 / 6.0).min(Duration::from_secs(10))
    }
}

/// Runs the jobs of one process.
pub struct Supervisor {
    store: Arc<Store>,
    artifacts: Arc<Artifacts>,
    recipes: &'static [Recipe],
    config: SupervisorConfig,
    executors: Executors,
}

/// A job whose data is in its place.
struct Ready {
    prepared: Prepared,
    publish_as: Option<String>,
    spec: Spec,
}

/// How a child's run came to an end.
enum End {
    Done {
        model_dir: String,
        metrics: Value,
    },
    Stopped,
    Failed(String),
    /// It went without a word, or never came up.
    Crashed(String),
    /// The lease went to somebody else: nothing may be written any more.
    Lost,
}

impl Supervisor {
    pub fn new(store: Arc<Store>, recipes: &'static [Recipe], config: SupervisorConfig) -> Self {
        let artifacts = Artifacts::with(config.data_dir.clone(), store.clone(), None);
        Self::sharing(store, artifacts, recipes, config)
    }

    /// With models from and to an artifact store.
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

    /// Works until `shutdown`; then running jobs checkpoint and go back to the queue. Returns when all
    /// children have ended.
    pub async fn run(&self, shutdown: CancellationToken) {
        let places = self.kinds_by_place();
        let slots = places.iter().flat_map(|(kinds, slots)| (0..*slots).map(move |_| kinds.as_slice()));
        futures::future::join_all(slots.map(|kinds| self.work(kinds, &shutdown))).await;
    }

    /// Recipes and slots of this machine and of every place that has any. No recipes = all there are.
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
        // Where nothing runs elsewhere, jobs of recipes that this program does not know are claimed too, and fail.
        let here = if all.is_empty() { Vec::new() } else { of(None) };
        if all.is_empty() || !here.is_empty() {
            all.push((here, self.config.slots.max(1)));
        }
        all
    }

    async fn work(&self, kinds: &[&str], shutdown: &CancellationToken) {
        while !shutdown.is_cancelled() {
            match self.run_one_of(kinds, shutdown).await {
                Ok(Some(_)) => continue,
                Ok(None) => {}
                // The store may be away for a while; its work waits in the queue.
                Err(error) => tracing::warn!(%error, "the job queue cannot be served"),
            }
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = tokio::time::sleep(self.config.tick) => {}
            }
        }
    }

    /// Claims one job, if there is any, and runs it to its end; returns the state it left the job in.
    ///
    /// # Errors
    /// What the store says. The job's lease then runs out and somebody else takes it.
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
            // The store's fault, not the job's: back to the queue without a crash, as soon as that can be said.
            tracing::warn!(job.id = %job.id, %error, "the job is given back");
            ended =
                self.until_stored(shutdown, || self.store.jobs().requeue(&fence, None, self.config.max_crashes)).await;
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
        // Before anything is read there: an attempt that was left behind may still write a checkpoint.
        let former = self.executors.end_former(job, &job_dir, self.config.lease_seconds);
        if let Err(error) = self.keeping_the_lease(fence, former).await? {
            return self.requeue(fence, Some(&format!("an earlier attempt cannot be ended: {error}"))).await;
        }
        if let Err(error) = self.keeping_the_lease(fence, travel::bring(&self.artifacts, &job.id, &job_dir)).await? {
            tracing::warn!(job.id = %job.id, %error, "the checkpoint cannot be brought from the artifact store");
            if error.is_passing() {
                self.keeping_the_lease(fence, tokio::time::sleep(self.config.heartbeat())).await?;
                return self.requeue(fence, Some(&error.to_string())).await;
            }
        }
        let Ready { prepared, publish_as, spec } =
            match self.prepared(job, fence).instrument(spans::step("prepare")).await? {
                Ok(ready) => ready,
                Err(PrepareError::Store(error)) => return Err(error),
                // Not the job's fault, but no endless loop either.
                Err(PrepareError::Later(error)) => {
                    tracing::warn!(job.id = %job.id, error, "the job cannot start now");
                    self.keeping_the_lease(fence, tokio::time::sleep(self.config.heartbeat())).await?;
                    return self.requeue(fence, Some(&error)).await;
                }
                Err(error) => return self.fail(fence, &error.to_string()).await,
            };
        let end = match self.started(job, fence, &job_dir, &spec).await? {
            Ok(attempt) => self.watch(job, fence, attempt, shutdown).instrument(spans::step("train")).await?,
            Err(error) => End::Crashed(format!("the training process did not start: {error}")),
        };
        let cancelled = self.until_stored(shutdown, || self.store.jobs().get(&job.id)).await?.cancel_requested;
        match end {
            End::Lost => Err(StoreError::LeaseLost(job.id.to_string())),
            End::Done { model_dir, metrics } => {
                let release = Release {
                    job,
                    parent: prepared.parent.as_ref(),
                    publish_as: publish_as.as_deref(),
                    model_dir: &job_dir.join(model_dir),
                    metrics,
                    datasets: &prepared.datasets,
                    now: self.until_stored(shutdown, || self.store.now()).await?,
                };
                self.release(job, fence, release, shutdown).instrument(spans::step("publish")).await
            }
            // The state says it; it is no error.
            _ if cancelled => self.finish(fence, JobState::Cancelled, None).await,
            End::Failed(error) => self.fail(fence, &error).await,
            _ if shutdown.is_cancelled() => self.requeue(fence, None).await,
            End::Stopped => self.requeue(fence, Some("the training process stopped without being asked")).await,
            End::Crashed(error) => self.requeue(fence, Some(&error)).await,
        }
    }

    /// Puts the model in its place and ends the job with it; whoever has lost the lease takes it away again.
    async fn release(
        &self,
        job: &Job,
        fence: &Fence,
        release: Release<'_>,
        shutdown: &CancellationToken,
    ) -> Result<JobState, StoreError> {
        let (metrics, datasets) = (release.metrics.clone(), release.datasets.clone());
        let placing = self.keeping_the_lease(fence, place(&self.store, &self.artifacts, release)).await?;
        let Placed { version, files, dir } = match placing {
            Ok(placed) => placed,
            Err(error) => return self.fail(fence, &format!("publishing failed: {error:#}")).await,
        };
        let result = json!({"model": version.name, "model_version_id": version.id, "metrics": metrics,
            "datasets": datasets});
        let complete = || self.store.jobs().complete(fence, version.clone(), files.clone(), result.clone());
        let done = self.until_stored(shutdown, complete).await;
        // An attempt whose answer was lost may have gone through: the version itself tells.
        let registered = match &done {
            Ok(()) => true,
            Err(_) => self.store.models().get(&version.id).await.is_ok(),
        };
        if registered {
            // Nothing resumes a job that has succeeded, and checkpoints are large.
            let _ = tokio::fs::remove_dir_all(self.job_dir(&job.id).join("checkpoints")).await;
            if let Err(error) = self.artifacts.forget_snapshots(&job.id).await {
                tracing::warn!(job.id = %job.id, %error, "its checkpoints stay in the artifact store");
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

    /// Repeats a write while the store is away, until shutdown: the work of hours must not go for an outage of
    /// minutes. Nothing is written twice, because the lease fences it.
    async fn until_stored<T, F>(&self, shutdown: &CancellationToken, write: impl Fn() -> F) -> Result<T, StoreError>
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

    /// Runs something long while the lease is extended. Ends early when the lease is lost.
    async fn keeping_the_lease<T>(&self, fence: &Fence, work: impl Future<Output = T>) -> Result<T, StoreError> {
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

    async fn prepared(&self, job: &Job, fence: &Fence) -> Result<Result<Ready, PrepareError>, StoreError> {
        self.keeping_the_lease(fence, self.prepare(job)).await
    }

    /// Begins the attempt where jobs of its kind run. Where that is is stored first: whoever takes the job over from
    /// this process can end what it left running.
    async fn started(
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
        self.keeping_the_lease(fence, executor.start(work)).await
    }

    fn job_dir(&self, id: &JobId) -> PathBuf {
        // Whatever the id is, the directory stays inside.
        let name: String =
            id.as_str().chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect();
        let dir = self.config.data_dir.join("jobs").join(name);
        std::path::absolute(&dir).unwrap_or(dir)
    }

    /// Writes data and spec.json for the child.
    async fn prepare(&self, job: &Job) -> Result<Ready, PrepareError> {
        let recipe = self.recipes.iter().find(|r| r.name == job.kind);
        let recipe = recipe.ok_or_else(|| PrepareError::Job(format!("this program has no recipe '{}'", job.kind)))?;
        let args = queue::check(recipe, &job.args).map_err(|e| PrepareError::Job(format!("args.{e}")))?;
        // A restored database may hold anything.
        if !crate::domain::is_path_part(job.id.as_str()) {
            return Err(PrepareError::Job(format!("'{}' is no id of a job", job.id)));
        }
        let job_dir = self.job_dir(&job.id);
        let (checkpoint_dir, output_dir) = (job_dir.join("checkpoints"), job_dir.join("output"));
        std::fs::create_dir_all(&checkpoint_dir)?;
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
            by_files: false,
            trainer: queue::trainer_of(&job.kind, &job.args)
                .and_then(|name| self.config.trainers.get(name).cloned())
                .unwrap_or_default(),
        };
        let text = serde_json::to_vec_pretty(&spec).map_err(std::io::Error::from)?;
        write_whole(&job_dir.join(SPEC), &text)?;
        Ok(Ready { prepared, publish_as: args.publish_as, spec })
    }

    /// Listens to the child until it ends; asks it to stop on cancel and shutdown.
    async fn watch(
        &self,
        job: &Job,
        fence: &Fence,
        mut child: Box<dyn Attempt>,
        shutdown: &CancellationToken,
    ) -> Result<End, StoreError> {
        let mut pending = JobReport::default();
        let mut courier = Courier::new(self.artifacts.clone(), &job.id, fence.attempt, &self.job_dir(&job.id));
        let mut end = None;
        // The lease was given by the claim, a moment ago.
        child.extend_lease(self.config.lease_seconds).await;
        let mut beat = Instant::now();
        let mut tick = tokio::time::interval(self.config.tick);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut asked = false;
        loop {
            tokio::select! {
                said = child.said() => match said {
                    Some(said) => {
                        if let Some(path) = made(&said) {
                            courier.made(path);
                        }
                        end = take(&mut pending, said).or(end);
                    }
                    None => break,
                },
                () = shutdown.cancelled(), if !asked => {
                    asked = true;
                    child.ask_to_stop(self.config.grace).await;
                }
                _ = tick.tick() => {
                    let due = beat.elapsed() >= self.config.heartbeat();
                    match self.write_down(job, fence, &mut pending, due).await {
                        Ok(cancelled) => {
                            if due {
                                beat = Instant::now();
                                child.extend_lease(self.config.lease_seconds).await;
                            }
                            if cancelled {
                                child.ask_to_stop(self.config.cancel_grace).await;
                            }
                        }
                        Err(StoreError::LeaseLost(_)) => {
                            child.kill();
                            let _ = child.end().await;
                            return Ok(End::Lost);
                        }
                        // Away for now: the child goes on, as long as the lease may still be ours.
                        Err(error) => {
                            tracing::warn!(job.id = %job.id, %error, "cannot write the job down");
                            if beat.elapsed().as_secs() as i64 >= self.config.lease_seconds {
                                child.kill();
                                let _ = child.end().await;
                                return Err(error);
                            }
                        }
                    }
                    courier.go_on();
                    child.press();
                }
            }
        }
        let how = child.end().await;
        let report = || self.store.jobs().report(fence, self.config.lease_seconds, pending.clone());
        self.until_stored(shutdown, report).await?;
        if !matches!(end, Some(End::Done { .. })) {
            // A shutdown does not wait for long; the checkpoint before is there.
            let patience = if shutdown.is_cancelled() { self.config.grace } else { Duration::from_secs(3600) };
            let _ = self.keeping_the_lease(fence, tokio::time::timeout(patience, courier.arrived())).await?;
        }
        Ok(end.unwrap_or(End::Crashed(how)))
    }

    /// Brings what the child said into the store, and the lease forward when `due`. Returns whether cancel
    /// was requested. What could not be written is kept for the next time.
    async fn write_down(
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

/// The checkpoint that has just been completed.
fn made(said: &Said) -> Option<&str> {
    match said {
        Said::Line(Line::Event { kind, data }) if kind == "checkpoint" => data["path"].as_str(),
        Said::Line(Line::Outcome(TrainOutcome::Stopped { checkpoint })) => checkpoint.as_deref(),
        _ => None,
    }
}

/// Keeps what is to be written; the last word of the child is returned.
fn take(pending: &mut JobReport, said: Said) -> Option<End> {
    match said {
        Said::Line(Line::Progress(progress)) => pending.progress = Some(progress),
        Said::Line(Line::Metrics { metrics }) => pending.metrics.extend(metrics),
        Said::Line(Line::Event { kind, data }) => {
            if kind == "checkpoint"
                && let Some(path) = data.get("path").and_then(Value::as_str)
            {
                pending.checkpoint = Some(path.to_owned());
            }
            pending.events.push((kind, data));
        }
        Said::Other(text) => pending.events.push(("log".into(), json!({"message": text}))),
        Said::Line(Line::Failed { error }) => return Some(End::Failed(error)),
        Said::Line(Line::Outcome(TrainOutcome::Done { model_dir, metrics })) => {
            return Some(End::Done { model_dir, metrics });
        }
        Said::Line(Line::Outcome(TrainOutcome::Stopped { checkpoint })) => {
            pending.checkpoint = checkpoint.or(pending.checkpoint.take());
            return Some(End::Stopped);
        }
    }
    None
}

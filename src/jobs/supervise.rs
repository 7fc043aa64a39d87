//! The parent's side: claims jobs, keeps their leases, writes down what the child says, and decides what
//! its end means.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::materialise::{PrepareError, Prepared, prepare, write_whole};
use super::process::{Launch, Running, Said};
use super::publish::{Release, publish};
use super::queue;
use super::wire::{Line, SPEC, Spec};
use crate::domain::*;
use crate::store::{Fence, Store, StoreError};
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
            tick: Duration::from_secs(1),
        }
    }

    fn heartbeat(&self) -> Duration {
        Duration::from_secs_f64(self.lease_seconds.max(1) as f64 / 6.0).min(Duration::from_secs(10))
    }
}

/// Runs the jobs of one process.
pub struct Supervisor {
    store: Arc<dyn Store>,
    recipes: &'static [Recipe],
    config: SupervisorConfig,
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

/// What waits to be written down.
#[derive(Default)]
struct Pending {
    progress: Option<Progress>,
    metrics: Vec<Metric>,
    events: Vec<(String, Value)>,
    checkpoint: Option<String>,
}

impl Supervisor {
    pub fn new(store: Arc<dyn Store>, recipes: &'static [Recipe], config: SupervisorConfig) -> Self {
        Self { store, recipes, config }
    }

    /// Works until `shutdown`; then running jobs checkpoint and go back to the queue. Returns when all
    /// children have ended.
    pub async fn run(&self, shutdown: CancellationToken) {
        futures::future::join_all((0..self.config.slots.max(1)).map(|_| self.work(&shutdown))).await;
    }

    async fn work(&self, shutdown: &CancellationToken) {
        while !shutdown.is_cancelled() {
            match self.run_one(shutdown).await {
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
        // A fresh owner for every claim, so that a fence never fits a later claim of the same process.
        let owner = format!("{}-{}", std::process::id(), JobId::new());
        let claimed = self.store.claim_job(&owner, self.config.lease_seconds, &[], self.config.max_crashes).await?;
        let Some((job, fence)) = claimed else { return Ok(None) };
        tracing::info!(job.id = %job.id, job.kind = %job.kind, job.attempt = job.attempt, "job started");
        let ended = self.run_claimed(&job, &fence, shutdown).await;
        if let Err(StoreError::LeaseLost(_)) = &ended {
            tracing::warn!(job.id = %job.id, "the job's lease was lost");
            return Ok(Some(JobState::Running));
        }
        let state = ended?;
        tracing::info!(job.id = %job.id, job.state = %state, "job ended");
        Ok(Some(state))
    }

    async fn run_claimed(
        &self,
        job: &Job,
        fence: &Fence,
        shutdown: &CancellationToken,
    ) -> Result<JobState, StoreError> {
        self.event(&job.id, "state", json!({"state": "running", "attempt": job.attempt})).await?;
        let (prepared, publish_as) = match self.prepare(job).await {
            Ok(ready) => ready,
            Err(PrepareError::Store(error)) => return Err(error),
            Err(error) => return self.fail(job, fence, &error.to_string()).await,
        };
        let job_dir = self.job_dir(&job.id);
        let started = Running::start(&self.config.launch, &job_dir, self.config.threads, self.config.grace).await;
        let end = match started {
            Ok(child) => self.watch(job, fence, child, shutdown).await?,
            Err(error) => End::Crashed(format!("the training process did not start: {error}")),
        };
        let cancelled = self.store.get_job(&job.id).await?.cancel_requested;
        match end {
            End::Lost => Err(StoreError::LeaseLost(job.id.to_string())),
            End::Done { model_dir, metrics } => {
                let now = self.store.now().await?;
                // The last word before the files move: whoever lost the lease publishes nothing.
                self.store.heartbeat_job(fence, self.config.lease_seconds, None).await?;
                let release = Release {
                    job,
                    parent: prepared.parent.as_ref(),
                    publish_as: publish_as.as_deref(),
                    model_dir: &job_dir.join(model_dir),
                    metrics: metrics.clone(),
                    datasets: &prepared.datasets,
                    now,
                };
                match publish(&*self.store, &self.config.data_dir, release).await {
                    Ok(version) => {
                        // Nothing resumes a job that has succeeded, and checkpoints are large.
                        let _ = tokio::fs::remove_dir_all(job_dir.join("checkpoints")).await;
                        let result = json!({"model": version.name, "model_version_id": version.id,
                            "metrics": metrics, "datasets": prepared.datasets});
                        self.finish(job, fence, JobState::Succeeded, Some(result), None).await
                    }
                    Err(error) => self.fail(job, fence, &format!("publishing failed: {error:#}")).await,
                }
            }
            _ if cancelled => self.finish(job, fence, JobState::Cancelled, None, Some("cancelled")).await,
            End::Failed(error) => self.fail(job, fence, &error).await,
            _ if shutdown.is_cancelled() => self.requeue(job, fence, None).await,
            End::Stopped => self.requeue(job, fence, Some("the training process stopped without being asked")).await,
            End::Crashed(error) => self.requeue(job, fence, Some(&error)).await,
        }
    }

    fn job_dir(&self, id: &JobId) -> PathBuf {
        let dir = self.config.data_dir.join("jobs").join(id.as_str());
        std::path::absolute(&dir).unwrap_or(dir)
    }

    /// Writes data and spec.json for the child.
    async fn prepare(&self, job: &Job) -> Result<(Prepared, Option<String>), PrepareError> {
        let recipe = self.recipes.iter().find(|r| r.name == job.kind);
        let recipe = recipe.ok_or_else(|| PrepareError::Job(format!("this program has no recipe '{}'", job.kind)))?;
        let args = queue::check(recipe, &job.args).map_err(|e| PrepareError::Job(format!("args.{e}")))?;
        let job_dir = self.job_dir(&job.id);
        let (checkpoint_dir, output_dir) = (job_dir.join("checkpoints"), job_dir.join("output"));
        std::fs::create_dir_all(&checkpoint_dir)?;
        let data_dir = std::path::absolute(&self.config.data_dir)?;
        let prepared = prepare(&*self.store, recipe, &args, &data_dir, &job_dir).await?;
        let spec = Spec {
            recipe: job.kind.clone(),
            args: Value::Object(prepared.args.clone()),
            job_id: job.id.clone(),
            resume: std::fs::read_dir(&checkpoint_dir)?.next().is_some(),
            checkpoint_dir,
            output_dir,
            reward_hosts: self.config.reward_hosts.clone(),
        };
        let text = serde_json::to_vec_pretty(&spec).map_err(std::io::Error::from)?;
        write_whole(&job_dir.join(SPEC), &text)?;
        Ok((prepared, args.publish_as))
    }

    /// Listens to the child until it ends; asks it to stop on cancel and shutdown.
    async fn watch(
        &self,
        job: &Job,
        fence: &Fence,
        mut child: Running,
        shutdown: &CancellationToken,
    ) -> Result<End, StoreError> {
        let mut pending = Pending::default();
        let mut end = None;
        let mut beat = Instant::now();
        let mut tick = tokio::time::interval(self.config.tick);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut asked = false;
        loop {
            tokio::select! {
                said = child.said.recv() => match said {
                    Some(said) => end = pending.take(said).or(end),
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
                    child.press();
                }
            }
        }
        let (status, tail) = child.end().await;
        self.write_down(job, fence, &mut pending, true).await?;
        Ok(end.unwrap_or_else(|| {
            let how = match status {
                Ok(status) => status.to_string(),
                Err(error) => error.to_string(),
            };
            End::Crashed(if tail.is_empty() { how } else { format!("{how}\n{tail}") })
        }))
    }

    /// Brings what the child said into the store, and the lease forward when `due`. Returns whether cancel
    /// was requested. What could not be written is kept for the next time.
    async fn write_down(&self, job: &Job, fence: &Fence, pending: &mut Pending, due: bool) -> Result<bool, StoreError> {
        let cancelled = if due || pending.progress.is_some() {
            let lease = self.config.lease_seconds;
            let cancelled = self.store.heartbeat_job(fence, lease, pending.progress.as_ref()).await?;
            pending.progress = None;
            cancelled
        } else {
            self.store.get_job(&job.id).await?.cancel_requested
        };
        if let Some(path) = &pending.checkpoint {
            self.store.checkpoint_job(fence, path).await?;
            pending.checkpoint = None;
        }
        if !pending.metrics.is_empty() {
            self.store.put_metrics(&job.id, &pending.metrics).await?;
            pending.metrics.clear();
        }
        if !pending.events.is_empty() {
            self.store.append_job_events(&job.id, &pending.events).await?;
            pending.events.clear();
        }
        Ok(cancelled)
    }

    async fn event(&self, id: &JobId, kind: &str, data: Value) -> Result<(), StoreError> {
        self.store.append_job_events(id, &[(kind.to_owned(), data)]).await.map(|_| ())
    }

    async fn fail(&self, job: &Job, fence: &Fence, error: &str) -> Result<JobState, StoreError> {
        self.finish(job, fence, JobState::Failed, None, Some(error)).await
    }

    async fn finish(
        &self,
        job: &Job,
        fence: &Fence,
        state: JobState,
        result: Option<Value>,
        error: Option<&str>,
    ) -> Result<JobState, StoreError> {
        // The event first: who follows the job stops listening once its state is terminal.
        self.event(&job.id, "state", json!({"state": state, "error": error, "result": result})).await?;
        self.store.finish_job(fence, state, result, error).await?;
        Ok(state)
    }

    async fn requeue(&self, job: &Job, fence: &Fence, crash: Option<&str>) -> Result<JobState, StoreError> {
        let kind = if crash.is_some() { "crash" } else { "log" };
        self.event(&job.id, kind, json!({"message": crash.unwrap_or("the server is shutting down")})).await?;
        let state = self.store.requeue_job(fence, crash, self.config.max_crashes).await?;
        self.event(&job.id, "state", json!({"state": state})).await?;
        Ok(state)
    }
}

impl Pending {
    /// Keeps what is to be written; the last word of the child is returned.
    fn take(&mut self, said: Said) -> Option<End> {
        match said {
            Said::Line(Line::Progress(progress)) => self.progress = Some(progress),
            Said::Line(Line::Metrics { metrics }) => self.metrics.extend(metrics),
            Said::Line(Line::Event { kind, data }) => {
                if kind == "checkpoint"
                    && let Some(path) = data.get("path").and_then(Value::as_str)
                {
                    self.checkpoint = Some(path.to_owned());
                }
                self.events.push((kind, data));
            }
            Said::Other(text) => self.events.push(("log".into(), json!({"message": text}))),
            Said::Line(Line::Failed { error }) => return Some(End::Failed(error)),
            Said::Line(Line::Outcome(TrainOutcome::Done { model_dir, metrics })) => {
                return Some(End::Done { model_dir, metrics });
            }
            Said::Line(Line::Outcome(TrainOutcome::Stopped { checkpoint })) => {
                self.checkpoint = checkpoint.or(self.checkpoint.take());
                return Some(End::Stopped);
            }
        }
        None
    }
}

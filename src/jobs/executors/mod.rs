//! Where training jobs run: in a child process of this program, or at a place that the configuration names (type
//! `command` or `ray`). Each attempt at a place has an id of its own, stored with the job before it is submitted, so
//! that a later supervisor can end it, and a directory of its own, so that two attempts never share a result.

pub(super) mod channel;
mod command;
mod local;
mod place;
mod ray;
pub(super) mod trainer;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::process::{Launch, TrainerOutput};
use super::wire::Spec;
use crate::config::{ExecutorsConfig, PlaceConfig};
use crate::domain::{Job, hash, is_path_part, unknown_name};
use crate::store::Fence;
use crate::train::Recipe;

use channel::Channel;
use command::CommandPlace;
use local::LocalExecutor;
use place::{PlaceExecutor, PreviousAttempt};
use ray::RayPlace;

/// A running attempt of a job.
#[async_trait]
pub(super) trait Attempt: Send {
    /// The trainer's next output; `None` at the end. Cancel-safe.
    async fn next_output(&mut self) -> Option<TrainerOutput>;
    /// Extends the trainer's lease to `seconds` from now. A trainer whose lease ends exits: another worker may run its
    /// job by then.
    async fn extend_lease(&mut self, seconds: i64);
    /// Asks the recipe to stop after its step and gives it `patience` before `escalate` acts. A later call can only
    /// shorten that time.
    async fn request_stop(&mut self, patience: Duration);
    /// Goes to the next stage of stopping when the time of the current one is over.
    fn escalate(&mut self);
    /// Kills the attempt at once, because another worker has its job.
    fn kill(&mut self);
    /// Waits for the end; describes it, with the last lines of the trainer's log.
    async fn wait(self: Box<Self>) -> String;
}

/// The job and files of an attempt.
pub(super) struct Work<'a> {
    pub job: &'a Job,
    pub fence: &'a Fence,
    pub job_dir: &'a Path,
    pub spec: &'a Spec,
    pub lease_seconds: i64,
}

/// A way to run attempts.
#[async_trait]
pub(super) trait Executor: Send + Sync {
    /// The reference that is stored with the job before the attempt begins: `PLACE/ID`; `None` on this machine.
    fn reference(&self, fence: &Fence) -> Option<String>;
    /// Begins the attempt. Earlier attempts of the job must have ended.
    async fn start(&self, work: Work<'_>) -> std::io::Result<Box<dyn Attempt>>;
}

/// One attempt as a place knows it.
#[derive(Clone, Debug)]
pub(super) struct Submission {
    /// a-z, 0-9 and '-', at most 63 characters: fits Ray, Kubernetes and Slurm.
    pub id: String,
    pub kind: String,
    pub attempt: i64,
    /// The trainer's program and arguments.
    pub argv: Vec<String>,
    pub channel: Channel,
}

impl Submission {
    /// An attempt that was submitted before, by the id that is stored with the job; `None` for an id that is not a
    /// valid directory name.
    fn previous(job: &Job, job_dir: &Path, id: &str) -> Option<Self> {
        is_path_part(id).then(|| Self {
            id: id.to_owned(),
            kind: job.kind.clone(),
            attempt: job.attempt,
            argv: Vec::new(),
            channel: Channel::new(job_dir, id),
        })
    }
}

/// State of an attempt according to its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum AttemptState {
    /// Accepted and not begun.
    Waiting,
    Running,
    /// Ended, with a description.
    Ended(String),
    /// The place answers and does not know the attempt.
    Gone,
    /// The place does not answer, with the error.
    Unknown(String),
}

/// Why a place refused an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The same call may work later.
    Transient(String),
    Permanent(String),
}

/// A cluster or scheduler that runs trainers. Every call may be repeated.
#[async_trait]
pub(super) trait Place: Send + Sync {
    /// Submits an attempt; one that was accepted before is not begun again.
    async fn submit(&self, work: &Submission) -> Result<(), Refusal>;
    async fn state(&self, work: &Submission) -> AttemptState;
    /// `force`: without waiting for a checkpoint.
    async fn stop(&self, work: &Submission, force: bool);
    /// The last `bytes` bytes of the trainer's log.
    async fn log(&self, work: &Submission, bytes: u64) -> Result<String, String>;
}

/// The executors of this process: this machine and every configured place.
pub(super) struct Executors {
    local: LocalExecutor,
    kinds: BTreeMap<String, String>,
    places: BTreeMap<String, Arc<PlaceExecutor>>,
}

/// The id of an attempt, unique to the claim of the job.
fn attempt_id(fence: &Fence) -> String {
    let owner = hash::of_bytes(&fence.lease_owner);
    format!("instructd-{}-{}-{}", fence.job_id.as_str().to_lowercase(), fence.attempt, &owner[..8])
}

fn place_of(config: &PlaceConfig) -> Result<Arc<dyn Place>, String> {
    Ok(match config.kind.as_str() {
        "ray" => Arc::new(RayPlace::new(config)?),
        _ => Arc::new(CommandPlace::new(config)),
    })
}

/// Checks that every recipe of `[executors]` exists and that its places are usable.
///
/// # Errors
/// Names the setting.
pub fn check(config: &ExecutorsConfig, recipes: &[Recipe]) -> anyhow::Result<()> {
    for kind in config.kinds.keys() {
        if !recipes.iter().any(|recipe| recipe.name == kind) {
            let known: Vec<&str> = recipes.iter().map(|recipe| recipe.name).collect();
            let message = unknown_name("recipe", kind, &known);
            anyhow::bail!("configuration: executors.kinds.{kind}: {message}");
        }
    }
    for (name, place) in &config.places {
        place_of(place).map_err(|e| anyhow::anyhow!("configuration: executors.places.{name}: {e}"))?;
    }
    Ok(())
}

impl Executors {
    /// `poll` is the interval at which the files of trainers at places are read.
    pub(super) fn new(
        config: &ExecutorsConfig,
        launch: &Launch,
        threads: usize,
        grace: Duration,
        poll: Duration,
    ) -> Self {
        let mut places = BTreeMap::new();
        for (name, place) in &config.places {
            match place_of(place) {
                Ok(reached) => {
                    places
                        .insert(name.clone(), Arc::new(PlaceExecutor::new(name, place, reached, launch, grace, poll)));
                }
                // `check` has refused this configuration at the start.
                Err(error) => tracing::error!(place = name, error, "no job can run at this place"),
            }
        }
        Self { local: LocalExecutor::new(launch.clone(), threads, grace), kinds: config.kinds.clone(), places }
    }

    /// The executor of jobs of this kind.
    pub(super) fn of(&self, kind: &str) -> &dyn Executor {
        match self.kinds.get(kind).and_then(|name| self.places.get(name)) {
            Some(place) => place.as_ref(),
            None => &self.local,
        }
    }

    /// The earlier attempt of the job at a place, which may still run.
    fn previous_attempt(&self, job: &Job, job_dir: &Path) -> Option<PreviousAttempt> {
        let (name, id) = job.external_ref.as_deref()?.split_once('/')?;
        let submission = Submission::previous(job, job_dir, id)?;
        Some(PreviousAttempt::new(self.places.get(name).map(|executor| executor.place()), submission))
    }

    /// Ends an earlier attempt of the job at a place; afterwards it writes no more files.
    pub(super) async fn end_previous_attempt(
        &self,
        job: &Job,
        job_dir: &Path,
        lease_seconds: i64,
    ) -> std::io::Result<()> {
        let Some(previous) = self.previous_attempt(job, job_dir) else { return Ok(()) };
        let attempts = job_dir.join(channel::ATTEMPTS);
        tokio::task::spawn_blocking(move || channel::set_current(&attempts, "none"))
            .await
            .map_err(std::io::Error::other)??;
        previous.stop_and_wait(Duration::from_secs(lease_seconds.max(1) as u64)).await;
        Ok(())
    }
}

/// Log of a job's trainer at a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RemoteLog {
    Text(String),
    /// Why there is no log: the job did not run at a place, or the place cannot be asked.
    None(String),
}

/// Most bytes of a log that a response holds.
const LOG_BYTES: u64 = 256 << 10;

/// The end of the log of a job's last attempt.
pub async fn log(config: &ExecutorsConfig, data_dir: &Path, job: &Job) -> RemoteLog {
    let Some((name, id)) = job.external_ref.as_deref().and_then(|reference| reference.split_once('/')) else {
        let message = "the job ran on this machine; the output of its training process is among its events";
        return RemoteLog::None(message.to_owned());
    };
    let Some(place) = config.places.get(name) else {
        return RemoteLog::None(format!("the configuration of this server has no place '{name}'"));
    };
    let job_dir = is_path_part(job.id.as_str()).then(|| data_dir.join("jobs").join(job.id.as_str()));
    let Some(submission) = job_dir.and_then(|job_dir| Submission::previous(job, &job_dir, id)) else {
        return RemoteLog::None("the stored reference of the job's attempt is not a valid name".to_owned());
    };
    let asked = match place_of(place) {
        Ok(place) => place.log(&submission, LOG_BYTES).await,
        Err(error) => Err(error),
    };
    match asked {
        Ok(text) => RemoteLog::Text(text),
        Err(error) => RemoteLog::None(format!("the log at the place '{name}' cannot be read: {error}")),
    }
}

/// Quotes one argument for a POSIX shell.
fn quoted(argument: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_./:=@%+,-".contains(&b);
    if !argument.is_empty() && argument.bytes().all(plain) {
        return argument.to_owned();
    }
    format!("'{}'", argument.replace('\'', r"'\''"))
}

/// A command line for a POSIX shell.
fn shell_line(argv: &[String]) -> String {
    argv.iter().map(|argument| quoted(argument)).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::JobId;

    #[test]
    fn a_shell_reads_back_what_was_quoted() {
        let argv: Vec<String> = ["printf", "%s|", "a b", "", "it's", "$HOME", "x\ny", "`id`", "\\", "\"", "-n", "ü"]
            .map(Into::into)
            .to_vec();
        let out = std::process::Command::new("/bin/sh").arg("-c").arg(shell_line(&argv)).output().expect("a shell");
        let expected: String = argv[2..].iter().map(|argument| format!("{argument}|")).collect();
        assert_eq!(String::from_utf8(out.stdout).expect("text"), expected);
    }

    #[test]
    fn ids_are_of_one_claim() {
        let fence = Fence { job_id: JobId::new(), attempt: 3, lease_owner: "12-01ABC".into() };
        let other = Fence { lease_owner: "12-01ABD".into(), ..fence.clone() };
        assert_eq!(attempt_id(&fence), attempt_id(&fence.clone()));
        assert_ne!(attempt_id(&fence), attempt_id(&other));
        let id = attempt_id(&Fence { attempt: i64::from(i32::MAX), ..fence });
        assert!(
            id.len() <= 63 && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'),
            "{id}"
        );
    }
}

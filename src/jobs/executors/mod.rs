//! Where training jobs run: in a child process of this program, or at a place that the configuration names (`command`,
//! `ray`). Each attempt of a job elsewhere has an id of its own, stored with the job before it is handed over, so that a
//! supervisor that comes later can end it; and a directory of its own, so that two attempts never share a result.

pub(super) mod channel;
mod command;
mod elsewhere;
mod local;
mod ray;
pub(super) mod trainer;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::process::{Launch, Said};
use super::wire::Spec;
use crate::config::{ExecutorsConfig, PlaceConfig};
use crate::domain::{Job, hash, is_path_part, unknown_name};
use crate::store::Fence;
use crate::train::Recipe;

use channel::Channel;
use command::CommandPlace;
use elsewhere::{Elsewhere, Former};
use local::Local;
use ray::RayPlace;

/// An attempt of a job that runs.
#[async_trait]
pub(super) trait Attempt: Send {
    /// The next word of the trainer; `None` when no more will come. May be dropped and called again.
    async fn said(&mut self) -> Option<Said>;
    /// Tells the trainer how long it may go on without hearing of its supervisor again. A trainer that is not told for
    /// so long ends itself: somebody else may have its job by then.
    async fn extend_lease(&mut self, seconds: i64);
    /// Asks the recipe to stop after its step, and waits `patience` before pressing. A later call can only shorten the
    /// wait: a shutdown does not stand back for a cancel.
    async fn ask_to_stop(&mut self, patience: Duration);
    /// Goes on with stopping when its time has come.
    fn press(&mut self);
    /// At once, for a job that belongs to somebody else now.
    fn kill(&mut self);
    /// Waits for the end; says how it came, with the trainer's last words.
    async fn end(self: Box<Self>) -> String;
}

/// What an attempt is made of.
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
    /// What is stored with the job before the attempt begins: `PLACE/ID`; `None` on this machine.
    fn reference(&self, fence: &Fence) -> Option<String>;
    /// Begins the attempt, after whatever an earlier one of the job left running elsewhere has ended.
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
    /// An attempt that was handed over before, by the id that is stored with the job; `None` for an id that is no name of a
    /// directory.
    fn former(job: &Job, job_dir: &Path, id: &str) -> Option<Self> {
        is_path_part(id).then(|| Self {
            id: id.to_owned(),
            kind: job.kind.clone(),
            attempt: job.attempt,
            argv: Vec::new(),
            channel: Channel::new(job_dir, id),
        })
    }
}

/// What a place says of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum AttemptState {
    /// Accepted, and as far as the place knows not begun.
    Waiting,
    Running,
    /// With the words for it.
    Ended(String),
    /// The place answers, and does not know it.
    Gone,
    /// The place does not answer.
    Unknown(String),
}

/// Why a place did not take an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The same call may work later.
    Transient(String),
    Permanent(String),
}

/// Something that runs programs elsewhere. Every call may be repeated.
#[async_trait]
pub(super) trait Place: Send + Sync {
    /// An attempt that was taken before is not begun again.
    async fn submit(&self, work: &Submission) -> Result<(), Refusal>;
    async fn state(&self, work: &Submission) -> AttemptState;
    /// `force`: without waiting for a checkpoint.
    async fn stop(&self, work: &Submission, force: bool);
    /// The end of what the trainer printed, at most `bytes` of it.
    async fn log(&self, work: &Submission, bytes: u64) -> Result<String, String>;
}

/// Everything that jobs can run on.
pub(super) struct Executors {
    local: Local,
    kinds: BTreeMap<String, String>,
    places: BTreeMap<String, Arc<Elsewhere>>,
}

/// The id of an attempt: the same for the same claim of the job, and another one for every other claim.
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

/// Checks that every recipe of `[executors]` exists and that its places can be spoken to.
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
    /// `poll` is how often trainers elsewhere are looked at.
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
                    places.insert(name.clone(), Arc::new(Elsewhere::new(name, place, reached, launch, grace, poll)));
                }
                // `check` has refused this configuration at the start.
                Err(error) => tracing::error!(place = name, error, "jobs cannot run there"),
            }
        }
        Self { local: Local::new(launch.clone(), threads, grace), kinds: config.kinds.clone(), places }
    }

    /// What runs jobs of this kind.
    pub(super) fn of(&self, kind: &str) -> &dyn Executor {
        match self.kinds.get(kind).and_then(|name| self.places.get(name)) {
            Some(place) => place.as_ref(),
            None => &self.local,
        }
    }

    /// What an earlier attempt may have left running.
    fn former(&self, job: &Job, job_dir: &Path) -> Option<Former> {
        let (name, id) = job.external_ref.as_deref()?.split_once('/')?;
        let submission = Submission::former(job, job_dir, id)?;
        Some(Former::new(self.places.get(name).map(|elsewhere| elsewhere.place()), submission))
    }

    /// Ends what an earlier attempt of the job left running elsewhere; nothing of it writes any more afterwards.
    pub(super) async fn end_former(&self, job: &Job, job_dir: &Path, lease_seconds: i64) -> std::io::Result<()> {
        let Some(former) = self.former(job, job_dir) else { return Ok(()) };
        let attempts = job_dir.join(channel::ATTEMPTS);
        tokio::task::spawn_blocking(move || channel::only(&attempts, "none"))
            .await
            .map_err(std::io::Error::other)??;
        former.end(Duration::from_secs(lease_seconds.max(1) as u64)).await;
        Ok(())
    }
}

/// What the trainer of a job printed, as far as it is known here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RemoteLog {
    Text(String),
    /// The job has not run elsewhere, or where it ran cannot be asked; says why.
    None(String),
}

/// Most bytes of a log that are answered.
const LOG_BYTES: u64 = 256 << 10;

/// The end of the log of a job's last attempt.
pub async fn log(config: &ExecutorsConfig, data_dir: &Path, job: &Job) -> RemoteLog {
    let Some((name, id)) = job.external_ref.as_deref().and_then(|reference| reference.split_once('/')) else {
        let message = "the job has not run elsewhere; what its training process said is among its events";
        return RemoteLog::None(message.to_owned());
    };
    let Some(place) = config.places.get(name) else {
        return RemoteLog::None(format!("the configuration of this server has no place '{name}'"));
    };
    let job_dir = is_path_part(job.id.as_str()).then(|| data_dir.join("jobs").join(job.id.as_str()));
    let Some(submission) = job_dir.and_then(|job_dir| Submission::former(job, &job_dir, id)) else {
        return RemoteLog::None("the job's reference is no name".to_owned());
    };
    let asked = match place_of(place) {
        Ok(place) => place.log(&submission, LOG_BYTES).await,
        Err(error) => Err(error),
    };
    match asked {
        Ok(text) => RemoteLog::Text(text),
        Err(error) => RemoteLog::None(format!("the log at '{name}' cannot be read: {error}")),
    }
}

/// One argument as a POSIX shell takes it.
fn quoted(argument: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_./:=@%+,-".contains(&b);
    if !argument.is_empty() && argument.bytes().all(plain) {
        return argument.to_owned();
    }
    format!("'{}'", argument.replace('\'', r"'\''"))
}

/// A command line as a POSIX shell takes it.
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

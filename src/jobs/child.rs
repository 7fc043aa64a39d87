//! The child's side of a job: reads spec.json, runs the recipe, says what happens on stdout.

use std::io::{BufRead, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;

use super::executors::trainer::{self, Begun};
use super::remote::HttpRewards;
use super::wire::{LEASE, Line, STOP, Spec};
use crate::domain::{Metric, Progress};
use crate::train::remote::RemoteReward;
use crate::train::{Recipe, Reporter, TrainOutcome};

/// Set by SIGTERM; a signal handler may touch nothing bigger.
static TERMINATED: AtomicBool = AtomicBool::new(false);

extern "C" fn on_terminate(_: libc::c_int) {
    TERMINATED.store(true, Ordering::Relaxed);
}

/// Body of `instructd train-job --job-dir DIR`. Returns the exit code: 0 when the outcome was told.
pub fn main(job_dir: &Path, recipes: &[Recipe]) -> u8 {
    // SAFETY: the handler only stores to an atomic.
    unsafe {
        let handler: extern "C" fn(libc::c_int) = on_terminate;
        libc::signal(libc::SIGTERM, handler as libc::sighandler_t);
    }
    let stop = Arc::new(AtomicBool::new(false));
    let lease = Arc::new(Lease::default());
    let watched = lease.clone();
    // The threads are left behind when the recipe ends: a blocking read of stdin cannot be interrupted.
    std::thread::spawn(move || watched.outlast());
    if Spec::read(job_dir).is_ok_and(|spec| spec.by_files) {
        return elsewhere(job_dir, recipes, stop, &lease);
    }
    let from_stdin = stop.clone();
    std::thread::spawn(move || watch(std::io::stdin().lock(), &from_stdin, &lease));
    work(job_dir, recipes, LineReporter::new(std::io::stdout(), stop))
}

/// Runs the recipe and says what happens.
fn work<W: Write + Send>(job_dir: &Path, recipes: &[Recipe], mut reporter: LineReporter<W>) -> u8 {
    crate::ops::par::configure_for_training();
    let result = allowed(job_dir).and_then(|remote| {
        reporter.remote = remote;
        reporter.trainer = Spec::read(job_dir)?.trainer;
        run(job_dir, recipes, &mut reporter)
    });
    reporter.finish(result)
}

/// As `main`, for a trainer whose supervisor is reached by files.
fn elsewhere(job_dir: &Path, recipes: &[Recipe], stop: Arc<AtomicBool>, lease: &Arc<Lease>) -> u8 {
    match trainer::begin(job_dir, &stop, lease, || TERMINATED.load(Ordering::Relaxed)) {
        Ok(Begun::Work(voice)) => work(job_dir, recipes, LineReporter::new(voice, stop)),
        Ok(Begun::Stopped(voice)) => {
            LineReporter::new(voice, stop).finish(Ok(TrainOutcome::Stopped { checkpoint: None }))
        }
        Ok(Begun::Superseded(why)) => {
            eprintln!("{why}: this trainer ends");
            LEASE_RAN_OUT
        }
        Err(error) => {
            eprintln!("the job's directory cannot be used: {error}");
            1
        }
    }
}

/// The client for the reward services that the server allows this job.
fn allowed(job_dir: &Path) -> anyhow::Result<Option<Arc<dyn RemoteReward>>> {
    let client = HttpRewards::new(&Spec::read(job_dir)?.reward_hosts)?;
    Ok(client.map(|client| Arc::new(client) as Arc<dyn RemoteReward>))
}

/// Exit status of a child whose lease ran out; the parent, if it still lives, has lost the job.
pub(super) const LEASE_RAN_OUT: u8 = 75;

/// How long this child may go on. A parent that was stopped (or a machine that slept) does not extend it, and
/// then another worker may run the same job: two must never write the same checkpoints.
#[derive(Default)]
pub(super) struct Lease {
    /// End of the lease; `None` while the parent has not said one.
    until: Mutex<Option<Instant>>,
    told: Condvar,
}

impl Lease {
    pub(super) fn extend(&self, seconds: u64) {
        // A tenth less than the parent has, for the time that the message took.
        let until = Instant::now() + Duration::from_millis(seconds.min(1 << 30) * 900);
        *self.until.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
        self.told.notify_all();
    }

    /// Sleeps as long as there is a lease; then ends the process where it stands. What it leaves half-written
    /// is as after a crash.
    fn outlast(&self) {
        let mut until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let left = until.map_or(Duration::from_secs(3600), |end| end.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                eprintln!("the lease ran out: the parent was not heard of in time");
                std::process::exit(LEASE_RAN_OUT.into());
            }
            until = self.told.wait_timeout(until, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Sets `stop` at a line `stop` and at the end of input (the parent is gone); `lease N` extends the lease.
fn watch(input: impl BufRead, stop: &AtomicBool, lease: &Lease) {
    for line in input.lines() {
        match line.as_deref().map(str::trim) {
            Ok(STOP) | Err(_) => break,
            Ok(other) => {
                let seconds = other.strip_prefix(LEASE).and_then(|rest| rest.trim().parse().ok());
                if let Some(seconds) = seconds {
                    lease.extend(seconds);
                }
            }
        }
    }
    stop.store(true, Ordering::Relaxed);
}

/// Runs the recipe that the job directory names.
///
/// # Errors
/// A bad spec, bad arguments, or whatever the recipe ends with.
pub fn run(job_dir: &Path, recipes: &[Recipe], reporter: &mut dyn Reporter) -> anyhow::Result<TrainOutcome> {
    let spec = Spec::read(job_dir)?;
    let recipe = recipes
        .iter()
        .find(|r| r.name == spec.recipe)
        .ok_or_else(|| anyhow::anyhow!("this program has no recipe '{}'", spec.recipe))?;
    let args = spec.recipe_args();
    (recipe.validate)(&args)?;
    (recipe.run)(&args, reporter)
}

/// Writes what a recipe reports as JSON lines. When nobody listens any more, it asks to stop.
pub struct LineReporter<W> {
    out: W,
    stop: Arc<AtomicBool>,
    remote: Option<Arc<dyn RemoteReward>>,
    /// The command of the one trainer that the job may run.
    trainer: Vec<String>,
}

impl<W: Write> LineReporter<W> {
    pub fn new(out: W, stop: Arc<AtomicBool>) -> Self {
        Self { out, stop, remote: None, trainer: Vec::new() }
    }

    fn say(&mut self, line: &Line) {
        let told = serde_json::to_string(line)
            .map_err(std::io::Error::from)
            .and_then(|text| writeln!(self.out, "{text}"))
            .and_then(|()| self.out.flush());
        if told.is_err() {
            self.stop.store(true, Ordering::Relaxed);
        }
    }

    /// Says how the recipe ended; returns the exit code.
    pub fn finish(&mut self, result: anyhow::Result<TrainOutcome>) -> u8 {
        match result {
            Ok(outcome) => {
                self.say(&Line::Outcome(outcome));
                0
            }
            Err(error) => {
                self.say(&Line::Failed { error: crate::domain::error_chain(&error) });
                1
            }
        }
    }
}

impl<W: Write + Send> Reporter for LineReporter<W> {
    fn progress(&mut self, progress: &Progress) {
        self.say(&Line::Progress(progress.clone()));
    }

    /// JSON has no NaN: a value that is not finite is said as a warning instead.
    fn metrics(&mut self, metrics: &[Metric]) {
        let (good, bad): (Vec<_>, Vec<_>) = metrics.iter().cloned().partition(|m| m.value.is_finite());
        for m in bad {
            let message = format!("{} is {} at step {}", m.name, m.value, m.step);
            self.event("warning", json!({"message": message}));
        }
        if !good.is_empty() {
            self.say(&Line::Metrics { metrics: good });
        }
    }

    fn event(&mut self, kind: &str, data: serde_json::Value) {
        self.say(&Line::Event { kind: kind.to_owned(), data });
    }

    fn remote(&self) -> Option<Arc<dyn RemoteReward>> {
        self.remote.clone()
    }

    fn trainer(&self, _: &str) -> Option<Vec<String>> {
        Some(self.trainer.clone()).filter(|command| !command.is_empty())
    }

    fn should_stop(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || TERMINATED.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stdin_stops_on_the_word_and_on_its_end() {
        for input in ["", "hello\n", "hello\nstop\nrest", "stop"] {
            let stop = AtomicBool::new(false);
            watch(input.as_bytes(), &stop, &Lease::default());
            assert!(stop.into_inner(), "{input:?}");
        }
    }

    #[test]
    fn the_parent_extends_the_lease() {
        let (stop, lease) = (AtomicBool::new(false), Lease::default());
        watch("lease 1000000\nlease x\nlease -3\n".as_bytes(), &stop, &lease);
        let until = lease.until.into_inner().expect("not poisoned").expect("a lease");
        assert!(until > Instant::now() + Duration::from_secs(800_000));
    }
}

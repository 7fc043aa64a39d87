//! The child process of a job: reads spec.json, runs the recipe, and writes its reports to stdout.

use std::io::{BufRead, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use super::executors::trainer::{self, Start};
use super::judges::{self, Judges};
use super::lease::{LEASE_EXPIRED, Lease};
use super::remote::HttpRewards;
use super::upstream::generator;
use super::wire::{LEASE, Line, STOP, Spec};
use crate::config::UpstreamConfig;
use crate::domain::{Metric, Progress};
use crate::train::judge::Judge;
use crate::train::remote::{RemoteGenerator, RemoteReward};
use crate::train::{Recipe, Reporter, TrainOutcome};

/// Set by SIGTERM. A signal handler may only store to an atomic.
static TERMINATED: AtomicBool = AtomicBool::new(false);

extern "C" fn on_terminate(_: libc::c_int) {
    TERMINATED.store(true, Ordering::Relaxed);
}

/// Body of `instructd train-job --job-dir DIR`. Returns the exit code: 0 when the outcome was written.
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
    std::thread::spawn(move || watched.exit_at_expiry());
    if Spec::read(job_dir).is_ok_and(|spec| spec.by_files) {
        return run_by_files(job_dir, recipes, stop, &lease);
    }
    let from_stdin = stop.clone();
    std::thread::spawn(move || watch(std::io::stdin().lock(), &from_stdin, &lease));
    run_and_report(job_dir, recipes, LineReporter::new(std::io::stdout(), stop))
}

/// Runs the recipe and writes its reports; returns the exit code.
fn run_and_report<W: Write + Send>(job_dir: &Path, recipes: &[Recipe], mut reporter: LineReporter<W>) -> u8 {
    crate::ops::par::configure_for_training();
    let result = Spec::read(job_dir).and_then(|spec| {
        let services = HttpRewards::new(&spec.reward_hosts)?;
        reporter.remote = services.map(|client| Arc::new(client) as Arc<dyn RemoteReward>);
        reporter.judges = judges::clients(&spec.judges)?;
        reporter.trainer = spec.trainer;
        reporter.rollouts = spec.rollouts;
        run(job_dir, recipes, &mut reporter)
    });
    reporter.finish(result)
}

/// Runs a trainer whose supervisor is on another machine: both communicate by files in `job_dir`. Returns the exit
/// code.
fn run_by_files(job_dir: &Path, recipes: &[Recipe], stop: Arc<AtomicBool>, lease: &Arc<Lease>) -> u8 {
    match trainer::begin(job_dir, &stop, lease, || TERMINATED.load(Ordering::Relaxed)) {
        Ok(Start::Work(output)) => run_and_report(job_dir, recipes, LineReporter::new(output, stop)),
        Ok(Start::Stopped(output)) => {
            LineReporter::new(output, stop).finish(Ok(TrainOutcome::Stopped { checkpoint: None }))
        }
        Ok(Start::Superseded(why)) => {
            eprintln!("{why}; this trainer exits");
            LEASE_EXPIRED
        }
        Err(error) => {
            eprintln!("the job's directory {} cannot be used: {error}", job_dir.display());
            1
        }
    }
}

/// Reads the supervisor's lines until `stop` or the end of input (the parent is gone), then sets `stop`. A line `lease
/// N` extends the lease by N seconds.
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

/// Runs the recipe that spec.json of the job directory names.
///
/// # Errors
/// A spec that cannot be read, an unknown recipe, arguments that are refused, or the recipe's error.
pub fn run(job_dir: &Path, recipes: &[Recipe], reporter: &mut dyn Reporter) -> anyhow::Result<TrainOutcome> {
    let spec = Spec::read(job_dir)?;
    let recipe = recipes
        .iter()
        .find(|r| r.name == spec.recipe)
        .ok_or_else(|| anyhow::anyhow!("this program has no recipe '{}'", spec.recipe))?;
    let args = spec.recipe_args();
    (recipe.validate)(&args)?;
    recipe.execute(&args, reporter)
}

/// Writes a recipe's reports as JSON lines. When a line cannot be written, because the supervisor is gone, it requests
/// a stop.
pub struct LineReporter<W> {
    out: W,
    stop: Arc<AtomicBool>,
    /// The client for the reward services that the server allows this job.
    remote: Option<Arc<dyn RemoteReward>>,
    /// Those that the job names.
    judges: Judges,
    /// The command of the one trainer that the job may run.
    trainer: Vec<String>,
    /// The servers that generate rollouts, if the job asks for them.
    rollouts: Option<UpstreamConfig>,
}

impl<W: Write> LineReporter<W> {
    pub fn new(out: W, stop: Arc<AtomicBool>) -> Self {
        Self { out, stop, remote: None, judges: Judges::new(), trainer: Vec::new(), rollouts: None }
    }

    fn write(&mut self, line: &Line) {
        let written = serde_json::to_string(line)
            .map_err(std::io::Error::from)
            .and_then(|text| writeln!(self.out, "{text}"))
            .and_then(|()| self.out.flush());
        if written.is_err() {
            self.stop.store(true, Ordering::Relaxed);
        }
    }

    /// Writes how the recipe ended; returns the exit code.
    pub fn finish(&mut self, result: anyhow::Result<TrainOutcome>) -> u8 {
        match result {
            Ok(outcome) => {
                self.write(&Line::Outcome(outcome));
                0
            }
            Err(error) => {
                self.write(&Line::Failed { error: crate::domain::error_chain(&error) });
                1
            }
        }
    }
}

impl<W: Write + Send> Reporter for LineReporter<W> {
    fn progress(&mut self, progress: &Progress) {
        self.write(&Line::Progress(progress.clone()));
    }

    /// JSON has no NaN: a value that is not finite is reported as a warning instead.
    fn metrics(&mut self, metrics: &[Metric]) {
        let (good, bad): (Vec<_>, Vec<_>) = metrics.iter().cloned().partition(|m| m.value.is_finite());
        for m in bad {
            let message = format!("{} is {} at step {}", m.name, m.value, m.step);
            self.event("warning", json!({"message": message}));
        }
        if !good.is_empty() {
            self.write(&Line::Metrics { metrics: good });
        }
    }

    fn event(&mut self, kind: &str, data: serde_json::Value) {
        self.write(&Line::Event { kind: kind.to_owned(), data });
    }

    fn remote(&self) -> Option<Arc<dyn RemoteReward>> {
        self.remote.clone()
    }

    fn judge(&self, name: &str) -> Option<Arc<dyn Judge>> {
        self.judges.get(name).cloned()
    }

    fn trainer(&self, _: &str) -> Option<Vec<String>> {
        Some(self.trainer.clone()).filter(|command| !command.is_empty())
    }

    fn generator(&self, model: &str) -> anyhow::Result<Option<Arc<dyn RemoteGenerator>>> {
        generator(self.rollouts.as_ref(), model)
    }

    fn should_stop(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || TERMINATED.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lease_lines_extend_the_lease() {
        let (stop, lease) = (AtomicBool::new(false), Lease::default());
        watch("lease 1000000\nlease x\nlease -3\n".as_bytes(), &stop, &lease);
        assert!(lease.remaining().expect("a lease") > std::time::Duration::from_secs(800_000));
    }

    #[test]
    fn a_stop_line_and_the_end_of_stdin_stop() {
        for input in ["", "hello\n", "hello\nstop\nrest", "stop"] {
            let stop = AtomicBool::new(false);
            watch(input.as_bytes(), &stop, &Lease::default());
            assert!(stop.into_inner(), "{input:?}");
        }
    }
}

//! The child's side of a job: reads spec.json, runs the recipe, says what happens on stdout.

use std::io::{BufRead, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use super::remote::HttpRewards;
use super::wire::{Line, STOP, Spec};
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
    let from_stdin = stop.clone();
    // The thread is left behind when the recipe ends: a blocking read of stdin cannot be interrupted.
    std::thread::spawn(move || watch(std::io::stdin().lock(), &from_stdin));
    let mut reporter = LineReporter::new(std::io::stdout(), stop);
    let result = allowed(job_dir).and_then(|remote| {
        reporter.remote = remote;
        run(job_dir, recipes, &mut reporter)
    });
    reporter.finish(result)
}

/// The client for the reward services that the server allows this job.
fn allowed(job_dir: &Path) -> anyhow::Result<Option<Arc<dyn RemoteReward>>> {
    let client = HttpRewards::new(&Spec::read(job_dir)?.reward_hosts)?;
    Ok(client.map(|client| Arc::new(client) as Arc<dyn RemoteReward>))
}

/// Sets `stop` at a line `stop` and at the end of input (the parent is gone).
fn watch(input: impl BufRead, stop: &AtomicBool) {
    for line in input.lines() {
        match line {
            Ok(line) if line.trim() != STOP => {}
            _ => break,
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
}

impl<W: Write> LineReporter<W> {
    pub fn new(out: W, stop: Arc<AtomicBool>) -> Self {
        Self { out, stop, remote: None }
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
                self.say(&Line::Failed { error: format!("{error:#}") });
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
            watch(input.as_bytes(), &stop);
            assert!(stop.into_inner(), "{input:?}");
        }
    }
}

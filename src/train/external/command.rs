//! Runs an external trainer: turns the lines of its output into metrics and events, and passes a stop on to it.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::layout::TrainerDir;
use crate::domain::{Metric, Progress};
use crate::train::Reporter;

/// Interval between checks for a stop.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// Time from SIGTERM to SIGKILL.
const STOP_TIMEOUT: Duration = Duration::from_secs(120);
/// Number of last lines in the error message of a failed trainer.
const ERROR_LINES: usize = 20;
const MAX_LINE_BYTES: usize = 64 << 10;

/// The end of a trainer.
pub(super) enum Exit {
    Done,
    Stopped,
}

/// The command of the configuration with its placeholders replaced.
fn expand(template: &[String], place: &TrainerDir) -> Vec<String> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    template
        .iter()
        .map(|part| {
            part.replace("{job}", &text(&place.job))
                .replace("{dir}", &text(&place.dir))
                .replace("{model}", &text(&place.model))
                .replace("{output}", &text(&place.result))
                .replace("{checkpoints}", &text(&place.checkpoints))
        })
        .collect()
}

/// Parses a line `{"step": 3, "loss": 0.5, …}` to (step, total steps, metrics). `total_steps` is not a metric.
fn points(line: &str) -> Option<(u64, Option<u64>, Vec<Metric>)> {
    let Value::Object(map) = serde_json::from_str(line.trim()).ok()? else { return None };
    let step = map.get("step")?.as_u64()?;
    let curves = map.iter().filter(|(name, _)| !matches!(name.as_str(), "step" | "total_steps"));
    let metrics = curves
        .filter_map(|(name, value)| Some(Metric { step: step as i64, name: name.clone(), value: value.as_f64()? }));
    Some((step, map.get("total_steps").and_then(Value::as_u64), metrics.collect()))
}

/// Sends all lines, each truncated to `MAX_LINE_BYTES`.
fn read(input: impl Read, sender: &mpsc::Sender<String>) {
    let mut input = BufReader::new(input);
    loop {
        let mut line = Vec::new();
        match input.by_ref().take(MAX_LINE_BYTES as u64).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        if sender.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
            return;
        }
    }
}

fn start(template: &[String], place: &TrainerDir) -> Result<Child> {
    let argv = expand(template, place);
    let (program, arguments) = argv.split_first().context("the trainer's command is empty")?;
    let mut command = Command::new(program);
    command.args(arguments).current_dir(&place.dir).env("INSTRUCTD_JOB", &place.job);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    #[cfg(target_os = "linux")]
    // SAFETY: a system call that is safe between fork and exec. Its failure is ignored.
    unsafe {
        // The trainer is killed when the recipe's thread, which lives as long as the process, ends.
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
    command.spawn().with_context(|| format!("the trainer '{program}' did not start"))
}

fn signal(child: &Child, signal: libc::c_int) {
    // SAFETY: the child has not been waited for, so its pid is its own.
    unsafe { libc::kill(child.id().cast_signed(), signal) };
}

/// Runs the trainer to its end.
///
/// # Errors
/// If the program does not start, or ends with a status other than 0; the message has its last lines.
pub(super) fn run(template: &[String], place: &TrainerDir, reporter: &mut dyn Reporter) -> Result<Exit> {
    let mut log = std::fs::OpenOptions::new().create(true).append(true).open(place.dir.join("log.txt"))?;
    let mut child = start(template, place)?;
    let (sender, receiver) = mpsc::channel();
    let errors = sender.clone();
    let (out, err) = (child.stdout.take().context("no pipe")?, child.stderr.take().context("no pipe")?);
    std::thread::spawn(move || read(out, &sender));
    std::thread::spawn(move || read(err, &errors));
    let (mut tail, mut stopping, mut status) = (VecDeque::new(), None::<Instant>, None);
    loop {
        match receiver.recv_timeout(POLL_INTERVAL) {
            Ok(line) => {
                writeln!(log, "{line}")?;
                match points(&line) {
                    Some((step, total, metrics)) => {
                        let mut progress = Progress { phase: "training".to_owned(), step, ..Progress::default() };
                        progress.total_steps = total;
                        reporter.progress(&progress);
                        reporter.metrics(&metrics);
                    }
                    None if line.trim().is_empty() => {}
                    None => {
                        if tail.len() == ERROR_LINES {
                            tail.pop_front();
                        }
                        tail.push_back(line.chars().take(500).collect::<String>());
                    }
                }
            }
            // The trainer has ended. Lines of programs that it has started are not waited for.
            Err(_) if status.is_some() => break,
            // The trainer has closed its output and continues.
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(POLL_INTERVAL),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if status.is_none() {
            status = child.try_wait()?;
        }
        match stopping {
            None if status.is_none() && reporter.should_stop() => {
                signal(&child, libc::SIGTERM);
                stopping = Some(Instant::now());
            }
            Some(since) if status.is_none() && since.elapsed() >= STOP_TIMEOUT => signal(&child, libc::SIGKILL),
            _ => {}
        }
    }
    let status = status.context("the trainer has not ended")?;
    let done = status.success() && place.result.is_dir();
    // A trainer may finish although a stop was requested.
    if stopping.is_some() && !done {
        return Ok(Exit::Stopped);
    }
    if !status.success() {
        let words = Vec::from(tail).join("\n");
        reporter.event("warning", json!({"message": format!("the trainer ended: {status}")}));
        bail!("the trainer ended: {status}\n{words}");
    }
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Collects the steps of the metrics.
    #[derive(Default)]
    struct Steps(Vec<i64>);

    impl Reporter for Steps {
        fn progress(&mut self, _: &Progress) {}
        fn metrics(&mut self, metrics: &[Metric]) {
            self.0.extend(metrics.iter().map(|m| m.step));
        }
        fn event(&mut self, _: &str, _: Value) {}
        fn should_stop(&self) -> bool {
            false
        }
    }

    fn trainer(dir: &Path, script: &str) -> (Result<Exit>, Vec<i64>) {
        let template = ["/bin/sh", "-c", script].map(str::to_owned);
        let place = TrainerDir {
            dir: dir.to_owned(),
            job: dir.join("job.json"),
            model: dir.to_owned(),
            result: dir.to_owned(),
            checkpoints: dir.to_owned(),
            rows: Value::Null,
        };
        let mut steps = Steps::default();
        let end = run(&template, &place, &mut steps);
        (end, steps.0)
    }

    /// The trainer writes faster than its lines are read, and ends before the last one is read.
    #[test]
    fn no_line_is_lost_at_the_end() {
        let dir = tempfile::tempdir().expect("a directory");
        let line = r#"{"step": '$i', "loss": 1}"#;
        let script = format!("i=1; while [ $i -le 3000 ]; do echo '{line}'; i=$((i+1)); done; echo why >&2; exit 3");
        let (end, steps) = trainer(dir.path(), &script);
        assert_eq!(steps, (1..=3000).collect::<Vec<i64>>());
        assert!(end.is_err_and(|error| error.to_string().contains("why")));
    }

    #[test]
    fn a_trainer_may_close_its_output_and_continue() {
        let dir = tempfile::tempdir().expect("a directory");
        let (end, _) = trainer(dir.path(), "exec >&- 2>&-; sleep 1");
        assert!(matches!(end, Ok(Exit::Done)));
    }

    #[test]
    fn lines_with_a_step_are_metrics() {
        let (step, total, metrics) =
            points(r#"{"step": 3, "total_steps": 9, "loss": 0.5, "name": "x", "n": 2}"#).expect("points");
        let names: Vec<(&str, f64)> = metrics.iter().map(|m| (m.name.as_str(), m.value)).collect();
        assert_eq!((step, total, names), (3, Some(9), vec![("loss", 0.5), ("n", 2.0)]));
        for other in ["{}", "[1]", "step 3", r#"{"loss": 1}"#, r#"{"step": "3"}"#, ""] {
            assert_eq!(points(other), None, "{other}");
        }
    }
}

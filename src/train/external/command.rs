//! Runs another trainer: its lines become curves and events, and a stop reaches it.

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

/// How often it is asked whether to stop.
const LOOK: Duration = Duration::from_millis(200);
/// From SIGTERM to SIGKILL.
const PATIENCE: Duration = Duration::from_secs(120);
/// Lines of the error of a trainer that failed.
const TAIL: usize = 20;
const LINE_BYTES: usize = 64 << 10;

/// How the trainer came to an end.
pub(super) enum End {
    Done,
    Stopped,
}

/// The command of the configuration with the places filled in.
fn filled(template: &[String], place: &TrainerDir) -> Vec<String> {
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

/// A line `{"step": 3, "loss": 0.5, …}` as points of curves. `total_steps` is no curve but how far it goes.
fn points(line: &str) -> Option<(u64, Option<u64>, Vec<Metric>)> {
    let Value::Object(map) = serde_json::from_str(line.trim()).ok()? else { return None };
    let step = map.get("step")?.as_u64()?;
    let curves = map.iter().filter(|(name, _)| !matches!(name.as_str(), "step" | "total_steps"));
    let metrics = curves
        .filter_map(|(name, value)| Some(Metric { step: step as i64, name: name.clone(), value: value.as_f64()? }));
    Some((step, map.get("total_steps").and_then(Value::as_u64), metrics.collect()))
}

/// Sends lines, cut to `LINE_BYTES`, as long as there are any.
fn read(input: impl Read, say: &mpsc::Sender<String>) {
    let mut input = BufReader::new(input);
    loop {
        let mut line = Vec::new();
        match input.by_ref().take(LINE_BYTES as u64).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        if say.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
            return;
        }
    }
}

fn start(template: &[String], place: &TrainerDir) -> Result<Child> {
    let argv = filled(template, place);
    let (program, arguments) = argv.split_first().context("the trainer's command is empty")?;
    let mut command = Command::new(program);
    command.args(arguments).current_dir(&place.dir).env("INSTRUCTD_JOB", &place.job);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    #[cfg(target_os = "linux")]
    // SAFETY: a direct system call, safe between fork and exec; its failure is no reason not to run.
    unsafe {
        // The recipe's thread lives as long as the process: the trainer ends with it.
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
/// A program that does not start, or ends with another status than 0; with its last lines.
pub(super) fn run(template: &[String], place: &TrainerDir, reporter: &mut dyn Reporter) -> Result<End> {
    let mut log = std::fs::OpenOptions::new().create(true).append(true).open(place.dir.join("log.txt"))?;
    let mut child = start(template, place)?;
    let (say, heard) = mpsc::channel();
    let errors = say.clone();
    let (out, err) = (child.stdout.take().context("no pipe")?, child.stderr.take().context("no pipe")?);
    std::thread::spawn(move || read(out, &say));
    std::thread::spawn(move || read(err, &errors));
    let (mut tail, mut stopping, mut status) = (VecDeque::new(), None::<Instant>, None);
    loop {
        match heard.recv_timeout(LOOK) {
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
                        if tail.len() == TAIL {
                            tail.pop_front();
                        }
                        tail.push_back(line.chars().take(500).collect::<String>());
                    }
                }
            }
            // All lines are read, or those that a program of the trainer's own still writes are not waited for.
            Err(_) if status.is_some() => break,
            // It has closed its output and goes on.
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(LOOK),
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
            Some(since) if status.is_none() && since.elapsed() >= PATIENCE => signal(&child, libc::SIGKILL),
            _ => {}
        }
    }
    let status = status.context("the trainer has not ended")?;
    let done = status.success() && place.result.is_dir();
    // A trainer that was asked to stop and had finished by then has finished.
    if stopping.is_some() && !done {
        return Ok(End::Stopped);
    }
    if !status.success() {
        let words = Vec::from(tail).join("\n");
        reporter.event("warning", json!({"message": format!("the trainer ended: {status}")}));
        bail!("the trainer ended: {status}\n{words}");
    }
    Ok(End::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keeps the steps of the curves.
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

    fn trainer(dir: &Path, script: &str) -> (Result<End>, Vec<i64>) {
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

    /// A trainer writes faster than its lines are read, and ends before the last one is.
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
    fn a_trainer_may_close_its_output_and_go_on() {
        let dir = tempfile::tempdir().expect("a directory");
        let (end, _) = trainer(dir.path(), "exec >&- 2>&-; sleep 1");
        assert!(matches!(end, Ok(End::Done)));
    }

    #[test]
    fn lines_with_a_step_are_points() {
        let (step, total, metrics) =
            points(r#"{"step": 3, "total_steps": 9, "loss": 0.5, "name": "x", "n": 2}"#).expect("points");
        let names: Vec<(&str, f64)> = metrics.iter().map(|m| (m.name.as_str(), m.value)).collect();
        assert_eq!((step, total, names), (3, Some(9), vec![("loss", 0.5), ("n", 2.0)]));
        for other in ["{}", "[1]", "step 3", r#"{"loss": 1}"#, r#"{"step": "3"}"#, ""] {
            assert_eq!(points(other), None, "{other}");
        }
    }
}

//! The child's side: every line it says is one that the parent understands.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use instructd::domain::{JobId, Metric, Progress};
use instructd::jobs::child::{LineReporter, run};
use instructd::jobs::wire::{Line, Spec};
use instructd::train::{ArgsError, Recipe, Reporter, TrainOutcome};
use serde_json::{Value, json};

fn works(args: &Value, reporter: &mut dyn Reporter) -> anyhow::Result<TrainOutcome> {
    reporter.progress(&Progress { phase: "train".into(), step: 1, ..Default::default() });
    let point = |name: &str, value| Metric { step: 1, name: name.into(), value };
    reporter.metrics(&[point("loss", 0.5), point("kl", f64::NAN)]);
    reporter.event("sample", json!({"text": "line\nbreak"}));
    if reporter.should_stop() {
        return Ok(TrainOutcome::Stopped { checkpoint: Some("ckpt-1".into()) });
    }
    Ok(TrainOutcome::Done { model_dir: args["output_dir"].as_str().unwrap().into(), metrics: json!({"n": 1}) })
}

fn only_even(args: &Value) -> Result<(), ArgsError> {
    if args["n"].as_i64().is_some_and(|n| n % 2 == 0) {
        return Ok(());
    }
    Err(ArgsError { field: "n".into(), message: "must be even".into() })
}

static RECIPES: &[Recipe] = &[
    Recipe { name: "works", about: "", schema: || json!({}), validate: only_even, run: works },
    Recipe {
        name: "breaks",
        about: "",
        schema: || json!({}),
        validate: |_| Ok(()),
        run: |_, _| Err(anyhow::anyhow!("inner").context("outer")),
    },
];

/// Runs a recipe as a child would; returns the exit code and the lines said.
fn child(recipe: &str, n: i64, stop: bool) -> (u8, Vec<Line>) {
    let dir = tempfile::tempdir().unwrap();
    let spec = Spec {
        reward_hosts: Vec::new(),
        judges: std::collections::BTreeMap::new(),
        recipe: recipe.into(),
        args: json!({"n": n}),
        job_id: JobId::new(),
        checkpoint_dir: dir.path().join("checkpoints"),
        output_dir: dir.path().join("output"),
        resume: false,
        by_files: false,
        rollouts: None,
        trainer: Vec::new(),
    };
    std::fs::write(dir.path().join("spec.json"), serde_json::to_string(&spec).unwrap()).unwrap();
    assert_eq!(Spec::read(dir.path()).unwrap(), spec);
    let mut out = Vec::new();
    let mut reporter = LineReporter::new(&mut out, Arc::new(AtomicBool::new(stop)));
    let result = run(dir.path(), RECIPES, &mut reporter);
    let code = reporter.finish(result);
    (code, String::from_utf8(out).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect())
}

#[test]
fn lines_are_parsed_as_they_were_written() {
    let (code, lines) = child("works", 2, false);
    assert_eq!(code, 0);
    let [
        Line::Progress(progress),
        Line::Event { kind, data },
        Line::Metrics { metrics },
        Line::Event { .. },
        Line::Outcome(outcome),
    ] = &lines[..]
    else {
        panic!("{lines:?}")
    };
    assert_eq!((progress.phase.as_str(), progress.step), ("train", 1));
    assert_eq!((kind.as_str(), metrics.len()), ("warning", 1), "a NaN is a warning, not a point");
    assert!(data["message"].as_str().unwrap().contains("kl is NaN"));
    assert!(matches!(outcome, TrainOutcome::Done { model_dir, .. } if model_dir.ends_with("output")));
}

#[test]
fn a_stop_is_an_outcome_and_an_error_is_the_last_line() {
    let (code, lines) = child("works", 2, true);
    assert!(code == 0 && matches!(lines.last(), Some(Line::Outcome(TrainOutcome::Stopped { checkpoint: Some(_) }))));
    for (recipe, n, message) in
        [("breaks", 0, "outer: inner"), ("works", 1, "n: must be even"), ("none", 0, "no recipe 'none'")]
    {
        let (code, lines) = child(recipe, n, false);
        assert_eq!(code, 1);
        assert!(matches!(&lines[..], [Line::Failed { error }] if error.contains(message)), "{lines:?}");
    }
}

#[test]
fn a_child_without_a_reader_stops() {
    struct Gone;
    impl std::io::Write for Gone {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let stop = Arc::new(AtomicBool::new(false));
    let mut reporter = LineReporter::new(Gone, stop.clone());
    assert!(!reporter.should_stop());
    reporter.event("log", json!({}));
    assert!(reporter.should_stop() && stop.load(Ordering::Relaxed));
}

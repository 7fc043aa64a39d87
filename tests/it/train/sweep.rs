//! Sweeps: every combination with every seed, a table, the best model as the result, and stops that cost nothing that has
//! ended.

use std::path::Path;

use instructd::domain::{Metric, Progress};
use instructd::train::{Reporter, TrainOutcome, recipe};
use serde_json::{Value, json};

use super::recipes::{reward, rl, with};
use crate::loop_closes::world::{World, train};
use crate::support::Recorder;

/// Asks to stop when what was said meets a condition.
struct StopWhen<'a> {
    recorder: Recorder,
    stop: &'a (dyn Fn(&Recorder) -> bool + Sync),
}

impl Reporter for StopWhen<'_> {
    fn progress(&mut self, progress: &Progress) {
        self.recorder.progress(progress);
    }

    fn metrics(&mut self, metrics: &[Metric]) {
        self.recorder.metrics(metrics);
    }

    fn event(&mut self, kind: &str, data: Value) {
        self.recorder.event(kind, data);
    }

    fn should_stop(&self) -> bool {
        (self.stop)(&self.recorder)
    }
}

fn execute(name: &str, args: &Value, recorder: &mut Recorder) -> anyhow::Result<TrainOutcome> {
    recipe(name).unwrap().execute(args, recorder)
}

fn sweep(name: &str, args: &Value) -> (Recorder, Value) {
    let mut recorder = Recorder::default();
    match execute(name, args, &mut recorder).unwrap() {
        TrainOutcome::Done { metrics, .. } => (recorder, metrics),
        TrainOutcome::Stopped { .. } => panic!("nobody asked {name} to stop"),
    }
}

fn bytes(world: &World, dir: &str) -> Vec<u8> {
    std::fs::read(Path::new(&world.path(dir)).join("model.safetensors")).unwrap()
}

/// A rate that learns, and one that cannot.
fn args(world: &World, out: &str) -> Value {
    let comparisons = reward(world, out);
    let comparisons =
        with(&comparisons, json!({"comparisons": world.comparisons(200), "heldout_fraction": 0.3, "epochs": 3}));
    with(&comparisons, json!({"sweep": {"grid": {"learning_rate": [1e-9, 3e-3]}, "seeds": 2}, "seed": 5}))
}

#[test]
fn a_sweep_is_its_runs_with_a_table_and_the_best_model() {
    let world = World::new();
    let args = args(&world, "out");
    let (recorder, metrics) = sweep("reward", &args);
    let table = &metrics["sweep"];
    assert_eq!((&table["by"], &table["best"], &table["seeds"]), (&json!("heldout_accuracy"), &json!(1), &json!(2)));
    assert_eq!(table["cells"][0]["args"], json!({"learning_rate": 1e-9}));
    // Each value of the table is that of the run alone.
    for (cell, rate) in [(0, 1e-9), (1, 3e-3)] {
        let figure = &table["cells"][cell]["figures"]["heldout_accuracy"];
        let values: Vec<f64> = figure["values"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
        for (seed, value) in values.iter().enumerate() {
            let alone =
                json!({"learning_rate": rate, "seed": 5 + seed, "sweep": null, "output_dir": world.path("alone")});
            let (_, found) = train("reward", &with(&args, alone));
            assert_eq!(found["heldout_accuracy"].as_f64(), Some(*value), "cell {cell}, seed {seed}");
            if (cell, seed) == (1, 0) {
                assert!(bytes(&world, "alone") == bytes(&world, "out"), "the result is not the best run's first model");
                assert_eq!(metrics["heldout_accuracy"], found["heldout_accuracy"]);
            }
        }
        let mean = (values[0] + values[1]) / 2.0;
        let sd = (values[0] - values[1]).abs() / f64::sqrt(2.0);
        assert!((figure["mean"].as_f64().unwrap() - mean).abs() < 1e-12);
        assert!((figure["sd"].as_f64().unwrap() - sd).abs() < 1e-12);
    }
    // One point for each run, and no curves of single runs among them.
    assert_eq!(recorder.curve("heldout_accuracy").len(), 4);
    assert!(recorder.curve("grad_norm").is_empty());
    let said: Vec<&str> = recorder.events("log").iter().filter_map(|e| e["message"].as_str()).collect();
    assert!(said.iter().any(|line| line.starts_with("run 4 of 4: learning_rate 0.003, seed 6")), "{said:?}");
    assert!(Path::new(&world.path("out")).join("instructd.json").exists());
    let steps: Vec<u64> = recorder.progress.iter().filter(|p| p.phase == "train").map(|p| p.step).collect();
    assert!(steps.windows(2).all(|pair| pair[0] <= pair[1]), "progress goes back: {steps:?}");
}

#[test]
fn a_stopped_sweep_goes_on_where_it_was_and_runs_nothing_twice() {
    let world = World::new();
    let rl =
        with(&rl(&world, "whole"), json!({"sweep": {"grid": {"kl_coef": [0.0, 0.1]}, "seeds": 1, "by": "last.kl"}}));
    let (_, whole) = sweep("reinforce", &rl);
    assert_eq!(whole["sweep"]["by"], "last.kl");
    assert!(whole["sweep"]["cells"][0]["figures"]["last.kl"]["sd"].is_null(), "one seed has no deviation");
    let checkpoints = tempfile::tempdir().unwrap();
    let parts =
        with(&rl, json!({"output_dir": world.path("parts"), "checkpoint_dir": checkpoints.path(), "resume": true}));
    // In the middle of the first run, at the beginning of the second, and never.
    let first = |r: &Recorder| r.progress.iter().any(|p| p.phase == "updating" && p.step == 1);
    let second = |r: &Recorder| r.events("log").iter().any(|e| e["message"].as_str().unwrap().starts_with("run 2"));
    let mut said = Vec::new();
    let mut metrics = Value::Null;
    for stop in [&first as &(dyn Fn(&Recorder) -> bool + Sync), &second, &|_: &Recorder| false] {
        let mut reporter = StopWhen { recorder: Recorder::default(), stop };
        match recipe("reinforce").unwrap().execute(&parts, &mut reporter).unwrap() {
            TrainOutcome::Stopped { .. } => {}
            TrainOutcome::Done { metrics: found, .. } => metrics = found,
        }
        let lines = reporter.recorder.events("log");
        said.push(lines.iter().map(|e| e["message"].as_str().unwrap().to_owned()).collect::<Vec<_>>());
    }
    assert!(said[1].iter().any(|line| line.contains("resumed after step 1")), "{said:?}");
    assert!(said[2].iter().all(|line| line.starts_with("run 2 of 2")), "the first run had ended: {said:?}");
    assert_eq!(metrics["sweep"], whole["sweep"]);
    assert!(bytes(&world, "whole") == bytes(&world, "parts"));
    // All runs have ended: nothing is run again, whatever is asked.
    let mut recorder = Recorder::default();
    execute("reinforce", &parts, &mut recorder).unwrap();
    assert!(recorder.events("log").is_empty() && recorder.progress.is_empty());
    // Other arguments are other runs.
    let other = with(&parts, json!({"learning_rate": 5e-4, "resume": false}));
    let mut recorder = Recorder::default();
    execute("reinforce", &other, &mut recorder).unwrap();
    assert!(!recorder.progress.is_empty());
    assert!(bytes(&world, "whole") != bytes(&world, "parts"));
}

#[test]
fn a_figure_that_no_run_has_is_said_with_those_that_there_are() {
    let world = World::new();
    let args = with(&args(&world, "out"), json!({"sweep": {"seeds": 1, "by": "heldout_acuracy"}, "max_steps": 1}));
    let error = format!("{:#}", execute("reward", &args, &mut Recorder::default()).unwrap_err());
    assert!(error.contains("heldout_acuracy") && error.contains("heldout_accuracy"), "{error}");
    let error = execute("reward", &with(&args, json!({"sweep": {"grid": {"model": ["x"]}}})), &mut Recorder::default());
    assert!(error.unwrap_err().to_string().contains("sweep.grid.model"));
}

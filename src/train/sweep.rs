//! A sweep: the runs of a grid over arguments and seeds, one after the other, and a table of their figures. The model
//! of the best combination's first seed becomes the result.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::args::{Cell, SweepArgs, roles, run_args};
use super::{Recipe, Reporter, TrainOutcome};
use crate::domain::files::write_atomically;
use crate::domain::{Metric, Progress};
use crate::train::judge::Judge;
use crate::train::remote::RemoteReward;

/// Figures that determine the best combination if the arguments name none; the first one that the runs have is used.
const DEFAULT_FIGURES: &[&str] = &["heldout_accuracy", "last.gold", "heldout_loss", "last.reward"];

/// Words in the names of figures of which smaller values are better.
const SMALLER: &[&str] = &["loss", "perplexity", "bits_per_byte", "ece", "kl"];

/// The contents of `finished.json` in the directory of a finished run.
#[derive(Serialize, Deserialize)]
struct Finished {
    /// The arguments that determine the result.
    args: Value,
    metrics: Value,
}

/// One figure of a combination over its seeds.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Figure {
    mean: f64,
    /// Sample standard deviation; null of one seed.
    sd: Option<f64>,
    values: Vec<f64>,
}

/// Runs every combination with every seed.
///
/// # Errors
/// Those of the runs, and if no run has the chosen figure.
pub fn run(recipe: &Recipe, args: &Value, sweep: &SweepArgs, reporter: &mut dyn Reporter) -> Result<TrainOutcome> {
    let directories = RunDirectories::new(args)?;
    let cells = sweep.cells();
    let total = cells.len() as u64 * sweep.seeds;
    let mut results: Vec<Vec<Value>> = vec![Vec::new(); cells.len()];
    let mut steps = 0;
    for number in 0..total {
        let (cell, seed) = ((number / sweep.seeds) as usize, number % sweep.seeds);
        let own = directories.args(run_args(args, &cells[cell], seed)?, number)?;
        let name = describe(&cells[cell], &own["seed"]);
        let metrics = match directories.read_result(number, &own) {
            Some(metrics) => metrics,
            None => {
                let say = format!("run {} of {total}: {name}", number + 1);
                reporter.event("log", json!({"message": say}));
                let mut part = RunReporter { whole: reporter, number, total, name: say, steps: &mut steps };
                match (recipe.run)(&own, &mut part).with_context(|| format!("the run with {name}"))? {
                    TrainOutcome::Done { metrics, .. } => directories.store_result(number, &own, metrics)?,
                    stopped @ TrainOutcome::Stopped { .. } => return Ok(stopped),
                }
            }
        };
        let point = |(name, value): (String, f64)| Metric { step: number as i64 + 1, name, value };
        reporter.metrics(&figures(&metrics).into_iter().map(point).collect::<Vec<_>>());
        results[cell].push(metrics);
        if number + 1 < total && reporter.should_stop() {
            return Ok(TrainOutcome::Stopped { checkpoint: None });
        }
    }
    let table: Vec<BTreeMap<String, Figure>> = results.iter().map(|runs| over_seeds(runs)).collect();
    let by = chosen_figure(sweep.by.as_deref(), &table)?;
    let best = best(&table, &by).with_context(|| format!("sweep.by: no run has a finite {by}"))?;
    directories.publish(best as u64 * sweep.seeds)?;
    let mut metrics = results[best].first().cloned().unwrap_or_default();
    let rows = cells.iter().zip(&table).map(|(cell, figures)| json!({"args": cell, "figures": figures}));
    metrics["sweep"] = json!({
        "by": by, "best": best, "seeds": sweep.seeds, "cells": rows.collect::<Vec<_>>(),
    });
    Ok(TrainOutcome::Done { model_dir: directories.output.display().to_string(), metrics })
}

/// The directories of the runs of a sweep.
struct RunDirectories {
    output: PathBuf,
    /// Parent of the runs' directories: in the checkpoint directory, or next to the result.
    runs: PathBuf,
    checkpoints: bool,
    logs: Option<PathBuf>,
    resume: bool,
}

impl RunDirectories {
    fn new(args: &Value) -> Result<Self> {
        let path = |name: &str| args.get(name).and_then(Value::as_str).map(PathBuf::from);
        let output = path("output_dir").context("output_dir: is required")?;
        let beside = || {
            let mut name = output.clone().into_os_string();
            name.push(".runs");
            PathBuf::from(name)
        };
        let (checkpoints, resume) = (path("checkpoint_dir"), args["resume"].as_bool().unwrap_or(false));
        let runs = checkpoints.as_ref().map_or_else(beside, |dir| dir.join("runs"));
        if !resume && runs.exists() {
            std::fs::remove_dir_all(&runs).with_context(|| format!("removing {}", runs.display()))?;
        }
        Ok(Self { output, runs, checkpoints: checkpoints.is_some(), logs: path("log_dir"), resume })
    }

    fn of(&self, number: u64) -> PathBuf {
        self.runs.join(format!("{:03}", number + 1))
    }

    /// The arguments of one run with directories of its own.
    fn args(&self, mut args: Value, number: u64) -> Result<Value> {
        let dir = self.of(number);
        std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        args["output_dir"] = json!(dir.join("model"));
        if self.checkpoints {
            args["checkpoint_dir"] = json!(dir.join("checkpoints"));
        }
        if let Some(logs) = &self.logs {
            args["log_dir"] = json!(logs.join(format!("{:03}", number + 1)));
        }
        Ok(args)
    }

    /// The metrics of a run that has already finished with the same arguments.
    fn read_result(&self, number: u64, args: &Value) -> Option<Value> {
        let text = std::fs::read(self.of(number).join("finished.json")).ok().filter(|_| self.resume)?;
        let finished: Finished = serde_json::from_slice(&text).ok()?;
        (finished.args == result_arguments(args)).then_some(finished.metrics)
    }

    /// Stores and returns the metrics of a finished run.
    fn store_result(&self, number: u64, args: &Value, metrics: Value) -> Result<Value> {
        let (dir, finished) = (self.of(number), Finished { args: result_arguments(args), metrics });
        write_atomically(&dir.join("finished.json"), &serde_json::to_vec(&finished)?)
            .with_context(|| format!("writing to {}", dir.display()))?;
        Ok(finished.metrics)
    }

    /// Makes the model of one run the result.
    fn publish(&self, number: u64) -> Result<()> {
        let from = self.of(number).join("model");
        copy_all(&from, &self.output)
            .with_context(|| format!("copying {} to {}", from.display(), self.output.display()))
    }
}

/// Copies a directory recursively.
fn copy_all(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let place = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_all(&entry.path(), &place)?;
        } else {
            std::fs::copy(entry.path(), place)?;
        }
    }
    Ok(())
}

/// The arguments that determine the result, without those that may differ between attempts.
fn result_arguments(args: &Value) -> Value {
    let mut args = args.clone();
    if let Some(all) = args.as_object_mut() {
        all.retain(|name, _| !roles::is_free_on_resume(name));
    }
    args
}

/// "learning_rate 0.0001, seed 3".
fn describe(cell: &Cell, seed: &Value) -> String {
    let values = cell.iter().map(|(name, value)| format!("{name} {value}"));
    values.chain([format!("seed {seed}")]).collect::<Vec<_>>().join(", ")
}

/// The figures of a run's result, by name: held-out metrics, and those of the last round.
fn figures(metrics: &Value) -> BTreeMap<String, f64> {
    let mut found = BTreeMap::new();
    for (name, value) in metrics.as_object().into_iter().flatten() {
        match value {
            Value::Number(number) if name.starts_with("heldout_") || name == "bits_per_byte" => {
                found.extend(number.as_f64().map(|number| (name.clone(), number)));
            }
            Value::Object(parts) if name == "last" => {
                let numbers = parts.iter().filter_map(|(part, value)| Some((format!("last.{part}"), value.as_f64()?)));
                found.extend(numbers);
            }
            _ => {}
        }
    }
    found
}

/// The figures that all runs of a combination have, over its seeds.
fn over_seeds(runs: &[Value]) -> BTreeMap<String, Figure> {
    let all: Vec<BTreeMap<String, f64>> = runs.iter().map(figures).collect();
    let names = all.first().map(|first| first.keys().cloned().collect::<Vec<_>>()).unwrap_or_default();
    let of = |name: String| {
        let values: Vec<f64> = all.iter().filter_map(|figures| figures.get(&name).copied()).collect();
        (values.len() == all.len()).then(|| (name, figure(values)))
    };
    names.into_iter().filter_map(of).collect()
}

/// Mean and sample standard deviation of at least one value.
fn figure(values: Vec<f64>) -> Figure {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    Figure { mean, sd: (n > 1.0).then(|| (squares / (n - 1.0)).sqrt()), values }
}

fn chosen_figure(requested: Option<&str>, table: &[BTreeMap<String, Figure>]) -> Result<String> {
    let known = table.first().context("a sweep has a run")?;
    match requested {
        Some(name) if known.contains_key(name) => Ok(name.to_owned()),
        Some(name) => {
            let names = known.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            bail!("sweep.by: no run has the figure {name}; there are {names}")
        }
        None => {
            let first = DEFAULT_FIGURES.iter().find(|name| known.contains_key(**name)).map(|name| (*name).to_owned());
            first.or_else(|| known.keys().next().cloned()).context("sweep: the runs have no figure to compare")
        }
    }
}

/// The combination with the best mean of a figure, or the first of several equal ones.
fn best(table: &[BTreeMap<String, Figure>], by: &str) -> Option<usize> {
    let smaller = SMALLER.iter().any(|word| by.split(['.', '_']).any(|part| part == *word) || by == *word);
    let means = table.iter().enumerate().filter_map(|(i, figures)| Some((i, figures.get(by)?.mean)));
    let means = means.filter(|(_, mean)| mean.is_finite());
    let better = |a: f64, b: f64| if smaller { a.partial_cmp(&b) } else { b.partial_cmp(&a) };
    means.reduce(|best, next| if better(next.1, best.1) == Some(Ordering::Less) { next } else { best }).map(|(i, _)| i)
}

/// Reports a run as a part of the sweep. Metrics and samples are only written to the log files of the run, because all
/// runs have the same names and steps.
struct RunReporter<'a> {
    whole: &'a mut dyn Reporter,
    number: u64,
    total: u64,
    name: String,
    /// Number of steps of a run, as last reported.
    steps: &'a mut u64,
}

impl Reporter for RunReporter<'_> {
    fn progress(&mut self, progress: &Progress) {
        // While a run loads, its number of steps is unknown.
        *self.steps = progress.total_steps.unwrap_or(*self.steps);
        let steps = *self.steps;
        let left = steps.saturating_sub(progress.step).max(1) as f64;
        let later = (steps * (self.total - self.number - 1)) as f64;
        self.whole.progress(&Progress {
            step: steps * self.number + progress.step,
            total_steps: (steps > 0).then_some(steps * self.total),
            eta_seconds: progress.eta_seconds.map(|eta| eta + eta / left * later),
            ..progress.clone()
        });
    }

    fn metrics(&mut self, _: &[Metric]) {}

    fn event(&mut self, kind: &str, data: Value) {
        if matches!(kind, "log" | "warning") {
            let message = format!("{}: {}", self.name, data["message"].as_str().unwrap_or_default());
            self.whole.event(kind, json!({"message": message}));
        }
    }

    fn remote(&self) -> Option<std::sync::Arc<dyn RemoteReward>> {
        self.whole.remote()
    }

    fn judge(&self, name: &str) -> Option<std::sync::Arc<dyn Judge>> {
        self.whole.judge(name)
    }

    fn trainer(&self, name: &str) -> Option<Vec<String>> {
        self.whole.trainer(name)
    }

    fn should_stop(&self) -> bool {
        self.whole.should_stop()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_means_with_deviations_over_seeds() {
        let run = |accuracy: f64, reward: f64| {
            json!({"heldout_accuracy": accuracy, "heldout": {"pairs": 30}, "last": {"reward": reward, "gold": null},
                "sets": {"train": 9}, "heldout_loss": null})
        };
        let table = over_seeds(&[run(0.6, 1.0), run(0.7, 2.0), run(0.8, 4.0)]);
        assert_eq!(table.keys().collect::<Vec<_>>(), ["heldout_accuracy", "last.reward"]);
        let accuracy = &table["heldout_accuracy"];
        assert!((accuracy.mean - 0.7).abs() < 1e-12 && (accuracy.sd.unwrap() - 0.1).abs() < 1e-12);
        assert_eq!(accuracy.values, [0.6, 0.7, 0.8]);
        assert_eq!(over_seeds(&[run(0.6, 1.0)])["last.reward"].sd, None);
    }

    #[test]
    fn the_best_combination_has_the_largest_or_smallest_figure_by_its_kind() {
        let table: Vec<_> = [(0.6, 2.0), (0.8, 3.0), (0.8, 1.0)]
            .into_iter()
            .map(|(accuracy, loss)| over_seeds(&[json!({"heldout_accuracy": accuracy, "heldout_loss": loss})]))
            .collect();
        assert_eq!(chosen_figure(None, &table).unwrap(), "heldout_accuracy");
        assert_eq!(best(&table, "heldout_accuracy"), Some(1), "the first of equals");
        assert_eq!(best(&table, "heldout_loss"), Some(2));
        let error = chosen_figure(Some("heldout_acuracy"), &table).unwrap_err().to_string();
        assert!(error.contains("heldout_accuracy"), "{error}");
        assert_eq!(best(&[over_seeds(&[json!({"last": {"kl": 2.0}})])], "last.kl"), Some(0));
    }
}

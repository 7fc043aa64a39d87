//! The model card (README.md, as the Hugging Face hub shows it): recipe, arguments and data, held-out figures with
//! intervals, the first and last value of every metric, and how far the policy has moved.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::statistics::interval::wilson;

/// The first and last value of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    pub first: f64,
    pub last: f64,
    /// Step of the last value.
    pub step: u64,
}

/// The first and last values of metrics, by name.
pub type Curves = BTreeMap<String, Curve>;

/// The contents of a model card.
pub struct Card<'a> {
    pub recipe: &'a str,
    /// Name of the model from which the run started.
    pub parent: &'a str,
    pub steps: u64,
    /// Arguments without paths.
    pub args: &'a Value,
    /// Default values of the arguments.
    pub defaults: &'a Value,
    /// SHA-256 of every file that was read, by argument.
    pub data: &'a Value,
    pub report: Option<&'a Value>,
    pub curves: &'a Curves,
    /// What the figures show, in sentences.
    pub findings: &'a [String],
}

/// Whether a metric describes the machine instead of the model.
fn is_machine_metric(name: &str) -> bool {
    name.starts_with("seconds_")
        || name.ends_with("_seconds")
        || name.ends_with("_bytes")
        || name == "tokens_per_second"
}

/// Metrics of how far the policy has moved.
const CHANGE: &[(&str, &str)] = &[
    ("kl", "KL to the start policy, nats per sequence"),
    ("entropy", "entropy, nats per token"),
    ("response_length", "tokens of a response"),
    ("no_eos_share", "responses cut at the longest length"),
    ("distinct_1", "distinct words of all words (distinct-1)"),
    ("distinct_2", "distinct pairs of words of all pairs (distinct-2)"),
];

impl Card<'_> {
    /// Writes README.md into the model's directory.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, dir: &Path) -> std::io::Result<()> {
        std::fs::write(dir.join("README.md"), self.text())
    }

    fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = self.put(&mut out);
        out
    }

    fn put(&self, out: &mut String) -> std::fmt::Result {
        let name = |path: &str| path.replace(['\n', '|', '`'], " ");
        writeln!(out, "---\nlibrary_name: transformers\ntags:\n- instructd\n- {}\n---\n", self.recipe)?;
        writeln!(out, "# A model of the recipe `{}`\n", self.recipe)?;
        writeln!(out, "Made from `{}` in {} steps by instructd.\n", name(self.parent), self.steps)?;

        writeln!(out, "## Recipe\n\nArguments that are not the defaults:\n\n| argument | value |\n|---|---|")?;
        for (key, value) in self.args.as_object().into_iter().flatten() {
            if self.defaults.get(key) != Some(value) {
                writeln!(out, "| `{key}` | `{}` |", name(&without_addresses(value).to_string()))?;
            }
        }

        writeln!(out, "\n## Data\n\n| file | SHA-256 |\n|---|---|")?;
        for (key, hash) in self.data.as_object().into_iter().flatten() {
            writeln!(out, "| `{key}` | `{}` |", hash.as_str().unwrap_or_default())?;
        }
        if let Some(report) = self.report {
            writeln!(out, "\n| count | value |\n|---|---|")?;
            put_counts(out, "", report)?;
        }

        let heldout = |(name, _): &(&String, &Curve)| name.starts_with("heldout_") || *name == "gold" || *name == "ece";
        let pairs = self.curves.get("heldout_pairs").map(|curve| curve.last);
        if self.curves.iter().any(|entry| heldout(&entry)) {
            writeln!(out, "\n## Held-out figures\n\n| figure | value |\n|---|---|")?;
            for (key, curve) in self.curves.iter().filter(heldout) {
                writeln!(out, "| {} | {} |", key.replace('_', " "), with_interval(key, curve.last, pairs))?;
            }
        }

        for finding in self.findings {
            writeln!(out, "\n**{finding}**")?;
        }

        if CHANGE.iter().any(|(key, _)| self.curves.contains_key(*key)) {
            writeln!(out, "\n## How far it moved\n\n| measure | at the start | at the end |\n|---|---|---|")?;
            for (key, about) in CHANGE {
                if let Some(curve) = self.curves.get(*key) {
                    writeln!(out, "| {about} | {:.4} | {:.4} |", curve.first, curve.last)?;
                }
            }
        }

        writeln!(out, "\n## Curves\n\n| metric | first | last | step |\n|---|---|---|---|")?;
        for (key, curve) in self.curves.iter().filter(|(key, _)| !is_machine_metric(key)) {
            writeln!(out, "| `{key}` | {:.6} | {:.6} | {} |", curve.first, curve.last, curve.step)?;
        }
        Ok(())
    }
}

/// A value; for an accuracy with a known number of pairs also its 95 % interval.
fn with_interval(name: &str, value: f64, pairs: Option<f64>) -> String {
    match pairs.filter(|n| name == "heldout_accuracy" && *n > 0.0) {
        Some(n) => {
            let (low, high) = wilson((value * n).round() as usize, n as usize);
            format!("{value:.3} (95 % interval {low:.3} to {high:.3}, {n:.0} pairs)")
        }
        None => format!("{value:.4}"),
    }
}

fn put_counts(out: &mut String, before: &str, value: &Value) -> std::fmt::Result {
    for (key, value) in value.as_object().into_iter().flatten() {
        let key = format!("{before}{}", key.replace('_', " "));
        match value {
            Value::Object(_) => put_counts(out, &format!("{key}, "), value)?,
            Value::Number(n) if n.is_f64() => writeln!(out, "| {key} | {:.3} |", n.as_f64().unwrap_or(0.0))?,
            Value::Null => writeln!(out, "| {key} | not known |")?,
            other => writeln!(out, "| {key} | {other} |")?,
        }
    }
    Ok(())
}

/// A value without addresses, because a card may be published.
fn without_addresses(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let entries = map.iter().filter(|(key, _)| *key != "url");
            Value::Object(entries.map(|(key, value)| (key.clone(), without_addresses(value))).collect::<Map<_, _>>())
        }
        Value::Array(items) => items.iter().map(without_addresses).collect(),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_card_contains_arguments_and_metrics_and_no_addresses() {
        let curve = |first, last| Curve { first, last, step: 7 };
        let curves = Curves::from([
            ("heldout_accuracy".to_owned(), curve(0.5, 0.75)),
            ("heldout_pairs".to_owned(), curve(40.0, 40.0)),
            ("kl".to_owned(), curve(0.0, 1.25)),
            ("tokens_per_second".to_owned(), curve(1.0, 2.0)),
        ]);
        let (args, defaults) = (
            json!({"epochs": 3, "beta": 0.1, "reward": {"kind": "http", "url": "http://inside:1/x"}}),
            json!({"epochs": 1, "beta": 0.1, "reward": null}),
        );
        let (data, report) =
            (json!({"comparisons": "abc"}), json!({"rows": {"train": 9}, "labelers": null, "share": 0.5}));
        let card = Card {
            recipe: "dpo",
            parent: "base",
            steps: 7,
            args: &args,
            defaults: &defaults,
            data: &data,
            report: Some(&report),
            curves: &curves,
            findings: &["It is not better than the length.".to_owned()],
        };
        let text = card.text();
        for part in [
            "# A model of the recipe `dpo`",
            "Made from `base` in 7 steps",
            "| `epochs` | `3` |",
            "| `reward` | `{\"kind\":\"http\"}` |",
            "| `comparisons` | `abc` |",
            "| rows, train | 9 |",
            "| labelers | not known |",
            // Wilson's interval of 30 in 40.
            "| heldout accuracy | 0.750 (95 % interval 0.598 to 0.858, 40 pairs) |",
            "**It is not better than the length.**",
            "| KL to the start policy, nats per sequence | 0.0000 | 1.2500 |",
            "| `kl` | 0.000000 | 1.250000 | 7 |",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert!(!text.contains("inside") && !text.contains("`beta`") && !text.contains("tokens_per_second"), "{text}");
    }
}

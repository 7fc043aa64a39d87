//! The report of a run: report.html (self-contained) and report.md with the same figures.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use super::state::curves;
use super::{InstructGptArgs, PipelineState, chart};

/// The curves of a step that are shown, in this order, where they exist.
const CURVES: [(&str, &[&str]); 3] = [
    ("sft", &["loss", "heldout_loss"]),
    ("reward", &["loss", "accuracy", "heldout_accuracy"]),
    ("ppo", &["reward", "kl", "entropy", "response_length", "policy_loss", "value_loss", "ptx_loss"]),
];

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;\
color:#1d2226;background:#fffefb}table{border-collapse:collapse;width:100%;display:block;overflow-x:auto}\
th,td{border-bottom:1px solid #d9d6cc;padding:.35rem .6rem;text-align:left;vertical-align:top}\
figure{display:inline-block;width:min(100%,360px);margin:.4rem}figcaption{font-weight:600}svg{width:100%}\
svg text{font-size:11px;fill:#565e66}.axis{fill:none;stroke:#8d8f8c}.curve{fill:none;stroke:#0d5c63;stroke-width:2}\
.dot{fill:#0d5c63}pre{white-space:pre-wrap;margin:0;font:inherit}\
@media(prefers-color-scheme:dark){body{color:#e6e4de;background:#15181a}th,td{border-color:#33393d}\
svg text{fill:#a3aaaf}.curve{stroke:#78c4c0}.dot{fill:#78c4c0}}";

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Text inside a Markdown table cell.
fn cell(text: &str) -> String {
    escape(text).replace('|', "\\|").replace(['\n', '\r'], " ")
}

fn number(value: &Value) -> String {
    match value.as_f64() {
        Some(n) if n.fract() == 0.0 && n.abs() < 1e15 => format!("{n}"),
        Some(n) => format!("{n:.4}"),
        None => value.as_str().map_or_else(|| value.to_string(), str::to_owned),
    }
}

/// A table in both forms.
struct Table {
    head: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    fn markdown(&self) -> String {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let head: Vec<String> = self.head.iter().map(|h| (*h).to_owned()).collect();
        let mut out = line(&head) + &line(&vec!["---".to_owned(); head.len()]);
        out.extend(self.rows.iter().map(|row| line(&row.iter().map(|c| cell(c)).collect::<Vec<_>>())));
        out
    }

    fn html(&self) -> String {
        let mut out = String::from("<table><thead><tr>");
        out.extend(self.head.iter().map(|h| format!("<th scope=\"col\">{}</th>", escape(h))));
        out.push_str("</tr></thead><tbody>");
        for row in &self.rows {
            out.push_str("<tr>");
            out.extend(row.iter().map(|c| format!("<td><pre>{}</pre></td>", escape(c))));
            out.push_str("</tr>");
        }
        out + "</tbody></table>"
    }
}

/// Writes both files; returns the page's path.
pub fn write(work: &Path, args: &InstructGptArgs, state: &PipelineState) -> Result<PathBuf> {
    let measured = state.result("measure").context("nothing was measured")?;
    let (steps, stages, samples) = (steps(state), stages(measured), samples(measured));
    let about = format!(
        "From {}: demonstrations, supervised fine-tuning, comparisons, a reward model, PPO{}. Seed {}. \
         Rewards are those of this run's own reward model on {} sampled completions per model of at most {} tokens \
         ({} of the prompts are of the held-out side); they say what was optimised, not what people would say.",
        args.model,
        if args.ppo.get("ptx_coef").and_then(Value::as_f64).is_some_and(|c| c > 0.0) { "-ptx" } else { "" },
        args.seed,
        measured["stages"][0]["n"],
        measured["max_tokens"],
        measured["heldout_prompts"]
    );
    let mut md = format!("# InstructGPT run\n\n{about}\n\n## Rewards\n\n{}\n", stages.markdown());
    let mut html = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>InstructGPT run</title><style>{STYLE}</style></head><body>\
         <h1>InstructGPT run</h1><p>{}</p><h2>Rewards</h2>{}<h2>Curves</h2>",
        escape(&about),
        stages.html()
    );
    md.push_str("## Curves\n\n| step | curve | first | last | points |\n|---|---|---|---|---|\n");
    for (step, names) in CURVES {
        let all = curves(&work.join(step).join("metrics.jsonl"))?;
        let shown = names.iter().filter_map(|name| all.get(*name).map(|points| (*name, points)));
        let _ = write!(html, "<h3>{step}</h3>");
        for (name, points) in shown {
            html.push_str(&chart::svg(name, points));
            let ends = (points.values().next().unwrap_or(&f64::NAN), points.values().next_back().unwrap_or(&f64::NAN));
            // Writing to a string cannot fail.
            let _ = writeln!(md, "| {step} | {name} | {:.4} | {:.4} | {} |", ends.0, ends.1, points.len());
        }
    }
    let _ = write!(md, "\n## Completions, greedy\n\n{}\n## Steps\n\n{}", samples.markdown(), steps.markdown());
    let _ = write!(html, "<h2>Completions, greedy</h2>{}<h2>Steps</h2>{}</body></html>", samples.html(), steps.html());
    let page = work.join("report.html");
    std::fs::write(work.join("report.md"), md).context("writing report.md")?;
    std::fs::write(&page, html).context("writing report.html")?;
    Ok(page)
}

fn steps(state: &PipelineState) -> Table {
    let mut rows = Vec::new();
    for name in ["demonstrations", "sft", "comparisons", "prompts", "reward", "ppo", "measure"] {
        let Some(record) = state.steps.get(name) else { continue };
        let figures = match (&record.result, name) {
            (Some(Value::Object(map)), n) if n != "measure" => {
                let plain = map.iter().filter(|(_, v)| v.is_number());
                plain.map(|(k, v)| format!("{k} {}", number(v))).collect::<Vec<_>>().join(", ")
            }
            _ => String::new(),
        };
        rows.push(vec![name.to_owned(), format!("{:.1}", record.seconds), figures]);
    }
    Table { head: vec!["step", "seconds", "figures"], rows }
}

fn stages(measured: &Value) -> Table {
    let rows = measured["stages"].as_array().into_iter().flatten();
    let rows = rows.map(|s| {
        vec![
            number(&s["model"]),
            number(&s["mean_reward"]),
            number(&s["standard_error"]),
            number(&s["mean_words"]),
            number(&s["n"]),
        ]
    });
    Table { head: vec!["model", "mean reward", "standard error", "words", "completions"], rows: rows.collect() }
}

fn samples(measured: &Value) -> Table {
    let rows = measured["samples"].as_array().into_iter().flatten();
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let rows = rows.map(|s| ["prompt", "base", "sft", "policy"].map(|k| text(&s[k])).to_vec());
    Table { head: vec!["prompt", "before", "after SFT", "after PPO"], rows: rows.collect() }
}

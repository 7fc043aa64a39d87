//! Instruction tuning over a mixture: several tasks, each a file of rows and templates that turn a row into a request
//! and its answer, sampled by weight (FLAN, arXiv 2109.01652).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::{DataError, LineError};
use super::lines::Lines;
use super::records::Written;
use super::source::Source;
use crate::domain::{Message, PromptInput};
use crate::prompt::Template;

/// A mixture file (JSON).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mixture {
    pub tasks: Vec<Task>,
    /// Total number of demonstrations; the tasks' number of rows if absent.
    #[serde(default)]
    pub size: Option<usize>,
    /// Requests as a chat message of the user; false = as raw text.
    #[serde(default = "yes")]
    pub chat: bool,
}

fn yes() -> bool {
    true
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    pub name: String,
    /// JSON lines; relative to the mixture file.
    pub file: PathBuf,
    /// Share of the mixture, relative to the other tasks.
    #[serde(default = "one")]
    pub weight: f64,
    /// At least one; each row uses one of them.
    pub templates: Vec<Template>,
    /// field → (value → word): replacements of values in templates, such as label names.
    #[serde(default)]
    pub words: BTreeMap<String, BTreeMap<String, String>>,
}

fn one() -> f64 {
    1.0
}

type Rows = Vec<BTreeMap<String, String>>;

/// The demonstrations of a mixture file. `order(i, n)` gives task i an order of its n rows, `choice(i, k, n)`
/// its k-th choice among n templates: the caller's randomness, so that the result is a function of its seed.
///
/// # Errors
/// Naming the file and the line, or the task.
pub fn read(
    path: &Path,
    order: impl Fn(usize, usize) -> Vec<usize>,
    choice: impl Fn(usize, usize, usize) -> usize,
) -> Result<Vec<Written>, DataError> {
    let bad = |message: String| DataError::Line { path: path.to_owned(), error: LineError::fatal(0, message) };
    let text = std::fs::read(path).map_err(|source| DataError::Io { path: path.to_owned(), source })?;
    let mixture: Mixture = serde_json::from_slice(&text).map_err(|e| bad(format!("not a mixture: {e}")))?;
    if mixture.tasks.is_empty() {
        return Err(DataError::Empty { path: path.to_owned(), what: "task" });
    }
    let mut tasks: Vec<(&Task, Rows)> = Vec::new();
    for task in &mixture.tasks {
        if task.templates.is_empty() {
            return Err(bad(format!("task {} has no template", task.name)));
        }
        if !(task.weight.is_finite() && task.weight > 0.0) {
            return Err(bad(format!("task {} has the weight {}", task.name, task.weight)));
        }
        let file = path.parent().unwrap_or(Path::new(".")).join(&task.file);
        tasks.push((task, rows(&file, task)?));
    }
    let size = mixture.size.unwrap_or_else(|| tasks.iter().map(|(_, rows)| rows.len()).sum());
    let all: f64 = mixture.tasks.iter().map(|t| t.weight).sum();
    let mut out = Vec::with_capacity(size);
    for (i, (task, rows)) in tasks.iter().enumerate() {
        let n = (size as f64 * task.weight / all).round() as usize;
        let rows_in_order = order(i, rows.len());
        for k in 0..n {
            let row = &rows[rows_in_order[k % rows.len()]];
            let template = &task.templates[choice(i, k, task.templates.len())];
            let (prompt, completion) = template.fill(row).map_err(|m| bad(format!("task {}: {m}", task.name)))?;
            let prompt = match mixture.chat {
                true => PromptInput::Chat(vec![Message { role: "user".into(), content: prompt }]),
                false => PromptInput::Text(prompt),
            };
            out.push(Written { prompt_id: None, prompt, completion, corrects: None, labeler: None, project: None });
        }
    }
    Ok(out)
}

/// Rows as text by field, with values replaced by words.
fn rows(path: &Path, task: &Task) -> Result<Rows, DataError> {
    let mut rows = Rows::new();
    for line in Lines::new(Source::lines(path)?) {
        let row = line.and_then(|(line, text)| row(&text, task).map_err(|message| LineError::new(line, message)));
        rows.push(row.map_err(|error| DataError::Line { path: path.to_owned(), error })?);
    }
    if rows.is_empty() {
        return Err(DataError::Empty { path: path.to_owned(), what: "row" });
    }
    Ok(rows)
}

fn row(text: &str, task: &Task) -> Result<BTreeMap<String, String>, String> {
    let value: Value = serde_json::from_str(text).map_err(|e| super::fields::not_json(&e))?;
    let Value::Object(fields) = value else { return Err("must be a JSON object".into()) };
    let mut row = BTreeMap::new();
    for (name, value) in fields {
        let text = match value {
            Value::String(text) => text,
            Value::Number(_) | Value::Bool(_) => value.to_string(),
            _ => continue,
        };
        let word = match task.words.get(&name) {
            Some(words) => words.get(&text).ok_or(format!("`words` has no entry for `{name}` = {text:?}"))?.clone(),
            None => text,
        };
        row.insert(name, word);
    }
    Ok(row)
}

//! Instruction tuning over a mixture: several tasks, each a file of rows and templates that turn a row into a request
//! and its answer, sampled by weight (FLAN, arXiv 2109.01652).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
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

/// The fields of a row as text.
type Row = BTreeMap<String, String>;

/// A mixture whose rows are in a file without a name, so that memory does not grow with their texts.
pub struct Rows {
    path: PathBuf,
    chat: bool,
    tasks: Vec<(Task, RowFile)>,
    /// For each demonstration its task and row, and the template for it.
    drawn: Vec<(u32, u32, u32)>,
}

/// Reads a mixture file and the rows of its tasks. `order(i, n)` gives task i an order of its n rows, `choice(i, k, n)`
/// its k-th choice among n templates: the caller's randomness, so that the result is a function of its seed. The rows are
/// kept in a file on the file system of `directory`, which is created if it is missing.
///
/// # Errors
/// Naming the file and the line, or the task.
pub fn read(
    path: &Path,
    directory: &Path,
    order: impl Fn(usize, usize) -> Vec<usize>,
    choice: impl Fn(usize, usize, usize) -> usize,
) -> Result<Rows, DataError> {
    let text = std::fs::read(path).map_err(|source| DataError::Io { path: path.to_owned(), source })?;
    let mixture: Mixture = serde_json::from_slice(&text).map_err(|e| bad(path, format!("not a mixture: {e}")))?;
    if mixture.tasks.is_empty() {
        return Err(DataError::Empty { path: path.to_owned(), what: "task" });
    }
    let all: f64 = mixture.tasks.iter().map(|t| t.weight).sum();
    let mut tasks = Vec::new();
    for task in mixture.tasks {
        if task.templates.is_empty() {
            return Err(bad(path, format!("task {} has no template", task.name)));
        }
        if !(task.weight.is_finite() && task.weight > 0.0) {
            return Err(bad(path, format!("task {} has the weight {}", task.name, task.weight)));
        }
        let file = path.parent().unwrap_or(Path::new(".")).join(&task.file);
        let rows = RowFile::read(&file, &task, directory)?;
        tasks.push((task, rows));
    }
    let size = mixture.size.unwrap_or_else(|| tasks.iter().map(|(_, rows)| rows.ends.len()).sum());
    let mut drawn = Vec::with_capacity(size);
    for (i, (task, rows)) in tasks.iter().enumerate() {
        let n = (size as f64 * task.weight / all).round() as usize;
        let in_order = order(i, rows.ends.len());
        drawn.extend((0..n).map(|k| {
            let template = choice(i, k, task.templates.len());
            (i as u32, in_order[k % in_order.len()] as u32, template as u32)
        }));
    }
    Ok(Rows { path: path.to_owned(), chat: mixture.chat, tasks, drawn })
}

fn bad(path: &Path, message: String) -> DataError {
    DataError::Line { path: path.to_owned(), error: LineError::fatal(0, message) }
}

impl Rows {
    /// Number of demonstrations.
    pub fn len(&self) -> usize {
        self.drawn.len()
    }

    pub fn is_empty(&self) -> bool {
        self.drawn.is_empty()
    }

    /// The demonstrations, one in memory at a time.
    pub fn demonstrations(&self) -> impl Iterator<Item = Result<Written, DataError>> {
        self.drawn.iter().map(|&(task, row, template)| {
            let (task, rows) = &self.tasks[task as usize];
            let row = rows.get(row as usize).map_err(|source| DataError::Io { path: self.path.clone(), source })?;
            let filled = task.templates[template as usize].fill(&row);
            let (prompt, completion) = filled.map_err(|m| bad(&self.path, format!("task {}: {m}", task.name)))?;
            let prompt = match self.chat {
                true => PromptInput::Chat(vec![Message { role: "user".into(), content: prompt }]),
                false => PromptInput::Text(prompt),
            };
            Ok(Written { prompt_id: None, prompt, completion, corrects: None, labeler: None, project: None })
        })
    }
}

/// The rows of a task, with values replaced by words, as JSON in a file without a name.
struct RowFile {
    file: File,
    /// Where each row ends, in bytes.
    ends: Vec<u64>,
}

impl RowFile {
    fn read(path: &Path, task: &Task, directory: &Path) -> Result<Self, DataError> {
        let failed = |source| DataError::Io { path: directory.to_owned(), source };
        std::fs::create_dir_all(directory).map_err(failed)?;
        let mut file = BufWriter::new(tempfile::tempfile_in(directory).map_err(failed)?);
        let (mut ends, mut at) = (Vec::new(), 0);
        for line in Lines::new(Source::lines(path)?) {
            let row = line.and_then(|(line, text)| row(&text, task).map_err(|message| LineError::new(line, message)));
            let row = row.map_err(|error| DataError::Line { path: path.to_owned(), error })?;
            let row = serde_json::to_vec(&row).map_err(|error| failed(error.into()))?;
            file.write_all(&row).map_err(failed)?;
            at += row.len() as u64;
            ends.push(at);
        }
        if ends.is_empty() {
            return Err(DataError::Empty { path: path.to_owned(), what: "row" });
        }
        let file = file.into_inner().map_err(|error| failed(error.into_error()))?;
        Ok(Self { file, ends })
    }

    fn get(&self, index: usize) -> std::io::Result<Row> {
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        let mut bytes = vec![0; (self.ends[index] - start) as usize];
        self.file.read_exact_at(&mut bytes, start)?;
        Ok(serde_json::from_slice(&bytes)?)
    }
}

fn row(text: &str, task: &Task) -> Result<Row, String> {
    let value: Value = serde_json::from_str(text).map_err(|e| super::fields::not_json(&e))?;
    let Value::Object(fields) = value else { return Err("must be a JSON object".into()) };
    let mut row = Row::new();
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

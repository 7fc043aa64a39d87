//! Freezes a job's training data: rows of the store become JSONL files in the job's directory, and a dataset version
//! records which judgments they hold. A job that is resumed reads the same files.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::lacking::{NO_DEMONSTRATIONS, no_feedback, no_prompts, no_rankings};
use super::learned::{FeedbackPages, Rankings, learned_demonstrations, learned_prompts};
use super::line_file::LineFile;
use super::queue::{JobArgs, data_of, file_names, needs_model, takes};
use crate::artifacts::{ArtifactError, Artifacts};
use crate::data::{PromptRecord, Written, pairs, thumbs};
use crate::domain::files::write_atomically;
use crate::domain::*;
use crate::store::{RankedFilter, Store, StoreError, find_version, learns_from_requests};
use crate::train::Recipe;
use crate::train::args::roles;

/// Why a job cannot start.
#[derive(Debug, thiserror::Error)]
pub(super) enum PrepareError {
    /// A permanent error: a retry would give it again.
    #[error("{0}")]
    Job(String),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot write the job's files: {0}")]
    Io(#[from] std::io::Error),
    /// A transient error: a model cannot be downloaded now.
    #[error("{0}")]
    Later(String),
}

impl From<ArtifactError> for PrepareError {
    fn from(error: ArtifactError) -> Self {
        match error {
            ArtifactError::Store(error) => Self::Store(error),
            passing if passing.is_transient() => Self::Later(passing.to_string()),
            lasting => Self::Job(lasting.to_string()),
        }
    }
}

/// One file of data, and how the dataset version describes it.
struct Frozen {
    path: PathBuf,
    sha256: String,
    n_sets: i64,
    n_pairs: i64,
}

impl Frozen {
    /// A complete file of single texts.
    fn of_lines(file: LineFile, path: PathBuf) -> Result<Self, PrepareError> {
        let n_sets = file.lines();
        Ok(Self { sha256: file.finish(&path)?, path, n_sets, n_pairs: 0 })
    }
}

/// Thumbs on single completions, one line per completion.
async fn feedback(store: &Store, filter: &RankedFilter, path: PathBuf) -> Result<Frozen, PrepareError> {
    let mut file = LineFile::create(&path)?;
    let (mut pages, mut undecided) = (FeedbackPages::new(store, filter, filter.as_of), 0);
    while let Some(page) = pages.next().await? {
        let (lines, without) = thumbs(&page.records());
        undecided += without;
        lines.iter().try_for_each(|line| file.push(line))?;
    }
    if file.lines() == 0 {
        return Err(PrepareError::Job(no_feedback(filter, undecided)));
    }
    tracing::debug!(undecided, "completions without a majority of thumbs are left out");
    Frozen::of_lines(file, path)
}

/// The rankings that the filter finds.
async fn comparisons(store: &Store, filter: &RankedFilter, path: PathBuf) -> Result<Frozen, PrepareError> {
    let (mut file, mut n_pairs) = (LineFile::create(&path)?, 0);
    let mut pages = Rankings::new(store, filter).await?;
    while let Some(page) = pages.next().await? {
        for line in page {
            file.push(&line)?;
            n_pairs += pairs(&line.completions).len() as i64;
        }
    }
    if file.lines() == 0 {
        return Err(PrepareError::Job(no_rankings(filter)));
    }
    Ok(Frozen { n_pairs, ..Frozen::of_lines(file, path)? })
}

/// Ideal answers of people.
async fn demonstrations(store: &Store, without_requests: bool, path: PathBuf) -> Result<Frozen, PrepareError> {
    let (mut file, mut after) = (LineFile::create(&path)?, None);
    while let Some(page) = learned_demonstrations(store, &mut after, without_requests).await? {
        for (prompt, completion) in page {
            file.push(&Written {
                prompt_id: Some(prompt.id.to_string()),
                prompt: prompt.messages.into(),
                completion: completion.text,
                corrects: None,
                labeler: None,
                project: None,
            })?;
        }
    }
    if file.lines() == 0 {
        return Err(PrepareError::Job(NO_DEMONSTRATIONS.to_owned()));
    }
    Frozen::of_lines(file, path)
}

/// Prompts on the training side, oldest first.
async fn prompts(store: &Store, without_requests: bool, path: PathBuf) -> Result<Frozen, PrepareError> {
    let (mut file, mut after) = (LineFile::create(&path)?, None);
    while let Some(page) = learned_prompts(store, &mut after, without_requests).await? {
        for p in page {
            let prompt_id = Some(p.id.to_string());
            file.push(&PromptRecord {
                prompt_id,
                prompt: p.messages.into(),
                tags: p.tags,
                lang: p.lang,
                answer: p.answer,
                project: None,
            })?;
        }
    }
    if file.lines() == 0 {
        let message = no_prompts(store, without_requests).await?;
        return Err(PrepareError::Job(message));
    }
    Frozen::of_lines(file, path)
}

/// Writes the stored data of one kind (`comparisons`, `demonstrations`, `feedback` or `prompts`) in the format that
/// recipes read, for commands that run without a job. Requests are left out unless the operator allows their use:
/// `learn_from_requests` is the configured value, which the stored setting overrides. Returns the number of lines;
/// `None` when there are none.
///
/// # Errors
/// Errors of the store, and a file that cannot be written.
pub async fn write_stored(
    store: &Store,
    field: &str,
    path: &Path,
    learn_from_requests: bool,
) -> anyhow::Result<Option<i64>> {
    let without_requests = !learns_from_requests(store, learn_from_requests).await?;
    let filter = RankedFilter { without_requests, ..RankedFilter::default() };
    let written = match field {
        "comparisons" => comparisons(store, &filter, path.to_owned()).await,
        "demonstrations" => demonstrations(store, without_requests, path.to_owned()).await,
        "feedback" => feedback(store, &filter, path.to_owned()).await,
        _ => prompts(store, without_requests, path.to_owned()).await,
    };
    match written {
        Ok(frozen) => Ok(Some(frozen.n_sets)),
        Err(PrepareError::Job(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A job's resolved arguments and data.
pub(super) struct Prepared {
    /// The recipe's arguments, with paths in place of names.
    pub args: Map<String, Value>,
    /// Model version that training starts from; `None` for a new model.
    pub parent: Option<ModelVersion>,
    /// The dataset versions registered, by argument name.
    pub datasets: Map<String, Value>,
}

/// Puts the paths of models and data into the arguments; writes the data files that do not exist yet.
pub(super) async fn prepare(
    store: &Store,
    recipe: &Recipe,
    job_args: &JobArgs,
    files: &Artifacts,
    job_dir: &Path,
    learn_from_requests: bool,
) -> Result<Prepared, PrepareError> {
    let mut args = job_args.recipe.clone();
    // The current setting: the job may have waited in the queue.
    let learns = learns_from_requests(store, learn_from_requests).await?;
    let without_requests = job_args.filter.without_requests || !learns;
    let filter = RankedFilter { without_requests, ..job_args.filter.clone() };
    let schema = (recipe.schema)();
    let mut parent = None;
    if needs_model(&schema) || args.get("model").is_some_and(|v| !v.is_null()) {
        let version = version(store, &args, "model").await?;
        args.insert("model".into(), local(files, &version).await?);
        parent = Some(version);
    }
    corpora(&schema, &mut args, &std::path::absolute(files.data_dir())?)?;
    for (field, _) in roles::models().filter(|(field, _)| *field != "model") {
        if args.get(field).is_some_and(|v| !v.is_null()) {
            let found = version(store, &args, field).await?;
            args.insert(field.into(), local(files, &found).await?);
        }
    }
    let as_of = store.now().await?;
    let record = job_dir.join("datasets.json");
    let mut datasets: Map<String, Value> =
        std::fs::read(&record).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
    let needed: Vec<&str> = data_of(&schema, &args, job_args.gold_judgments).collect();
    // Sets to rank are frozen for their judge (`judging`).
    for field in needed.into_iter().filter(|field| *field != "sets") {
        let path = job_dir.join(format!("{field}.jsonl"));
        args.insert(field.into(), path.display().to_string().into());
        if datasets.contains_key(field) && path.exists() {
            continue;
        }
        let frozen = match field {
            "comparisons" => comparisons(store, &filter, path).await?,
            "feedback" => feedback(store, &filter, path).await?,
            "gold_comparisons" => {
                let heldout = RankedFilter { split: Some(Split::Heldout), ..filter.clone() };
                comparisons(store, &heldout, path).await?
            }
            "prompts" => prompts(store, without_requests, path).await?,
            _ => demonstrations(store, without_requests, path).await?,
        };
        let dataset = DatasetVersion {
            id: DatasetId::new(),
            name: None,
            filter: json!({"data": field, "filter": filter}),
            as_of: job_args.filter.as_of.unwrap_or(as_of),
            sha256: frozen.sha256,
            n_sets: frozen.n_sets,
            n_pairs: frozen.n_pairs,
        };
        store.datasets().put(dataset.clone()).await?;
        tracing::debug!(path = %frozen.path.display(), rows = dataset.n_sets, "data frozen");
        datasets.insert(
            field.into(),
            json!({"id": dataset.id, "sha256": dataset.sha256, "n_sets": dataset.n_sets, "n_pairs": dataset.n_pairs}),
        );
        write_atomically(&record, Value::Object(datasets.clone()).to_string().as_bytes())?;
    }
    Ok(Prepared { args, parent, datasets })
}

/// Replaces names of files in the corpora directory by their paths.
fn corpora(schema: &Value, args: &mut Map<String, Value>, data_dir: &Path) -> Result<(), PrepareError> {
    for field in roles::corpora().filter(|field| takes(schema, field)) {
        let names = file_names(args, field).map_err(|e| PrepareError::Job(e.to_string()))?;
        let mut paths = Vec::new();
        for name in names {
            let path = data_dir.join("corpora").join(&name);
            if !path.exists() {
                return Err(PrepareError::Job(format!(
                    "{field}: the file '{name}' is not in the server's corpora directory"
                )));
            }
            paths.push(Value::from(path.display().to_string()));
        }
        match args.get_mut(field) {
            Some(Value::Array(list)) => *list = paths,
            Some(value @ Value::String(_)) => *value = paths.remove(0),
            _ => {}
        }
    }
    Ok(())
}

/// The path of the version's files on this machine, as an argument.
async fn local(files: &Artifacts, version: &ModelVersion) -> Result<Value, PrepareError> {
    let path = files.checked_path(version).await?;
    Ok(std::path::absolute(&path)?.display().to_string().into())
}

pub(super) async fn version(
    store: &Store,
    args: &Map<String, Value>,
    field: &str,
) -> Result<ModelVersion, PrepareError> {
    let name = args.get(field).and_then(Value::as_str).unwrap_or_default();
    let found = find_version(store, name).await?;
    found.ok_or_else(|| PrepareError::Job(format!("{field}: the model version '{name}' no longer exists")))
}

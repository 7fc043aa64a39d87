//! Freezes a job's training data: rows of the store become JSONL files in the job's directory, and a dataset version
//! records which judgments they hold. A job that is resumed reads the same files.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::queue::{JobArgs, file_names, leaves_out, needs_model, takes, wants};
use crate::artifacts::{ArtifactError, Artifacts};
use crate::data::from_feedback::{FeedbackRecord, preferences};
use crate::data::{Comparison, PromptRecord, Thumbed, Written, pairs, thumbs};
use crate::domain::files::write_atomically;
use crate::domain::*;
use crate::store::{FeedbackFact, PromptFilter, RankedFilter, Store, StoreError, find_version, learns_from_requests};
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

/// Writes `lines` as a JSONL file atomically; returns its SHA-256.
pub(super) fn write_lines<T: Serialize>(path: &Path, lines: &[T]) -> std::io::Result<String> {
    let mut text = Vec::new();
    for line in lines {
        serde_json::to_writer(&mut text, line)?;
        text.push(b'\n');
    }
    write_atomically(path, &text)?;
    Ok(hash::of_bytes(&text))
}

/// Number of judgments in a page.
const PAGE: i64 = 500;

/// The rankings that a filter finds, page by page: people's, then those of language models if the filter asks for them,
/// and at the end those derived from applications' feedback if the filter asks for them (feedback has no labeler, so a
/// filter by labeler excludes it). Judgments made while the pages are read are not included.
pub struct Rankings<'a> {
    store: &'a Store,
    /// The filter, with the time up to which judgments count.
    filter: RankedFilter,
    /// The filter as it was given.
    as_of: Option<Micros>,
    with_labelers: bool,
    /// Names of all projects but the first, where lines have them.
    projects: HashMap<ProjectId, String>,
    /// Only judgments that were made with knowledge of the authors or the expected answer, marked as such.
    only_informed: bool,
    after: Option<JudgmentId>,
    /// Kinds of labelers that are still to be read, the next one first.
    kinds: &'static [LabelerKind],
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Judgments,
    Feedback,
    Done,
}

impl<'a> Rankings<'a> {
    /// Without an `as_of` in the filter everything stored now counts: judgments carry the clocks of the servers that
    /// took them, which need not agree with the database's.
    ///
    /// # Errors
    /// Errors of the store.
    pub async fn new(store: &'a Store, filter: &RankedFilter) -> Result<Self, StoreError> {
        let as_of = filter.as_of;
        let mut filter = filter.clone();
        if as_of.is_none() {
            filter.as_of = Some(store.now().await?.max(store.judgments().latest().await?.unwrap_or(0)));
        }
        Ok(Self {
            store,
            as_of,
            with_labelers: false,
            projects: HashMap::new(),
            only_informed: false,
            after: None,
            kinds: filter.labelers.kinds(),
            filter,
            stage: Stage::Judgments,
        })
    }

    /// Adds the labeler's id and tags to each ranking, and the project's name unless it is the first.
    ///
    /// # Errors
    /// Errors of the store.
    pub async fn for_exchange(self) -> Result<Self, StoreError> {
        let projects = project_names(self.store).await?;
        Ok(Self { with_labelers: true, projects, ..self })
    }

    /// Only the rankings that labelers gave after they had seen the authors or the expected answer and that count
    /// nowhere, marked by `knowledge`.
    pub fn only_informed(self) -> Self {
        let filter = RankedFilter { informed: true, feedback: false, ..self.filter };
        Self { only_informed: true, filter, kinds: LabelersUsed::Human.kinds(), ..self }
    }

    /// The next page, which may be empty; `None` at the end.
    ///
    /// # Errors
    /// Errors of the store.
    pub async fn next(&mut self) -> Result<Option<Vec<Comparison>>, StoreError> {
        match self.stage {
            Stage::Judgments => {
                let Some((kind, rest)) = self.kinds.split_first() else { return Ok(None) };
                let page = self.store.judgments().ranked_page(&self.filter, *kind, self.after.as_ref(), PAGE);
                let (sets, after) = page.await?;
                let has_feedback = self.filter.feedback && self.filter.labeler_id.is_none();
                if after.is_none() {
                    self.kinds = rest;
                }
                if self.kinds.is_empty() {
                    self.stage = if has_feedback { Stage::Feedback } else { Stage::Done };
                }
                self.after = after;
                let mut found = Vec::with_capacity(sets.len());
                for set in &sets {
                    let line = if self.with_labelers { Comparison::signed(set) } else { Comparison::from_ranked(set) };
                    let line = line.and_then(|line| line.ranked_as(self.filter.by_rating.as_ref()));
                    let Some(comparison) = line else { continue };
                    let knowledge = self.only_informed.then_some(set.knowledge);
                    if self.only_informed
                        && (set.knowledge == Knowledge::Blind
                            || self.store.sets().settled_by(&set.set_id).await?.as_ref() == Some(&set.labeler_id))
                    {
                        continue;
                    }
                    let by_model = self.with_labelers && *kind == LabelerKind::Model;
                    let labeler_kind = by_model.then_some(LabelerKind::Model);
                    let project = self.projects.get(&set.project_id).cloned();
                    found.push(Comparison { knowledge, labeler_kind, project, ..comparison });
                }
                Ok(Some(found))
            }
            Stage::Feedback => {
                self.stage = Stage::Done;
                self.of_feedback().await.map(Some)
            }
            Stage::Done => Ok(None),
        }
    }

    async fn of_feedback(&self) -> Result<Vec<Comparison>, StoreError> {
        let facts = self.store.feedback().facts(self.as_of, self.filter.without_requests).await?;
        Ok(preferences(&feedback_records(&facts, &self.filter)))
    }
}

/// Names of all projects but the first, as files that are exchanged between servers have them.
///
/// # Errors
/// Errors of the store.
pub async fn project_names(store: &Store) -> Result<HashMap<ProjectId, String>, StoreError> {
    let all = store.projects().list().await?.into_iter();
    Ok(all.filter(|p| !p.id.is_first()).map(|p| (p.id, p.name)).collect())
}

/// Feedback events on the prompts that the filter selects.
fn feedback_records<'f>(facts: &'f [FeedbackFact], filter: &RankedFilter) -> Vec<FeedbackRecord<'f>> {
    let fits = |p: &Prompt| {
        filter.split.is_none_or(|s| s == p.split)
            && filter.tag.as_ref().is_none_or(|t| p.tags.contains(t))
            && filter.project.as_ref().is_none_or(|id| *id == p.project_id)
    };
    let record = |f: &'f FeedbackFact| FeedbackRecord {
        prompt: &f.prompt,
        completion_id: &f.completion.id,
        text: &f.completion.text,
        kind: &f.event.kind,
        value: &f.event.value,
        // An event without an actor counts as one of a different person.
        actor: f.event.actor_hash.as_deref().unwrap_or(f.event.id.as_str()),
    };
    facts.iter().filter(|f| fits(&f.prompt)).map(record).collect()
}

/// Completions with a majority of thumbs, up or down, and the number of those without.
///
/// # Errors
/// Errors of the store.
pub(super) async fn learned_thumbs(store: &Store, filter: &RankedFilter) -> Result<(Vec<Thumbed>, usize), StoreError> {
    let facts = store.feedback().facts(filter.as_of, filter.without_requests).await?;
    Ok(thumbs(&feedback_records(&facts, filter)))
}

/// Thumbs on single completions, one line per completion.
async fn feedback(store: &Store, filter: &RankedFilter, path: PathBuf) -> Result<Frozen, PrepareError> {
    let (lines, undecided) = learned_thumbs(store, filter).await?;
    if lines.is_empty() {
        let message = match undecided {
            0 => "there are no thumbs to learn from; send some with POST /v1/feedback first".to_owned(),
            n => format!("there are no thumbs to learn from: of {n} completions as many users like as dislike them"),
        };
        return Err(PrepareError::Job(message));
    }
    tracing::debug!(undecided, "completions without a majority of thumbs are left out");
    let sha256 = write_lines(&path, &lines)?;
    Ok(Frozen { path, sha256, n_sets: lines.len() as i64, n_pairs: 0 })
}

/// Writes the rankings that the filter finds as a JSONL file atomically, a page at a time.
async fn comparisons(store: &Store, filter: &RankedFilter, path: PathBuf) -> Result<Frozen, PrepareError> {
    let partial = path.with_extension("tmp");
    let mut file = std::io::BufWriter::new(std::fs::File::create(&partial)?);
    let (mut hash, mut n_sets, mut n_pairs) = (Sha256::new(), 0, 0);
    let mut pages = Rankings::new(store, filter).await?;
    while let Some(page) = pages.next().await? {
        for line in page {
            let mut text = serde_json::to_vec(&line).map_err(std::io::Error::from)?;
            text.push(b'\n');
            hash.update(&text);
            file.write_all(&text)?;
            (n_sets, n_pairs) = (n_sets + 1, n_pairs + pairs(&line.completions).len() as i64);
        }
    }
    if n_sets == 0 {
        std::fs::remove_file(&partial)?;
        return Err(PrepareError::Job(match filter.by_rating.as_ref() {
            None => "there are no rankings to learn from; rank some completions first".to_owned(),
            Some(by) => format!(
                "there are no ratings on {:?} of the rubric {:?} to learn from; rate some completions first",
                by.dimension, by.rubric
            ),
        }));
    }
    file.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()?;
    std::fs::rename(&partial, &path)?;
    Ok(Frozen { path, sha256: hex::encode(hash.finalize()), n_sets, n_pairs })
}

/// Demonstrations that may be used for training. `without_requests` also leaves out ideal answers to requests.
///
/// # Errors
/// Errors of the store.
pub(super) async fn learned_demonstrations(
    store: &Store,
    without_requests: bool,
) -> Result<Vec<(Prompt, Completion)>, StoreError> {
    let mut all = store.demonstrations().all().await?;
    if without_requests {
        let ids: Vec<_> = all.iter().map(|(prompt, _)| prompt.id.clone()).collect();
        let asked = store.prompts().of_requests(&ids).await?;
        all.retain(|(prompt, _)| !asked.contains(&prompt.id));
    }
    Ok(all)
}

/// The next page of prompts that may be used for training, oldest first. Raw-text prompts of /v1/completions are not
/// conversations and are left out.
///
/// # Errors
/// Errors of the store.
pub(super) async fn learned_prompts(
    store: &Store,
    after: &mut Option<String>,
    without_requests: bool,
) -> Result<Option<Vec<Prompt>>, StoreError> {
    let filter =
        PromptFilter { split: Some(Split::Train), with_sets: true, without_requests, ..PromptFilter::default() };
    let mut page = store.prompts().select(&filter, after.as_deref(), 1000).await?;
    let Some(last) = page.last() else { return Ok(None) };
    *after = Some(last.id.to_string());
    page.retain(|p| p.source != "completions");
    Ok(Some(page))
}

async fn demonstrations(store: &Store, without_requests: bool, path: PathBuf) -> Result<Frozen, PrepareError> {
    let lines: Vec<Written> = learned_demonstrations(store, without_requests)
        .await?
        .into_iter()
        .map(|(prompt, completion)| Written {
            prompt_id: Some(prompt.id.to_string()),
            prompt: prompt.messages.into(),
            completion: completion.text,
            corrects: None,
            project: None,
            labeler: None,
        })
        .collect();
    if lines.is_empty() {
        return Err(PrepareError::Job("there are no demonstrations; write or import some first".into()));
    }
    let sha256 = write_lines(&path, &lines)?;
    Ok(Frozen { path, sha256, n_sets: lines.len() as i64, n_pairs: 0 })
}

/// Prompts on the training side, oldest first.
async fn prompts(store: &Store, without_requests: bool, path: PathBuf) -> Result<Frozen, PrepareError> {
    let (mut lines, mut after) = (Vec::new(), None);
    while let Some(page) = learned_prompts(store, &mut after, without_requests).await? {
        lines.extend(page.into_iter().map(|p| {
            let prompt_id = Some(p.id.to_string());
            PromptRecord {
                prompt_id,
                prompt: p.messages.into(),
                tags: p.tags,
                lang: p.lang,
                answer: p.answer,
                project: None,
            }
        }));
    }
    if lines.is_empty() {
        let asked = store.prompts().request_counts().await?.prompts;
        let message = match asked {
            n if without_requests && n > 0 => format!(
                "there are no prompts to train on: the {n} stored prompts came in as requests, and the \
                 setting privacy.learn_from_requests is off. Add or import prompts, or switch the setting on"
            ),
            _ => "there are no prompts to train on; add or import some first".to_owned(),
        };
        return Err(PrepareError::Job(message));
    }
    let sha256 = write_lines(&path, &lines)?;
    Ok(Frozen { path, sha256, n_sets: lines.len() as i64, n_pairs: 0 })
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
    for (field, needed) in roles::data() {
        let unwanted = !wants(needed, &args, job_args.gold_judgments) || leaves_out(&schema, &args, field);
        // Sets to rank are frozen for their judge (`judging`).
        if unwanted || !takes(&schema, field) || field == "sets" {
            continue;
        }
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

//! Import of prompts, rankings and demonstrations from files: read in a thread of its own under limits,
//! stored in batches, reported by line.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::sync::{Semaphore, mpsc};

use super::marks::human_completion;
use super::prompts::prompt_record;
use super::{Result, ServiceError, Services, bad_input, ratings, uncancelled};
use crate::data::limits::Limits;
use crate::data::source::{Content, Source};
use crate::data::{self, Comparison, Format, LineError, Parsed, RankedText, Record, Written};
use crate::domain::*;
use crate::service::people::Actor;
use crate::store::{ImportLine, Imported as Stored, ImportedLine, ImportedRanking, StoreError};

/// Most bad lines that are listed; further ones are only counted.
const MAX_ERRORS: usize = 100;
/// The labeler that imported rankings belong to; it exists in every store.
const IMPORTER: &str = "import";
/// Most lines of one transaction, and the approximate number of bytes.
const BATCH: usize = 256;
const BATCH_BYTES: usize = 2 << 20;
/// Most imports at a time; each may hold a few pages and batches in memory.
static RUNNING: Semaphore = Semaphore::const_new(2);

/// Report of an import. Bad lines are skipped and listed; good ones are stored.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, schemars::JsonSchema)]
#[schemars(rename = "ImportReport")]
pub struct Imported {
    pub imported: usize,
    /// Records that existed and were changed by the file: tags, language, answer of a prompt; a ranking that became a
    /// known answer.
    pub updated: usize,
    /// Records that existed already.
    pub skipped: usize,
    /// Lines that could not be used (all of them; `errors` lists the first hundred).
    pub failed: usize,
    pub errors: Vec<LineError>,
    /// Lines that were stored in part.
    pub warnings: Vec<LineError>,
    /// Unknown fields, with the lines that have them.
    pub ignored_fields: BTreeMap<String, usize>,
    /// Why the file was not read completely.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stopped: Option<String>,
}

impl Imported {
    /// Number of lines that are in the store.
    pub fn usable(&self) -> usize {
        self.imported + self.updated + self.skipped
    }

    fn fail(&mut self, error: LineError) {
        self.failed += 1;
        if self.errors.len() < MAX_ERRORS {
            self.errors.push(error);
        }
    }

    fn count(&mut self, line: usize, done: ImportedLine) {
        match done.done {
            Stored::New => self.imported += 1,
            Stored::Updated => self.updated += 1,
            Stored::Known => self.skipped += 1,
            Stored::Refused(message) => self.fail(LineError::new(line, message)),
        }
        if let Some(note) = done.note {
            self.warn(line, note);
        }
    }

    fn warn(&mut self, line: usize, message: impl Into<String>) {
        if self.warnings.len() < MAX_ERRORS {
            self.warnings.push(LineError::new(line, message));
        }
    }
}

/// Cancels the reading when the caller's request is dropped.
struct CancelOnDrop(Limits);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// Stores every usable line of `body` in `project`; without one, each line in the project that it names. Importing a file twice skips known records. When the caller's request is
/// dropped, the import ends after the current batch.
///
/// # Errors
/// `BadInput` for the name; errors of the store. Bad lines and a file that cannot be read are in the report.
pub async fn read_in(
    services: &Arc<Services>,
    by: &Actor,
    format: Format,
    name: &str,
    project: Option<&ProjectId>,
    known_answer: Option<SetKind>,
    body: Bytes,
) -> Result<Imported> {
    // The file's name only labels the source.
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let name: String = name.chars().map(|c| if fits(c) { c } else { '-' }).take(64).collect();
    if name.is_empty() {
        return Err(bad_input("name", "must not be empty"));
    }
    if known_answer.is_some() && matches!(format, Format::Demonstrations | Format::Prompts) {
        return Err(bad_input(
            "known_answer",
            format!("applies to rankings only; the format {} has none", format.as_str()),
        ));
    }
    let of_lines = match project {
        Some(_) => Vec::new(),
        None => services.store.projects().list().await?,
    };
    let target = Target { source: format!("import:{name}"), project: project.cloned(), of_lines, known_answer };
    let turn = RUNNING.acquire().await.map_err(|e| ServiceError::Internal(e.to_string()))?;
    let most = &services.config.limits;
    let limits = Limits::new(Duration::from_secs(most.import_seconds), most.import_rows, most.unpacked_bytes());
    let _cancel = CancelOnDrop(limits.clone());
    let (all, actor) = (services.clone(), by.signature());
    uncancelled(async move {
        let _turn = turn;
        let (send, mut batches) = mpsc::channel(2);
        let reader = {
            let limits = limits.clone();
            tokio::task::spawn_blocking(move || read(format, body, &limits, &send))
        };
        let mut done = Imported::default();
        while let Some(batch) = batches.recv().await {
            if let Err(message) = limits.check() {
                done.stopped.get_or_insert(message);
                break;
            }
            store(&all, batch, &target, &mut done).await?;
        }
        drop(batches);
        reader.await.map_err(|e| ServiceError::Internal(format!("reading the file failed: {e}")))?;
        let detail = json!({
            "imported": done.imported, "updated": done.updated, "skipped": done.skipped, "failed": done.failed,
            "stopped": done.stopped.is_some(), "project": target.project,
        });
        all.store.audit_log().append(&actor, "import", &target.source, detail, all.now()).await?;
        Ok(done)
    })
    .await
}

/// Where the records of a file go.
struct Target {
    /// Source of the prompts: `import:` and the file's name.
    source: String,
    /// The project of every line.
    project: Option<ProjectId>,
    /// The projects that lines may name where `project` is `None`.
    of_lines: Vec<Project>,
    /// Rankings become known answers of this kind.
    known_answer: Option<SetKind>,
}

impl Target {
    /// The prompt of a line, in the named project unless all lines go to one.
    fn prompt(&self, prompt: data::PromptInput, named: Option<&str>, now: Micros) -> Result<Prompt, String> {
        let project = match (&self.project, named) {
            (Some(project), _) => project.clone(),
            (None, None) => ProjectId::first(),
            (None, Some(name)) => self.named(name)?,
        };
        Ok(prompt_record(&project, prompt.into_messages(), &self.source, now))
    }

    fn named(&self, name: &str) -> Result<ProjectId, String> {
        match self.of_lines.iter().find(|p| p.name == name) {
            Some(found) if found.archived.is_none() => Ok(found.id.clone()),
            Some(_) => Err(format!("`project` = {name:?} is archived; restore it, or choose another for the file")),
            None => Err(format!("`project` = {name:?} is not known; add the project, or choose another for the file")),
        }
    }
}

type Batch = Vec<Result<Parsed, LineError>>;

/// Reads the whole file; ends early when the receiver of the batches is dropped.
fn read(format: Format, body: Bytes, limits: &Limits, out: &mpsc::Sender<Batch>) {
    let records = match records(format, body, limits) {
        Ok(records) => records,
        Err(error) => return drop(out.blocking_send(vec![Err(error)])),
    };
    let mut batch = Batch::new();
    let mut bytes = 0;
    for record in records {
        // Rows of Parquet are counted as they are read; a line may hold several records.
        let counted = if format == Format::Parquet { limits.check() } else { limits.row() };
        let line = record.as_ref().map_or_else(|e| e.line, |p| p.line);
        let record = counted.map_err(|message| LineError::fatal(line, message)).and(record);
        let is_last = record.as_ref().is_err_and(|e| e.fatal);
        bytes += record.as_ref().map_or(64, |p| weight(&p.record));
        batch.push(record);
        if is_last {
            break;
        }
        if batch.len() >= BATCH || bytes >= BATCH_BYTES {
            bytes = 0;
            if out.blocking_send(std::mem::take(&mut batch)).is_err() {
                return;
            }
        }
    }
    if !batch.is_empty() {
        // The receiver may be gone.
        let _ = out.blocking_send(batch);
    }
}

/// Approximate number of bytes of text in a record.
fn weight(record: &Record) -> usize {
    let prompt = |prompt: &data::PromptInput| match prompt {
        data::PromptInput::Text(text) => text.len(),
        data::PromptInput::Chat(messages) => messages.iter().map(|m| m.content.len() + 16).sum(),
    };
    match record {
        Record::Comparison(c) => prompt(&c.prompt) + c.completions.iter().map(|c| c.text.len() + 64).sum::<usize>(),
        Record::Demonstration(d) => prompt(&d.prompt) + d.completion.len(),
        Record::Prompt(p) => prompt(&p.prompt),
    }
}

type Records = Box<dyn Iterator<Item = Result<Parsed, LineError>>>;

/// The records of a file, after its content was compared with the format.
fn records(format: Format, body: Bytes, limits: &Limits) -> Result<Records, LineError> {
    let whole = |message: String| LineError::fatal(0, message);
    let source = Source::open(body.clone().reader(), limits.clone())
        .map_err(|e| whole(format!("the file cannot be unpacked: {e}")))?;
    if let Some(why) = source.content.refusal() {
        return Err(whole(format!("the file is not {}: {why}", named(format))));
    }
    match (format, source.content) {
        (_, Content::Empty) => Ok(Box::new(std::iter::empty())),
        (Format::Parquet, Content::Parquet) if source.packed => {
            // Parquet is read from its end, so it is unpacked completely.
            let mut unpacked = Vec::new();
            let mut reader = source.reader;
            reader.read_to_end(&mut unpacked).map_err(|e| whole(format!("the file cannot be unpacked: {e}")))?;
            Ok(Box::new(data::parquet::read_within(unpacked.into(), limits.clone())?))
        }
        (Format::Parquet, Content::Parquet) => Ok(Box::new(data::parquet::read_within(body, limits.clone())?)),
        (Format::Parquet, Content::Json) => Err(whole("the file is not Parquet: it looks like JSON lines".to_owned())),
        (Format::Parquet, _) => Err(whole("the file is not Parquet: it looks like text".to_owned())),
        (_, Content::Parquet) => Err(whole("the file is Parquet; import it with format=parquet".to_owned())),
        (lines, _) => Ok(Box::new(data::import_lines(lines, source.reader))),
    }
}

fn named(format: Format) -> &'static str {
    if format == Format::Parquet { "Parquet" } else { "JSON lines" }
}

/// Stores one batch in one transaction. If the database refuses it, its lines are stored one by one, so that the bad
/// line is reported and the others are kept.
async fn store(services: &Services, batch: Batch, target: &Target, done: &mut Imported) -> Result<()> {
    let now = services.now();
    let definitions = definitions(services, &batch).await?;
    let (mut numbers, mut lines) = (Vec::new(), Vec::new());
    let mut bad = Vec::new();
    for parsed in batch {
        let Parsed { line, record, ignored } = match parsed {
            Ok(parsed) => parsed,
            Err(error) => {
                bad.push(error);
                continue;
            }
        };
        for field in ignored.into_iter().collect::<BTreeSet<_>>() {
            // Many different unknown fields must not fill the report.
            if done.ignored_fields.len() < MAX_ERRORS || done.ignored_fields.contains_key(&field) {
                *done.ignored_fields.entry(field).or_default() += 1;
            }
        }
        match as_rows(record, target, now, &definitions) {
            Ok((row, note)) => {
                if let Some(note) = note {
                    done.warn(line, note);
                }
                numbers.push(line);
                lines.push(row);
            }
            Err(message) => bad.push(LineError::new(line, message)),
        }
    }
    let lines = Arc::new(lines);
    let mut stored = Vec::new();
    if !lines.is_empty() {
        match services.store.judgments().import(lines.clone()).await {
            Ok(all) => stored = all,
            Err(StoreError::Conflict(_)) => {
                for line in lines.iter() {
                    stored.push(match services.store.judgments().import(Arc::new(vec![line.clone()])).await {
                        Ok(one) => one.into_iter().next().unwrap_or(Stored::Known.into()),
                        Err(StoreError::Conflict(message)) => Stored::Refused(message).into(),
                        Err(e) => return Err(e.into()),
                    });
                }
            }
            Err(e) => return Err(e.into()),
        }
    }
    // Errors in the order of the lines.
    let mut bad = bad.into_iter().peekable();
    for (line, one) in numbers.into_iter().zip(stored) {
        while let Some(error) = bad.next_if(|e| e.line < line) {
            fail(done, error);
        }
        done.count(line, one);
    }
    bad.for_each(|error| fail(done, error));
    Ok(())
}

fn fail(done: &mut Imported, error: LineError) {
    if error.fatal {
        done.stopped = Some(error.to_string());
    }
    done.fail(error);
}

/// A record as rows of the store, and the parts of it that are not stored.
fn as_rows(
    record: Record,
    target: &Target,
    now: Micros,
    definitions: &Definitions,
) -> Result<(ImportLine, Option<String>), String> {
    let named = |name: String| Labeler { active: false, ..Labeler::new(name.clone().into(), name, Role::Labeler, now) };
    match record {
        Record::Comparison(comparison) => {
            comparison.check()?;
            let (ranking, note) = ranking(comparison, target, now, named, definitions)?;
            Ok((ImportLine::Ranking(Box::new(ranking)), note))
        }
        Record::Demonstration(Written { prompt, completion, labeler, project, .. }) => {
            if completion.trim().is_empty() {
                return Err("the completion is empty; remove the line or write a completion".to_owned());
            }
            let prompt = target.prompt(prompt, project.as_deref(), now)?;
            let completion = human_completion(prompt.id.clone(), completion, now);
            let labeler = named(labeler.unwrap_or_else(|| IMPORTER.to_owned()));
            Ok((ImportLine::Demonstration { prompt, completion, labeler }, None))
        }
        Record::Prompt(record) => {
            let mut prompt = target.prompt(record.prompt, record.project.as_deref(), now)?;
            (prompt.tags, prompt.lang, prompt.answer) = (record.tags, record.lang, record.answer);
            Ok((ImportLine::Prompt(prompt), None))
        }
    }
}

fn ranking(
    comparison: Comparison,
    target: &Target,
    now: Micros,
    named: impl Fn(String) -> Labeler,
    definitions: &Definitions,
) -> Result<(ImportedRanking, Option<String>), String> {
    if comparison.labeler_kind == Some(LabelerKind::Model) {
        return Err("is by a language model (`labeler_kind`); a file can only bring people's rankings".to_owned());
    }
    let Comparison { prompt, completions, strength, split, labeler, project, knowledge, explanation, rubric, .. } =
        comparison;
    let known_answer = target.known_answer;
    let explanation = explanation.filter(|text| !text.trim().is_empty());
    let mut prompt = target.prompt(prompt, project.as_deref(), now)?;
    prompt.split = split.unwrap_or(prompt.split);
    // The key of a ranking in earlier versions: its prompt, texts and tiers in their order.
    let mut content = Sha256::new();
    content.update(prompt.content_hash.as_bytes());
    for RankedText { text, tier, .. } in &completions {
        content.update((text.len() as u64).to_le_bytes());
        content.update(text.as_bytes());
        content.update(tier.to_le_bytes());
    }
    let written: Vec<Completion> = completions
        .iter()
        .map(|c| Completion {
            origin: CompletionOrigin::Import,
            ..human_completion(prompt.id.clone(), c.text.clone(), now)
        })
        .collect();
    let set = ComparisonSet {
        id: SetId::new(),
        prompt_id: prompt.id.clone(),
        kind: SetKind::Normal,
        target_overlap: 1,
        selection_policy: "import".to_owned(),
        selection_score: None,
        status: SetStatus::Done,
        completion_ids: written.iter().map(|c| c.id.clone()).collect(),
        created: now,
    };
    let items = written.iter().zip(&completions).enumerate().map(|(i, (written, ranked))| JudgmentItem {
        completion_id: written.id.clone(),
        tier: ranked.tier,
        shown_position: i as i64,
        rating: None,
    });
    let ratings = match &rubric {
        None => Vec::new(),
        Some(version) => line_ratings(version, &completions, &set.completion_ids, definitions)?,
    };
    let spans = written.iter().zip(&completions).flat_map(|(written, ranked)| {
        ranked.spans.iter().cloned().map(move |TextSpan { start, end, note }| Span {
            completion_id: written.id.clone(),
            start,
            end,
            note,
        })
    });
    let is_pair = written.len() == 2;
    let note = if strength.is_some() && !is_pair {
        Some("`strength` is kept for pairs only, and this ranking has more answers".to_owned())
    } else if explanation.is_some() && known_answer.is_none() {
        Some("`explanation` is kept for known answers only, and this is a ranking".to_owned())
    } else if known_answer.is_some() && !ratings.is_empty() {
        Some("`ratings` are kept for rankings only, and this is a known answer".to_owned())
    } else {
        None
    };
    let judgment = Judgment {
        id: JudgmentId::new(),
        assignment_id: None,
        set_id: set.id.clone(),
        labeler_id: IMPORTER.into(),
        revision: 1,
        supersedes_id: None,
        outcome: Outcome::Ranked,
        strength: strength.filter(|_| is_pair),
        rationale: None,
        active_ms: 0,
        wall_ms: 0,
        guideline_version: None,
        rubric_version: rubric,
        idempotency_key: format!("import:{}", hex::encode(content.finalize())),
        items: items.collect(),
        flags: Vec::new(),
        ratings,
        spans: spans.collect(),
        created: now,
        knowledge: knowledge.unwrap_or(Knowledge::Blind),
    };
    let has_split = split.is_some();
    let labeler = labeler.map(named);
    let completions = written;
    Ok((ImportedRanking { prompt, has_split, completions, set, judgment, labeler, known_answer, explanation }, note))
}

/// Stored rubrics by version.
type Definitions = BTreeMap<String, RubricDefinition>;

/// The rubrics that ratings of a batch may be by; none are read where no line has any.
async fn definitions(services: &Services, batch: &[Result<Parsed, LineError>]) -> Result<Definitions> {
    let is_rated = |parsed: &Parsed| matches!(&parsed.record, Record::Comparison(c) if c.rubric.is_some());
    if !batch.iter().flatten().any(is_rated) {
        return Ok(Definitions::new());
    }
    let stored = services.store.rubrics().list().await?;
    Ok(stored.into_iter().map(|v| (v.rubric.version, v.rubric.definition)).collect())
}

/// A line's ratings on the completions that it becomes.
fn line_ratings(
    version: &str,
    completions: &[RankedText],
    ids: &[CompletionId],
    definitions: &Definitions,
) -> Result<Vec<Rating>, String> {
    let definition = definitions.get(version).ok_or_else(|| {
        format!(
            "the ratings are by the rubric {version:?}, which is not stored here; store it first: POST /admin/rubrics"
        )
    })?;
    let of_one = |(completion, id): (&RankedText, &CompletionId)| {
        let ratings = completion.ratings.clone().into_iter();
        let id = id.clone();
        ratings.map(move |(dimension, value)| Rating { completion_id: id.clone(), dimension, value })
    };
    let mut ratings: Vec<Rating> = completions.iter().zip(ids).flat_map(of_one).collect();
    ratings::check_values(&mut ratings, definition, ids).map_err(|e| e.to_string())?;
    Ok(ratings)
}

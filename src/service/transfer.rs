//! Import and export of prompts, rankings and demonstrations as JSON lines or Parquet.

use std::sync::Arc;

use serde_json::json;
use sha2::{Digest, Sha256};

use super::label::human_completion;
use super::prompts::prompt_record;
use super::{Result, ServiceError, Services, bad_input, datasets, to_the_end};
use crate::data::{self, Comparison, Format, LineError, PromptInput, RankedText, Record, Written, export, import};
use crate::domain::*;
use crate::jobs::materialise::rankings;
use crate::service::people::Actor;
use crate::store::{RankedFilter, StoreError};

/// Bad lines beyond these are only counted.
const MAX_ERRORS: usize = 100;
/// The labeler that imported rankings belong to; it exists in every store.
const IMPORTER: &str = "import";

/// What an import did. Bad lines are skipped and named; good ones stay.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Imported {
    pub imported: usize,
    /// Known already.
    pub skipped: usize,
    /// Lines that could not be used (all of them; `errors` lists the first hundred).
    pub failed: usize,
    pub errors: Vec<LineError>,
}

/// Stores every line of `body`. Importing the same file twice skips what is known.
///
/// # Errors
/// `BadInput` for bodies without a single usable line; bad lines among good ones are listed instead.
pub async fn read_in(
    services: &Arc<Services>,
    by: &Actor,
    format: Format,
    name: &str,
    known_answer: Option<SetKind>,
    body: bytes::Bytes,
) -> Result<Imported> {
    // A file's name as people have them; it only labels the source.
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let name: String = name.chars().map(|c| if fits(c) { c } else { '-' }).take(64).collect();
    if name.is_empty() {
        return Err(bad_input("name", "must not be empty"));
    }
    let source = format!("import:{name}");
    let (all, actor) = (services.clone(), by.signature());
    let done = to_the_end(async move {
        let mut done = Imported::default();
        for (i, record) in records(format, &body)?.enumerate() {
            match record {
                Ok(record) => match store_one(&all, record, &source, known_answer).await {
                    Ok(true) => done.imported += 1,
                    Ok(false) => done.skipped += 1,
                    Err(StoreError::Conflict(message)) => done.fail(LineError { line: i + 1, message }),
                    Err(e) => return Err(e.into()),
                },
                Err(e) => done.fail(e),
            }
        }
        let detail = json!({"imported": done.imported, "skipped": done.skipped, "failed": done.failed});
        all.store.audit(&actor, "import", &source, detail, all.now()).await?;
        Ok(done)
    })
    .await?;
    match done.errors.first() {
        Some(first) if done.imported + done.skipped == 0 => Err(bad_input("body", first.to_string())),
        _ => Ok(done),
    }
}

impl Imported {
    fn fail(&mut self, error: LineError) {
        self.failed += 1;
        if self.errors.len() < MAX_ERRORS {
            self.errors.push(error);
        }
    }
}

/// The records of a file, lines or not.
fn records(format: Format, body: &bytes::Bytes) -> Result<Box<dyn Iterator<Item = Result<Record, LineError>> + Send>> {
    match format {
        Format::Parquet => {
            let rows = data::parquet::read(body.clone()).map_err(|e| bad_input("body", e.message))?;
            Ok(Box::new(rows))
        }
        lines => Ok(Box::new(import(lines, std::io::Cursor::new(body.clone())))),
    }
}

/// False when it was known already.
async fn store_one(
    services: &Services,
    record: Record,
    source: &str,
    known_answer: Option<SetKind>,
) -> Result<bool, StoreError> {
    let now = services.now();
    match record {
        Record::Comparison(comparison) => store_comparison(services, comparison, source, now, known_answer).await,
        Record::Demonstration(Written { prompt, completion, .. }) => {
            let prompt = prompt_record(prompt.into_messages(), source, now);
            let id = prompt.id.clone();
            let known = services.store.put_prompt(prompt).await?;
            if known.id != id {
                let there = services.store.list_completions(&known.id).await?;
                if there.iter().any(|c| c.origin == CompletionOrigin::Human && c.text == completion) {
                    return Ok(false);
                }
            }
            let completion = human_completion(known.id.clone(), completion, now);
            services.store.put_demonstration(known, completion, Some(IMPORTER.into()), now).await?;
            Ok(true)
        }
        Record::Prompt(record) => {
            let mut prompt = prompt_record(record.prompt.into_messages(), source, now);
            (prompt.tags, prompt.lang) = (record.tags, record.lang);
            let id = prompt.id.clone();
            Ok(services.store.put_prompt(prompt).await?.id == id)
        }
    }
}

async fn store_comparison(
    services: &Services,
    comparison: Comparison,
    source: &str,
    now: Micros,
    known_answer: Option<SetKind>,
) -> Result<bool, StoreError> {
    let Comparison { prompt, completions, strength, split, .. } = comparison;
    let mut prompt = prompt_record(prompt.into_messages(), source, now);
    if let Some(split) = split {
        prompt.split = split;
    }
    // The key is the content, so that the same ranking is one judgment however often it comes.
    let mut content = Sha256::new();
    content.update(prompt.content_hash.as_bytes());
    for RankedText { text, tier } in &completions {
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
    let judgment = Judgment {
        id: JudgmentId::new(),
        assignment_id: None,
        set_id: set.id.clone(),
        labeler_id: IMPORTER.into(),
        revision: 1,
        supersedes_id: None,
        outcome: Outcome::Ranked,
        strength: strength.filter(|_| written.len() == 2),
        rationale: None,
        active_ms: 0,
        wall_ms: 0,
        guideline_version: None,
        idempotency_key: format!("import:{}", hex::encode(content.finalize())),
        items: items.collect(),
        flags: Vec::new(),
        created: now,
        knowledge: Knowledge::Blind,
    };
    let Some(kind) = known_answer else {
        return services.store.import_set(prompt, written, set, Some(judgment)).await;
    };
    // A known answer is no judgment of anybody: labelers are measured by it.
    let tiers: Vec<_> = judgment.items.into_iter().map(|i| (i.completion_id, i.tier)).collect();
    let id = set.id.clone();
    let new = services.store.import_set(prompt, written, set, None).await?;
    if new {
        services.store.make_gold(&id, kind, &tiers, None).await?;
    }
    Ok(new)
}

/// What is to be exported.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// One side only.
    pub split: Option<Split>,
    /// The rankings of this dataset version (id or name), checked against its hash.
    pub dataset: Option<String>,
    /// Also preferences that follow from applications' feedback.
    pub feedback: bool,
}

/// Rankings that labelers gave again after they had seen the authors or the expected answer: lines of their own,
/// marked by `knowledge`, which other formats leave out.
async fn informed_lines(services: &Services, split: Option<Split>) -> Result<Vec<String>> {
    let filter = RankedFilter { split, informed: true, ..RankedFilter::default() };
    let found = services.store.ranked_sets(&filter).await?;
    let mut lines = Vec::new();
    for set in found.iter().filter(|set| set.knowledge != Knowledge::Blind) {
        if services.store.settled_by(&set.set_id).await?.as_ref() == Some(&set.labeler_id) {
            continue; // counts, and is there already
        }
        let Some(comparison) = Comparison::from_ranked(set) else { continue };
        let mut line = serde_json::to_value(&comparison).map_err(|e| ServiceError::Internal(e.to_string()))?;
        line["knowledge"] = json!(set.knowledge);
        lines.push(line.to_string());
    }
    Ok(lines)
}

/// A file of the format with everything selected.
///
/// # Errors
/// `BadInput` for formats that cannot hold it; `Conflict` when the dataset version cannot be made again.
pub async fn write_out(services: &Services, format: Format, selection: Selection) -> Result<Vec<u8>> {
    let Selection { split, dataset, feedback } = selection;
    if dataset.is_some() && (split.is_some() || feedback) {
        return Err(bad_input("dataset", "has its own split and feedback"));
    }
    let mut lines = Vec::new();
    match format {
        Format::Comparisons | Format::Trl | Format::Hh | Format::Oasst | Format::Parquet => {
            let frozen = dataset.is_some();
            let found = match dataset {
                Some(id) => datasets::contents(services, &id).await?.1,
                None => {
                    let filter = RankedFilter { split, feedback, ..RankedFilter::default() };
                    rankings(services.store.as_ref(), &filter).await?
                }
            };
            if format == Format::Parquet {
                return data::parquet::write(&found).map_err(|e| ServiceError::Internal(format!("Parquet: {e}")));
            }
            lines.extend(found.into_iter().flat_map(|c| export(format, &Record::Comparison(c))));
            if format == Format::Comparisons && !frozen {
                lines.extend(informed_lines(services, split).await?);
            }
        }
        _ if dataset.is_some() => return Err(bad_input("dataset", "holds rankings, which this format does not")),
        Format::Demonstrations => {
            for (prompt, completion) in services.store.demonstrations().await? {
                if split.is_none_or(|s| s == prompt.split) {
                    let record = Written {
                        prompt_id: Some(prompt.id.to_string()),
                        prompt: PromptInput::Chat(prompt.messages),
                        completion: completion.text,
                    };
                    lines.extend(export(format, &Record::Demonstration(record)));
                }
            }
        }
        Format::Prompts => return Err(bad_input("format", "prompts are listed by GET /v1/prompts")),
    }
    let mut out = lines.join("\n");
    if !out.is_empty() {
        out.push('\n');
    }
    Ok(out.into_bytes())
}

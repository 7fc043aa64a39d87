//! Export of rankings and demonstrations as JSON lines or Parquet, a page at a time: an export holds one page in
//! memory, however much there is.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::datasets::{self, VersionDigest};
use super::{Result, ServiceError, Services, bad_input};
use crate::data::parquet::Writer;
use crate::data::{Comparison, Forest, Format, PromptInput, Record, Written, export};
use crate::domain::*;
use crate::jobs::learned::{Rankings, project_names};
use crate::store::RankedFilter;

/// Number of demonstrations in a page.
const PAGE: i64 = 500;

/// Selection of an export.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// One side of the split only.
    pub split: Option<Split>,
    /// One project only.
    pub project: Option<ProjectId>,
    /// The rankings of this dataset version (id or name), checked against its hash.
    pub dataset: Option<String>,
    /// Also preferences that follow from applications' feedback.
    pub feedback: bool,
    /// Whose rankings. Lines by language models have `labeler_kind`.
    pub labelers: LabelersUsed,
}

/// A file that is being exported.
pub struct Export {
    /// Number of rankings that the format cannot represent.
    pub left_out: usize,
    /// Pieces of the file. After an error the file is incomplete.
    pub pieces: mpsc::Receiver<Result<Bytes>>,
}

/// A file of the format with everything selected.
///
/// # Errors
/// `BadInput` for formats that cannot represent the data; `Conflict` when the dataset version cannot be reproduced.
pub async fn write_out(services: &Arc<Services>, format: Format, selection: Selection) -> Result<Export> {
    let Selection { split, project, dataset, feedback, labelers } = selection;
    if dataset.is_some() && (split.is_some() || project.is_some() || feedback || !labelers.is_human()) {
        return Err(bad_input("dataset", "has its own split, project, feedback and labelers"));
    }
    match format {
        Format::Prompts => return Err(bad_input("format", "prompts are listed by GET /v1/prompts")),
        Format::Demonstrations if dataset.is_some() => {
            return Err(bad_input("dataset", "contains rankings, which this format cannot represent"));
        }
        _ => {}
    }
    let (send, pieces) = mpsc::channel(2);
    if format == Format::Demonstrations {
        let services = services.clone();
        tokio::spawn(async move { finish(demonstrations(&services, split, project, &send).await, &send).await });
        return Ok(Export { left_out: 0, pieces });
    }
    let (filter, sha256) = match &dataset {
        Some(id) => {
            let (version, filter) = datasets::verified(services, id).await?;
            (filter, Some(version.sha256))
        }
        None => {
            let without_requests = !services.learns_from_requests();
            datasets::check_feedback(services, feedback, "feedback")?;
            (RankedFilter { split, project, feedback, labelers, without_requests, ..RankedFilter::default() }, None)
        }
    };
    // Other programs' formats cannot represent every ranking; the number of missing ones is counted before the first
    // byte.
    let mut left_out = 0;
    let mut trees = (format == Format::Oasst).then(Forest::default);
    if format != Format::Comparisons {
        let mut pages = pages(services, format, &filter, sha256.is_some()).await?;
        while let Some(page) = pages.next().await? {
            left_out += page.iter().filter(|c| !fits(format, c)).count();
            page.iter().for_each(|c| trees.iter_mut().for_each(|trees| trees.expect(c)));
        }
    }
    let services = services.clone();
    let file = RankingsFile { format, filter, sha256, trees };
    tokio::spawn(async move { finish(file.write(&services, &send).await, &send).await });
    Ok(Export { left_out, pieces })
}

fn fits(format: Format, comparison: &Comparison) -> bool {
    let lines = if format == Format::Parquet { Format::Trl } else { format };
    !export(lines, &Record::Comparison(comparison.clone())).is_empty()
}

type Pieces = mpsc::Sender<Result<Bytes>>;

/// Sends an error to the reader, which may be gone.
async fn finish(done: Result<()>, send: &Pieces) {
    if let Err(error) = done {
        let _ = send.send(Err(error)).await;
    }
}

/// Sends bytes to the reader; false when it is gone.
async fn give(send: &Pieces, bytes: Vec<u8>) -> bool {
    bytes.is_empty() || send.send(Ok(bytes.into())).await.is_ok()
}

/// The rankings of a file. Those of a dataset version are exactly those of its hash, without names of people; otherwise our
/// own format has labelers and projects, and trees are joined by labeler.
async fn pages<'a>(
    services: &'a Services,
    format: Format,
    filter: &RankedFilter,
    is_version: bool,
) -> Result<Rankings<'a>> {
    let pages = Rankings::new(services.store.as_ref(), filter).await?;
    match format {
        Format::Comparisons | Format::Oasst if !is_version => Ok(pages.for_exchange().await?),
        _ => Ok(pages),
    }
}

/// A file of rankings that is being written.
struct RankingsFile {
    format: Format,
    filter: RankedFilter,
    /// The hash of the dataset version that the file contains.
    sha256: Option<String>,
    /// For Open-Assistant trees: all of the file's rankings are announced.
    trees: Option<Forest>,
}

impl RankingsFile {
    async fn write(mut self, services: &Services, send: &Pieces) -> Result<()> {
        let parquet = |e: parquet::errors::ParquetError| ServiceError::Internal(format!("Parquet: {e}"));
        let mut pages = pages(services, self.format, &self.filter, self.sha256.is_some()).await?;
        let is_ours = self.sha256.is_none() && self.format == Format::Comparisons;
        let mut digest = VersionDigest::default();
        let mut writer = match self.format {
            Format::Parquet => Some(Writer::new().map_err(parquet)?),
            _ => None,
        };
        while let Some(page) = pages.next().await? {
            let mut bytes = Vec::new();
            for comparison in page {
                if self.sha256.is_some() {
                    digest.add(&comparison);
                }
                match (&mut writer, &mut self.trees) {
                    (Some(writer), _) => bytes.append(&mut writer.push(&comparison).map_err(parquet)?),
                    (None, Some(trees)) => append(&mut bytes, trees.add(&comparison)),
                    (None, None) => append(&mut bytes, export(self.format, &Record::Comparison(comparison))),
                }
            }
            if !give(send, bytes).await {
                return Ok(());
            }
        }
        let mut bytes = Vec::new();
        append(&mut bytes, self.trees.map(Forest::finish).unwrap_or_default());
        if !give(send, bytes).await {
            return Ok(());
        }
        if is_ours {
            let pages = Rankings::new(services.store.as_ref(), &self.filter).await?.for_exchange().await?;
            let mut pages = pages.only_informed();
            while let Some(page) = pages.next().await? {
                let mut bytes = Vec::new();
                page.into_iter().for_each(|c| append(&mut bytes, export(self.format, &Record::Comparison(c))));
                if !give(send, bytes).await {
                    return Ok(());
                }
            }
        }
        if self.sha256.is_some_and(|wanted| wanted != digest.finish()) {
            return Err(ServiceError::Conflict("rankings of this version were erased while it was exported".into()));
        }
        if let Some(writer) = writer {
            give(send, writer.finish().map_err(parquet)?).await;
        }
        Ok(())
    }
}

async fn demonstrations(
    services: &Services,
    split: Option<Split>,
    project: Option<ProjectId>,
    send: &Pieces,
) -> Result<()> {
    let mut after: Option<Demonstration> = None;
    let projects = project_names(services.store.as_ref()).await?;
    loop {
        let page = services.store.demonstrations().page(after.as_ref(), PAGE).await?;
        let Some((last, ..)) = page.last() else { return Ok(()) };
        after = Some(last.clone());
        let mut bytes = Vec::new();
        let ids: Vec<_> = page.iter().map(|(_, prompt, _)| prompt.id.clone()).collect();
        let asked = match services.learns_from_requests() {
            true => HashSet::new(),
            false => services.store.prompts().of_requests(&ids).await?,
        };
        for (demonstration, prompt, completion) in page {
            let in_project = project.as_ref().is_none_or(|id| *id == prompt.project_id);
            if in_project && split.is_none_or(|s| s == prompt.split) && !asked.contains(&prompt.id) {
                let corrects = match &completion.parent_completion_id {
                    Some(id) => Some(services.store.completions().get(id).await?.text),
                    None => None,
                };
                let record = Written {
                    corrects,
                    project: projects.get(&prompt.project_id).cloned(),
                    prompt_id: Some(prompt.id.to_string()),
                    prompt: PromptInput::Chat(prompt.messages),
                    completion: completion.text,
                    labeler: demonstration.labeler_id.map(|id| id.to_string()),
                };
                append(&mut bytes, export(Format::Demonstrations, &Record::Demonstration(record)));
            }
        }
        if !give(send, bytes).await {
            return Ok(());
        }
    }
}

fn append(bytes: &mut Vec<u8>, lines: impl IntoIterator<Item = String>) {
    for line in lines {
        bytes.extend_from_slice(line.as_bytes());
        bytes.push(b'\n');
    }
}

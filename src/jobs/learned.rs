//! Stored data that may be used for training, a page at a time.

use std::collections::{HashMap, HashSet};

use crate::data::Comparison;
use crate::data::from_feedback::{FeedbackRecord, preferences};
use crate::domain::*;
use crate::store::{FeedbackFact, FeedbackFilter, PromptFilter, RankedFilter, Store, StoreError};

/// Number of judgments or demonstrations in a page, and of prompts in a page of feedback.
const PAGE: i64 = 500;
/// Number of prompts in a page.
const PROMPTS: i64 = 1000;

/// The rankings that a filter finds, page by page: people's, then those of language models if the filter asks for them,
/// and at the end those derived from applications' feedback if the filter asks for them (feedback has no labeler, so a
/// filter by labeler excludes it). Judgments made while the pages are read are not included.
pub struct Rankings<'a> {
    store: &'a Store,
    /// The filter, with the time up to which judgments count.
    filter: RankedFilter,
    with_labelers: bool,
    /// Names of all projects but the first, where lines have them.
    projects: HashMap<ProjectId, String>,
    /// Only judgments that were made with knowledge of the authors or the expected answer, marked as such.
    only_informed: bool,
    after: Option<JudgmentId>,
    /// Kinds of labelers that are still to be read, the next one first.
    kinds: &'static [LabelerKind],
    feedback: FeedbackPages<'a>,
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
        let feedback = FeedbackPages::new(store, filter, filter.as_of);
        let mut filter = filter.clone();
        if filter.as_of.is_none() {
            filter.as_of = Some(store.now().await?.max(store.judgments().latest().await?.unwrap_or(0)));
        }
        Ok(Self {
            store,
            feedback,
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
            Stage::Feedback => match self.feedback.next().await? {
                Some(page) => Ok(Some(preferences(&page.records()))),
                None => {
                    self.stage = Stage::Done;
                    Ok(None)
                }
            },
            Stage::Done => Ok(None),
        }
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

/// Applications' feedback on the prompts that a filter selects: the events on at most `PAGE` prompts at a time.
pub(super) struct FeedbackPages<'a> {
    store: &'a Store,
    /// What a prompt must have.
    filter: RankedFilter,
    which: FeedbackFilter,
    after: Option<PromptId>,
    done: bool,
}

impl<'a> FeedbackPages<'a> {
    /// The events up to `as_of`; all if `None`.
    pub fn new(store: &'a Store, filter: &RankedFilter, as_of: Option<Micros>) -> Self {
        let which = FeedbackFilter { as_of, without_requests: filter.without_requests };
        Self { store, filter: filter.clone(), which, after: None, done: false }
    }

    /// The next page, which may be empty; `None` at the end. All events on a prompt are in one page.
    ///
    /// # Errors
    /// Errors of the store.
    pub async fn next(&mut self) -> Result<Option<FeedbackPage>, StoreError> {
        if self.done {
            return Ok(None);
        }
        let (mut facts, after) = self.store.feedback().page(&self.which, self.after.as_ref(), PAGE).await?;
        self.done = after.is_none();
        self.after = after;
        facts.retain(|fact| fits(&self.filter, &fact.prompt));
        Ok(Some(FeedbackPage(facts)))
    }
}

/// The events of a page, by prompt, oldest first.
pub(super) struct FeedbackPage(Vec<FeedbackFact>);

impl FeedbackPage {
    /// The events as preferences and thumbs are derived from them.
    pub fn records(&self) -> Vec<FeedbackRecord<'_>> {
        self.0.iter().map(record).collect()
    }
}

fn fits(filter: &RankedFilter, prompt: &Prompt) -> bool {
    filter.split.is_none_or(|s| s == prompt.split)
        && filter.tag.as_ref().is_none_or(|t| prompt.tags.contains(t))
        && filter.project.as_ref().is_none_or(|id| *id == prompt.project_id)
}

fn record(fact: &FeedbackFact) -> FeedbackRecord<'_> {
    FeedbackRecord {
        prompt: &fact.prompt,
        completion_id: &fact.completion.id,
        text: &fact.completion.text,
        kind: &fact.event.kind,
        value: &fact.event.value,
        // An event without an actor counts as one of a different person.
        actor: fact.event.actor_hash.as_deref().unwrap_or(fact.event.id.as_str()),
    }
}

/// The next page of demonstrations that may be used for training, oldest first, which may be empty; `None` at the end.
/// `without_requests` also leaves out ideal answers to requests.
///
/// # Errors
/// Errors of the store.
pub(super) async fn learned_demonstrations(
    store: &Store,
    after: &mut Option<Demonstration>,
    without_requests: bool,
) -> Result<Option<Vec<(Prompt, Completion)>>, StoreError> {
    let page = store.demonstrations().page(after.as_ref(), PAGE).await?;
    let Some((last, ..)) = page.last() else { return Ok(None) };
    *after = Some(last.clone());
    let requests = match without_requests {
        true => {
            let ids: Vec<_> = page.iter().map(|(_, prompt, _)| prompt.id.clone()).collect();
            store.prompts().of_requests(&ids).await?
        }
        false => HashSet::new(),
    };
    let learned = page.into_iter().filter(|(_, prompt, _)| !requests.contains(&prompt.id));
    Ok(Some(learned.map(|(_, prompt, completion)| (prompt, completion)).collect()))
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
    let mut page = store.prompts().select(&filter, after.as_deref(), PROMPTS).await?;
    let Some(last) = page.last() else { return Ok(None) };
    *after = Some(last.id.to_string());
    page.retain(|p| p.source != "completions");
    Ok(Some(page))
}

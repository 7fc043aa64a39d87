//! Whether the stored data that a job would learn from exists.

use std::collections::BTreeMap;

use serde_json::Value;

use super::judging;
use super::lacking::{NO_DEMONSTRATIONS, NO_SETS, no_feedback, no_prompts, no_rankings};
use super::learned::{FeedbackPages, Rankings, learned_demonstrations, learned_prompts};
use super::materialise::PrepareError;
use super::queue::{JobArgs, data_of};
use crate::config::JudgeConfig;
use crate::data::thumbs;
use crate::domain::Split;
use crate::store::{RankedFilter, Store, StoreError};
use crate::train::Recipe;

/// Why a job with these arguments would fail for lack of data if it began now; `None` if nothing is missing. Files of
/// the operator are not examined, because the job may run on another machine.
///
/// # Errors
/// Errors of the store.
pub async fn missing(
    store: &Store,
    recipe: &Recipe,
    job: &JobArgs,
    learn_from_requests: bool,
    judges: &BTreeMap<String, JudgeConfig>,
) -> Result<Option<String>, StoreError> {
    let without_requests = job.filter.without_requests || !learn_from_requests;
    let filter = RankedFilter { without_requests, ..job.filter.clone() };
    let schema: Value = (recipe.schema)();
    for field in data_of(&schema, &job.recipe, job.gold_judgments) {
        let lack = match field {
            "comparisons" => rankings(store, &filter).await?,
            "gold_comparisons" => {
                let heldout = RankedFilter { split: Some(Split::Heldout), ..filter.clone() };
                rankings(store, &heldout).await?
            }
            "feedback" => feedback(store, &filter).await?,
            "prompts" => prompts(store, without_requests).await?,
            "sets" => match judging::has_sets(store, &job.recipe, judges, without_requests).await {
                Ok(true) => None,
                Ok(false) => Some(NO_SETS.to_owned()),
                Err(PrepareError::Store(error)) => return Err(error),
                Err(other) => Some(other.to_string()),
            },
            _ => demonstrations(store, without_requests).await?,
        };
        if lack.is_some() {
            return Ok(lack);
        }
    }
    Ok(None)
}

async fn rankings(store: &Store, filter: &RankedFilter) -> Result<Option<String>, StoreError> {
    let mut pages = Rankings::new(store, filter).await?;
    while let Some(page) = pages.next().await? {
        if !page.is_empty() {
            return Ok(None);
        }
    }
    Ok(Some(no_rankings(filter)))
}

async fn feedback(store: &Store, filter: &RankedFilter) -> Result<Option<String>, StoreError> {
    let (mut pages, mut undecided) = (FeedbackPages::new(store, filter, filter.as_of), 0);
    while let Some(page) = pages.next().await? {
        let (lines, without) = thumbs(&page.records());
        if !lines.is_empty() {
            return Ok(None);
        }
        undecided += without;
    }
    Ok(Some(no_feedback(filter, undecided)))
}

async fn demonstrations(store: &Store, without_requests: bool) -> Result<Option<String>, StoreError> {
    let mut after = None;
    while let Some(page) = learned_demonstrations(store, &mut after, without_requests).await? {
        if !page.is_empty() {
            return Ok(None);
        }
    }
    Ok(Some(NO_DEMONSTRATIONS.to_owned()))
}

async fn prompts(store: &Store, without_requests: bool) -> Result<Option<String>, StoreError> {
    let mut after = None;
    while let Some(page) = learned_prompts(store, &mut after, without_requests).await? {
        if !page.is_empty() {
            return Ok(None);
        }
    }
    no_prompts(store, without_requests).await.map(Some)
}

//! The training runs that have learned from the judgments of a set.

use std::collections::HashMap;

use serde::Serialize;

use super::datasets::filter_of;
use super::{Result, Services};
use crate::data::Comparison;
use crate::domain::{DatasetId, Job, JobId, JobState, JudgmentId, LabelerId, RankedSet, SetId};
use crate::store::{Page, RankedFilter, StoreError};

/// Number of ended runs that are searched, the newest.
const RUNS: i64 = 500;

/// A run that has learned from judgments of a set.
#[derive(Clone, Debug, PartialEq, Serialize, schemars::JsonSchema)]
pub struct LearnedRun {
    pub job_id: JobId,
    /// The recipe.
    pub kind: String,
    pub name: Option<String>,
    /// The version that the run published.
    pub model: Option<String>,
    /// The reward model through which an RL run learned from them; null for a run on the rankings themselves.
    pub through: Option<String>,
    pub judgments: Vec<LearnedJudgment>,
}

/// A ranking in the data of a run, as it was when the data was frozen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct LearnedJudgment {
    pub judgment_id: JudgmentId,
    pub labeler_id: LabelerId,
}

fn model_of(job: &Job) -> Option<String> {
    job.result.as_ref()?.get("model")?.as_str().map(str::to_owned)
}

fn dataset_of(job: &Job) -> Option<DatasetId> {
    job.result.as_ref()?.pointer("/datasets/comparisons/id")?.as_str().map(Into::into)
}

fn run(job: Job, through: Option<String>, judgments: Vec<LearnedJudgment>) -> LearnedRun {
    LearnedRun { model: model_of(&job), job_id: job.id, kind: job.kind, name: job.notes.name, through, judgments }
}

/// The latest runs that have succeeded and whose data had a ranking of the set, newest first. Runs that learned from
/// the score of a reward model among them follow with its name. Data sets are found again by their filter and time, so
/// data that was erased since is not found.
///
/// # Errors
/// `NotFound` when there is no such set.
pub async fn of_set(services: &Services, id: &SetId) -> Result<Vec<LearnedRun>> {
    services.store.sets().get(id).await?;
    let page = Page { after: None, limit: RUNS };
    let jobs = services.store.jobs().list(page, Some(JobState::Succeeded)).await?;
    let mut known: HashMap<String, Vec<LearnedJudgment>> = HashMap::new();
    let mut direct = Vec::new();
    let mut models: HashMap<String, Vec<LearnedJudgment>> = HashMap::new();
    for job in &jobs {
        let Some(dataset) = dataset_of(job) else { continue };
        let version = match services.store.datasets().get(dataset.as_str()).await {
            Ok(version) => version,
            Err(StoreError::NotFound { .. }) => continue,
            Err(other) => return Err(other.into()),
        };
        let Ok(filter) = filter_of(&version) else { continue };
        let key = format!("{} {}", version.as_of, version.filter);
        let judgments = match known.get(&key) {
            Some(judgments) => judgments.clone(),
            None => {
                let judgments = ranked(services, &filter, id).await?;
                known.insert(key, judgments.clone());
                judgments
            }
        };
        if judgments.is_empty() {
            continue;
        }
        if let Some(model) = model_of(job).filter(|_| job.kind == "reward") {
            models.insert(model, judgments.clone());
        }
        direct.push(run(job.clone(), None, judgments));
    }
    let through = jobs.into_iter().filter_map(|job| {
        let name = job.args.get("reward_model")?.as_str()?.to_owned();
        let judgments = models.get(&name)?.clone();
        Some(run(job, Some(name), judgments))
    });
    direct.extend(through);
    Ok(direct)
}

async fn ranked(services: &Services, filter: &RankedFilter, id: &SetId) -> Result<Vec<LearnedJudgment>> {
    let sets = services.store.judgments().ranked_of_set(filter, id).await?;
    let in_data = sets.iter().filter(|set| {
        Comparison::from_ranked(set).and_then(|line| line.ranked_as(filter.by_rating.as_ref())).is_some()
    });
    let judgment =
        |set: &RankedSet| LearnedJudgment { judgment_id: set.judgment_id.clone(), labeler_id: set.labeler_id.clone() };
    Ok(in_data.map(judgment).collect())
}

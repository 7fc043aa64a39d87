//! The state of the loop: counts, active versions, and the suggested next action.

use std::sync::Arc;

use serde::Serialize;

use super::evidence::{self, Accuracy, Summary};
use super::next_step::{Candidate, NextAction, Situation, next_action};
use super::projects::{self, CountedProject};
use super::{Result, Services};
use crate::domain::time::DAY;
use crate::domain::{Job, JobState, Micros, ModelKind, ModelState, ModelVersion, ProjectId};
use crate::engine::DeviceStats;
use crate::store::{Counts, DayCount, Page};

#[derive(Clone, Debug, Serialize, schemars::JsonSchema)]
pub struct Overview {
    /// When the numbers were counted (µs UTC). In a large database that is up to some minutes ago.
    pub counted: Micros,
    pub counts: Counts,
    pub active_policy: Option<ModelVersion>,
    pub active_reward: Option<ModelVersion>,
    /// The newest reward model, if none is active.
    pub unpromoted_reward: Option<ModelVersion>,
    pub evidence: Standing,
    pub next_action: NextAction,
    pub running_jobs: Vec<Job>,
    /// The named project, with the amounts of its data; absent where none is named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub project: Option<CountedProject>,
    /// The devices that serve; absent on the CPU.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceStats>,
}

/// Data behind the active versions.
#[derive(Clone, Debug, Serialize, schemars::JsonSchema)]
#[schemars(rename = "ActiveEvidence")]
pub struct Standing {
    /// Of the active reward model, on held-out pairs.
    pub accuracy: Option<Accuracy>,
    /// Rankings since the active reward model was made.
    pub new_rankings: Option<i64>,
    /// Sets with completions of the active policy, and rankings of them.
    pub policy_sets: i64,
    pub policy_rankings: i64,
    /// Reward and KL of the active policy, at the end of its training.
    pub policy: Option<Summary>,
}

/// The state of the loop. When reading the database takes longer than a second, it is read in the background, and the last
/// state is returned. The amounts of the named project are read anew.
///
/// # Errors
/// `NotFound` for an unknown project.
pub async fn overview(services: &Arc<Services>, project: Option<&str>) -> Result<Overview> {
    let project = match project {
        Some(wanted) => Some(projects::counted(services, wanted).await?),
        None => None,
    };
    let all = services.clone();
    let last = services.last_overview.wait(|_| true, async move { read(&all).await }).await?;
    Ok(Overview { project, ..last })
}

/// Counts in the background what the first view of the overview shows, because counting takes seconds in a large database.
pub fn prepare(services: &Arc<Services>) {
    let services = services.clone();
    tokio::spawn(async move {
        if let Err(error) = overview(&services, None).await {
            tracing::debug!(%error, "the overview cannot be counted yet");
        }
    });
}

async fn read(services: &Services) -> Result<Overview> {
    let (store, counted) = (&services.store, services.now());
    let counts = store.counts().await?;
    let models = store.models().list().await?;
    let active = |kind| models.iter().find(|m| m.kind == kind && m.state == ModelState::Active);
    let (policy, reward) = (active(ModelKind::Policy), active(ModelKind::Reward));
    let mut running_jobs = store.jobs().list(Page { after: None, limit: 50 }, Some(JobState::Running)).await?;
    running_jobs.extend(store.jobs().list(Page { after: None, limit: 50 }, Some(JobState::Queued)).await?);

    let history = evidence::history(services, &models).await?;
    let rolled_back = |m: &&ModelVersion| history.rolled_back.contains_key(m.id.as_str());
    // Candidates that were trained here and are newer than the active version.
    let newer = |kind, than: Option<&ModelVersion>| {
        let waiting = models.iter().filter(move |m| m.kind == kind && m.state == ModelState::Candidate);
        let after = than.map(|m| m.created);
        waiting.filter(|m| m.job_id.is_some()).filter(move |m| after.is_none_or(|a| m.created > a))
    };
    let newest = |kind, than| newer(kind, than).filter(|m| !rolled_back(m)).max_by_key(|m| m.created);
    let (new_reward, new_policy) = (newest(ModelKind::Reward, reward), newest(ModelKind::Policy, policy));
    let summary = async |candidate: Option<&ModelVersion>, active| match candidate {
        Some(m) => evidence::find(services, m, active).await.map(Some),
        None => Ok(None),
    };
    let reward_summary = summary(new_reward, reward).await?;
    let policy_summary = summary(new_policy, policy).await?;
    let since = async |m: Option<&ModelVersion>| match m {
        Some(m) => store.models().rankings_since(m.created).await,
        None => Ok(counts.judgments),
    };
    let policy_sets = match policy {
        Some(p) => store.models().set_counts(&p.id).await?,
        None => (0, 0),
    };
    let reward_accuracy = reward.and_then(|m| evidence::accuracy(&m.metrics));
    let rolled_back_policy = newer(ModelKind::Policy, policy).filter(rolled_back).max_by_key(|m| m.created);
    // Requests do not count unless they may be used for training.
    let mut usable = counts.clone();
    if !services.learns_from_requests() {
        usable.prompts -= store.prompts().request_counts().await?.prompts;
    }
    let situation = Situation {
        counts: &usable,
        job: running_jobs.first(),
        policy,
        reward,
        reward_accuracy,
        new_reward: candidate(new_reward, &reward_summary),
        new_policy: candidate(new_policy, &policy_summary),
        rolled_back: rolled_back_policy,
        rankings_since_reward: since(new_reward.or(reward)).await?,
        rankings_since_policy: since(new_policy.or(rolled_back_policy).or(policy)).await?,
        policy_sets,
    };
    let next_action = next_action(&situation);
    let standing = Standing {
        accuracy: reward_accuracy,
        new_rankings: match reward {
            Some(m) => Some(store.models().rankings_since(m.created).await?),
            None => None,
        },
        policy_sets: policy_sets.0,
        policy_rankings: policy_sets.1,
        policy: summary(policy.filter(|p| p.job_id.is_some()), None).await?,
    };
    let (active_policy, active_reward) = (policy.cloned(), reward.cloned());
    let waiting = models.iter().filter(|m| m.kind == ModelKind::Reward && m.state == ModelState::Candidate);
    let unpromoted_reward = waiting.filter(|_| reward.is_none()).max_by_key(|m| m.created).cloned();
    Ok(Overview {
        counted,
        counts,
        active_policy,
        active_reward,
        unpromoted_reward,
        evidence: standing,
        next_action,
        running_jobs,
        project: None,
        devices: devices(services).await,
    })
}

/// Figures of the devices that serve; none on the CPU and before a model is loaded.
pub async fn devices(services: &Services) -> Vec<DeviceStats> {
    let Ok(engine) = services.engine() else { return Vec::new() };
    tokio::task::spawn_blocking(move || engine.devices()).await.unwrap_or_default()
}

fn candidate<'a>(version: Option<&'a ModelVersion>, summary: &'a Option<Summary>) -> Option<Candidate<'a>> {
    version.zip(summary.as_ref()).map(|(version, summary)| Candidate { version, summary })
}

/// Judgments a day over the last `days` days (UTC, today included; empty days too), and the queue.
#[derive(Clone, Debug, Serialize, schemars::JsonSchema)]
#[schemars(rename = "Throughput")]
pub struct Flow {
    pub days: Vec<DayCount>,
    pub median_active_ms: Option<i64>,
    pub sets_open: i64,
    /// Open sets that every active labeler has judged or skipped.
    pub sets_stuck: i64,
    /// Sets that are leased now.
    pub leases: i64,
}

/// The rate of all projects or one.
pub async fn flow(services: &Services, days: i64, project: Option<&ProjectId>) -> Result<Flow> {
    let today = services.now() / DAY;
    let first = today - days + 1;
    let found = services.store.judgments().throughput(first * DAY, project).await?;
    let of = |day| found.days.iter().find(|d| d.day == day).cloned();
    let queue = services.store.leases().queue(services.now(), project).await?;
    Ok(Flow {
        days: (first..=today).map(|day| of(day).unwrap_or(DayCount { day, judgments: 0, skips: 0 })).collect(),
        median_active_ms: found.median_active_ms,
        sets_open: queue.sets_open,
        sets_stuck: queue.sets_stuck,
        leases: queue.leases,
    })
}

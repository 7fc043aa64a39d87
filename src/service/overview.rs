//! The loop as one picture: counts, what is active, and the next sensible action.

use serde::Serialize;
use serde_json::{Value, json};

use super::{Result, Services};
use crate::domain::{Job, JobState, Micros, ModelKind, ModelState, ModelVersion};
use crate::store::{Counts, DayCount, Page};

/// Judgments below which training a reward model is not worth its time.
const ENOUGH_JUDGMENTS: i64 = 20;
const DAY: Micros = 86_400_000_000;

#[derive(Clone, Debug, Serialize)]
pub struct Overview {
    pub counts: Counts,
    pub active_policy: Option<ModelVersion>,
    pub active_reward: Option<ModelVersion>,
    pub next_action: NextAction,
    pub running_jobs: Vec<Job>,
}

/// `action` is stable; `message` is for people; `request` is what a button would send.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NextAction {
    pub action: &'static str,
    pub message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<Value>,
}

pub async fn overview(services: &Services) -> Result<Overview> {
    let store = &services.store;
    let counts = store.counts().await?;
    let active_policy = store.active_model(ModelKind::Policy).await?;
    let active_reward = store.active_model(ModelKind::Reward).await?;
    let models = store.list_models().await?;
    let mut running_jobs = store.list_jobs(Page { after: None, limit: 50 }, Some(JobState::Running)).await?;
    running_jobs.extend(store.list_jobs(Page { after: None, limit: 50 }, Some(JobState::Queued)).await?);
    let next_action = next_action(&counts, active_policy.as_ref(), active_reward.as_ref(), &models, &running_jobs);
    Ok(Overview { counts, active_policy, active_reward, next_action, running_jobs })
}

/// Judgments a day over the last `days` days (UTC, today included; empty days too), and the queue.
#[derive(Clone, Debug, Serialize)]
pub struct Flow {
    pub days: Vec<DayCount>,
    pub median_active_ms: Option<i64>,
    pub sets_open: i64,
    /// Open sets that nobody is left for: every active labeler has judged or skipped them.
    pub sets_stuck: i64,
    /// Sets that somebody is ranking now.
    pub leases: i64,
}

pub async fn flow(services: &Services, days: i64) -> Result<Flow> {
    let today = services.now() / DAY;
    let first = today - days + 1;
    let found = services.store.throughput(first * DAY).await?;
    let of = |day| found.days.iter().find(|d| d.day == day).cloned();
    let counts = services.store.counts().await?;
    Ok(Flow {
        days: (first..=today).map(|day| of(day).unwrap_or(DayCount { day, judgments: 0, skips: 0 })).collect(),
        median_active_ms: found.median_active_ms,
        sets_open: counts.sets_open,
        sets_stuck: counts.sets_stuck,
        leases: counts.leases,
    })
}

fn next_action(
    counts: &Counts,
    policy: Option<&ModelVersion>,
    reward: Option<&ModelVersion>,
    models: &[ModelVersion],
    jobs: &[Job],
) -> NextAction {
    let action = |action, message: String, request| NextAction { action, message, request };
    if let Some(job) = jobs.first() {
        return action("wait", format!("a {} job is under way", job.kind), None);
    }
    // A candidate trained from the active policy, newest first.
    let newer = |kind: ModelKind, parent: Option<&ModelVersion>| {
        let candidates = models.iter().filter(|m| m.kind == kind && m.state == ModelState::Candidate);
        let trained = candidates.filter(|m| m.job_id.is_some());
        let fresh = trained.filter(|m| parent.is_none_or(|p| m.created > p.created));
        fresh.max_by_key(|m| m.created)
    };
    let promote = |m: &ModelVersion| Some(json!({"method": "POST", "path": format!("/admin/models/{}/promote", m.id)}));
    let train = |kind: &str| Some(json!({"method": "POST", "path": "/admin/jobs", "body": {"kind": kind, "args": {}}}));
    if let Some(m) = newer(ModelKind::Reward, reward) {
        return action("promote", format!("promote the reward model {}", m.name), promote(m));
    }
    if let Some(m) = newer(ModelKind::Policy, policy) {
        return action("promote", format!("try the policy {} and promote it", m.name), promote(m));
    }
    if counts.judgments < ENOUGH_JUDGMENTS {
        return if counts.sets_open > 0 {
            action("rank", format!("{} sets wait to be ranked", counts.sets_open), None)
        } else if counts.prompts > 0 {
            action("draw", format!("make sets from the {} stored prompts, for people to rank", counts.prompts), None)
        } else {
            action("import", "import rankings, or add prompts and let the policy answer them".to_owned(), None)
        };
    }
    match reward {
        None => {
            action("train_reward", format!("train a reward model on {} judgments", counts.judgments), train("reward"))
        }
        Some(_) => action("train_ppo", "train the policy against the reward model".to_owned(), train("ppo")),
    }
}

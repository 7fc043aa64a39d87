//! The suggested next action, from counts and evidence. An action that the figures contradict is not suggested.

use serde::Serialize;
use serde_json::{Value, json};

use super::evidence::{Accuracy, Code, Summary};
use crate::domain::{Job, ModelKind, ModelVersion};
use crate::store::Counts;

/// Rankings below which training a reward model is not worth its time.
pub const ENOUGH_RANKINGS: i64 = 20;

/// `action` and `reason` are stable codes; `message` is a sentence in English; `values` are the figures of the page's
/// own sentence; `request` is the request of the page's button.
#[derive(Clone, Debug, PartialEq, Serialize, schemars::JsonSchema)]
pub struct NextAction {
    pub action: &'static str,
    /// `reward` or `policy` where the action is about a version of that kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub about: Option<&'static str>,
    pub reason: &'static str,
    pub values: Value,
    pub message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<Value>,
}

/// A trained version that could replace the active one, with its evidence.
#[derive(Clone, Debug)]
pub struct Candidate<'a> {
    pub version: &'a ModelVersion,
    pub summary: &'a Summary,
}

/// Input of the decision.
#[derive(Clone, Debug)]
pub struct Situation<'a> {
    pub counts: &'a Counts,
    /// The first job that runs or waits.
    pub job: Option<&'a Job>,
    pub policy: Option<&'a ModelVersion>,
    pub reward: Option<&'a ModelVersion>,
    /// Accuracy of the active reward model; `None` when it was not measured.
    pub reward_accuracy: Option<Accuracy>,
    /// Newest reward model that is newer than the active one and was not rolled back.
    pub new_reward: Option<Candidate<'a>>,
    pub new_policy: Option<Candidate<'a>>,
    /// A policy newer than the active one that was active and rolled back.
    pub rolled_back: Option<&'a ModelVersion>,
    /// Rankings since the newest reward model was made.
    pub rankings_since_reward: i64,
    /// Rankings since the newest policy was made.
    pub rankings_since_policy: i64,
    /// Sets with completions of the active policy, and rankings of them.
    pub policy_sets: (i64, i64),
}

fn percent(x: f64) -> String {
    format!("{:.0} %", 100.0 * x)
}

/// "53 % (36 % to 70 %) of 30 held-out pairs".
fn describe(a: &Accuracy) -> String {
    let f = a.figure;
    let interval = f.low.zip(f.high).map(|(l, h)| format!(" ({} to {})", percent(l), percent(h)));
    format!("{}{} of {} held-out pairs", percent(f.value), interval.unwrap_or_default(), f.n)
}

fn accuracy_values(name: &str, a: &Accuracy) -> Value {
    json!({"name": name, "n": a.figure.n, "accuracy": a.figure.value, "low": a.figure.low, "high": a.figure.high})
}

/// What to do next.
pub fn next_action(s: &Situation<'_>) -> NextAction {
    let step = |action, reason, values: Value, message: String| NextAction {
        action,
        about: None,
        reason,
        values,
        message,
        request: None,
    };
    let promote = |m: &ModelVersion, reason, values: Value, message: String| NextAction {
        about: Some(if m.kind == ModelKind::Reward { "reward" } else { "policy" }),
        request: Some(json!({"method": "POST", "path": format!("/admin/models/{}/promote", m.id)})),
        ..step("promote", reason, values, message)
    };
    let train = |kind: &str| Some(json!({"method": "POST", "path": "/admin/jobs", "body": {"kind": kind, "args": {}}}));
    // When rankings are missing: rank open sets, else make sets, else add prompts.
    let more_rankings = |reason: &'static str, values: Value, message: String| {
        let action = match s.counts {
            c if c.sets_open > 0 => "rank",
            c if c.prompts > 0 => "draw",
            _ => "import",
        };
        step(action, reason, values, message)
    };
    let train_reward = |reason: &'static str, values: Value, message: String| NextAction {
        about: Some("reward"),
        request: train("reward"),
        ..step("train_reward", reason, values, message)
    };

    if let Some(job) = s.job {
        return step("wait", "job", json!({"kind": job.kind}), format!("a {} job is running or queued", job.kind));
    }
    if let Some(c) = s.new_reward.as_ref().filter(|c| c.summary.finding.worth_promoting) {
        let name = &c.version.name;
        let (values, message) = match &c.summary.accuracy {
            Some(a) => (accuracy_values(name, a), format!("promote the reward model {name}: right on {}", describe(a))),
            None => (json!({"name": name}), format!("promote the reward model {name}")),
        };
        return promote(c.version, "promote_reward", values, message);
    }
    if let Some(c) = s.new_policy.as_ref().filter(|c| c.summary.finding.worth_promoting) {
        let name = &c.version.name;
        let message = match c.summary.finding.code {
            Code::Preferred => format!("promote the policy {name}: people prefer it to the active one"),
            _ => format!("compare the policy {name} with the active one, then promote it"),
        };
        let win = c.summary.win_rate.map(|w| json!({"value": w.value, "low": w.low, "high": w.high, "n": w.n}));
        return promote(c.version, "promote_policy", json!({"name": name, "win_rate": win}), message);
    }
    if s.counts.judgments < ENOUGH_RANKINGS {
        return match s.counts {
            c if c.sets_open > 0 => {
                step("rank", "sets", json!({"n": c.sets_open}), format!("{} sets wait to be ranked", c.sets_open))
            }
            c if c.prompts > 0 => step(
                "draw",
                "prompts",
                json!({"n": c.prompts}),
                format!("make sets from the {} stored prompts, for people to rank", c.prompts),
            ),
            _ => step(
                "import",
                "nothing",
                json!({}),
                "import rankings, or add prompts and let the policy answer them".to_owned(),
            ),
        };
    }
    let retrain = |name: &str| {
        let n = s.rankings_since_reward;
        let message = format!("{n} new rankings since the reward model {name}: train it again");
        train_reward("retrain", json!({"name": name, "n": n}), message)
    };
    let enough_new = s.rankings_since_reward >= ENOUGH_RANKINGS;
    // A reward model that is not better than chance needs more rankings, not more training on the same ones.
    let doubtful = match (&s.new_reward, s.reward, &s.reward_accuracy) {
        (Some(c), _, _) => Some((c.version, c.summary.accuracy)),
        (None, Some(active), Some(a)) if !a.beats_chance() => Some((active, Some(*a))),
        _ => None,
    };
    if let Some((version, accuracy)) = doubtful {
        let name = &version.name;
        if enough_new {
            return retrain(name);
        }
        return match accuracy {
            Some(a) => {
                let message = format!("{name} is not better than chance on {} held-out pairs; rank more", a.figure.n);
                more_rankings("chance", accuracy_values(name, &a), message)
            }
            None => more_rankings(
                "unmeasured",
                json!({"name": name}),
                format!("no pair was held out, so the accuracy of {name} is not known; rank more"),
            ),
        };
    }
    let Some(reward) = s.reward else {
        let n = s.counts.judgments;
        return train_reward("no_reward", json!({"n": n}), format!("train a reward model on {n} judgments"));
    };
    // After a promotion, the loop goes on with answers of the new policy.
    if let Some(policy) = s.policy.filter(|p| p.job_id.is_some()) {
        let (sets, rankings) = s.policy_sets;
        let name = &policy.name;
        if sets == 0 && s.counts.prompts > 0 {
            let message = format!("draw sets of the new policy {name} and have them ranked");
            return step("draw", "draw_new", json!({"name": name}), message);
        }
        if rankings < ENOUGH_RANKINGS && s.counts.sets_open > 0 {
            let message = format!("rank sets of the new policy {name}: {rankings} rankings so far");
            return step("rank", "rank_new", json!({"name": name, "n": rankings}), message);
        }
    }
    if enough_new {
        return retrain(&reward.name);
    }
    if let Some(back) = s.rolled_back.filter(|_| s.rankings_since_policy < ENOUGH_RANKINGS) {
        let message = format!("{} was rolled back; rank more before the policy is trained again", back.name);
        return more_rankings("rolled_back", json!({"name": back.name}), message);
    }
    if let Some(c) = s.new_policy.as_ref().filter(|_| s.rankings_since_policy < ENOUGH_RANKINGS) {
        let name = &c.version.name;
        let message = format!("{name} is not better than the active policy; rank more before it is trained again");
        return more_rankings("not_better", json!({"name": name}), message);
    }
    NextAction {
        about: Some("policy"),
        request: train("ppo"),
        ..step(
            "train_ppo",
            "reward_ready",
            json!({"name": reward.name}),
            "train the policy against the reward model".to_owned(),
        )
    }
}

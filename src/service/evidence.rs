//! Evidence for and against promoting a model version: accuracy on held-out pairs, reward and KL against its start, win
//! rate, and samples side by side. Every figure has its n and, where the data allow it, a 95 % interval.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;
use serde_json::Value;

use super::quality::Scope;
use super::{Result, Services, publish, quality};
use crate::domain::{Metric, Micros, ModelKind, ModelState, ModelVersion, ModelVersionId, SetKind};
use crate::eval::quality::Figure;
use crate::eval::quality::statistics::share;
use crate::store::Meeting;
use crate::train::{Baseline, WinRate};

/// Accuracy of random choice on pairs.
pub const CHANCE: f64 = 0.5;
/// Number of samples that are shown.
const SAMPLES: i64 = 10;
/// Sample events of a run that are searched for the first and the last text of each prompt.
const SAMPLE_EVENTS: i64 = 5000;
const AGREEMENT_REPLICATES: usize = 200;

/// Id and name of a version.
#[derive(Clone, Debug, PartialEq, Serialize, schemars::JsonSchema)]
#[schemars(rename = "VersionName")]
pub struct Named {
    pub id: ModelVersionId,
    pub name: String,
    pub kind: ModelKind,
    pub state: ModelState,
}

impl From<&ModelVersion> for Named {
    fn from(m: &ModelVersion) -> Self {
        Self { id: m.id.clone(), name: m.name.clone(), kind: m.kind, state: m.state }
    }
}

/// Share of held-out pairs that a reward model orders as people did.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, schemars::JsonSchema)]
pub struct Accuracy {
    #[serde(flatten)]
    pub figure: Figure,
    pub chance: f64,
}

impl Accuracy {
    /// Whether the interval lies above chance.
    pub fn beats_chance(&self) -> bool {
        self.figure.low.is_some_and(|low| low > self.chance)
    }
}

/// The baselines of a reward model's training; none for models of earlier versions of the program.
pub fn baselines(metrics: &Value) -> Vec<Baseline> {
    serde_json::from_value(metrics["baselines"].clone()).unwrap_or_default()
}

/// A mean before and after training, measured in the same run by the same model.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, schemars::JsonSchema)]
#[schemars(rename = "BeforeAfter")]
pub struct Change {
    pub before: Option<Figure>,
    pub after: Figure,
}

#[derive(Clone, Debug, PartialEq, Serialize, schemars::JsonSchema)]
pub struct SideBySide {
    /// Messages, or a raw prompt.
    pub prompt: Value,
    pub ours: Side,
    pub theirs: Side,
}

#[derive(Clone, Debug, PartialEq, Serialize, schemars::JsonSchema)]
#[schemars(rename = "SampleText")]
pub struct Side {
    pub text: String,
    pub reward: Option<f64>,
    /// Ended by the length limit; unknown for samples of a run.
    pub cut: Option<bool>,
}

/// What the figures show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[schemars(rename = "FindingCode")]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// A reward model whose interval lies above chance.
    BetterThanChance,
    /// A reward model that is better than chance and not shown to be better than a baseline.
    NotAboveBaseline,
    /// A reward model whose interval contains chance or lies below it.
    Chance,
    /// Nothing was measured.
    Unmeasured,
    /// People prefer it: the interval of its win rate lies above a half.
    Preferred,
    /// People prefer the other one.
    NotPreferred,
    /// Its own reward did not rise.
    RewardFell,
    /// Its reward rose; its win rate is undecided.
    Undecided,
    /// It was active and rolled back.
    RolledBack,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct Finding {
    pub code: Code,
    /// Whether the overview suggests to promote it.
    pub worth_promoting: bool,
}

#[derive(Clone, Debug, Serialize, schemars::JsonSchema)]
pub struct Evidence {
    pub model: Named,
    /// The active version of its kind.
    pub active: Option<Named>,
    pub parent: Option<Named>,
    pub finding: Finding,
    pub accuracy: Option<Accuracy>,
    /// What the accuracy is compared with.
    pub baselines: Vec<Baseline>,
    /// How often two people agree about a pair that both decided.
    pub labeler_agreement: Option<Figure>,
    pub reward: Option<Change>,
    pub gold: Option<Change>,
    /// Nats per sequence, against the policy that the run started from.
    pub kl: Option<Figure>,
    /// The version that win rate and samples compare with: the active one, or the parent of the active one.
    pub against: Option<Named>,
    /// The share of people's rankings in which it is ahead of `against`; a tie counts half, n is prompts.
    pub win_rate: Option<Figure>,
    /// The share of pairs in which its run's reward scored its response above the start policy's; n is prompts.
    pub reward_win_rate: Option<Figure>,
    /// The same by the run's held-out reward.
    pub gold_win_rate: Option<Figure>,
    pub samples: Vec<SideBySide>,
    pub new_rankings: i64,
    pub rolled_back: Option<Micros>,
}

/// What was active before, from the audit trail.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// By kind: the version that the last promotion replaced.
    pub previous: BTreeMap<&'static str, ModelVersionId>,
    /// Versions whose last activation was rolled back, and when.
    pub rolled_back: BTreeMap<String, Micros>,
}

/// Reads promotions and roll-backs.
pub async fn history(services: &Services, models: &[ModelVersion]) -> Result<History> {
    let kinds: HashMap<&ModelVersionId, ModelKind> = models.iter().map(|m| (&m.id, m.kind)).collect();
    let mut active: HashMap<ModelKind, ModelVersionId> = HashMap::new();
    let mut history = History::default();
    for step in services.store.models().activation_history().await? {
        let Some(kind) = kinds.get(&step.to).copied() else { continue };
        // Entries of older releases do not record what was replaced: it is what the previous entry activated.
        let from = step.from.or_else(|| active.get(&kind).cloned()).filter(|from| *from != step.to);
        history.rolled_back.remove(step.to.as_str());
        match (from, step.roll_back) {
            (Some(from), true) => {
                history.rolled_back.insert(from.0, step.at);
                history.previous.remove(kind.as_str());
            }
            (Some(from), false) => {
                history.previous.insert(kind.as_str(), from);
            }
            (None, _) => {}
        }
        active.insert(kind, step.to);
    }
    Ok(history)
}

/// Accuracy on held-out pairs, measured by training. Pairs of one ranking are not independent: the K (K − 1) / 2 pairs
/// of a ranking of K carry the information of K − 1, so the interval counts 2 / K of the pairs.
pub fn accuracy(metrics: &Value) -> Option<Accuracy> {
    let heldout = &metrics["heldout"];
    let pairs = heldout["pairs"].as_u64().filter(|n| *n > 0)? as usize;
    let value = heldout["accuracy"].as_f64().or_else(|| metrics["heldout_accuracy"].as_f64())?;
    let sets = metrics["sets"]["heldout"].as_u64().unwrap_or(pairs as u64).max(1);
    // pairs = sets · K (K − 1) / 2
    let k = (1.0 + (1.0 + 8.0 * pairs as f64 / sets as f64).sqrt()) / 2.0;
    let independent = ((2.0 * pairs as f64 / k).round() as usize).clamp(1, pairs);
    let figure = share(value.clamp(0.0, 1.0) * independent as f64, independent)?;
    Some(Accuracy { figure: Figure { n: pairs, value, ..figure }, chance: CHANCE })
}

/// The share of comparisons in which `a` was preferred; a tie counts half. Judgments of one prompt are not independent:
/// each prompt counts once, by the mean of its judgments, so n is prompts.
pub fn win_rate(meetings: &[Meeting]) -> Option<Figure> {
    let mut prompts: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
    for m in meetings {
        let won = match m.tier_a.cmp(&m.tier_b) {
            std::cmp::Ordering::Less => 1.0,
            std::cmp::Ordering::Equal => 0.5,
            std::cmp::Ordering::Greater => 0.0,
        };
        let (sum, n) = prompts.entry(m.prompt_id.as_str()).or_default();
        *sum += won;
        *n += 1.0;
    }
    share(prompts.values().map(|(sum, n)| sum / n).sum(), prompts.len())
}

/// A win rate that the run measured, by `reward` or by `gold`.
fn win_rate_of_run(version: &ModelVersion, by: &str) -> Option<Figure> {
    let rate: WinRate = serde_json::from_value(version.metrics["win_rates"][by].clone()).ok()?;
    Some(Figure { value: rate.share, low: Some(rate.low), high: Some(rate.high), n: rate.prompts })
}

/// Mean with its 95 % interval, where the standard deviation and n are known.
fn mean(value: f64, std: Option<f64>, n: usize) -> Figure {
    let half = std.filter(|s| s.is_finite() && n > 1).map(|s| 1.959_964 * s / (n as f64).sqrt());
    Figure { value, low: half.map(|h| value - h), high: half.map(|h| value + h), n }
}

/// Reward, gold signal and KL of a run: at its first round and at the round whose policy was published.
struct Rounds {
    reward: Option<Change>,
    gold: Option<Change>,
    kl: Option<Figure>,
}

fn rounds(version: &ModelVersion, curves: &[Metric]) -> Rounds {
    let m = &version.metrics;
    let point = |name: &str, step: i64| curves.iter().rev().find(|p| p.name == name && p.step == step).map(|p| p.value);
    // A round measures the policy before its update: the policy after k updates is measured in round k + 1.
    let published = m["published_iteration"].as_i64().map(|k| k + 1);
    let last_step = curves.iter().filter(|p| p.name == "reward_std").map(|p| p.step).max().unwrap_or(0);
    let responses = point("episodes", last_step).filter(|_| last_step > 0).map(|e| e / last_step as f64);
    let n = responses.map_or(0, |n| n.round() as usize);
    let after = |name: &str| published.and_then(|step| point(name, step)).or_else(|| m["last"][name].as_f64());
    let step_of_after = published.filter(|step| point("reward", *step).is_some()).unwrap_or(last_step);
    // The round after the last update has no standard deviation: the latest known one is used.
    let std_after = point("reward_std", step_of_after).or_else(|| point("reward_std", last_step));
    let change = |name: &str, deviation: bool| {
        let after = after(name)?;
        let before = m["first"][name].as_f64();
        let std = |s: Option<f64>| s.filter(|_| deviation);
        Some(Change {
            before: before.map(|v| mean(v, std(point("reward_std", 1)), n)),
            after: mean(after, std(std_after), n),
        })
    };
    Rounds { reward: change("reward", true), gold: change("gold", false), kl: after("kl").map(|v| mean(v, None, n)) }
}

/// The curves that `rounds` reads.
const ROUND_CURVES: [&str; 5] = ["reward", "gold", "kl", "reward_std", "episodes"];

async fn curves(services: &Services, version: &ModelVersion) -> Result<Vec<Metric>> {
    let Some(job) = &version.job_id else { return Ok(Vec::new()) };
    let names: Vec<String> = ROUND_CURVES.iter().map(|n| (*n).to_owned()).collect();
    Ok(services.store.jobs().metrics(job, &names).await?)
}

/// The finding for a version's figures.
pub fn finding(
    version: &ModelVersion,
    accuracy: Option<&Accuracy>,
    reward: Option<&Change>,
    win_rate: Option<&Figure>,
    rolled_back: bool,
) -> Finding {
    let say = |code, worth_promoting| Finding { code, worth_promoting };
    if rolled_back {
        return say(Code::RolledBack, false);
    }
    if version.kind == ModelKind::Reward {
        return match accuracy {
            Some(a) if a.beats_chance() && baselines(&version.metrics).iter().any(|b| b.low <= 0.0) => {
                say(Code::NotAboveBaseline, true)
            }
            Some(a) if a.beats_chance() => say(Code::BetterThanChance, true),
            Some(_) => say(Code::Chance, false),
            None => say(Code::Unmeasured, false),
        };
    }
    let bound = |f: Option<f64>, test: fn(f64) -> bool| f.is_some_and(test);
    match (win_rate, reward) {
        (Some(w), _) if bound(w.low, |low| low > 0.5) => say(Code::Preferred, true),
        (Some(w), _) if bound(w.high, |high| high < 0.5) => say(Code::NotPreferred, false),
        (_, Some(Change { before: Some(before), after })) if after.value <= before.value => {
            say(Code::RewardFell, false)
        }
        (None, None) => say(Code::Unmeasured, true),
        _ => say(Code::Undecided, true),
    }
}

/// The inexpensive part, which the overview requests every few seconds.
pub async fn find(services: &Services, version: &ModelVersion, active: Option<&ModelVersion>) -> Result<Summary> {
    let accuracy = accuracy(&version.metrics).filter(|_| version.kind == ModelKind::Reward);
    let policy = version.kind == ModelKind::Policy;
    let rounds = if policy { rounds(version, &curves(services, version).await?) } else { rounds(version, &[]) };
    let win_rate = match active.filter(|a| policy && a.id != version.id) {
        Some(other) => win_rate(&services.store.models().meetings(&version.id, &other.id).await?),
        None => None,
    };
    let finding = finding(version, accuracy.as_ref(), rounds.reward.as_ref(), win_rate.as_ref(), false);
    Ok(Summary { finding, accuracy, reward: rounds.reward, kl: rounds.kl, win_rate })
}

/// A version's figures without samples.
#[derive(Clone, Debug, Serialize, schemars::JsonSchema)]
#[schemars(rename = "EvidenceSummary")]
pub struct Summary {
    pub finding: Finding,
    pub accuracy: Option<Accuracy>,
    pub reward: Option<Change>,
    pub kl: Option<Figure>,
    pub win_rate: Option<Figure>,
}

/// Everything about a version, for the dialog that asks whether to promote it or to roll it back.
///
/// # Errors
/// `NotFound` for an unknown name or id.
pub async fn evidence(services: &Services, name_or_id: &str) -> Result<Evidence> {
    let version = publish::find(services, name_or_id).await?;
    let models = services.store.models().list().await?;
    let by_id = |id: &ModelVersionId| models.iter().find(|m| m.id == *id);
    let active = models.iter().find(|m| m.kind == version.kind && m.state == ModelState::Active);
    let parent = version.parent_id.as_ref().and_then(by_id);
    // For the active version, the comparison is with its parent, which a roll-back would serve.
    let against = match active {
        Some(a) if a.id == version.id => parent.filter(|p| p.kind == version.kind),
        other => other,
    };
    let summary = find(services, &version, against).await?;
    let history = history(services, &models).await?;
    let rolled_back = history.rolled_back.get(version.id.as_str()).copied();
    let gold = rounds(&version, &curves(services, &version).await?).gold;
    let samples = samples(services, &version, against).await?;
    let labeler_agreement = match version.kind {
        ModelKind::Reward => agreement(services).await?,
        _ => None,
    };
    let Summary { accuracy, reward, kl, win_rate, .. } = summary;
    let finding = finding(&version, accuracy.as_ref(), reward.as_ref(), win_rate.as_ref(), rolled_back.is_some());
    Ok(Evidence {
        reward_win_rate: win_rate_of_run(&version, "reward"),
        gold_win_rate: win_rate_of_run(&version, "gold"),
        model: Named::from(&version),
        active: active.map(Named::from),
        parent: parent.map(Named::from),
        finding,
        accuracy,
        baselines: baselines(&version.metrics),
        labeler_agreement,
        reward,
        gold,
        kl,
        against: against.map(Named::from),
        win_rate,
        samples,
        new_rankings: services.store.models().rankings_since(version.created).await?,
        rolled_back,
    })
}

async fn agreement(services: &Services) -> Result<Option<Figure>> {
    let scope = Scope { kind: Some(SetKind::Normal), replicates: Some(AGREEMENT_REPLICATES), ..Scope::default() };
    Ok(quality::report(services, scope).await?.agreement.pairwise_without_ties)
}

/// Ten prompts at most: first those that both versions answered, then those at which the run wrote samples, where
/// the first sample stands for the policy that it started from.
async fn samples(
    services: &Services,
    version: &ModelVersion,
    against: Option<&ModelVersion>,
) -> Result<Vec<SideBySide>> {
    if version.kind != ModelKind::Policy {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    if let Some(other) = against {
        let cut = |finish: Option<String>| finish.map(|f| f == "length");
        for s in services.store.models().shared_prompts(&version.id, &other.id, SAMPLES).await? {
            found.push(SideBySide {
                prompt: s.messages,
                ours: Side { text: s.text_a, reward: s.reward_a, cut: cut(s.finish_a) },
                theirs: Side { text: s.text_b, reward: s.reward_b, cut: cut(s.finish_b) },
            });
        }
    }
    let started_from = against.is_some_and(|a| version.parent_id.as_ref() == Some(&a.id));
    if let Some(job) = version.job_id.as_ref().filter(|_| started_from) {
        found.extend(before_and_after(&services.store.jobs().samples(job, SAMPLE_EVENTS).await?));
    }
    found.truncate(SAMPLES as usize);
    Ok(found)
}

/// The first and the last sample of each prompt, where the first was written before any update.
fn before_and_after(events: &[Value]) -> Vec<SideBySide> {
    let mut prompts: Vec<(&Value, &Value, &Value)> = Vec::new();
    for event in events {
        match prompts.iter_mut().find(|(prompt, ..)| *prompt == &event["prompt"]) {
            Some((_, _, last)) => *last = event,
            None => prompts.push((&event["prompt"], event, event)),
        }
    }
    let side = |event: &Value| {
        Some(Side { text: event["completion"].as_str()?.to_owned(), reward: event["score"].as_f64(), cut: None })
    };
    prompts
        .into_iter()
        .filter(|(_, first, last)| first["step"].as_i64() == Some(0) && first["step"] != last["step"])
        .filter_map(|(prompt, first, last)| {
            Some(SideBySide { prompt: prompt.clone(), ours: side(last)?, theirs: side(first)? })
        })
        .collect()
}

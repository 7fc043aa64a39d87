//! A labeler's turn: lease a set, see it blind and shuffled, submit a judgment, reopen it.

use crate::domain::time::{DAY, SECOND, after};
use std::sync::Arc;

use super::random::shown_order;
use super::{Result, ServiceError, Services, bad_input, guidelines, not_found_as, to_the_end};
use crate::domain::*;
use crate::eval::quality::labelers::met;
use crate::service::people::Actor;
use crate::store::{LabelerCounts, LeaseRequest, NoLease, Page, Pick, SubmitJudgment, Submitted};

/// Tiers are small numbers; this bounds nonsense.
const MAX_TIER: i64 = 99;
const MAX_TEXT: usize = 64 << 10;
/// Open sets are counted up to here: nobody needs to know that 50,000 are left, and it would cost time.
pub const MOST_OPEN: i64 = 1000;
/// Selection policies of sets that somebody asked for: of the active version, or of versions they named.
pub(super) const ASKED: &str = "ask";
pub(super) const VERSIONS: &str = "versions";

/// A leased set as the labeler sees it.
pub struct Turn {
    pub assignment: Assignment,
    pub kind: SetKind,
    pub prompt: Prompt,
    /// In shown order.
    pub completions: Vec<Completion>,
    pub guideline_version: String,
    pub counts: LabelerCounts,
    /// Sets that this labeler can still judge, this one included.
    pub queue_open: i64,
    /// How far the labeler has come with the calibration sets given first; `None` once through.
    pub onboarding: Option<Onboarding>,
    /// Which of the onboarding's calibration sets this is, from 1.
    pub practice_number: Option<i64>,
}

/// Calibration sets judged, and how many come before other work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Onboarding {
    pub done: i64,
    /// Calibration sets in hand, on other pages or fetched ahead.
    #[serde(skip)]
    pub held: i64,
    pub needed: i64,
}

/// What a labeler who asks for work gets.
pub enum Next {
    Turn(Box<Turn>),
    Nothing(NoLease),
}

/// Which set a labeler asks for.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    pub set_id: Option<SetId>,
    /// A set that they hold already comes first, except for these: what a page asks that was opened anew.
    pub resume: Option<Vec<SetId>>,
    /// Language of the page.
    pub lang: Option<String>,
}

/// Judgments that the labeler may give a day; 0 = no limit.
pub fn quota(services: &Services, labeler: &Labeler) -> i64 {
    labeler.daily_quota.unwrap_or(services.live().config.labeling.daily_quota)
}

/// The same with the time since when it counts; `None` = no limit.
fn daily_limit(services: &Services, labeler: &Labeler, now: Micros) -> Option<(Micros, i64)> {
    Some(quota(services, labeler)).filter(|q| *q > 0).map(|q| (day_start(now), q))
}

/// Sets of ordinary work that the labeler can still judge, those in hand included: no more than the day's quota
/// leaves, and counted up to [`MOST_OPEN`].
pub async fn open_for(services: &Services, labeler: &Labeler, today: i64) -> Result<i64> {
    let now = services.now();
    let most = match daily_limit(services, labeler, now) {
        Some((_, limit)) => (limit - today).clamp(0, MOST_OPEN),
        None => MOST_OPEN,
    };
    Ok(services.store.sets_open_for(&labeler.id, SetKind::Normal, now, most).await?)
}

/// When the UTC day of `now` began.
pub fn day_start(now: Micros) -> Micros {
    now - now.rem_euclid(DAY)
}

/// Where the labeler stands with the calibration sets that come first; `None` once through (or without any).
pub async fn onboarding(services: &Services, labeler: &LabelerId) -> Result<Option<Onboarding>> {
    let wanted = services.live().config.labeling.onboarding_sets;
    if wanted == 0 {
        return Ok(None);
    }
    let now = services.now();
    let done = services.store.calibrations_done(labeler).await?;
    // As many as are wanted and this labeler can still get: without any, or with all skipped, nobody is held up.
    let left = services.store.sets_open_for(labeler, SetKind::Calibration, now, wanted).await?;
    let needed = wanted.min(done + left);
    let held = services.store.sets_held(labeler, SetKind::Calibration, now).await?;
    Ok((done < needed).then_some(Onboarding { done, held, needed }))
}

/// Which kind of set this turn is on: calibration first for the new, then by the configured shares.
fn pick(services: &Services, onboarding: Option<Onboarding>, resume: bool) -> Pick {
    // What is fetched ahead of the last calibration set is ordinary work.
    if onboarding.is_some_and(|o| resume || o.done + o.held < o.needed) {
        return Pick::First(SetKind::Calibration);
    }
    let (live, drawn) = (services.live(), services.random.fraction());
    let labeling = &live.config.labeling;
    if drawn < labeling.gold_share {
        Pick::Instead(SetKind::Gold)
    } else if drawn < labeling.gold_share + labeling.calibration_share {
        Pick::Instead(SetKind::Calibration)
    } else {
        Pick::Normal
    }
}

/// Leases the next set (or the one that is wanted) to the labeler.
pub async fn next(services: &Arc<Services>, actor: &Actor, wanted: Wanted) -> Result<Next> {
    next_in_order(services, actor, wanted, services.random.seed()).await
}

/// [`next`] with the order that the answers of a fresh lease are shown in.
pub(super) async fn next_in_order(
    services: &Arc<Services>,
    actor: &Actor,
    wanted: Wanted,
    order_seed: u64,
) -> Result<Next> {
    let Wanted { set_id, resume, lang } = wanted;
    let at_hand = resume.as_ref().map(|except| except.len() as i64);
    if let Some(id) = &set_id {
        services.store.get_set(id).await.map_err(|e| not_found_as(e, "set_id"))?;
    }
    let now = services.now();
    let labeler = services.store.get_labeler(&actor.labeler_id).await?;
    let onboarding = onboarding(services, &actor.labeler_id).await?;
    let request = LeaseRequest {
        labeler_id: actor.labeler_id.clone(),
        assignment_id: AssignmentId::new(),
        lease_token: services.random.secret("lease-"),
        order_seed,
        now,
        expires_at: after(now, services.live().config.labeling.lease_seconds, SECOND),
        set_id,
        pick: pick(services, onboarding, resume.is_some()),
        quota: daily_limit(services, &labeler, now),
        resume,
    };
    let (all, asked) = (services.clone(), request.clone());
    let Some(assignment) = to_the_end(async move { Ok(all.store.lease_next(asked).await?) }).await? else {
        return Ok(Next::Nothing(services.store.no_lease(&request).await?));
    };
    let set = services.store.get_set(&assignment.set_id).await?;
    let prompt = services.store.get_prompt(&set.prompt_id).await?;
    let completions = shown(services, &set, assignment.order_seed).await?;
    let guideline_version = guidelines::current(services, guidelines::language(lang.as_deref())).await?.version;
    let counts = services.store.judgment_counts(&actor.labeler_id, day_start(now)).await?;
    let queue_open = open_for(services, &labeler, counts.today).await?;
    // Gold items must look like any other, or people treat them differently.
    let kind = if set.kind == SetKind::Gold { SetKind::Normal } else { set.kind };
    let practice_number = onboarding.filter(|_| kind == SetKind::Calibration).map(|o| {
        // Of several in hand, the first that the page has not got is given again.
        let before = at_hand.map_or(o.held, |n| n.min(o.held));
        (o.done + before + 1).min(o.needed)
    });
    Ok(Next::Turn(Box::new(Turn {
        assignment,
        practice_number,
        kind,
        prompt,
        completions,
        guideline_version,
        counts,
        queue_open,
        onboarding,
    })))
}

/// The set's completions in the order that `seed` shows them.
async fn shown(services: &Services, set: &ComparisonSet, seed: u64) -> Result<Vec<Completion>> {
    let mut completions = Vec::with_capacity(set.completion_ids.len());
    for i in shown_order(seed, set.completion_ids.len()) {
        completions.push(services.store.get_completion(&set.completion_ids[i]).await?);
    }
    Ok(completions)
}

async fn own_assignment(services: &Services, actor: &Actor, id: &AssignmentId) -> Result<Assignment> {
    let assignment = services.store.get_assignment(id).await?;
    if assignment.labeler_id != actor.labeler_id {
        return Err(ServiceError::Forbidden("this assignment is another labeler's".into()));
    }
    Ok(assignment)
}

/// Extends the lease; returns when it now ends.
pub async fn renew(services: &Arc<Services>, actor: &Actor, id: &AssignmentId, token: &str) -> Result<Micros> {
    own_assignment(services, actor, id).await?;
    let now = services.now();
    let expires = after(now, services.live().config.labeling.lease_seconds, SECOND);
    let (all, id, token) = (services.clone(), id.clone(), token.to_owned());
    to_the_end(async move { Ok(all.store.renew_lease(&id, &token, now, expires).await?) }).await?;
    Ok(expires)
}

pub async fn release(services: &Arc<Services>, actor: &Actor, id: &AssignmentId, token: &str) -> Result<()> {
    own_assignment(services, actor, id).await?;
    let (all, id, token) = (services.clone(), id.clone(), token.to_owned());
    to_the_end(async move { Ok(all.store.release_lease(&id, &token).await?) }).await
}

/// What a labeler says about a set.
pub struct Word {
    pub lease_token: Option<String>,
    pub outcome: Outcome,
    /// (completion, tier, rating)
    pub items: Vec<(CompletionId, i64, Option<i64>)>,
    pub strength: Option<Strength>,
    pub rationale: Option<String>,
    pub flags: Vec<JudgmentFlag>,
    pub ideal_answer: Option<String>,
    pub active_ms: i64,
    pub wall_ms: i64,
    pub idempotency_key: String,
    pub revises: Option<JudgmentId>,
    /// Of the guidelines as they were shown; `None` = the English ones in force.
    pub guideline_version: Option<String>,
}

/// Stores the labeler's judgment of a leased set. A repeated idempotency key returns what was stored.
///
/// # Errors
/// `BadInput` naming the field, `Forbidden` for another labeler's assignment, `Conflict` by the store.
pub async fn submit(
    services: &Arc<Services>,
    actor: &Actor,
    id: &AssignmentId,
    word: Word,
) -> Result<(Submitted, Vec<Completion>)> {
    let assignment = own_assignment(services, actor, id).await?;
    let set = services.store.get_set(&assignment.set_id).await?;
    judge(services, actor, &set, Some(&assignment), word).await
}

/// Stores a word on a set, checked against the set's completions; also used for rankings by API.
pub async fn judge(
    services: &Arc<Services>,
    actor: &Actor,
    set: &ComparisonSet,
    assignment: Option<&Assignment>,
    word: Word,
) -> Result<(Submitted, Vec<Completion>)> {
    check(&word, set)?;
    let order = match assignment {
        Some(a) => shown_order(a.order_seed, set.completion_ids.len()),
        None => (0..set.completion_ids.len()).collect(),
    };
    let position = |id: &CompletionId| order.iter().position(|i| set.completion_ids[*i] == *id).unwrap_or(0) as i64;
    let now = services.now();
    let items = word.items.into_iter().map(|(completion_id, tier, rating)| JudgmentItem {
        shown_position: position(&completion_id),
        completion_id,
        tier,
        rating,
    });
    let guideline_version = match word.guideline_version {
        Some(version) => version,
        None => guidelines::current(services, guidelines::LANGUAGES[0]).await?.version,
    };
    let judgment = Judgment {
        id: JudgmentId::new(),
        assignment_id: assignment.map(|a| a.id.clone()),
        set_id: set.id.clone(),
        labeler_id: actor.labeler_id.clone(),
        revision: 1, // the store numbers revisions
        supersedes_id: word.revises,
        outcome: word.outcome,
        strength: word.strength,
        rationale: word.rationale.filter(|r| !r.trim().is_empty()),
        active_ms: word.active_ms,
        wall_ms: word.wall_ms,
        guideline_version: Some(guideline_version),
        idempotency_key: word.idempotency_key,
        items: items.collect(),
        flags: word.flags,
        created: now,
        knowledge: Knowledge::Blind, // the store knows better
    };
    if let Some(former) = &judgment.supersedes_id {
        let former = services.store.get_judgment(former).await.map_err(|e| not_found_as(e, "revises"))?;
        if former.labeler_id != actor.labeler_id {
            return Err(ServiceError::Forbidden("only one's own judgment can be revised".into()));
        }
        if former.set_id != set.id {
            return Err(bad_input("revises", "is a judgment of another set"));
        }
    }
    let ideal = word.ideal_answer.filter(|text| !text.trim().is_empty());
    let ideal_answer = ideal.map(|text| human_completion(set.prompt_id.clone(), text, now));
    let lease_token = if assignment.is_some() { Some(word.lease_token.unwrap_or_default()) } else { None };
    let labeler = services.store.get_labeler(&actor.labeler_id).await?;
    // Administrators and reviewers have no quota on rankings that they bring in by API.
    let counted = assignment.is_some() || actor.role < Role::Reviewer;
    let quota = if counted { daily_limit(services, &labeler, now) } else { None };
    let reveals = shows(services, actor, set).await?;
    let submit = SubmitJudgment { judgment, lease_token, ideal_answer, now, reveals, quota };
    let all = services.clone();
    let submitted = to_the_end(async move { Ok(all.store.submit_judgment(submit).await?) }).await?;
    if !submitted.replayed {
        metrics::counter!("instructd_judgments_total", "outcome" => submitted.judgment.outcome.as_str()).increment(1);
    }
    let mut completions = Vec::with_capacity(set.completion_ids.len());
    for id in &set.completion_ids {
        completions.push(services.store.get_completion(id).await?);
    }
    Ok((submitted, completions))
}

/// What the answer to a judgment of the set shows: the expected answer of calibration sets, and who wrote what
/// where the setting allows it or the labeler asked the models themself.
async fn shows(services: &Services, actor: &Actor, set: &ComparisonSet) -> Result<Vec<Knowledge>> {
    let mut shows = Vec::new();
    if set.kind == SetKind::Calibration {
        shows.push(Knowledge::Answer);
    }
    if services.live().config.labeling.reveal || is_own_question(services, actor, set).await? {
        shows.push(Knowledge::Authors);
    }
    Ok(shows)
}

/// The labeler asked models a question and ranks their answers: no work of the queue that must stay blind.
async fn is_own_question(services: &Services, actor: &Actor, set: &ComparisonSet) -> Result<bool> {
    if ![ASKED, VERSIONS].contains(&set.selection_policy.as_str())
        || services.store.set_maker(&set.id).await?.as_ref() != Some(&actor.labeler_id)
    {
        return Ok(false);
    }
    for id in &set.completion_ids {
        if services.store.get_completion(id).await?.model_version_id.is_none() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Who wrote what, as far as the labeler has been shown it after this judgment.
pub async fn reveal(
    services: &Services,
    judgment: &Judgment,
    completions: &[Completion],
) -> Result<Vec<(CompletionId, String)>> {
    let shown = services.store.reveals(&judgment.set_id, &judgment.labeler_id).await?;
    if judgment.outcome == Outcome::Skip || !shown.contains(&Knowledge::Authors) {
        return Ok(Vec::new());
    }
    let mut authors = Vec::new();
    for completion in completions {
        authors.push((completion.id.clone(), author(services, completion).await?));
    }
    Ok(authors)
}

/// How a judgment of a calibration set met the known answer, for the labeler to learn from.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Verdict {
    /// Share of the expected order's pairs ranked the same way, ties half; `None` when nothing was ranked.
    pub met: Option<f64>,
    pub expected: Vec<ExpectedTier>,
    pub explanation: Option<String>,
}

#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct ExpectedTier {
    pub completion_id: CompletionId,
    pub tier: i64,
}

/// The verdict on a judgment; `None` unless its set is a calibration set (gold stays hidden), and for skips,
/// which can still be judged.
pub async fn verdict(services: &Services, judgment: &Judgment) -> Result<Option<Verdict>> {
    let set = services.store.get_set(&judgment.set_id).await?;
    if set.kind != SetKind::Calibration || judgment.outcome == Outcome::Skip {
        return Ok(None);
    }
    let expected = services.store.get_gold(&set.id).await?;
    let known: std::collections::BTreeMap<_, _> = expected.iter().cloned().collect();
    let given: Vec<_> = judgment.items.iter().map(|i| (i.completion_id.clone(), i.tier)).collect();
    let met = if judgment.outcome == Outcome::Ranked { met(&known, &given) } else { None };
    let expected = expected.into_iter().map(|(completion_id, tier)| ExpectedTier { completion_id, tier }).collect();
    Ok(Some(Verdict { met, expected, explanation: services.store.set_explanation(&set.id).await? }))
}

fn check(word: &Word, set: &ComparisonSet) -> Result<()> {
    let key = &word.idempotency_key;
    if key.is_empty() || key.len() > 200 {
        return Err(bad_input("idempotency_key", "must be 1 to 200 bytes"));
    }
    let mut seen = std::collections::HashSet::new();
    for (i, (id, tier, rating)) in word.items.iter().enumerate() {
        if !set.completion_ids.contains(id) {
            return Err(bad_input(format!("items[{i}].completion_id"), format!("{id} is not in this set")));
        }
        if !seen.insert(id) {
            return Err(bad_input(format!("items[{i}].completion_id"), format!("{id} is ranked twice")));
        }
        if !(0..=MAX_TIER).contains(tier) {
            return Err(bad_input(format!("items[{i}].tier"), format!("must be 0 (best) to {MAX_TIER}")));
        }
        if rating.is_some_and(|r| !(1..=10).contains(&r)) {
            return Err(bad_input(format!("items[{i}].rating"), "must be 1 to 10"));
        }
    }
    if word.outcome == Outcome::Ranked
        && let Some(missing) = set.completion_ids.iter().find(|id| !seen.contains(id))
    {
        return Err(bad_input("items", format!("completion {missing} of the set is not ranked")));
    }
    if word.strength.is_some() && (set.completion_ids.len() != 2 || word.outcome != Outcome::Ranked) {
        return Err(bad_input("strength", "is for the ranking of two completions only"));
    }
    for (i, flag) in word.flags.iter().enumerate() {
        if let Some(id) = flag.completion_id.as_ref().filter(|id| !set.completion_ids.contains(id)) {
            return Err(bad_input(format!("flags[{i}].completion_id"), format!("{id} is not in this set")));
        }
        let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-');
        if flag.code.is_empty() || flag.code.len() > 64 || !flag.code.bytes().all(fits) {
            return Err(bad_input(format!("flags[{i}].code"), "must be 1 to 64 of a-z, 0-9, _ and -"));
        }
    }
    let notes: usize = word.flags.iter().filter_map(|f| f.note.as_ref()).map(String::len).sum();
    if notes > MAX_TEXT {
        return Err(bad_input("flags", format!("their notes have {notes} bytes; at most {MAX_TEXT} in all")));
    }
    if word.flags.len() > 64 {
        return Err(bad_input("flags", "at most 64"));
    }
    for (field, text) in [("rationale", &word.rationale), ("ideal_answer", &word.ideal_answer)] {
        if text.as_ref().is_some_and(|t| t.len() > MAX_TEXT) {
            return Err(bad_input(field, format!("at most {MAX_TEXT} bytes")));
        }
    }
    let fits = |v: &String| !v.is_empty() && v.len() <= 64 && v.bytes().all(|b| b.is_ascii_alphanumeric());
    if word.guideline_version.as_ref().is_some_and(|v| !fits(v)) {
        return Err(bad_input("guideline_version", "must be the version of GET /v1/guidelines"));
    }
    for (field, ms) in [("active_ms", word.active_ms), ("wall_ms", word.wall_ms)] {
        if ms < 0 {
            return Err(bad_input(field, "must not be negative"));
        }
    }
    Ok(())
}

/// A text written by a person.
pub(super) fn human_completion(prompt_id: PromptId, text: String, now: Micros) -> Completion {
    Completion {
        id: CompletionId::new(),
        prompt_id,
        model_version_id: None,
        origin: CompletionOrigin::Human,
        parent_completion_id: None,
        text,
        token_ids: Vec::new(),
        logprobs: Vec::new(),
        sampling: serde_json::Value::Null,
        seed: None,
        finish_reason: None,
        request_id: None,
        reward: None,
        created: now,
    }
}

/// The labeler's own judgments, newest first.
pub async fn history(services: &Services, actor: &Actor, page: Page) -> Result<Vec<Judgment>> {
    Ok(services.store.list_judgments(page, Some(&actor.labeler_id)).await?)
}

/// A judgment with its set as it was shown.
pub struct Reopened {
    pub judgment: Judgment,
    pub lease_token: Option<String>,
    pub prompt: Prompt,
    pub completions: Vec<Completion>,
}

/// Own judgments, or anybody's for reviewers.
pub async fn reopen(services: &Services, actor: &Actor, id: &JudgmentId) -> Result<Reopened> {
    let judgment = services.store.get_judgment(id).await?;
    let own = judgment.labeler_id == actor.labeler_id;
    if !own && actor.role < Role::Reviewer {
        return Err(ServiceError::Forbidden("this judgment is another labeler's".into()));
    }
    let set = services.store.get_set(&judgment.set_id).await?;
    let prompt = services.store.get_prompt(&set.prompt_id).await?;
    let mut lease_token = None;
    let completions = match &judgment.assignment_id {
        Some(id) => {
            let assignment = services.store.get_assignment(id).await?;
            lease_token = own.then_some(assignment.lease_token);
            shown(services, &set, assignment.order_seed).await?
        }
        None => shown_in_order(services, &set).await?,
    };
    Ok(Reopened { judgment, lease_token, prompt, completions })
}

async fn shown_in_order(services: &Services, set: &ComparisonSet) -> Result<Vec<Completion>> {
    let mut completions = Vec::new();
    for id in &set.completion_ids {
        completions.push(services.store.get_completion(id).await?);
    }
    Ok(completions)
}

/// What wrote a completion, revealed after the vote: the model version's name, or the origin.
pub async fn author(services: &Services, completion: &Completion) -> Result<String> {
    match &completion.model_version_id {
        Some(id) => Ok(services.store.get_model(id).await?.name),
        None => Ok(completion.origin.as_str().to_owned()),
    }
}

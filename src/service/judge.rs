//! Judgments of sets: validated, stored, and answered with what the labeler may see afterwards.

use std::sync::Arc;

use super::label::{ASKED, VERSIONS};
use super::marks::{self, Correction, MAX_TEXT, human_completion};
use super::quota::{day_start, limit_of, quota_of};
use super::random::shown_order;
use super::ratings::{self, SubmittedRatings};
use super::{Result, ServiceError, Services, bad_input, guidelines, not_found_as, uncancelled};
use crate::domain::*;
use crate::eval::quality::labelers::met;
use crate::service::people::Actor;
use crate::store::{Place, Question, StoreError, SubmitJudgment, Submitted};

/// Largest tier.
const MAX_TIER: i64 = 99;

/// A labeler's judgment of a set as it was submitted.
pub struct Submission {
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
    /// Version of the guidelines that were shown; `None` = the current English ones.
    pub guideline_version: Option<String>,
    /// Of the rubric as it was shown.
    pub rubric_version: Option<String>,
    pub ratings: Vec<Rating>,
    pub spans: Vec<Span>,
    pub corrections: Vec<Correction>,
}

/// A stored judgment, and what the labeler is shown after it.
pub struct Judged {
    pub submitted: Submitted,
    /// Authors of the completions, if the labeler has been shown them.
    pub authors: Vec<(CompletionId, String)>,
    /// `None` unless the set is a calibration set (gold stays hidden), and for skips, which can still be judged.
    pub verdict: Option<Verdict>,
}

/// Stores the labeler's judgment of a leased set. A repeated idempotency key returns what was stored.
///
/// # Errors
/// `KeyReused` of the store for the key of another judgment, `BadInput` naming the field, `Forbidden` for another labeler's assignment, `Conflict` of the store.
pub async fn submit(
    services: &Arc<Services>,
    actor: &Actor,
    id: &AssignmentId,
    submission: Submission,
) -> Result<Judged> {
    judge(services, actor, Place::Assignment(id.clone()), submission).await
}

/// Stores a submission for a set, validated against the set's completions; also used for rankings by the API.
pub async fn judge(services: &Arc<Services>, actor: &Actor, place: Place, submission: Submission) -> Result<Judged> {
    let lang = guidelines::LANGUAGES[0];
    let asked_lang = submission.guideline_version.is_none().then_some(lang);
    let rubric_version = submission.rubric_version.as_deref();
    let question = services
        .store
        .judgments()
        .question(
            &place,
            &actor.labeler_id,
            submission.revises.as_ref(),
            asked_lang,
            rubric_version,
            day_start(services.now()),
        )
        .await?;
    let (set, assignment) = (&question.set, question.assignment.as_ref());
    if assignment.is_some_and(|a| a.labeler_id != actor.labeler_id) {
        return Err(ServiceError::Forbidden("this assignment is another labeler's".into()));
    }
    check(&submission, set)?;
    let given = SubmittedRatings {
        outcome: submission.outcome,
        rubric_version: submission.rubric_version.as_deref(),
        ratings: submission.ratings,
        rationale: submission.rationale.as_deref(),
        set,
        is_leased: matches!(place, Place::Assignment(_)),
    };
    let (rubric_version, ratings) = ratings::checked(given, question.rubric.as_ref())?;
    let now = services.now();
    let spans = marks::checked_spans(services, set, submission.outcome, submission.spans).await?;
    let corrections = marks::corrected(services, set, submission.outcome, submission.corrections, now).await?;
    let order = match assignment {
        Some(a) => shown_order(a.order_seed, set.completion_ids.len()),
        None => (0..set.completion_ids.len()).collect(),
    };
    let position = |id: &CompletionId| order.iter().position(|i| set.completion_ids[*i] == *id).unwrap_or(0) as i64;
    let items = submission.items.into_iter().map(|(completion_id, tier, rating)| JudgmentItem {
        shown_position: position(&completion_id),
        completion_id,
        tier,
        rating,
    });
    let guideline_version = match submission.guideline_version {
        Some(version) => version,
        None => guidelines::with_stored(services, lang, question.guidelines.clone()).await?,
    };
    let judgment = Judgment {
        id: JudgmentId::new(),
        assignment_id: assignment.map(|a| a.id.clone()),
        set_id: set.id.clone(),
        labeler_id: actor.labeler_id.clone(),
        revision: 1, // the store numbers revisions
        supersedes_id: submission.revises,
        outcome: submission.outcome,
        strength: submission.strength,
        rationale: submission.rationale.filter(|r| !r.trim().is_empty()),
        active_ms: submission.active_ms,
        wall_ms: submission.wall_ms,
        guideline_version: Some(guideline_version),
        rubric_version,
        idempotency_key: submission.idempotency_key,
        items: items.collect(),
        flags: submission.flags,
        ratings,
        spans,
        created: now,
        knowledge: Knowledge::Blind, // the store determines it
    };
    if let Some(id) = &judgment.supersedes_id {
        let Some((set_id, labeler_id)) = &question.former else {
            let missing = StoreError::NotFound { what: "judgment", id: id.to_string() };
            return Err(not_found_as(missing, "revises"));
        };
        if *labeler_id != actor.labeler_id {
            return Err(ServiceError::Forbidden(
                "this judgment is another labeler's; only your own can be revised".into(),
            ));
        }
        if *set_id != set.id {
            return Err(bad_input("revises", "is a judgment of another set; name one of this set"));
        }
    }
    let ideal = submission.ideal_answer.filter(|text| !text.trim().is_empty());
    let ideal_answer = ideal.map(|text| human_completion(set.prompt_id.clone(), text, now));
    let lease_token = if assignment.is_some() { Some(submission.lease_token.unwrap_or_default()) } else { None };
    // Rankings of administrators and reviewers by the API are not subject to a quota.
    let counted = assignment.is_some() || actor.role < Role::Reviewer;
    let limit = match question.project_quota {
        _ if !counted => None,
        Some(quota) => limit_of(quota),
        None => quota_of(services, question.daily_quota),
    };
    let quota = limit.map(|limit| (day_start(now), limit));
    let reveals = shows(services, actor, &question);
    let submit = SubmitJudgment { judgment, lease_token, ideal_answer, corrections, now, reveals, quota };
    let all = services.clone();
    let submitted = uncancelled(async move { Ok(all.store.judgments().submit(submit).await?) }).await?;
    if !submitted.replayed {
        metrics::counter!("instructd_judgments_total", "outcome" => submitted.judgment.outcome.as_str()).increment(1);
    }
    let authors = authors(&submitted, &question);
    let verdict = verdict(&submitted.judgment, question);
    Ok(Judged { submitted, authors, verdict })
}

/// What the response to a judgment reveals: the expected answer of calibration sets, and the authors if the setting
/// allows it or the labeler asked the question.
fn shows(services: &Services, actor: &Actor, question: &Question) -> Vec<Knowledge> {
    let mut shows = Vec::new();
    if question.set.kind == SetKind::Calibration {
        shows.push(Knowledge::Answer);
    }
    if services.live().config.labeling.reveal || is_own_question(actor, question) {
        shows.push(Knowledge::Authors);
    }
    shows
}

/// Whether the labeler asked the question and ranks the answers; such a set need not stay blind.
fn is_own_question(actor: &Actor, question: &Question) -> bool {
    [ASKED, VERSIONS].contains(&question.set.selection_policy.as_str())
        && question.made_by.as_ref() == Some(&actor.labeler_id)
        && question.authors.values().all(|author| author.is_model)
}

/// Who wrote what, as far as the labeler has been shown it after this judgment.
fn authors(submitted: &Submitted, question: &Question) -> Vec<(CompletionId, String)> {
    if submitted.judgment.outcome == Outcome::Skip || !submitted.revealed.contains(&Knowledge::Authors) {
        return Vec::new();
    }
    let ids = question.set.completion_ids.iter();
    ids.filter_map(|id| question.authors.get(id).map(|author| (id.clone(), author.name.clone()))).collect()
}

/// A judgment of a calibration set compared with the known answer.
#[derive(Clone, Debug, PartialEq, serde::Serialize, schemars::JsonSchema)]
pub struct Verdict {
    /// Share of the expected order's pairs ranked the same way, ties half; `None` when nothing was ranked.
    pub met: Option<f64>,
    pub expected: Vec<ExpectedTier>,
    pub explanation: Option<String>,
}

#[derive(Clone, Debug, PartialEq, serde::Serialize, schemars::JsonSchema)]
pub struct ExpectedTier {
    pub completion_id: CompletionId,
    pub tier: i64,
}

fn verdict(judgment: &Judgment, question: Question) -> Option<Verdict> {
    if question.set.kind != SetKind::Calibration || judgment.outcome == Outcome::Skip {
        return None;
    }
    let known: std::collections::BTreeMap<_, _> = question.expected.iter().cloned().collect();
    let given: Vec<_> = judgment.items.iter().map(|i| (i.completion_id.clone(), i.tier)).collect();
    let met = if judgment.outcome == Outcome::Ranked { met(&known, &given) } else { None };
    let expected = question.expected.into_iter();
    let expected = expected.map(|(completion_id, tier)| ExpectedTier { completion_id, tier }).collect();
    Some(Verdict { met, expected, explanation: question.explanation })
}

fn check(submission: &Submission, set: &ComparisonSet) -> Result<()> {
    let key = &submission.idempotency_key;
    if key.is_empty() || key.len() > 200 {
        return Err(bad_input("idempotency_key", "must be 1 to 200 bytes"));
    }
    let mut seen = std::collections::HashSet::new();
    for (i, (id, tier, rating)) in submission.items.iter().enumerate() {
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
    if submission.outcome == Outcome::Ranked
        && let Some(missing) = set.completion_ids.iter().find(|id| !seen.contains(id))
    {
        return Err(bad_input("items", format!("completion {missing} of the set is not ranked")));
    }
    if submission.strength.is_some() && (set.completion_ids.len() != 2 || submission.outcome != Outcome::Ranked) {
        return Err(bad_input("strength", "is for the ranking of two completions only"));
    }
    for (i, flag) in submission.flags.iter().enumerate() {
        if let Some(id) = flag.completion_id.as_ref().filter(|id| !set.completion_ids.contains(id)) {
            return Err(bad_input(format!("flags[{i}].completion_id"), format!("{id} is not in this set")));
        }
        let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-');
        if flag.code.is_empty() || flag.code.len() > 64 || !flag.code.bytes().all(fits) {
            return Err(bad_input(format!("flags[{i}].code"), "must be 1 to 64 of a-z, 0-9, _ and -"));
        }
    }
    let notes: usize = submission.flags.iter().filter_map(|f| f.note.as_ref()).map(String::len).sum();
    if notes > MAX_TEXT {
        return Err(bad_input("flags", format!("their notes have {notes} bytes; at most {MAX_TEXT} in all")));
    }
    if submission.flags.len() > 64 {
        return Err(bad_input("flags", "must have at most 64 entries"));
    }
    for (field, text) in [("rationale", &submission.rationale), ("ideal_answer", &submission.ideal_answer)] {
        if text.as_ref().is_some_and(|t| t.len() > MAX_TEXT) {
            return Err(bad_input(field, format!("at most {MAX_TEXT} bytes")));
        }
    }
    let fits = |v: &String| !v.is_empty() && v.len() <= 64 && v.bytes().all(|b| b.is_ascii_alphanumeric());
    if submission.guideline_version.as_ref().is_some_and(|v| !fits(v)) {
        return Err(bad_input("guideline_version", "must be the version of GET /v1/guidelines"));
    }
    for (field, ms) in [("active_ms", submission.active_ms), ("wall_ms", submission.wall_ms)] {
        if ms < 0 {
            return Err(bad_input(field, "must not be negative"));
        }
    }
    Ok(())
}

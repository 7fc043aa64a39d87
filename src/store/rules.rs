//! The rules of leases and judgments as pure functions, from what the transaction read to what it writes.

use std::collections::HashSet;

use super::rows::not_found;
use super::{LabelerCounts, LeaseRequest, NoLease, Pick, ProjectQuota, Result, StoreError, SubmitJudgment};
use crate::domain::*;

fn conflict<T>(message: impl Into<String>) -> Result<T> {
    Err(StoreError::Conflict(message.into()))
}

// ---------------------------------------------------------------- handing out

/// The work that is available to a labeler, read for one request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outlook {
    /// The labeler's own quota, if they have one.
    pub daily_quota: Option<i64>,
    /// Whether the labeler labels in the project at all.
    pub labels_here: bool,
    /// The labeler's quota in the project, if they have one.
    pub project_quota: Option<ProjectQuota>,
    /// Current leases of the labeler in other projects; counted only where they have a quota in this one.
    pub held_elsewhere: i64,
    pub counts: LabelerCounts,
    /// Current leases of the labeler.
    pub in_hand: i64,
    /// Calibration sets judged, in hand, and still to be judged (those in hand included).
    pub calibrations_done: i64,
    pub calibrations_held: i64,
    pub calibrations_left: i64,
    /// Ordinary sets that the labeler can still judge, those in hand included, up to the number asked for.
    pub open: i64,
    /// The stored guidelines in force, if there are any.
    pub guidelines: Option<String>,
    /// The active rubric.
    pub rubric: Option<Rubric>,
    /// There is an ordinary set to hand out.
    pub ordinary_free: bool,
    /// There is one of the asked-for kind.
    pub special_free: bool,
    /// Sets that the labeler holds, in the order in which they are handed out again; read only if that is allowed.
    pub held: Vec<(Assignment, SetKind)>,
    /// Facts about the named set.
    pub named: Option<NamedSet>,
    /// Whether there are expired leases that are still marked as leased.
    pub(super) lapsed: bool,
    /// Whether there are leases that end later than one that begins now.
    pub(super) ahead: bool,
}

/// Facts that decide whether a named set can be judged.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedSet {
    pub status: SetStatus,
    pub project_id: ProjectId,
    pub overlap: i64,
    /// Number of places that others have taken.
    pub taken: i64,
    /// The labeler has judged or skipped it.
    pub judged: bool,
}

/// Action for a labeler who requests a set.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum LeasePlan {
    /// Hand out a held set again.
    Again(Assignment),
    /// Lease a set, if one is still free.
    Lease,
    Nothing(NoLease),
}

/// Decides a request for a set.
pub(super) fn plan(request: &LeaseRequest, seen: &Outlook) -> LeasePlan {
    if let Some(held) = held_already(request, seen) {
        return LeasePlan::Again(held.clone());
    }
    let used = request.quota.is_some_and(|(_, limit)| seen.counts.today + seen.in_hand >= limit);
    let done = request.quota.is_some_and(|(_, limit)| seen.counts.today >= limit);
    let nothing = match &seen.named {
        Some(set) if set.judged => Some(NoLease::Judged),
        Some(set) if set.status != SetStatus::Open => Some(NoLease::Closed),
        Some(set) if set.taken >= set.overlap => Some(NoLease::Taken),
        Some(_) => used.then_some(NoLease::Quota),
        None => {
            let something = seen.ordinary_free || matches!(request.pick, Pick::First(_)) && seen.special_free;
            // Held sets count too, but only if there is a set that the quota withholds.
            if done || used && something {
                Some(NoLease::Quota)
            } else {
                // What the labeler holds is handed out again only if the request allows it.
                let holds = seen.in_hand > 0 && (seen.open > 0 || seen.calibrations_held > 0);
                let reason = if holds && request.resume.is_none() { NoLease::Held } else { NoLease::Empty };
                (used || !something).then_some(reason)
            }
        }
    };
    nothing.map_or(LeasePlan::Lease, LeasePlan::Nothing)
}

/// A current lease of the labeler: of the named set, or the first that the caller does not have.
fn held_already<'a>(request: &LeaseRequest, seen: &'a Outlook) -> Option<&'a Assignment> {
    if request.set_id.is_none() && request.resume.is_none() {
        return None;
    }
    // Onboarding comes before ordinary work, in hand or not.
    let first = match request.pick {
        Pick::First(kind) if request.set_id.is_none() && seen.special_free => Some(kind),
        _ => None,
    };
    let fits = |held: &Assignment, kind: SetKind| {
        request.set_id.as_ref().is_none_or(|id| *id == held.set_id)
            && first.is_none_or(|first| first == kind)
            && request.resume.as_ref().is_none_or(|except| !except.contains(&held.set_id))
    };
    seen.held.iter().find(|(held, kind)| fits(held, *kind)).map(|(held, _)| held)
}

// ---------------------------------------------------------------- judging

/// Facts about a set, a labeler and their judgment, read in the transaction.
#[derive(Clone, Debug)]
pub(super) struct Standing {
    pub status: SetStatus,
    pub overlap: i64,
    pub completion_ids: Vec<CompletionId>,
    /// The judgment that is revised.
    pub former: Option<RevisedJudgment>,
    /// The one of the judgment, or of the judgment that is revised.
    pub assignment: Option<Assignment>,
    /// The labeler has a current lease on the set.
    pub holds: bool,
    /// Places of the set that others have taken.
    pub taken: i64,
    /// First judgments of the labeler since the quota counts.
    pub today: i64,
    /// The last revision that is stored of the labeler's judgments of the set.
    pub revision: Option<i64>,
    /// What the labeler has been shown of this very set.
    pub revealed: Vec<Knowledge>,
    /// Whether they know the author of one of the completions, from any set.
    pub knows_authors: bool,
    /// Number of others whose judgment counts towards the overlap.
    pub others: i64,
    /// Outcome of the labeler's own judgment that counts so far.
    pub own: Option<Outcome>,
    /// The labeler is the reviewer who settled the set: their judgments count whatever they knew.
    pub settles: bool,
}

#[derive(Clone, Debug)]
pub(super) struct RevisedJudgment {
    pub set_id: SetId,
    pub labeler_id: LabelerId,
    pub assignment_id: Option<AssignmentId>,
    pub revision: i64,
}

/// What a judgment changes.
#[derive(Clone, Debug)]
pub(super) struct Decision {
    pub judgment: Judgment,
    pub place: Option<(AssignmentId, AssignmentState)>,
    /// Of the set, where it changes.
    pub status: Option<SetStatus>,
    /// What the labeler is shown now for the first time.
    pub reveals: Vec<Knowledge>,
}

/// Decides a submitted judgment with a new idempotency key.
///
/// # Errors
/// `Conflict`, `LeaseLost` or `NotFound` by the rules.
pub(super) fn decide(found: &Standing, submit: &SubmitJudgment) -> Result<Decision> {
    let mut judgment = submit.judgment.clone();
    judgment.revision = 1;
    match (&judgment.supersedes_id, &found.former) {
        (None, _) => {}
        (Some(id), None) => return Err(not_found("judgment", id.as_str())),
        (Some(_), Some(former)) => {
            if (&former.set_id, &former.labeler_id) != (&judgment.set_id, &judgment.labeler_id) {
                return conflict("a revision must be of the same set and by the same labeler");
            }
            judgment.assignment_id = former.assignment_id.clone();
            judgment.revision = former.revision + 1;
        }
    }
    judgment.knowledge = known(found);
    let skip = judgment.outcome == Outcome::Skip;
    if let Some((_, limit)) = submit.quota
        && judgment.revision == 1
        && !skip
        && !found.holds
        && found.today >= limit
    {
        return conflict(format!("today's quota of {limit} judgments is used up; continue tomorrow"));
    }
    let place = match &judgment.assignment_id {
        None => None,
        Some(id) => {
            let held = found.assignment.as_ref().ok_or_else(|| not_found("assignment", id.as_str()))?;
            Some((held.id.clone(), place(found, held, &judgment, submit)?))
        }
    };
    check_items(&judgment, &found.completion_ids)?;
    if found.revision.is_some_and(|latest| latest >= judgment.revision) {
        return conflict("you have judged this set already; send a revision of the latest judgment");
    }
    let status = status(found, &judgment);
    let new = |what: &&Knowledge| !skip && **what != Knowledge::Blind && !found.revealed.contains(what);
    let mut reveals: Vec<Knowledge> = submit.reveals.iter().filter(new).copied().collect();
    reveals.dedup();
    Ok(Decision { place, status, reveals, judgment })
}

/// What the labeler knows when judging. Who wrote a completion is also known from any other set that holds it.
fn known(found: &Standing) -> Knowledge {
    if found.revealed.contains(&Knowledge::Answer) {
        Knowledge::Answer
    } else if found.knows_authors {
        Knowledge::Authors
    } else {
        Knowledge::Blind
    }
}

/// Turns a lease into a submitted place. A skip frees the place for another labeler.
fn place(found: &Standing, held: &Assignment, j: &Judgment, submit: &SubmitJudgment) -> Result<AssignmentState> {
    let lost = || Err(StoreError::LeaseLost(held.id.to_string()));
    let revision = j.supersedes_id.is_some();
    if (&held.set_id, &held.labeler_id) != (&j.set_id, &j.labeler_id) {
        return lost();
    }
    // A revision needs no lease: the judgment it corrects has shown that the labeler was entitled.
    match submit.lease_token.as_deref() {
        Some(token) if token != held.lease_token => return lost(),
        None if !revision => return lost(),
        _ => {}
    }
    if !revision {
        match held.state {
            AssignmentState::Submitted => {
                return conflict("this assignment is already judged; send a revision of the latest judgment");
            }
            AssignmentState::Released => return lost(),
            AssignmentState::Leased | AssignmentState::Expired => {}
        }
    }
    let has_place = held.state == AssignmentState::Submitted
        || held.state == AssignmentState::Leased && held.expires_at > submit.now
        || found.taken < found.overlap;
    if !has_place && !revision {
        return lost();
    }
    // A first judgment that was not blind does not count: like a skip, it frees the place.
    let counts = j.outcome != Outcome::Skip && (revision || j.knowledge == Knowledge::Blind);
    Ok(if counts && has_place { AssignmentState::Submitted } else { AssignmentState::Released })
}

/// Checks that a ranking names every completion of its set once, and that other judgments name only completions of the
/// set.
pub(super) fn check_items(j: &Judgment, of_set: &[CompletionId]) -> Result<()> {
    let ranked = named_once(&j.set_id, j.items.iter().map(|item| &item.completion_id), of_set)?;
    if let Some(flag) = j.flags.iter().filter_map(|f| f.completion_id.as_ref()).find(|id| !of_set.contains(id)) {
        return conflict(format!("completion {flag} is not in set {}", j.set_id));
    }
    if let Some(rated) = j.ratings.iter().map(|r| &r.completion_id).find(|id| !of_set.contains(id)) {
        return conflict(format!("completion {rated} is not in set {}", j.set_id));
    }
    if let Some(marked) = j.spans.iter().map(|s| &s.completion_id).find(|id| !of_set.contains(id)) {
        return conflict(format!("completion {marked} is not in set {}", j.set_id));
    }
    if j.outcome == Outcome::Ranked { all_ranked(ranked, of_set) } else { Ok(()) }
}

/// Checks that a ranking names every completion of its set once.
pub(super) fn check_ranking<'a>(
    set_id: &SetId,
    ranked: impl Iterator<Item = &'a CompletionId>,
    of_set: &[CompletionId],
) -> Result<()> {
    all_ranked(named_once(set_id, ranked, of_set)?, of_set)
}

/// Checks that completions are of the set and named once each. Returns their number.
fn named_once<'a>(
    set_id: &SetId,
    named: impl Iterator<Item = &'a CompletionId>,
    of_set: &[CompletionId],
) -> Result<usize> {
    let mut seen = HashSet::new();
    for id in named {
        if !of_set.contains(id) {
            return conflict(format!("completion {id} is not in set {set_id}"));
        }
        if !seen.insert(id) {
            return conflict(format!("completion {id} is ranked twice"));
        }
    }
    Ok(seen.len())
}

fn all_ranked(ranked: usize, of_set: &[CompletionId]) -> Result<()> {
    if ranked == of_set.len() {
        return Ok(());
    }
    conflict(format!("{ranked} of {} completions are ranked", of_set.len()))
}

/// The set's new status: done once enough labelers have judged it (skips do not count); `None` when it does not change.
fn status(found: &Standing, j: &Judgment) -> Option<SetStatus> {
    let counted = j.knowledge == Knowledge::Blind || found.settles;
    let own = if counted { Some(j.outcome) } else { found.own };
    let words = found.others + i64::from(own.is_some_and(|outcome| outcome != Outcome::Skip));
    let status = if found.overlap <= words { SetStatus::Done } else { SetStatus::Open };
    (found.status != SetStatus::Retired && found.status != status).then_some(status)
}

#[cfg(test)]
mod tests;

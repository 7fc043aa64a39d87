//! A labeler's turn: lease a set, see it blind and shuffled, look back at it.

use std::sync::Arc;

use super::projects;
use super::quota::day_limit;
pub use super::quota::{day_start, quota};
use super::random::shown_order;
use super::{Result, ServiceError, Services, guidelines, not_found_as, rubrics, uncancelled};
use crate::domain::time::{SECOND, after};
use crate::domain::*;
use crate::service::people::Actor;
use crate::store::{
    LabelerCounts, LabelerProject, LeaseRequest, Leased, NoLease, Outlook, OutlookRequest, Page, Pick, SetContent,
    StoreError,
};

/// Open sets are counted up to this number, because counting more costs time.
pub const MOST_OPEN: i64 = 100;
/// Selection policies of sets that a person asked for: of the active version, or of named versions.
pub(super) const ASKED: &str = "ask";
pub(super) const VERSIONS: &str = "versions";

/// A leased set as the labeler sees it.
pub struct Turn {
    pub project_id: ProjectId,
    pub assignment: Assignment,
    pub kind: SetKind,
    pub prompt: Prompt,
    /// In shown order.
    pub completions: Vec<Completion>,
    pub guideline_version: String,
    /// The active rubric.
    pub rubric: Option<Rubric>,
    pub counts: LabelerCounts,
    /// Sets that this labeler can still judge, this one included.
    pub queue_open: i64,
    /// Progress with the first calibration sets; `None` when they are done.
    pub onboarding: Option<Onboarding>,
    /// Which of the onboarding's calibration sets this is, from 1.
    pub practice_number: Option<i64>,
}

/// Number of calibration sets judged, and of those that come before other work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
pub struct Onboarding {
    pub done: i64,
    /// Calibration sets leased already, on other pages or prefetched.
    #[serde(skip)]
    pub held: i64,
    pub needed: i64,
}

/// Result of a labeler's request for work.
pub enum Next {
    Turn(Box<Turn>),
    Nothing(NoLease),
}

/// Which set a labeler requests.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    pub set_id: Option<SetId>,
    /// Id or name of the project; the labeler's first without one. A named set is handed out from its own.
    pub project: Option<String>,
    /// Prefer a set that the labeler has leased already, except for these; used by a newly opened page.
    pub resume: Option<Vec<SetId>>,
    /// Language of the page.
    pub lang: Option<String>,
}

/// Number of ordinary sets of a project that the labeler can still judge, leased ones included: limited by the day's
/// quota, and counted up to [`MOST_OPEN`].
pub async fn open_for(services: &Services, labeler: &Labeler, project: &LabelerProject, today: i64) -> Result<i64> {
    let now = services.now();
    let most = match day_limit(services, labeler.daily_quota, project.quota, project.held_elsewhere).judged {
        Some(limit) => (limit - today).clamp(0, MOST_OPEN),
        None => MOST_OPEN,
    };
    Ok(services.store.leases().open_for(&labeler.id, &project.project.id, SetKind::Normal, now, most).await?)
}

/// The labeler's progress with the first calibration sets of a project; `None` when they are done or there are none.
pub async fn onboarding(services: &Services, labeler: &LabelerId, project: &ProjectId) -> Result<Option<Onboarding>> {
    let wanted = services.live().config.labeling.onboarding_sets;
    if wanted == 0 {
        return Ok(None);
    }
    let now = services.now();
    let done = services.store.judgments().calibrations_done(labeler, project).await?;
    let left = services.store.leases().open_for(labeler, project, SetKind::Calibration, now, wanted).await?;
    let held = services.store.leases().held(labeler, project, SetKind::Calibration, now).await?;
    Ok(onboarding_by(wanted, done, left, held))
}

fn onboarding_by(wanted: i64, done: i64, left: i64, held: i64) -> Option<Onboarding> {
    // No more than this labeler can still get, so that skipped or missing calibration sets do not block other work.
    let needed = wanted.min(done + left);
    (done < needed).then_some(Onboarding { done, held, needed })
}

/// The kind of set of this turn: calibration for new labelers, then by the configured shares.
fn pick(services: &Services, onboarding: Option<Onboarding>, resume: bool) -> Pick {
    // A set that is prefetched after the last calibration set is ordinary work.
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

/// Leases the next set, or the wanted one, to the labeler.
pub async fn next(services: &Arc<Services>, actor: &Actor, wanted: Wanted) -> Result<Next> {
    next_in_order(services, actor, wanted, services.random.seed()).await
}

/// Leases the next set; `order_seed` gives the order in which a new lease shows its completions.
pub(super) async fn next_in_order(
    services: &Arc<Services>,
    actor: &Actor,
    wanted: Wanted,
    order_seed: u64,
) -> Result<Next> {
    let Wanted { set_id, project, resume, lang } = wanted;
    let at_hand = resume.as_ref().map(|except| except.len() as i64);
    let now = services.now();
    let lang = guidelines::language(lang.as_deref());
    let (lease_seconds, onboarding_sets) = {
        let live = services.live();
        (live.config.labeling.lease_seconds, live.config.labeling.onboarding_sets)
    };
    let asked = project.as_deref().map_or_else(ProjectId::first, Into::into);
    let mut look = OutlookRequest {
        labeler_id: actor.labeler_id.clone(),
        project_id: asked,
        now,
        since: day_start(now),
        again: set_id.is_some() || resume.is_some(),
        set_id,
        special: (onboarding_sets > 0).then_some(SetKind::Calibration),
        most_open: MOST_OPEN,
        most_calibrations: onboarding_sets,
        lang: Some(lang.to_owned()),
        expires_at: now + lease_seconds * SECOND,
    };
    let mut seen = outlook(services, &look).await?;
    let is_elsewhere = seen.named.as_ref().is_some_and(|set| set.project_id != look.project_id);
    if !seen.labels_here || is_elsewhere {
        // A project's name, the first project for a person who labels in others, or a named set of another project.
        let own = projects::of_person(services, actor, project.as_deref(), look.set_id.as_ref()).await?;
        let Some(own) = own else { return Ok(Next::Nothing(NoLease::Empty)) };
        look.project_id = own.project.id;
        seen = outlook(services, &look).await?;
    }
    let onboarding =
        onboarding_by(onboarding_sets, seen.calibrations_done, seen.calibrations_left, seen.calibrations_held);
    let limit = day_limit(services, seen.daily_quota, seen.project_quota, seen.held_elsewhere);
    let request = LeaseRequest {
        labeler_id: actor.labeler_id.clone(),
        project_id: look.project_id.clone(),
        assignment_id: AssignmentId::new(),
        lease_token: services.random.secret("lease-"),
        order_seed,
        now,
        expires_at: look.expires_at,
        set_id: look.set_id,
        pick: pick(services, onboarding, resume.is_some()),
        quota: limit.taken.map(|limit| (look.since, limit)),
        resume,
    };
    let (counts, open) = (seen.counts, seen.open);
    let (stored_guidelines, rubric) = (seen.guidelines.clone(), seen.rubric.clone());
    let all = services.clone();
    let leased = uncancelled(async move { Ok(all.store.leases().take(request, seen).await?) }).await?;
    let assignment = match leased {
        Leased::Set(assignment) => assignment,
        Leased::Nothing(reason) => return Ok(Next::Nothing(reason)),
    };
    let SetContent { set, prompt, completions } = services.store.sets().content(&assignment.set_id).await?;
    let completions = in_shown_order(completions, assignment.order_seed);
    let guideline_version = guidelines::with_stored(services, lang, stored_guidelines).await?;
    // Limited by the day's quota.
    let queue_open = limit.judged.map_or(open, |limit| open.min((limit - counts.today).max(0)));
    // Gold sets must look like ordinary ones.
    let kind = if set.kind == SetKind::Gold { SetKind::Normal } else { set.kind };
    let practice_number = onboarding.filter(|_| kind == SetKind::Calibration).map(|o| {
        // Of several leased sets, the first that the page does not have is returned.
        let before = at_hand.map_or(o.held, |n| n.min(o.held));
        (o.done + before + 1).min(o.needed)
    });
    Ok(Next::Turn(Box::new(Turn {
        project_id: look.project_id,
        assignment,
        practice_number,
        kind,
        prompt,
        completions,
        guideline_version,
        rubric,
        counts,
        queue_open,
        onboarding,
    })))
}

async fn outlook(services: &Services, look: &OutlookRequest) -> Result<Outlook> {
    services.store.leases().outlook(look).await.map_err(|e| match e {
        StoreError::NotFound { what: "comparison set", .. } => not_found_as(e, "set_id"),
        other => other.into(),
    })
}

/// Completions in the order that `seed` shows them.
fn in_shown_order(completions: Vec<Completion>, seed: u64) -> Vec<Completion> {
    let order = shown_order(seed, completions.len());
    let mut left: Vec<Option<Completion>> = completions.into_iter().map(Some).collect();
    order.into_iter().filter_map(|i| left.get_mut(i).and_then(Option::take)).collect()
}

async fn own_assignment(services: &Services, actor: &Actor, id: &AssignmentId) -> Result<Assignment> {
    let assignment = services.store.leases().get(id).await?;
    if assignment.labeler_id != actor.labeler_id {
        return Err(ServiceError::Forbidden("this assignment belongs to another labeler".into()));
    }
    Ok(assignment)
}

/// Extends the lease; returns when it now ends.
pub async fn renew(services: &Arc<Services>, actor: &Actor, id: &AssignmentId, token: &str) -> Result<Micros> {
    own_assignment(services, actor, id).await?;
    let now = services.now();
    let expires = after(now, services.live().config.labeling.lease_seconds, SECOND);
    let (all, id, token) = (services.clone(), id.clone(), token.to_owned());
    uncancelled(async move { Ok(all.store.leases().renew(&id, &token, now, expires).await?) }).await?;
    Ok(expires)
}

pub async fn release(services: &Arc<Services>, actor: &Actor, id: &AssignmentId, token: &str) -> Result<()> {
    own_assignment(services, actor, id).await?;
    let (all, id, token) = (services.clone(), id.clone(), token.to_owned());
    uncancelled(async move { Ok(all.store.leases().release(&id, &token).await?) }).await
}

/// The labeler's own judgments, newest first.
pub async fn history(services: &Services, actor: &Actor, page: Page) -> Result<Vec<Judgment>> {
    Ok(services.store.judgments().list(page, Some(&actor.labeler_id)).await?)
}

/// A judgment with its set as it was shown.
pub struct Reopened {
    pub judgment: Judgment,
    pub lease_token: Option<String>,
    pub prompt: Prompt,
    pub completions: Vec<Completion>,
    /// What has been revealed to the labeler about the set.
    pub revealed: Vec<Knowledge>,
    /// The rubric that a revision is rated by.
    pub rubric: Option<Rubric>,
}

/// Opens the caller's own judgment again; reviewers can open any.
pub async fn reopen(services: &Services, actor: &Actor, id: &JudgmentId) -> Result<Reopened> {
    let judgment = services.store.judgments().get(id).await?;
    let own = judgment.labeler_id == actor.labeler_id;
    if !own && actor.role < Role::Reviewer {
        return Err(ServiceError::Forbidden("this judgment belongs to another labeler".into()));
    }
    let SetContent { prompt, completions, .. } = services.store.sets().content(&judgment.set_id).await?;
    let (mut lease_token, mut shown) = (None, completions);
    if let Some(id) = &judgment.assignment_id {
        let assignment = services.store.leases().get(id).await?;
        lease_token = own.then_some(assignment.lease_token);
        shown = in_shown_order(shown, assignment.order_seed);
    }
    let revealed = services.store.judgments().reveals(&judgment.set_id, &judgment.labeler_id).await?;
    let rubric = rubrics::of_judgment(services, &judgment, &prompt.project_id).await?;
    Ok(Reopened { judgment, lease_token, prompt, completions: shown, revealed, rubric })
}

/// The author of a completion, revealed after the judgment: the model version's name, or the origin.
pub async fn author(services: &Services, completion: &Completion) -> Result<String> {
    match &completion.model_version_id {
        Some(id) => Ok(services.store.models().get(id).await?.name),
        None => Ok(completion.origin.as_str().to_owned()),
    }
}

//! A labeler's own page: progress, quota, pace, and agreement with others and with known answers. Gold sets stay hidden
//! and count as ordinary work here.

use serde::Serialize;

use super::label::{self, Onboarding};
use super::quota::{day_limit, quota_in, quota_of};
use super::{Result, Services, completion_code, projects};
use crate::domain::time::DAY;
use crate::domain::{LabelerId, Micros, Outcome, Role, SetKind};
use crate::eval::quality::statistics::median;
use crate::eval::quality::{Facts, Figure, labelers};
use crate::service::people::Actor;

const DAYS: usize = 14;

#[derive(Clone, Debug, Serialize, schemars::JsonSchema)]
pub struct OwnPage {
    pub labeler_id: LabelerId,
    pub name: String,
    pub role: Role,
    pub done_today: i64,
    pub done_total: i64,
    /// Sets that were skipped; not counted above.
    pub skipped_today: i64,
    pub skipped_total: i64,
    /// Judgments a day; `None` = no limit.
    pub quota: Option<i64>,
    pub quota_left: Option<i64>,
    /// What to enter on the crowd platform once the quota is done; `None` before that, and where no codes are used.
    pub completion_code: Option<String>,
    /// `None` once the calibration sets that come first are done.
    pub onboarding: Option<Onboarding>,
    /// Judgments of the last fourteen UTC days, the oldest first; today is the last.
    pub days: Vec<Day>,
    pub median_active_ms: Option<f64>,
    pub median_active_ms_today: Option<f64>,
    pub tie_rate: Option<Figure>,
    pub skip_rate: Option<Figure>,
    pub agreement_with_others: Option<Figure>,
    /// Over calibration sets, whose answers were shown.
    pub calibration_accuracy: Option<Figure>,
    /// Sets that this labeler can still judge today, those in hand included; at most 1000 are counted.
    pub queue_open: i64,
}

#[derive(Clone, Debug, PartialEq, Serialize, schemars::JsonSchema)]
#[schemars(rename = "OwnDay")]
pub struct Day {
    /// µs UTC at which it began.
    pub start: Micros,
    pub judgments: usize,
}

/// The caller's own figures; quota, onboarding and queue are those of the named project, or of their first.
///
/// # Errors
/// `NotFound` for an unknown project; `Forbidden` for one in which the caller does not label.
pub async fn figures(services: &Services, actor: &Actor, project: Option<&str>) -> Result<OwnPage> {
    let project = projects::of_person(services, actor, project, None).await?;
    let store = &services.store;
    let now = services.now();
    let today = label::day_start(now);
    let me = store.people().get(&actor.labeler_id).await?;
    let counts = store.judgments().counts(&me.id, today).await?;
    let mut judged = store.sets().judged_with(&me.id).await?;
    let own: Vec<_> = judged.iter().filter(|j| j.labeler_id == me.id && j.outcome != Outcome::Skip).collect();
    let first = today - (DAYS as i64 - 1) * DAY;
    let mut days: Vec<Day> = (0..DAYS as i64).map(|i| Day { start: first + i * DAY, judgments: 0 }).collect();
    for judgment in own.iter().filter(|j| j.created >= first) {
        if let Some(day) = days.get_mut(((judgment.created - first) / DAY) as usize) {
            day.judgments += 1;
        }
    }
    let pace =
        own.iter().filter(|j| j.leased && j.active_ms > 0 && j.created >= today).map(|j| j.active_ms as f64).collect();
    let median_active_ms_today = median(pace);
    for judgment in &mut judged {
        if judgment.kind == SetKind::Gold {
            judgment.kind = SetKind::Normal;
        }
    }
    let mut shown = store.sets().all_gold().await?;
    let calibration: std::collections::HashSet<_> =
        judged.iter().filter(|j| j.kind == SetKind::Calibration).map(|j| j.set_id.clone()).collect();
    shown.retain(|(set, _, _)| calibration.contains(set));
    let facts = Facts::new(&judged, &shown, &store.people().list().await?);
    let row = labelers::figures(&facts, &[]).into_iter().find(|r| r.labeler_id == me.id);
    let (quota, limit, onboarding, queue_open) = match &project {
        Some(project) => (
            quota_in(services, &me, project),
            day_limit(services, me.daily_quota, project.quota, project.held_elsewhere).judged,
            label::onboarding(services, &me.id, &project.project.id).await?,
            label::open_for(services, &me, project, counts.today).await?,
        ),
        None => (label::quota(services, &me), quota_of(services, me.daily_quota), None, 0),
    };
    let quota = Some(quota).filter(|q| *q > 0);
    Ok(OwnPage {
        labeler_id: me.id.clone(),
        name: actor.name.clone(),
        role: actor.role,
        done_today: counts.today,
        done_total: counts.total,
        skipped_today: counts.skipped_today,
        skipped_total: counts.skipped_total,
        quota,
        quota_left: limit.map(|q| (q - counts.today).max(0)),
        completion_code: limit.filter(|q| counts.today >= *q).and_then(|_| completion_code::of(services, &me.id)),
        onboarding,
        days,
        median_active_ms: row.as_ref().and_then(|r| r.median_active_ms),
        median_active_ms_today,
        tie_rate: row.as_ref().and_then(|r| r.tie_rate),
        skip_rate: row.as_ref().and_then(|r| r.skip_rate),
        agreement_with_others: row.as_ref().and_then(|r| r.agreement_with_others),
        calibration_accuracy: row.as_ref().and_then(|r| r.gold_accuracy),
        queue_open,
    })
}

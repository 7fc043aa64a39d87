//! How many judgments a person may give a day: by their quota in a project, their own quota, or the setting.

use super::Services;
use crate::domain::time::DAY;
use crate::domain::{Labeler, Micros};
use crate::store::{LabelerProject, ProjectQuota};

/// Start of the UTC day of `now`, µs.
pub fn day_start(now: Micros) -> Micros {
    now - now.rem_euclid(DAY)
}

/// Judgments that the labeler may give a day; 0 = no limit.
pub fn quota(services: &Services, labeler: &Labeler) -> i64 {
    labeler.daily_quota.unwrap_or(services.live().config.labeling.daily_quota)
}

/// Judgments a day for a labeler with their own quota `own`; `None` = no limit.
pub(super) fn quota_of(services: &Services, own: Option<i64>) -> Option<i64> {
    Some(own.unwrap_or(services.live().config.labeling.daily_quota)).filter(|q| *q > 0)
}

/// Judgments a day by a quota in a project, those of the day in other projects included; `None` = no limit.
pub(super) fn limit_of(quota: ProjectQuota) -> Option<i64> {
    (quota.daily > 0).then_some(quota.daily + quota.judged_elsewhere)
}

/// How much a person may do today, counted over all projects; `None` = no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DayLimit {
    /// First judgments.
    pub judged: Option<i64>,
    /// First judgments and current leases.
    pub taken: Option<i64>,
}

/// By the quota in the project, otherwise by the person's own quota `own`, otherwise as configured.
pub(super) fn day_limit(
    services: &Services,
    own: Option<i64>,
    in_project: Option<ProjectQuota>,
    held_elsewhere: i64,
) -> DayLimit {
    match in_project {
        Some(quota) => {
            let judged = limit_of(quota);
            DayLimit { judged, taken: judged.map(|limit| limit + held_elsewhere) }
        }
        None => {
            let limit = quota_of(services, own);
            DayLimit { judged: limit, taken: limit }
        }
    }
}

/// Judgments a day that a person may give in a project, as shown to them; 0 = no limit.
pub(super) fn quota_in(services: &Services, labeler: &Labeler, project: &LabelerProject) -> i64 {
    project.quota.map_or_else(|| quota(services, labeler), |quota| quota.daily)
}

//! Labeling projects: each has its own prompts, sets, guidelines, active rubric and people. The first project exists in
//! every installation and has what names no other.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::people::{Actor, check_name};
use super::quota::day_start;
use super::{Result, ServiceError, Services, bad_input, not_found_as, uncancelled};
use crate::domain::{LabelerId, Project, ProjectId, ProjectMember, Role, SetId};
use crate::store::{LabelerProject, ProjectCounts};

/// Most projects of one installation.
const MOST: usize = 200;

/// A project with the amounts of its data.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct CountedProject {
    #[serde(flatten)]
    pub project: Project,
    pub counts: ProjectCounts,
}

/// All projects, archived ones included: the first, then by time.
///
/// # Errors
/// Errors of the store.
pub async fn list(services: &Services) -> Result<Vec<CountedProject>> {
    let projects = services.store.projects();
    let mut counts: std::collections::HashMap<_, _> = projects.counts(None).await?.into_iter().collect();
    let all = projects.list().await?.into_iter();
    // A project that was made between the two reads has no data yet.
    Ok(all.map(|p| CountedProject { counts: counts.remove(&p.id).unwrap_or_default(), project: p }).collect())
}

/// The project with an id or a name, with the amounts of its data.
///
/// # Errors
/// `NotFound` at the field `project`.
pub async fn counted(services: &Services, wanted: &str) -> Result<CountedProject> {
    let project = find(services, wanted).await?;
    let counts = services.store.projects().counts(Some(&project.id)).await?.into_iter().next();
    Ok(CountedProject { project, counts: counts.map(|(_, counts)| counts).unwrap_or_default() })
}

/// Makes a project.
///
/// # Errors
/// `Conflict` when another has the name.
pub async fn create(services: &Arc<Services>, by: &Actor, name: &str) -> Result<Project> {
    let name = check_name(name, "name")?;
    if services.store.projects().list().await?.len() >= MOST {
        return Err(ServiceError::Conflict(format!("there are {MOST} projects, the most that an installation has")));
    }
    let now = services.now();
    let project = Project { id: ProjectId::new(), name, created: now, archived: None };
    let (all, actor) = (services.clone(), by.signature());
    uncancelled(async move {
        all.store.projects().put(project.clone()).await?;
        let detail = json!({});
        all.store.audit_log().append(&actor, "create_project", project.id.as_str(), detail, now).await?;
        Ok(project)
    })
    .await
}

/// A change of a project; what is absent stays as it is.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ProjectChange {
    pub name: Option<String>,
    /// `true`: nothing is handed out from it any more; `false`: it is in use again.
    pub archived: Option<bool>,
}

/// Renames, archives or restores a project.
///
/// # Errors
/// `NotFound` for an unknown project; `Conflict` for the name of another, and when the first would be archived.
pub async fn change(services: &Arc<Services>, by: &Actor, id: &str, change: ProjectChange) -> Result<Project> {
    let mut project = find(services, id).await?;
    if let Some(name) = &change.name {
        project.name = check_name(name, "name")?;
    }
    let now = services.now();
    match change.archived {
        Some(true) if project.id.is_first() => {
            return Err(ServiceError::Conflict("the first project cannot be archived; rename it instead".into()));
        }
        Some(true) => project.archived = project.archived.or(Some(now)),
        Some(false) => project.archived = None,
        None => {}
    }
    let (all, actor) = (services.clone(), by.signature());
    uncancelled(async move {
        all.store.projects().change(project.clone()).await?;
        let detail = json!({"archived": project.archived.is_some()});
        all.store.audit_log().append(&actor, "change_project", project.id.as_str(), detail, now).await?;
        Ok(project)
    })
    .await
}

/// The members of a project, by time.
///
/// # Errors
/// `NotFound` for an unknown project.
pub async fn members(services: &Services, id: &str) -> Result<Vec<ProjectMember>> {
    let project = find(services, id).await?;
    Ok(services.store.projects().members(&project.id).await?)
}

/// Adds a person to a project, or changes their quota in it.
///
/// # Errors
/// `NotFound` for an unknown project or labeler; `BadInput` for a negative quota.
pub async fn put_member(
    services: &Arc<Services>,
    by: &Actor,
    id: &str,
    labeler_id: LabelerId,
    daily_quota: Option<i64>,
) -> Result<ProjectMember> {
    if daily_quota.is_some_and(|q| q < 0) {
        return Err(bad_input("daily_quota", "must not be negative; null = the person's own, 0 = no limit"));
    }
    let project = find(services, id).await?.id;
    services.store.people().get(&labeler_id).await.map_err(|e| not_found_as(e, "labeler_id"))?;
    let now = services.now();
    let member = ProjectMember { labeler_id, daily_quota, created: now };
    let (all, actor) = (services.clone(), by.signature());
    uncancelled(async move {
        all.store.projects().put_member(&project, member.clone()).await?;
        let detail = json!({"labeler": member.labeler_id, "daily_quota": daily_quota});
        all.store.audit_log().append(&actor, "put_member", project.as_str(), detail, now).await?;
        let stored = all.store.projects().members(&project).await?;
        Ok(stored.into_iter().find(|m| m.labeler_id == member.labeler_id).unwrap_or(member))
    })
    .await
}

/// Removes a person from a project; what they judged stays.
///
/// # Errors
/// `NotFound` for an unknown project and for a person who is not a member.
pub async fn remove_member(services: &Arc<Services>, by: &Actor, id: &str, labeler: &LabelerId) -> Result<()> {
    let project = find(services, id).await?.id;
    let (all, actor, labeler, now) = (services.clone(), by.signature(), labeler.clone(), services.now());
    uncancelled(async move {
        all.store.projects().remove_member(&project, &labeler).await?;
        let detail = json!({"labeler": labeler});
        Ok(all.store.audit_log().append(&actor, "remove_member", project.as_str(), detail, now).await?)
    })
    .await
}

/// The project with an id or a name.
///
/// # Errors
/// `NotFound` at the field `project`.
pub async fn find(services: &Services, wanted: &str) -> Result<Project> {
    let all = services.store.projects().list().await?;
    let found = all.iter().find(|p| p.id.as_str() == wanted).or_else(|| all.iter().find(|p| p.name == wanted));
    let missing = || ServiceError::NotFound { what: "project", id: wanted.to_owned(), param: Some("project".into()) };
    found.cloned().ok_or_else(missing)
}

/// The named project; the first without a name.
///
/// # Errors
/// `NotFound` for an unknown project.
pub async fn named(services: &Services, wanted: Option<&str>) -> Result<ProjectId> {
    Ok(filter(services, wanted).await?.unwrap_or_else(ProjectId::first))
}

/// The named project, for a list; `None` = all.
///
/// # Errors
/// `NotFound` for an unknown project.
pub async fn filter(services: &Services, wanted: Option<&str>) -> Result<Option<ProjectId>> {
    match wanted {
        Some(wanted) => Ok(Some(find(services, wanted).await?.id)),
        None => Ok(None),
    }
}

/// The project to which a person adds prompts and sets: the named one, otherwise the first.
///
/// # Errors
/// `NotFound` for an unknown project; `Conflict` for an archived one; `Forbidden` for a labeler who is not a member.
pub async fn to_add_to(services: &Services, actor: &Actor, wanted: Option<&str>) -> Result<ProjectId> {
    let Some(wanted) = wanted else { return Ok(ProjectId::first()) };
    let project = find(services, wanted).await?;
    if project.archived.is_some() {
        return Err(ServiceError::Conflict(format!("the project {:?} is archived; restore it first", project.name)));
    }
    if actor.role < Role::Reviewer {
        of_person(services, actor, Some(wanted), None).await?;
    }
    Ok(project.id)
}

/// The projects in which the caller labels.
///
/// # Errors
/// Errors of the store.
pub async fn of_caller(services: &Services, actor: &Actor) -> Result<Vec<LabelerProject>> {
    let now = services.now();
    Ok(services.store.projects().of_labeler(&actor.labeler_id, now, day_start(now)).await?)
}

/// The project in which the caller labels now: that of the named set, otherwise the named one, otherwise their first;
/// `None` for a labeler whose projects are all archived.
///
/// # Errors
/// `NotFound` for an unknown project or set; `Forbidden` for one in which the caller does not label.
pub async fn of_person(
    services: &Services,
    actor: &Actor,
    wanted: Option<&str>,
    set: Option<&SetId>,
) -> Result<Option<LabelerProject>> {
    let own = of_caller(services, actor).await?;
    let id = match (set, wanted) {
        (Some(set), _) => services.store.projects().of_set(set).await.map_err(|e| not_found_as(e, "set_id"))?,
        (None, Some(wanted)) => find(services, wanted).await?.id,
        (None, None) => return Ok(own.into_iter().next()),
    };
    match own.into_iter().find(|p| p.project.id == id) {
        Some(found) => Ok(Some(found)),
        None => Err(ServiceError::Forbidden(format!(
            "you do not label in the project {id}: it is archived, or you are not a member; ask an administrator"
        ))),
    }
}

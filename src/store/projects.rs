//! Labeling projects: the projects, their members, and in which of them a person labels.

use super::judgments;
use super::rows::{Conn, Row, args, not_found};
use super::{Result, StoreError};
use crate::domain::*;

/// A person's quota in a project. What they did in other projects on the same day does not count towards it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProjectQuota {
    /// Judgments a day in the project; 0 = no limit.
    pub daily: i64,
    /// First judgments of the day in other projects.
    pub judged_elsewhere: i64,
}

impl ProjectQuota {
    /// The quota in the columns `project_quota` and `judged_elsewhere`, where the row has one.
    pub(super) fn of(row: &Row) -> Result<Option<Self>> {
        let Some(daily) = row.opt_int("project_quota")? else { return Ok(None) };
        Ok(Some(Self { daily, judged_elsewhere: row.int("judged_elsewhere")? }))
    }
}

/// A project in which a person labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelerProject {
    pub project: Project,
    pub quota: Option<ProjectQuota>,
    /// Current leases of the person in other projects; counted only where they have a quota.
    pub held_elsewhere: i64,
}

/// Amounts of a project's data.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
pub struct ProjectCounts {
    pub prompts: i64,
    pub sets_open: i64,
    pub sets_done: i64,
    /// First judgments, without skips.
    pub judgments: i64,
    pub members: i64,
}

/// First judgments since `$since` of a labeler in other projects than `$project`; all three are SQL expressions.
macro_rules! judged_elsewhere {
    ($labeler:literal, $project:literal, $since:literal) => {
        concat!(
            "(SELECT COUNT(*) FROM judgments w JOIN comparison_sets ws ON ws.id = w.set_id
              WHERE w.labeler_id = ",
            $labeler,
            " AND w.created >= ",
            $since,
            " AND ws.project_id <> ",
            $project,
            " AND ",
            $crate::store::judgments::work_done!(),
            ")"
        )
    };
}

/// Whether the labeler `l` labels in the project `p`, whose member they are if `m` is not NULL: in every project in use
/// for reviewers and administrators; otherwise where they are a member, and in the first project as a member of none.
macro_rules! labels_in {
    ($project:literal, $member:literal) => {
        concat!(
            "(",
            $project,
            ".archived IS NULL AND (",
            $member,
            ".labeler_id IS NOT NULL OR l.role <> 'labeler' OR ",
            $project,
            ".id = 'default'
                 AND NOT EXISTS (SELECT 1 FROM project_members o WHERE o.labeler_id = l.id)))"
        )
    };
}

/// Current leases at the time `$now` of a labeler in other projects than `$project`; all three are SQL expressions.
macro_rules! held_elsewhere {
    ($labeler:literal, $project:literal, $now:literal) => {
        concat!(
            "(SELECT COUNT(*) FROM assignments x JOIN comparison_sets xs ON xs.id = x.set_id
              WHERE x.labeler_id = ",
            $labeler,
            " AND x.state = 'leased' AND x.expires_at > ",
            $now,
            " AND xs.project_id <> ",
            $project,
            ")"
        )
    };
}
pub(super) use {held_elsewhere, judged_elsewhere, labels_in};

fn project(row: &Row) -> Result<Project> {
    Ok(Project {
        id: row.text("id")?.into(),
        name: row.text("name")?,
        created: row.int("created")?,
        archived: row.opt_int("archived")?,
    })
}

async fn check_name(conn: &mut Conn, id: &ProjectId, name: &str) -> Result<()> {
    let sql = "SELECT COUNT(*) AS n FROM projects WHERE name = $1 AND id <> $2";
    match conn.count(sql, args![name, id.as_str()]).await? {
        0 => Ok(()),
        _ => Err(StoreError::Conflict(format!("there is a project named {name:?}; choose another name"))),
    }
}

pub(super) async fn put(conn: &mut Conn, p: &Project) -> Result<()> {
    check_name(conn, &p.id, &p.name).await?;
    conn.run(
        "INSERT INTO projects (id, name, created, archived) VALUES ($1, $2, $3, $4)",
        args![p.id.as_str(), &p.name, p.created, p.archived],
    )
    .await?;
    Ok(())
}

pub(super) async fn change(conn: &mut Conn, p: &Project) -> Result<()> {
    check_name(conn, &p.id, &p.name).await?;
    let sql = "UPDATE projects SET name = $2, archived = $3 WHERE id = $1";
    match conn.run(sql, args![p.id.as_str(), &p.name, p.archived]).await? {
        0 => Err(not_found("project", p.id.as_str())),
        _ => Ok(()),
    }
}

pub(super) async fn list(conn: &mut Conn) -> Result<Vec<Project>> {
    conn.all("SELECT * FROM projects ORDER BY created, id", vec![]).await?.iter().map(project).collect()
}

/// Amounts of the data of all projects or one.
pub(super) async fn counts(conn: &mut Conn, only: Option<&ProjectId>) -> Result<Vec<(ProjectId, ProjectCounts)>> {
    let rows = conn
        .all(
            concat!(
                "SELECT p.id,
                   (SELECT COUNT(*) FROM prompts q WHERE q.project_id = p.id) AS prompts,
                   (SELECT COUNT(*) FROM comparison_sets s WHERE s.project_id = p.id AND s.status = 'open')
                       AS sets_open,
                   (SELECT COUNT(*) FROM comparison_sets s WHERE s.project_id = p.id AND s.status = 'done')
                       AS sets_done,
                   (SELECT COUNT(*) FROM judgments j JOIN comparison_sets s ON s.id = j.set_id
                       WHERE s.project_id = p.id AND ",
                judgments::work_done!(),
                ") AS judgments,
                   (SELECT COUNT(*) FROM project_members m WHERE m.project_id = p.id) AS members
                 FROM projects p WHERE ($1 IS NULL OR p.id = $1) ORDER BY p.created, p.id"
            ),
            args![only.map(ProjectId::as_str)],
        )
        .await?;
    let counted = |row: &Row| {
        let counts = ProjectCounts {
            prompts: row.int("prompts")?,
            sets_open: row.int("sets_open")?,
            sets_done: row.int("sets_done")?,
            judgments: row.int("judgments")?,
            members: row.int("members")?,
        };
        Ok((row.text("id")?.into(), counts))
    };
    rows.iter().map(counted).collect()
}

pub(super) async fn members(conn: &mut Conn, id: &ProjectId) -> Result<Vec<ProjectMember>> {
    let sql = "SELECT * FROM project_members WHERE project_id = $1 ORDER BY created, labeler_id";
    let member = |row: &Row| {
        Ok(ProjectMember {
            labeler_id: row.text("labeler_id")?.into(),
            daily_quota: row.opt_int("daily_quota")?,
            created: row.int("created")?,
        })
    };
    conn.all(sql, args![id.as_str()]).await?.iter().map(member).collect()
}

/// A membership that exists keeps the time since when it exists.
pub(super) async fn put_member(conn: &mut Conn, id: &ProjectId, m: &ProjectMember) -> Result<()> {
    for (what, sql, id) in [
        ("project", "SELECT COUNT(*) AS n FROM projects WHERE id = $1", id.as_str()),
        ("labeler", "SELECT COUNT(*) AS n FROM labelers WHERE id = $1", m.labeler_id.as_str()),
    ] {
        if conn.count(sql, args![id]).await? == 0 {
            return Err(not_found(what, id));
        }
    }
    conn.run(
        "INSERT INTO project_members (project_id, labeler_id, daily_quota, created) VALUES ($1, $2, $3, $4)
         ON CONFLICT (project_id, labeler_id) DO UPDATE SET daily_quota = excluded.daily_quota",
        args![id.as_str(), m.labeler_id.as_str(), m.daily_quota, m.created],
    )
    .await?;
    Ok(())
}

pub(super) async fn remove_member(conn: &mut Conn, id: &ProjectId, labeler: &LabelerId) -> Result<()> {
    let sql = "DELETE FROM project_members WHERE project_id = $1 AND labeler_id = $2";
    match conn.run(sql, args![id.as_str(), labeler.as_str()]).await? {
        0 => Err(not_found("member", labeler.as_str())),
        _ => Ok(()),
    }
}

pub(super) async fn of_labeler(
    conn: &mut Conn,
    labeler: &LabelerId,
    now: Micros,
    since: Micros,
) -> Result<Vec<LabelerProject>> {
    let rows = conn
        .all(
            concat!(
                "SELECT p.*, m.daily_quota AS project_quota,
                   CASE WHEN m.daily_quota > 0 THEN ",
                judged_elsewhere!("$1", "p.id", "$3"),
                " ELSE 0 END AS judged_elsewhere,
                   CASE WHEN m.daily_quota > 0 THEN ",
                held_elsewhere!("$1", "p.id", "$2"),
                " ELSE 0 END AS held_elsewhere
                 FROM projects p JOIN labelers l ON l.id = $1
                 LEFT JOIN project_members m ON m.project_id = p.id AND m.labeler_id = $1
                 WHERE ",
                labels_in!("p", "m"),
                " ORDER BY p.created, p.id"
            ),
            args![labeler.as_str(), now, since],
        )
        .await?;
    let found = |row: &Row| {
        Ok(LabelerProject {
            project: project(row)?,
            quota: ProjectQuota::of(row)?,
            held_elsewhere: row.int("held_elsewhere")?,
        })
    };
    rows.iter().map(found).collect()
}

pub(super) async fn of_set(conn: &mut Conn, id: &SetId) -> Result<ProjectId> {
    let row = conn.one("SELECT project_id FROM comparison_sets WHERE id = $1", args![id.as_str()]).await?;
    Ok(row.ok_or_else(|| not_found("comparison set", id.as_str()))?.text("project_id")?.into())
}

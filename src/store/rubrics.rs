//! Versions of rubrics, and which of them is active.

use super::rows::{Conn, Row, args, json, not_found};
use super::{Result, RubricVersion};
use crate::domain::*;

/// A column of the rubric that is active in a project, as a scalar; NULL without one. A project in which none was
/// activated or deactivated has that of the first project. `$project` is an SQL expression.
macro_rules! active_rubric {
    ($column:literal, $project:literal) => {
        concat!(
            "(SELECT r.",
            $column,
            " FROM rubrics r WHERE r.version =
                 (SELECT a.version FROM rubric_activations a WHERE a.project_id IN ('default', ",
            $project,
            ") ORDER BY CASE a.project_id WHEN 'default' THEN 1 ELSE 0 END, a.created DESC, a.id DESC LIMIT 1))"
        )
    };
}
pub(super) use active_rubric;

pub(super) async fn put(conn: &mut Conn, v: &RubricVersion) -> Result<()> {
    conn.run(
        "INSERT INTO rubrics (version, definition, created, created_by) VALUES ($1, $2, $3, $4)
         ON CONFLICT (version) DO NOTHING",
        args![&v.rubric.version, json(&v.rubric.definition)?, v.created, v.created_by.as_str()],
    )
    .await?;
    Ok(())
}

fn version(row: &Row) -> Result<RubricVersion> {
    Ok(RubricVersion {
        rubric: Rubric { version: row.text("version")?, definition: row.json("definition")? },
        created: row.int("created")?,
        created_by: row.text("created_by")?.into(),
    })
}

pub(super) async fn list(conn: &mut Conn) -> Result<Vec<RubricVersion>> {
    let sql = "SELECT * FROM rubrics ORDER BY created DESC, version";
    conn.all(sql, vec![]).await?.iter().map(version).collect()
}

pub(super) async fn get(conn: &mut Conn, id: &str) -> Result<RubricVersion> {
    let row = conn.one("SELECT * FROM rubrics WHERE version = $1", args![id]).await?;
    version(&row.ok_or_else(|| not_found("rubric", id))?)
}

pub(super) async fn activate(
    conn: &mut Conn,
    project: &ProjectId,
    id: Option<&str>,
    by: &LabelerId,
    now: Micros,
) -> Result<()> {
    if let Some(id) = id {
        get(conn, id).await?;
    }
    conn.run(
        "INSERT INTO rubric_activations (id, version, created, created_by, project_id) VALUES ($1, $2, $3, $4, $5)",
        args![&new_id(), id, now, by.as_str(), project.as_str()],
    )
    .await?;
    Ok(())
}

pub(super) async fn active(conn: &mut Conn, project: &ProjectId) -> Result<Option<Rubric>> {
    let sql = concat!(
        "SELECT ",
        active_rubric!("version", "$1"),
        " AS rubric_version, ",
        active_rubric!("definition", "$1"),
        " AS rubric"
    );
    conn.one(sql, args![project.as_str()]).await?.as_ref().map_or(Ok(None), rubric)
}

/// The rubric in the columns `rubric_version` and `rubric`, where the row has one.
pub(super) fn rubric(row: &Row) -> Result<Option<Rubric>> {
    match (row.opt_text("rubric_version")?, row.opt_json("rubric")?) {
        (Some(version), Some(definition)) => Ok(Some(Rubric { version, definition })),
        _ => Ok(None),
    }
}

/// A rating whose value the column `said` has as JSON text.
pub(super) fn rating(row: &Row, completion_id: CompletionId, dimension: String) -> Result<Rating> {
    let said = row.text("said")?;
    let value = serde_json::from_str(&said)
        .map_err(|e| super::StoreError::Internal(format!("the rating {said} of {completion_id}: {e}")))?;
    Ok(Rating { completion_id, dimension, value })
}

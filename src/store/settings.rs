//! Settings that are changed while the server runs, and how much each model version was used.

use std::collections::BTreeMap;

use super::rows::{Conn, Row, args};
use super::{GuidelineVersion, Result, Setting, VersionUse};
use crate::domain::*;

pub(super) async fn list(conn: &mut Conn) -> Result<Vec<Setting>> {
    conn.all("SELECT * FROM settings ORDER BY name", vec![])
        .await?
        .iter()
        .map(|row| {
            Ok(Setting {
                name: row.text("name")?,
                value: row.json("value")?,
                updated: row.int("updated")?,
                updated_by: row.text("updated_by")?,
            })
        })
        .collect()
}

/// Stores the setting, or removes it where `value` is `None`.
pub(super) async fn put(
    conn: &mut Conn,
    name: &str,
    value: Option<&serde_json::Value>,
    by: &str,
    now: Micros,
) -> Result<()> {
    match value {
        Some(value) => {
            conn.run(
                "INSERT INTO settings (name, value, updated, updated_by) VALUES ($1, $2, $3, $4)
                 ON CONFLICT (name) DO UPDATE SET value = excluded.value, updated = excluded.updated,
                     updated_by = excluded.updated_by",
                args![name, value, now, by],
            )
            .await?;
        }
        None => {
            conn.run("DELETE FROM settings WHERE name = $1", args![name]).await?;
        }
    }
    Ok(())
}

/// Completions of served requests and thumbs on them since `since`, by version. Of several thumbs of one person on a
/// completion, the last one counts.
pub(super) async fn version_use(conn: &mut Conn, since: Micros) -> Result<Vec<VersionUse>> {
    let mut by_version = BTreeMap::new();
    let written = conn
        .all(
            "SELECT model_version_id AS id, COUNT(*) AS n, CAST(SUM(length(token_ids)) / 4 AS BIGINT) AS tokens,
                 COUNT(DISTINCT request_id) AS requests,
                 COUNT(CASE WHEN finish_reason = 'length' THEN 1 END) AS cut,
                 COUNT(CASE WHEN finish_reason = 'abort' THEN 1 END) AS aborted
             FROM completions WHERE model_version_id IS NOT NULL AND origin = 'model' AND created >= $1
             GROUP BY model_version_id",
            args![since],
        )
        .await?;
    for row in written {
        let id: ModelVersionId = row.text("id")?.into();
        let used = VersionUse {
            model_version_id: id.clone(),
            requests: row.int("requests")?,
            completions: row.int("n")?,
            tokens: row.int("tokens")?,
            cut: row.int("cut")?,
            aborted: row.int("aborted")?,
            thumbs_up: 0,
            thumbs_down: 0,
        };
        by_version.insert(id, used);
    }
    let thumbs = conn
        .all(
            "SELECT c.model_version_id AS id, f.value AS value, COUNT(*) AS n
             FROM feedback_events f JOIN completions c ON c.id = f.completion_id
             WHERE f.kind = 'thumb' AND c.created >= $1 AND c.model_version_id IS NOT NULL
                 AND NOT EXISTS (SELECT 1 FROM feedback_events g WHERE g.completion_id = f.completion_id
                     AND g.kind = 'thumb' AND g.id > f.id AND g.actor_hash = f.actor_hash)
             GROUP BY c.model_version_id, f.value",
            args![since],
        )
        .await?;
    for row in thumbs {
        let Some(used) = by_version.get_mut(&ModelVersionId::from(row.text("id")?)) else { continue };
        let (value, n): (serde_json::Value, i64) = (row.json("value")?, row.int("n")?);
        let up = value == "up" || value == 1 || value == true;
        *(if up { &mut used.thumbs_up } else { &mut used.thumbs_down }) += n;
    }
    Ok(by_version.into_values().collect())
}

/// The text of a project's guidelines in a language; that of the first project where it has none. `$lang` and `$project`
/// are SQL expressions.
macro_rules! guidelines_of {
    ($lang:literal, $project:literal) => {
        concat!(
            "COALESCE(NULLIF((SELECT g.text FROM guideline_versions g WHERE g.project_id = ",
            $project,
            " AND g.lang = ",
            $lang,
            " ORDER BY g.id DESC LIMIT 1), ''),
              (SELECT g.text FROM guideline_versions g WHERE g.project_id = 'default' AND g.lang = ",
            $lang,
            " ORDER BY g.id DESC LIMIT 1))"
        )
    };
}
pub(super) use guidelines_of;

pub(super) async fn put_guidelines(conn: &mut Conn, g: &GuidelineVersion) -> Result<()> {
    conn.run(
        "INSERT INTO guideline_versions (id, lang, text, created, created_by, project_id) VALUES ($1, $2, $3, $4, $5, $6)",
        args![&g.id, &g.lang, &g.text, g.created, g.created_by.as_str(), g.project_id.as_str()],
    )
    .await?;
    Ok(())
}

fn guideline_version(row: &Row) -> Result<GuidelineVersion> {
    Ok(GuidelineVersion {
        id: row.text("id")?,
        project_id: row.text("project_id")?.into(),
        lang: row.text("lang")?,
        text: row.text("text")?,
        created: row.int("created")?,
        created_by: row.text("created_by")?.into(),
    })
}

pub(super) async fn guidelines(conn: &mut Conn) -> Result<Vec<GuidelineVersion>> {
    let sql = "SELECT * FROM guideline_versions ORDER BY id DESC";
    conn.all(sql, vec![]).await?.iter().map(guideline_version).collect()
}

pub(super) async fn latest_guidelines(
    conn: &mut Conn,
    project: &ProjectId,
    lang: &str,
) -> Result<Option<GuidelineVersion>> {
    let sql = "SELECT * FROM guideline_versions WHERE project_id = $1 AND lang = $2 ORDER BY id DESC LIMIT 1";
    conn.one(sql, args![project.as_str(), lang]).await?.as_ref().map(guideline_version).transpose()
}

//! Comparison sets, gold answers, imports.

use super::prompts;
use super::rows::{Conn, Row, args, not_found};
use super::{Page, Result, StoreError, keys};
use crate::domain::*;

pub(super) fn set(row: &Row, completion_ids: Vec<CompletionId>) -> Result<ComparisonSet> {
    Ok(ComparisonSet {
        id: row.text("id")?.into(),
        prompt_id: row.text("prompt_id")?.into(),
        kind: row.name("kind", SetKind::parse)?,
        target_overlap: row.int("target_overlap")?,
        selection_policy: row.text("selection_policy")?,
        selection_score: row.opt_real("selection_score")?,
        status: row.name("status", SetStatus::parse)?,
        completion_ids,
        created: row.int("created")?,
    })
}

pub(super) async fn items(conn: &mut Conn, id: &str) -> Result<Vec<CompletionId>> {
    conn.all("SELECT completion_id FROM set_items WHERE set_id = $1 ORDER BY position", args![id])
        .await?
        .iter()
        .map(|row| row.text("completion_id").map(Into::into))
        .collect()
}

async fn with_items(conn: &mut Conn, row: &Row) -> Result<ComparisonSet> {
    let ids = items(conn, &row.text("id")?).await?;
    set(row, ids)
}

pub(super) async fn put(conn: &mut Conn, s: &ComparisonSet) -> Result<()> {
    let mut texts = Vec::with_capacity(s.completion_ids.len());
    for id in &s.completion_ids {
        let completion = prompts::get_completion(conn, id).await?;
        if completion.prompt_id != s.prompt_id {
            return Err(StoreError::Conflict(format!("completion {id} belongs to another prompt")));
        }
        texts.push(completion.text);
    }
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    insert(conn, s, &keys::content_key(&texts)).await
}

/// A set whose completions are known to be of its prompt.
pub(super) async fn insert(conn: &mut Conn, s: &ComparisonSet, content_key: &str) -> Result<()> {
    conn.run(
        "INSERT INTO comparison_sets (id, prompt_id, kind, target_overlap, selection_policy, selection_score,
             status, created, content_key, project_id)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9,
             COALESCE((SELECT p.project_id FROM prompts p WHERE p.id = $2), 'default'))",
        args![
            s.id.as_str(),
            s.prompt_id.as_str(),
            s.kind.as_str(),
            s.target_overlap,
            &s.selection_policy,
            s.selection_score,
            s.status.as_str(),
            s.created,
            content_key
        ],
    )
    .await?;
    for (position, id) in (0i64..).zip(&s.completion_ids) {
        conn.run(
            "INSERT INTO set_items (set_id, completion_id, position) VALUES ($1, $2, $3)",
            args![s.id.as_str(), id.as_str(), position],
        )
        .await?;
    }
    Ok(())
}

/// Records whose request made the set.
pub(super) async fn made_by(conn: &mut Conn, id: &SetId, labeler: &LabelerId) -> Result<()> {
    conn.run("UPDATE comparison_sets SET made_by = $2 WHERE id = $1", args![id.as_str(), labeler.as_str()]).await?;
    Ok(())
}

/// Whose request made the set.
pub(super) async fn maker(conn: &mut Conn, id: &SetId) -> Result<Option<LabelerId>> {
    let row = conn.one("SELECT made_by FROM comparison_sets WHERE id = $1", args![id.as_str()]).await?;
    let row = row.ok_or_else(|| not_found("comparison set", id.as_str()))?;
    Ok(row.opt_text("made_by")?.map(Into::into))
}

pub(super) async fn get(conn: &mut Conn, id: &SetId) -> Result<ComparisonSet> {
    let row = conn.one("SELECT * FROM comparison_sets WHERE id = $1", args![id.as_str()]).await?;
    with_items(conn, &row.ok_or_else(|| not_found("comparison set", id.as_str()))?).await
}

/// The labeler `$4` made the set `s`, or it was handed out to them.
macro_rules! seen_by {
    () => {
        "(s.made_by = $4
          OR EXISTS (SELECT 1 FROM assignments a WHERE a.set_id = s.id AND a.labeler_id = $4)
          OR EXISTS (SELECT 1 FROM judgments j WHERE j.set_id = s.id AND j.labeler_id = $4))"
    };
}

/// `of` leaves only the sets of one labeler.
pub(super) async fn list(
    conn: &mut Conn,
    page: &Page,
    status: Option<SetStatus>,
    of: Option<&LabelerId>,
) -> Result<Vec<ComparisonSet>> {
    let rows = conn
        .all(
            concat!(
                "SELECT s.* FROM comparison_sets s WHERE ($1 IS NULL OR s.id < $1) AND ($2 IS NULL OR s.status = $2)
                   AND ($4 IS NULL OR ",
                seen_by!(),
                ") ORDER BY s.id DESC LIMIT $3"
            ),
            args![&page.after, status.map(SetStatus::as_str), page.limit, of.map(LabelerId::as_str)],
        )
        .await?;
    let mut sets = Vec::with_capacity(rows.len());
    for row in &rows {
        sets.push(with_items(conn, row).await?);
    }
    Ok(sets)
}

/// Whether the set is one that the labeler made or was handed.
pub(super) async fn is_seen_by(conn: &mut Conn, id: &SetId, labeler: &LabelerId) -> Result<bool> {
    let sql = concat!(
        "SELECT COUNT(*) AS n FROM comparison_sets s WHERE s.id = $1 AND $2 IS NULL AND $3 IS NULL AND ",
        seen_by!()
    );
    let none: Option<&str> = None;
    Ok(conn.count(sql, args![id.as_str(), none, none, labeler.as_str()]).await? > 0)
}

/// Whether the labeler made or was handed a set of the prompt.
pub(super) async fn prompt_is_seen_by(conn: &mut Conn, id: &PromptId, labeler: &LabelerId) -> Result<bool> {
    let sql = concat!(
        "SELECT COUNT(*) AS n FROM comparison_sets s WHERE s.prompt_id = $1 AND $2 IS NULL AND $3 IS NULL AND ",
        seen_by!()
    );
    let none: Option<&str> = None;
    Ok(conn.count(sql, args![id.as_str(), none, none, labeler.as_str()]).await? > 0)
}

/// Prompts of the sets that the labeler made or was handed, and those that they submitted, newest first.
pub(super) async fn prompts_seen_by(conn: &mut Conn, page: &Page, labeler: &LabelerId) -> Result<Vec<PromptId>> {
    let none: Option<&str> = None;
    conn.all(
        concat!(
            "SELECT id FROM (
                 SELECT s.prompt_id AS id FROM comparison_sets s WHERE $2 IS NULL AND ",
            seen_by!(),
            " UNION SELECT x.prompt_id AS id FROM prompt_submissions x WHERE x.labeler_id = $4) AS seen
             WHERE ($1 IS NULL OR id < $1) ORDER BY id DESC LIMIT $3"
        ),
        args![&page.after, none, page.limit, labeler.as_str()],
    )
    .await?
    .iter()
    .map(|row| row.text("id").map(Into::into))
    .collect()
}

pub(super) async fn retire(conn: &mut Conn, id: &SetId) -> Result<()> {
    match conn.run("UPDATE comparison_sets SET status = 'retired' WHERE id = $1", args![id.as_str()]).await? {
        0 => Err(not_found("comparison set", id.as_str())),
        _ => Ok(()),
    }
}

pub(super) async fn put_gold(conn: &mut Conn, set_id: &SetId, tiers: &[(CompletionId, i64)]) -> Result<()> {
    get(conn, set_id).await?;
    conn.run("DELETE FROM gold_items WHERE set_id = $1", args![set_id.as_str()]).await?;
    for (id, tier) in tiers {
        conn.run(
            "INSERT INTO gold_items (set_id, completion_id, expected_tier) VALUES ($1, $2, $3)",
            args![set_id.as_str(), id.as_str(), *tier],
        )
        .await?;
    }
    Ok(())
}

pub(super) async fn get_gold(conn: &mut Conn, set_id: &SetId) -> Result<Vec<(CompletionId, i64)>> {
    conn.all(
        "SELECT completion_id, expected_tier FROM gold_items WHERE set_id = $1 ORDER BY expected_tier, completion_id",
        args![set_id.as_str()],
    )
    .await?
    .iter()
    .map(|row| Ok((row.text("completion_id")?.into(), row.int("expected_tier")?)))
    .collect()
}

/// Overlap of sets with known answers, which everybody judges.
const FOR_EVERYBODY: i64 = 1_000_000;

pub(super) async fn make_gold(
    conn: &mut Conn,
    set_id: &SetId,
    kind: SetKind,
    tiers: &[(CompletionId, i64)],
    explanation: Option<&str>,
) -> Result<()> {
    put_gold(conn, set_id, tiers).await?;
    conn.run(
        "UPDATE comparison_sets SET kind = $2, explanation = $3, target_overlap = $4, status = 'open' WHERE id = $1",
        args![set_id.as_str(), kind.as_str(), explanation, FOR_EVERYBODY],
    )
    .await?;
    Ok(())
}

pub(super) async fn explanation(conn: &mut Conn, set_id: &SetId) -> Result<Option<String>> {
    let row = conn.one("SELECT explanation FROM comparison_sets WHERE id = $1", args![set_id.as_str()]).await?;
    row.ok_or_else(|| not_found("comparison set", set_id.as_str()))?.opt_text("explanation")
}

pub(super) async fn calibrations_done(conn: &mut Conn, labeler: &LabelerId, project: &ProjectId) -> Result<i64> {
    conn.count(
        "SELECT COUNT(*) AS n FROM judgments j JOIN comparison_sets s ON s.id = j.set_id
         WHERE j.labeler_id = $1 AND j.revision = 1 AND j.outcome <> 'skip' AND s.kind = 'calibration'
           AND s.project_id = $2",
        args![labeler.as_str(), project.as_str()],
    )
    .await
}

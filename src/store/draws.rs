//! Draws of sets: selection of prompts, progress of a draw, and opening a set for one more judgment.

use super::prompts;
use super::rows::{Conn, Row, args, json, not_found};
use super::{Page, PromptCounts, PromptFilter, Result, StoreError};
use crate::domain::*;

pub(super) async fn select_prompts(
    conn: &mut Conn,
    filter: &PromptFilter,
    after: Option<&str>,
    limit: i64,
) -> Result<Vec<Prompt>> {
    let mut found = Vec::new();
    let mut after = after.map(str::to_owned);
    // Tags are JSON, which the two databases search differently, so the rows of a page are filtered here.
    while (found.len() as i64) < limit {
        let rows = conn
            .all(
                "SELECT * FROM prompts p WHERE p.id > COALESCE($1, '') AND ($2 IS NULL OR p.source = $2)
                   AND ($3 IS NULL OR p.lang = $3) AND ($4 IS NULL OR p.split = $4)
                   AND ($5 OR NOT EXISTS (SELECT 1 FROM comparison_sets s
                       WHERE s.prompt_id = p.id AND s.status <> 'retired'))
                   AND ($6 = 0 OR (SELECT COUNT(*) FROM completions c
                       WHERE c.prompt_id = p.id AND (NOT $8 OR c.served IS NULL)) >= $6)
                   AND (NOT $8 OR NOT (p.source IN ('chat', 'completions') AND p.submitted IS NULL))
                   AND ($9 IS NULL OR p.project_id = $9)
                 ORDER BY p.id LIMIT $7",
                args![
                    &after,
                    filter.source.as_deref(),
                    filter.lang.as_deref(),
                    filter.split.map(Split::as_str),
                    filter.with_sets,
                    filter.min_completions,
                    limit,
                    filter.without_requests,
                    filter.project.as_ref().map(ProjectId::as_str)
                ],
            )
            .await?;
        let full = rows.len() as i64 == limit;
        for row in &rows {
            let prompt = prompts::prompt(row)?;
            after = Some(prompt.id.to_string());
            if filter.tag.as_ref().is_none_or(|tag| prompt.tags.contains(tag)) && (found.len() as i64) < limit {
                found.push(prompt);
            }
        }
        if !full {
            break;
        }
    }
    Ok(found)
}

/// The number of prompts that match the filter, and of those that are excluded, by reason. Each is counted once.
pub(super) async fn count_prompts(conn: &mut Conn, filter: &PromptFilter) -> Result<PromptCounts> {
    let tagged = if conn.is_postgres() {
        "EXISTS (SELECT 1 FROM jsonb_array_elements_text(p.tags) AS tag (name) WHERE tag.name = $7)"
    } else {
        "EXISTS (SELECT 1 FROM json_each(p.tags) AS tag WHERE tag.value = $7)"
    };
    let sql = format!(
        "SELECT COUNT(*) AS found, COUNT(CASE WHEN asked THEN 1 END) AS requests,
                COUNT(CASE WHEN NOT asked AND raw THEN 1 END) AS raw_text,
                COUNT(CASE WHEN NOT asked AND NOT raw AND has_set THEN 1 END) AS has_set,
                COUNT(CASE WHEN NOT asked AND NOT raw AND NOT has_set AND few THEN 1 END) AS few
         FROM (SELECT ($8 AND p.source IN ('chat', 'completions') AND p.submitted IS NULL) AS asked,
                      ($1 IS NULL AND p.source = 'completions') AS raw,
                      (NOT $4 AND EXISTS (SELECT 1 FROM comparison_sets s
                          WHERE s.prompt_id = p.id AND s.status <> 'retired')) AS has_set,
                      ($5 > 0 AND (SELECT COUNT(*) FROM completions c
                          WHERE c.prompt_id = p.id AND (NOT $8 OR c.served IS NULL)) < $5) AS few
               FROM prompts p
               WHERE ($1 IS NULL OR p.source = $1) AND ($2 IS NULL OR p.lang = $2) AND ($3 IS NULL OR p.split = $3)
                 AND ($6 OR {tagged}) AND ($9 IS NULL OR p.project_id = $9)) AS counted"
    );
    let rows = conn
        .all_built(
            sql,
            args![
                filter.source.as_deref(),
                filter.lang.as_deref(),
                filter.split.map(Split::as_str),
                filter.with_sets,
                filter.min_completions,
                filter.tag.is_none(),
                filter.tag.as_deref(),
                filter.without_requests,
                filter.project.as_ref().map(ProjectId::as_str)
            ],
        )
        .await?;
    let row = rows.first().ok_or_else(|| StoreError::Internal("a count returned no row".into()))?;
    Ok(PromptCounts {
        found: row.int("found")?,
        requests: row.int("requests")?,
        raw_text: row.int("raw_text")?,
        has_set: row.int("has_set")?,
        few_completions: row.int("few")?,
    })
}

fn draw(row: &Row) -> Result<SetDraw> {
    Ok(SetDraw {
        id: row.text("id")?.into(),
        request: row.json("request")?,
        state: row.name("state", DrawState::parse)?,
        wanted: row.int("wanted")?,
        looked_at: row.int("looked_at")?,
        made: row.int("made")?,
        report: row.json("report")?,
        error: row.opt_text("error")?,
        created: row.int("created")?,
        updated: row.int("updated")?,
    })
}

pub(super) async fn put(conn: &mut Conn, d: &SetDraw) -> Result<()> {
    conn.run(
        "INSERT INTO set_draws (id, request, state, wanted, looked_at, made, error, created, updated, report)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        args![
            d.id.as_str(),
            &d.request,
            d.state.as_str(),
            d.wanted,
            d.looked_at,
            d.made,
            &d.error,
            d.created,
            d.updated,
            json(&d.report)?
        ],
    )
    .await?;
    Ok(())
}

pub(super) async fn get(conn: &mut Conn, id: &DrawId) -> Result<SetDraw> {
    let row = conn.one("SELECT * FROM set_draws WHERE id = $1", args![id.as_str()]).await?;
    draw(&row.ok_or_else(|| not_found("draw", id.as_str()))?)
}

pub(super) async fn list(conn: &mut Conn, page: &Page) -> Result<Vec<SetDraw>> {
    conn.all(
        "SELECT * FROM set_draws WHERE ($1 IS NULL OR id < $1) ORDER BY id DESC LIMIT $2",
        args![&page.after, page.limit],
    )
    .await?
    .iter()
    .map(draw)
    .collect()
}

pub(super) async fn advance(conn: &mut Conn, d: &SetDraw) -> Result<bool> {
    let changed = conn
        .run(
            "UPDATE set_draws SET state = $2, looked_at = $3, made = $4, error = $5, updated = $6,
                 report = $7
             WHERE id = $1 AND state = 'running'",
            args![d.id.as_str(), d.state.as_str(), d.looked_at, d.made, &d.error, d.updated, json(&d.report)?],
        )
        .await?;
    Ok(changed == 1)
}

pub(super) async fn cancel(conn: &mut Conn, id: &DrawId, now: Micros) -> Result<SetDraw> {
    let changed = conn
        .run(
            "UPDATE set_draws SET state = 'cancelled', updated = $2 WHERE id = $1 AND state = 'running'",
            args![id.as_str(), now],
        )
        .await?;
    let draw = get(conn, id).await?;
    if changed == 0 { Err(StoreError::Conflict(format!("the draw is {}", draw.state))) } else { Ok(draw) }
}

pub(super) async fn extend_set(conn: &mut Conn, id: &SetId, policy: &str, score: Option<f64>) -> Result<()> {
    let changed = conn
        .run(
            "UPDATE comparison_sets SET target_overlap = target_overlap + 1, status = 'open', selection_score = $3,
                 selection_policy = CASE WHEN selection_policy = 'import' THEN 'import' ELSE $2 END
             WHERE id = $1 AND status <> 'retired'",
            args![id.as_str(), policy, score],
        )
        .await?;
    if changed == 0 { Err(not_found("comparison set", id.as_str())) } else { Ok(()) }
}

pub(super) async fn prioritise(conn: &mut Conn, id: &SetId, score: f64) -> Result<bool> {
    let sql = "UPDATE comparison_sets SET selection_score = $2 WHERE id = $1 AND status = 'open'";
    Ok(conn.run(sql, args![id.as_str(), score]).await? > 0)
}

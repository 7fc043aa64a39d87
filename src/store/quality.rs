//! Judgments as the quality figures read them: all of them, without texts.

use super::judgments::current;
use super::rows::{Conn, Row, args};
use super::{JudgedFilter, Result, rubrics};
use crate::domain::*;

/// Judgments that one statement reads.
const PART: i64 = 5000;

/// The id of the last judgment of the part that begins after `after`; `None` for the last part.
pub(super) async fn end_of_part(conn: &mut Conn, after: &str) -> Result<Option<String>> {
    let sql = "SELECT id FROM judgments WHERE id > $1 ORDER BY id LIMIT 1 OFFSET $2";
    conn.one(sql, args![after, PART]).await?.map(|row| row.text("id")).transpose()
}

/// Passes the judgments after the first id up to the second one to `take`, ordered by id; with `labeler`, only those of sets
/// that this person judged. Each is taken when the next one begins, and the last stays in `current`: one judgment is in
/// memory.
pub(super) async fn judged_part(
    conn: &mut Conn,
    filter: &JudgedFilter,
    labeler: Option<&LabelerId>,
    (after, end): (&str, Option<&str>),
    current: &mut Option<JudgedSet>,
    take: &mut (impl FnMut(JudgedSet) + Send),
) -> Result<()> {
    conn.each(
        concat!(
            "SELECT j.id AS judgment_id, j.set_id, j.labeler_id, j.outcome, j.active_ms, j.assignment_id, j.created,
                    s.prompt_id, s.kind, i.completion_id, i.tier, i.shown_position, c.model_version_id, c.origin,
                    CAST(LENGTH(c.text) AS BIGINT) AS length
             FROM judgments j
             JOIN comparison_sets s ON s.id = j.set_id
             LEFT JOIN judgment_items i ON i.judgment_id = j.id
             LEFT JOIN completions c ON c.id = i.completion_id
             WHERE ($1 IS NULL OR s.kind = $1) AND ($2 IS NULL OR j.created >= $2)
               AND ($3 IS NULL OR j.set_id IN (SELECT set_id FROM judgments WHERE labeler_id = $3))
               AND ($4 IS NULL OR s.project_id = $4)
               AND j.id > $5 AND j.id <= COALESCE($6, '~')
               AND ",
            current!(),
            " ORDER BY j.id, i.completion_id"
        ),
        args![
            filter.kind.map(SetKind::as_str),
            filter.since,
            labeler.map(LabelerId::as_str),
            filter.project.as_ref().map(ProjectId::as_str),
            after,
            end
        ],
        |row| {
            let id: JudgmentId = row.text("judgment_id")?.into();
            if current.as_ref().is_none_or(|judgment| judgment.judgment_id != id)
                && let Some(complete) = current.replace(judged_set(row, id)?)
            {
                take(complete);
            }
            if let (Some(completion_id), Some(judgment)) = (row.opt_text("completion_id")?, &mut *current) {
                judgment.items.push(JudgedItem {
                    completion_id: completion_id.into(),
                    model_version_id: row.opt_text("model_version_id")?.map(Into::into),
                    origin: row.name("origin", CompletionOrigin::parse)?,
                    length: row.int("length")?,
                    tier: row.int("tier")?,
                    shown_position: row.int("shown_position")?,
                });
            }
            Ok(true)
        },
    )
    .await
}

/// The judgment of a row, without items.
fn judged_set(row: &Row, judgment_id: JudgmentId) -> Result<JudgedSet> {
    Ok(JudgedSet {
        judgment_id,
        set_id: row.text("set_id")?.into(),
        prompt_id: row.text("prompt_id")?.into(),
        labeler_id: row.text("labeler_id")?.into(),
        kind: row.name("kind", SetKind::parse)?,
        outcome: row.name("outcome", Outcome::parse)?,
        active_ms: row.int("active_ms")?,
        leased: row.opt_text("assignment_id")?.is_some(),
        created: row.int("created")?,
        items: Vec::new(),
    })
}

pub(super) async fn judged_with(conn: &mut Conn, labeler: &LabelerId) -> Result<Vec<JudgedSet>> {
    let mut judged = Vec::new();
    let mut last = None;
    let mut take = |judgment| judged.push(judgment);
    judged_part(conn, &JudgedFilter::default(), Some(labeler), ("", None), &mut last, &mut take).await?;
    judged.extend(last);
    Ok(judged)
}

pub(super) async fn all_gold(conn: &mut Conn) -> Result<Vec<(SetId, CompletionId, i64)>> {
    conn.all("SELECT set_id, completion_id, expected_tier FROM gold_items ORDER BY set_id, completion_id", vec![])
        .await?
        .iter()
        .map(|row| Ok((row.text("set_id")?.into(), row.text("completion_id")?.into(), row.int("expected_tier")?)))
        .collect()
}

/// Ratings of judgments that count; by rubric, set, completion, dimension and labeler.
pub(super) async fn ratings(conn: &mut Conn, filter: &JudgedFilter) -> Result<Vec<GivenRating>> {
    let rows = conn
        .all(
            concat!(
                "SELECT j.rubric_version, j.set_id, j.labeler_id, r.completion_id, r.dimension,
                     CAST(r.value AS TEXT) AS said
                 FROM judgments j
                 JOIN comparison_sets s ON s.id = j.set_id
                 JOIN judgment_ratings r ON r.judgment_id = j.id
                 WHERE ($1 IS NULL OR s.kind = $1) AND ($2 IS NULL OR j.created >= $2)
                   AND ($3 IS NULL OR s.project_id = $3) AND ",
                current!(),
                " ORDER BY j.rubric_version, j.set_id, r.completion_id, r.dimension, j.labeler_id"
            ),
            args![filter.kind.map(SetKind::as_str), filter.since, filter.project.as_ref().map(ProjectId::as_str)],
        )
        .await?;
    rows.iter()
        .map(|row| {
            Ok(GivenRating {
                rubric_version: row.text("rubric_version")?,
                set_id: row.text("set_id")?.into(),
                labeler_id: row.text("labeler_id")?.into(),
                rating: rubrics::rating(row, row.text("completion_id")?.into(), row.text("dimension")?)?,
            })
        })
        .collect()
}

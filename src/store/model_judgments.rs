//! Language models as labelers, and their rankings of sets. They are in tables of their own, so that no figure, queue or
//! data set of people's judgments can count them.

use super::rows::{Arg, Conn, Row, args};
use super::{JudgedFilter, Result, rules};
use crate::domain::*;

/// The sets that a model is to rank.
#[derive(Clone, Debug)]
pub struct ToJudge {
    pub labeler_id: LabelerId,
    /// What the model is told about good answers.
    pub criteria: String,
    pub which: SetsToJudge,
    /// Leave out sets of prompts that came in only as requests.
    pub without_requests: bool,
    /// Maximum number of sets.
    pub limit: i64,
}

/// The id of criteria: a hash of the text.
fn criteria_id(text: &str) -> String {
    hash::of_bytes(text)
}

/// Stores a model as a labeler, or its name when the model is known.
pub(super) async fn put_labeler(conn: &mut Conn, l: &ModelLabeler) -> Result<()> {
    conn.run(
        "INSERT INTO labelers (id, name, role, active, created, kind) VALUES ($1, $2, 'labeler', $3, $4, 'model')
         ON CONFLICT (id) DO UPDATE SET name = excluded.name WHERE labelers.kind = 'model'",
        args![l.id.as_str(), &l.name, false, l.created],
    )
    .await?;
    Ok(())
}

pub(super) async fn labelers(conn: &mut Conn) -> Result<Vec<ModelLabeler>> {
    let sql = "SELECT id, name, created FROM labelers WHERE kind = 'model' ORDER BY created, id";
    let labeler = |row: &Row| {
        Ok(ModelLabeler { id: row.text("id")?.into(), name: row.text("name")?, created: row.int("created")? })
    };
    conn.all(sql, vec![]).await?.iter().map(labeler).collect()
}

pub(super) async fn to_judge(conn: &mut Conn, wanted: &ToJudge) -> Result<Vec<SetId>> {
    let rows = conn
        .all(
            "SELECT s.id FROM comparison_sets s JOIN prompts p ON p.id = s.prompt_id
             WHERE s.kind = 'normal' AND s.status <> 'retired'
               AND ($1 <> 'open' OR s.status = 'open')
               AND ($1 <> 'ranked' OR EXISTS (SELECT 1 FROM judgments j WHERE j.set_id = s.id AND j.outcome = 'ranked'))
               AND NOT EXISTS (SELECT 1 FROM model_judgments m
                   WHERE m.set_id = s.id AND m.labeler_id = $2 AND m.criteria_id = $3)
               AND (NOT $4 OR p.source NOT IN ('chat', 'completions') OR p.submitted IS NOT NULL)
             ORDER BY s.id DESC LIMIT $5",
            args![
                wanted.which.as_str(),
                wanted.labeler_id.as_str(),
                &criteria_id(&wanted.criteria),
                wanted.without_requests,
                wanted.limit
            ],
        )
        .await?;
    rows.iter().map(|row| row.text("id").map(Into::into)).collect()
}

/// Stores rankings. A set that no longer exists, and one that the model has ranked by these criteria, are left out.
/// Returns the number of stored rankings.
///
/// # Errors
/// `Conflict` for a ranking that does not name every completion of its set once.
pub(super) async fn append(conn: &mut Conn, judgments: &[ModelJudgment]) -> Result<u64> {
    let mut stored = 0;
    for judgment in judgments {
        stored += append_one(conn, judgment).await?;
    }
    Ok(stored)
}

async fn append_one(conn: &mut Conn, j: &ModelJudgment) -> Result<u64> {
    let of_set = super::sets::items(conn, j.set_id.as_str()).await?;
    if of_set.is_empty() {
        return Ok(0);
    }
    rules::check_ranking(&j.set_id, j.items.iter().map(|(id, _)| id), &of_set)?;
    let criteria = criteria_id(&j.criteria);
    conn.run(
        "INSERT INTO judge_criteria (id, text) VALUES ($1, $2) ON CONFLICT (id) DO NOTHING",
        args![&criteria, &j.criteria],
    )
    .await?;
    let stored = conn
        .run(
            "INSERT INTO model_judgments (id, set_id, labeler_id, revision, criteria_id, doubt, created)
             SELECT $1, s.id, $3, COALESCE((SELECT MAX(m.revision) FROM model_judgments m
                 WHERE m.set_id = s.id AND m.labeler_id = $3), 0) + 1, $4, $5, $6
             FROM comparison_sets s WHERE s.id = $2
             ON CONFLICT DO NOTHING",
            args![j.id.as_str(), j.set_id.as_str(), j.labeler_id.as_str(), &criteria, j.doubt, j.created],
        )
        .await?;
    if stored == 0 {
        return Ok(0);
    }
    for (completion_id, tier) in &j.items {
        conn.run(
            "INSERT INTO model_judgment_items (judgment_id, completion_id, tier) VALUES ($1, $2, $3)",
            args![j.id.as_str(), completion_id.as_str(), *tier],
        )
        .await?;
    }
    Ok(stored)
}

/// A row for every completion of the rankings for which a condition holds.
macro_rules! with_items {
    ($which:literal) => {
        concat!(
            "SELECT m.id, m.set_id, m.labeler_id, m.doubt, m.created, c.text AS criteria, i.completion_id, i.tier
             FROM model_judgments m
             JOIN comparison_sets s ON s.id = m.set_id
             JOIN judge_criteria c ON c.id = m.criteria_id
             JOIN model_judgment_items i ON i.judgment_id = m.id
             WHERE ",
            $which,
            " ORDER BY m.id, i.tier, i.completion_id"
        )
    };
}

/// Rankings in the order in which they were stored.
pub(super) async fn all(conn: &mut Conn, filter: &JudgedFilter) -> Result<Vec<ModelJudgment>> {
    let which = with_items!(
        "($1 IS NULL OR s.kind = $1) AND ($2 IS NULL OR m.created >= $2) AND ($3 IS NULL OR s.project_id = $3)"
    );
    let project = filter.project.as_ref().map(ProjectId::as_str);
    read(conn, which, args![filter.kind.map(SetKind::as_str), filter.since, project]).await
}

/// Rankings of one set, in the order in which they were stored.
pub(super) async fn of_set(conn: &mut Conn, set: &SetId) -> Result<Vec<ModelJudgment>> {
    read(conn, with_items!("m.set_id = $1"), args![set.as_str()]).await
}

/// The rankings that a statement of `with_items!` finds.
async fn read(conn: &mut Conn, sql: &'static str, values: Vec<Arg>) -> Result<Vec<ModelJudgment>> {
    let mut judgments: Vec<ModelJudgment> = Vec::new();
    conn.each(sql, values, |row| {
        let id: JudgmentId = row.text("id")?.into();
        if judgments.last().is_none_or(|last| last.id != id) {
            judgments.push(ModelJudgment {
                id,
                set_id: row.text("set_id")?.into(),
                labeler_id: row.text("labeler_id")?.into(),
                criteria: row.text("criteria")?,
                doubt: row.real("doubt")?,
                items: Vec::new(),
                created: row.int("created")?,
            });
        }
        if let Some(judgment) = judgments.last_mut() {
            judgment.items.push((row.text("completion_id")?.into(), row.int("tier")?));
        }
        Ok(true)
    })
    .await?;
    Ok(judgments)
}

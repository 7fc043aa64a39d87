//! Judgments: append-only rankings with revisions, and the joined view for training.

use super::rows::{Conn, PAGE_BYTES, Row, args, json, not_found};
use super::{LabelerCounts, Page, RankedFilter, Result, rubrics};
use crate::domain::*;

/// Judgments with their items, flags, ratings and spans, one row for each of those, in one statement.
macro_rules! whole {
    ($which:literal, $order:literal) => {
        concat!(
            "SELECT j.*, i.completion_id AS about, i.tier, i.shown_position, i.rating, NULL AS code, NULL AS note,
                 NULL AS said, CAST(0 AS BIGINT) AS part, i.shown_position AS place
             FROM judgments j LEFT JOIN judgment_items i ON i.judgment_id = j.id WHERE ",
            $which,
            " UNION ALL
             SELECT j.*, f.completion_id, NULL, NULL, NULL, f.code, f.note, NULL, 1, f.position
             FROM judgments j JOIN judgment_flags f ON f.judgment_id = j.id WHERE ",
            $which,
            " UNION ALL
             SELECT j.*, r.completion_id, NULL, NULL, NULL, r.dimension, NULL, CAST(r.value AS TEXT), 2, 0
             FROM judgments j JOIN judgment_ratings r ON r.judgment_id = j.id WHERE ",
            $which,
            " UNION ALL
             SELECT j.*, x.completion_id, x.start_char, x.end_char, NULL, NULL, x.note, NULL, 3, 0
             FROM judgments j JOIN judgment_spans x ON x.judgment_id = j.id WHERE ",
            $which,
            " ORDER BY ",
            $order,
            ", part, place, about, code, tier"
        )
    };
}

/// Values of the column `part` of `whole!`; items have 0. Spans have their bounds in the columns of items.
const FLAG: i64 = 1;
const RATING: i64 = 2;
const SPAN: i64 = 3;

/// Rows of `whole!`.
fn gather(rows: &[Row]) -> Result<Vec<Judgment>> {
    let mut judgments: Vec<Judgment> = Vec::new();
    for row in rows {
        gather_one(&mut judgments, row)?;
    }
    Ok(judgments)
}

/// Adds a row of `whole!` to the judgments before it.
fn gather_one(judgments: &mut Vec<Judgment>, row: &Row) -> Result<()> {
    let id = row.text("id")?;
    if judgments.last().is_none_or(|last| last.id.as_str() != id) {
        judgments.push(head(row)?);
    }
    let Some(judgment) = judgments.last_mut() else { return Ok(()) };
    let about = row.opt_text("about")?.map(CompletionId::from);
    match (row.int("part")?, about) {
        (FLAG, completion_id) => {
            let (code, note) = (row.text("code")?, row.opt_text("note")?);
            judgment.flags.push(JudgmentFlag { completion_id, code, note });
        }
        (RATING, Some(about)) => judgment.ratings.push(rubrics::rating(row, about, row.text("code")?)?),
        (SPAN, Some(completion_id)) => judgment.spans.push(Span {
            completion_id,
            start: row.int("tier")?,
            end: row.int("shown_position")?,
            note: row.opt_text("note")?,
        }),
        (_, Some(completion_id)) => judgment.items.push(JudgmentItem {
            completion_id,
            tier: row.int("tier")?,
            shown_position: row.int("shown_position")?,
            rating: row.opt_int("rating")?,
        }),
        (_, None) => {}
    }
    Ok(())
}

/// Bytes of the texts that a labeler wrote with a judgment.
fn size(judgment: &Judgment) -> usize {
    let notes = judgment.flags.iter().filter_map(|flag| flag.note.as_ref());
    let tags = judgment.ratings.iter().flat_map(|rating| match &rating.value {
        RatingValue::Tags(tags) => tags.as_slice(),
        RatingValue::Flag(_) | RatingValue::Likert(_) => &[],
    });
    let marks = judgment.spans.iter().filter_map(|span| span.note.as_ref());
    judgment.rationale.iter().chain(notes).chain(tags).chain(marks).map(String::len).sum()
}

fn head(row: &Row) -> Result<Judgment> {
    Ok(Judgment {
        id: row.text("id")?.into(),
        assignment_id: row.opt_text("assignment_id")?.map(Into::into),
        set_id: row.text("set_id")?.into(),
        labeler_id: row.text("labeler_id")?.into(),
        revision: row.int("revision")?,
        supersedes_id: row.opt_text("supersedes_id")?.map(Into::into),
        outcome: row.name("outcome", Outcome::parse)?,
        strength: row.opt_name("strength", Strength::parse)?,
        rationale: row.opt_text("rationale")?,
        active_ms: row.int("active_ms")?,
        wall_ms: row.int("wall_ms")?,
        guideline_version: row.opt_text("guideline_version")?,
        rubric_version: row.opt_text("rubric_version")?,
        idempotency_key: row.text("idempotency_key")?,
        items: Vec::new(),
        flags: Vec::new(),
        ratings: Vec::new(),
        spans: Vec::new(),
        created: row.int("created")?,
        knowledge: row.name("knowledge", Knowledge::parse)?,
    })
}

pub(super) async fn get(conn: &mut Conn, id: &JudgmentId) -> Result<Judgment> {
    let rows = conn.all(whole!("j.id = $1", "id"), args![id.as_str()]).await?;
    gather(&rows)?.pop().ok_or_else(|| not_found("judgment", id.as_str()))
}

pub(super) async fn list(conn: &mut Conn, page: &Page, labeler: Option<&LabelerId>) -> Result<Vec<Judgment>> {
    let (mut judgments, mut bytes): (Vec<Judgment>, usize) = (Vec::new(), 0);
    let sql = whole!(
        "j.id IN (SELECT p.id FROM judgments p WHERE ($1 IS NULL OR p.id < $1)
             AND ($2 IS NULL OR p.labeler_id = $2) ORDER BY p.id DESC LIMIT $3)",
        "id DESC"
    );
    conn.each(sql, args![&page.after, labeler.map(LabelerId::as_str), page.limit], |row| {
        let (id, last) = (row.text("id")?, judgments.last());
        if let Some(last) = last.filter(|last| last.id.as_str() != id) {
            bytes += size(last);
            if bytes >= PAGE_BYTES {
                return Ok(false);
            }
        }
        gather_one(&mut judgments, row)?;
        Ok(true)
    })
    .await?;
    Ok(judgments)
}

/// Whether a judgment `j` counts in figures and data sets: it was made blind, or it settles its set (a reviewer sees
/// everything and decides for all).
macro_rules! counted {
    ($j:literal) => {
        concat!(
            "(",
            $j,
            ".knowledge = 'blind' OR EXISTS (SELECT 1 FROM resolutions q WHERE q.set_id = ",
            $j,
            ".set_id AND q.reviewer_id = ",
            $j,
            ".labeler_id))"
        )
    };
}
/// `j` is the labeler's latest judgment of the set.
macro_rules! current {
    () => {
        concat!(
            $crate::store::judgments::counted!("j"),
            " AND NOT EXISTS (SELECT 1 FROM judgments n WHERE n.set_id = j.set_id AND n.labeler_id = j.labeler_id
                 AND n.revision > j.revision AND ",
            $crate::store::judgments::counted!("n"),
            ")"
        )
    };
}
pub(super) use {counted, current};

/// Judgments that count towards a quota: first judgments that are not skips.
macro_rules! work_done {
    () => {
        "revision = 1 AND outcome <> 'skip'"
    };
}
pub(super) use work_done;

/// First judgments of a labeler: since `since`, and in total.
pub(super) async fn counts(conn: &mut Conn, labeler: &LabelerId, since: Micros) -> Result<LabelerCounts> {
    let row = conn
        .one(
            concat!(
                "SELECT COUNT(CASE WHEN ",
                work_done!(),
                " THEN 1 END) AS total, COUNT(CASE WHEN ",
                work_done!(),
                " AND created >= $2 THEN 1 END) AS today,
                 COUNT(CASE WHEN outcome = 'skip' THEN 1 END) AS skipped_total,
                 COUNT(CASE WHEN outcome = 'skip' AND created >= $2 THEN 1 END) AS skipped_today
                 FROM judgments WHERE labeler_id = $1 AND revision = 1"
            ),
            args![labeler.as_str(), since],
        )
        .await?;
    row.map_or(Ok(LabelerCounts::default()), |row| {
        Ok(LabelerCounts {
            today: row.int("today")?,
            total: row.int("total")?,
            skipped_today: row.int("skipped_today")?,
            skipped_total: row.int("skipped_total")?,
        })
    })
}

/// Stores a judgment with its items, flags, ratings and spans. The caller has checked the items with `rules::check_items`, or made the
/// set from them.
pub(super) async fn append(conn: &mut Conn, j: &Judgment) -> Result<()> {
    conn.run(
        "INSERT INTO judgments (id, assignment_id, set_id, labeler_id, revision, supersedes_id, outcome, strength,
             rationale, active_ms, wall_ms, guideline_version, idempotency_key, created, knowledge, rubric_version)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)",
        args![
            j.id.as_str(),
            j.assignment_id.as_ref().map(AssignmentId::as_str),
            j.set_id.as_str(),
            j.labeler_id.as_str(),
            j.revision,
            j.supersedes_id.as_ref().map(JudgmentId::as_str),
            j.outcome.as_str(),
            j.strength.map(Strength::as_str),
            &j.rationale,
            j.active_ms,
            j.wall_ms,
            &j.guideline_version,
            &j.idempotency_key,
            j.created,
            j.knowledge.as_str(),
            &j.rubric_version
        ],
    )
    .await?;
    for item in &j.items {
        conn.run(
            "INSERT INTO judgment_items (judgment_id, completion_id, tier, shown_position, rating)
             VALUES ($1, $2, $3, $4, $5)",
            args![j.id.as_str(), item.completion_id.as_str(), item.tier, item.shown_position, item.rating],
        )
        .await?;
    }
    for (position, flag) in (0i64..).zip(&j.flags) {
        conn.run(
            "INSERT INTO judgment_flags (judgment_id, position, completion_id, code, note)
             VALUES ($1, $2, $3, $4, $5)",
            args![
                j.id.as_str(),
                position,
                flag.completion_id.as_ref().map(CompletionId::as_str),
                &flag.code,
                &flag.note
            ],
        )
        .await?;
    }
    for rating in &j.ratings {
        conn.run(
            "INSERT INTO judgment_ratings (judgment_id, completion_id, dimension, value) VALUES ($1, $2, $3, $4)",
            args![j.id.as_str(), rating.completion_id.as_str(), &rating.dimension, json(&rating.value)?],
        )
        .await?;
    }
    for span in &j.spans {
        conn.run(
            "INSERT INTO judgment_spans (judgment_id, completion_id, start_char, end_char, note)
             VALUES ($1, $2, $3, $4, $5)",
            args![j.id.as_str(), span.completion_id.as_str(), span.start, span.end, &span.note],
        )
        .await?;
    }
    Ok(())
}

/// Sets the status of a set: it is done once enough labelers have judged it (skips do not count).
pub(super) async fn refresh_status(conn: &mut Conn, set_id: &SetId) -> Result<()> {
    conn.run(
        concat!(
            "UPDATE comparison_sets SET status = CASE WHEN target_overlap <= (
                 SELECT COUNT(*) FROM judgments j WHERE j.set_id = $1 AND j.outcome <> 'skip' AND ",
            current!(),
            ") THEN 'done' ELSE 'open' END
             WHERE id = $1 AND status <> 'retired'"
        ),
        args![set_id.as_str()],
    )
    .await?;
    Ok(())
}

pub(super) async fn of_set(conn: &mut Conn, set_id: &SetId) -> Result<Vec<Judgment>> {
    let rows = conn
        .all(
            whole!("j.set_id = $1 AND NOT EXISTS (SELECT 1 FROM judgments n WHERE n.supersedes_id = j.id)", "id"),
            args![set_id.as_str()],
        )
        .await?;
    gather(&rows)
}

pub(super) async fn settle(conn: &mut Conn, set_id: &SetId, reviewer: &LabelerId, now: Micros) -> Result<()> {
    conn.run(
        "INSERT INTO resolutions (set_id, reviewer_id, created) VALUES ($1, $2, $3)
         ON CONFLICT (set_id) DO UPDATE SET reviewer_id = excluded.reviewer_id, created = excluded.created",
        args![set_id.as_str(), reviewer.as_str(), now],
    )
    .await?;
    Ok(())
}

pub(super) async fn settled_by(conn: &mut Conn, set_id: &SetId) -> Result<Option<LabelerId>> {
    let row = conn.one("SELECT reviewer_id FROM resolutions WHERE set_id = $1", args![set_id.as_str()]).await?;
    row.map(|row| row.text("reviewer_id").map(Into::into)).transpose()
}

// ---------------------------------------------------------------- the view training reads

/// Latest revisions (as of `filter.as_of`, if given) of every outcome; items are best tier first. Rankings of models, if
/// the filter asks for them, follow those of people.
pub(super) async fn ranked_sets(conn: &mut Conn, filter: &RankedFilter, part: Part<'_>) -> Result<Vec<RankedSet>> {
    let mut ranked = Vec::new();
    for kind in filter.labelers.kinds() {
        ranked.extend(ranked_page(conn, filter, *kind, part, i64::MAX).await?.0);
    }
    Ok(ranked)
}

/// Judgments with their items and texts, best first. SQLite keeps the order of a CROSS JOIN: judgments are read from
/// where the page begins, not all of them for each page. `$judgments` and `$items` are tables, `$ratings` gives a
/// completion's ratings as a JSON object, `$spans` its spans as a JSON list.
macro_rules! ranked_of {
    ($judgments:expr, $items:expr, $ratings:expr, $spans:expr, $part:literal) => {
        concat!(
            "SELECT j.id AS judgment_id, j.set_id, j.labeler_id, j.strength, j.outcome, j.knowledge,
                    j.rubric_version, j.project_id, j.prompt_id, j.split, j.messages, j.tags,
                    i.completion_id, i.tier, i.shown_position, c.model_version_id, c.text, ",
            $ratings,
            " AS ratings, ",
            $spans,
            " AS spans
             FROM (SELECT j.id, j.set_id, j.labeler_id, j.strength, j.outcome, j.knowledge,
                          j.rubric_version, s.project_id, p.id AS prompt_id, p.split, p.messages, p.tags
                   FROM ",
            $judgments,
            " j CROSS JOIN comparison_sets s CROSS JOIN prompts p
                   WHERE s.id = j.set_id AND p.id = s.prompt_id
                     AND ($1 IS NULL OR p.split = $1) AND ($2 IS NULL OR j.labeler_id = $2)
                     AND s.kind = $3 AND ($4 IS NULL OR j.created <= $4)
                     AND ($5 OR NOT EXISTS (SELECT 1 FROM resolutions r WHERE r.set_id = j.set_id
                         AND r.reviewer_id <> j.labeler_id AND ($4 IS NULL OR r.created <= $4)))
                     AND ($6 OR ",
            counted!("j"),
            ") AND NOT EXISTS (SELECT 1 FROM ",
            $judgments,
            " n WHERE n.set_id = j.set_id
                         AND n.labeler_id = j.labeler_id AND n.revision > j.revision
                         AND ($4 IS NULL OR n.created <= $4) AND ($6 OR ",
            counted!("n"),
            "))
                     AND ",
            $part,
            "
                     AND (NOT $9 OR p.source NOT IN ('chat', 'completions')
                         OR p.submitted <= COALESCE($4, 9223372036854775807))
                     AND ($10 IS NULL OR s.project_id = $10)
                   ORDER BY j.id LIMIT $8) j
             LEFT JOIN ",
            $items,
            " i ON i.judgment_id = j.id
             LEFT JOIN completions c ON c.id = i.completion_id
             ORDER BY j.id, i.tier, i.completion_id"
        )
    };
}

macro_rules! ratings_of {
    ($object:literal) => {
        concat!(
            "(SELECT ",
            $object,
            " FROM judgment_ratings r WHERE r.judgment_id = j.id AND r.completion_id = i.completion_id)"
        )
    };
}

macro_rules! spans_of {
    ($list:literal) => {
        concat!(
            "(SELECT ",
            $list,
            " FROM judgment_spans x WHERE x.judgment_id = j.id AND x.completion_id = i.completion_id)"
        )
    };
}

/// The statements for each database, and for rankings of models, which have the columns of people's that they lack.
struct Ranked {
    sqlite: &'static str,
    postgres: &'static str,
    by_models: &'static str,
}

macro_rules! ranked {
    ($part:literal) => {
        Ranked {
            sqlite: ranked_of!(
                "judgments",
                "judgment_items",
                ratings_of!("json_group_object(r.dimension, json(r.value))"),
                spans_of!(
                    "json_group_array(json_object('start', x.start_char, 'end', x.end_char, 'note', x.note)
                         ORDER BY x.start_char)"
                ),
                $part
            ),
            postgres: ranked_of!(
                "judgments",
                "judgment_items",
                ratings_of!("jsonb_object_agg(r.dimension, r.value)"),
                spans_of!(
                    "jsonb_agg(jsonb_build_object('start', x.start_char, 'end', x.end_char, 'note', x.note)
                         ORDER BY x.start_char)"
                ),
                $part
            ),
            by_models: ranked_of!(
                "(SELECT id, set_id, labeler_id, revision, created, NULL AS strength, 'ranked' AS outcome,
                      'blind' AS knowledge, NULL AS rubric_version FROM model_judgments)",
                "(SELECT judgment_id, completion_id, tier, CAST(0 AS BIGINT) AS shown_position
                  FROM model_judgment_items)",
                "CAST(NULL AS JSONB)",
                "CAST(NULL AS JSONB)",
                $part
            ),
        }
    };
}

const RANKED_AFTER: Ranked = ranked!("j.id > COALESCE($7, '')");
const RANKED_OF_SET: Ranked = ranked!("j.set_id = $7");

/// A part of the judgments that a filter finds.
#[derive(Clone, Copy)]
pub(super) enum Part<'a> {
    /// Those with ids after this one; all if `None`.
    After(Option<&'a str>),
    OfSet(&'a str),
}

/// At most `limit` of the judgments by labelers of one kind in `part`, and the id to continue after; `None` at the end.
/// A filter by tag may give a page with fewer sets.
pub(super) async fn ranked_page(
    conn: &mut Conn,
    filter: &RankedFilter,
    kind: LabelerKind,
    part: Part<'_>,
    limit: i64,
) -> Result<(Vec<RankedSet>, Option<JudgmentId>)> {
    let (statements, part) = match part {
        Part::After(id) => (RANKED_AFTER, id),
        Part::OfSet(id) => (RANKED_OF_SET, Some(id)),
    };
    let sql = match kind {
        LabelerKind::Model => statements.by_models,
        LabelerKind::Human if conn.is_postgres() => statements.postgres,
        LabelerKind::Human => statements.sqlite,
    };
    let rows = conn
        .all(
            sql,
            args![
                filter.split.map(Split::as_str),
                filter.labeler_id.as_ref().map(LabelerId::as_str),
                filter.set_kind.unwrap_or(SetKind::Normal).as_str(),
                filter.as_of,
                filter.unsettled,
                filter.informed,
                part,
                limit,
                filter.without_requests,
                filter.project.as_ref().map(ProjectId::as_str)
            ],
        )
        .await?;
    let mut ranked: Vec<RankedSet> = Vec::new();
    let (mut seen, mut last_id) = (0, None::<JudgmentId>);
    for row in &rows {
        let id: JudgmentId = row.text("judgment_id")?.into();
        if last_id.as_ref() != Some(&id) {
            seen += 1;
            last_id = Some(id.clone());
        }
        if let Some(tag) = &filter.tag
            && !row.json::<Vec<String>>("tags")?.contains(tag)
        {
            continue;
        }
        if ranked.last().is_none_or(|last| last.judgment_id != id) {
            ranked.push(RankedSet {
                set_id: row.text("set_id")?.into(),
                project_id: row.text("project_id")?.into(),
                judgment_id: id,
                labeler_id: row.text("labeler_id")?.into(),
                prompt_id: row.text("prompt_id")?.into(),
                split: row.name("split", Split::parse)?,
                messages: row.json("messages")?,
                strength: row.opt_name("strength", Strength::parse)?,
                outcome: row.name("outcome", Outcome::parse)?,
                items: Vec::new(),
                knowledge: row.name("knowledge", Knowledge::parse)?,
                rubric_version: row.opt_text("rubric_version")?,
            });
        }
        if let (Some(completion_id), Some(last)) = (row.opt_text("completion_id")?, ranked.last_mut()) {
            last.items.push(RankedItem {
                completion_id: completion_id.into(),
                model_version_id: row.opt_text("model_version_id")?.map(Into::into),
                text: row.text("text")?,
                tier: row.int("tier")?,
                shown_position: row.int("shown_position")?,
                ratings: row.opt_json("ratings")?.unwrap_or_default(),
                spans: row.opt_json("spans")?.unwrap_or_default(),
            });
        }
    }
    Ok((ranked, last_id.filter(|_| seen >= limit)))
}

/// When the latest judgment was made or settled; later ones are not part of a running export.
pub(super) async fn latest(conn: &mut Conn) -> Result<Option<Micros>> {
    let sql = "SELECT MAX(created) AS n FROM (SELECT MAX(created) AS created FROM judgments
               UNION ALL SELECT MAX(created) AS created FROM resolutions
               UNION ALL SELECT MAX(created) AS created FROM model_judgments) t";
    match conn.one(sql, vec![]).await? {
        Some(row) => row.opt_int("n"),
        None => Ok(None),
    }
}

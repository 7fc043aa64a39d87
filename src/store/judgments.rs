//! Judgments: append-only rankings with revisions, and the joined view that training reads.

use std::collections::HashSet;

use super::leases::{self, PLACES};
use super::rows::{Conn, Row, args, not_found};
use super::sets;
use super::sql::PAGE_BYTES;
use super::{LabelerCounts, Page, RankedFilter, Result, StoreError, SubmitJudgment, Submitted, prompts, reveals};
use crate::domain::*;

fn conflict<T>(message: impl Into<String>) -> Result<T> {
    Err(StoreError::Conflict(message.into()))
}

async fn judgment(conn: &mut Conn, row: &Row) -> Result<Judgment> {
    let id = row.text("id")?;
    let items = conn
        .all("SELECT * FROM judgment_items WHERE judgment_id = $1 ORDER BY shown_position, completion_id", args![&id])
        .await?
        .iter()
        .map(|i| {
            Ok(JudgmentItem {
                completion_id: i.text("completion_id")?.into(),
                tier: i.int("tier")?,
                shown_position: i.int("shown_position")?,
                rating: i.opt_int("rating")?,
            })
        })
        .collect::<Result<_>>()?;
    let flags = conn
        .all("SELECT * FROM judgment_flags WHERE judgment_id = $1 ORDER BY position", args![&id])
        .await?
        .iter()
        .map(|f| {
            Ok(JudgmentFlag {
                completion_id: f.opt_text("completion_id")?.map(Into::into),
                code: f.text("code")?,
                note: f.opt_text("note")?,
            })
        })
        .collect::<Result<_>>()?;
    Ok(Judgment {
        id: id.into(),
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
        idempotency_key: row.text("idempotency_key")?,
        items,
        flags,
        created: row.int("created")?,
        knowledge: row.name("knowledge", Knowledge::parse)?,
    })
}

pub(super) async fn get(conn: &mut Conn, id: &JudgmentId) -> Result<Judgment> {
    let row = conn.one("SELECT * FROM judgments WHERE id = $1", args![id.as_str()]).await?;
    judgment(conn, &row.ok_or_else(|| not_found("judgment", id.as_str()))?).await
}

pub(super) async fn list(conn: &mut Conn, page: &Page, labeler: Option<&LabelerId>) -> Result<Vec<Judgment>> {
    let rows = conn
        .all(
            "SELECT id FROM judgments WHERE ($1 IS NULL OR id < $1) AND ($2 IS NULL OR labeler_id = $2)
             ORDER BY id DESC LIMIT $3",
            args![&page.after, labeler.map(LabelerId::as_str), page.limit],
        )
        .await?;
    let (mut judgments, mut bytes) = (Vec::with_capacity(rows.len()), 0);
    for row in &rows {
        let one = get(conn, &row.text("id")?.into()).await?;
        bytes += one.rationale.as_ref().map_or(0, String::len);
        bytes += one.flags.iter().filter_map(|f| f.note.as_ref()).map(String::len).sum::<usize>();
        judgments.push(one);
        if bytes >= PAGE_BYTES {
            break;
        }
    }
    Ok(judgments)
}

/// What makes a judgment `j` one that figures and data sets take: it was made blind, or it settles its set
/// (a reviewer sees everything and decides for all).
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
/// No later judgment of the same labeler takes the place of `j`.
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

/// What counts towards a quota: first judgments that are no skips.
macro_rules! work_done {
    () => {
        "revision = 1 AND outcome <> 'skip'"
    };
}
pub(super) use work_done;

/// First judgments of a labeler: since `since`, and in all.
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

/// A ranking names every completion of its set once; anything else names none that is not in it.
fn check_items(j: &Judgment, of_set: &[CompletionId]) -> Result<()> {
    let mut seen = HashSet::new();
    for item in &j.items {
        if !of_set.contains(&item.completion_id) {
            return conflict(format!("completion {} is not in set {}", item.completion_id, j.set_id));
        }
        if !seen.insert(&item.completion_id) {
            return conflict(format!("completion {} is ranked twice", item.completion_id));
        }
    }
    if let Some(flag) = j.flags.iter().filter_map(|f| f.completion_id.as_ref()).find(|id| !of_set.contains(id)) {
        return conflict(format!("completion {flag} is not in set {}", j.set_id));
    }
    if j.outcome == Outcome::Ranked && seen.len() != of_set.len() {
        return conflict(format!("{} of {} completions are ranked", seen.len(), of_set.len()));
    }
    Ok(())
}

/// Appends one judgment with its items and flags.
pub(super) async fn insert(conn: &mut Conn, j: &Judgment) -> Result<()> {
    check_items(j, &sets::items(conn, j.set_id.as_str()).await?)?;
    append(conn, j).await
}

/// As `insert`, for items that are known to be those of the set.
pub(super) async fn append(conn: &mut Conn, j: &Judgment) -> Result<()> {
    conn.run(
        "INSERT INTO judgments (id, assignment_id, set_id, labeler_id, revision, supersedes_id, outcome, strength,
             rationale, active_ms, wall_ms, guideline_version, idempotency_key, created, knowledge)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)",
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
            j.knowledge.as_str()
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
    Ok(())
}

/// A set is done once enough labelers have said something other than "skip" about it.
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

pub(super) async fn submit(conn: &mut Conn, submit: SubmitJudgment) -> Result<Submitted> {
    let SubmitJudgment { mut judgment, lease_token, ideal_answer, now, reveals: shown, quota } = submit;
    conn.serialize(PLACES).await?;
    if let Some(stored) = replay(conn, &judgment).await? {
        return Ok(Submitted { judgment: stored, replayed: true });
    }
    let set = sets::get(conn, &judgment.set_id).await?;
    judgment.revision = 1;
    if let Some(former) = judgment.supersedes_id.clone() {
        let former = get(conn, &former).await?;
        if (&former.set_id, &former.labeler_id) != (&judgment.set_id, &judgment.labeler_id) {
            return conflict("a revision must be of the same set and by the same labeler");
        }
        judgment.assignment_id = former.assignment_id;
        judgment.revision = former.revision + 1;
    }
    judgment.knowledge = reveals::known(conn, &set, &judgment.labeler_id).await?;
    if let Some((since, limit)) = quota
        && judgment.revision == 1
        && judgment.outcome != Outcome::Skip
        && !leases::holds(conn, &set.id, &judgment.labeler_id, now).await?
        && counts(conn, &judgment.labeler_id, since).await?.today >= limit
    {
        return conflict(format!("today's quota of {limit} judgments is used"));
    }
    if let Some(id) = judgment.assignment_id.clone() {
        let held = leases::get_assignment(conn, &id).await?;
        take_place(conn, &held, &judgment, lease_token.as_deref(), &set, now).await?;
    }
    if let Err(error) = insert(conn, &judgment).await {
        // Two unique rules carry the meaning "this labeler's word on this set is already there".
        return Err(match error {
            StoreError::Conflict(m) if m.contains("supersedes_id") || m.contains("revision") => {
                StoreError::Conflict("this set is already judged; send a revision of the latest judgment".into())
            }
            other => other,
        });
    }
    if let Some(mut answer) = ideal_answer {
        answer.prompt_id = set.prompt_id.clone();
        prompts::put_completion(conn, &answer, None).await?;
        prompts::add_demonstration(conn, &answer, Some(&judgment.labeler_id), now).await?;
    }
    refresh_status(conn, &judgment.set_id).await?;
    if judgment.outcome != Outcome::Skip {
        for what in shown {
            reveals::put(conn, &set.id, &judgment.labeler_id, what, now).await?;
        }
    }
    Ok(Submitted { judgment: get(conn, &judgment.id).await?, replayed: false })
}

async fn replay(conn: &mut Conn, j: &Judgment) -> Result<Option<Judgment>> {
    let row = conn.one("SELECT * FROM judgments WHERE idempotency_key = $1", args![&j.idempotency_key]).await?;
    let Some(row) = row else { return Ok(None) };
    let stored = judgment(conn, &row).await?;
    if (&stored.set_id, &stored.labeler_id) != (&j.set_id, &j.labeler_id) {
        return conflict("the idempotency key was used for another judgment");
    }
    Ok(Some(stored))
}

/// Turns a lease into a submitted place. A skip gives the place back: somebody else should get the set.
async fn take_place(
    conn: &mut Conn,
    held: &Assignment,
    j: &Judgment,
    token: Option<&str>,
    set: &ComparisonSet,
    now: Micros,
) -> Result<()> {
    let lost = || StoreError::LeaseLost(held.id.to_string());
    let revision = j.supersedes_id.is_some();
    if (&held.set_id, &held.labeler_id) != (&j.set_id, &j.labeler_id) {
        return Err(lost());
    }
    // A revision needs no lease: the judgment it corrects has shown that the labeler was entitled.
    match token {
        Some(token) if token != held.lease_token => return Err(lost()),
        None if !revision => return Err(lost()),
        _ => {}
    }
    if !revision {
        match held.state {
            AssignmentState::Submitted => {
                return conflict("this assignment is already judged; send a revision of the latest judgment");
            }
            AssignmentState::Released => return Err(lost()),
            AssignmentState::Leased | AssignmentState::Expired => {}
        }
    }
    let has_place = held.state == AssignmentState::Submitted
        || held.state == AssignmentState::Leased && held.expires_at > now
        || leases::places_taken(conn, &set.id, &held.labeler_id, now).await? < set.target_overlap;
    if !has_place && !revision {
        return Err(lost());
    }
    // A first word that was not blind counts nowhere: like a skip, it leaves the place to somebody else.
    let counts = j.outcome != Outcome::Skip && (revision || j.knowledge == Knowledge::Blind);
    let state = if counts && has_place { AssignmentState::Submitted } else { AssignmentState::Released };
    conn.run("UPDATE assignments SET state = $2 WHERE id = $1", args![held.id.as_str(), state.as_str()]).await?;
    Ok(())
}

pub(super) async fn of_set(conn: &mut Conn, set_id: &SetId) -> Result<Vec<Judgment>> {
    let rows = conn
        .all(
            "SELECT * FROM judgments j WHERE set_id = $1
               AND NOT EXISTS (SELECT 1 FROM judgments n WHERE n.supersedes_id = j.id) ORDER BY id",
            args![set_id.as_str()],
        )
        .await?;
    let mut judgments = Vec::with_capacity(rows.len());
    for row in &rows {
        judgments.push(judgment(conn, row).await?);
    }
    Ok(judgments)
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

/// Latest revisions (as of `filter.as_of`, if given) of every outcome; items are best tier first.
pub(super) async fn ranked_sets(conn: &mut Conn, filter: &RankedFilter) -> Result<Vec<RankedSet>> {
    Ok(ranked_page(conn, filter, None, i64::MAX).await?.0)
}

/// At most `limit` of the judgments with ids after `after`, and the id to go on after; `None` at the end. A filter by
/// tag may leave a page with fewer sets.
pub(super) async fn ranked_page(
    conn: &mut Conn,
    filter: &RankedFilter,
    after: Option<&str>,
    limit: i64,
) -> Result<(Vec<RankedSet>, Option<JudgmentId>)> {
    // SQLite keeps the order of a CROSS JOIN: judgments are read from where the page begins, not all of them for each
    // page.
    let rows = conn
        .all(
            concat!(
                "SELECT j.id AS judgment_id, j.set_id, j.labeler_id, j.strength, j.outcome, j.knowledge,
                    j.prompt_id, j.split, j.messages, j.tags,
                    i.completion_id, i.tier, i.shown_position, c.model_version_id, c.text
             FROM (SELECT j.id, j.set_id, j.labeler_id, j.strength, j.outcome, j.knowledge,
                          p.id AS prompt_id, p.split, p.messages, p.tags
                   FROM judgments j CROSS JOIN comparison_sets s CROSS JOIN prompts p
                   WHERE s.id = j.set_id AND p.id = s.prompt_id
                     AND ($1 IS NULL OR p.split = $1) AND ($2 IS NULL OR j.labeler_id = $2)
                     AND s.kind = $3 AND ($4 IS NULL OR j.created <= $4)
                     AND ($5 OR NOT EXISTS (SELECT 1 FROM resolutions r WHERE r.set_id = j.set_id
                         AND r.reviewer_id <> j.labeler_id AND ($4 IS NULL OR r.created <= $4)))
                     AND ($6 OR ",
                counted!("j"),
                ") AND NOT EXISTS (SELECT 1 FROM judgments n WHERE n.set_id = j.set_id
                         AND n.labeler_id = j.labeler_id AND n.revision > j.revision
                         AND ($4 IS NULL OR n.created <= $4) AND ($6 OR ",
                counted!("n"),
                "))
                     AND j.id > COALESCE($7, '')
                     AND (NOT $9 OR p.source NOT IN ('chat', 'completions')
                         OR p.submitted <= COALESCE($4, 9223372036854775807))
                   ORDER BY j.id LIMIT $8) j
             LEFT JOIN judgment_items i ON i.judgment_id = j.id
             LEFT JOIN completions c ON c.id = i.completion_id
             ORDER BY j.id, i.tier, i.completion_id"
            ),
            args![
                filter.split.map(Split::as_str),
                filter.labeler_id.as_ref().map(LabelerId::as_str),
                filter.set_kind.unwrap_or(SetKind::Normal).as_str(),
                filter.as_of,
                filter.unsettled,
                filter.informed,
                after,
                limit,
                filter.without_requests
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
                judgment_id: id,
                labeler_id: row.text("labeler_id")?.into(),
                prompt_id: row.text("prompt_id")?.into(),
                split: row.name("split", Split::parse)?,
                messages: row.json("messages")?,
                strength: row.opt_name("strength", Strength::parse)?,
                outcome: row.name("outcome", Outcome::parse)?,
                items: Vec::new(),
                knowledge: row.name("knowledge", Knowledge::parse)?,
            });
        }
        if let (Some(completion_id), Some(last)) = (row.opt_text("completion_id")?, ranked.last_mut()) {
            last.items.push(RankedItem {
                completion_id: completion_id.into(),
                model_version_id: row.opt_text("model_version_id")?.map(Into::into),
                text: row.text("text")?,
                tier: row.int("tier")?,
                shown_position: row.int("shown_position")?,
            });
        }
    }
    Ok((ranked, last_id.filter(|_| seen >= limit)))
}

/// When the latest judgment was made or settled; what comes later is not part of an export that is under way.
pub(super) async fn latest(conn: &mut Conn) -> Result<Option<Micros>> {
    let sql = "SELECT MAX(created) AS n FROM (SELECT MAX(created) AS created FROM judgments
               UNION ALL SELECT MAX(created) AS created FROM resolutions) t";
    match conn.one(sql, vec![]).await? {
        Some(row) => row.opt_int("n"),
        None => Ok(None),
    }
}

//! The judgments of a group of labelers, on PostgreSQL: one statement reads everything that decides about them and one
//! stores them, however many there are.

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};

use super::groups::{Waiting, Write};
use super::rows::{BoxFuture, Conn, args, not_found};
use super::submits::{self, Considered, NewJudgment, standing_of};
use super::{Result, StoreError, SubmitJudgment, Submitted};
use crate::domain::*;

/// Subqueries with a limit, so that each row is looked up by its index, whatever the tables' statistics.
const STANDING: &str = standing_of!(
    ids = "json_agg(i.completion_id)",
    texts = "json_agg(json_build_array(c.parent_completion_id, c.text))",
    now = "q.now",
    set = "q.set_id",
    labeler = "q.labeler_id",
    since = "q.since",
    ", q.n
     FROM jsonb_to_recordset($1) AS q (n BIGINT, now BIGINT, set_id TEXT, labeler_id TEXT, idempotency_key TEXT,
         assignment_id TEXT, supersedes_id TEXT, since BIGINT)
     CROSS JOIN LATERAL (SELECT * FROM comparison_sets WHERE id = q.set_id LIMIT 1) s
     LEFT JOIN LATERAL (SELECT * FROM judgments WHERE idempotency_key = q.idempotency_key LIMIT 1) r ON TRUE
     LEFT JOIN LATERAL (SELECT * FROM judgments WHERE id = q.supersedes_id LIMIT 1) f ON TRUE
     LEFT JOIN LATERAL (SELECT * FROM assignments WHERE id =
         CASE WHEN q.supersedes_id IS NULL THEN q.assignment_id ELSE f.assignment_id END LIMIT 1) a ON TRUE"
);

/// Arrays of ids, so that the rows to change are looked up by their index.
const WRITE: &str = "
    WITH q AS (
        SELECT * FROM jsonb_to_recordset($1) AS q (id TEXT, assignment_id TEXT, set_id TEXT, labeler_id TEXT,
            revision BIGINT, supersedes_id TEXT, outcome TEXT, strength TEXT, rationale TEXT, active_ms BIGINT,
            wall_ms BIGINT, guideline_version TEXT, idempotency_key TEXT, created BIGINT, knowledge TEXT,
            rubric_version TEXT, items JSONB, flags JSONB, ratings JSONB, spans JSONB, reveals JSONB, place TEXT,
            place_state TEXT, status TEXT, now BIGINT, texts JSONB)
    ), new_judgments AS (
        INSERT INTO judgments (id, assignment_id, set_id, labeler_id, revision, supersedes_id, outcome, strength,
            rationale, active_ms, wall_ms, guideline_version, idempotency_key, created, knowledge, rubric_version)
        SELECT id, assignment_id, set_id, labeler_id, revision, supersedes_id, outcome, strength, rationale,
            active_ms, wall_ms, guideline_version, idempotency_key, created, knowledge, rubric_version FROM q
    ), new_items AS (
        INSERT INTO judgment_items (judgment_id, completion_id, tier, shown_position, rating)
        SELECT q.id, e.value ->> 0, CAST(e.value ->> 1 AS BIGINT), CAST(e.value ->> 2 AS BIGINT),
            CAST(e.value ->> 3 AS BIGINT) FROM q, jsonb_array_elements(q.items) AS e (value)
    ), new_flags AS (
        INSERT INTO judgment_flags (judgment_id, position, completion_id, code, note)
        SELECT q.id, CAST(e.value ->> 0 AS BIGINT), e.value ->> 1, e.value ->> 2, e.value ->> 3
        FROM q, jsonb_array_elements(q.flags) AS e (value)
    ), new_ratings AS (
        INSERT INTO judgment_ratings (judgment_id, completion_id, dimension, value)
        SELECT q.id, e.value ->> 0, e.value ->> 1, e.value -> 2 FROM q, jsonb_array_elements(q.ratings) AS e (value)
    ), new_spans AS (
        INSERT INTO judgment_spans (judgment_id, completion_id, start_char, end_char, note)
        SELECT q.id, e.value ->> 0, CAST(e.value ->> 1 AS BIGINT), CAST(e.value ->> 2 AS BIGINT), e.value ->> 3
        FROM q, jsonb_array_elements(q.spans) AS e (value)
    ), new_reveals AS (
        INSERT INTO reveals (set_id, labeler_id, what, created)
        SELECT q.set_id, q.labeler_id, e.value ->> 0, q.now FROM q, jsonb_array_elements(q.reveals) AS e (value)
        ON CONFLICT DO NOTHING
    ), new_completions AS (
        INSERT INTO completions (id, prompt_id, model_version_id, origin, parent_completion_id, text, token_ids,
            logprobs, sampling, seed, finish_reason, request_id, reward, created)
        SELECT e.value ->> 'id', e.value ->> 'prompt_id', NULL, e.value ->> 'origin', e.value ->> 'parent',
            e.value ->> 'text', decode(e.value ->> 'token_ids', 'hex'), decode(e.value ->> 'logprobs', 'hex'),
            e.value -> 'sampling', NULL, NULL, NULL, NULL, CAST(e.value ->> 'created' AS BIGINT)
        FROM q, jsonb_array_elements(q.texts) AS e (value)
    ), new_demonstrations AS (
        INSERT INTO demonstrations (prompt_id, completion_id, labeler_id, created, text_key)
        SELECT e.value ->> 'prompt_id', e.value ->> 'id', q.labeler_id, q.now, e.value ->> 'text_key'
        FROM q, jsonb_array_elements(q.texts) AS e (value)
    ), places AS (
        UPDATE assignments a SET state = (SELECT q.place_state FROM q WHERE q.place = a.id)
        WHERE a.id = ANY (ARRAY(SELECT q.place FROM q WHERE q.place IS NOT NULL))
    )
    UPDATE comparison_sets s SET status = (SELECT q.status FROM q WHERE q.set_id = s.id)
    WHERE s.id = ANY (ARRAY(SELECT q.set_id FROM q WHERE q.status IS NOT NULL)) AND s.status <> 'retired'";

impl Write for SubmitJudgment {
    type Done = Submitted;
    const TOGETHER: bool = true;

    fn run<'c>(&'c self, conn: &'c mut Conn) -> BoxFuture<'c, Result<Submitted>> {
        Box::pin(submits::submit(conn, self))
    }

    fn together<'c>(conn: &'c mut Conn, waiting: Vec<&'c mut Waiting<Self>>) -> BoxFuture<'c, Result<()>> {
        Box::pin(submit(conn, waiting))
    }
}

type Submits<'a> = Vec<&'a mut Waiting<SubmitJudgment>>;

/// Stores the judgments of a group, each with its result. An error means that the transaction must be rolled back.
async fn submit(conn: &mut Conn, mut waiting: Submits<'_>) -> Result<()> {
    while !waiting.is_empty() {
        let (independent, later) = split(waiting);
        submit_independent(conn, independent).await?;
        waiting = later;
    }
    Ok(())
}

/// Splits off judgments that do not depend on each other: of different sets, by different labelers, with different
/// keys. The others see what these have written.
fn split(waiting: Submits<'_>) -> (Submits<'_>, Submits<'_>) {
    let (mut sets, mut labelers, mut keys) = (HashSet::new(), HashSet::new(), HashSet::new());
    waiting.into_iter().partition(|waiting| {
        let j = &waiting.write.judgment;
        let new = !sets.contains(&j.set_id) && !labelers.contains(&j.labeler_id) && !keys.contains(&j.idempotency_key);
        sets.insert(j.set_id.clone());
        labelers.insert(j.labeler_id.clone());
        keys.insert(j.idempotency_key.clone());
        new
    })
}

async fn submit_independent(conn: &mut Conn, waiting: Submits<'_>) -> Result<()> {
    let asked: Vec<Value> = (0i64..).zip(&waiting).map(|(n, waiting)| question(n, &waiting.write)).collect();
    let rows = conn.all(STANDING, args![Value::from(asked)]).await?;
    let rows = rows.into_iter().map(|row| Ok((row.int("n")?, row))).collect::<Result<HashMap<_, _>>>()?;
    let (mut new, mut written) = (Vec::new(), Vec::new());
    for (n, waiting) in (0i64..).zip(waiting) {
        let submit = &waiting.write;
        let missing = || not_found("comparison set", submit.judgment.set_id.as_str());
        match rows.get(&n).ok_or_else(missing).and_then(|row| submits::consider(row, submit, true)) {
            Err(refused) => waiting.done = Some(Err(refused)),
            Ok(Considered::Replay(earlier)) => {
                let done = match earlier.replayed(conn, submit, true).await {
                    Err(refused @ StoreError::KeyReused(_)) => Err(refused),
                    other => Ok(other?),
                };
                waiting.done = Some(done);
            }
            Ok(Considered::New(judgment)) => {
                written.push(row(&judgment, submit.now));
                new.push((waiting, judgment));
            }
        }
    }
    if !written.is_empty() {
        conn.run(WRITE, args![Value::from(written)]).await?;
    }
    for (waiting, judgment) in new {
        waiting.done = Some(Ok(judgment.submitted()));
    }
    Ok(())
}

/// The parameters of a judgment in `STANDING`.
fn question(n: i64, submit: &SubmitJudgment) -> Value {
    let j = &submit.judgment;
    json!({
        "n": n,
        "now": submit.now,
        "set_id": j.set_id,
        "labeler_id": j.labeler_id,
        "idempotency_key": j.idempotency_key,
        "assignment_id": j.assignment_id,
        "supersedes_id": j.supersedes_id,
        "since": submit.quota.map(|(since, _)| since),
    })
}

/// The parameters of a judgment in `WRITE`.
fn row(new: &NewJudgment, now: Micros) -> Value {
    let decision = &new.decision;
    let (j, lists) = (&decision.judgment, submits::lists(decision));
    json!({
        "id": j.id,
        "assignment_id": j.assignment_id,
        "set_id": j.set_id,
        "labeler_id": j.labeler_id,
        "revision": j.revision,
        "supersedes_id": j.supersedes_id,
        "outcome": j.outcome.as_str(),
        "strength": j.strength.map(Strength::as_str),
        "rationale": j.rationale,
        "active_ms": j.active_ms,
        "wall_ms": j.wall_ms,
        "guideline_version": j.guideline_version,
        "idempotency_key": j.idempotency_key,
        "created": j.created,
        "knowledge": j.knowledge.as_str(),
        "rubric_version": j.rubric_version,
        "items": lists.items,
        "flags": lists.flags,
        "ratings": lists.ratings,
        "spans": lists.spans,
        "reveals": lists.reveals,
        "place": decision.place.as_ref().map(|(id, _)| id.as_str()),
        "place_state": decision.place.as_ref().map(|(_, state)| state.as_str()),
        "status": decision.status.map(SetStatus::as_str),
        "now": now,
        "texts": submits::written(&new.texts),
    })
}

//! Comparison sets, gold answers, imports, and the leases that keep two people off one place.

use super::prompts;
use super::rows::{Conn, Row, args, not_found};
use super::{LeaseRequest, Page, Pick, Result, StoreError, judgments};
use crate::domain::*;

/// Advisory lock of everything that takes or frees a place on a set.
pub(super) const PLACES: i64 = 0x1abe1;

/// How many current leases, submitted assignments and rankings by API there are on the set `s` at the
/// time `$1`. One text, so that picking a set and checking a place can never disagree.
macro_rules! taken {
    () => {
        "((SELECT COUNT(*) FROM assignments a WHERE a.set_id = s.id
             AND (a.state = 'submitted' OR (a.state = 'leased' AND a.expires_at > $1)))
          + (SELECT COUNT(*) FROM judgments j WHERE j.set_id = s.id
             AND j.assignment_id IS NULL AND j.supersedes_id IS NULL))"
    };
}

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
    for id in &s.completion_ids {
        if prompts::get_completion(conn, id).await?.prompt_id != s.prompt_id {
            return Err(StoreError::Conflict(format!("completion {id} belongs to another prompt")));
        }
    }
    conn.run(
        "INSERT INTO comparison_sets (id, prompt_id, kind, target_overlap, selection_policy, selection_score,
             status, created)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        args![
            s.id.as_str(),
            s.prompt_id.as_str(),
            s.kind.as_str(),
            s.target_overlap,
            &s.selection_policy,
            s.selection_score,
            s.status.as_str(),
            s.created
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

pub(super) async fn import(
    conn: &mut Conn,
    prompt: &Prompt,
    completions: Vec<Completion>,
    mut s: ComparisonSet,
    judgment: Option<&Judgment>,
) -> Result<bool> {
    let stored = prompts::put(conn, prompt).await?;
    let mut texts: Vec<_> = completions.iter().map(|c| c.text.clone()).collect();
    texts.sort_unstable();
    let rows = conn
        .all(
            "SELECT s.id, c.text FROM comparison_sets s JOIN set_items i ON i.set_id = s.id
             JOIN completions c ON c.id = i.completion_id
             WHERE s.prompt_id = $1 AND s.selection_policy = 'import' ORDER BY s.id",
            args![stored.id.as_str()],
        )
        .await?;
    let mut known: std::collections::BTreeMap<String, Vec<String>> = Default::default();
    for row in &rows {
        known.entry(row.text("id")?).or_default().push(row.text("text")?);
    }
    for mut other in known.into_values() {
        other.sort_unstable();
        if other == texts {
            return Ok(false);
        }
    }
    for mut c in completions {
        c.prompt_id = stored.id.clone();
        prompts::put_completion(conn, &c).await?;
    }
    s.prompt_id = stored.id;
    put(conn, &s).await?;
    if let Some(j) = judgment {
        judgments::insert(conn, j).await?;
        judgments::refresh_status(conn, &s.id).await?;
    }
    Ok(true)
}

pub(super) async fn get(conn: &mut Conn, id: &SetId) -> Result<ComparisonSet> {
    let row = conn.one("SELECT * FROM comparison_sets WHERE id = $1", args![id.as_str()]).await?;
    with_items(conn, &row.ok_or_else(|| not_found("comparison set", id.as_str()))?).await
}

pub(super) async fn list(conn: &mut Conn, page: &Page, status: Option<SetStatus>) -> Result<Vec<ComparisonSet>> {
    let rows = conn
        .all(
            "SELECT * FROM comparison_sets WHERE ($1 IS NULL OR id < $1) AND ($2 IS NULL OR status = $2)
             ORDER BY id DESC LIMIT $3",
            args![&page.after, status.map(SetStatus::as_str), page.limit],
        )
        .await?;
    let mut sets = Vec::with_capacity(rows.len());
    for row in &rows {
        sets.push(with_items(conn, row).await?);
    }
    Ok(sets)
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

/// Everybody judges a set with a known answer; its places never run out.
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

pub(super) async fn calibrations_done(conn: &mut Conn, labeler: &LabelerId) -> Result<i64> {
    conn.count(
        "SELECT COUNT(*) AS n FROM judgments j JOIN comparison_sets s ON s.id = j.set_id
         WHERE j.labeler_id = $1 AND j.revision = 1 AND j.outcome <> 'skip' AND s.kind = 'calibration'",
        args![labeler.as_str()],
    )
    .await
}

pub(super) async fn count_open(conn: &mut Conn, kind: SetKind) -> Result<i64> {
    let sql = "SELECT COUNT(*) AS n FROM comparison_sets WHERE status = 'open' AND kind = $1";
    conn.count(sql, args![kind.as_str()]).await
}

// ---------------------------------------------------------------- leases

fn assignment(row: &Row) -> Result<Assignment> {
    Ok(Assignment {
        id: row.text("id")?.into(),
        set_id: row.text("set_id")?.into(),
        labeler_id: row.text("labeler_id")?.into(),
        state: row.name("state", AssignmentState::parse)?,
        lease_token: row.text("lease_token")?,
        expires_at: row.int("expires_at")?,
        order_seed: row.int("order_seed")?.cast_unsigned(),
    })
}

pub(super) async fn get_assignment(conn: &mut Conn, id: &AssignmentId) -> Result<Assignment> {
    let row = conn.one("SELECT * FROM assignments WHERE id = $1", args![id.as_str()]).await?;
    assignment(&row.ok_or_else(|| not_found("assignment", id.as_str()))?)
}

/// Places taken on a set at `now`, not counting this labeler's own assignment.
pub(super) async fn taken_by_others(conn: &mut Conn, set_id: &SetId, labeler: &LabelerId, now: Micros) -> Result<i64> {
    conn.count(
        concat!(
            "SELECT ",
            taken!(),
            " - (SELECT COUNT(*) FROM assignments a WHERE a.set_id = s.id AND a.labeler_id = $3
                 AND (a.state = 'submitted' OR (a.state = 'leased' AND a.expires_at > $1))) AS n
               FROM comparison_sets s WHERE s.id = $2"
        ),
        args![now, set_id.as_str(), labeler.as_str()],
    )
    .await
}

/// What makes a set one for the labeler `$3` at the time `$1`, and the order of the queue.
macro_rules! free_for {
    ($which:literal) => {
        concat!(
            "SELECT s.id FROM comparison_sets s WHERE s.status = 'open' AND s.",
            $which,
            " = $2 AND s.target_overlap > ",
            taken!(),
            " AND NOT EXISTS (SELECT 1 FROM assignments a WHERE a.set_id = s.id AND a.labeler_id = $3
                 AND (a.state = 'submitted' OR (a.state = 'leased' AND a.expires_at > $1)))
              AND NOT EXISTS (SELECT 1 FROM judgments j WHERE j.set_id = s.id AND j.labeler_id = $3)
             ORDER BY s.selection_score DESC NULLS LAST, s.id LIMIT 1"
        )
    };
}

async fn free(conn: &mut Conn, request: &LeaseRequest, kind: SetKind) -> Result<Option<Row>> {
    conn.one(free_for!("kind"), args![request.now, kind.as_str(), request.labeler_id.as_str()]).await
}

async fn pick(conn: &mut Conn, request: &LeaseRequest) -> Result<Option<Row>> {
    if let Some(wanted) = &request.set_id {
        return conn.one(free_for!("id"), args![request.now, wanted.as_str(), request.labeler_id.as_str()]).await;
    }
    let (kind, alone) = match request.pick {
        Pick::Normal => return free(conn, request, SetKind::Normal).await,
        Pick::Instead(kind) => (kind, false),
        Pick::First(kind) => (kind, true),
    };
    let normal = free(conn, request, SetKind::Normal).await?;
    if normal.is_none() && !alone {
        return Ok(None);
    }
    Ok(free(conn, request, kind).await?.or(normal))
}

/// Whether there is no set for the labeler at the moment; says nothing about the next one.
pub(super) async fn nothing_free(conn: &mut Conn, request: &LeaseRequest) -> Result<bool> {
    Ok(quota_is_used(conn, request).await? || pick(conn, request).await?.is_none())
}

async fn quota_is_used(conn: &mut Conn, request: &LeaseRequest) -> Result<bool> {
    let Some((since, limit)) = request.quota else { return Ok(false) };
    let used = conn
        .count(
            "SELECT (SELECT COUNT(*) FROM judgments WHERE labeler_id = $1 AND revision = 1 AND outcome <> 'skip'
                       AND created >= $2)
                  + (SELECT COUNT(*) FROM assignments WHERE labeler_id = $1 AND state = 'leased'
                       AND expires_at > $3) AS n",
            args![request.labeler_id.as_str(), since, request.now],
        )
        .await?;
    Ok(used >= limit)
}

/// The best open set with a free place that this labeler has neither judged nor holds now. A named
/// set that the labeler holds already is given again as it is, with the lease extended.
pub(super) async fn lease_next(conn: &mut Conn, request: LeaseRequest) -> Result<Option<Assignment>> {
    conn.serialize(PLACES).await?;
    let labeler = request.labeler_id.as_str();
    let now = request.now;
    if let Some(wanted) = &request.set_id {
        get(conn, wanted).await?;
        let held = conn
            .one(
                "SELECT * FROM assignments WHERE set_id = $1 AND labeler_id = $2 AND state = 'leased'
                   AND expires_at > $3",
                args![wanted.as_str(), labeler, now],
            )
            .await?;
        if let Some(row) = held {
            let mut held = assignment(&row)?;
            held.expires_at = held.expires_at.max(request.expires_at);
            extend(conn, &held.id, held.expires_at).await?;
            return Ok(Some(held));
        }
    }
    if quota_is_used(conn, &request).await? {
        return Ok(None);
    }
    let Some(row) = pick(conn, &request).await? else { return Ok(None) };
    let set_id = row.text("id")?;
    conn.run(
        "UPDATE assignments SET state = 'expired' WHERE set_id = $1 AND state = 'leased' AND expires_at <= $2",
        args![&set_id, now],
    )
    .await?;
    // A labeler who let the lease run out or gave it back, without judging, comes back to the same
    // assignment: same token and same order, so that a tab left open can still submit.
    let row = conn
        .one(
            "INSERT INTO assignments (id, set_id, labeler_id, state, lease_token, expires_at, order_seed)
             VALUES ($1, $2, $3, 'leased', $4, $5, $6)
             ON CONFLICT (set_id, labeler_id) DO UPDATE SET state = 'leased', expires_at = excluded.expires_at
             RETURNING *",
            args![
                request.assignment_id.as_str(),
                &set_id,
                labeler,
                &request.lease_token,
                request.expires_at,
                request.order_seed.cast_signed()
            ],
        )
        .await?;
    row.as_ref().map(assignment).transpose()
}

async fn extend(conn: &mut Conn, id: &AssignmentId, expires_at: Micros) -> Result<()> {
    conn.run("UPDATE assignments SET state = 'leased', expires_at = $2 WHERE id = $1", args![id.as_str(), expires_at])
        .await?;
    Ok(())
}

/// An expired lease renews too, as long as its place was not given away.
pub(super) async fn renew(
    conn: &mut Conn,
    id: &AssignmentId,
    token: &str,
    now: Micros,
    expires_at: Micros,
) -> Result<()> {
    conn.serialize(PLACES).await?;
    let held = get_assignment(conn, id).await?;
    let lost = || StoreError::LeaseLost(id.to_string());
    if held.lease_token != token || !matches!(held.state, AssignmentState::Leased | AssignmentState::Expired) {
        return Err(lost());
    }
    let current = held.state == AssignmentState::Leased && held.expires_at > now;
    if !current {
        let overlap = get(conn, &held.set_id).await?.target_overlap;
        if taken_by_others(conn, &held.set_id, &held.labeler_id, now).await? >= overlap {
            return Err(lost());
        }
    }
    extend(conn, id, expires_at).await
}

pub(super) async fn release(conn: &mut Conn, id: &AssignmentId, token: &str) -> Result<()> {
    get_assignment(conn, id).await?;
    let done = conn
        .run(
            "UPDATE assignments SET state = 'released'
             WHERE id = $1 AND lease_token = $2 AND state IN ('leased', 'expired', 'released')",
            args![id.as_str(), token],
        )
        .await?;
    if done == 0 { Err(StoreError::LeaseLost(id.to_string())) } else { Ok(()) }
}

//! Leases: who may judge which set now, so that no two people work on one place.

use super::judgments;
use super::rows::{Conn, Row, args, not_found};
use super::sets::get;
use super::{LeaseRequest, NoLease, Pick, Result, StoreError};
use crate::domain::*;

/// Advisory lock of everything that takes or frees a place on a set.
pub(super) const PLACES: i64 = 0x1abe1;

/// A holder who gave no sign of life for this long is not at work, though the lease still stands.
const AWAY: Micros = 180_000_000;

/// How many places of the set `s` others than the labeler `$3` have taken at the time `$1`: current leases,
/// submitted assignments and rankings by API. One text, so that counting sets, picking one and checking a
/// place can never disagree.
macro_rules! taken_by_others {
    ($labeler:literal) => {
        concat!(
            "((SELECT COUNT(*) FROM assignments a WHERE a.set_id = s.id AND a.labeler_id <> ",
            $labeler,
            " AND (a.state = 'submitted' OR (a.state = 'leased' AND a.expires_at > $1)))
              + (SELECT COUNT(*) FROM judgments j WHERE j.set_id = s.id AND j.labeler_id <> ",
            $labeler,
            " AND j.assignment_id IS NULL AND j.supersedes_id IS NULL AND j.knowledge = 'blind'))"
        )
    };
}

/// What makes the set `s` one that the labeler can still judge at the time `$1`, held already or not.
macro_rules! can_judge {
    ($labeler:literal) => {
        concat!(
            "s.status = 'open'
             AND NOT EXISTS (SELECT 1 FROM judgments own WHERE own.set_id = s.id AND own.labeler_id = ",
            $labeler,
            ") AND s.target_overlap > ",
            taken_by_others!($labeler)
        )
    };
}

/// The labeler `$3` holds the set `s` at the time `$1`.
macro_rules! held {
    () => {
        "EXISTS (SELECT 1 FROM assignments h WHERE h.set_id = s.id AND h.labeler_id = $3
             AND h.state = 'leased' AND h.expires_at > $1)"
    };
}

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

pub(super) async fn assignment_of(conn: &mut Conn, set_id: &SetId, labeler: &LabelerId) -> Result<Option<Assignment>> {
    let sql = "SELECT * FROM assignments WHERE set_id = $1 AND labeler_id = $2";
    conn.one(sql, args![set_id.as_str(), labeler.as_str()]).await?.as_ref().map(assignment).transpose()
}

pub(super) async fn get_assignment(conn: &mut Conn, id: &AssignmentId) -> Result<Assignment> {
    let row = conn.one("SELECT * FROM assignments WHERE id = $1", args![id.as_str()]).await?;
    assignment(&row.ok_or_else(|| not_found("assignment", id.as_str()))?)
}

/// Places taken on a set at `now`, not counting this labeler's own.
pub(super) async fn places_taken(conn: &mut Conn, set_id: &SetId, labeler: &LabelerId, now: Micros) -> Result<i64> {
    conn.count(
        concat!("SELECT ", taken_by_others!("$3"), " AS n FROM comparison_sets s WHERE s.id = $2"),
        args![now, set_id.as_str(), labeler.as_str()],
    )
    .await
}

/// Whether the labeler has a current lease on the set.
pub(super) async fn holds(conn: &mut Conn, set_id: &SetId, labeler: &LabelerId, now: Micros) -> Result<bool> {
    let sql = concat!("SELECT COUNT(*) AS n FROM comparison_sets s WHERE s.id = $2 AND ", held!());
    Ok(conn.count(sql, args![now, set_id.as_str(), labeler.as_str()]).await? > 0)
}

/// What makes a set one to be handed out to the labeler `$3` at the time `$1`, and the order of the queue.
macro_rules! free_for {
    ($which:literal) => {
        concat!(
            "SELECT s.id FROM comparison_sets s WHERE s.",
            $which,
            " = $2 AND ",
            can_judge!("$3"),
            " AND NOT ",
            held!(),
            " ORDER BY s.selection_score DESC NULLS LAST, s.id LIMIT 1"
        )
    };
}

/// Sets of a kind that the labeler can still judge, those in hand included; counted up to `most`.
pub(super) async fn count_for(
    conn: &mut Conn,
    labeler: &LabelerId,
    kind: SetKind,
    now: Micros,
    most: i64,
) -> Result<i64> {
    conn.count(
        concat!(
            "SELECT COUNT(*) AS n FROM (SELECT 1 FROM comparison_sets s WHERE s.kind = $2 AND ",
            can_judge!("$3"),
            " LIMIT $4) AS open_sets"
        ),
        args![now, kind.as_str(), labeler.as_str(), most],
    )
    .await
}

/// The set `s` is open, somebody has judged or skipped it, and at the time `$1` no active labeler can judge it any
/// more. The administrator's own key is nobody to wait for.
macro_rules! stuck {
    () => {
        concat!(
            "s.status = 'open' AND s.kind = 'normal'
             AND EXISTS (SELECT 1 FROM judgments t WHERE t.set_id = s.id)
             AND NOT EXISTS (SELECT 1 FROM labelers l WHERE l.active AND l.id NOT IN ('admin', 'import') AND ",
            can_judge!("l.id"),
            ")"
        )
    };
}

/// The condition of `stuck!` for statements that are built from parts.
pub(super) const STUCK: &str = stuck!();

pub(super) async fn count_stuck(conn: &mut Conn, now: Micros) -> Result<i64> {
    conn.count(concat!("SELECT COUNT(*) AS n FROM comparison_sets s WHERE ", stuck!()), args![now]).await
}

/// Leases whose holder is at work.
pub(super) async fn count_live(conn: &mut Conn, now: Micros) -> Result<i64> {
    conn.count(
        "SELECT COUNT(*) AS n FROM assignments WHERE state = 'leased' AND expires_at > $1 AND renewed > $2",
        args![now, now - AWAY],
    )
    .await
}

/// Current leases of the labeler on sets of a kind.
pub(super) async fn count_held(conn: &mut Conn, labeler: &LabelerId, kind: SetKind, now: Micros) -> Result<i64> {
    conn.count(
        concat!("SELECT COUNT(*) AS n FROM comparison_sets s WHERE s.kind = $2 AND ", held!()),
        args![now, kind.as_str(), labeler.as_str()],
    )
    .await
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
    if held_already(conn, request).await?.is_some() {
        return Ok(false);
    }
    Ok(quota_is_used(conn, request).await? || pick(conn, request).await?.is_none())
}

async fn quota_is_used(conn: &mut Conn, request: &LeaseRequest) -> Result<bool> {
    let Some((since, limit)) = request.quota else { return Ok(false) };
    let used = conn
        .count(
            concat!(
                "SELECT (SELECT COUNT(*) FROM judgments WHERE labeler_id = $1 AND created >= $2 AND ",
                judgments::work_done!(),
                ") + (SELECT COUNT(*) FROM assignments WHERE labeler_id = $1 AND state = 'leased'
                       AND expires_at > $3) AS n"
            ),
            args![request.labeler_id.as_str(), since, request.now],
        )
        .await?;
    Ok(used >= limit)
}

/// Why [`lease_next`] gave nothing, by the same rules.
pub(super) async fn no_lease(conn: &mut Conn, request: &LeaseRequest) -> Result<NoLease> {
    let Some(id) = &request.set_id else {
        let done = match request.quota {
            Some((since, limit)) => judgments::counts(conn, &request.labeler_id, since).await?.today >= limit,
            None => false,
        };
        // Sets in hand count too, but then there must be something that they keep the labeler from.
        let held_up = !done && pick(conn, request).await?.is_some() && quota_is_used(conn, request).await?;
        return Ok(if done || held_up { NoLease::Quota } else { NoLease::Empty });
    };
    let judged = conn
        .count(
            "SELECT COUNT(*) AS n FROM judgments WHERE set_id = $1 AND labeler_id = $2",
            args![id.as_str(), request.labeler_id.as_str()],
        )
        .await?;
    if judged > 0 {
        return Ok(NoLease::Judged);
    }
    let set = get(conn, id).await?;
    if set.status != SetStatus::Open {
        return Ok(NoLease::Closed);
    }
    if places_taken(conn, id, &request.labeler_id, request.now).await? >= set.target_overlap {
        return Ok(NoLease::Taken);
    }
    Ok(if quota_is_used(conn, request).await? { NoLease::Quota } else { NoLease::Empty })
}

/// A lease that the labeler holds now: of the named set, or the first of those that the caller has not got.
async fn held_already(conn: &mut Conn, request: &LeaseRequest) -> Result<Option<Assignment>> {
    if let Some(wanted) = &request.set_id {
        get(conn, wanted).await?;
    } else if request.resume.is_none() {
        return Ok(None);
    }
    // Onboarding comes before ordinary work, in hand or not.
    let first = match request.pick {
        Pick::First(kind) if free(conn, request, kind).await?.is_some() => Some(kind.as_str()),
        _ => None,
    };
    let rows = conn
        .all(
            "SELECT a.* FROM assignments a JOIN comparison_sets s ON s.id = a.set_id
             WHERE a.labeler_id = $1 AND a.state = 'leased' AND a.expires_at > $2 AND ($3 IS NULL OR a.set_id = $3)
               AND ($3 IS NOT NULL OR $4 IS NULL OR s.kind = $4)
             ORDER BY CASE WHEN s.kind = 'calibration' THEN 0 ELSE 1 END, a.leased, a.id",
            args![request.labeler_id.as_str(), request.now, request.set_id.as_ref().map(SetId::as_str), first],
        )
        .await?;
    for row in &rows {
        let held = assignment(row)?;
        if request.resume.as_ref().is_none_or(|except| !except.contains(&held.set_id)) {
            return Ok(Some(held));
        }
    }
    Ok(None)
}

/// The best open set with a free place that this labeler has neither judged nor holds now. A set that the
/// labeler holds already is given again as it is, with the lease extended, when named or to be resumed.
pub(super) async fn lease_next(conn: &mut Conn, request: LeaseRequest) -> Result<Option<Assignment>> {
    conn.serialize(PLACES).await?;
    let labeler = request.labeler_id.as_str();
    let now = request.now;
    if let Some(mut held) = held_already(conn, &request).await? {
        held.expires_at = held.expires_at.max(request.expires_at);
        extend(conn, &held.id, now, held.expires_at).await?;
        return Ok(Some(held));
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
            "INSERT INTO assignments (id, set_id, labeler_id, state, lease_token, expires_at, order_seed, leased,
                 renewed)
             VALUES ($1, $2, $3, 'leased', $4, $5, $6, $7, $7)
             ON CONFLICT (set_id, labeler_id) DO UPDATE SET state = 'leased', expires_at = excluded.expires_at,
                 leased = excluded.leased, renewed = excluded.renewed
             RETURNING *",
            args![
                request.assignment_id.as_str(),
                &set_id,
                labeler,
                &request.lease_token,
                request.expires_at,
                request.order_seed.cast_signed(),
                now
            ],
        )
        .await?;
    row.as_ref().map(assignment).transpose()
}

async fn extend(conn: &mut Conn, id: &AssignmentId, now: Micros, expires_at: Micros) -> Result<()> {
    conn.run(
        "UPDATE assignments SET state = 'leased', expires_at = $2, renewed = $3 WHERE id = $1",
        args![id.as_str(), expires_at, now],
    )
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
        if places_taken(conn, &held.set_id, &held.labeler_id, now).await? >= overlap {
            return Err(lost());
        }
    }
    extend(conn, id, now, expires_at).await
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

//! Leases: reserve a set for a labeler, so that no more people judge it than its overlap.

use super::groups::Write;
use super::rows::{BoxFuture, Conn, Row, args, not_found};
use super::sets::get;
use super::{Result, StoreError};
use crate::domain::*;

/// A holder without a renewal for this long (µs) is not at work, though the lease is still current.
const AWAY: Micros = 180_000_000;

/// How many places of the set `s` others than the labeler have taken at the time `$1` or `$now`: current leases,
/// submitted assignments and rankings by API. One text, so that counting sets, picking one and checking a
/// place can never disagree. `COALESCE` keeps SQLite from its index of what is superseded, which has all first
/// judgments under NULL, and `CASE` keeps PostgreSQL from the index of all leases: both read all of it for every set.
macro_rules! taken_by_others {
    ($labeler:literal) => {
        taken_by_others!($labeler, "$1")
    };
    ($labeler:literal, $now:literal) => {
        concat!(
            "((SELECT COUNT(*) FROM assignments a WHERE a.set_id = s.id AND a.labeler_id <> ",
            $labeler,
            " AND CASE a.state WHEN 'submitted' THEN TRUE WHEN 'leased' THEN a.expires_at > ",
            $now,
            " ELSE FALSE END)
              + (SELECT COUNT(*) FROM judgments j WHERE j.set_id = s.id AND j.labeler_id <> ",
            $labeler,
            " AND j.assignment_id IS NULL AND COALESCE(j.supersedes_id, '') = '' AND j.knowledge = 'blind'))"
        )
    };
}

/// What makes the set `s` one that the labeler can still judge at the time `$1`, held already or not. `OFFSET` makes
/// PostgreSQL look the labeler's judgment up by the set instead of going through all of them for every set.
macro_rules! can_judge {
    ($labeler:literal) => {
        concat!(
            "s.status = 'open'
             AND NOT EXISTS (SELECT 1 FROM judgments own WHERE own.set_id = s.id AND own.labeler_id = ",
            $labeler,
            " LIMIT 1 OFFSET 0) AND s.target_overlap > ",
            taken_by_others!($labeler)
        )
    };
}

/// The labeler (`$3`) holds the set `s` at the time `$now` (`$1`).
macro_rules! held {
    () => {
        held!("$3", "$1")
    };
    ($labeler:literal, $now:literal) => {
        concat!(
            "EXISTS (SELECT 1 FROM assignments h WHERE h.set_id = s.id AND h.labeler_id = ",
            $labeler,
            " AND h.state = 'leased' AND h.expires_at > ",
            $now,
            ")"
        )
    };
}

pub(super) use {can_judge, held, taken_by_others};

pub(super) fn assignment(row: &Row) -> Result<Assignment> {
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

/// Sets of a project and kind that the labeler can still judge, those in hand included; counted up to `most`.
pub(super) async fn count_for(
    conn: &mut Conn,
    labeler: &LabelerId,
    project: &ProjectId,
    kind: SetKind,
    now: Micros,
    most: i64,
) -> Result<i64> {
    conn.count(
        concat!(
            "SELECT COUNT(*) AS n FROM (SELECT 1 FROM comparison_sets s WHERE s.project_id = $5 AND s.kind = $2
               AND ",
            can_judge!("$3"),
            " LIMIT $4) AS open_sets"
        ),
        args![now, kind.as_str(), labeler.as_str(), most, project.as_str()],
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

async fn count_stuck(conn: &mut Conn, now: Micros, project: Option<&ProjectId>) -> Result<i64> {
    conn.count(
        concat!("SELECT COUNT(*) AS n FROM comparison_sets s WHERE ($2 IS NULL OR s.project_id = $2) AND ", stuck!()),
        args![now, project.map(ProjectId::as_str)],
    )
    .await
}

/// What waits to be judged, and what is being judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue {
    pub sets_open: i64,
    /// Open sets that every active labeler has judged or skipped.
    pub sets_stuck: i64,
    /// Leases that were renewed within the last minutes.
    pub leases: i64,
}

/// The queue of all projects or one. Sets with known answers do not count as open.
pub(super) async fn queue(conn: &mut Conn, now: Micros, project: Option<&ProjectId>) -> Result<Queue> {
    let open = "SELECT COUNT(*) AS n FROM comparison_sets
                WHERE status = 'open' AND kind = 'normal' AND ($1 IS NULL OR project_id = $1)";
    Ok(Queue {
        sets_open: conn.count(open, args![project.map(ProjectId::as_str)]).await?,
        sets_stuck: count_stuck(conn, now, project).await?,
        leases: count_live(conn, now, project).await?,
    })
}

/// Leases whose holder is at work, of all projects or one.
async fn count_live(conn: &mut Conn, now: Micros, project: Option<&ProjectId>) -> Result<i64> {
    conn.count(
        "SELECT COUNT(*) AS n FROM assignments
         WHERE state = 'leased' AND expires_at > $1 AND renewed > $2
           AND ($3 IS NULL OR set_id IN (SELECT id FROM comparison_sets WHERE project_id = $3))",
        args![now, now - AWAY, project.map(ProjectId::as_str)],
    )
    .await
}

/// Current leases of the labeler on sets of a project and kind.
pub(super) async fn count_held(
    conn: &mut Conn,
    labeler: &LabelerId,
    project: &ProjectId,
    kind: SetKind,
    now: Micros,
) -> Result<i64> {
    conn.count(
        concat!("SELECT COUNT(*) AS n FROM comparison_sets s WHERE s.kind = $2 AND s.project_id = $4 AND ", held!()),
        args![now, kind.as_str(), labeler.as_str(), project.as_str()],
    )
    .await
}

/// Marks the leases that have run out.
pub(super) async fn expire(conn: &mut Conn, now: Micros) -> Result<()> {
    conn.run("UPDATE assignments SET state = 'expired' WHERE state = 'leased' AND expires_at <= $1", args![now])
        .await?;
    Ok(())
}

async fn extend(conn: &mut Conn, id: &AssignmentId, now: Micros, expires_at: Micros) -> Result<()> {
    conn.run(
        "UPDATE assignments SET state = 'leased', expires_at = $2, renewed = $3 WHERE id = $1",
        args![id.as_str(), expires_at, now],
    )
    .await?;
    Ok(())
}

/// The extension of a lease.
pub(super) struct Renewal {
    pub id: AssignmentId,
    pub token: String,
    pub now: Micros,
    pub expires_at: Micros,
}

impl Write for Renewal {
    type Done = ();

    fn run<'c>(&'c self, conn: &'c mut Conn) -> BoxFuture<'c, Result<()>> {
        Box::pin(renew(conn, self))
    }
}

/// An expired lease renews too, as long as its place was not given away.
async fn renew(conn: &mut Conn, renewal: &Renewal) -> Result<()> {
    let Renewal { id, token, now, expires_at } = renewal;
    let now = *now;
    let held = get_assignment(conn, id).await?;
    let lost = || StoreError::LeaseLost(id.to_string());
    if held.lease_token != *token || !matches!(held.state, AssignmentState::Leased | AssignmentState::Expired) {
        return Err(lost());
    }
    let current = held.state == AssignmentState::Leased && held.expires_at > now;
    if !current {
        let overlap = get(conn, &held.set_id).await?.target_overlap;
        if places_taken(conn, &held.set_id, &held.labeler_id, now).await? >= overlap {
            return Err(lost());
        }
    }
    extend(conn, id, now, *expires_at).await
}

/// The end of a lease without a judgment.
pub(super) struct Release {
    pub id: AssignmentId,
    pub token: String,
}

impl Write for Release {
    type Done = ();

    fn run<'c>(&'c self, conn: &'c mut Conn) -> BoxFuture<'c, Result<()>> {
        Box::pin(release(conn, &self.id, &self.token))
    }
}

async fn release(conn: &mut Conn, id: &AssignmentId, token: &str) -> Result<()> {
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

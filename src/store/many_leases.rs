//! The leases of a group of labelers, on PostgreSQL: one statement for each kind of sets reads what is free, and one
//! takes the leases, however many there are.

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};

use super::groups::{Waiting, Write};
use super::leases::{self, assignment, taken_by_others};
use super::rows::{BoxFuture, Conn, args};
use super::rules::LeasePlan;
use super::turns::{self, TakeLease};
use super::{LeaseRequest, Pick, Result, judgments};
use crate::domain::*;

impl Write for TakeLease {
    type Done = Option<Assignment>;
    const TOGETHER: bool = true;

    fn run<'c>(&'c self, conn: &'c mut Conn) -> BoxFuture<'c, Result<Option<Assignment>>> {
        Box::pin(turns::take(conn, self))
    }

    fn together<'c>(conn: &'c mut Conn, waiting: Vec<&'c mut Waiting<Self>>) -> BoxFuture<'c, Result<()>> {
        Box::pin(take(conn, waiting))
    }
}

/// Free sets read beyond the number of leases, because a labeler may have judged some of them.
const SPARE: usize = 16;

/// A set with free places.
struct FreeSet {
    id: SetId,
    /// Number of places that nobody has taken.
    places: i64,
    /// Labelers who hold the set, or have judged or skipped it.
    known_to: HashSet<LabelerId>,
}

/// Free sets by project and kind, in the order of the queue.
type FreeSets = HashMap<(ProjectId, SetKind), Vec<FreeSet>>;

/// The sets of the project `$4` and the kind `$2` with free places at the time `$1`, at most `$3`, in the order of the queue.
const FREE: &str = concat!(
    "SELECT s.id, s.target_overlap - ",
    taken_by_others!("''"),
    " AS places,
       (SELECT json_agg(k.labeler_id) FROM (
           SELECT j.labeler_id FROM judgments j WHERE j.set_id = s.id
           UNION ALL
           SELECT a.labeler_id FROM assignments a WHERE a.set_id = s.id AND a.state = 'leased' AND a.expires_at > $1
       ) k) AS known_to
     FROM comparison_sets s
     WHERE s.project_id = $4 AND s.status = 'open' AND s.kind = $2 AND s.target_overlap > ",
    taken_by_others!("''"),
    " ORDER BY s.selection_score DESC NULLS LAST, s.id LIMIT $3"
);

/// Inserts leases, each if the labeler's quota allows it. A labeler whose lease expired or was released without a
/// judgment gets the same assignment, with the same token and order.
const INSERT: &str = concat!(
    "INSERT INTO assignments (id, set_id, labeler_id, state, lease_token, expires_at, order_seed, leased, renewed)
     SELECT q.id, q.set_id, q.labeler_id, 'leased', q.lease_token, q.expires_at, q.order_seed, q.now, q.now
     FROM jsonb_to_recordset($1) AS q (id TEXT, set_id TEXT, labeler_id TEXT, lease_token TEXT, expires_at BIGINT,
         order_seed BIGINT, now BIGINT, since BIGINT, quota BIGINT)
     WHERE q.quota IS NULL OR q.quota >
         (SELECT COUNT(*) FROM judgments j WHERE j.labeler_id = q.labeler_id AND j.created >= q.since AND ",
    judgments::work_done!(),
    ") + (SELECT COUNT(*) FROM assignments a
          WHERE a.labeler_id = q.labeler_id AND a.state = 'leased' AND a.expires_at > q.now)
     ON CONFLICT (set_id, labeler_id) DO UPDATE SET state = 'leased', expires_at = excluded.expires_at,
         leased = excluded.leased, renewed = excluded.renewed
     RETURNING *"
);

/// Takes the leases of a group. An error means that the transaction must be rolled back.
async fn take(conn: &mut Conn, waiting: Vec<&mut Waiting<TakeLease>>) -> Result<()> {
    let mut labelers = HashSet::new();
    let (mut together, mut alone) = (Vec::new(), Vec::new());
    for lease in waiting {
        let TakeLease { request, plan, .. } = &lease.write;
        // A second lease of a labeler depends on the first.
        let any_set = *plan == LeasePlan::Lease && request.set_id.is_none();
        if any_set && labelers.insert(request.labeler_id.clone()) { together.push(lease) } else { alone.push(lease) }
    }
    // For one lease the statement that picks a set and takes it is less work.
    if together.len() > 1 {
        alone.extend(take_together(conn, together).await?);
    } else {
        alone.append(&mut together);
    }
    for lease in alone {
        lease.done = Some(Ok(turns::take(conn, &lease.write).await?));
    }
    Ok(())
}

/// Takes the leases for which the free sets that were read suffice; returns the others.
async fn take_together<'a>(
    conn: &mut Conn,
    waiting: Vec<&'a mut Waiting<TakeLease>>,
) -> Result<Vec<&'a mut Waiting<TakeLease>>> {
    let now = waiting.iter().map(|lease| lease.write.request.now).max().unwrap_or(0);
    if waiting.iter().any(|lease| lease.write.lapsed) {
        leases::expire(conn, now).await?;
    }
    let queues: HashSet<(ProjectId, SetKind)> = waiting.iter().flat_map(|lease| queues(&lease.write.request)).collect();
    let mut free = FreeSets::new();
    for queue in queues {
        let sets = free_sets(conn, &queue, now, waiting.len() + SPARE).await?;
        free.insert(queue, sets);
    }
    let (mut rows, mut picked, mut others) = (Vec::new(), Vec::new(), Vec::new());
    for lease in waiting {
        match pick(&mut free, &lease.write.request) {
            Some(set) => {
                rows.push(row(&lease.write.request, &set));
                picked.push(lease);
            }
            None => others.push(lease),
        }
    }
    if rows.is_empty() {
        return Ok(others);
    }
    let taken = conn.all(INSERT, args![Value::from(rows)]).await?;
    let taken = taken.iter().map(assignment).collect::<Result<Vec<_>>>()?;
    let mut taken: HashMap<LabelerId, Assignment> = taken.into_iter().map(|a| (a.labeler_id.clone(), a)).collect();
    for lease in picked {
        lease.done = Some(Ok(taken.remove(&lease.write.request.labeler_id)));
    }
    Ok(others)
}

/// The project and kinds of sets that decide about a lease.
fn queues(request: &LeaseRequest) -> Vec<(ProjectId, SetKind)> {
    let kinds = match request.pick {
        Pick::Normal => vec![SetKind::Normal],
        Pick::Instead(kind) | Pick::First(kind) => vec![SetKind::Normal, kind],
    };
    kinds.into_iter().map(|kind| (request.project_id.clone(), kind)).collect()
}

async fn free_sets(
    conn: &mut Conn,
    (project, kind): &(ProjectId, SetKind),
    now: Micros,
    most: usize,
) -> Result<Vec<FreeSet>> {
    let rows = conn.all(FREE, args![now, kind.as_str(), most as i64, project.as_str()]).await?;
    let free = |row: &super::rows::Row| {
        Ok(FreeSet {
            id: row.text("id")?.into(),
            places: row.int("places")?,
            known_to: row.opt_json("known_to")?.unwrap_or_default(),
        })
    };
    rows.iter().map(free).collect()
}

/// Takes a place for the labeler on the first set that the request allows.
fn pick(free: &mut FreeSets, request: &LeaseRequest) -> Option<SetId> {
    let first = |kind: SetKind| {
        let fits = |set: &FreeSet| set.places > 0 && !set.known_to.contains(&request.labeler_id);
        Some((kind, free.get(&(request.project_id.clone(), kind))?.iter().position(fits)?))
    };
    let ordinary = first(SetKind::Normal);
    let (kind, index) = match request.pick {
        Pick::Normal => ordinary,
        Pick::Instead(kind) => ordinary.and_then(|_| first(kind).or(ordinary)),
        Pick::First(kind) => first(kind).or(ordinary),
    }?;
    let set = free.get_mut(&(request.project_id.clone(), kind))?.get_mut(index)?;
    set.places -= 1;
    Some(set.id.clone())
}

/// The parameters of a lease in `INSERT`.
fn row(request: &LeaseRequest, set: &SetId) -> Value {
    json!({
        "id": request.assignment_id,
        "set_id": set,
        "labeler_id": request.labeler_id,
        "lease_token": request.lease_token,
        "expires_at": request.expires_at,
        "order_seed": request.order_seed.cast_signed(),
        "now": request.now,
        "since": request.quota.map_or(0, |(since, _)| since),
        "quota": request.quota.map(|(_, limit)| limit),
    })
}

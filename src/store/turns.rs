//! A labeler's turn in three statements (one reads what is available, one takes the lease, one reads the set), and a
//! judgment in three (one reads its set, two run in the transaction).

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::leases::{self, assignment, can_judge, held, taken_by_others};
use super::projects::{held_elsewhere, judged_elsewhere, labels_in};
use super::rows::{Conn, Row, args, not_found};
use super::rubrics::{active_rubric, rubric};
use super::rules::{self, LeasePlan};
use super::settings::guidelines_of;
use super::sql::{Store, read};
use super::*;
use super::{judgments, people, prompts};

pub use super::rules::{NamedSet, Outlook};

/// Parameters of reading the work that is available to a labeler.
#[derive(Clone, Debug)]
pub struct OutlookRequest {
    pub labeler_id: LabelerId,
    /// The project whose sets are handed out.
    pub project_id: ProjectId,
    pub now: Micros,
    /// Start of the day, µs.
    pub since: Micros,
    pub set_id: Option<SetId>,
    /// A kind of sets that precedes ordinary ones.
    pub special: Option<SetKind>,
    /// Whether held sets may be handed out again.
    pub again: bool,
    /// Ordinary and calibration sets are counted up to these numbers.
    pub most_open: i64,
    pub most_calibrations: i64,
    /// Language of the guidelines.
    pub lang: Option<String>,
    /// When a lease that begins now ends.
    pub expires_at: Micros,
}

/// Result of a request for a lease.
#[derive(Clone, Debug, PartialEq)]
pub enum Leased {
    Set(Assignment),
    Nothing(NoLease),
}

/// A set with its prompt and its completions in storage order.
#[derive(Clone, Debug, PartialEq)]
pub struct SetContent {
    pub set: ComparisonSet,
    pub prompt: Prompt,
    pub completions: Vec<Completion>,
}

/// Which set a judgment is about.
#[derive(Clone, Debug)]
pub enum Place {
    Assignment(AssignmentId),
    /// For rankings by the API; with the assignment if the labeler holds one.
    Set(SetId, Option<AssignmentId>),
}

/// The first set in the queue of the project `$10` that can be handed out to the labeler `$3` at the time `$1`.
macro_rules! free_of {
    ($which:literal) => {
        concat!(
            "(SELECT s.id FROM comparison_sets s WHERE s.project_id = $10 AND s.",
            $which,
            " AND ",
            can_judge!("$3"),
            " AND NOT ",
            held!(),
            " ORDER BY s.selection_score DESC NULLS LAST, s.id LIMIT 1)"
        )
    };
}

/// Inserts the lease on the set that `$pick` finds. A labeler whose lease expired or was released without a judgment
/// gets the same assignment, with the same token and order, so that an open tab can still submit.
macro_rules! lease_on {
    ($($pick:tt)*) => {
        concat!(
            "INSERT INTO assignments (id, set_id, labeler_id, state, lease_token, expires_at, order_seed, leased,
                 renewed)
             SELECT $4, q.id, $3, 'leased', $5, $6, $7, $1, $1 FROM (SELECT ",
            $($pick)*,
            " AS id LIMIT 1) q
             WHERE q.id IS NOT NULL AND ($9 IS NULL OR $9 >
                 (SELECT COUNT(*) FROM judgments WHERE labeler_id = $3 AND created >= $8 AND ",
            judgments::work_done!(),
            ") + (SELECT COUNT(*) FROM assignments WHERE labeler_id = $3 AND state = 'leased' AND expires_at > $1))
             ON CONFLICT (set_id, labeler_id) DO UPDATE SET state = 'leased', expires_at = excluded.expires_at,
                 leased = excluded.leased, renewed = excluded.renewed
             RETURNING *"
        )
    };
}

const ORDINARY: &str = lease_on!(free_of!("kind = 'normal'"));
const NAMED: &str = lease_on!(free_of!("id = $2"));
const FIRST: &str = lease_on!(concat!("COALESCE(", free_of!("kind = $2"), ", ", free_of!("kind = 'normal'"), ")"));
/// Nothing without ordinary work.
const INSTEAD: &str = lease_on!(concat!(
    "CASE WHEN ",
    free_of!("kind = 'normal'"),
    " IS NOT NULL THEN COALESCE(",
    free_of!("kind = $2"),
    ", ",
    free_of!("kind = 'normal'"),
    ") END"
));

/// Reads what is available to a labeler; `$queue` gives `open_sets` and `ordinary_free`.
macro_rules! outlook_of {
    ($queue:expr) => {
        concat!(
            "SELECT l.daily_quota, pm.daily_quota AS project_quota,
               CASE WHEN pm.daily_quota > 0 THEN ",
            judged_elsewhere!("$3", "$10", "$4"),
            " ELSE 0 END AS judged_elsewhere,
               CASE WHEN pm.daily_quota > 0 THEN ",
            held_elsewhere!("$3", "$10", "$1"),
            " ELSE 0 END AS held_elsewhere,
               EXISTS (SELECT 1 FROM projects p WHERE p.id = $10 AND ",
            labels_in!("p", "pm"),
            ") AS labels_here, k.today, k.total, k.skipped_today, k.skipped_total,
               (SELECT COUNT(*) FROM assignments WHERE labeler_id = $3 AND state = 'leased' AND expires_at > $1)
                   AS in_hand,
               (SELECT COUNT(*) FROM comparison_sets s JOIN judgments j ON j.set_id = s.id
                   WHERE s.project_id = $10 AND s.kind = 'calibration' AND j.labeler_id = $3 AND j.revision = 1
                     AND j.outcome <> 'skip' AND $6 > 0) AS calibrations_done,
               (SELECT COUNT(*) FROM comparison_sets s WHERE s.project_id = $10 AND s.kind = 'calibration' AND $6 > 0
                   AND ",
            held!(),
            ") AS calibrations_held,
               (SELECT COUNT(*) FROM (SELECT 1 FROM comparison_sets s WHERE s.project_id = $10
                   AND s.kind = 'calibration' AND ",
            can_judge!("$3"),
            " LIMIT $6) AS c) AS calibrations_left, ",
            $queue,
            ", ",
            free_of!("kind = $8"),
            " IS NOT NULL AS special_free,
               ",
            guidelines_of!("$9", "$10"),
            " AS guidelines, ",
            active_rubric!("version", "$10"),
            " AS rubric_version, ",
            active_rubric!("definition", "$10"),
            " AS rubric,
               EXISTS (SELECT 1 FROM assignments WHERE state = 'leased' AND expires_at <= $1) AS lapsed,
               EXISTS (SELECT 1 FROM assignments WHERE state = 'leased' AND expires_at > $11) AS ahead,
               n.project_id AS named_project, n.status AS named_status, n.target_overlap AS named_overlap,
               (SELECT ",
            taken_by_others!("$3"),
            " FROM comparison_sets s WHERE s.id = $2) AS named_taken,
               (SELECT COUNT(*) FROM judgments WHERE set_id = $2 AND labeler_id = $3) AS named_judged,
               a.id, a.set_id, a.labeler_id, a.state, a.lease_token, a.expires_at, a.order_seed,
               h.kind AS held_kind
             FROM labelers l
             CROSS JOIN (SELECT COUNT(CASE WHEN ",
            judgments::work_done!(),
            " THEN 1 END) AS total, COUNT(CASE WHEN ",
            judgments::work_done!(),
            " AND created >= $4 THEN 1 END) AS today,
                 COUNT(CASE WHEN outcome = 'skip' THEN 1 END) AS skipped_total,
                 COUNT(CASE WHEN outcome = 'skip' AND created >= $4 THEN 1 END) AS skipped_today
                 FROM judgments WHERE labeler_id = $3 AND revision = 1) k
             LEFT JOIN project_members pm ON pm.project_id = $10 AND pm.labeler_id = l.id
             LEFT JOIN comparison_sets n ON n.id = $2
             LEFT JOIN (assignments a JOIN comparison_sets h ON h.id = a.set_id)
               ON $5 AND a.labeler_id = l.id AND a.state = 'leased' AND a.expires_at > $1
                 AND h.project_id = $10 AND ($12 IS NULL OR a.set_id = $12)
             WHERE l.id = $3
             ORDER BY CASE WHEN h.kind = 'calibration' THEN 0 ELSE 1 END, a.leased, a.id"
        )
    };
}

const OUTLOOK: &str = outlook_of!(concat!(
    "(SELECT COUNT(*) FROM (SELECT 1 FROM comparison_sets s WHERE s.project_id = $10 AND s.kind = 'normal' AND ",
    can_judge!("$3"),
    " LIMIT $7) AS o) AS open_sets, ",
    free_of!("kind = 'normal'"),
    " IS NOT NULL AS ordinary_free"
));
/// With `$7` = 0, where it is known that there is an ordinary set to hand out. A statement of its own, because
/// PostgreSQL would plan one with a switch anew for every turn.
const OUTLOOK_WITH_WORK: &str = outlook_of!("$7 AS open_sets, TRUE AS ordinary_free");

async fn outlook(conn: &mut Conn, sql: &'static str, request: &OutlookRequest) -> Result<Outlook> {
    let rows = conn
        .all(
            sql,
            args![
                request.now,
                request.set_id.as_ref().map(SetId::as_str),
                request.labeler_id.as_str(),
                request.since,
                request.again,
                request.most_calibrations,
                request.most_open,
                request.special.map(SetKind::as_str),
                request.lang.as_deref(),
                request.project_id.as_str(),
                request.expires_at + people::CLOCK_SLACK,
                request.set_id.as_ref().map(SetId::as_str)
            ],
        )
        .await?;
    let row = rows.first().ok_or_else(|| not_found("labeler", request.labeler_id.as_str()))?;
    let mut outlook = seen(row, request)?;
    for row in rows.iter().filter(|row| !matches!(row.opt_text("id"), Ok(None))) {
        outlook.held.push((assignment(row)?, row.name("held_kind", SetKind::parse)?));
    }
    Ok(outlook)
}

fn seen(row: &Row, request: &OutlookRequest) -> Result<Outlook> {
    let named = match &request.set_id {
        None => None,
        Some(id) => Some(NamedSet {
            status: row
                .opt_name("named_status", SetStatus::parse)?
                .ok_or_else(|| not_found("comparison set", id.as_str()))?,
            project_id: row.text("named_project")?.into(),
            overlap: row.int("named_overlap")?,
            taken: row.int("named_taken")?,
            judged: row.int("named_judged")? > 0,
        }),
    };
    Ok(Outlook {
        daily_quota: row.opt_int("daily_quota")?,
        labels_here: row.flag("labels_here")?,
        project_quota: ProjectQuota::of(row)?,
        held_elsewhere: row.int("held_elsewhere")?,
        counts: LabelerCounts {
            today: row.int("today")?,
            total: row.int("total")?,
            skipped_today: row.int("skipped_today")?,
            skipped_total: row.int("skipped_total")?,
        },
        in_hand: row.int("in_hand")?,
        calibrations_done: row.int("calibrations_done")?,
        calibrations_held: row.int("calibrations_held")?,
        calibrations_left: row.int("calibrations_left")?,
        open: row.int("open_sets")?,
        guidelines: row.opt_text("guidelines")?,
        rubric: rubric(row)?,
        ordinary_free: row.flag("ordinary_free")?,
        special_free: row.flag("special_free")?,
        held: Vec::new(),
        named,
        lapsed: row.flag("lapsed")?,
        ahead: row.flag("ahead")?,
    })
}

/// Parameters of [`outlook`] for a lease alone.
pub(super) fn for_lease(request: &LeaseRequest) -> OutlookRequest {
    OutlookRequest {
        labeler_id: request.labeler_id.clone(),
        project_id: request.project_id.clone(),
        now: request.now,
        since: request.quota.map_or(request.now, |(since, _)| since),
        set_id: request.set_id.clone(),
        special: match request.pick {
            Pick::First(kind) => Some(kind),
            Pick::Normal | Pick::Instead(_) => None,
        },
        again: request.set_id.is_some() || request.resume.is_some(),
        most_open: 0,
        most_calibrations: 0,
        lang: None,
        expires_at: request.expires_at,
    }
}

/// Cached counts of open sets by labeler and project. Going through the queue is the most expensive part of a turn, so a
/// large count is reused for some seconds, less the labeler's judgments since then, and taken to mean that a set is free;
/// the lease itself looks for one. Small ones are counted every time.
#[derive(Default)]
pub(super) struct OpenCounts(Mutex<HashMap<(LabelerId, ProjectId), OpenCount>>);

#[derive(Clone, Copy)]
struct OpenCount {
    open: i64,
    /// First judgments and skips of the labeler, and the time, at the count.
    words: i64,
    at: Micros,
}

/// Counts from here on are reused.
const MANY: i64 = 100;
const KEPT: Micros = 5_000_000;
/// Most labelers with cached counts.
const MOST_COUNTS: usize = 10_000;

impl OpenCounts {
    fn all(&self) -> MutexGuard<'_, HashMap<(LabelerId, ProjectId), OpenCount>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self, request: &OutlookRequest) -> Option<OpenCount> {
        if request.most_open == 0 {
            return None;
        }
        let age = |kept: &OpenCount| request.now - kept.at;
        self.all().get(&counted_by(request)).copied().filter(|kept| (0..KEPT).contains(&age(kept)))
    }

    fn keep(&self, request: &OutlookRequest, seen: &Outlook) {
        if request.most_open == 0 {
            return;
        }
        let mut all = self.all();
        if seen.open < MANY {
            all.remove(&counted_by(request));
            return;
        }
        if all.len() >= MOST_COUNTS {
            all.clear();
        }
        let count = OpenCount { open: seen.open, words: words(seen), at: request.now };
        all.insert(counted_by(request), count);
    }
}

fn counted_by(request: &OutlookRequest) -> (LabelerId, ProjectId) {
    (request.labeler_id.clone(), request.project_id.clone())
}

fn words(seen: &Outlook) -> i64 {
    seen.counts.total + seen.counts.skipped_total
}

impl Store {
    pub(super) async fn seen(&self, request: &OutlookRequest) -> Result<Outlook> {
        if let Some(kept) = self.open_counts.known(request) {
            let counting = OutlookRequest { most_open: 0, ..request.clone() };
            let mut seen = read!(self, |c| outlook(c, OUTLOOK_WITH_WORK, &counting))?;
            // A count at its maximum may stand for more.
            let at_most = kept.open >= request.most_open;
            seen.open = if at_most { request.most_open } else { kept.open - (words(&seen) - kept.words).max(0) };
            // The sets that the labeler holds are among those that can be judged, but none of them is free.
            if seen.open > seen.in_hand {
                return Ok(seen);
            }
        }
        let seen = read!(self, |c| outlook(c, OUTLOOK, request))?;
        self.open_counts.keep(request, &seen);
        Ok(seen)
    }

    /// Takes a lease according to what was read. If others took it in the meantime, the outlook is read again.
    pub(super) async fn lease_by(&self, request: LeaseRequest, mut seen: Outlook) -> Result<Leased> {
        for _ in 0..3 {
            if seen.ahead {
                access::end_future_leases(self, request.expires_at).await?;
                seen = self.seen(&for_lease(&request)).await?;
            }
            let plan = rules::plan(&request, &seen);
            if let LeasePlan::Nothing(reason) = plan {
                return Ok(Leased::Nothing(reason));
            }
            let taken = self.place(TakeLease { request: request.clone(), plan, lapsed: seen.lapsed }).await?;
            if let Some(assignment) = taken {
                return Ok(Leased::Set(assignment));
            }
            seen = self.seen(&for_lease(&request)).await?;
        }
        Ok(Leased::Nothing(why_nothing(&request, &seen)))
    }
}

/// Why there is no set for the request; `Empty` also when others took the last one.
pub(super) fn why_nothing(request: &LeaseRequest, seen: &Outlook) -> NoLease {
    match rules::plan(request, seen) {
        LeasePlan::Nothing(reason) => reason,
        LeasePlan::Again(_) | LeasePlan::Lease => NoLease::Empty,
    }
}

/// A lease to take according to what was read.
pub(super) struct TakeLease {
    pub request: LeaseRequest,
    pub plan: LeasePlan,
    /// Whether there are expired leases that are still marked as leased.
    pub lapsed: bool,
}

/// Takes the lease of the plan; `None` when the set is no longer free.
pub(super) async fn take(conn: &mut Conn, lease: &TakeLease) -> Result<Option<Assignment>> {
    let TakeLease { request, plan, lapsed } = lease;
    let row = match plan {
        LeasePlan::Nothing(_) => return Ok(None),
        LeasePlan::Again(held) => {
            conn.one(
                "UPDATE assignments SET renewed = $2,
                     expires_at = CASE WHEN expires_at > $3 THEN expires_at ELSE $3 END
                 WHERE id = $1 AND state = 'leased' AND expires_at > $2 RETURNING *",
                args![held.id.as_str(), request.now, request.expires_at],
            )
            .await?
        }
        LeasePlan::Lease => {
            if *lapsed {
                leases::expire(conn, request.now).await?;
            }
            let (sql, which) = match (&request.set_id, request.pick) {
                (Some(id), _) => (NAMED, Some(id.as_str())),
                (None, Pick::Normal) => (ORDINARY, None),
                (None, Pick::Instead(kind)) => (INSTEAD, Some(kind.as_str())),
                (None, Pick::First(kind)) => (FIRST, Some(kind.as_str())),
            };
            conn.one(
                sql,
                args![
                    request.now,
                    which,
                    request.labeler_id.as_str(),
                    request.assignment_id.as_str(),
                    &request.lease_token,
                    request.expires_at,
                    request.order_seed.cast_signed(),
                    request.quota.map_or(0, |(since, _)| since),
                    request.quota.map(|(_, limit)| limit),
                    request.project_id.as_str()
                ],
            )
            .await?
        }
    };
    row.as_ref().map(assignment).transpose()
}

/// A set with its prompt and completions, one row for each completion; `$completion` joins the one of the item `i`.
macro_rules! content_of {
    ($completion:literal) => {
        concat!(
            "SELECT c.*, s.id AS set_id, s.kind, s.target_overlap, s.selection_policy, s.selection_score, s.status,
                 s.created AS set_created, p.project_id, p.lang, p.source, p.content_hash,
                 p.split, p.answer,
                 p.created AS prompt_created, CASE WHEN i.position = 0 THEN p.messages END AS messages,
                 CASE WHEN i.position = 0 THEN p.tags END AS tags
             FROM comparison_sets s JOIN prompts p ON p.id = s.prompt_id JOIN set_items i ON i.set_id = s.id ",
            $completion,
            " WHERE s.id = $1 ORDER BY i.position"
        )
    };
}

const CONTENT_SQLITE: &str = content_of!("JOIN completions c ON c.id = i.completion_id");
/// The limit makes PostgreSQL look completions up by their id also in a plan from when there were few.
const CONTENT_POSTGRES: &str =
    content_of!("CROSS JOIN LATERAL (SELECT * FROM completions WHERE id = i.completion_id LIMIT 1) c");

pub(super) async fn content(conn: &mut Conn, id: &SetId) -> Result<SetContent> {
    let sql = if conn.is_postgres() { CONTENT_POSTGRES } else { CONTENT_SQLITE };
    let rows = conn.all(sql, args![id.as_str()]).await?;
    let row = rows.first().ok_or_else(|| not_found("comparison set", id.as_str()))?;
    let completions = rows.iter().map(prompts::completion).collect::<Result<Vec<_>>>()?;
    let prompt_id: PromptId = row.text("prompt_id")?.into();
    let set = ComparisonSet {
        id: row.text("set_id")?.into(),
        prompt_id: prompt_id.clone(),
        kind: row.name("kind", SetKind::parse)?,
        target_overlap: row.int("target_overlap")?,
        selection_policy: row.text("selection_policy")?,
        selection_score: row.opt_real("selection_score")?,
        status: row.name("status", SetStatus::parse)?,
        completion_ids: completions.iter().map(|c| c.id.clone()).collect(),
        created: row.int("set_created")?,
    };
    let prompt = Prompt {
        id: prompt_id,
        project_id: row.text("project_id")?.into(),
        messages: row.json("messages")?,
        lang: row.opt_text("lang")?,
        source: row.text("source")?,
        content_hash: row.text("content_hash")?,
        split: row.name("split", Split::parse)?,
        tags: row.json("tags")?,
        answer: row.opt_text("answer")?,
        created: row.int("prompt_created")?,
    };
    Ok(SetContent { set, prompt, completions })
}

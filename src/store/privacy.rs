//! Texts that came in as requests: which they are, how many are stored, and removing those that are too old or too
//! many. Also erased people and paths of backups.

use std::collections::HashSet;

use super::rows::{Arg, Conn, Row, args, placeholders};
use super::*;

/// The condition that a prompt came in only as a request: nobody submitted it for labeling.
macro_rules! asked {
    ($p:literal) => {
        concat!("(", $p, ".source IN ('chat', 'completions') AND ", $p, ".submitted IS NULL)")
    };
}
pub(super) use asked;

/// Whether this is the source of requests to the model.
pub(super) fn is_request(source: &str) -> bool {
    matches!(source, "chat" | "completions")
}

/// Numbers of records that came in as requests, which are used for training only if the operator allows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
pub struct RequestCounts {
    pub prompts: i64,
    pub completions: i64,
    /// Feedback on those completions.
    pub feedback_events: i64,
}

/// Records and their size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
pub struct Amount {
    pub records: i64,
    pub bytes: i64,
}

impl std::ops::AddAssign for Amount {
    fn add_assign(&mut self, other: Self) {
        self.records += other.records;
        self.bytes += other.bytes;
    }
}

/// Kinds of records that retention removes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiring {
    /// Feedback events: old ones, and those on completions that are removed.
    Feedback,
    /// Completions of requests that nothing else refers to.
    Completions,
    /// Prompts of requests that have no completions left.
    Prompts,
}

/// Times, µs: records before a cut are removed; records at or before a limit of `kept_*` are kept, because dataset
/// versions depend on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cuts {
    pub feedback: Micros,
    pub requests: Micros,
    pub kept_feedback: Micros,
    pub kept_prompts: Micros,
}

/// A person whose data was erased.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ErasedPerson {
    pub labeler_id: LabelerId,
    pub judgments: Erase,
    pub created: Micros,
}

/// Whether requests may be used for training: the stored setting, otherwise the configured one.
///
/// # Errors
/// What the store says.
pub async fn learns_from_requests(store: &Store, configured: bool) -> Result<bool> {
    let stored = store.settings().list().await?;
    let found = stored.iter().find(|s| s.name == "privacy.learn_from_requests");
    Ok(found.and_then(|s| s.value.as_bool()).unwrap_or(configured))
}

/// Condition: only feedback refers to the completion `c`, and no dataset version depends on that feedback.
fn removable(cuts: &Cuts) -> String {
    format!(
        "c.served IS NOT NULL
           AND NOT EXISTS (SELECT 1 FROM set_items x WHERE x.completion_id = c.id)
           AND NOT EXISTS (SELECT 1 FROM judgment_items x WHERE x.completion_id = c.id)
           AND NOT EXISTS (SELECT 1 FROM judgment_flags x WHERE x.completion_id = c.id)
           AND NOT EXISTS (SELECT 1 FROM judgment_ratings x WHERE x.completion_id = c.id)
           AND NOT EXISTS (SELECT 1 FROM judgment_spans x WHERE x.completion_id = c.id)
           AND NOT EXISTS (SELECT 1 FROM demonstrations x WHERE x.completion_id = c.id)
           AND NOT EXISTS (SELECT 1 FROM completions x WHERE x.parent_completion_id = c.id)
           AND NOT EXISTS (SELECT 1 FROM feedback_events f WHERE f.completion_id = c.id AND f.created <= {})",
        cuts.kept_feedback
    )
}

/// Condition: only completions that are removed refer to the request's prompt `p`.
fn removable_prompt(cuts: &Cuts) -> String {
    format!(
        concat!(
            asked!("p"),
            " AND NOT (p.source = 'chat' AND p.split = 'train' AND p.created <= {kept})
           AND NOT EXISTS (SELECT 1 FROM comparison_sets x WHERE x.prompt_id = p.id)
           AND NOT EXISTS (SELECT 1 FROM demonstrations x WHERE x.prompt_id = p.id)
           AND NOT EXISTS (SELECT 1 FROM completions c WHERE c.prompt_id = p.id AND NOT (c.created < {cut} AND {of}))"
        ),
        kept = cuts.kept_prompts,
        cut = cuts.requests,
        of = removable(cuts)
    )
}

/// A record's place among those of its kind, by time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    pub created: Micros,
    pub id: String,
}

/// A record that retention considers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub position: Position,
    pub bytes: i64,
    /// Whether it is removable.
    pub goes: bool,
}

/// Part of the records of a kind, in the order of time.
#[derive(Clone, Copy, Debug)]
pub enum Stretch<'a> {
    /// The oldest records after a position.
    After(Option<&'a Position>),
    /// The newest records before a position, newest first.
    Before(Option<&'a Position>),
}

/// Sizes of the records `f`, `c` and `p`.
const FEEDBACK_BYTES: &str = "octet_length(CAST(f.value AS TEXT))";
const COMPLETION_BYTES: &str = "octet_length(c.text) + octet_length(c.token_ids) + octet_length(c.logprobs)";
const PROMPT_BYTES: &str = "octet_length(CAST(p.messages AS TEXT))";

/// What retention considers, and what of it is removable. Only the records of a stretch are compared with the tables
/// that refer to them, so a statement takes equally long however large the tables are.
struct Considered {
    table: &'static str,
    /// Alias of the table.
    alias: &'static str,
    /// Condition of the candidates. An index by `created` has it, too.
    candidate: String,
    bytes: &'static str,
    goes: String,
}

impl Considered {
    fn of(what: Expiring, cuts: &Cuts) -> Self {
        let cut = cuts.requests;
        match what {
            Expiring::Feedback => Self {
                table: "feedback_events",
                alias: "f",
                // Feedback on a completion that is removed may be newer than the cuts.
                candidate: format!("(f.created < {} OR {cut} > {})", cuts.feedback, -Micros::MAX),
                bytes: FEEDBACK_BYTES,
                goes: format!(
                    "(f.created < {} AND f.created > {})
                     OR EXISTS (SELECT 1 FROM completions c WHERE c.id = f.completion_id AND c.created < {cut} AND {})",
                    cuts.feedback,
                    cuts.kept_feedback,
                    removable(cuts)
                ),
            },
            Expiring::Completions => Self {
                table: "completions",
                alias: "c",
                candidate: format!("c.served IS NOT NULL AND c.created < {cut}"),
                bytes: COMPLETION_BYTES,
                goes: removable(cuts),
            },
            Expiring::Prompts => Self {
                table: "prompts",
                alias: "p",
                candidate: format!(concat!(asked!("p"), " AND p.created < {}"), cut),
                bytes: PROMPT_BYTES,
                goes: removable_prompt(cuts),
            },
        }
    }

    /// `SELECT id, created, bytes, goes` of a stretch, with a position as `$1` and `$2` and a limit as `$3`.
    fn select(&self, is_forwards: bool) -> String {
        let Self { table, alias, candidate, bytes, goes } = self;
        let (sign, order, end, last) = match is_forwards {
            true => (">", "ASC", -Micros::MAX, "''"),
            false => ("<", "DESC", Micros::MAX, "'~'"),
        };
        format!(
            "SELECT {alias}.id, {alias}.created, CAST({bytes} AS BIGINT) AS bytes,
                    CAST(CASE WHEN {goes} THEN 1 ELSE 0 END AS BIGINT) AS goes
             FROM (SELECT {alias}.* FROM {table} {alias}
                   WHERE {candidate} AND ({alias}.created, {alias}.id) {sign} (COALESCE($1, {end}), COALESCE($2, {last}))
                   ORDER BY {alias}.created {order}, {alias}.id {order} LIMIT $3) {alias}
             ORDER BY {alias}.created {order}, {alias}.id {order}"
        )
    }
}

/// At most `limit` records of a kind in a stretch.
pub(super) async fn candidates(
    conn: &mut Conn,
    what: Expiring,
    cuts: &Cuts,
    stretch: Stretch<'_>,
    limit: i64,
) -> Result<Vec<Candidate>> {
    let (position, is_forwards) = match stretch {
        Stretch::After(position) => (position, true),
        Stretch::Before(position) => (position, false),
    };
    let args = args![position.map(|p| p.created), position.map(|p| p.id.as_str()), limit];
    let rows = conn.all_built(Considered::of(what, cuts).select(is_forwards), args).await?;
    rows.iter()
        .map(|row| {
            let position = Position { created: row.int("created")?, id: row.text("id")? };
            Ok(Candidate { position, bytes: row.int("bytes")?, goes: row.int("goes")? != 0 })
        })
        .collect()
}

/// The removable records among the next `limit` after a position, and the position to continue after; `None` at the end.
pub(super) async fn expiring(
    conn: &mut Conn,
    what: Expiring,
    cuts: &Cuts,
    after: Option<&Position>,
    limit: i64,
) -> Result<(Amount, Option<Position>)> {
    let stretch = Considered::of(what, cuts).select(true);
    added_up(conn, stretch, after, limit).await
}

/// The amount of the rows `id, created, goes, bytes` of a stretch that `goes` selects, and the position to continue after.
async fn added_up(
    conn: &mut Conn,
    stretch: String,
    after: Option<&Position>,
    limit: i64,
) -> Result<(Amount, Option<Position>)> {
    let sql = format!(
        "WITH t AS ({stretch}) SELECT CAST(COALESCE(SUM(goes), 0) AS BIGINT) AS records,
             CAST(COALESCE(SUM(CASE goes WHEN 1 THEN bytes ELSE 0 END), 0) AS BIGINT) AS bytes,
             CAST(COUNT(*) AS BIGINT) AS n, MAX(created) AS created,
             (SELECT MAX(id) FROM t WHERE created = (SELECT MAX(created) FROM t)) AS id
         FROM t"
    );
    let rows = conn.all_built(sql, args![after.map(|p| p.created), after.map(|p| p.id.as_str()), limit]).await?;
    let going = amount(rows.first())?;
    let Some(row) = rows.first().filter(|_| rows.len() == 1) else { return Ok((going, None)) };
    let (created, id) = (row.opt_int("created")?, row.opt_text("id")?);
    let is_full = row.int("n")? >= limit;
    let last = created.zip(id).filter(|_| is_full).map(|(created, id)| Position { created, id });
    Ok((going, last))
}

fn amount(row: Option<&Row>) -> Result<Amount> {
    let row = row.ok_or_else(|| StoreError::Internal("a count returned no row".into()))?;
    Ok(Amount { records: row.int("records")?, bytes: row.int("bytes")? })
}

/// The amount of the next `limit` records of a kind after a position, and the position to continue after; `None` at the
/// end.
pub(super) async fn stored(
    conn: &mut Conn,
    what: Expiring,
    after: Option<&Position>,
    limit: i64,
) -> Result<(Amount, Option<Position>)> {
    let (table, alias, bytes, candidate) = match what {
        Expiring::Feedback => ("feedback_events", "f", FEEDBACK_BYTES, "1 = 1"),
        Expiring::Completions => ("completions", "c", COMPLETION_BYTES, "c.served IS NOT NULL"),
        Expiring::Prompts => ("prompts", "p", PROMPT_BYTES, asked!("p")),
    };
    let stretch = format!(
        "SELECT {alias}.id, {alias}.created, 1 AS goes, CAST({bytes} AS BIGINT) AS bytes FROM {table} {alias}
         WHERE {candidate} AND ({alias}.created, {alias}.id) > (COALESCE($1, {first}), COALESCE($2, ''))
         ORDER BY {alias}.created, {alias}.id LIMIT $3",
        first = -Micros::MAX
    );
    added_up(conn, stretch, after, limit).await
}

/// Removes what is removable among the next `limit` records after a position, feedback on a completion before the
/// completion. Returns the position to continue after; `None` at the end.
pub(super) async fn expire(
    conn: &mut Conn,
    what: Expiring,
    cuts: &Cuts,
    after: Option<&Position>,
    limit: i64,
) -> Result<(Amount, Option<Position>)> {
    let table = Considered::of(what, cuts).table;
    let found = candidates(conn, what, cuts, Stretch::After(after), limit).await?;
    let going: Vec<&Candidate> = found.iter().filter(|candidate| candidate.goes).collect();
    let mut removed = Amount::default();
    for chunk in going.chunks(500) {
        for candidate in chunk {
            removed += Amount { records: 1, bytes: candidate.bytes };
        }
        let list = placeholders(1, chunk.len());
        let named = || chunk.iter().map(|candidate| Arg::from(&candidate.position.id)).collect::<Vec<_>>();
        if what == Expiring::Completions {
            let sql = format!("DELETE FROM feedback_events WHERE completion_id IN ({list}) RETURNING id");
            conn.all_built(sql, named()).await?;
        }
        conn.all_built(format!("DELETE FROM {table} WHERE id IN ({list}) RETURNING id"), named()).await?;
    }
    let is_full = found.len() as i64 >= limit;
    Ok((removed, found.into_iter().last().filter(|_| is_full).map(|candidate| candidate.position)))
}

pub(super) async fn put_answers(
    conn: &mut Conn,
    prompt: &Prompt,
    completions: Vec<Completion>,
    served: Option<&str>,
) -> Result<()> {
    let stored = prompts::put(conn, prompt).await?;
    for mut completion in completions {
        completion.prompt_id = stored.id.clone();
        prompts::put_completion(conn, &completion, served).await?;
    }
    Ok(())
}

/// Records who submitted a stored prompt.
pub(super) async fn submitted_by(conn: &mut Conn, id: &PromptId, by: &LabelerId, now: Micros) -> Result<()> {
    conn.run(
        "INSERT INTO prompt_submissions (prompt_id, labeler_id, created) VALUES ($1, $2, $3)
         ON CONFLICT (prompt_id, labeler_id) DO NOTHING",
        args![id.as_str(), by.as_str(), now],
    )
    .await?;
    Ok(())
}

pub(super) async fn submit_prompt(conn: &mut Conn, prompt: &Prompt, by: &LabelerId) -> Result<Prompt> {
    let stored = prompts::put(conn, prompt).await?;
    submitted_by(conn, &stored.id, by, prompt.created).await?;
    Ok(stored)
}

pub(super) async fn prompt_is_of(conn: &mut Conn, id: &PromptId, labeler: &LabelerId) -> Result<bool> {
    let submitted = conn
        .count(
            "SELECT COUNT(*) AS n FROM prompt_submissions WHERE prompt_id = $1 AND labeler_id = $2",
            args![id.as_str(), labeler.as_str()],
        )
        .await?;
    Ok(submitted > 0 || sets::prompt_is_seen_by(conn, id, labeler).await?)
}

pub(super) async fn request_counts(conn: &mut Conn) -> Result<RequestCounts> {
    Ok(RequestCounts {
        prompts: conn.count(concat!("SELECT COUNT(*) AS n FROM prompts p WHERE ", asked!("p")), vec![]).await?,
        completions: conn.count("SELECT COUNT(*) AS n FROM completions WHERE served IS NOT NULL", vec![]).await?,
        feedback_events: conn
            .count(
                "SELECT COUNT(*) AS n FROM feedback_events f
                 WHERE EXISTS (SELECT 1 FROM completions c WHERE c.id = f.completion_id AND c.served IS NOT NULL)",
                vec![],
            )
            .await?,
    })
}

pub(super) async fn request_prompts(conn: &mut Conn, ids: &[PromptId]) -> Result<HashSet<PromptId>> {
    let mut found = HashSet::new();
    for chunk in ids.chunks(500) {
        let list = placeholders(1, chunk.len());
        let sql = format!(concat!("SELECT p.id FROM prompts p WHERE p.id IN ({}) AND ", asked!("p")), list);
        for row in conn.all_built(sql, chunk.iter().map(|id| Arg::from(id.as_str())).collect()).await? {
            found.insert(row.text("id")?.into());
        }
    }
    Ok(found)
}

pub(super) async fn served_completions(conn: &mut Conn, id: &PromptId) -> Result<HashSet<CompletionId>> {
    let sql = "SELECT id FROM completions WHERE prompt_id = $1 AND served IS NOT NULL";
    conn.all(sql, args![id.as_str()]).await?.iter().map(|row| Ok(row.text("id")?.into())).collect()
}

pub(super) async fn erased_people(conn: &mut Conn) -> Result<Vec<ErasedPerson>> {
    conn.all("SELECT * FROM erasures ORDER BY created, labeler_id", vec![])
        .await?
        .iter()
        .map(|row| {
            Ok(ErasedPerson {
                labeler_id: row.text("labeler_id")?.into(),
                judgments: if row.text("judgments")? == "remove" { Erase::Remove } else { Erase::Anonymise },
                created: row.int("created")?,
            })
        })
        .collect()
}

pub(super) async fn put_backup(conn: &mut Conn, path: &str, now: Micros) -> Result<()> {
    conn.run(
        "INSERT INTO backups (path, created) VALUES ($1, $2) ON CONFLICT (path) DO UPDATE SET created = excluded.created",
        args![path, now],
    )
    .await?;
    Ok(())
}

pub(super) async fn backups(conn: &mut Conn) -> Result<Vec<(String, Micros)>> {
    conn.all("SELECT path, created FROM backups ORDER BY created, path", vec![])
        .await?
        .iter()
        .map(|row| Ok((row.text("path")?, row.int("created")?)))
        .collect()
}

pub(super) async fn forget_backup(conn: &mut Conn, path: &str) -> Result<()> {
    conn.run("DELETE FROM backups WHERE path = $1", args![path]).await?;
    Ok(())
}

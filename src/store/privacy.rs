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

/// `SELECT id, created, bytes` of all removable records of a kind.
pub(super) fn going(what: Expiring, cuts: &Cuts) -> String {
    let cut = cuts.requests;
    match what {
        Expiring::Feedback => format!(
            "SELECT f.id, f.created, octet_length(CAST(f.value AS TEXT)) AS bytes FROM feedback_events f
             WHERE (f.created < {} AND f.created > {})
                OR EXISTS (SELECT 1 FROM completions c WHERE c.id = f.completion_id AND c.created < {cut} AND {})",
            cuts.feedback,
            cuts.kept_feedback,
            removable(cuts)
        ),
        Expiring::Completions => format!(
            "SELECT c.id, c.created, octet_length(c.text) + octet_length(c.token_ids) + octet_length(c.logprobs) AS bytes
             FROM completions c WHERE c.created < {cut} AND {}",
            removable(cuts)
        ),
        Expiring::Prompts => format!(
            "SELECT p.id, p.created, octet_length(CAST(p.messages AS TEXT)) AS bytes FROM prompts p
             WHERE p.created < {cut} AND {}",
            removable_prompt(cuts)
        ),
    }
}

fn amount(row: Option<&Row>) -> Result<Amount> {
    let row = row.ok_or_else(|| StoreError::Internal("a count returned no row".into()))?;
    Ok(Amount { records: row.int("records")?, bytes: row.int("bytes")? })
}

const SUMS: &str = "CAST(COUNT(*) AS BIGINT) AS records, CAST(COALESCE(SUM(bytes), 0) AS BIGINT) AS bytes";

pub(super) async fn sum(conn: &mut Conn, rows: String) -> Result<Amount> {
    amount(conn.all_built(format!("SELECT {SUMS} FROM ({rows}) AS t"), vec![]).await?.first())
}

pub(super) async fn stored(conn: &mut Conn, what: Expiring) -> Result<Amount> {
    let rows = match what {
        Expiring::Feedback => "SELECT octet_length(CAST(f.value AS TEXT)) AS bytes FROM feedback_events f",
        Expiring::Completions => {
            "SELECT octet_length(c.text) + octet_length(c.token_ids) + octet_length(c.logprobs) AS bytes
             FROM completions c WHERE c.served IS NOT NULL"
        }
        Expiring::Prompts => {
            concat!("SELECT octet_length(CAST(p.messages AS TEXT)) AS bytes FROM prompts p WHERE ", asked!("p"))
        }
    };
    sum(conn, rows.to_owned()).await
}

pub(super) async fn size_cut(conn: &mut Conn, what: Expiring, cuts: &Cuts, most_bytes: i64) -> Result<Option<Micros>> {
    let rows = match what {
        Expiring::Feedback => going(what, &Cuts { feedback: Micros::MAX, requests: Micros::MIN, ..*cuts }),
        _ => {
            let all = Cuts { requests: Micros::MAX, ..*cuts };
            format!("{} UNION ALL {}", going(Expiring::Completions, &all), going(Expiring::Prompts, &all))
        }
    };
    // The newest record with which the sum, from the newest on, exceeds the limit.
    let sql = format!(
        "SELECT CAST(MAX(created) AS BIGINT) AS newest
         FROM (SELECT created, SUM(bytes) OVER (ORDER BY created DESC, id DESC ROWS UNBOUNDED PRECEDING) AS total
               FROM ({rows}) AS t) AS summed WHERE total > $1"
    );
    let found = conn.all_built(sql, args![most_bytes]).await?;
    let newest = found.first().map(|row| row.opt_int("newest")).transpose()?.flatten();
    Ok(newest.map(|created| created + 1))
}

/// Removes a batch, feedback on a completion before the completion.
pub(super) async fn expire(conn: &mut Conn, what: Expiring, cuts: &Cuts, limit: i64) -> Result<Amount> {
    let table = match what {
        Expiring::Feedback => "feedback_events",
        Expiring::Completions => "completions",
        Expiring::Prompts => "prompts",
    };
    let sql = format!(
        "SELECT id, CAST(bytes AS BIGINT) AS bytes FROM ({}) AS t ORDER BY created, id LIMIT $1",
        going(what, cuts)
    );
    let mut removed = Amount::default();
    for chunk in conn.all_built(sql, args![limit]).await?.chunks(500) {
        let ids = chunk.iter().map(|row| row.text("id")).collect::<Result<Vec<_>>>()?;
        for row in chunk {
            removed += Amount { records: 1, bytes: row.int("bytes")? };
        }
        let list = placeholders(1, ids.len());
        let named = || ids.iter().map(Arg::from).collect::<Vec<_>>();
        if what == Expiring::Completions {
            let sql = format!("DELETE FROM feedback_events WHERE completion_id IN ({list}) RETURNING id");
            conn.all_built(sql, named()).await?;
        }
        conn.all_built(format!("DELETE FROM {table} WHERE id IN ({list}) RETURNING id"), named()).await?;
    }
    Ok(removed)
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

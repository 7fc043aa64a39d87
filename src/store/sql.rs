//! The store over either database, and how its views reach it: reads borrow a connection, writes run in their own task
//! and return after the commit. The statements are in the other files of this module.

use super::connect::Db;
use super::groups::{Groups, Write};
use super::rows::Conn;
use super::*;

/// The store, on SQLite or PostgreSQL. Its methods are in views, by domain:
/// `store.sets().get(&id)`.
pub struct Store {
    pub(super) db: Db,
    pub(super) groups: Groups,
    pub(super) open_counts: turns::OpenCounts,
}

impl Store {
    pub(super) async fn open(url: &str) -> Result<Self> {
        Ok(Self { db: Db::open(url).await?, groups: Groups::default(), open_counts: turns::OpenCounts::default() })
    }

    /// Runs a write in a transaction that is shared with other labelers' writes and holds the lock of places.
    pub(super) async fn place<W: Write>(&self, write: W) -> Result<W::Done> {
        self.groups.write(&self.db, write).await
    }
}

macro_rules! read {
    ($store:expr, |$c:ident| $body:expr) => {{
        let mut conn = $store.db.read().await?;
        let $c = &mut conn;
        let done = $store.db.in_time($body).await;
        if done.is_ok() {
            conn.keep();
        }
        done
    }};
}

/// The arguments named before `=>` are made owned first, because the write outlives its caller.
macro_rules! write {
    ($store:expr, |$tx:ident| $body:expr) => {
        $store.db.write(move |$tx| Box::pin(async move { $body.await })).await
    };
    ($store:expr, $($owned:ident = $value:expr),+ => |$tx:ident| $body:expr) => {{
        $(let $owned = $value;)+
        write!($store, |$tx| $body)
    }};
}

async fn counts(conn: &mut Conn) -> Result<Counts> {
    let mut counts = Counts::default();
    for (field, sql) in [
        (&mut counts.prompts, "SELECT COUNT(*) AS n FROM prompts"),
        (&mut counts.completions, "SELECT COUNT(*) AS n FROM completions"),
        (&mut counts.sets_done, "SELECT COUNT(*) AS n FROM comparison_sets WHERE status = 'done'"),
        (&mut counts.judgments, "SELECT COUNT(*) AS n FROM judgments WHERE supersedes_id IS NULL"),
        (&mut counts.demonstrations, "SELECT COUNT(*) AS n FROM demonstrations"),
        (
            &mut counts.labelers,
            "SELECT COUNT(*) AS n FROM labelers
             WHERE kind = 'human' AND id NOT IN ('admin', 'import') AND id NOT LIKE 'import-%'",
        ),
        (&mut counts.jobs_queued, "SELECT COUNT(*) AS n FROM jobs WHERE state = 'queued'"),
        (&mut counts.jobs_running, "SELECT COUNT(*) AS n FROM jobs WHERE state = 'running'"),
        (&mut counts.feedback_events, "SELECT COUNT(*) AS n FROM feedback_events"),
    ] {
        *field = conn.count(sql, vec![]).await?;
    }
    let now = conn.now().await?;
    let queue = leases::queue(conn, now, None).await?;
    (counts.sets_open, counts.sets_stuck, counts.leases) = (queue.sets_open, queue.sets_stuck, queue.leases);
    Ok(counts)
}

pub(super) use {read, write};

impl Store {
    /// `sqlite` or `postgres`.
    pub fn backend(&self) -> &'static str {
        self.db.backend()
    }

    /// An inexpensive query for `/ready`.
    pub async fn ping(&self) -> Result<()> {
        // A row of each table that requests need, by a column without an index, so that a damaged file is detected.
        let sql = "SELECT (SELECT COUNT(messages) FROM (SELECT messages FROM prompts LIMIT 1) a)
                 + (SELECT COUNT(text) FROM (SELECT text FROM completions LIMIT 1) b)
                 + (SELECT COUNT(selection_policy) FROM (SELECT selection_policy FROM comparison_sets LIMIT 1) c)
                 + (SELECT COUNT(wall_ms) FROM (SELECT wall_ms FROM judgments LIMIT 1) d)
                 + (SELECT COUNT(name) FROM (SELECT name FROM api_keys LIMIT 1) e)
                 + (SELECT COUNT(role) FROM (SELECT role FROM sessions LIMIT 1) f) AS n";
        let damaged = |error| match error {
            StoreError::Internal(error) => StoreError::Unavailable(format!("the database cannot be read: {error}")),
            other => other,
        };
        read!(self, |c| c.count(sql, vec![])).map_err(damaged)?;
        self.db.takes_writes().await
    }

    /// The database's own clock, µs UTC.
    pub async fn now(&self) -> Result<Micros> {
        read!(self, |c| c.now())
    }

    /// Numbers of records.
    pub async fn counts(&self) -> Result<Counts> {
        read!(self, |c| counts(c))
    }

    /// Closes the connections; later calls fail with `Unavailable`.
    pub async fn close(&self) {
        self.db.close().await
    }

    /// Statements sent to the database since the store was opened. What begins and ends transactions, locks included,
    /// is not counted; a script that goes to the database in one call counts once.
    pub fn statements(&self) -> u64 {
        self.db.statements()
    }
}

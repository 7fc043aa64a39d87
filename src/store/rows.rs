//! One connection over two databases: arguments in, rows out, and every database error mapped once.
//! Both accept `$1` placeholders, so a query is written once unless the dialects differ.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::TryStreamExt;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, Postgres, Row as _, SqlSafeStr, SqlStr, Sqlite, Transaction};

use super::postgres::{PooledReader, Reader};
use super::{Result, StoreError};
use crate::domain::Micros;

/// Most bytes of texts on one page of a list. A page ends early after the row that exceeds it; the next one continues
/// after its id.
pub(super) const PAGE_BYTES: usize = 4 << 20;

/// A boxed future of a write that borrows its connection.
pub(super) type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A value bound to a placeholder.
pub(super) enum Arg {
    Text(Option<String>),
    Int(Option<i64>),
    Real(Option<f64>),
    Flag(bool),
    Bytes(Vec<u8>),
    Json(Option<Value>),
}

macro_rules! arg_from {
    ($($from:ty => |$v:ident| $arg:expr),* $(,)?) => {$(
        impl From<$from> for Arg {
            fn from($v: $from) -> Self { $arg }
        }
    )*};
}

arg_from!(
    &str => |v| Self::Text(Some(v.to_owned())),
    &String => |v| Self::Text(Some(v.clone())),
    Option<&str> => |v| Self::Text(v.map(str::to_owned)),
    &Option<String> => |v| Self::Text(v.clone()),
    i64 => |v| Self::Int(Some(v)),
    Option<i64> => |v| Self::Int(v),
    f64 => |v| Self::Real(Some(v)),
    Option<f64> => |v| Self::Real(v),
    bool => |v| Self::Flag(v),
    Vec<u8> => |v| Self::Bytes(v),
    Value => |v| Self::Json(Some(v)),
    &Value => |v| Self::Json(Some(v.clone())),
    Option<Value> => |v| Self::Json(v),
);

/// Anything serde can write, as a JSON argument.
pub(super) fn json<T: serde::Serialize>(value: &T) -> Result<Value> {
    serde_json::to_value(value).map_err(|e| StoreError::Internal(e.to_string()))
}

/// `args![a, b]` = a vector of `Arg`s.
macro_rules! args {
    ($($value:expr),* $(,)?) => { vec![$($crate::store::rows::Arg::from($value)),*] };
}
pub(super) use args;

/// `$first, $first+1, …`: `count` placeholders for an IN list.
pub(super) fn placeholders(first: usize, count: usize) -> String {
    (first..first + count).map(|i| format!("${i}")).collect::<Vec<_>>().join(", ")
}

/// A pooled connection, inside a write transaction or not.
pub(super) enum Held {
    SqliteRead(PoolConnection<Sqlite>),
    SqliteWrite(Transaction<'static, Sqlite>),
    PostgresRead(Reader),
    PostgresPooledRead(PooledReader),
    PostgresWrite(Transaction<'static, Postgres>),
}

/// A connection with a record of the statements sent over it.
pub(super) struct Conn {
    held: Held,
    /// Whether the server keeps prepared statements for this connection.
    keeps_statements: bool,
    /// Number of statements sent by all connections of the store, without those that begin and end transactions or take
    /// locks.
    sent: Arc<AtomicU64>,
    /// Whether a statement that may write was sent since [`Conn::mark`].
    wrote: bool,
    /// Whether the database refused a statement since [`Conn::mark`].
    refused: bool,
}

enum Link<'c> {
    Sqlite(&'c mut SqliteConnection),
    Postgres(&'c mut PgConnection),
}

/// Binds every argument in order; the two `Query` types share no bound we could be generic over.
macro_rules! bind_all {
    ($query:expr, $args:expr, $json:expr, $text:expr) => {{
        let mut query = $query;
        for arg in $args {
            query = match arg {
                Arg::Text(v) => query.bind(v.map($text)),
                Arg::Int(v) => query.bind(v),
                Arg::Real(v) => query.bind(v),
                Arg::Flag(v) => query.bind(v),
                Arg::Bytes(v) => query.bind(v),
                Arg::Json(v) => query.bind(v.map($json)),
            };
        }
        query
    }};
}

macro_rules! sqlite_query {
    ($sql:expr, $args:expr) => {
        bind_all!(sqlx::query::<Sqlite>($sql), $args, |v: Value| v.to_string(), |v: String| v)
    };
}

macro_rules! postgres_query {
    ($sql:expr, $args:expr, $keeps:expr) => {
        bind_all!(
            sqlx::query::<Postgres>($sql).persistent($keeps),
            $args,
            |v: Value| sqlx::types::Json(without_nul_in(v)),
            without_nul
        )
    };
}

/// Postgres text cannot hold U+0000; SQLite's can. A model may write one, so it becomes U+FFFD.
pub(super) fn without_nul(text: String) -> String {
    if text.contains('\0') { text.replace('\0', "\u{FFFD}") } else { text }
}

pub(super) fn without_nul_in(value: Value) -> Value {
    match value {
        Value::String(s) => Value::String(without_nul(s)),
        Value::Array(a) => Value::Array(a.into_iter().map(without_nul_in).collect()),
        Value::Object(o) => Value::Object(o.into_iter().map(|(k, v)| (without_nul(k), without_nul_in(v))).collect()),
        other => other,
    }
}

impl Conn {
    pub(super) fn new(held: Held, keeps_statements: bool, sent: Arc<AtomicU64>) -> Self {
        Self { held, keeps_statements, sent, wrote: false, refused: false }
    }

    fn link(&mut self) -> Link<'_> {
        match &mut self.held {
            Held::SqliteRead(c) => Link::Sqlite(c),
            Held::SqliteWrite(c) => Link::Sqlite(c),
            Held::PostgresRead(c) => Link::Postgres(c),
            Held::PostgresPooledRead(c) => Link::Postgres(&mut c.transaction),
            Held::PostgresWrite(c) => Link::Postgres(c),
        }
    }

    pub(super) fn is_postgres(&self) -> bool {
        matches!(self.held, Held::PostgresRead(_) | Held::PostgresPooledRead(_) | Held::PostgresWrite(_))
    }

    /// Resets the record that [`Conn::may_be_dirty`] reads.
    pub(super) fn mark(&mut self) {
        (self.wrote, self.refused) = (false, false);
    }

    /// Whether a failure since [`Conn::mark`] can have left changes in the transaction.
    pub(super) fn may_be_dirty(&self) -> bool {
        self.wrote || self.refused
    }

    fn note(&mut self, sql: &str) {
        self.sent.fetch_add(1, Ordering::Relaxed);
        self.wrote |= !sql.trim_start().starts_with("SELECT");
    }

    /// Runs a statement; returns how many rows it touched.
    pub(super) async fn run(&mut self, sql: &'static str, args: Vec<Arg>) -> Result<u64> {
        self.note(sql);
        let keeps = self.keeps_statements;
        let done = match self.link() {
            Link::Sqlite(c) => sqlite_query!(sql, args).execute(c).await.map(|done| done.rows_affected()),
            Link::Postgres(c) => postgres_query!(sql, args, keeps).execute(c).await.map(|done| done.rows_affected()),
        };
        self.refused |= done.is_err();
        Ok(done?)
    }

    pub(super) async fn all(&mut self, sql: &'static str, args: Vec<Arg>) -> Result<Vec<Row>> {
        self.all_of(sql.into_sql_str(), args).await
    }

    /// Like [`Conn::all`] for SQL put together from constant pieces; values still go through `args`.
    pub(super) async fn all_built(&mut self, sql: String, args: Vec<Arg>) -> Result<Vec<Row>> {
        self.all_of(AssertSqlSafe(sql).into_sql_str(), args).await
    }

    async fn all_of(&mut self, sql: SqlStr, args: Vec<Arg>) -> Result<Vec<Row>> {
        self.note(sql.as_str());
        let keeps = self.keeps_statements;
        let rows: sqlx::Result<Vec<Row>> = match self.link() {
            Link::Sqlite(c) => {
                sqlite_query!(sql, args).fetch_all(c).await.map(|rows| rows.into_iter().map(Row::Sqlite).collect())
            }
            Link::Postgres(c) => postgres_query!(sql, args, keeps)
                .fetch_all(c)
                .await
                .map(|rows| rows.into_iter().map(Row::Postgres).collect()),
        };
        self.refused |= rows.is_err();
        Ok(rows?)
    }

    /// Passes rows to `take` one by one until it has enough, so that a page of large rows is not in memory completely.
    pub(super) async fn each(
        &mut self,
        sql: &'static str,
        args: Vec<Arg>,
        mut take: impl FnMut(&Row) -> Result<bool> + Send,
    ) -> Result<()> {
        let sql = sql.into_sql_str();
        let keeps = self.keeps_statements;
        match self.link() {
            Link::Sqlite(c) => {
                let mut rows = sqlite_query!(sql, args).fetch(c);
                while let Some(row) = rows.try_next().await? {
                    if !take(&Row::Sqlite(row))? {
                        break;
                    }
                }
            }
            Link::Postgres(c) => {
                let mut rows = postgres_query!(sql, args, keeps).fetch(c);
                while let Some(row) = rows.try_next().await? {
                    if !take(&Row::Postgres(row))? {
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// The first row, if any.
    pub(super) async fn one(&mut self, sql: &'static str, args: Vec<Arg>) -> Result<Option<Row>> {
        Ok(self.all(sql, args).await?.into_iter().next())
    }

    /// The integer `n` of a query that always gives one row, such as `SELECT COUNT(*) AS n`.
    pub(super) async fn count(&mut self, sql: &'static str, args: Vec<Arg>) -> Result<i64> {
        match self.one(sql, args).await? {
            Some(row) => row.int("n"),
            None => Err(StoreError::Internal("a count returned no row".into())),
        }
    }

    /// The database's clock, µs UTC (SQLite: to the millisecond).
    pub(super) async fn now(&mut self) -> Result<Micros> {
        let sql = if self.is_postgres() {
            "SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT) AS n"
        } else {
            "SELECT CAST(round(unixepoch('subsec') * 1000) AS INTEGER) * 1000 AS n"
        };
        self.count(sql, vec![]).await
    }

    /// Ends the use of a connection on which every statement has succeeded: the next read needs no test of it.
    pub(super) fn keep(self) {
        if let Held::PostgresRead(reader) = self.held {
            reader.keep();
        }
    }

    /// Takes a lock until the transaction ends. SQLite has only one writer; Postgres takes an advisory lock, because
    /// row locks do not cover counts over other rows (the taken places of a set).
    pub(super) async fn serialize(&mut self, lock: i64) -> Result<()> {
        let keeps = self.keeps_statements;
        if let Link::Postgres(c) = self.link() {
            let locked = postgres_query!("SELECT pg_advisory_xact_lock($1)", args![lock], keeps).execute(c).await;
            self.refused |= locked.is_err();
            locked?;
        }
        Ok(())
    }

    pub(super) async fn commit(self) -> Result<()> {
        match self.held {
            Held::SqliteWrite(tx) => tx.commit().await?,
            Held::PostgresWrite(tx) => tx.commit().await?,
            Held::SqliteRead(_) | Held::PostgresRead(_) | Held::PostgresPooledRead(_) => {}
        }
        Ok(())
    }

    pub(super) async fn rollback(self) -> Result<()> {
        match self.held {
            Held::SqliteWrite(tx) => tx.rollback().await?,
            Held::PostgresWrite(tx) => tx.rollback().await?,
            Held::SqliteRead(_) | Held::PostgresRead(_) | Held::PostgresPooledRead(_) => {}
        }
        Ok(())
    }
}

/// One row of either database; columns are read by name.
pub(super) enum Row {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

macro_rules! getters {
    ($($name:ident -> $type:ty),* $(,)?) => {$(
        pub(super) fn $name(&self, column: &str) -> Result<$type> {
            Ok(match self {
                Self::Sqlite(row) => row.try_get(column)?,
                Self::Postgres(row) => row.try_get(column)?,
            })
        }
    )*};
}

impl Row {
    getters!(
        text -> String, opt_text -> Option<String>, int -> i64, opt_int -> Option<i64>,
        opt_real -> Option<f64>, real -> f64, flag -> bool, bytes -> Vec<u8>,
    );

    pub(super) fn opt_json<T: DeserializeOwned>(&self, column: &str) -> Result<Option<T>> {
        let bad = |e: serde_json::Error| StoreError::Internal(format!("column {column}: {e}"));
        match self {
            Self::Sqlite(row) => {
                let text: Option<String> = row.try_get(column)?;
                text.map(|t| serde_json::from_str(&t).map_err(bad)).transpose()
            }
            Self::Postgres(row) => {
                let value: Option<sqlx::types::Json<Value>> = row.try_get(column)?;
                value.map(|v| serde_json::from_value(v.0).map_err(bad)).transpose()
            }
        }
    }

    pub(super) fn json<T: DeserializeOwned>(&self, column: &str) -> Result<T> {
        self.opt_json(column)?.ok_or_else(|| StoreError::Internal(format!("column {column} is null")))
    }

    /// A column that holds one of a closed set of names.
    pub(super) fn name<E>(&self, column: &str, parse: fn(&str) -> Option<E>) -> Result<E> {
        let text = self.text(column)?;
        parse(&text).ok_or_else(|| StoreError::Internal(format!("column {column} holds the unknown name {text:?}")))
    }

    pub(super) fn opt_name<E>(&self, column: &str, parse: fn(&str) -> Option<E>) -> Result<Option<E>> {
        self.opt_text(column)?.map(|_| self.name(column, parse)).transpose()
    }
}

pub(super) fn not_found(what: &'static str, id: &str) -> StoreError {
    StoreError::NotFound { what, id: id.to_owned() }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::PoolTimedOut => Self::Unavailable("all database connections are in use".into()),
            sqlx::Error::PoolClosed => Self::Unavailable("the store is closed".into()),
            sqlx::Error::Io(_) | sqlx::Error::Tls(_) => Self::Unavailable(error.to_string()),
            sqlx::Error::Database(db) => {
                // SQLite's extended codes carry the primary code in the low byte: 5 busy, 6 locked, 10 the
                // disk failed, 13 the disk is full, 14 the file cannot be opened.
                let code = db.code().unwrap_or_default();
                let sqlite = code.parse::<i64>().ok().filter(|c| *c < 10_000).map(|c| c & 0xff);
                let sqlite_busy = matches!(sqlite, Some(5 | 6 | 10 | 14));
                let full = sqlite == Some(13) || code == "53100";
                let postgres_busy =
                    ["08", "40", "53", "57"].iter().any(|c| code.starts_with(c)) && code.len() == 5 || code == "55P03";
                if db.is_unique_violation() {
                    Self::Conflict(format!("exists already: {}", db.message()))
                } else if db.is_foreign_key_violation() {
                    Self::Conflict("the record refers to another one that does not exist".into())
                } else if db.is_check_violation() {
                    Self::Conflict(format!("a value is not allowed: {}", db.message()))
                } else if full {
                    Self::Full(db.message().to_owned())
                } else if sqlite_busy || postgres_busy {
                    Self::Unavailable(error.to_string())
                } else {
                    Self::Internal(error.to_string())
                }
            }
            _ => Self::Internal(error.to_string()),
        }
    }
}

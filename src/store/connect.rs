//! Opens a database by URL, applies missing migrations, and provides read connections and write transactions.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::PgConnectOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, SqlitePool};
use tokio::sync::{Mutex, watch};

use super::postgres::{Address, PostgresDb, forget_statements};
use super::rows::{BoxFuture, Conn, Held};
use super::{Result, StoreError, migrations};

/// Older versions can corrupt a WAL database when a checkpoint resets the log.
const SQLITE_OLDEST: (u32, u32, u32) = (3, 51, 3);
const SQLITE_READERS: u32 = 4;
/// Bytes to which SQLite's log is cut when it begins anew. Without a limit it stays as large as the largest transaction, or
/// the longest read, has made it.
const SQLITE_LOG: &str = "67108864";
/// Interval of checks whether another process has activated a model, where none is told.
const POLL: Duration = Duration::from_millis(500);
/// Longer than the server's statement timeout, which gives a better error for a slow statement.
const POSTGRES_ANSWER: Duration = Duration::from_secs(45);
/// Longest wait for SQLite's one writer, which a long import may hold.
const SQLITE_ACQUIRE: Duration = Duration::from_secs(15);

/// How long a write may wait for the write lock before the database counts as locked.
const WRITE_PROBE: Duration = Duration::from_secs(1);
/// The result of a probe is reused for this long, because a probe takes the write lock for a moment.
const PROBE_EVERY: Duration = Duration::from_secs(1);

/// Checks whether a SQLite database accepts writes, on a connection of its own.
pub(super) struct WriteProbe {
    path: PathBuf,
    found: Mutex<Option<(Instant, Result<(), String>)>>,
}

impl WriteProbe {
    async fn look(&self) -> Result<()> {
        // Concurrent callers wait for this result.
        let mut found = self.found.lock().await;
        let known = match &*found {
            Some((when, known)) if when.elapsed() < PROBE_EVERY => known.clone(),
            _ => {
                let new = self.begin().await.map_err(|e| format!("the database accepts no writes: {e}"));
                found.insert((Instant::now(), new)).1.clone()
            }
        };
        known.map_err(StoreError::Unavailable)
    }

    async fn begin(&self) -> Result<(), sqlx::Error> {
        let options = sqlite_options(&self.path).create_if_missing(false).busy_timeout(WRITE_PROBE);
        let mut conn = options.connect().await?;
        let tried = sqlx::raw_sql("BEGIN IMMEDIATE; ROLLBACK").execute(&mut conn).await;
        conn.close().await?;
        tried.map(|_| ())
    }
}

/// Pools of one database.
#[derive(Clone)]
pub(super) enum Db {
    /// In WAL mode readers do not wait for the single writer.
    Sqlite {
        readers: SqlitePool,
        writer: SqlitePool,
        probe: Arc<WriteProbe>,
        /// Statements sent so far.
        sent: Arc<AtomicU64>,
    },
    Postgres(Arc<PostgresDb>),
}

pub(super) enum Target {
    Sqlite(PathBuf),
    Postgres,
}

pub(super) fn target(url: &str) -> Result<Target> {
    if url.starts_with("postgres://") || url.starts_with("postgresql://") {
        return Ok(Target::Postgres);
    }
    let Some(rest) = url.strip_prefix("sqlite://").or_else(|| url.strip_prefix("sqlite:")) else {
        return Err(StoreError::Internal(format!(
            "the database URL must begin with sqlite: or postgres: (got {:?})",
            url.split(':').next().unwrap_or_default()
        )));
    };
    let path = rest.split('?').next().unwrap_or(rest);
    if path.is_empty() || path.contains(":memory:") {
        return Err(StoreError::Internal("an in-memory SQLite database is not supported; name a file".into()));
    }
    Ok(Target::Sqlite(PathBuf::from(path)))
}

pub(super) fn sqlite_options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(Duration::from_secs(5))
        .foreign_keys(true)
        .pragma("journal_size_limit", SQLITE_LOG)
}

async fn sqlite_writer(path: &Path) -> Result<SqlitePool> {
    // Deleted data is overwritten, so that an erased text does not remain in a free page.
    let options = sqlite_options(path).pragma("secure_delete", "ON");
    let writer = SqlitePoolOptions::new()
        .max_connections(1)
        .acquire_timeout(SQLITE_ACQUIRE)
        .idle_timeout(None)
        .max_lifetime(None)
        // On a full disk SQLite ends the transaction; the driver still counts it as open and would refuse every later
        // one on this connection.
        .before_acquire(|conn, _| Box::pin(async move { Ok(!conn.is_in_transaction()) }))
        .connect_with(options)
        .await?;
    let version: String = sqlx::query_scalar("SELECT sqlite_version()").fetch_one(&writer).await?;
    let mut numbers = version.split('.').map(|n| n.parse::<u32>().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    let found = (next(), next(), next());
    if found < SQLITE_OLDEST {
        return Err(StoreError::Internal(format!("SQLite {version} is too old: 3.51.3 or newer is needed")));
    }
    Ok(writer)
}

pub(super) fn migrate_error(error: MigrateError) -> StoreError {
    match error {
        MigrateError::VersionMissing(v) => StoreError::Internal(format!(
            "the database has schema version {v}, which this program does not know: it was written by a newer instructd"
        )),
        MigrateError::Execute(e) => e.into(),
        other => StoreError::Internal(format!("migration failed: {other}")),
    }
}

/// Lock held while a SQLite database is opened: the migrator takes none, and switching to the write-ahead log fails at
/// once, without the busy timeout, when two processes do it concurrently.
async fn opening_lock(path: &Path) -> Result<std::fs::File> {
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        tokio::fs::create_dir_all(parent)
            .await
            .map_err(|e| StoreError::Unavailable(format!("cannot create {}: {e}", parent.display())))?;
    }
    let mut name = path.as_os_str().to_owned();
    name.push(".migrate-lock");
    tokio::task::spawn_blocking(move || -> std::io::Result<std::fs::File> {
        let file = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(PathBuf::from(name))?;
        fs4::FileExt::lock(&file)?;
        Ok(file)
    })
    .await
    .map_err(|e| StoreError::Internal(e.to_string()))?
    .map_err(|e| StoreError::Unavailable(format!("cannot take the migration lock: {e}")))
}

/// Migrations run on a connection of their own, without the timeouts: building an index may take long, and
/// a second process waits for the first one's lock.
async fn migrate_postgres(options: &PgConnectOptions) -> Result<()> {
    let mut conn = options.connect().await?;
    let done = migrations::POSTGRES.run(&mut conn).await.map_err(migrate_error);
    // Closing also releases the migrator's lock, which is kept when a migration fails.
    conn.close().await?;
    done
}

/// The same in one transaction, which stays on one connection of the server. Another program may migrate through another
/// connection of the pooler, so the lock ends with the transaction, too.
async fn migrate_through_pooler(options: &PgConnectOptions) -> Result<()> {
    let mut conn = options.connect().await?;
    let mut transaction = conn.begin().await?;
    let lock = format!("SELECT pg_advisory_xact_lock({})", super::locks::MIGRATIONS);
    sqlx::raw_sql(AssertSqlSafe(lock)).execute(&mut *transaction).await?;
    forget_statements(&mut transaction).await?;
    let mut migrator = Migrator::with_migrations(migrations::POSTGRES.iter().cloned().collect());
    migrator.set_locking(false).run(&mut *transaction).await.map_err(migrate_error)?;
    forget_statements(&mut transaction).await?;
    transaction.commit().await?;
    conn.close().await?;
    Ok(())
}

impl Db {
    /// Opens the database and applies missing migrations. Refuses a schema newer than this program.
    pub(super) async fn open(url: &str) -> Result<Self> {
        match target(url)? {
            Target::Sqlite(path) => {
                let lock = opening_lock(&path).await?;
                for end in ["", "-wal", "-shm"] {
                    let mut name = path.as_os_str().to_owned();
                    name.push(end);
                    super::private::close_file(Path::new(&name));
                }
                let writer = sqlite_writer(&path).await?;
                migrations::SQLITE.run(&writer).await.map_err(migrate_error)?;
                let readers = SqlitePoolOptions::new()
                    .max_connections(SQLITE_READERS)
                    .acquire_timeout(SQLITE_ACQUIRE)
                    .connect_with(sqlite_options(&path).pragma("query_only", "ON"))
                    .await?;
                drop(lock);
                let probe = Arc::new(WriteProbe { path, found: Mutex::new(None) });
                Ok(Self::Sqlite { readers, writer, probe, sent: Arc::default() })
            }
            Target::Postgres => {
                let address = Address::parse(url)?;
                match address.is_pooled {
                    true => migrate_through_pooler(&address.options).await?,
                    false => migrate_postgres(&address.options).await?,
                }
                Ok(Self::Postgres(PostgresDb::open(address).await?))
            }
        }
    }

    /// Waits for PostgreSQL no longer than `POSTGRES_ANSWER`, because responses can be lost in the network. SQLite
    /// needs no time limit.
    pub(super) async fn in_time<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        match self {
            Self::Sqlite { .. } => work.await,
            Self::Postgres(_) => match tokio::time::timeout(POSTGRES_ANSWER, work).await {
                Ok(done) => done,
                Err(_) => Err(StoreError::Unavailable("the database did not answer in time".into())),
            },
        }
    }

    /// Postgres sends notifications; for SQLite and through a pooler, listeners are woken twice a second to check.
    pub(super) fn activations(&self) -> watch::Receiver<()> {
        let (notify, changed) = watch::channel(());
        match self {
            Self::Postgres(db) if !db.is_pooled => {
                tokio::spawn(db.clone().listen(notify));
            }
            Self::Postgres(_) | Self::Sqlite { .. } => {
                tokio::spawn(async move {
                    while !notify.is_closed() {
                        tokio::time::sleep(POLL).await;
                        notify.send_replace(());
                    }
                });
            }
        }
        changed
    }

    pub(super) fn backend(&self) -> &'static str {
        match self {
            Self::Sqlite { .. } => "sqlite",
            Self::Postgres(_) => "postgres",
        }
    }

    fn sent(&self) -> &Arc<AtomicU64> {
        match self {
            Self::Sqlite { sent, .. } => sent,
            Self::Postgres(db) => &db.sent,
        }
    }

    /// Statements sent since the store was opened; what begins and ends transactions, locks included, is not counted.
    pub(super) fn statements(&self) -> u64 {
        self.sent().load(Ordering::Relaxed)
    }

    fn conn(&self, held: Held) -> Conn {
        let keeps_statements = !matches!(self, Self::Postgres(db) if db.is_pooled);
        Conn::new(held, keeps_statements, self.sent().clone())
    }

    pub(super) async fn read(&self) -> Result<Conn> {
        Ok(self.conn(match self {
            Self::Sqlite { readers, .. } => Held::SqliteRead(readers.acquire().await?),
            Self::Postgres(db) if db.is_pooled => Held::PostgresPooledRead(db.read_pooled().await?),
            Self::Postgres(db) => Held::PostgresRead(db.read().await?),
        }))
    }

    /// A deferred SQLite transaction that turns into a writer fails at once, whatever the busy timeout.
    async fn begin(&self) -> Result<Conn> {
        Ok(self.conn(match self {
            Self::Sqlite { writer, .. } => Held::SqliteWrite(writer.begin_with("BEGIN IMMEDIATE").await?),
            Self::Postgres(db) => Held::PostgresWrite(db.begin().await?),
        }))
    }

    /// A write transaction that holds the lock of leases and judgments of sets.
    pub(super) async fn begin_placing(&self) -> Result<Conn> {
        let mut conn = match self {
            Self::Sqlite { .. } => self.begin().await?,
            Self::Postgres(db) => self.conn(Held::PostgresWrite(db.begin_placing().await?)),
        };
        if let Err(error) = self.in_time(conn.serialize(super::locks::PLACES)).await {
            let _ = self.in_time(conn.rollback()).await;
            return Err(error);
        }
        Ok(conn)
    }

    /// Runs `work` in a write transaction and returns after the commit. It runs in its own task: a dropped caller (an
    /// HTTP client that disconnects) neither cancels a commit nor leaves a connection inside a transaction. `work` must
    /// await nothing but its connection.
    pub(super) async fn write<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut Conn) -> BoxFuture<'c, Result<T>> + Send + 'static,
    {
        let db = self.clone();
        let task = tokio::spawn(async move {
            let mut conn = db.begin().await?;
            let done = db.in_time(work(&mut conn)).await;
            match done {
                Ok(value) => db.in_time(conn.commit()).await.map(|()| value),
                Err(error) => {
                    // The first error is reported; a failed rollback closes the connection.
                    let _ = db.in_time(conn.rollback()).await;
                    Err(error)
                }
            }
        });
        task.await.map_err(|e| StoreError::Internal(format!("the task of a write failed: {e}")))?
    }

    /// Whether a write would be accepted now. Postgres refuses at once when it accepts none.
    pub(super) async fn takes_writes(&self) -> Result<()> {
        match self {
            Self::Sqlite { probe, .. } => probe.look().await,
            Self::Postgres(_) => Ok(()),
        }
    }

    pub(super) async fn close(&self) {
        match self {
            Self::Sqlite { readers, writer, .. } => {
                readers.close().await;
                writer.close().await;
            }
            Self::Postgres(db) => db.close().await,
        }
    }
}

//! Postgres connections: the pool, immediate `Unavailable` errors while the server does not answer, and the connection
//! for notifications.

use std::future::Future;
use std::ops::{Deref, DerefMut};
use std::pin::pin;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgListener, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgPool, Postgres, Transaction};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::{Result, StoreError};

/// Connections for reads, for writes, and for the groups of labelers' writes, which thus wait for neither. A group runs
/// at a time; its second connection spares the next one the wait for the test of the first.
const READS: u32 = 10;
const WRITES: u32 = 5;
const GROUPS: u32 = 2;
/// How long a caller waits for a connection before the server is tested, and a write until it gets `Unavailable`.
const ACQUIRE: Duration = Duration::from_secs(3);
/// Longest wait of a read while the server answers. A caller that gives up earlier loses its turn and repeats the work
/// that it has done, which makes a busy server busier.
const LONGEST: Duration = Duration::from_secs(20);
/// A connection that was unused for this long is tested before its use.
const TRUSTED: Duration = Duration::from_secs(1);
/// Time limit of a trial connection, and pause before the next one.
const TRIAL: Duration = Duration::from_secs(1);
const BETWEEN_TRIALS: Duration = Duration::from_millis(250);
/// The notification channel of activations of models.
pub(super) const ACTIVATIONS: &str = "instructd_activations";

/// Parameter of the URL that says that a pooler is in between.
const POOLER: &str = "pooler";
/// Settings of a session. Compiling statements costs more than it saves: those that read much read it from disk.
const SETTINGS: [(&str, &str); 4] = [
    ("statement_timeout", "30s"),
    ("lock_timeout", "5s"),
    ("idle_in_transaction_session_timeout", "30s"),
    ("jit", "off"),
];

/// Where a database is, and what is on the way.
#[derive(Clone)]
pub(super) struct Address {
    pub options: PgConnectOptions,
    /// A pooler may send each transaction over another connection of the server (PgBouncer's `pool_mode = transaction`).
    /// Nothing that belongs to a session is used then: no named statements, no notifications, no settings and no locks
    /// beyond a transaction.
    pub is_pooled: bool,
}

impl Address {
    /// The address of a `postgres://` URL. `pooler=transaction` among its parameters means a pooler.
    pub fn parse(url: &str) -> Result<Self> {
        let (place, parameters) = url.split_once('?').unwrap_or((url, ""));
        let (mut is_pooled, mut rest) = (false, Vec::new());
        for parameter in parameters.split('&').filter(|parameter| !parameter.is_empty()) {
            match parameter.split_once('=') {
                Some((POOLER, "transaction")) => is_pooled = true,
                Some((POOLER, mode)) => {
                    let message = format!("the database URL's pooler must be \"transaction\", not {mode:?}");
                    return Err(StoreError::Internal(message));
                }
                _ => rest.push(parameter),
            }
        }
        let separator = if rest.is_empty() { "" } else { "?" };
        let options = PgConnectOptions::from_str(&format!("{place}{separator}{}", rest.join("&")))?;
        let options = options.application_name("instructd");
        // A pooler refuses start-up parameters that it does not know.
        let options = if is_pooled { options.statement_cache_capacity(0).extra_float_digits(None) } else { options };
        Ok(Self { options, is_pooled })
    }
}

/// Removes named statements from a connection of a pooler: the driver names its own from 1, and they stay on the
/// server's connection, which others use later.
pub(super) async fn forget_statements(conn: &mut PgConnection) -> Result<()> {
    sqlx::raw_sql("DEALLOCATE ALL").execute(conn).await?;
    Ok(())
}

/// One database, through any number of outages.
pub(super) struct PostgresDb {
    /// Replaced after an outage, because old connections may hang for minutes.
    pools: RwLock<Pools>,
    /// One permit for each read, given in the order in which they came.
    readers: Arc<Semaphore>,
    options: PgConnectOptions,
    /// Whether transactions may go over different connections of the server.
    pub(super) is_pooled: bool,
    /// Set while trial connections fail: callers get an error at once.
    away: AtomicBool,
    /// Whether a trial is running.
    trying: AtomicBool,
    closed: AtomicBool,
    /// Statements sent so far.
    pub(super) sent: Arc<AtomicU64>,
}

#[derive(Clone)]
struct Pools {
    reads: PgPool,
    writes: PgPool,
    groups: PgPool,
    spares: Arc<Spares>,
}

/// Connections for reads that were used without an error a moment ago. The pool tests a connection whenever it gets it
/// back, which takes as long as a small read. `None` once the pool is closed.
struct Spares(Mutex<Option<Vec<Spare>>>);

/// A connection, and when it was put here.
type Spare = (PoolConnection<Postgres>, Instant);

impl Spares {
    fn all(&self) -> MutexGuard<'_, Option<Vec<Spare>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The one that was used last. Those that have been unused for too long go back to their pool.
    fn take(&self) -> Option<PoolConnection<Postgres>> {
        let mut all = self.all();
        let spares = all.as_mut()?;
        spares.retain(|(_, since)| since.elapsed() <= TRUSTED);
        spares.pop().map(|(conn, _)| conn)
    }

    fn put(&self, conn: PoolConnection<Postgres>) {
        if let Some(spares) = self.all().as_mut() {
            spares.push((conn, Instant::now()));
        }
    }
}

impl Drop for Spares {
    /// Ends the connections without the pool, which needs a runtime to take them back.
    fn drop(&mut self) {
        for (conn, _) in self.all().take().into_iter().flatten() {
            drop(conn.leak());
        }
    }
}

/// A connection for reads. Dropped, it is tested before its next use, because a statement may have been abandoned.
pub(super) struct Reader {
    conn: PoolConnection<Postgres>,
    spares: Arc<Spares>,
    _permit: OwnedSemaphorePermit,
}

impl Reader {
    /// Makes the connection available without a test. Its last statement must have ended without an error.
    pub(super) fn keep(self) {
        self.spares.put(self.conn);
    }
}

impl Deref for Reader {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.conn
    }
}

impl DerefMut for Reader {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.conn
    }
}

/// A transaction for reads.
pub(super) struct PooledReader {
    pub(super) transaction: Transaction<'static, Postgres>,
    _permit: OwnedSemaphorePermit,
}

impl Pools {
    fn new(options: &PgConnectOptions) -> Self {
        let pool = |connections| {
            PgPoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(ACQUIRE)
                .test_before_acquire(false)
                .before_acquire(|conn, used| {
                    Box::pin(async move {
                        if used.idle_for > TRUSTED {
                            conn.ping().await?;
                        }
                        Ok(true)
                    })
                })
                .connect_lazy_with(options.clone())
        };
        let spares = Arc::new(Spares(Mutex::new(Some(Vec::new()))));
        Self { reads: pool(READS), writes: pool(WRITES), groups: pool(GROUPS), spares }
    }

    async fn close(&self) {
        // The pool waits for its connections.
        drop(self.spares.all().take());
        tokio::join!(self.reads.close(), self.writes.close(), self.groups.close());
    }
}

impl PostgresDb {
    pub(super) async fn open(address: Address) -> Result<Arc<Self>> {
        let Address { options, is_pooled } = address;
        let options = if is_pooled { options } else { options.options(SETTINGS) };
        let db = Arc::new(Self {
            pools: RwLock::new(Pools::new(&options)),
            readers: Arc::new(Semaphore::new(READS as usize)),
            options,
            is_pooled,
            away: AtomicBool::new(false),
            trying: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            sent: Arc::default(),
        });
        // An unreachable server is an error at the start.
        match is_pooled {
            true => drop(db.read_pooled().await?),
            false => db.read().await?.keep(),
        }
        Ok(db)
    }

    fn current(&self) -> Pools {
        self.pools.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A connection outside a transaction. Callers get theirs in the order in which they came.
    pub(super) async fn read(self: &Arc<Self>) -> Result<Reader> {
        let permit = self.turn().await?;
        let Pools { reads, spares, .. } = self.current();
        let conn = match spares.take() {
            Some(conn) => conn,
            None => self.watched(reads.acquire()).await?,
        };
        Ok(Reader { conn, spares, _permit: permit })
    }

    /// A transaction for reads through a pooler, which is rolled back when it is dropped.
    pub(super) async fn read_pooled(self: &Arc<Self>) -> Result<PooledReader> {
        let permit = self.turn().await?;
        let pool = self.current().reads;
        Ok(PooledReader { transaction: self.watched(self.begin_in(&pool)).await?, _permit: permit })
    }

    async fn begin_in(&self, pool: &PgPool) -> sqlx::Result<Transaction<'static, Postgres>> {
        match self.is_pooled {
            true => {
                let settings = SETTINGS.map(|(name, value)| format!("SET LOCAL {name} = '{value}'"));
                let begin = format!("BEGIN; {}", settings.join("; "));
                pool.begin_with(AssertSqlSafe(begin)).await
            }
            false => pool.begin().await,
        }
    }

    /// Waits while other reads have all connections and the server answers.
    async fn turn(self: &Arc<Self>) -> Result<OwnedSemaphorePermit> {
        let mut turn = pin!(self.readers.clone().acquire_owned());
        let start = Instant::now();
        let mut tested = Duration::ZERO;
        loop {
            self.refuse_if_away()?;
            match tokio::time::timeout(BETWEEN_TRIALS, &mut turn).await {
                Ok(permit) => return permit.map_err(|_| StoreError::Unavailable("the store is closed".into())),
                Err(_) if start.elapsed() > LONGEST => {
                    return Err(StoreError::Unavailable("all database connections are in use".into()));
                }
                Err(_) if start.elapsed() > tested + ACQUIRE => {
                    tested = start.elapsed();
                    self.try_the_server();
                }
                Err(_) => {}
            }
        }
    }

    pub(super) async fn begin(self: &Arc<Self>) -> Result<Transaction<'static, Postgres>> {
        let pool = self.current().writes;
        self.watched(self.begin_in(&pool)).await
    }

    /// A transaction for a group of labelers' writes.
    pub(super) async fn begin_placing(self: &Arc<Self>) -> Result<Transaction<'static, Postgres>> {
        let pool = self.current().groups;
        self.watched(self.begin_in(&pool)).await
    }

    fn refuse_if_away(&self) -> Result<()> {
        if self.away.load(Ordering::Relaxed) {
            return Err(StoreError::Unavailable("the server does not answer".into()));
        }
        Ok(())
    }

    /// Gets a connection; a failure starts trial connections.
    async fn watched<T>(self: &Arc<Self>, attempt: impl Future<Output = sqlx::Result<T>>) -> Result<T> {
        self.refuse_if_away()?;
        attempt.await.map_err(|error| {
            let error = StoreError::from(error);
            if matches!(error, StoreError::Unavailable(_)) && !self.closed.load(Ordering::Relaxed) {
                self.try_the_server();
            }
            error
        })
    }

    /// Makes trial connections until one succeeds. After the first failure callers get errors, until the first success.
    fn try_the_server(self: &Arc<Self>) {
        if self.trying.swap(true, Ordering::AcqRel) {
            return;
        }
        let db = self.clone();
        tokio::spawn(async move {
            while !db.closed.load(Ordering::Relaxed) && !db.answers().await {
                if !db.away.swap(true, Ordering::AcqRel) {
                    tracing::error!("the database does not answer; requests are refused until it does");
                    let fresh = Pools::new(&db.options);
                    let old = std::mem::replace(&mut *db.pools.write().unwrap_or_else(PoisonError::into_inner), fresh);
                    // Closing would wait for hanging connections.
                    tokio::spawn(async move { old.close().await });
                }
                tokio::time::sleep(BETWEEN_TRIALS).await;
            }
            if db.away.swap(false, Ordering::AcqRel) {
                tracing::info!("the database answers again");
            }
            // Waiting readers ask for trials all the time.
            tokio::time::sleep(BETWEEN_TRIALS).await;
            db.trying.store(false, Ordering::Release);
        });
    }

    async fn answers(&self) -> bool {
        let trial = async {
            let mut conn = self.options.connect().await?;
            conn.ping().await?;
            conn.close().await
        };
        matches!(tokio::time::timeout(TRIAL, trial).await, Ok(Ok(())))
    }

    pub(super) async fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        self.readers.close();
        // A hanging connection must not delay the end of the program.
        let _ = tokio::time::timeout(TRIAL, self.current().close()).await;
    }

    /// Signals `changed` for every notification, and after every lost connection, when notifications may have been
    /// missed. Ends when the receiver is dropped.
    pub(super) async fn listen(self: Arc<Self>, changed: watch::Sender<()>) {
        while !changed.is_closed() && !self.closed.load(Ordering::Relaxed) {
            if let Err(error) = self.receive(&changed).await {
                tracing::debug!(%error, "the connection for notifications ended");
            }
            changed.send_replace(());
            tokio::time::sleep(BETWEEN_TRIALS).await;
        }
    }

    async fn receive(&self, changed: &watch::Sender<()>) -> sqlx::Result<()> {
        // A pool of one, because the listener keeps its connection for itself.
        let one =
            PgPoolOptions::new().max_connections(1).acquire_timeout(ACQUIRE).connect_lazy_with(self.options.clone());
        let mut listener = PgListener::connect_with(&one).await?;
        listener.listen(ACTIVATIONS).await?;
        changed.send_replace(());
        loop {
            tokio::select! {
                notification = listener.try_recv() => match notification? {
                    Some(_) => { changed.send_replace(()); }
                    None => return Ok(()),
                },
                () = changed.closed() => return Ok(()),
            }
        }
    }
}

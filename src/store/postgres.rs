//! Postgres connections: the pool, immediate `Unavailable` errors while the server does not answer, and the connection
//! for notifications.

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, PgPool, Postgres, Transaction};
use tokio::sync::watch;

use super::{Result, StoreError};

const CONNECTIONS: u32 = 16;
/// How long a caller waits for a connection before it gets `Unavailable`.
const ACQUIRE: Duration = Duration::from_secs(3);
/// Time limit of a trial connection, and pause before the next one.
const TRIAL: Duration = Duration::from_secs(1);
const BETWEEN_TRIALS: Duration = Duration::from_millis(250);
/// The notification channel of activations of models.
pub(super) const ACTIVATIONS: &str = "instructd_activations";

/// One database, through any number of outages.
pub(super) struct PostgresDb {
    /// Replaced after an outage, because old connections may hang for minutes.
    pool: RwLock<PgPool>,
    options: PgConnectOptions,
    /// Set while trial connections fail: callers get an error at once.
    away: AtomicBool,
    /// Whether a trial is running.
    trying: AtomicBool,
    closed: AtomicBool,
    /// Statements sent so far.
    pub(super) sent: Arc<AtomicU64>,
}

fn pool(options: &PgConnectOptions) -> PgPool {
    PgPoolOptions::new().max_connections(CONNECTIONS).acquire_timeout(ACQUIRE).connect_lazy_with(options.clone())
}

impl PostgresDb {
    pub(super) async fn open(options: PgConnectOptions) -> Result<Arc<Self>> {
        let options = options.options([
            ("statement_timeout", "30s"),
            ("lock_timeout", "5s"),
            ("idle_in_transaction_session_timeout", "30s"),
        ]);
        let db = Arc::new(Self {
            pool: RwLock::new(pool(&options)),
            options,
            away: AtomicBool::new(false),
            trying: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            sent: Arc::default(),
        });
        // An unreachable server is an error at the start.
        drop(db.acquire().await?);
        Ok(db)
    }

    fn current(&self) -> PgPool {
        self.pool.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) async fn acquire(self: &Arc<Self>) -> Result<PoolConnection<Postgres>> {
        let pool = self.current();
        self.watched(pool.acquire()).await
    }

    pub(super) async fn begin(self: &Arc<Self>) -> Result<Transaction<'static, Postgres>> {
        let pool = self.current();
        self.watched(pool.begin()).await
    }

    /// Gets a connection; a failure starts trial connections.
    async fn watched<T>(self: &Arc<Self>, attempt: impl Future<Output = sqlx::Result<T>>) -> Result<T> {
        if self.away.load(Ordering::Relaxed) {
            return Err(StoreError::Unavailable("the server does not answer".into()));
        }
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
                    let fresh = pool(&db.options);
                    let old = std::mem::replace(&mut *db.pool.write().unwrap_or_else(PoisonError::into_inner), fresh);
                    // Closing would wait for hanging connections.
                    tokio::spawn(async move { old.close().await });
                }
                tokio::time::sleep(BETWEEN_TRIALS).await;
            }
            if db.away.swap(false, Ordering::AcqRel) {
                tracing::info!("the database answers again");
            }
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

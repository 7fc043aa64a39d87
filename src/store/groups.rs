//! Group commit of labelers' writes. All writes that wait when a transaction begins become part of it, one sync of the
//! disk makes all of them durable, and each caller is answered after the commit. On PostgreSQL the leases of a group
//! share their statements, and so do its judgments, because each statement is a round trip.

use std::any::{Any, TypeId};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::connect::Db;
use super::rows::{BoxFuture, Conn};
use super::{Result, StoreError};

/// Most writes in one transaction. The first of them waits for the last.
const MOST: usize = 64;

/// A write that takes or frees a place on a set. It may run twice, so it keeps its parameters.
pub(super) trait Write: Send + Sync + Sized + 'static {
    /// What the caller gets.
    type Done: Send + 'static;

    /// Runs the write alone in a transaction that holds the lock of places. It must await nothing but its connection.
    fn run<'c>(&'c self, conn: &'c mut Conn) -> BoxFuture<'c, Result<Self::Done>>;

    /// Whether PostgreSQL runs the writes of this kind in a group by [`Self::together`].
    const TOGETHER: bool = false;

    /// Runs the writes of this kind in a group and stores their results. An error means that the transaction must be
    /// rolled back.
    fn together<'c>(conn: &'c mut Conn, waiting: Vec<&'c mut Waiting<Self>>) -> BoxFuture<'c, Result<()>> {
        Box::pin(async move {
            for one in waiting {
                one.run(conn).await?;
            }
            Ok(())
        })
    }
}

/// A write whose caller waits.
pub(super) struct Waiting<W: Write> {
    pub(super) write: W,
    /// The result, which is sent after the commit.
    pub(super) done: Option<Result<W::Done>>,
    reply: oneshot::Sender<Result<W::Done>>,
}

/// Writes that wait for a transaction.
#[derive(Clone, Default)]
pub(super) struct Groups(Arc<Mutex<Queue>>);

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Box<dyn Job>>,
    /// Whether a task is processing `waiting`.
    running: bool,
}

trait Job: Any + Send {
    /// Runs the write inside the transaction and stores its result; returns its error if it failed.
    fn run<'c>(&'c mut self, conn: &'c mut Conn) -> BoxFuture<'c, Result<()>>;
    /// The kind of the write, where PostgreSQL runs those of a kind together.
    fn kind(&self) -> Option<TypeId>;
    fn as_any(&mut self) -> &mut dyn Any;
    /// [`Write::together`] of this write and of others of its kind.
    fn run_with<'c>(&'c mut self, conn: &'c mut Conn, others: Vec<&'c mut dyn Job>) -> BoxFuture<'c, Result<()>>;
    /// Sends the result to the caller, after the commit.
    fn answer(self: Box<Self>);
    /// Sends an error to the caller; nothing was stored.
    fn refuse(self: Box<Self>, error: StoreError);
}

impl<W: Write> Job for Waiting<W> {
    fn run<'c>(&'c mut self, conn: &'c mut Conn) -> BoxFuture<'c, Result<()>> {
        Box::pin(async move {
            let done = self.write.run(conn).await;
            let failed = done.as_ref().err().cloned();
            self.done = Some(done);
            failed.map_or(Ok(()), Err)
        })
    }

    fn kind(&self) -> Option<TypeId> {
        W::TOGETHER.then(TypeId::of::<W>)
    }

    fn as_any(&mut self) -> &mut dyn Any {
        self
    }

    fn run_with<'c>(&'c mut self, conn: &'c mut Conn, others: Vec<&'c mut dyn Job>) -> BoxFuture<'c, Result<()>> {
        let mut all = vec![self];
        all.extend(others.into_iter().filter_map(|job| job.as_any().downcast_mut::<Self>()));
        W::together(conn, all)
    }

    fn answer(self: Box<Self>) {
        let done = self.done.unwrap_or_else(|| Err(StoreError::Internal("a write was not run".into())));
        // The caller may be gone; the write is kept.
        let _ = self.reply.send(done);
    }

    fn refuse(self: Box<Self>, error: StoreError) {
        let _ = self.reply.send(Err(error));
    }
}

impl Groups {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `write` in a transaction that others may share, and returns after the commit. It is run again, alone, when
    /// another write of the same transaction fails. It runs to its end also when the caller is dropped.
    pub(super) async fn write<W: Write>(&self, db: &Db, write: W) -> Result<W::Done> {
        let (reply, result) = oneshot::channel();
        let idle = {
            let mut queue = self.queue();
            queue.waiting.push_back(Box::new(Waiting { write, done: None, reply }));
            !std::mem::replace(&mut queue.running, true)
        };
        if idle {
            tokio::spawn(Runner { groups: self.clone(), ended: false }.run(db.clone()));
        }
        result.await.unwrap_or_else(|_| Err(StoreError::Internal("the task of a write failed".into())))
    }
}

/// The task that processes the queue until it is empty. When it is dropped early, waiting callers get an error.
struct Runner {
    groups: Groups,
    ended: bool,
}

impl Runner {
    async fn run(mut self, db: Db) {
        loop {
            let group: Vec<_> = {
                let mut queue = self.groups.queue();
                let most = queue.waiting.len().min(MOST);
                // Under the same lock a new caller finds a runner or starts one.
                queue.running = most > 0;
                queue.waiting.drain(..most).collect()
            };
            if group.is_empty() {
                self.ended = true;
                return;
            }
            commit_together(&db, group).await;
        }
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        // After a regular end another runner may be running.
        if !self.ended {
            let mut queue = self.groups.queue();
            queue.running = false;
            queue.waiting.clear();
        }
    }
}

/// Runs all writes in one transaction, or each alone when one of them fails.
async fn commit_together(db: &Db, mut group: Vec<Box<dyn Job>>) {
    let single = group.len() == 1;
    let failed = match transact(db, &mut group).await {
        Ok(()) => return group.into_iter().for_each(|job| job.answer()),
        Err(failed) => failed,
    };
    for job in group {
        let mut alone = vec![job];
        let refused = match &failed {
            Failed::Alone(error) if single => Err(error.clone()),
            Failed::All(error) => Err(error.clone()),
            Failed::Alone(_) => transact(db, &mut alone).await.map_err(Failed::into_error),
        };
        for job in alone {
            match &refused {
                Ok(()) => job.answer(),
                Err(error) => job.refuse(error.clone()),
            }
        }
    }
}

/// Why a group was not stored.
enum Failed {
    /// One of the writes failed, or their sum: each may succeed alone.
    Alone(StoreError),
    /// The database.
    All(StoreError),
}

impl Failed {
    fn into_error(self) -> StoreError {
        match self {
            Self::Alone(error) | Self::All(error) => error,
        }
    }
}

async fn transact(db: &Db, group: &mut [Box<dyn Job>]) -> Result<(), Failed> {
    let mut conn = db.begin_placing().await.map_err(Failed::All)?;
    if let Err(error) = run_all(db, &mut conn, group).await {
        // The first error is the one to report; a failed rollback closes the connection.
        let _ = db.in_time(conn.rollback()).await;
        let unavailable = matches!(error, StoreError::Unavailable(_));
        return Err(if unavailable { Failed::All(error) } else { Failed::Alone(error) });
    }
    db.in_time(conn.commit()).await.map_err(|error| match error {
        // What is too large for the disk together may fit one by one. After other failures it is not known what is
        // stored.
        StoreError::Full(_) => Failed::Alone(error),
        other => Failed::All(other),
    })
}

/// Runs the writes of a group. An error means that the transaction must be rolled back; a refusal by the rules, which
/// precedes any change, is the result of its write alone.
async fn run_all(db: &Db, conn: &mut Conn, group: &mut [Box<dyn Job>]) -> Result<()> {
    let mut own = Vec::new();
    let mut kinds: Vec<(TypeId, Vec<&mut dyn Job>)> = Vec::new();
    for job in group {
        let Some(kind) = job.kind().filter(|_| conn.is_postgres()) else {
            own.push(job);
            continue;
        };
        match kinds.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, jobs)) => jobs.push(&mut **job),
            None => kinds.push((kind, vec![&mut **job])),
        }
    }
    for job in own {
        conn.mark();
        if let Err(error) = db.in_time(job.run(conn)).await
            && (matches!(error, StoreError::Unavailable(_)) || conn.may_be_dirty())
        {
            return Err(error);
        }
    }
    for (_, jobs) in kinds {
        let mut jobs = jobs.into_iter();
        if let Some(first) = jobs.next() {
            db.in_time(first.run_with(conn, jobs.collect())).await?;
        }
    }
    Ok(())
}

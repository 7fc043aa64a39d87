//! Group commit of labelers' writes. All writes that wait when a transaction begins become part of it, one sync of the
//! disk makes all of them durable, and each caller is answered after the commit.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::connect::Db;
use super::rows::{BoxFuture, Conn};
use super::{Result, StoreError};

/// Most writes in one transaction. The first of them waits for the last.
const MOST: usize = 64;

/// Writes that wait for a transaction.
#[derive(Clone, Default)]
pub(super) struct Groups(Arc<Mutex<Queue>>);

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Box<dyn Job>>,
    /// Whether a task is processing `waiting`.
    running: bool,
}

trait Job: Send {
    /// Runs the work inside the transaction and stores its result; returns whether it failed.
    fn run<'c>(&'c mut self, conn: &'c mut Conn) -> BoxFuture<'c, Result<()>>;
    /// Sends the result to the caller, after the commit.
    fn answer(self: Box<Self>);
    /// Sends an error to the caller; nothing was stored.
    fn refuse(self: Box<Self>, error: StoreError);
}

struct Typed<T, F> {
    work: F,
    done: Option<Result<T>>,
    reply: oneshot::Sender<Result<T>>,
}

impl<T, F> Job for Typed<T, F>
where
    T: Send + 'static,
    F: for<'c> FnMut(&'c mut Conn) -> BoxFuture<'c, Result<T>> + Send + 'static,
{
    fn run<'c>(&'c mut self, conn: &'c mut Conn) -> BoxFuture<'c, Result<()>> {
        Box::pin(async move {
            let done = (self.work)(conn).await;
            let failed = done.as_ref().err().cloned();
            self.done = Some(done);
            failed.map_or(Ok(()), Err)
        })
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

    /// Runs `work` in a transaction that others may share, and returns after the commit. It is run again, alone, when
    /// another work of the same transaction fails, so it must be repeatable and must await nothing but its connection.
    /// It runs to its end also when the caller is dropped.
    pub(super) async fn write<T, F>(&self, db: &Db, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: for<'c> FnMut(&'c mut Conn) -> BoxFuture<'c, Result<T>> + Send + 'static,
    {
        let (reply, result) = oneshot::channel();
        let idle = {
            let mut queue = self.queue();
            queue.waiting.push_back(Box::new(Typed { work, done: None, reply }));
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

/// Runs all works in one transaction, or each alone when one of them fails.
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
    /// One of the works failed, or their sum: each may succeed alone.
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
    for job in group {
        conn.mark();
        let ran = db.in_time(job.run(&mut conn)).await;
        // A refusal by the rules precedes any write and does not affect the other works.
        let Err(error) = ran else { continue };
        let unavailable = matches!(error, StoreError::Unavailable(_));
        if unavailable || conn.may_be_dirty() {
            // The first error is the one to report; a failed rollback closes the connection.
            let _ = db.in_time(conn.rollback()).await;
            return Err(if unavailable { Failed::All(error) } else { Failed::Alone(error) });
        }
    }
    db.in_time(conn.commit()).await.map_err(|error| match error {
        // What is too large for the disk together may fit one by one. After other failures it is not known what is
        // stored.
        StoreError::Full(_) => Failed::Alone(error),
        other => Failed::All(other),
    })
}

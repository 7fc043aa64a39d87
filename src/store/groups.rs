//! Labelers' writes share transactions. What waits when a transaction begins goes into it, and one write to the disk
//! makes all of it durable; each caller hears only after that commit.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::connect::{BoxFuture, Db};
use super::rows::Conn;
use super::{Result, StoreError};

/// Writes in one transaction. The first of them waits for the last.
const MOST: usize = 64;

/// Writes that wait for a transaction.
#[derive(Clone, Default)]
pub(super) struct Groups(Arc<Mutex<Queue>>);

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Box<dyn Job>>,
    /// A task is taking from `waiting`.
    running: bool,
}

trait Job: Send {
    /// Does the work inside the transaction, and keeps what came of it; says what failed.
    fn run<'c>(&'c mut self, conn: &'c mut Conn) -> BoxFuture<'c, Result<()>>;
    /// The transaction is committed: the caller hears what came of the work.
    fn answer(self: Box<Self>);
    /// Nothing of it is stored.
    fn refuse(self: Box<Self>, error: StoreError);
}

struct Typed<T, F> {
    work: F,
    done: Option<Result<T>>,
    tell: oneshot::Sender<Result<T>>,
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
        // The caller may have gone; what was written stays.
        let _ = self.tell.send(done);
    }

    fn refuse(self: Box<Self>, error: StoreError) {
        let _ = self.tell.send(Err(error));
    }
}

impl Groups {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work` in a transaction that others may share, and returns after the commit. It is run again, alone, when
    /// another work of the same transaction fails; so it must be able to run more than once, and awaits nothing but
    /// its connection. It ends also when the caller goes away.
    pub(super) async fn write<T, F>(&self, db: &Db, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: for<'c> FnMut(&'c mut Conn) -> BoxFuture<'c, Result<T>> + Send + 'static,
    {
        let (tell, told) = oneshot::channel();
        let idle = {
            let mut queue = self.queue();
            queue.waiting.push_back(Box::new(Typed { work, done: None, tell }));
            !std::mem::replace(&mut queue.running, true)
        };
        if idle {
            tokio::spawn(Runner { groups: self.clone(), ended: false }.run(db.clone()));
        }
        told.await.unwrap_or_else(|_| Err(StoreError::Internal("a write was torn down".into())))
    }
}

/// The task that takes from the queue until it is empty. Torn down early, it lets the waiting callers go.
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
                // Under the lock that a new caller takes: it finds a runner, or starts one.
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
        // After a regular end a new runner may be at work.
        if !self.ended {
            let mut queue = self.groups.queue();
            queue.running = false;
            queue.waiting.clear();
        }
    }
}

/// All of them in one transaction; each alone where that fails through the fault of one.
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

/// Why nothing of a group is stored.
enum Failed {
    /// One of the works, or their sum: each may succeed alone.
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
        // A refusal by the rules comes before anything is written, and harms no neighbour.
        let Err(error) = ran else { continue };
        let unavailable = matches!(error, StoreError::Unavailable(_));
        if unavailable || conn.is_spoilt() {
            // The first error is the one to report; a failed rollback closes the connection.
            let _ = db.in_time(conn.rollback()).await;
            return Err(if unavailable { Failed::All(error) } else { Failed::Alone(error) });
        }
    }
    db.in_time(conn.commit()).await.map_err(|error| match error {
        // Too much for the disk together may fit one by one. After other failures nobody knows what is stored.
        StoreError::Full(_) => Failed::Alone(error),
        other => Failed::All(other),
    })
}

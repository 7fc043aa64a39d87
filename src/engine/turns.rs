//! Work on blocking threads, a few tasks at a time: the queue is bounded, and a task whose caller has left can stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use super::EngineError;

/// So many pieces at the same time, and so many that wait; more are refused.
#[derive(Clone, Debug)]
pub struct Turns {
    turns: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
}

/// Tells work on a blocking thread whether anybody still waits for it.
#[derive(Clone, Debug, Default)]
pub struct Asker(Arc<AtomicBool>);

impl Asker {
    pub fn has_left(&self) -> bool {
        self.0.load(Relaxed)
    }

    /// # Errors
    /// `Failed` when nobody waits any more: nobody will read it.
    pub fn still_there(&self) -> Result<(), EngineError> {
        if self.has_left() { Err(EngineError::Failed("the asker has left".into())) } else { Ok(()) }
    }
}

/// Sets the flag when the asking future is dropped.
struct Leaves(Asker);

impl Drop for Leaves {
    fn drop(&mut self) {
        self.0.0.store(true, Relaxed);
    }
}

/// Work that took longer than this has used much memory, mostly.
const LONG: Duration = Duration::from_millis(20);

/// Returns what was freed to the system. The allocator keeps it for each thread that worked, and blocking threads
/// are many: a crowd of large requests would leave a large process behind.
fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it has no conditions; it takes the allocator's own locks.
    unsafe {
        libc::malloc_trim(1 << 20);
    }
}

impl Turns {
    pub fn new(at_once: usize, may_wait: usize) -> Self {
        Self { turns: Arc::new(Semaphore::new(at_once)), waiting: Arc::new(Semaphore::new(at_once + may_wait)) }
    }

    /// Runs `work` in turn.
    ///
    /// # Errors
    /// `Overloaded` when too many wait; what `work` fails with.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Asker) -> Result<T, EngineError> + Send + 'static,
    ) -> Result<T, EngineError> {
        let Ok(place) = self.waiting.clone().try_acquire_owned() else {
            return Err(EngineError::Overloaded { retry_after_s: 1 });
        };
        let ended = |_| EngineError::Failed("the turns have ended".into());
        let turn = self.turns.clone().acquire_owned().await.map_err(ended)?;
        let asker = Asker::default();
        let _leaves = Leaves(asker.clone());
        let done = tokio::task::spawn_blocking(move || {
            // An asker who leaves does not free the turn of work that goes on.
            let _held = (place, turn);
            let began = Instant::now();
            let done = work(&asker);
            if began.elapsed() > LONG {
                give_back();
            }
            done
        });
        done.await.map_err(|e| EngineError::Failed(e.to_string()))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_waits_is_bounded_and_work_hears_that_its_asker_left() {
        let turns = Turns::new(1, 1);
        let (started, began) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel();
        let first = turns.clone();
        let first = tokio::spawn(async move {
            first
                .run(move |asker| {
                    started.send(()).ok();
                    while !asker.has_left() {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    end.send(()).ok();
                    Ok(())
                })
                .await
        });
        tokio::task::spawn_blocking(move || began.recv()).await.unwrap().unwrap();
        let second = turns.clone();
        let second = tokio::spawn(async move { second.run(|_| Ok(2)).await });
        while turns.waiting.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(turns.run(|_| Ok(3)).await, Err(EngineError::Overloaded { retry_after_s: 1 }));
        first.abort();
        tokio::task::spawn_blocking(move || ended.recv()).await.unwrap().unwrap();
        assert_eq!(second.await.unwrap(), Ok(2));
    }
}

//! Work on blocking threads with limited concurrency and a bounded queue. A task can stop when its caller is gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use super::EngineError;

/// Runs tasks on blocking threads, with a maximum number of concurrent and of waiting tasks.
#[derive(Clone, Debug)]
pub struct BlockingPool {
    /// Permits of running tasks.
    running: Arc<Semaphore>,
    /// Permits of running and waiting tasks.
    admitted: Arc<Semaphore>,
}

/// Tells a task on a blocking thread whether its caller still waits for the result.
#[derive(Clone, Debug, Default)]
pub struct CancelToken(Arc<AtomicBool>);

impl CancelToken {
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Relaxed)
    }

    /// # Errors
    /// `Failed` if the caller no longer waits.
    pub fn check(&self) -> Result<(), EngineError> {
        if self.is_cancelled() { Err(EngineError::Failed("the request was cancelled".into())) } else { Ok(()) }
    }
}

/// Cancels the task when the caller's future is dropped.
struct CancelOnDrop(CancelToken);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.0.store(true, Relaxed);
    }
}

/// After tasks that take longer than this, freed memory is returned to the system: they have usually allocated much.
const LONG: Duration = Duration::from_millis(20);

/// Returns freed memory to the system. The allocator would keep it for each of the many blocking threads, so that the
/// process would stay large after large requests.
fn trim_allocator() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: `malloc_trim` has no preconditions.
    unsafe {
        libc::malloc_trim(1 << 20);
    }
}

impl BlockingPool {
    /// A pool for at most `max_running` concurrent and `max_waiting` waiting tasks.
    pub fn new(max_running: usize, max_waiting: usize) -> Self {
        Self {
            running: Arc::new(Semaphore::new(max_running)),
            admitted: Arc::new(Semaphore::new(max_running + max_waiting)),
        }
    }

    /// Runs `work` on a blocking thread as soon as fewer than the maximum number of tasks run.
    ///
    /// # Errors
    /// `Overloaded` if too many tasks wait, and those of `work`.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&CancelToken) -> Result<T, EngineError> + Send + 'static,
    ) -> Result<T, EngineError> {
        let Ok(admitted) = self.admitted.clone().try_acquire_owned() else {
            return Err(EngineError::Overloaded { retry_after_s: 1 });
        };
        let ended = |_| EngineError::Failed("the pool of blocking tasks is closed".into());
        let running = self.running.clone().acquire_owned().await.map_err(ended)?;
        let cancel = CancelToken::default();
        let _cancel_on_drop = CancelOnDrop(cancel.clone());
        let done = tokio::task::spawn_blocking(move || {
            // The permits belong to the task: it keeps them after its caller is gone.
            let _permits = (admitted, running);
            let began = Instant::now();
            let done = work(&cancel);
            if began.elapsed() > LONG {
                trim_allocator();
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
    async fn the_queue_is_bounded_and_a_task_is_cancelled_when_its_caller_is_dropped() {
        let pool = BlockingPool::new(1, 1);
        let (started, began) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel();
        let first = pool.clone();
        let first = tokio::spawn(async move {
            first
                .run(move |cancel| {
                    started.send(()).ok();
                    while !cancel.is_cancelled() {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    end.send(()).ok();
                    Ok(())
                })
                .await
        });
        tokio::task::spawn_blocking(move || began.recv()).await.unwrap().unwrap();
        let second = pool.clone();
        let second = tokio::spawn(async move { second.run(|_| Ok(2)).await });
        while pool.admitted.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(pool.run(|_| Ok(3)).await, Err(EngineError::Overloaded { retry_after_s: 1 }));
        first.abort();
        tokio::task::spawn_blocking(move || ended.recv()).await.unwrap().unwrap();
        assert_eq!(second.await.unwrap(), Ok(2));
    }
}

//! Results that take much of the database to compute: they are computed in the background, and callers get the last one.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Result, ServiceError};

/// If computing takes longer than this, the result is kept.
const CHEAP: Duration = Duration::from_secs(1);
/// A result is kept for this many times the time that it took, at most for `LONGEST`.
const KEPT: u32 = 5;
const LONGEST: Duration = Duration::from_secs(60);
/// How long a caller waits for a new result while there is an older one.
const PATIENCE: Duration = Duration::from_secs(1);

/// A result, when it was computed, and how long that took.
#[derive(Clone, Debug)]
struct Kept<T> {
    value: T,
    made: Instant,
    cost: Duration,
}

/// The last result, and how often results were forgotten.
#[derive(Debug)]
struct Last<T> {
    kept: Option<Kept<T>>,
    forgotten: u64,
}

#[derive(Debug)]
struct Shared<T> {
    last: Mutex<Last<T>>,
    /// Held while a result is computed.
    turn: tokio::sync::Mutex<()>,
}

impl<T: Clone> Shared<T> {
    fn last(&self) -> MutexGuard<'_, Last<T>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last result, if it `fits`.
    fn older(&self, fits: impl Fn(&T) -> bool) -> Option<T> {
        let last = self.last();
        last.kept.as_ref().filter(|kept| fits(&kept.value)).map(|kept| kept.value.clone())
    }

    /// The last result, if it `fits` and is recent.
    fn recent(&self, fits: impl Fn(&T) -> bool) -> Option<T> {
        let last = self.last();
        let recent = last.kept.as_ref().filter(|kept| is_fresh(kept.cost, kept.made.elapsed()));
        recent.filter(|kept| fits(&kept.value)).map(|kept| kept.value.clone())
    }
}

/// The last result of a computation. The result itself should say of when it is.
#[derive(Debug)]
pub struct Cached<T>(Arc<Shared<T>>);

/// Whether a result is still used that took `cost` to compute.
fn is_fresh(cost: Duration, age: Duration) -> bool {
    cost >= CHEAP && age < (cost * KEPT).min(LONGEST)
}

impl<T> Default for Cached<T> {
    fn default() -> Self {
        let last = Last { kept: None, forgotten: 0 };
        Self(Arc::new(Shared { last: Mutex::new(last), turn: tokio::sync::Mutex::default() }))
    }
}

impl<T: Clone + Send + 'static> Cached<T> {
    /// A result that `fits`: the last one, up to a minute old, if it took longer than a second; otherwise what `compute`
    /// returns, which runs to its end in the background even if the caller does not wait for it. After a second, an older
    /// result is returned instead; where there is none, `None` after `patience`. One computation runs at a time.
    ///
    /// # Errors
    /// Those of `compute`, which are not kept.
    pub async fn get(
        &self,
        patience: Duration,
        fits: impl Fn(&T) -> bool + Send + Sync + Clone + 'static,
        compute: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<Option<T>> {
        if let Some(value) = self.0.recent(&fits) {
            return Ok(Some(value));
        }
        let patience = if self.0.older(&fits).is_some() { PATIENCE.min(patience) } else { patience };
        let (shared, still_fits) = (self.0.clone(), fits.clone());
        let task = tokio::spawn(async move {
            let _turn = shared.turn.lock().await;
            if let Some(value) = shared.recent(still_fits) {
                return Ok(value);
            }
            let (begun, forgotten) = (Instant::now(), shared.last().forgotten);
            let value = compute.await?;
            let mut last = shared.last();
            if last.forgotten == forgotten {
                last.kept = Some(Kept { value: value.clone(), made: Instant::now(), cost: begun.elapsed() });
            }
            Ok::<T, ServiceError>(value)
        });
        match tokio::time::timeout(patience, task).await {
            Ok(Ok(done)) => done.map(Some),
            Ok(Err(failed)) => Err(ServiceError::Internal(format!("a computation did not finish: {failed}"))),
            Err(_) => Ok(self.0.older(&fits)),
        }
    }

    /// [`Self::get`] for callers that need a result, however long the first one takes.
    ///
    /// # Errors
    /// Those of `compute`, which are not kept.
    pub async fn wait(
        &self,
        fits: impl Fn(&T) -> bool + Send + Sync + Clone + 'static,
        compute: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let found = self.get(Duration::from_secs(3600), fits, compute).await?;
        found.ok_or_else(|| ServiceError::Internal("a computation did not finish within an hour".to_owned()))
    }

    /// Forgets the last result, and that of a computation that is running.
    pub fn clear(&self) {
        let mut last = self.0.last();
        (last.kept, last.forgotten) = (None, last.forgotten + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longer_it_takes_the_longer_it_is_kept() {
        let seconds = Duration::from_secs_f64;
        assert!(!is_fresh(seconds(0.9), Duration::ZERO), "cheap ones are computed each time");
        assert!(is_fresh(seconds(2.0), seconds(9.9)) && !is_fresh(seconds(2.0), seconds(10.0)));
        assert!(is_fresh(seconds(40.0), seconds(59.9)) && !is_fresh(seconds(40.0), seconds(60.0)));
    }

    #[tokio::test]
    async fn errors_are_not_kept() {
        let cached = Cached::default();
        let failed: Result<i32> = cached.wait(|_| true, async { Err(ServiceError::Conflict("no".into())) }).await;
        assert!(failed.is_err());
        assert_eq!(cached.wait(|_| true, async { Ok(7) }).await.unwrap(), 7);
        // As after a computation of an hour.
        cached.0.last().kept = Some(Kept { value: 8, made: Instant::now(), cost: Duration::from_secs(3600) });
        assert_eq!(cached.wait(|_| true, async { Ok(9) }).await.unwrap(), 8);
        cached.clear();
        assert_eq!(cached.wait(|_| true, async { Ok(9) }).await.unwrap(), 9);
    }

    #[tokio::test]
    async fn a_slow_computation_ends_in_the_background() {
        let (cached, gate) = (Cached::default(), Arc::new(tokio::sync::Semaphore::new(0)));
        let slow = |value: i32| {
            let gate = gate.clone();
            async move {
                gate.acquire().await.unwrap().forget();
                Ok(value)
            }
        };
        let short = Duration::from_millis(20);
        assert_eq!(cached.get(short, |_| true, slow(1)).await.unwrap(), None, "there is no result yet");
        gate.add_permits(1);
        drop(cached.0.turn.lock().await);
        assert_eq!(cached.0.older(|_| true), Some(1));
        // It was cheap, so it is computed again.
        assert_eq!(cached.get(short, |_| true, slow(2)).await.unwrap(), Some(1), "the older one is returned");
        assert_eq!(cached.get(short, |value| *value > 5, slow(3)).await.unwrap(), None, "the older one does not fit");
        gate.add_permits(2);
        assert_eq!(cached.wait(|_| true, async { Ok(4) }).await.unwrap(), 4, "computations have their turns");
        cached.clear();
        assert_eq!(cached.get(short, |_| true, slow(5)).await.unwrap(), None);
        cached.clear();
        gate.add_permits(1);
        drop(cached.0.turn.lock().await);
        assert_eq!(cached.0.older(|_| true), None, "what began before is forgotten");
    }
}

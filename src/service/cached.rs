//! Results that take much of the database to compute.

use std::time::{Duration, Instant};

use super::Result;

/// If computing takes longer than this, the result is kept.
const CHEAP: Duration = Duration::from_secs(1);
/// A result is kept for this many times the time that it took, at most for `LONGEST`.
const KEPT: u32 = 5;
const LONGEST: Duration = Duration::from_secs(60);

/// The last result, when it was computed, and how long that took.
#[derive(Debug)]
pub struct Cached<T>(tokio::sync::Mutex<Option<(Instant, Duration, T)>>);

/// Whether a result is still used that took `cost` to compute.
fn is_fresh(cost: Duration, age: Duration) -> bool {
    cost >= CHEAP && age < (cost * KEPT).min(LONGEST)
}

impl<T> Default for Cached<T> {
    fn default() -> Self {
        Self(tokio::sync::Mutex::new(None))
    }
}

impl<T: Clone> Cached<T> {
    /// The last result, up to a minute old, if it took longer than a second; otherwise what `compute` returns. One caller
    /// computes; the others wait for its result.
    ///
    /// # Errors
    /// Those of `compute`, which are not kept.
    pub async fn get(&self, compute: impl Future<Output = Result<T>>) -> Result<T> {
        let mut last = self.0.lock().await;
        if let Some((made, cost, result)) = last.as_ref()
            && is_fresh(*cost, made.elapsed())
        {
            return Ok(result.clone());
        }
        let begun = Instant::now();
        let result = compute.await?;
        *last = Some((Instant::now(), begun.elapsed(), result.clone()));
        Ok(result)
    }

    /// Forgets the last result.
    pub async fn clear(&self) {
        *self.0.lock().await = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::ServiceError;

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
        let failed: Result<i32> = cached.get(async { Err(ServiceError::Conflict("no".into())) }).await;
        assert!(failed.is_err());
        assert_eq!(cached.get(async { Ok(7) }).await.unwrap(), 7);
        // As after a computation of an hour.
        *cached.0.lock().await = Some((Instant::now(), Duration::from_secs(3600), 8));
        assert_eq!(cached.get(async { Ok(9) }).await.unwrap(), 8);
        cached.clear().await;
        assert_eq!(cached.get(async { Ok(9) }).await.unwrap(), 9);
    }
}

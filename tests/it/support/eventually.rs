//! Waiting for what other tasks and processes do.

use std::time::{Duration, Instant};

/// Ends waits for what always comes: long enough for the slowest machine, and a test that hangs ends with a message.
pub const LONG: Duration = Duration::from_secs(300);

/// Calls `look` until it returns a value.
///
/// # Panics
/// After `deadline`, with `what` was waited for.
pub async fn eventually<T>(deadline: Duration, what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(began.elapsed() < deadline, "{what}: not after {} s", deadline.as_secs());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_wait_returns_what_it_finds() {
    let mut looked = 0;
    let found = eventually(LONG, "the third look", async || {
        looked += 1;
        (looked == 3).then_some(looked)
    });
    assert_eq!(found.await, 3);
}

#[tokio::test]
#[should_panic(expected = "never: not after 0 s")]
async fn a_wait_ends_at_its_deadline() {
    eventually(Duration::ZERO, "never", async || None::<()>).await;
}

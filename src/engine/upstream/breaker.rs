//! A circuit breaker: after several failures in a row, calls are refused for a while; then one trial call decides. Time
//! is an argument.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BreakerState {
    /// Calls pass; this many of them failed in a row.
    Closed { failures: u32 },
    /// No call passes before `until`; then one does.
    Open { until: Instant },
    /// The trial call is running.
    HalfOpen,
}

/// A circuit breaker that `threshold` failures in a row open for `pause`.
pub struct Breaker {
    state: Mutex<BreakerState>,
    threshold: u32,
    pause: Duration,
}

/// Permission for one call. Dropped without an outcome (the client left), it counts neither as a success nor as a
/// failure.
pub struct Pass {
    breaker: Arc<Breaker>,
    settled: bool,
}

impl Breaker {
    pub fn new(threshold: u32, pause: Duration) -> Self {
        Self { state: Mutex::new(BreakerState::Closed { failures: 0 }), threshold: threshold.max(1), pause }
    }

    fn state(&self) -> MutexGuard<'_, BreakerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// # Errors
    /// How long to wait, while calls do not pass.
    pub fn admit(self: &Arc<Self>, now: Instant) -> Result<Pass, Duration> {
        let mut state = self.state();
        match *state {
            BreakerState::Closed { .. } => {}
            BreakerState::Open { until } if now >= until => *state = BreakerState::HalfOpen,
            BreakerState::Open { until } => return Err(until - now),
            // When the trial ends is not known; callers may try again soon.
            BreakerState::HalfOpen => return Err(Duration::from_secs(1)),
        }
        Ok(Pass { breaker: self.clone(), settled: false })
    }

    /// How long calls will be refused; `None` when the next one passes.
    pub fn refuses_for(&self, now: Instant) -> Option<Duration> {
        match *self.state() {
            BreakerState::Open { until } if now < until => Some(until - now),
            _ => None,
        }
    }

    fn failed(&self, now: Instant) {
        let mut state = self.state();
        *state = match *state {
            BreakerState::Closed { failures } if failures + 1 < self.threshold => {
                BreakerState::Closed { failures: failures + 1 }
            }
            // A failure of a call that began before the pause does not lengthen it.
            BreakerState::Open { until } => BreakerState::Open { until },
            _ => BreakerState::Open { until: now + self.pause },
        };
    }
}

impl Pass {
    /// The server has begun to answer, so further calls are admitted before this one ends. A failure still opens the
    /// breaker.
    pub fn answered(&self) {
        let mut state = self.breaker.state();
        if *state == BreakerState::HalfOpen {
            *state = BreakerState::Closed { failures: self.breaker.threshold - 1 };
        }
    }

    pub fn succeeded(mut self) {
        self.settled = true;
        let mut state = self.breaker.state();
        // The call began before the pause, so its success says nothing about the present state.
        if !matches!(*state, BreakerState::Open { .. }) {
            *state = BreakerState::Closed { failures: 0 };
        }
    }

    pub fn failed(mut self, now: Instant) {
        self.settled = true;
        self.breaker.failed(now);
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut state = self.breaker.state();
        if !self.settled && *state == BreakerState::HalfOpen {
            // The trial ended without an outcome: the next failure opens the breaker again.
            *state = BreakerState::Closed { failures: self.breaker.threshold - 1 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: Duration = Duration::from_secs(10);

    #[test]
    fn failures_in_a_row_open_it_and_one_trial_closes_it() {
        let (breaker, t0) = (Arc::new(Breaker::new(3, PAUSE)), Instant::now());
        let at = |s| t0 + Duration::from_secs(s);
        for _ in 0..2 {
            breaker.admit(t0).expect("closed").failed(t0);
        }
        breaker.admit(t0).expect("closed").succeeded();
        for _ in 0..3 {
            assert_eq!(breaker.refuses_for(t0), None);
            breaker.admit(t0).expect("a success begins the count again").failed(t0);
        }
        assert_eq!(breaker.admit(at(4)).err(), Some(Duration::from_secs(6)));
        assert_eq!(breaker.refuses_for(at(4)), Some(Duration::from_secs(6)));
        assert_eq!(breaker.refuses_for(at(10)), None, "a probe may be sent: readiness must not wait for traffic");
        let trial = breaker.admit(at(10)).expect("the trial");
        assert!(breaker.admit(at(10)).is_err(), "one at a time");
        trial.failed(at(11));
        assert!(breaker.admit(at(20)).is_err());
        let trial = breaker.admit(at(21)).expect("the second trial");
        trial.answered();
        assert!(breaker.admit(at(21)).is_ok(), "it answers: nobody waits for the trial's end");
        trial.succeeded();
        for _ in 0..2 {
            breaker.admit(at(22)).expect("closed again").failed(at(22));
        }
        assert!(breaker.admit(at(22)).is_ok());
    }

    #[test]
    fn an_undecided_trial_blocks_nobody() {
        let (breaker, t0) = (Arc::new(Breaker::new(1, PAUSE)), Instant::now());
        breaker.admit(t0).expect("closed").failed(t0);
        drop(breaker.admit(t0 + PAUSE).expect("the trial"));
        let again = breaker.admit(t0 + PAUSE).expect("the next one tries");
        again.failed(t0 + PAUSE);
        assert!(breaker.admit(t0 + PAUSE).is_err());
    }
}

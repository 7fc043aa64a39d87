//! The lease of a training process: how long it may run without hearing from its supervisor.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Exit status of a trainer whose lease has expired. Its supervisor, if it still runs, has lost the job.
pub(super) const LEASE_EXPIRED: u8 = 75;

/// How long this process may go on. A supervisor that was stopped (or a machine that slept) does not extend the lease,
/// and another worker may then run the same job: two processes must never write the same checkpoints.
#[derive(Default)]
pub(super) struct Lease {
    /// End of the lease; `None` until the supervisor has granted one.
    until: Mutex<Option<Instant>>,
    extended: Condvar,
}

impl Lease {
    /// Extends the lease to `seconds` from now, less a tenth for the time that the message took.
    pub(super) fn extend(&self, seconds: u64) {
        let until = Instant::now() + Duration::from_millis(seconds.min(1 << 30) * 900);
        *self.until.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
        self.extended.notify_all();
    }

    /// Sleeps while there is a lease, then ends the process with `LEASE_EXPIRED`. Files that are being written are left
    /// as after a crash.
    pub(super) fn exit_at_expiry(&self) {
        let mut until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let left = until.map_or(Duration::from_secs(3600), |end| end.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                eprintln!("the lease has expired: the supervisor did not extend it in time; this process ends");
                std::process::exit(LEASE_EXPIRED.into());
            }
            until = self.extended.wait_timeout(until, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Time until the lease ends; `None` without a lease.
    #[cfg(test)]
    pub(super) fn remaining(&self) -> Option<Duration> {
        self.until.lock().unwrap_or_else(PoisonError::into_inner).map(|end| end - Instant::now())
    }
}

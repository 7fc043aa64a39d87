//! The time of day for sessions, leases and time stamps, derived from the monotonic clock. Small corrections of the
//! wall clock take effect at once, a jump only after it has persisted, so that a clock that is wrong for a moment
//! neither ends nor prolongs sessions and leases.

use std::sync::{Arc, Mutex, PoisonError};

use super::Clock;
use crate::domain::Micros;
use crate::domain::time::SECOND;

/// Corrections up to this take effect at once.
const SMALL: Micros = 5 * SECOND;
/// How long a jump must persist before it takes effect.
const LASTS: Micros = 120 * SECOND;

/// The two clocks when they were last read together.
#[derive(Clone, Copy, Debug)]
struct Steady {
    wall: Micros,
    unset: Micros,
    /// When the wall clock was first found to have jumped, by the monotonic clock.
    jumped: Option<Micros>,
}

impl Steady {
    fn read(&mut self, wall: Micros, unset: Micros) -> Micros {
        let expected = self.wall + (unset - self.unset);
        if (wall - expected).abs() > SMALL {
            let since = *self.jumped.get_or_insert(unset);
            if unset - since < LASTS {
                return expected;
            }
            tracing::warn!(
                seconds = (wall - expected) / SECOND,
                "the system's clock was set; its new time takes effect"
            );
        }
        *self = Self { wall, unset, jumped: None };
        wall
    }
}

fn wall() -> Micros {
    jiff::Timestamp::now().as_microsecond()
}

/// µs since the machine started, the time in which it slept included.
fn since_start() -> Micros {
    #[cfg(target_os = "linux")]
    const CLOCK: libc::clockid_t = libc::CLOCK_BOOTTIME;
    #[cfg(not(target_os = "linux"))]
    const CLOCK: libc::clockid_t = libc::CLOCK_MONOTONIC;
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a valid structure of our own, which the call fills.
    if unsafe { libc::clock_gettime(CLOCK, &raw mut now) } != 0 {
        // Without such a clock, the wall clock is compared with itself and never jumps.
        return wall();
    }
    now.tv_sec as Micros * SECOND + now.tv_nsec as Micros / 1000
}

/// The time of day, µs UTC.
pub fn system_clock() -> Clock {
    let steady = Mutex::new(Steady { wall: wall(), unset: since_start(), jumped: None });
    Arc::new(move || steady.lock().unwrap_or_else(PoisonError::into_inner).read(wall(), since_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const YEAR: Micros = 365 * 86_400 * SECOND;

    #[test]
    fn a_jump_of_the_wall_clock_changes_nothing_until_it_has_lasted() {
        let mut clock = Steady { wall: 1000 * SECOND, unset: 0, jumped: None };
        assert_eq!(clock.read(1010 * SECOND, 10 * SECOND), 1010 * SECOND);
        assert_eq!(clock.read(1022 * SECOND, 20 * SECOND), 1022 * SECOND, "a small correction is followed");
        for jump in [10 * YEAR, -10 * YEAR] {
            assert_eq!(clock.read(1032 * SECOND + jump, 30 * SECOND), 1032 * SECOND);
        }
        assert_eq!(clock.read(1042 * SECOND, 40 * SECOND), 1042 * SECOND, "right again");
        assert_eq!(clock.read(1052 * SECOND + YEAR, 50 * SECOND), 1052 * SECOND);
        assert_eq!(clock.read(1162 * SECOND + YEAR, 160 * SECOND), 1162 * SECOND);
        assert_eq!(clock.read(1172 * SECOND + YEAR, 170 * SECOND), 1172 * SECOND + YEAR, "it has lasted");
        assert_eq!(clock.read(1173 * SECOND + YEAR, 171 * SECOND), 1173 * SECOND + YEAR);
    }

    #[test]
    fn the_clock_that_nobody_sets_goes_on() {
        let (before, clock) = (since_start(), system_clock());
        std::thread::sleep(std::time::Duration::from_millis(5));
        assert!(since_start() - before >= 5000);
        assert!((clock() - wall()).abs() < SECOND);
    }
}

//! Points and spans of time in microseconds, and saturating arithmetic on them, so that no number of days from a
//! request or a setting overflows.

/// Microseconds since the Unix epoch (UTC), or a span of them.
pub type Micros = i64;

pub const SECOND: Micros = 1_000_000;
pub const MINUTE: Micros = 60 * SECOND;
pub const HOUR: Micros = 60 * MINUTE;
pub const DAY: Micros = 24 * HOUR;

/// `count` units after `at`, at most `i64::MAX`.
pub fn after(at: Micros, count: impl Into<i64>, unit: Micros) -> Micros {
    at.saturating_add(count.into().saturating_mul(unit))
}

/// `count` units before `at`, at least `i64::MIN`.
pub fn before(at: Micros, count: impl Into<i64>, unit: Micros) -> Micros {
    at.saturating_sub(count.into().saturating_mul(unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_count_gives_a_point_in_time() {
        assert_eq!(before(3 * DAY, 2u32, DAY), DAY);
        assert_eq!(after(DAY, 2u32, HOUR), DAY + 2 * HOUR);
        for count in [i64::MIN, i64::MAX, 1_360_920_462] {
            assert!(before(DAY, count, DAY) <= DAY || count < 0);
            assert!(after(DAY, count, DAY) >= DAY || count < 0);
        }
    }
}

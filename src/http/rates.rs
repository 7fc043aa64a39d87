//! Rate limits of callers: by key or person, or by address for callers with neither. Wrong keys are counted in
//! `guesses`.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

use super::access::Access;
use super::error::{ApiError, ApiResult};
use super::guesses::Guesses;
use super::peer::network;
use crate::config::RatesConfig;
use crate::service::people::Actor;

/// Checks between two removals of idle callers.
const CLEAR_EVERY: u32 = 1024;

struct Limit {
    limiter: DefaultKeyedRateLimiter<String>,
    checks: AtomicU32,
}

impl Limit {
    /// `None` = any number.
    fn per_minute(n: u32) -> Option<Self> {
        let quota = Quota::per_minute(NonZeroU32::new(n)?);
        Some(Self { limiter: RateLimiter::keyed(quota), checks: AtomicU32::new(0) })
    }

    fn check(&self, who: &str) -> ApiResult<()> {
        // Idle callers are removed from memory.
        if self.checks.fetch_add(1, Relaxed) % CLEAR_EVERY == CLEAR_EVERY - 1 {
            self.limiter.retain_recent();
            self.limiter.shrink_to_fit();
        }
        self.limiter.check_key(&who.to_owned()).map_err(|not_until| {
            let wait = not_until.wait_time_from(DefaultClock::default().now());
            ApiError::too_many(
                "too many requests; wait for the time in Retry-After",
                "rate_limited",
                wait.as_secs() + 1,
            )
        })
    }
}

/// The rate limits of this process; each server counts for itself.
pub struct Rates {
    pub guesses: Guesses,
    inference: Option<Limit>,
    feedback: Option<Limit>,
}

impl Rates {
    pub fn new(config: &RatesConfig) -> Self {
        Self {
            guesses: Guesses::new(config.login_per_minute),
            inference: Limit::per_minute(config.inference_per_minute),
            feedback: Limit::per_minute(config.feedback_per_minute),
        }
    }

    /// # Errors
    /// 429 with `Retry-After`.
    pub fn check(&self, access: Access, actor: Option<&Actor>, from: Option<IpAddr>) -> ApiResult<()> {
        let limit = match access {
            Access::Inference | Access::Keyed => &self.inference,
            Access::Feedback | Access::Review => &self.feedback,
            Access::Public | Access::Admin => return Ok(()),
        };
        let Some(limit) = limit else { return Ok(()) };
        match (actor, from) {
            (Some(actor), _) if actor.is_admin() => Ok(()),
            (Some(actor), _) => limit.check(&actor.credential),
            (None, Some(from)) => limit.check(&network(from)),
            (None, None) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_who_left_are_forgotten() {
        let limit = Limit::per_minute(60_000).expect("limit");
        for i in 0..20 * CLEAR_EVERY {
            limit.check(&format!("ip{i}")).expect("first time");
        }
        assert!(limit.limiter.len() < 20 * CLEAR_EVERY as usize, "{}", limit.limiter.len());
    }
}

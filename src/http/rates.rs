//! How often one caller may ask: by key or person, or by address for those who have neither. Wrong
//! keys are counted in `guesses`.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use axum::extract::FromRequestParts;
use axum::http::HeaderMap;
use axum::http::request::Parts;
use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

use super::auth::Access;
use super::error::{ApiError, ApiResult};
use super::guesses::Guesses;
use crate::config::RatesConfig;
use crate::service::people::Actor;

/// Checks between two clearings of callers that have not asked for a while.
const CLEAR_EVERY: u32 = 1024;

/// The other end of the connection; put there by whoever accepts connections.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub IpAddr);

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
        // Callers who came once must not stay in memory for ever.
        if self.checks.fetch_add(1, Relaxed) % CLEAR_EVERY == CLEAR_EVERY - 1 {
            self.limiter.retain_recent();
            self.limiter.shrink_to_fit();
        }
        self.limiter.check_key(&who.to_owned()).map_err(|not_until| {
            let wait = not_until.wait_time_from(DefaultClock::default().now());
            ApiError::too_many("too many requests; wait a little", "rate_limited", wait.as_secs() + 1)
        })
    }
}

/// The limits of this process; servers behind one address count for themselves.
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

/// An address as one caller: of IPv6 the /64, which one household or machine has to itself.
pub(super) fn network(address: IpAddr) -> String {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).to_string()
        }
    }
}

/// Where the request comes from: the connection, or what the configured proxy header says last.
pub fn client_address(headers: &HeaderMap, peer: Option<&Peer>, header: Option<&str>) -> Option<IpAddr> {
    let named = header.and_then(|name| {
        let line = headers.get_all(name).iter().next_back()?.to_str().ok()?;
        line.rsplit(',').next()?.trim().parse().ok()
    });
    named.or(peer.map(|p| p.0))
}

/// The request's origin for handlers.
pub struct ClientAddress(pub Option<IpAddr>);

impl FromRequestParts<super::AppState> for ClientAddress {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &super::AppState) -> Result<Self, Self::Rejection> {
        let header = state.services.config.server.client_address_header.as_deref();
        Ok(Self(client_address(&parts.headers, parts.extensions.get(), header)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_counted_as_their_networks() {
        let of = |text: &str| network(text.parse().expect("an address"));
        assert_eq!(of("::ffff:10.1.2.3"), of("10.1.2.3"));
        assert_eq!(of("2001:db8:1:2:3::4"), of("2001:db8:1:2:ffff::1"));
        assert_ne!(of("2001:db8:1:2::"), of("2001:db8:1:3::"));
    }

    #[test]
    fn only_the_configured_header_is_believed() {
        let mut headers = HeaderMap::new();
        headers.append("x-forwarded-for", "1.1.1.1, 2.2.2.2".parse().expect("value"));
        let peer = Peer("9.9.9.9".parse().expect("address"));
        let from = |header| client_address(&headers, Some(&peer), header).expect("known").to_string();
        assert_eq!(from(None), "9.9.9.9");
        assert_eq!(from(Some("x-forwarded-for")), "2.2.2.2", "the entry that our own proxy wrote");
        assert_eq!(from(Some("x-real-ip")), "9.9.9.9");
    }

    #[test]
    fn callers_who_left_are_forgotten() {
        let limit = Limit::per_minute(60_000).expect("limit");
        for i in 0..20 * CLEAR_EVERY {
            limit.check(&format!("ip{i}")).expect("first time");
        }
        assert!(limit.limiter.len() < 20 * CLEAR_EVERY as usize, "{}", limit.limiter.len());
    }
}

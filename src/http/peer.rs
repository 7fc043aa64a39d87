//! The client's address of a request.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv6Addr};

use axum::extract::FromRequestParts;
use axum::http::HeaderMap;
use axum::http::request::Parts;

/// The client's address of the connection, set when it is accepted.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub IpAddr);

/// The address by which a caller is counted: of IPv6 the /64, which belongs to one household or machine.
pub(super) fn network(address: IpAddr) -> String {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).to_string()
        }
    }
}

/// The client's address: of the connection, or the last entry of the configured proxy header.
pub fn client_address(headers: &HeaderMap, peer: Option<&Peer>, header: Option<&str>) -> Option<IpAddr> {
    let named = header.and_then(|name| {
        let line = headers.get_all(name).iter().next_back()?.to_str().ok()?;
        line.rsplit(',').next()?.trim().parse().ok()
    });
    named.or(peer.map(|p| p.0))
}

/// The client's address, for handlers.
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
}

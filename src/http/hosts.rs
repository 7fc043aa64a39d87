//! Check of the `Host` header against DNS rebinding: another site's page can resolve its own name to this machine's
//! loopback address and read a loopback server's responses; its requests have that name.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::error::ApiError;

/// The accepted names; without a list, a server that others can reach accepts any.
#[derive(Clone, Debug)]
pub struct Hosts {
    named: Arc<[String]>,
    checked: bool,
}

impl Hosts {
    pub fn new(listen: SocketAddr, named: &[String]) -> Self {
        let named: Arc<[String]> = named.iter().map(|name| name.trim().to_ascii_lowercase()).collect();
        Self { checked: listen.ip().to_canonical().is_loopback() || !named.is_empty(), named }
    }

    fn takes(&self, host: &str) -> bool {
        let name = name_of(host).to_ascii_lowercase();
        let name = name.strip_suffix('.').unwrap_or(&name);
        if !self.checked || name == "localhost" || name.ends_with(".localhost") {
            return true;
        }
        let own = |ip: IpAddr| ip.to_canonical().is_loopback();
        name.parse::<IpAddr>().is_ok_and(own) || self.named.iter().any(|n| n == name || n == host)
    }
}

/// A host without its port and without the brackets of an IPv6 address.
fn name_of(host: &str) -> &str {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split(']').next().unwrap_or(rest);
    }
    match host.rsplit_once(':') {
        Some((name, port)) if !name.contains(':') && port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    }
}

/// Refuses requests that name another host.
pub async fn check(State(hosts): State<Hosts>, request: Request, next: Next) -> Response {
    let header = request.headers().get(header::HOST).map(|v| v.to_str().unwrap_or("?"));
    // HTTP/2 has the host in the URI; a request without a host does not come from a browser.
    let host = request.uri().authority().map(|a| a.as_str()).or(header);
    match host {
        Some(host) if !hosts.takes(host) => {
            let message = "this server does not answer to the host of this request; its operator can add the name \
                           to server.hosts";
            let error = ApiError::new(StatusCode::MISDIRECTED_REQUEST, message).code("unknown_host");
            ApiError { param: Some("host".to_owned()), ..error }.into_response()
        }
        _ => next.run(request).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loopback_server_answers_to_loopback_names_and_those_it_was_given() {
        let here = Hosts::new("127.0.0.1:8080".parse().unwrap(), &["Rank.example".into()]);
        for host in [
            "127.0.0.1",
            "127.0.0.1:8080",
            "localhost:8080",
            "LOCALHOST",
            "[::1]:8080",
            "[::1]",
            "x.localhost",
            "127.8.8.8",
            "localhost.",
            "rank.example",
            "rank.example:443",
        ] {
            assert!(here.takes(host), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:8080",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "10.0.0.1",
            "127.0.0.1@evil.example",
            "",
            "?",
        ] {
            assert!(!here.takes(host), "{host}");
        }
        let open = Hosts::new("0.0.0.0:8080".parse().unwrap(), &[]);
        assert!(open.takes("anything.example"));
        let named = Hosts::new("0.0.0.0:8080".parse().unwrap(), &["rank.example".into()]);
        assert!(named.takes("rank.example") && !named.takes("other.example") && named.takes("127.0.0.1:8080"));
    }
}

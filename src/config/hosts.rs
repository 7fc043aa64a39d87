//! The format of hosts in settings.

/// `HOST` or `HOST:PORT`, an IPv6 address in brackets where a port follows. An entry in another format would never match.
pub fn is_host(text: &str) -> bool {
    if text.parse::<std::net::IpAddr>().is_ok() {
        return true;
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    let is_name = |host: &str| {
        !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'*'))
    };
    let bracketed = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let named = bracketed.map_or_else(|| is_name(host), |ip| ip.parse::<std::net::Ipv6Addr>().is_ok());
    named && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

/// Whether the list has the host, alone (any port) or with this port.
pub fn is_listed(hosts: &[String], host: &str, port: u16) -> bool {
    let with_port = format!("{host}:{port}");
    hosts.iter().any(|listed| *listed == host || *listed == with_port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_have_no_scheme_and_no_path() {
        for right in ["example.org", "example.org:8080", "10.0.0.1", "::1", "[::1]:80", "localhost", "a_b-c"] {
            assert!(is_host(right), "{right}");
        }
        for wrong in ["", "https://example.org", "example.org/score", "example.org:0", "example.org:x", "a b", "[::1"] {
            assert!(!is_host(wrong), "{wrong}");
        }
    }
}

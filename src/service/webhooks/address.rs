//! Which addresses webhooks may call. An administrator could otherwise make the server send requests to machines that
//! only it can reach (server-side request forgery).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use crate::config::is_listed;

/// The URL of a webhook, if it may be called: any URL of a listed host, or https at a public address. The addresses of
/// a name are checked when it is called, by [`PublicOnly`].
///
/// # Errors
/// Why it may not be called.
pub fn check(url: &str, hosts: &[String]) -> Result<Url, String> {
    let parsed = Url::parse(url).map_err(|e| format!("'{url}' is not a URL: {e}"))?;
    if !matches!(parsed.scheme(), "http" | "https") {
        return Err(format!("'{url}' must begin with https://"));
    }
    if !parsed.username().is_empty() || parsed.password().is_some() {
        return Err("the URL must not hold a user name or password".to_owned());
    }
    if is_known(&parsed, hosts) {
        return Ok(parsed);
    }
    let host = parsed.host_str().unwrap_or_default();
    let allow = format!("the operator can allow it by adding {host} to webhooks.hosts in config.toml");
    if parsed.scheme() != "https" {
        return Err(format!("'{url}' is plain HTTP: use https; {allow}"));
    }
    match host.trim_start_matches('[').trim_end_matches(']').parse() {
        Ok(ip) if !is_public(ip) => Err(format!("{ip} is not a public address; {allow}")),
        _ => Ok(parsed),
    }
}

/// Whether the URL's host is listed in `webhooks.hosts`, so that it may have any address.
pub fn is_known(url: &Url, hosts: &[String]) -> bool {
    is_listed(hosts, url.host_str().unwrap_or_default(), url.port_or_known_default().unwrap_or_default())
}

/// Resolves names to public addresses only. A connection uses the addresses that were checked.
#[derive(Debug)]
pub struct PublicOnly;

impl Resolve for PublicOnly {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            if let Some(private) = found.iter().find(|address| !is_public(address.ip())) {
                let message = format!(
                    "{} has the address {}, which is not public; add the host to webhooks.hosts to allow it",
                    name.as_str(),
                    private.ip()
                );
                return Err(message.into());
            }
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

/// Whether an address is one of the public internet: not of this machine, a private or special network, a group, or a
/// tunnel to one of these.
fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    let special = ip.is_unspecified()
        || ip.is_loopback()
        || ip.is_private()
        || ip.is_link_local()
        || ip.is_multicast()
        || ip.is_documentation()
        || a == 0
        || a >= 240
        // Shared by carriers; assignments of protocols; relays of 6to4; tests of networks.
        || (a == 100 && (64..128).contains(&b))
        || (a == 192 && b == 0 && c == 0)
        || (a == 192 && b == 88 && c == 99)
        || (a == 198 && (18..20).contains(&b));
    !special
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    let [a, b, c, d, e, f, g, h] = ip.segments();
    let embedded = |high: u16, low: u16| {
        let ([p, q], [r, s]) = (high.to_be_bytes(), low.to_be_bytes());
        is_public_v4(Ipv4Addr::new(p, q, r, s))
    };
    match (a, b) {
        // Mapped addresses of IPv4, and translated ones (RFC 6052).
        (0, 0) if (c, d, e) == (0, 0, 0) && f == 0xffff => embedded(g, h),
        (0x64, 0xff9b) if (c, d, e, f) == (0, 0, 0, 0) => embedded(g, h),
        // 6to4.
        (0x2002, _) => embedded(b, c),
        // Teredo and other assignments of protocols; documentation.
        (0x2001, 0..0x200) | (0x2001, 0xdb8) => false,
        (0x3fff, 0..0x1000) => false,
        // Global unicast.
        _ => a & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_the_internet_are_public() {
        for public in ["1.1.1.1", "8.8.8.8", "172.32.0.1", "100.128.0.1", "198.20.0.1", "2606:4700::1111", "2a00::1"] {
            assert!(is_public(public.parse().expect("an address")), "{public}");
        }
        for private in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "127.0.0.1",
            "127.8.8.8",
            "169.254.169.254",
            "172.16.0.1",
            "192.0.0.8",
            "192.168.1.1",
            "198.18.0.1",
            "203.0.113.5",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::7f00:1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::a00:1",
            "2002:7f00:1::",
            "2001::1",
            "2001:db8::1",
            "fc00::1",
            "fd12::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "3fff::1",
        ] {
            assert!(!is_public(private.parse().expect("an address")), "{private}");
        }
    }

    #[test]
    fn plain_http_and_private_addresses_are_for_listed_hosts() {
        let hosts = ["hooks.internal".to_owned(), "127.0.0.1:9000".to_owned()];
        for url in [
            "https://example.org/hook",
            "https://example.org:8443/hook?x=1",
            "http://hooks.internal/a",
            "http://hooks.internal:81/a",
            "http://127.0.0.1:9000/x",
            "https://1.1.1.1/",
        ] {
            check(url, &hosts).expect(url);
        }
        for url in [
            "http://example.org/hook",
            "http://127.0.0.1:9001/",
            "https://127.0.0.1/",
            "https://127.1/",
            "https://0x7f.0.0.1/",
            "https://2130706433/",
            "https://[::1]/",
            "https://[::ffff:169.254.169.254]/latest",
            "https://169.254.169.254/latest",
            "http://hooks.internal.evil/",
            "http://hooks.internal@evil/",
            "https://user:word@example.org/",
            "ftp://example.org/",
            "file:///etc/passwd",
            "example.org",
            "",
        ] {
            assert!(check(url, &hosts).is_err(), "{url}");
        }
    }

    #[tokio::test]
    async fn names_of_this_machine_are_not_called() {
        let client = reqwest::Client::builder()
            .no_proxy()
            .dns_resolver(std::sync::Arc::new(PublicOnly))
            .build()
            .expect("a client");
        let error = client.post("https://localhost:1/").send().await.expect_err("refused");
        assert!(format!("{:#}", anyhow::Error::new(error)).contains("not public"));
    }
}

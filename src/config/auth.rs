//! Sign-in by a reverse proxy that authenticates people, or by an OpenID Connect provider.

use std::collections::BTreeMap;
use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::oidc::OidcConfig;
use super::text::optional_text;
use super::{ConfigError, error};

/// The roles that groups may give, from the lowest to the highest.
const ROLES: [&str; 3] = ["labeler", "reviewer", "admin"];

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AuthConfig {
    /// The header in which a reverse proxy names the person that it has authenticated, such as `x-forwarded-user`. It
    /// counts in requests that come from `proxies`, and is ignored in others.
    #[serde(deserialize_with = "optional_text")]
    pub trusted_header: Option<String>,
    /// The header with the name that pages show for a new person; `None` = the value of `trusted_header`.
    #[serde(deserialize_with = "optional_text")]
    pub name_header: Option<String>,
    /// The header with the person's groups, separated by commas; they give the role by `roles` at every request.
    /// `None` = administrators give roles on the page.
    #[serde(deserialize_with = "optional_text")]
    pub groups_header: Option<String>,
    /// Addresses of the proxy: IP addresses, or networks such as `10.1.0.0/16`.
    pub proxies: Vec<String>,
    /// The role of each group: `labeler`, `reviewer` or `admin`. People without any of these groups are labelers.
    pub roles: BTreeMap<String, String>,
    /// An OpenID Connect provider that people sign in at: `issuer`, `client_id`, `client_secret`, `public_url`, `name`,
    /// `scopes` and `role_claim`.
    pub oidc: OidcConfig,
}

impl AuthConfig {
    /// Whether a connection from this address comes from the proxy.
    pub fn is_proxy(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.proxies.iter().filter_map(|text| network(text)).any(|(base, bits)| is_within(address, base, bits))
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        self.oidc.check()?;
        for (key, header) in [
            ("auth.trusted_header", &self.trusted_header),
            ("auth.name_header", &self.name_header),
            ("auth.groups_header", &self.groups_header),
        ] {
            let Some(header) = header else { continue };
            if header.is_empty() || !header.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_')) {
                return Err(error(key, format!("'{header}' is not the name of a header")));
            }
            if ["authorization", "cookie", "host"].contains(&header.to_ascii_lowercase().as_str()) {
                return Err(error(
                    key,
                    format!("'{header}' has another meaning; use a header that only the proxy sets"),
                ));
            }
            if self.trusted_header.is_none() {
                return Err(error(key, "needs auth.trusted_header"));
            }
        }
        if let Some(wrong) = self.proxies.iter().find(|text| network(text).is_none()) {
            return Err(error(
                "auth.proxies",
                format!("'{wrong}' is not an IP address or a network such as 10.1.0.0/16"),
            ));
        }
        if self.trusted_header.is_some() && self.proxies.is_empty() {
            return Err(error("auth.proxies", "must name the proxy's address: others could write the trusted header"));
        }
        if let Some((group, role)) = self.roles.iter().find(|(_, role)| !ROLES.contains(&role.as_str())) {
            let message = format!("{group} = '{role}' is not a role; use one of {}", ROLES.join(", "));
            return Err(error("auth.roles", message));
        }
        if self.groups_header.is_some() && self.roles.is_empty() {
            return Err(error("auth.roles", "must give a role to at least one group of auth.groups_header"));
        }
        if self.oidc.role_claim.is_some() && self.roles.is_empty() {
            return Err(error("auth.roles", "must give a role to at least one value of auth.oidc.role_claim"));
        }
        Ok(())
    }
}

/// Base address and number of fixed bits of `ADDRESS` or `ADDRESS/BITS`.
fn network(text: &str) -> Option<(IpAddr, u32)> {
    let (address, bits) = match text.split_once('/') {
        Some((address, bits)) => (address, Some(bits.parse().ok()?)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().ok()?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let bits = bits.unwrap_or(most);
    (bits <= most).then_some((address, bits))
}

fn is_within(address: IpAddr, base: IpAddr, bits: u32) -> bool {
    let same = |a: u128, b: u128, width: u32| bits == 0 || (a ^ b) >> (width - bits) == 0;
    match (address, base) {
        (IpAddr::V4(a), IpAddr::V4(b)) => same(a.to_bits().into(), b.to_bits().into(), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => same(a.to_bits(), b.to_bits(), 128),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_are_addresses_and_networks() {
        let proxies = ["10.1.0.0/16", "192.0.2.7", "2001:db8::/32", "::1"].map(str::to_owned).to_vec();
        let config = AuthConfig { proxies, ..AuthConfig::default() };
        let is_proxy = |text: &str| config.is_proxy(text.parse().expect("an address"));
        for inside in ["10.1.2.3", "::ffff:10.1.2.3", "192.0.2.7", "2001:db8:ffff::1", "::1"] {
            assert!(is_proxy(inside), "{inside}");
        }
        for outside in ["10.2.0.0", "192.0.2.8", "127.0.0.1", "2001:db9::1", "::2"] {
            assert!(!is_proxy(outside), "{outside}");
        }
        let all = AuthConfig { proxies: vec!["0.0.0.0/0".to_owned()], ..AuthConfig::default() };
        assert!(all.is_proxy("8.8.8.8".parse().expect("an address")));
        assert!(!AuthConfig::default().is_proxy("127.0.0.1".parse().expect("an address")));
    }

    #[test]
    fn settings_that_would_trust_anybody_are_refused() {
        let one = |change: fn(&mut AuthConfig)| {
            let mut config = AuthConfig {
                trusted_header: Some("x-forwarded-user".to_owned()),
                groups_header: Some("x-forwarded-groups".to_owned()),
                proxies: vec!["127.0.0.1".to_owned()],
                roles: [("ops".to_owned(), "admin".to_owned())].into(),
                ..AuthConfig::default()
            };
            change(&mut config);
            config.check()
        };
        one(|_| {}).expect("fine");
        AuthConfig::default().check().expect("fine");
        let refused = |change| one(change).expect_err("refused").key;
        assert_eq!(refused(|c| c.proxies.clear()), "auth.proxies");
        assert_eq!(refused(|c| c.proxies.push("proxy.internal".to_owned())), "auth.proxies");
        assert_eq!(refused(|c| c.proxies.push("10.0.0.0/33".to_owned())), "auth.proxies");
        assert_eq!(refused(|c| c.trusted_header = None), "auth.groups_header");
        assert_eq!(refused(|c| c.trusted_header = Some("a b".to_owned())), "auth.trusted_header");
        assert_eq!(refused(|c| c.trusted_header = Some("Cookie".to_owned())), "auth.trusted_header");
        assert_eq!(refused(|c| c.roles.clear()), "auth.roles");
        assert_eq!(refused(|c| c.roles = [("ops".to_owned(), "root".to_owned())].into()), "auth.roles");
    }
}

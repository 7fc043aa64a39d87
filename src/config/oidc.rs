//! `[auth.oidc]`: sign-in by an OpenID Connect provider.

use std::path::PathBuf;

use reqwest::Url;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::text::optional_text;
use super::{ConfigError, error};

/// Path that the provider sends browsers back to.
pub const CALLBACK: &str = "/session/oidc/callback";

/// An OpenID Connect provider and this server's registration as its client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OidcConfig {
    /// The provider's issuer, such as `https://login.example.org/realms/team`; `None` = no sign-in by a provider.
    #[serde(deserialize_with = "optional_text")]
    pub issuer: Option<String>,
    /// The name of this server at the provider.
    #[serde(deserialize_with = "optional_text")]
    pub client_id: Option<String>,
    /// The password of this server at the provider; `None` for a public client.
    #[serde(deserialize_with = "optional_text")]
    pub client_secret: Option<String>,
    /// A file that holds the client secret instead.
    pub client_secret_file: Option<PathBuf>,
    /// The address of this server in browsers, such as `https://instructd.example.org`.
    #[serde(deserialize_with = "optional_text")]
    pub public_url: Option<String>,
    /// The provider's name on the sign-in page; `None` = a general text.
    #[serde(deserialize_with = "optional_text")]
    pub name: Option<String>,
    /// Scopes that are requested; `openid` is required.
    pub scopes: Vec<String>,
    /// The claim of the ID token with the person's groups or roles, such as `groups` or `realm_access.roles`.
    #[serde(deserialize_with = "optional_text")]
    pub role_claim: Option<String>,
}

impl Default for OidcConfig {
    fn default() -> Self {
        Self {
            issuer: None,
            client_id: None,
            client_secret: None,
            client_secret_file: None,
            public_url: None,
            name: None,
            scopes: ["openid", "profile", "email"].map(str::to_owned).to_vec(),
            role_claim: None,
        }
    }
}

impl OidcConfig {
    /// The address that the provider sends browsers back to; `None` without `public_url`.
    pub fn redirect_uri(&self) -> Option<String> {
        Some(format!("{}{CALLBACK}", self.public_url.as_ref()?.trim_end_matches('/')))
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let Some(issuer) = &self.issuer else {
            let others = [&self.client_id, &self.client_secret, &self.public_url, &self.name, &self.role_claim];
            let is_alone = others.iter().all(|value| value.is_none()) && self.client_secret_file.is_none();
            return if is_alone { Ok(()) } else { Err(error("auth.oidc.issuer", "is missing: name the provider")) };
        };
        for (key, value) in [("auth.oidc.issuer", Some(issuer)), ("auth.oidc.public_url", self.public_url.as_ref())] {
            let Some(text) = value else { return Err(error(key, "is missing")) };
            let url = Url::parse(text).ok().filter(is_confidential);
            let Some(url) = url else {
                return Err(error(key, format!("'{text}' must begin with https:// (http:// only for this machine)")));
            };
            if url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() {
                return Err(error(key, format!("'{text}' must have no query, fragment or user name")));
            }
        }
        if self.client_id.is_none() {
            return Err(error("auth.oidc.client_id", "is missing: register this server at the provider"));
        }
        if self.client_secret.is_some() && self.client_secret_file.is_some() {
            return Err(error("auth.oidc.client_secret_file", "and auth.oidc.client_secret cannot be given together"));
        }
        if !self.scopes.iter().any(|scope| scope == "openid") {
            return Err(error("auth.oidc.scopes", "must contain openid"));
        }
        let is_scope = |scope: &String| !scope.is_empty() && scope.bytes().all(|b| b.is_ascii_graphic());
        if let Some(wrong) = self.scopes.iter().find(|scope| !is_scope(scope)) {
            return Err(error("auth.oidc.scopes", format!("'{wrong}' is not a scope: use visible ASCII characters")));
        }
        Ok(())
    }
}

/// Whether what is sent to this URL is read by nobody on the way: https, or http on this machine.
pub fn is_confidential(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let is_loopback = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    !host.is_empty() && (url.scheme() == "https" || (url.scheme() == "http" && is_loopback))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(change: impl FnOnce(&mut OidcConfig)) -> Result<(), ConfigError> {
        let mut config = OidcConfig {
            issuer: Some("https://login.example.org/realms/team".to_owned()),
            client_id: Some("instructd".to_owned()),
            public_url: Some("https://instructd.example.org/".to_owned()),
            ..OidcConfig::default()
        };
        change(&mut config);
        config.check()
    }

    #[test]
    fn settings_that_cannot_work_are_named() {
        one(|_| {}).expect("fine");
        one(|c| c.issuer = Some("http://localhost:8080".to_owned())).expect("fine");
        one(|c| c.public_url = Some("http://127.0.0.1:9000".to_owned())).expect("fine");
        OidcConfig::default().check().expect("fine");
        let refused = |change: fn(&mut OidcConfig)| one(change).expect_err("refused").key;
        assert_eq!(refused(|c| c.issuer = None), "auth.oidc.issuer");
        assert_eq!(refused(|c| c.issuer = Some("http://login.example.org".to_owned())), "auth.oidc.issuer");
        assert_eq!(refused(|c| c.issuer = Some("http://localhost.example.org".to_owned())), "auth.oidc.issuer");
        assert_eq!(refused(|c| c.issuer = Some("https://a@b/".to_owned())), "auth.oidc.issuer");
        assert_eq!(refused(|c| c.public_url = None), "auth.oidc.public_url");
        assert_eq!(refused(|c| c.public_url = Some("https://a/?x=1".to_owned())), "auth.oidc.public_url");
        assert_eq!(refused(|c| c.client_id = None), "auth.oidc.client_id");
        assert_eq!(refused(|c| c.scopes = vec!["email".to_owned()]), "auth.oidc.scopes");
        assert_eq!(refused(|c| c.scopes.push("a b".to_owned())), "auth.oidc.scopes");
        let both = |c: &mut OidcConfig| {
            c.client_secret = Some("x".to_owned());
            c.client_secret_file = Some("x".into());
        };
        assert_eq!(refused(both), "auth.oidc.client_secret_file");
    }

    #[test]
    fn the_redirect_address_is_below_the_public_address() {
        let mut config = OidcConfig::default();
        assert_eq!(config.redirect_uri(), None);
        config.public_url = Some("https://example.org/".to_owned());
        assert_eq!(config.redirect_uri().as_deref(), Some("https://example.org/session/oidc/callback"));
    }
}

//! The person whom a reverse proxy has authenticated, by the header of `auth.trusted_header`. Only connections from
//! the addresses in `auth.proxies` are believed.

use axum::http::HeaderMap;

use super::AppState;
use super::error::{ApiError, ApiResult};
use super::peer::Peer;
use crate::config::AuthConfig;
use crate::domain::Role;
use crate::service::access::Actor;
use crate::service::identity::{self, Claims};

/// Longest value of a header, bytes.
const LONGEST: usize = 200;

/// The person whom the proxy names; `None` when it names nobody, and for requests that do not come from it.
///
/// # Errors
/// 400 for a header that is sent twice or is not a name; 403 for a person who was locked out.
pub(super) async fn caller(state: &AppState, headers: &HeaderMap, peer: Option<&Peer>) -> ApiResult<Option<Actor>> {
    let services = &state.services;
    match claims(&services.config.auth, headers, peer)? {
        Some(claims) => Ok(Some(identity::by_claims(services, claims).await?)),
        None => Ok(None),
    }
}

fn claims(config: &AuthConfig, headers: &HeaderMap, peer: Option<&Peer>) -> ApiResult<Option<Claims>> {
    let Some(trusted) = &config.trusted_header else { return Ok(None) };
    // The address of the connection: the client's address may be in a header that clients write.
    if !peer.is_some_and(|peer| config.is_proxy(peer.0)) {
        return Ok(None);
    }
    let Some(subject) = single(headers, trusted)? else { return Ok(None) };
    let name = match &config.name_header {
        Some(header) => single(headers, header)?,
        None => None,
    };
    let role = config.groups_header.as_ref().map(|header| role(config, headers, header));
    Ok(Some(Claims { subject, name, role }))
}

/// The value of a header that is sent at most once; `None` when it is absent or empty.
fn single(headers: &HeaderMap, name: &str) -> ApiResult<Option<String>> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        // One of them may be a client's.
        return Err(ApiError::bad(name, "is sent more than once; the proxy must replace what clients send"));
    }
    let text = std::str::from_utf8(value.as_bytes()).ok().map(str::trim);
    match text {
        Some("") => Ok(None),
        Some(text) if text.len() <= LONGEST && !text.chars().any(char::is_control) => Ok(Some(text.to_owned())),
        _ => Err(ApiError::bad(name, format!("must be UTF-8 text of at most {LONGEST} bytes"))),
    }
}

/// The highest role that the groups of the header give; `Labeler` when none gives one.
fn role(config: &AuthConfig, headers: &HeaderMap, header: &str) -> Role {
    let lines = headers.get_all(header).iter().filter_map(|value| std::str::from_utf8(value.as_bytes()).ok());
    identity::role_of(config, lines.flat_map(|line| line.split(',')).map(str::trim))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> AuthConfig {
        AuthConfig {
            trusted_header: Some("x-forwarded-user".to_owned()),
            name_header: Some("x-forwarded-name".to_owned()),
            groups_header: Some("x-forwarded-groups".to_owned()),
            proxies: vec!["10.0.0.1".to_owned()],
            roles: [("ops", "admin"), ("qa", "reviewer")].map(|(g, r)| (g.to_owned(), r.to_owned())).into(),
            ..AuthConfig::default()
        }
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().expect("a value"));
        }
        headers
    }

    fn peer(address: &str) -> Peer {
        Peer(address.parse().expect("an address"))
    }

    #[test]
    fn only_the_proxy_is_believed() {
        let sent = headers(&[("x-forwarded-user", "ada@example.org"), ("x-forwarded-name", "Ada")]);
        let from = |peer: Option<&Peer>| claims(&config(), &sent, peer).expect("no error");
        let found = from(Some(&peer("10.0.0.1"))).expect("claims");
        assert_eq!((found.subject.as_str(), found.name.as_deref()), ("ada@example.org", Some("Ada")));
        assert_eq!(from(Some(&peer("10.0.0.2"))), None);
        assert_eq!(from(None), None);
        let off = AuthConfig { trusted_header: None, ..config() };
        assert_eq!(claims(&off, &sent, Some(&peer("10.0.0.1"))).expect("no error"), None);
    }

    #[test]
    fn headers_are_sent_once() {
        let of = |pairs: &[(&'static str, &str)]| claims(&config(), &headers(pairs), Some(&peer("10.0.0.1")));
        assert_eq!(of(&[]).expect("no error"), None);
        assert_eq!(of(&[("x-forwarded-user", " ")]).expect("no error"), None);
        assert!(of(&[("x-forwarded-user", "eve"), ("x-forwarded-user", "ada")]).is_err());
        assert!(of(&[("x-forwarded-user", "ada"), ("x-forwarded-name", "a"), ("x-forwarded-name", "b")]).is_err());
        assert!(of(&[("x-forwarded-user", &"x".repeat(201))]).is_err());
        let named = of(&[("x-forwarded-user", "José")]).expect("no error").expect("claims");
        assert_eq!((named.subject.as_str(), named.name), ("José", None));
    }

    #[test]
    fn the_highest_group_gives_the_role() {
        let of = |groups: &str| {
            let sent = headers(&[("x-forwarded-user", "ada"), ("x-forwarded-groups", groups)]);
            claims(&config(), &sent, Some(&peer("10.0.0.1"))).expect("no error").expect("claims").role
        };
        assert_eq!(of("qa, ops"), Some(Role::Admin));
        assert_eq!(of("qa"), Some(Role::Reviewer));
        assert_eq!(of("Ops,others"), Some(Role::Labeler), "groups are compared exactly");
        assert_eq!(of(""), Some(Role::Labeler));
        let kept = AuthConfig { groups_header: None, ..config() };
        let sent = headers(&[("x-forwarded-user", "ada"), ("x-forwarded-groups", "ops")]);
        assert_eq!(claims(&kept, &sent, Some(&peer("10.0.0.1"))).expect("no error").expect("claims").role, None);
    }
}

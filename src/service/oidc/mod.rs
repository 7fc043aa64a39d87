//! Sign-in by an OpenID Connect provider: authorization code flow with PKCE, state and nonce (OpenID Connect Core 1.0,
//! RFC 7636). Tokens and claims are neither stored nor logged.

mod provider;
mod token;

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

pub use provider::Provider;

use super::access::OIDC;
use super::identity::{self, Claims, Source};
use super::sign_in::{self, Refusal};
use super::{Result, Services, people};
use crate::domain::time::SECOND;
use provider::Metadata;
use token::{Expected, Problem};

/// A sign-in that one browser has begun. Its cookie holds the secret, from which everything that is sent to the
/// provider is derived; the server stores nothing.
pub struct Attempt {
    secret: String,
}

/// A sign-in to begin: the provider's page, and the secret of the browser's cookie.
pub struct Begun {
    pub url: String,
    pub secret: String,
}

/// What the provider sends back with the browser.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    pub code: Option<String>,
    pub state: Option<String>,
    /// OAuth 2.0's name of an error.
    pub error: Option<String>,
    /// The issuer (RFC 9207), if the provider sends it.
    pub issuer: Option<String>,
}

impl Attempt {
    /// The attempt of a cookie's secret.
    pub fn of(secret: &str) -> Self {
        Self { secret: secret.to_owned() }
    }

    fn state(&self) -> String {
        self.derived("state")
    }

    fn nonce(&self) -> String {
        self.derived("nonce")
    }

    /// PKCE's code verifier: 43 characters.
    fn verifier(&self) -> String {
        self.derived("verifier")
    }

    fn challenge(&self) -> String {
        URL_SAFE_NO_PAD.encode(Sha256::digest(self.verifier()))
    }

    /// A value that reveals nothing about the secret or the other values.
    fn derived(&self, purpose: &str) -> String {
        URL_SAFE_NO_PAD.encode(Sha256::digest(format!("instructd oidc {purpose} {}", self.secret)))
    }
}

/// Begins a sign-in; `None` when no provider is configured.
///
/// # Errors
/// `SignIn` when the provider cannot be asked for its metadata.
pub async fn begin(services: &Services) -> Result<Option<Begun>> {
    let config = &services.config.auth.oidc;
    let (Some(client_id), Some(redirect_uri)) = (&config.client_id, config.redirect_uri()) else { return Ok(None) };
    let Some(metadata) = services.oidc.metadata(config, services.now()).await? else { return Ok(None) };
    let secret = services.random.secret("");
    let attempt = Attempt::of(&secret);
    let mut url = metadata.authorization_endpoint.clone();
    url.query_pairs_mut()
        .append_pair("response_type", "code")
        .append_pair("client_id", client_id)
        .append_pair("redirect_uri", &redirect_uri)
        .append_pair("scope", &config.scopes.join(" "))
        .append_pair("state", &attempt.state())
        .append_pair("nonce", &attempt.nonce())
        .append_pair("code_challenge", &attempt.challenge())
        .append_pair("code_challenge_method", "S256");
    Ok(Some(Begun { url: url.into(), secret }))
}

/// Ends a sign-in with the provider's answer: verifies it, finds or makes the person, and opens a session. Returns the
/// session cookie's token.
///
/// # Errors
/// `SignIn` with the reason: an answer to another attempt, a provider that refuses, fails or cannot be verified, a
/// person who was locked out.
pub async fn finish(services: &Arc<Services>, attempt: &Attempt, answer: &Answer) -> Result<String> {
    let state = answer.state.as_deref().unwrap_or_default();
    if !bool::from(state.as_bytes().ct_eq(attempt.state().as_bytes())) {
        return Err(Refusal::ProviderState.into());
    }
    let config = &services.config.auth.oidc;
    let Some(metadata) = services.oidc.metadata(config, services.now()).await? else {
        return Err(Refusal::ProviderState.into());
    };
    if answer.issuer.as_ref().is_some_and(|issuer| *issuer != metadata.issuer) {
        tracing::warn!("a sign-in was answered in the name of another issuer than auth.oidc.issuer");
        return Err(Refusal::ProviderAnswer.into());
    }
    let code = match (&answer.code, &answer.error) {
        (Some(code), None) => code,
        (_, error) => {
            let error = provider::safe_code(error.as_deref());
            tracing::warn!(error, "the OpenID Connect provider did not sign a person in");
            return Err(denial(error).into());
        }
    };
    let id_token = services.oidc.redeem(config, &metadata, code, &attempt.verifier()).await?;
    let token = verified(services, &metadata, &id_token, &attempt.nonce()).await?;
    let source = Source { provider: format!("{OIDC}:{}", metadata.issuer), credential: OIDC };
    let person = identity::person(services, &source, claims(services, token)).await?;
    sign_in::open(services, &person, OIDC.to_owned()).await
}

fn denial(error: &str) -> Refusal {
    match error {
        "server_error" | "temporarily_unavailable" => Refusal::ProviderUnavailable,
        _ => Refusal::ProviderDenied,
    }
}

/// Verifies an ID token. An unknown key may be a new one, so the provider's keys are then fetched again.
async fn verified(services: &Services, metadata: &Metadata, id_token: &str, nonce: &str) -> Result<Map<String, Value>> {
    let client_id = services.config.auth.oidc.client_id.as_deref().unwrap_or_default();
    let expected = Expected { issuer: &metadata.issuer, client_id, nonce };
    let seconds = services.now() / SECOND;
    let (keys, are_new) = services.oidc.keys(metadata).await?;
    let checked = match token::verify(id_token, &keys, &expected, seconds) {
        Err(Problem::Key | Problem::Signature) if !are_new => {
            let keys = services.oidc.new_keys(metadata).await?;
            token::verify(id_token, &keys, &expected, seconds)
        }
        checked => checked,
    };
    checked.map_err(|problem| {
        tracing::warn!("an ID token was refused: {problem}");
        Refusal::ProviderAnswer.into()
    })
}

/// Who the person of a verified token is here.
fn claims(services: &Services, token: Map<String, Value>) -> Claims {
    let auth = &services.config.auth;
    let text = |name: &str| token.get(name).and_then(Value::as_str);
    let names = ["name", "preferred_username", "email", "sub"].into_iter().filter_map(text);
    let name = names.filter_map(|name| people::check_name(name, "name").ok()).next();
    let groups = auth.oidc.role_claim.as_ref().map(|claim| groups(&token, claim));
    let role = groups.map(|groups| identity::role_of(auth, groups.iter().map(String::as_str)));
    let subject = text("sub").unwrap_or_default().to_owned();
    // A subject may be no fit name, such as one of 255 characters.
    Claims { name: name.or_else(|| Some(auth.oidc.name.clone().unwrap_or_else(|| OIDC.to_owned()))), subject, role }
}

/// The texts of a claim: a text or a list of texts, under its name or a path of names separated by dots.
fn groups(token: &Map<String, Value>, claim: &str) -> Vec<String> {
    let by_path = || {
        let mut parts = claim.split('.');
        let first = token.get(parts.next()?)?;
        parts.try_fold(first, |value, part| value.get(part))
    };
    match token.get(claim).or_else(by_path) {
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(many)) => many.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_sent_reveals_nothing_of_the_rest() {
        let (one, other) = (Attempt::of("a"), Attempt::of("b"));
        let values = [one.state(), one.nonce(), one.verifier(), one.challenge(), other.state(), other.nonce()];
        for (i, value) in values.iter().enumerate() {
            assert_eq!(value.len(), 43, "PKCE asks for 43 to 128 characters");
            assert!(!values[..i].contains(value));
        }
    }

    #[test]
    fn groups_are_found_by_name_and_by_path() {
        let token = json!({
            "groups": ["a", "b", 3], "role": "c", "https://example.org/roles": ["d"], "n": 1,
            "realm_access": {"roles": ["e"]},
        });
        let of = |claim: &str| groups(token.as_object().expect("an object"), claim);
        assert_eq!(of("groups"), ["a", "b"]);
        assert_eq!(of("role"), ["c"]);
        assert_eq!(of("https://example.org/roles"), ["d"]);
        assert_eq!(of("realm_access.roles"), ["e"]);
        for nothing in ["n", "realm_access", "realm_access.none", "none", ""] {
            assert!(of(nothing).is_empty(), "{nothing}");
        }
    }
}

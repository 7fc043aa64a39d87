//! Requests to the OpenID Connect provider: its metadata, its keys, and the token for a code. Responses are limited in
//! time and size, redirects are not followed, and no proxy is used.

use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use jsonwebtoken::jwk::Jwk;
use reqwest::header::CONTENT_TYPE;
use reqwest::redirect::Policy;
use reqwest::{Client, RequestBuilder, StatusCode, Url};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::config::{OidcConfig, is_confidential};
use crate::domain::Micros;
use crate::domain::time::HOUR;
use crate::service::sign_in::Refusal;

/// Longest time for one request.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Most bytes of a response.
const MAX_BYTES: usize = 1 << 20;
/// Time after which metadata and keys are fetched again.
const KEPT: Micros = HOUR;

/// What the provider publishes about itself (OpenID Connect Discovery 1.0).
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Metadata {
    pub issuer: String,
    #[serde(deserialize_with = "url")]
    pub authorization_endpoint: Url,
    #[serde(deserialize_with = "url")]
    token_endpoint: Url,
    #[serde(deserialize_with = "url")]
    jwks_uri: Url,
    /// `None` = `client_secret_basic`.
    #[serde(default)]
    token_endpoint_auth_methods_supported: Option<Vec<String>>,
}

fn url<'de, D: Deserializer<'de>>(text: D) -> Result<Url, D::Error> {
    Url::parse(&String::deserialize(text)?).map_err(serde::de::Error::custom)
}

#[derive(Deserialize)]
struct Keys {
    keys: Vec<Value>,
}

#[derive(Deserialize)]
struct Tokens {
    id_token: Option<String>,
}

#[derive(Deserialize)]
struct TokenError {
    error: Option<String>,
}

/// A client of the provider with what it has published.
#[derive(Default)]
pub struct Provider {
    client: OnceLock<Client>,
    known: RwLock<Option<Known>>,
}

#[derive(Clone)]
struct Known {
    metadata: Arc<Metadata>,
    keys: Option<Arc<[Jwk]>>,
    /// µs UTC.
    fetched: Micros,
}

impl Provider {
    /// The provider's metadata; `None` when no provider is configured.
    pub(super) async fn metadata(&self, config: &OidcConfig, now: Micros) -> Result<Option<Arc<Metadata>>, Refusal> {
        let Some(issuer) = &config.issuer else { return Ok(None) };
        let is_fresh = |known: &Known| (known.fetched..known.fetched + KEPT).contains(&now);
        if let Some(known) = self.known().filter(is_fresh) {
            return Ok(Some(known.metadata));
        }
        let url = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
        let metadata: Metadata = self.get(&url, "metadata").await?;
        let endpoints = [&metadata.authorization_endpoint, &metadata.token_endpoint, &metadata.jwks_uri];
        if metadata.issuer != *issuer {
            tracing::error!(
                "the OpenID Connect provider calls itself {:?}; auth.oidc.issuer must be that",
                metadata.issuer
            );
            return Err(Refusal::ProviderAnswer);
        }
        if let Some(open) = endpoints.into_iter().find(|url| !is_confidential(url)) {
            tracing::error!("the OpenID Connect provider has an address without https: {open}");
            return Err(Refusal::ProviderAnswer);
        }
        let metadata = Arc::new(metadata);
        self.keep(Known { metadata: metadata.clone(), keys: None, fetched: now });
        Ok(Some(metadata))
    }

    /// The provider's keys, and whether they were fetched just now.
    pub(super) async fn keys(&self, metadata: &Metadata) -> Result<(Arc<[Jwk]>, bool), Refusal> {
        match self.known().and_then(|known| known.keys) {
            Some(keys) => Ok((keys, false)),
            None => Ok((self.new_keys(metadata).await?, true)),
        }
    }

    /// The provider's keys of now.
    pub(super) async fn new_keys(&self, metadata: &Metadata) -> Result<Arc<[Jwk]>, Refusal> {
        let keys: Keys = self.get(metadata.jwks_uri.as_str(), "keys").await?;
        // Keys of a kind that is not known here do not prevent the use of the others.
        let keys: Arc<[Jwk]> = keys.keys.into_iter().filter_map(|key| serde_json::from_value(key).ok()).collect();
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.as_mut() {
            known.keys = Some(keys.clone());
        }
        Ok(keys)
    }

    /// The ID token for a code.
    pub(super) async fn redeem(
        &self,
        config: &OidcConfig,
        metadata: &Metadata,
        code: &str,
        verifier: &str,
    ) -> Result<String, Refusal> {
        let (client_id, secret) = (config.client_id.as_deref().unwrap_or_default(), secret(config).await?);
        let redirect_uri = config.redirect_uri().unwrap_or_default();
        let mut fields = vec![
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", redirect_uri.as_str()),
            ("code_verifier", verifier),
        ];
        let methods = metadata.token_endpoint_auth_methods_supported.as_deref();
        let by_header = methods.is_none_or(|methods| methods.iter().any(|method| method == "client_secret_basic"));
        let mut request = self.client()?.post(metadata.token_endpoint.clone());
        match &secret {
            Some(secret) if by_header => request = request.basic_auth(encoded(client_id), Some(encoded(secret))),
            Some(secret) => fields.extend([("client_id", client_id), ("client_secret", secret)]),
            None => fields.push(("client_id", client_id)),
        }
        let request = request.header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(form(&fields));
        let (status, body) = send(request, "token endpoint").await?;
        if !status.is_success() {
            let error = serde_json::from_slice::<TokenError>(&body).ok().and_then(|answer| answer.error);
            let error = safe_code(error.as_deref());
            tracing::warn!(status = status.as_u16(), error, "the OpenID Connect provider gave no token for a code");
            return Err(match error {
                _ if status.is_server_error() => Refusal::ProviderUnavailable,
                // The code was used before or has expired.
                "invalid_grant" => Refusal::ProviderState,
                _ => Refusal::ProviderAnswer,
            });
        }
        let tokens: Tokens = parse(&body, "token")?;
        tokens.id_token.ok_or_else(|| {
            tracing::warn!("the OpenID Connect provider sent no ID token; auth.oidc.scopes must contain openid");
            Refusal::ProviderAnswer
        })
    }

    async fn get<T: DeserializeOwned>(&self, url: &str, what: &'static str) -> Result<T, Refusal> {
        let (status, body) = send(self.client()?.get(url), what).await?;
        if !status.is_success() {
            tracing::warn!(status = status.as_u16(), "the OpenID Connect provider does not send its {what}");
            return Err(Refusal::ProviderUnavailable);
        }
        parse(&body, what)
    }

    fn client(&self) -> Result<&Client, Refusal> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let builder = Client::builder().redirect(Policy::none()).no_proxy().timeout(TIMEOUT).user_agent("instructd");
        let client = builder.build().map_err(|error| {
            tracing::error!(%error, "no HTTP client can be made");
            Refusal::ProviderUnavailable
        })?;
        Ok(self.client.get_or_init(|| client))
    }

    fn known(&self) -> Option<Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn keep(&self, known: Known) {
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = Some(known);
    }
}

/// The client secret of the configuration or its file.
async fn secret(config: &OidcConfig) -> Result<Option<String>, Refusal> {
    let Some(path) = &config.client_secret_file else { return Ok(config.client_secret.clone()) };
    match tokio::fs::read_to_string(path).await {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) => {
            tracing::error!(%error, "auth.oidc.client_secret_file cannot be read");
            Err(Refusal::ProviderUnavailable)
        }
    }
}

/// The status and the body of a response.
async fn send(request: RequestBuilder, what: &str) -> Result<(StatusCode, Vec<u8>), Refusal> {
    let failed = |error: reqwest::Error| {
        let error = crate::domain::error_chain(&anyhow::Error::new(error.without_url()));
        tracing::warn!(error, "the OpenID Connect provider's {what} cannot be reached");
        Refusal::ProviderUnavailable
    };
    let mut response = request.send().await.map_err(failed)?;
    let (status, mut body) = (response.status(), Vec::new());
    while let Some(chunk) = response.chunk().await.map_err(failed)? {
        if body.len() + chunk.len() > MAX_BYTES {
            tracing::warn!("the OpenID Connect provider's {what} is longer than {MAX_BYTES} bytes");
            return Err(Refusal::ProviderAnswer);
        }
        body.extend_from_slice(&chunk);
    }
    Ok((status, body))
}

/// Reads JSON; the reason of a failure is not logged, because it may quote the text.
fn parse<T: DeserializeOwned>(body: &[u8], what: &str) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|_| {
        tracing::warn!("the OpenID Connect provider's {what} cannot be read");
        Refusal::ProviderAnswer
    })
}

/// OAuth 2.0's name of an error, if it looks like one; providers send any text.
pub(super) fn safe_code(error: Option<&str>) -> &str {
    let looks = |code: &&str| code.len() <= 40 && code.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    error.filter(looks).unwrap_or("unknown")
}

/// `application/x-www-form-urlencoded`.
fn form(fields: &[(&str, &str)]) -> String {
    let mut url = Url::parse("https://form").ok();
    if let Some(url) = &mut url {
        url.query_pairs_mut().extend_pairs(fields);
    }
    url.and_then(|url| url.query().map(str::to_owned)).unwrap_or_default()
}

/// One value, as RFC 6749 (section 2.3.1) asks for in the header of a client.
fn encoded(value: &str) -> String {
    form(&[("", value)]).trim_start_matches('=').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_encoded_for_forms() {
        assert_eq!(form(&[("a", "1 2"), ("b", "x&y=z")]), "a=1+2&b=x%26y%3Dz");
        assert_eq!(encoded("a:b c"), "a%3Ab+c");
        assert_eq!(encoded("=="), "%3D%3D");
    }

    #[test]
    fn only_names_of_errors_are_logged() {
        assert_eq!(safe_code(Some("access_denied")), "access_denied");
        for text in ["Ada Lovelace", "a@b", "<b>", &"x".repeat(41)] {
            assert_eq!(safe_code(Some(text)), "unknown", "{text}");
        }
        assert_eq!(safe_code(None), "unknown");
    }
}

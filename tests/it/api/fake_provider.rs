//! A stand-in for an OpenID Connect provider: discovery, keys, and tokens for codes, over HTTP and with real keys.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair};
use axum::extract::{Form, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

pub const CLIENT: &str = "instructd client";
pub const SECRET: &str = "a secret: of % the client";

/// A key that signs tokens.
#[derive(Clone)]
pub struct Key {
    pub id: String,
    algorithm: Algorithm,
    private: EncodingKey,
}

impl Key {
    pub fn rsa(id: &str) -> Self {
        let pair = KeyPair::generate(KeySize::Rsa2048).unwrap();
        let der: Pkcs8V1Der<'_> = pair.as_der().unwrap();
        // The key itself is behind the 26 bytes of PKCS #8's header.
        let private = EncodingKey::from_rsa_der(&der.as_ref()[26..]);
        Self { id: id.to_owned(), algorithm: Algorithm::RS256, private }
    }

    pub fn elliptic(id: &str) -> Self {
        let der = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).unwrap();
        Self { id: id.to_owned(), algorithm: Algorithm::ES256, private: EncodingKey::from_ec_der(der.as_ref()) }
    }

    pub fn edwards(id: &str) -> Self {
        let der = Ed25519KeyPair::generate_pkcs8v1(&SystemRandom::new()).unwrap();
        Self { id: id.to_owned(), algorithm: Algorithm::EdDSA, private: EncodingKey::from_ed_der(der.as_ref()) }
    }

    fn public(&self) -> Value {
        let mut key = Jwk::from_encoding_key(&self.private, self.algorithm).unwrap();
        key.common.key_id = Some(self.id.clone());
        serde_json::to_value(key).unwrap()
    }

    pub fn sign(&self, claims: &Value) -> String {
        let header = Header { kid: Some(self.id.clone()), ..Header::new(self.algorithm) };
        encode(&header, claims, &self.private).unwrap()
    }
}

/// What was asked for with a code.
#[derive(Clone)]
struct Issued {
    nonce: String,
    challenge: String,
    redirect_uri: String,
}

pub struct Content {
    /// Published keys.
    pub keys: Vec<Key>,
    /// Signs the next tokens.
    pub signer: Key,
    /// Claims that replace the usual ones; null removes one.
    pub claims: Value,
    /// A token that is sent instead of a signed one.
    pub token: Option<String>,
    /// Status of every response, if it is not 200.
    pub fault: Option<StatusCode>,
    codes: BTreeMap<String, Issued>,
    /// Requests for keys.
    pub key_requests: usize,
    pub issuer: String,
}

/// A provider that runs until the test ends.
#[derive(Clone)]
pub struct Provider {
    pub url: String,
    pub state: Arc<Mutex<Content>>,
}

impl Provider {
    pub async fn start(key: Key) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/realms/team", listener.local_addr().unwrap());
        let state = Content {
            keys: vec![key.clone()],
            signer: key,
            claims: json!({}),
            token: None,
            fault: None,
            codes: BTreeMap::new(),
            key_requests: 0,
            issuer: url.clone(),
        };
        let provider = Self { url, state: Arc::new(Mutex::new(state)) };
        let router = Router::new()
            .route("/realms/team/.well-known/openid-configuration", get(metadata))
            .route("/realms/team/keys", get(keys))
            .route("/realms/team/token", post(token))
            .with_state(provider.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        provider
    }

    pub fn set(&self, change: impl FnOnce(&mut Content)) {
        change(&mut self.state.lock().unwrap());
    }

    /// What a person does at the provider's page: the answer's query, from the address that the browser was sent to.
    pub fn sign_in(&self, address: &str) -> String {
        let url = reqwest::Url::parse(address).unwrap();
        let asked: BTreeMap<String, String> = url.query_pairs().into_owned().collect();
        assert!(address.starts_with(&format!("{}/authorize?", self.url)), "{address}");
        assert_eq!((asked["response_type"].as_str(), asked["client_id"].as_str()), ("code", CLIENT));
        assert_eq!(
            (asked["code_challenge_method"].as_str(), asked["scope"].as_str()),
            ("S256", "openid profile email")
        );
        let mut state = self.state.lock().unwrap();
        let code = format!("code {}", state.codes.len());
        let issued = Issued {
            nonce: asked["nonce"].clone(),
            challenge: asked["code_challenge"].clone(),
            redirect_uri: asked["redirect_uri"].clone(),
        };
        state.codes.insert(code.clone(), issued);
        format!("code={}&state={}&session_state=x", code.replace(' ', "%20"), asked["state"])
    }
}

fn fault(provider: &Provider) -> Option<Response> {
    provider.state.lock().unwrap().fault.map(|status| (status, "<b>raw words of the provider</b>").into_response())
}

async fn metadata(State(provider): State<Provider>) -> Response {
    if let Some(fault) = fault(&provider) {
        return fault;
    }
    let url = &provider.url;
    Json(json!({
        "issuer": provider.state.lock().unwrap().issuer,
        "authorization_endpoint": format!("{url}/authorize"),
        "token_endpoint": format!("{url}/token"),
        "jwks_uri": format!("{url}/keys"),
    }))
    .into_response()
}

async fn keys(State(provider): State<Provider>) -> Response {
    if let Some(fault) = fault(&provider) {
        return fault;
    }
    let mut state = provider.state.lock().unwrap();
    state.key_requests += 1;
    let mut keys: Vec<Value> = state.keys.iter().map(Key::public).collect();
    // A key of a kind that nobody knows.
    keys.push(json!({"kty": "NEW", "kid": "unknown", "use": "later"}));
    Json(json!({"keys": keys})).into_response()
}

async fn token(
    State(provider): State<Provider>,
    headers: HeaderMap,
    Form(sent): Form<BTreeMap<String, String>>,
) -> Response {
    if let Some(fault) = fault(&provider) {
        return fault;
    }
    let refused = |error: &str| {
        let body = json!({"error": error, "error_description": "raw words of the provider"});
        (StatusCode::BAD_REQUEST, Json(body)).into_response()
    };
    // Both parts are encoded as in forms (RFC 6749, section 2.3.1).
    let credential = STANDARD.encode("instructd+client:a+secret%3A+of+%25+the+client");
    if headers.get("authorization").and_then(|v| v.to_str().ok()) != Some(&format!("Basic {credential}")) {
        return refused("invalid_client");
    }
    let mut state = provider.state.lock().unwrap();
    // A code works once.
    let Some(issued) = state.codes.remove(&sent["code"]) else { return refused("invalid_grant") };
    let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(&sent["code_verifier"]));
    if challenge != issued.challenge || sent["redirect_uri"] != issued.redirect_uri {
        return refused("invalid_grant");
    }
    let now = instructd::service::system_clock()() / 1_000_000;
    let mut claims = json!({
        "iss": provider.url, "aud": CLIENT, "sub": "248289761001", "name": "Ada Lovelace", "iat": now,
        "exp": now + 300, "nonce": issued.nonce,
    });
    for (name, value) in state.claims.as_object().unwrap() {
        if value.is_null() {
            claims.as_object_mut().unwrap().remove(name)
        } else {
            claims.as_object_mut().unwrap().insert(name.clone(), value.clone())
        };
    }
    let id_token = state.token.clone().unwrap_or_else(|| state.signer.sign(&claims));
    Json(json!({"access_token": "not used", "token_type": "Bearer", "id_token": id_token})).into_response()
}

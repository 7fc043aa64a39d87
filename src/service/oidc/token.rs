//! Verification of ID tokens (OpenID Connect Core 1.0, section 3.1.3.7).

use jsonwebtoken::jwk::{Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde_json::{Map, Value};

/// Signatures by a key that only the provider has. HMAC would make the client secret a signing key.
const ALGORITHMS: [Algorithm; 9] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

/// By how many seconds the clocks of provider and server may differ.
const CLOCK_SKEW: i64 = 60;

/// Longest subject, characters (OpenID Connect Core 1.0, section 2).
const LONGEST_SUBJECT: usize = 255;

/// What the claims of a token must be.
pub(super) struct Expected<'a> {
    pub issuer: &'a str,
    pub client_id: &'a str,
    pub nonce: &'a str,
}

/// Why a token is refused. The texts hold no claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Problem {
    #[error("it is not a signed JWT with an accepted algorithm (RS, PS, ES256, ES384 or EdDSA)")]
    Form,
    #[error("the provider's keys have none with its key id and algorithm")]
    Key,
    #[error("its signature is not of the provider's key")]
    Signature,
    #[error("its issuer (iss) is not that of the provider's metadata")]
    Issuer,
    #[error("its audience (aud) is not auth.oidc.client_id")]
    Audience,
    #[error("it was issued to another client (azp)")]
    AuthorizedParty,
    #[error("it has expired (exp), or the clocks of provider and server differ")]
    Expired,
    #[error("it is not valid yet (nbf, iat): the clocks of provider and server differ")]
    NotYet,
    #[error("its nonce is not that of this sign-in")]
    Nonce,
    #[error("its subject (sub) is missing or too long")]
    Subject,
}

/// The claims of a token that one of the keys has signed and that is meant for this server and this sign-in. `now` is in
/// seconds since the epoch.
pub(super) fn verify(
    token: &str,
    keys: &[Jwk],
    expected: &Expected<'_>,
    now: i64,
) -> Result<Map<String, Value>, Problem> {
    let claims = signed_claims(token, keys)?;
    let text = |name: &str| claims.get(name).and_then(Value::as_str);
    if text("iss") != Some(expected.issuer) {
        return Err(Problem::Issuer);
    }
    let audiences: Vec<&str> = match claims.get("aud") {
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(many)) => many.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    if !audiences.contains(&expected.client_id) {
        return Err(Problem::Audience);
    }
    match text("azp") {
        Some(party) if party != expected.client_id => return Err(Problem::AuthorizedParty),
        None if audiences.len() > 1 => return Err(Problem::AuthorizedParty),
        _ => {}
    }
    let seconds = |name: &str| claims.get(name).and_then(Value::as_f64).map(|seconds| seconds as i64);
    if seconds("exp").is_none_or(|exp| exp.saturating_add(CLOCK_SKEW) <= now) {
        return Err(Problem::Expired);
    }
    if ["nbf", "iat"].into_iter().filter_map(seconds).any(|from| from > now + CLOCK_SKEW) {
        return Err(Problem::NotYet);
    }
    if text("nonce") != Some(expected.nonce) {
        return Err(Problem::Nonce);
    }
    if text("sub").is_none_or(|subject| subject.is_empty() || subject.chars().count() > LONGEST_SUBJECT) {
        return Err(Problem::Subject);
    }
    Ok(claims)
}

/// The claims of a token with a valid signature.
fn signed_claims(token: &str, keys: &[Jwk]) -> Result<Map<String, Value>, Problem> {
    let header = decode_header(token).map_err(|_| Problem::Form)?;
    if !ALGORITHMS.contains(&header.alg) {
        return Err(Problem::Form);
    }
    // Times are compared with the server's clock, by the caller.
    let mut validation = Validation::new(header.alg);
    validation.required_spec_claims.clear();
    (validation.validate_exp, validation.validate_aud) = (false, false);
    let fits = |key: &&Jwk| {
        let common = &key.common;
        let has_id = header.kid.is_none() || common.key_id == header.kid;
        let signs = common.public_key_use.as_ref().is_none_or(|of| *of == PublicKeyUse::Signature);
        has_id && signs && common.key_algorithm.is_none_or(|alg| Algorithm::try_from(alg).ok() == Some(header.alg))
    };
    let fitting = keys.iter().filter(fits).filter_map(|key| DecodingKey::from_jwk(key).ok());
    let fitting: Vec<DecodingKey> = fitting.filter(|key| key.family() == header.alg.family()).collect();
    if fitting.is_empty() {
        return Err(Problem::Key);
    }
    let mut valid = fitting.iter().filter_map(|key| decode::<Map<String, Value>>(token, key, &validation).ok());
    valid.next().map(|data| data.claims).ok_or(Problem::Signature)
}

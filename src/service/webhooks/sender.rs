//! Sends one delivery, signed as Standard Webhooks 1.0 describes: HMAC-SHA256 of id, timestamp and body.

use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use reqwest::Client;
use reqwest::header::CONTENT_TYPE;
use reqwest::redirect::Policy;
use sha2::Sha256;

use super::address::{self, PublicOnly};
use crate::config::WebhooksConfig;
use crate::domain::error_chain;
use crate::service::Random;

const PREFIX: &str = "whsec_";

/// A new signing secret: `whsec_` and 32 random bytes in base64.
pub fn new_secret(random: &Random) -> String {
    format!("{PREFIX}{}", STANDARD.encode(random.bytes()))
}

/// The header `webhook-signature`; `timestamp` is in seconds since the epoch. `None` for a secret that is not
/// `whsec_` and base64.
pub fn signature(secret: &str, id: &str, timestamp: i64, body: &str) -> Option<String> {
    let key = STANDARD.decode(secret.strip_prefix(PREFIX)?).ok()?;
    let mut mac = Hmac::<Sha256>::new_from_slice(&key).ok()?;
    mac.update(format!("{id}.{timestamp}.{body}").as_bytes());
    Some(format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes())))
}

/// The result of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The status of the response.
    Status(u16),
    /// No response, and why.
    None(String),
}

/// What is sent, and where.
pub struct Message<'a> {
    pub url: &'a str,
    pub secret: &'a str,
    pub id: &'a str,
    pub body: &'a str,
    /// Of the attempt, seconds since the epoch.
    pub timestamp: i64,
}

/// HTTP clients that follow no redirects and use no proxy.
pub struct Sender {
    /// For hosts of `webhooks.hosts`.
    listed: Client,
    /// For all others: public addresses only.
    public: Client,
    hosts: Vec<String>,
}

impl Sender {
    /// # Errors
    /// When the system provides no TLS roots or sockets.
    pub fn new(config: &WebhooksConfig) -> anyhow::Result<Self> {
        let builder = || {
            Client::builder()
                .redirect(Policy::none())
                .no_proxy()
                .user_agent("instructd")
                .timeout(Duration::from_secs(config.timeout_seconds.into()))
        };
        let public = builder().dns_resolver(Arc::new(PublicOnly)).build()?;
        Ok(Self { listed: builder().build()?, public, hosts: config.hosts.clone() })
    }

    /// Sends one message. The body of the response is not read.
    pub async fn send(&self, message: &Message<'_>) -> Answer {
        let Message { url, secret, id, body, timestamp } = *message;
        // Again, because hosts may have been removed from the list since the webhook was made.
        let url = match address::check(url, &self.hosts) {
            Ok(url) => url,
            Err(why) => return Answer::None(why),
        };
        let Some(signature) = signature(secret, id, timestamp, body) else {
            return Answer::None("the secret of this webhook is damaged; delete it and make a new one".to_owned());
        };
        let client = if address::is_known(&url, &self.hosts) { &self.listed } else { &self.public };
        let request = client
            .post(url)
            .header(CONTENT_TYPE, "application/json")
            .header("webhook-id", id)
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", signature)
            .body(body.to_owned());
        match request.send().await {
            Ok(response) => Answer::Status(response.status().as_u16()),
            Err(error) if error.is_timeout() => Answer::None("no response within the time limit".to_owned()),
            // The URL may hold a secret of the receiver.
            Err(error) => Answer::None(error_chain(&anyhow!(error.without_url()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values computed with Python's `hmac` and `base64`.
    #[test]
    fn signatures_are_those_of_another_implementation() {
        let secret = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
        let body = r#"{"type":"webhook.test"}"#;
        assert_eq!(
            signature(secret, "msg_1", 1_674_087_231, body).expect("signed"),
            "v1,UBadnHjTmx1e170akBETjnJMikThkSDLWkUQeTmhK8s="
        );
        assert_eq!(signature("0123", "msg_1", 0, body), None);
        assert_eq!(signature("whsec_!", "msg_1", 0, body), None);
    }

    #[test]
    fn secrets_have_32_bytes() {
        let random = Random::from_seed(1);
        let (one, two) = (new_secret(&random), new_secret(&random));
        assert_ne!(one, two);
        assert_eq!(STANDARD.decode(&one[PREFIX.len()..]).expect("base64").len(), 32);
    }
}

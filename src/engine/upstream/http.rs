//! Calls to one upstream server: deadlines, and its answers as `EngineError`. The address comes from the configuration
//! alone, and redirects are not followed.

use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode};
use serde_json::Value;

use super::UpstreamOptions;
use super::address::Address;
use super::wire::{self, Listing};
use crate::engine::EngineError;

/// Most bytes that are read of an answer that is not a stream.
const MAX_ANSWER: usize = 8 << 20;
/// Longest wait between two attempts: a client waits meanwhile.
const MAX_WAIT: Duration = Duration::from_secs(5);

/// Why a call did not succeed.
#[derive(Debug)]
pub struct Failure {
    pub error: EngineError,
    /// The failure is the server's, not the request's: it counts for the circuit breaker.
    pub broken: bool,
    /// The server has not begun the call, so it may be repeated.
    pub unstarted: bool,
    /// Nothing of the call runs there any more, so it may be made at another replica.
    pub elsewhere: bool,
    /// The `Retry-After` of the server's answer.
    wait: Option<Duration>,
}

impl Failure {
    /// The server does not work. `why` is logged; clients are told that the server is unavailable.
    pub fn broken(why: impl std::fmt::Display) -> Self {
        tracing::warn!(error = %why, "the upstream server failed");
        let message = "the upstream server of this model does not answer as it should".to_owned();
        let error = EngineError::Unavailable { message, retry_after_s: 2 };
        Self { error, broken: true, unstarted: false, elsewhere: false, wait: None }
    }

    /// The server refuses the request.
    pub fn refused(error: EngineError) -> Self {
        Self { error, broken: false, unstarted: false, elsewhere: false, wait: None }
    }

    /// The failure of a call that was not begun.
    pub fn unstarted(self) -> Self {
        Self { unstarted: true, elsewhere: true, ..self }
    }

    fn over(self) -> Self {
        Self { elsewhere: true, ..self }
    }
}

/// The client of one upstream server.
pub struct Http {
    client: Client,
    base: String,
    response_timeout: Duration,
}

impl Http {
    /// # Errors
    /// When address or key cannot be used.
    pub fn new(url: &str, options: &UpstreamOptions) -> Result<Self, String> {
        let base = url.trim_end_matches('/').to_owned();
        let url = reqwest::Url::parse(&base).map_err(|e| format!("'{base}' is not a URL: {e}"))?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err(format!("'{base}' must be http://… or https://…"));
        }
        let mut headers = HeaderMap::new();
        if let Some(key) = &options.api_key {
            let value = HeaderValue::from_str(&format!("Bearer {key}"));
            let mut value = value.map_err(|_| "the api_key has characters that no header can carry".to_owned())?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let client = Client::builder()
            .default_headers(headers)
            .user_agent(concat!("instructd/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(options.connect_timeout)
            .redirect(reqwest::redirect::Policy::none())
            // Requests go to the configured address and not through a proxy of the environment.
            .no_proxy()
            .build()
            .map_err(|e| e.to_string())?;
        Ok(Self { client, base, response_timeout: options.response_timeout })
    }

    /// Host and port of the address, without credentials and path.
    pub fn host(&self) -> String {
        let url = reqwest::Url::parse(&self.base).ok();
        let host = url.as_ref().and_then(|url| Some(format!("{}:{}", url.host_str()?, url.port_or_known_default()?)));
        host.unwrap_or_default()
    }

    /// The base address.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// The answer to a POST of `body`, or to a GET without one. An answer that is not JSON is returned as a string, an
    /// empty one as null.
    ///
    /// # Errors
    /// Why there is no answer within `limit`, or what the server says with a status that is not a success.
    pub async fn ask(&self, at: Address, body: Option<Value>, limit: Duration) -> Result<Value, String> {
        let url = self.url(at);
        let request = match &body {
            Some(body) => self.client.post(&url).json(body),
            None => self.client.get(&url),
        };
        let calling = async {
            let answer = request.send().await.map_err(|e| format!("no answer from {}: {e}", self.host()))?;
            let status = answer.status();
            let body = self.body(answer).await.map_err(|failure| failure.error.to_string())?;
            Ok::<_, String>((status, body))
        };
        let (status, body) = match tokio::time::timeout(limit, calling).await {
            Ok(called) => called?,
            Err(_) => return Err(format!("no answer to {url} within {} s", limit.as_secs())),
        };
        if !status.is_success() {
            return Err(format!("status {} of {url}: {}", status.as_u16(), wire::words(&body)));
        }
        if body.is_empty() {
            return Ok(Value::Null);
        }
        let text = |body: &[u8]| Value::String(String::from_utf8_lossy(body).into_owned());
        Ok(serde_json::from_slice(&body).unwrap_or_else(|_| text(&body)))
    }

    /// The server's models.
    pub async fn models(&self) -> Result<Listing, Failure> {
        let answer = self.send(self.client.get(format!("{}/models", self.base)), "model").await?;
        let body = self.body(answer).await?;
        serde_json::from_slice(&body).map_err(|e| Failure::broken(format!("the list of models: {e}")))
    }

    fn url(&self, at: Address) -> String {
        match at {
            Address::Api(path) => format!("{}/{path}", self.base),
            Address::Root(path) => format!("{}/{path}", self.base.strip_suffix("/v1").unwrap_or(&self.base)),
        }
    }

    /// Begins an answer.
    pub async fn open(&self, at: Address, body: &Value, blame: &'static str) -> Result<Response, Failure> {
        self.send(self.client.post(self.url(at)).json(body), blame).await
    }

    /// The whole answer as JSON.
    pub async fn json(&self, answer: Response) -> Result<Value, Failure> {
        let body = self.body(answer).await?;
        serde_json::from_slice(&body).map_err(|e| Failure::broken(format!("the answer is not JSON: {e}")))
    }

    /// The next piece of a stream; `None` at its end.
    pub async fn piece(&self, response: &mut Response) -> Result<Option<bytes::Bytes>, Failure> {
        match tokio::time::timeout(self.response_timeout, response.chunk()).await {
            Ok(Ok(piece)) => Ok(piece),
            Ok(Err(e)) => Err(Failure::broken(format!("the stream broke: {e}"))),
            Err(_) => Err(Failure::broken("the stream stood still for too long")),
        }
    }

    async fn send(&self, request: reqwest::RequestBuilder, blame: &'static str) -> Result<Response, Failure> {
        let answer = match tokio::time::timeout(self.response_timeout, request.send()).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(e)) if e.is_connect() => return Err(Failure::broken(format!("no connection: {e}")).unstarted()),
            // The connection is closed, and with it the request.
            Ok(Err(e)) => return Err(Failure::broken(e).over()),
            // The server may be computing the answer: a second request would double the load.
            Err(_) => return Err(Failure::broken("no answer in time")),
        };
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let wait = retry_after(answer.headers());
        let refused = |error| Failure { wait, ..Failure::refused(error) };
        match status {
            StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY | StatusCode::PAYLOAD_TOO_LARGE => {
                let body = self.body(answer).await?;
                Err(refused(wire::refusal(&body, blame)))
            }
            StatusCode::TOO_MANY_REQUESTS => {
                let retry_after_s = wait.map_or(1, |w| w.as_secs().max(1));
                Err(refused(EngineError::Overloaded { retry_after_s }).unstarted())
            }
            StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE => {
                Err(Failure { wait, ..Failure::broken(format!("status {status}")).unstarted() })
            }
            // 401, 403 and 404 are errors of this server's configuration, which a client cannot correct.
            _ => Err(Failure::broken(format!("status {status}")).over()),
        }
    }

    async fn body(&self, mut answer: Response) -> Result<Vec<u8>, Failure> {
        let mut body = Vec::new();
        while let Some(piece) = self.piece(&mut answer).await? {
            if body.len() + piece.len() > MAX_ANSWER {
                return Err(Failure::broken("an over-long answer"));
            }
            body.extend_from_slice(&piece);
        }
        Ok(body)
    }
}

/// The wait before the next attempt: the longer of `backoff` and the server's `Retry-After`. `None` = no further
/// attempt, also where the server asks for more than `MAX_WAIT`.
pub fn wait(failure: &Failure, backoff: Option<Duration>) -> Option<Duration> {
    match (failure.wait, backoff) {
        (Some(asked), Some(_)) if asked > MAX_WAIT => None,
        (Some(asked), Some(backoff)) => Some(asked.max(backoff)),
        (None, backoff) => backoff,
        (_, None) => None,
    }
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

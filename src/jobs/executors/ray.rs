//! A Ray cluster through its Jobs REST API. The submission id is known before the attempt is submitted and is the same
//! for every call, so that a submission whose response was lost is not repeated.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use async_trait::async_trait;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use reqwest::{Client, Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{AttemptState, Place, Refusal, Submission, shell_line};
use crate::config::PlaceConfig;

const CONNECT: Duration = Duration::from_secs(5);
const ANSWER: Duration = Duration::from_secs(10);
/// Most bytes of an answer that are read; logs are the longest.
const MOST: usize = 32 << 20;
/// Characters of an error that are kept.
const WORDS: usize = 400;
/// Responses with status 500 in a row for an attempt that the cluster does not know, after which it counts as refused:
/// Ray also sends that status for errors in `runtime_env`.
const FAULTS: usize = 5;

pub(super) struct RayPlace {
    client: Client,
    /// Base URL without a trailing slash.
    base: String,
    /// Fields that are sent with every submission besides the attempt's own.
    request: Value,
    faults: AtomicUsize,
}

/// Fields of the response to `GET /api/jobs/{id}`.
#[derive(Debug, Deserialize)]
struct Info {
    status: String,
    #[serde(default)]
    message: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Logs {
    #[serde(default)]
    logs: Option<String>,
}

/// Why there is no usable response.
enum Failure {
    Away(String),
    /// An error status, with the start of its text.
    Status(StatusCode, String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Away(error) => f.write_str(error),
            Self::Status(status, words) => write!(f, "status {status}: {words}"),
        }
    }
}

impl RayPlace {
    /// # Errors
    /// A token that is not a valid header value, or an HTTP client that cannot be created.
    pub(super) fn new(config: &PlaceConfig) -> Result<Self, String> {
        let mut headers = HeaderMap::new();
        if let Some(token) = &config.token {
            let value = HeaderValue::from_str(&format!("Bearer {token}"));
            let mut value =
                value.map_err(|_| "the token has characters that are not allowed in an HTTP header".to_owned())?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let client = Client::builder()
            .default_headers(headers)
            .user_agent(concat!("instructd/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT)
            .timeout(ANSWER)
            .redirect(reqwest::redirect::Policy::none())
            // Requests go to the configured address only: no proxy of the environment.
            .no_proxy()
            .build()
            .map_err(|e| e.to_string())?;
        let mut request = json!({"runtime_env": config.runtime_env});
        for (field, value) in [
            ("entrypoint_num_cpus", config.cpus.map(Value::from)),
            ("entrypoint_num_gpus", config.gpus.map(Value::from)),
            ("entrypoint_memory", config.memory_bytes.map(Value::from)),
        ] {
            if let Some(value) = value {
                request[field] = value;
            }
        }
        if !config.resources.is_empty() {
            request["entrypoint_resources"] = json!(config.resources);
        }
        let base = config.url.as_deref().unwrap_or_default().trim_end_matches('/').to_owned();
        Ok(Self { client, base, request, faults: AtomicUsize::new(0) })
    }

    fn url(&self, work: &Submission, tail: &str) -> String {
        format!("{}/api/jobs/{}{tail}", self.base, work.id)
    }

    async fn body(sent: reqwest::Result<Response>) -> Result<Vec<u8>, Failure> {
        let away = |error: reqwest::Error| Failure::Away(error.without_url().to_string());
        let mut answer = sent.map_err(away)?;
        let status = answer.status();
        let most = if status.is_success() { MOST } else { WORDS * 64 };
        let mut body = Vec::new();
        while let Some(piece) = answer.chunk().await.map_err(away)? {
            if body.len() + piece.len() > most {
                match status.is_success() {
                    true => return Err(Failure::Away(format!("the response is longer than {most} bytes"))),
                    false => break,
                }
            }
            body.extend_from_slice(&piece);
        }
        if status.is_success() {
            return Ok(body);
        }
        let text = String::from_utf8_lossy(&body);
        // A traceback's last line says what was wrong; a full stop by itself may follow.
        let line = text.lines().rev().find(|line| line.trim().len() > 3).unwrap_or_default();
        Err(Failure::Status(status, line.chars().filter(|c| !c.is_control()).take(WORDS).collect()))
    }

    async fn info(&self, work: &Submission) -> Result<Info, Failure> {
        let body = Self::body(self.client.get(self.url(work, "")).send().await).await?;
        serde_json::from_slice(&body).map_err(|e| Failure::Away(format!("the response does not describe a job: {e}")))
    }
}

/// Translates Ray's state of a job.
fn state(info: Info) -> AttemptState {
    let words = info.message.filter(|m| !m.trim().is_empty()).unwrap_or_default();
    let words: String = words.chars().take(WORDS).collect();
    match info.status.as_str() {
        "PENDING" => AttemptState::Waiting,
        "RUNNING" => AttemptState::Running,
        "SUCCEEDED" => AttemptState::Ended("Ray reports that the program succeeded".to_owned()),
        "STOPPED" => AttemptState::Ended(format!("it was stopped in Ray. {words}").trim_end().to_owned()),
        "FAILED" => AttemptState::Ended(format!("Ray reports that it failed: {words}")),
        other => AttemptState::Unknown(format!("Ray reports the unknown state '{other}'")),
    }
}

#[async_trait]
impl Place for RayPlace {
    async fn submit(&self, work: &Submission) -> Result<(), Refusal> {
        let mut request = self.request.clone();
        request["submission_id"] = work.id.as_str().into();
        request["entrypoint"] = shell_line(&work.argv).into();
        request["metadata"] = json!({"instructd_kind": work.kind, "instructd_attempt": work.attempt.to_string()});
        let sent = self.client.post(format!("{}/api/jobs/", self.base)).json(&request).send().await;
        let failure = match Self::body(sent).await {
            Ok(_) => {
                self.faults.store(0, Relaxed);
                return Ok(());
            }
            Err(failure) => failure,
        };
        // The response to an earlier call may have been lost: Ray refuses an id that it already has.
        match self.info(work).await {
            Ok(_) => return Ok(()),
            Err(Failure::Away(error)) => return Err(Refusal::Transient(error)),
            Err(Failure::Status(..)) => {}
        }
        match failure {
            Failure::Away(error) => Err(Refusal::Transient(error)),
            Failure::Status(status, words) if status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS => {
                Err(Refusal::Permanent(format!("status {status}: {words}")))
            }
            Failure::Status(StatusCode::INTERNAL_SERVER_ERROR, words) => match self.faults.fetch_add(1, Relaxed) + 1 {
                FAULTS.. => {
                    self.faults.store(0, Relaxed);
                    Err(Refusal::Permanent(format!("status 500, {FAULTS} times: {words}")))
                }
                _ => Err(Refusal::Transient(format!("status 500: {words}"))),
            },
            other => Err(Refusal::Transient(other.to_string())),
        }
    }

    async fn state(&self, work: &Submission) -> AttemptState {
        match self.info(work).await {
            Ok(info) => state(info),
            Err(Failure::Status(StatusCode::NOT_FOUND, _)) => AttemptState::Gone,
            Err(other) => AttemptState::Unknown(other.to_string()),
        }
    }

    /// Ray sends SIGTERM and, a few seconds later, SIGKILL: there is no stronger way.
    async fn stop(&self, work: &Submission, _: bool) {
        let sent = self.client.post(self.url(work, "/stop")).send().await;
        match Self::body(sent).await {
            Ok(_) | Err(Failure::Status(StatusCode::NOT_FOUND, _)) => {}
            Err(error) => tracing::warn!(attempt = work.id, %error, "the request to Ray to stop the attempt failed"),
        }
    }

    async fn log(&self, work: &Submission, bytes: u64) -> Result<String, String> {
        let body = Self::body(self.client.get(self.url(work, "/logs")).send().await).await;
        let body = body.map_err(|e| e.to_string())?;
        let logs: Logs = serde_json::from_slice(&body).map_err(|e| format!("the response is not a log: {e}"))?;
        let text = logs.logs.unwrap_or_default();
        let mut from = text.len().saturating_sub(bytes as usize);
        while !text.is_char_boundary(from) {
            from += 1;
        }
        Ok(text[from..].to_owned())
    }
}

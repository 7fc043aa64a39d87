//! Requests of a training run to other servers: a few attempts where a failure may pass, answers of bounded length.

use std::time::Duration;

use anyhow::{Result, anyhow};
use reqwest::redirect::Policy;
use reqwest::{Client, Response};
use tokio::runtime::{Builder, Runtime};

/// A try beyond the first, after a failure that may pass: no connection, a time-out, 429, 5xx.
const RETRIES: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// A client that follows no redirects and uses no proxy, and a runtime for a caller that blocks.
///
/// # Errors
/// When the system gives no sockets or no runtime.
pub(super) fn client() -> Result<(Client, Runtime)> {
    let client = Client::builder().redirect(Policy::none()).no_proxy().build()?;
    Ok((client, Builder::new_current_thread().enable_all().build()?))
}

pub(super) enum Failure {
    Passing(anyhow::Error),
    Final(anyhow::Error),
}

/// Has `ask` try until it succeeds, fails for good, or has failed too often.
///
/// # Errors
/// The last failure; `whom` says of whom.
pub(super) async fn persistently<T, A>(whom: &str, ask: impl Fn() -> A) -> Result<T>
where
    A: Future<Output = Result<T, Failure>>,
{
    let mut pause = FIRST_PAUSE;
    let mut left = RETRIES;
    loop {
        match ask().await {
            Ok(answer) => return Ok(answer),
            Err(Failure::Passing(error)) if left > 0 => {
                tracing::warn!(%error, "{whom} failed; trying again");
                tokio::time::sleep(pause).await;
                pause *= 4;
                left -= 1;
            }
            Err(Failure::Passing(error) | Failure::Final(error)) => return Err(error.context(whom.to_owned())),
        }
    }
}

/// Sends a request and reads at most `limit` bytes of a successful answer.
pub(super) async fn body(request: reqwest::RequestBuilder, limit: usize) -> Result<Vec<u8>, Failure> {
    let passing = |error: reqwest::Error| Failure::Passing(error.into());
    let mut response: Response = request.send().await.map_err(passing)?;
    let status = response.status();
    if !status.is_success() {
        let error = anyhow!("answered {status}");
        let passes = status.is_server_error() || status.as_u16() == 429;
        return Err(if passes { Failure::Passing(error) } else { Failure::Final(error) });
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(passing)? {
        if body.len() + chunk.len() > limit {
            return Err(Failure::Final(anyhow!("the answer is longer than {limit} bytes")));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

//! The client of reward services: calls only hosts that the configuration or the command line names, follows no
//! redirects, and refuses every response that is not one finite number per completion.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use reqwest::{Client, Url};
use serde::{Deserialize, Serialize};

use super::asking::{self, Failure, body, persistently};
use crate::train::remote::{RemoteItem, RemoteReward};

/// Most bytes of the response for each completion.
const BYTES_PER_SCORE: usize = 1024;

pub struct HttpRewards {
    client: Client,
    runtime: tokio::runtime::Runtime,
    /// `host` (any port) or `host:port`.
    hosts: Vec<String>,
}

#[derive(Serialize)]
struct Request<'a> {
    items: &'a [RemoteItem<'a>],
}

#[derive(Deserialize)]
struct Answer {
    scores: Vec<f64>,
}

impl HttpRewards {
    /// A client for these hosts; `None` when there are none.
    ///
    /// # Errors
    /// A malformed host, or a runtime or HTTP client that cannot be created.
    pub fn new(hosts: &[String]) -> Result<Option<Self>> {
        if hosts.is_empty() {
            return Ok(None);
        }
        if let Some(wrong) = hosts.iter().find(|host| !crate::config::is_host(host)) {
            anyhow::bail!("'{wrong}' is not a host: write HOST or HOST:PORT, without https:// and without a path");
        }
        let (client, runtime) = asking::client()?;
        Ok(Some(Self { client, runtime, hosts: hosts.to_vec() }))
    }

    async fn ask(&self, url: &Url, timeout: Duration, items: &[RemoteItem<'_>]) -> Result<Vec<f64>, Failure> {
        let request = self.client.post(url.clone()).timeout(timeout).json(&Request { items });
        let answer = body(request, (items.len() + 1) * BYTES_PER_SCORE).await?;
        read(&answer, items.len()).map_err(Failure::Final)
    }
}

fn read(body: &[u8], expected: usize) -> Result<Vec<f64>> {
    let Answer { scores } = serde_json::from_slice(body).context("the response is not {\"scores\": [numbers]}")?;
    ensure!(scores.len() == expected, "{} scores for {expected} completions", scores.len());
    if let Some(bad) = scores.iter().find(|s| !s.is_finite()) {
        bail!("a score is {bad}; scores must be finite");
    }
    Ok(scores)
}

impl RemoteReward for HttpRewards {
    fn allows(&self, url: &str) -> Result<()> {
        let parsed = Url::parse(url).with_context(|| format!("{url} is not a URL"))?;
        let host = parsed.host_str().unwrap_or_default();
        let port = parsed.port_or_known_default().unwrap_or_default();
        let plain = matches!(parsed.scheme(), "http" | "https") && parsed.username().is_empty();
        ensure!(
            plain && crate::config::is_listed(&self.hosts, host, port),
            "{url}: the host {host}:{port} is not allowed; add it to jobs.reward_hosts or --reward-host"
        );
        Ok(())
    }

    fn scores(&self, url: &str, timeout: Duration, items: &[RemoteItem<'_>]) -> Result<Vec<f64>> {
        self.allows(url)?;
        let parsed = Url::parse(url)?;
        let whom = format!("the reward service {url}");
        self.runtime.block_on(persistently(&whom, || self.ask(&parsed, timeout, items)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_named_hosts_are_asked() {
        assert!(HttpRewards::new(&[]).unwrap().is_none());
        let hosts = ["rewards.example".to_owned(), "127.0.0.1:9000".to_owned(), "[::1]:81".to_owned()];
        let client = HttpRewards::new(&hosts).unwrap().unwrap();
        for url in
            ["http://rewards.example/a", "https://rewards.example:8443/", "http://127.0.0.1:9000/x", "http://[::1]:81"]
        {
            client.allows(url).unwrap();
        }
        for url in [
            "http://127.0.0.1/",
            "http://127.0.0.1:9001/",
            "http://rewards.example.evil/",
            "http://rewards.example@evil/",
            "http://user@rewards.example/",
            "ftp://rewards.example/",
            "file:///etc/passwd",
            "rewards.example",
        ] {
            assert!(client.allows(url).is_err(), "{url}");
        }
    }

    #[test]
    fn answers_are_checked() {
        assert_eq!(read(br#"{"scores": [1, -0.5]}"#, 2).unwrap(), [1.0, -0.5]);
        for (body, why) in
            [("[1]", "scores"), (r#"{"scores": [1]}"#, "1 scores for 2"), (r#"{"scores": [1, null]}"#, "scores")]
        {
            let error = format!("{:#}", read(body.as_bytes(), 2).unwrap_err());
            assert!(error.contains(why), "{error}");
        }
    }
}

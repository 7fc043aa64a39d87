//! Rewards that another service computes. The caller of a recipe passes a client, which decides which hosts may be
//! called.

use std::time::Duration;

use serde::Serialize;

use crate::data::PromptInput;

/// A completion to score, as the service receives it.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct RemoteItem<'a> {
    pub prompt: &'a PromptInput,
    pub completion: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<&'a str>,
}

/// A client for reward services. Calls block until the answer has arrived.
pub trait RemoteReward: Send + Sync {
    /// # Errors
    /// Why `url` may not be called.
    fn allows(&self, url: &str) -> anyhow::Result<()>;

    /// One finite score per item, in order.
    fn scores(&self, url: &str, timeout: Duration, items: &[RemoteItem<'_>]) -> anyhow::Result<Vec<f64>>;
}

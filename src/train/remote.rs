//! A reward that another service computes. Training uses this trait only: the caller of a recipe may pass a client, which
//! decides which hosts may be called.

use std::time::Duration;

use serde::Serialize;

use crate::data::PromptInput;

/// One completion to be scored, as the service receives it.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct RemoteItem<'a> {
    pub prompt: &'a PromptInput,
    pub completion: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<&'a str>,
}

/// Asks reward services. Blocks until the answer is there.
pub trait RemoteReward: Send + Sync {
    /// Whether `url` may be asked at all; the error says why not.
    fn allows(&self, url: &str) -> anyhow::Result<()>;

    /// One finite score per item, in their order.
    fn scores(&self, url: &str, timeout: Duration, items: &[RemoteItem<'_>]) -> anyhow::Result<Vec<f64>>;
}

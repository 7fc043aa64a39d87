//! What other servers do for a run: rewards that a service computes, and responses that a fleet generates. The caller of
//! a recipe passes a client, which decides which hosts may be called.

use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use crate::data::PromptInput;
pub use crate::generation::{GenParams, Sample};

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

/// A client for servers that generate the responses of rollouts. Calls block.
pub trait RemoteGenerator: Send + Sync {
    /// Makes the servers serve the LoRA adapter in the directory `adapter` (peft's format) as `version`, beside the
    /// version before it. Earlier versions are unloaded.
    ///
    /// # Errors
    /// If no server serves it.
    fn load(&self, version: u64, adapter: &Path) -> anyhow::Result<()>;

    /// One response by `version` for each prompt, in prompt order, with the generator's log-probs. `None` if `stop`
    /// returned `true`.
    ///
    /// # Errors
    /// If a response cannot be had from any server.
    fn generate(
        &self,
        version: u64,
        prompts: &[Vec<u32>],
        params: &GenParams,
        stop: &(dyn Fn() -> bool + Sync),
    ) -> anyhow::Result<Option<Vec<Sample>>>;
}

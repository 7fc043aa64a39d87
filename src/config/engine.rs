//! `[engine]`: device and limits of the serving engine.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::text::{optional_text, text, texts};
use super::{ConfigError, error};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EngineConfig {
    /// `cpu`, `cuda` or `cuda:N`: the device that the model is served on; or a list of GPUs, `["cuda:0", "cuda:1"]`,
    /// that each hold the whole model and share the requests. `cuda` needs NVIDIA's driver (525 or newer).
    /// `sim` is the simulated device: the launches of a GPU computed slowly on the CPU, for tests.
    #[serde(deserialize_with = "texts")]
    pub device: Vec<String>,
    /// Compute threads; 0 = one per physical core.
    pub threads: usize,
    /// Sequences decoded together, on each device.
    pub max_batch: usize,
    /// Samples that may wait for a slot before requests are refused with 429.
    pub max_waiting: usize,
    /// Capacity of the key-value cache in tokens, on each device; 0 = sized from the model and `max_batch`.
    pub kv_tokens: usize,
    /// How the key-value cache stores numbers: `f32` (exact), `f16` (half the memory) or `q8_0` (8 bits and a scale for
    /// 32 numbers: 3.5 times less memory). Other formats than `f32` change log-probs slightly. CPU only.
    #[serde(deserialize_with = "text")]
    pub kv_cache: String,
    /// Versions that were trained with LoRA are served as adapters on the model that they were trained from, which is
    /// in memory once, and share its batches. Their results differ from those of the merged weights by rounding.
    pub share_base: bool,
    /// Tokens that are drafted for each sample and step by prompt lookup (n-gram matches in the text so far); 0 = none.
    /// Does not change the texts. Useful for texts that repeat their prompt, with few concurrent requests. CPU only.
    pub draft_tokens: usize,
    /// A small model with the same tokens, which then drafts instead of prompt lookup: a name, a Hugging Face directory
    /// or a GGUF file. Does not change the texts. CPU only.
    #[serde(deserialize_with = "optional_text")]
    pub draft_model: Option<String>,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            device: vec!["cpu".to_owned()],
            threads: 0,
            max_batch: 32,
            max_waiting: 256,
            kv_tokens: 0,
            kv_cache: "f32".to_owned(),
            share_base: false,
            draft_tokens: 0,
            draft_model: None,
        }
    }
}

/// Upper limit of `draft_tokens`: longer drafts are rarely accepted.
const MOST_DRAFT: usize = 64;

impl EngineConfig {
    /// # Errors
    /// When a setting is not valid; the error has its key.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if self.draft_tokens > MOST_DRAFT {
            return Err(error("engine.draft_tokens", format!("must be 0 to {MOST_DRAFT}")));
        }
        if self.draft_model.is_some() && self.draft_tokens == 0 {
            return Err(error("engine.draft_model", "requires engine.draft_tokens of at least 1"));
        }
        let of_the_cpu = [("engine.draft_tokens", self.draft_tokens > 0), ("engine.kv_cache", self.kv_cache != "f32")];
        for (key, on) in of_the_cpu {
            if on && self.device != ["cpu"] {
                return Err(error(key, "requires engine.device = \"cpu\""));
            }
        }
        Ok(())
    }
}

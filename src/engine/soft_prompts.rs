//! Soft prompts in memory: loaded at the first request that names them, and checked against the model for which they
//! were tuned.

use std::path::Path;
use std::sync::Arc;

use candle_core::Device;

use super::model_cache::ModelCache;
use super::{EngineError, ModelFiles, ServedModel};
use crate::domain::{ModelVersion, ModelVersionId};
use crate::model::SoftPrompt;

/// Number of soft prompts in memory; each has a few hundred kilobytes.
const CACHED: usize = 64;

/// The soft prompts in memory.
pub struct SoftPromptCache {
    loaded: ModelCache<SoftPrompt>,
}

fn bad(message: String) -> EngineError {
    EngineError::BadRequest { param: "prompt_adapter", message }
}

impl SoftPromptCache {
    pub fn new() -> Self {
        Self { loaded: ModelCache::new(CACHED) }
    }

    /// Loads a soft prompt for requests to `base`, and returns its number of positions.
    ///
    /// # Errors
    /// `BadRequest` if it was tuned for another model or does not fit the context; `Failed` if its files are damaged.
    pub async fn load(
        &self,
        version: &ModelVersion,
        files: &Arc<dyn ModelFiles>,
        base: &ServedModel,
    ) -> Result<usize, EngineError> {
        let name = version.name.clone();
        let read = move |dir: &Path| {
            SoftPrompt::load(dir, &Device::Cpu)
                .map_err(|e| EngineError::Failed(format!("prompt adapter '{name}': {e}")))
        };
        let soft = self.loaded.get_or_load(version, files, read).await?;
        let facts = &soft.info;
        if facts.base_sha256 != base.version.sha256 {
            return Err(bad(format!(
                "{} was tuned for {} (weights {:.12}), not for {} (weights {:.12})",
                version.name, facts.base_model, facts.base_sha256, base.version.name, base.version.sha256
            )));
        }
        if facts.n_tokens >= base.max_context {
            return Err(bad(format!("{} takes {} of {} positions", version.name, facts.n_tokens, base.max_context)));
        }
        Ok(soft.info.n_tokens)
    }

    /// A loaded soft prompt.
    ///
    /// # Errors
    /// `BadRequest` if it is not in memory.
    pub fn get(&self, id: &ModelVersionId) -> Result<Arc<SoftPrompt>, EngineError> {
        self.loaded.get(id).ok_or_else(|| bad(format!("prompt adapter {id} is not loaded")))
    }
}

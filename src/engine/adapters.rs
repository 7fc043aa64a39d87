//! Soft prompts in memory: loaded at the first request that names them, checked against the model they belong to.

use std::path::Path;
use std::sync::Arc;

use candle_core::Device;

use super::recent::Recent;
use super::{EngineError, ModelFiles, ServedModel};
use crate::domain::{ModelVersion, ModelVersionId};
use crate::model::SoftPrompt;

/// Soft prompts kept in memory; each is some hundred kilobytes.
const KEEP: usize = 64;

pub struct Adapters {
    loaded: Recent<SoftPrompt>,
}

fn bad(message: String) -> EngineError {
    EngineError::BadRequest { param: "prompt_adapter", message }
}

impl Adapters {
    pub fn new() -> Self {
        Self { loaded: Recent::new(KEEP) }
    }

    /// Positions that the soft prompt takes before a prompt of `base`.
    ///
    /// # Errors
    /// `BadRequest` when it belongs to another base or does not fit its context; `Failed` for damaged files.
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

    /// A soft prompt that was loaded before.
    pub fn get(&self, id: &ModelVersionId) -> Result<Arc<SoftPrompt>, EngineError> {
        self.loaded.get(id).ok_or_else(|| bad(format!("prompt adapter {id} is not loaded")))
    }
}

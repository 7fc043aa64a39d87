//! Soft prompts in memory: loaded when first asked for, checked against the model that they belong to.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Device;

use super::{EngineError, ServedModel};
use crate::domain::{ModelVersion, ModelVersionId};
use crate::model::SoftPrompt;

/// Soft prompts kept in memory; each is some hundred kilobytes.
const KEEP: usize = 64;

/// Most recently used last.
type Loaded = Vec<(ModelVersionId, Arc<SoftPrompt>)>;

#[derive(Clone, Default)]
pub struct Adapters {
    loaded: Arc<Mutex<Loaded>>,
}

fn bad(message: String) -> EngineError {
    EngineError::BadRequest { param: "prompt_adapter", message }
}

impl Adapters {
    pub fn new() -> Self {
        Self::default()
    }

    /// Positions that the soft prompt takes before a prompt of `base`. `dir` is where the version's files are.
    ///
    /// # Errors
    /// `BadRequest` when it belongs to another base or does not fit its context; `Failed` for damaged files.
    pub async fn load(&self, version: &ModelVersion, dir: PathBuf, base: &ServedModel) -> Result<usize, EngineError> {
        let soft = match self.get(&version.id) {
            Ok(soft) => soft,
            Err(_) => {
                let read = tokio::task::spawn_blocking(move || SoftPrompt::load(&dir, &Device::Cpu));
                let read = read.await.map_err(|e| EngineError::Failed(e.to_string()))?;
                let soft = read.map_err(|e| EngineError::Failed(format!("prompt adapter '{}': {e}", version.name)))?;
                self.keep(version.id.clone(), Arc::new(soft))
            }
        };
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
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(at) = loaded.iter().position(|(known, _)| known == id) else {
            return Err(bad(format!("prompt adapter {id} is not loaded")));
        };
        let entry = loaded.remove(at);
        let soft = entry.1.clone();
        loaded.push(entry);
        Ok(soft)
    }

    fn keep(&self, id: ModelVersionId, soft: Arc<SoftPrompt>) -> Arc<SoftPrompt> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        // Two requests may have read it at once: the first one's stays.
        if let Some((_, known)) = loaded.iter().find(|(known, _)| *known == id) {
            return known.clone();
        }
        loaded.push((id, soft.clone()));
        if loaded.len() > KEEP {
            loaded.remove(0);
        }
        soft
    }
}

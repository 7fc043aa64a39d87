//! Reward models in memory: loaded when first asked for, scored on a blocking thread.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Device;

use super::EngineError;
use crate::domain::{Message, ModelVersion, ModelVersionId, RewardScore};
use crate::model::reward::RewardModel;
use crate::model::{self, Loaded};
use crate::prompt::Texts;

/// Tokens scored in one forward pass.
const BATCH_TOKENS: usize = 4096;
/// Reward models kept in memory.
const KEEP: usize = 2;

struct Scorer {
    model: RewardModel,
    texts: Texts,
    max_length: usize,
}

type Entry = (ModelVersionId, Arc<Scorer>);

#[derive(Clone, Default)]
pub struct RewardModels {
    /// Most recently used last.
    loaded: Arc<Mutex<Vec<Entry>>>,
}

impl RewardModels {
    pub fn new() -> Self {
        Self::default()
    }

    /// Scores of conversations whose last message is the response. `path` is where the version's files are.
    pub async fn score(
        &self,
        version: &ModelVersion,
        path: PathBuf,
        conversations: &[Vec<Message>],
    ) -> Result<Vec<RewardScore>, EngineError> {
        let (this, version, conversations) = (self.clone(), version.clone(), conversations.to_vec());
        tokio::task::spawn_blocking(move || this.score_now(&version, &path, &conversations))
            .await
            .map_err(|e| EngineError::Failed(e.to_string()))?
    }

    fn score_now(
        &self,
        version: &ModelVersion,
        path: &Path,
        conversations: &[Vec<Message>],
    ) -> Result<Vec<RewardScore>, EngineError> {
        let failed = |e: String| EngineError::Failed(format!("reward model '{}': {e}", version.name));
        let scorer = self.scorer(version, path).map_err(failed)?;
        let mut ids = Vec::with_capacity(conversations.len());
        for conversation in conversations {
            let Some((response, prompt)) = conversation.split_last() else {
                let message = "a conversation needs at least the response".into();
                return Err(EngineError::BadRequest { param: "completions", message });
            };
            let encoded = scorer.texts.conversation(&prompt.to_vec().into(), &response.content, scorer.max_length);
            ids.push(encoded.map_err(|e| failed(e.to_string()))?.0);
        }
        scorer.model.scores(&ids, BATCH_TOKENS).map_err(|e| failed(e.to_string()))
    }

    fn scorer(&self, version: &ModelVersion, path: &Path) -> Result<Arc<Scorer>, String> {
        // The lock is held while loading: two requests never load the same model twice.
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = loaded.iter().position(|(id, _)| *id == version.id) {
            let entry = loaded.remove(at);
            let scorer = entry.1.clone();
            loaded.push(entry);
            return Ok(scorer);
        }
        let files: Loaded = model::load(path, &Device::Cpu).map_err(|e| e.to_string())?;
        let texts = Texts::new(&files).map_err(|e| e.to_string())?;
        let model = RewardModel::new(&files).map_err(|e| e.to_string())?;
        let scorer = Arc::new(Scorer { max_length: files.config.max_positions, model, texts });
        loaded.push((version.id.clone(), scorer.clone()));
        if loaded.len() > KEEP {
            loaded.remove(0);
        }
        Ok(scorer)
    }
}

//! Reward models in memory: loaded at the first request that names them, and run on blocking threads.

use std::path::Path;
use std::sync::Arc;

use candle_core::Device;

use super::model_cache::ModelCache;
use super::{BlockingPool, CancelToken, EngineError, ModelFiles};
use crate::data::PromptInput;
use crate::domain::{Message, ModelVersion, RewardScore};
use crate::model::heads::reward::RewardModel;
use crate::model::{self, Loaded};
use crate::prompt::Texts;

/// A batch is complete once it has at least this many tokens.
const BATCH_TOKENS: usize = 4096;
/// Number of reward models in memory.
const CACHED: usize = 2;

struct LoadedRewardModel {
    model: RewardModel,
    texts: Texts,
    max_length: usize,
}

/// Maximum number of concurrent and of waiting tasks.
const MAX_RUNNING: usize = 2;
const MAX_WAITING: usize = 64;

/// The reward models in memory.
pub struct RewardModels {
    loaded: ModelCache<LoadedRewardModel>,
    blocking: BlockingPool,
}

impl RewardModels {
    pub fn new() -> Self {
        Self { loaded: ModelCache::new(CACHED), blocking: BlockingPool::new(MAX_RUNNING, MAX_WAITING) }
    }

    /// Scores answers to one prompt with the reward model `version`.
    ///
    /// # Errors
    /// `Failed` if the model cannot be loaded or run; `Overloaded` if too many requests wait.
    pub async fn score(
        &self,
        version: &ModelVersion,
        files: &Arc<dyn ModelFiles>,
        prompt: &Arc<[Message]>,
        answers: Vec<String>,
    ) -> Result<Vec<RewardScore>, EngineError> {
        let (name, prompt) = (version.name.clone(), prompt.clone());
        let failed = move |e: String| EngineError::Failed(format!("reward model '{name}': {e}"));
        let loading = failed.clone();
        let model =
            self.loaded.get_or_load(version, files, move |path| LoadedRewardModel::load(path).map_err(loading)).await?;
        self.blocking.run(move |cancel| model.score(&prompt, &answers, cancel, failed)).await
    }
}

impl LoadedRewardModel {
    fn load(path: &Path) -> Result<Self, String> {
        let files: Loaded = model::load(path, &Device::Cpu).map_err(|e| e.to_string())?;
        let texts = Texts::for_scores(&files).map_err(|e| e.to_string())?;
        let model = RewardModel::new(&files).map_err(|e| e.to_string())?;
        Ok(Self { max_length: files.config.max_positions, model, texts })
    }

    fn score(
        &self,
        prompt: &[Message],
        answers: &[String],
        cancel: &CancelToken,
        failed: impl Fn(String) -> EngineError,
    ) -> Result<Vec<RewardScore>, EngineError> {
        cancel.check()?;
        let prompt = PromptInput::from(prompt.to_vec());
        let pairs: Vec<_> = answers.iter().map(|answer| (&prompt, answer.as_str())).collect();
        // In one call, so that a prompt that is too long is truncated equally for all answers.
        let ids = self.texts.conversations(&pairs, self.max_length).map_err(|e| failed(e.to_string()))?;
        let mut scores = Vec::with_capacity(ids.len());
        let mut rest = &ids[..];
        while !rest.is_empty() {
            cancel.check()?;
            let mut tokens = 0;
            let count = rest.iter().take_while(|sequence| {
                let fits = tokens < BATCH_TOKENS;
                tokens += sequence.len();
                fits
            });
            let (batch, after) = rest.split_at(count.count());
            let scored = self.model.scores(batch, BATCH_TOKENS).map_err(|e| failed(e.to_string()))?;
            scores.extend(scored.into_iter().zip(batch).map(|(score, ids)| RewardScore { tokens: ids.len(), ..score }));
            rest = after;
        }
        Ok(scores)
    }
}

//! Reward models in memory: loaded when first asked for, scored on a blocking thread.

use std::path::Path;
use std::sync::Arc;

use candle_core::Device;

use super::recent::Recent;
use super::{EngineError, ModelFiles};
use crate::data::PromptInput;
use crate::domain::{Message, ModelVersion, RewardScore};
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

pub struct RewardModels {
    loaded: Recent<Scorer>,
}

impl RewardModels {
    pub fn new() -> Self {
        Self { loaded: Recent::new(KEEP) }
    }

    /// Scores of conversations whose last message is the response.
    pub async fn score(
        &self,
        version: &ModelVersion,
        files: &Arc<dyn ModelFiles>,
        conversations: &[Vec<Message>],
    ) -> Result<Vec<RewardScore>, EngineError> {
        let (name, conversations) = (version.name.clone(), conversations.to_vec());
        let failed = move |e: String| EngineError::Failed(format!("reward model '{name}': {e}"));
        let loading = failed.clone();
        let scorer = self.loaded.get_or_load(version, files, move |path| Scorer::load(path).map_err(loading)).await?;
        tokio::task::spawn_blocking(move || scorer.score(&conversations, failed))
            .await
            .map_err(|e| EngineError::Failed(e.to_string()))?
    }
}

impl Scorer {
    fn load(path: &Path) -> Result<Self, String> {
        let files: Loaded = model::load(path, &Device::Cpu).map_err(|e| e.to_string())?;
        let texts = Texts::new(&files).map_err(|e| e.to_string())?;
        let model = RewardModel::new(&files).map_err(|e| e.to_string())?;
        Ok(Self { max_length: files.config.max_positions, model, texts })
    }

    fn score(
        &self,
        conversations: &[Vec<Message>],
        failed: impl Fn(String) -> EngineError,
    ) -> Result<Vec<RewardScore>, EngineError> {
        let mut pairs = Vec::with_capacity(conversations.len());
        for conversation in conversations {
            let Some((response, prompt)) = conversation.split_last() else {
                let message = "a conversation needs at least the response".into();
                return Err(EngineError::BadRequest { param: "completions", message });
            };
            pairs.push((PromptInput::from(prompt.to_vec()), response.content.as_str()));
        }
        let pairs: Vec<_> = pairs.iter().map(|(prompt, text)| (prompt, *text)).collect();
        let ids = self.texts.conversations(&pairs, self.max_length).map_err(|e| failed(e.to_string()))?;
        let mut scores = self.model.scores(&ids, BATCH_TOKENS).map_err(|e| failed(e.to_string()))?;
        for (score, read) in scores.iter_mut().zip(&ids) {
            score.tokens = read.len();
        }
        Ok(scores)
    }
}

//! Reward models in memory: loaded when first asked for, scored on a blocking thread.

use std::path::Path;
use std::sync::Arc;

use candle_core::Device;

use super::recent::Recent;
use super::{Asker, EngineError, ModelFiles, Turns};
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

/// Scorings at the same time, and those that may wait for a turn.
const AT_ONCE: usize = 2;
const MAY_WAIT: usize = 64;

pub struct RewardModels {
    loaded: Recent<Scorer>,
    turns: Turns,
}

impl RewardModels {
    pub fn new() -> Self {
        Self { loaded: Recent::new(KEEP), turns: Turns::new(AT_ONCE, MAY_WAIT) }
    }

    /// Scores of answers to one prompt.
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
        let scorer = self.loaded.get_or_load(version, files, move |path| Scorer::load(path).map_err(loading)).await?;
        self.turns.run(move |asker| scorer.score(&prompt, &answers, asker, failed)).await
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
        prompt: &[Message],
        answers: &[String],
        asker: &Asker,
        failed: impl Fn(String) -> EngineError,
    ) -> Result<Vec<RewardScore>, EngineError> {
        let prompt = prompt.to_vec().into();
        let mut scores = Vec::with_capacity(answers.len());
        let mut batch: Vec<Vec<u32>> = Vec::new();
        for (i, answer) in answers.iter().enumerate() {
            asker.still_there()?;
            let encoded = self.texts.conversation(&prompt, answer, self.max_length);
            batch.push(encoded.map_err(|e| failed(e.to_string()))?.0);
            if i + 1 == answers.len() || batch.iter().map(Vec::len).sum::<usize>() >= BATCH_TOKENS {
                scores.extend(self.model.scores(&batch, BATCH_TOKENS).map_err(|e| failed(e.to_string()))?);
                batch.clear();
            }
        }
        Ok(scores)
    }
}

//! Reward models in memory: loaded at the first request that names them, run on a blocking thread.

use std::path::Path;
use std::sync::Arc;

use candle_core::Device;

use super::recent::Recent;
use super::{Asker, EngineError, ModelFiles, Turns};
use crate::data::PromptInput;
use crate::domain::{Message, ModelVersion, RewardScore};
use crate::model::heads::reward::RewardModel;
use crate::model::{self, Loaded};
use crate::prompt::Texts;

/// Tokens scored in one forward pass.
const BATCH_TOKENS: usize = 4096;
/// Reward models kept in memory.
const KEEP: usize = 2;

struct LoadedRewardModel {
    model: RewardModel,
    texts: Texts,
    max_length: usize,
}

/// Scorings at the same time, and those that may wait for a turn.
const AT_ONCE: usize = 2;
const MAY_WAIT: usize = 64;

pub struct RewardModels {
    loaded: Recent<LoadedRewardModel>,
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
        let scorer =
            self.loaded.get_or_load(version, files, move |path| LoadedRewardModel::load(path).map_err(loading)).await?;
        self.turns.run(move |asker| scorer.score(&prompt, &answers, asker, failed)).await
    }
}

impl LoadedRewardModel {
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
        asker.still_there()?;
        let prompt = PromptInput::from(prompt.to_vec());
        let pairs: Vec<_> = answers.iter().map(|answer| (&prompt, answer.as_str())).collect();
        // Together: all answers see the same tokens of a prompt that does not fit.
        let ids = self.texts.conversations(&pairs, self.max_length).map_err(|e| failed(e.to_string()))?;
        let mut scores = Vec::with_capacity(ids.len());
        let mut rest = &ids[..];
        while !rest.is_empty() {
            asker.still_there()?;
            let mut tokens = 0;
            let many = rest.iter().take_while(|read| {
                let fits = tokens < BATCH_TOKENS;
                tokens += read.len();
                fits
            });
            let (batch, after) = rest.split_at(many.count());
            let scored = self.model.scores(batch, BATCH_TOKENS).map_err(|e| failed(e.to_string()))?;
            scores
                .extend(scored.into_iter().zip(batch).map(|(score, read)| RewardScore { tokens: read.len(), ..score }));
            rest = after;
        }
        Ok(scores)
    }
}

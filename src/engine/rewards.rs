//! Reward models in memory: loaded at the first request that names them, and run on blocking threads. They are on a device
//! where the engine has one, and on the CPU if they cannot be loaded there.

use std::path::Path;
use std::sync::Arc;

use candle_core::Device;

use super::model_cache::ModelCache;
use super::place::{Held, Place};
use super::{BlockingPool, CancelToken, EngineError, ModelFiles};
use crate::data::PromptInput;
use crate::domain::{Message, ModelVersion, RewardScore};
use crate::gpu::shared::Shared;
use crate::model::decoder::training::TrainerOptions;
use crate::model::{self, Loaded, Opened, RewardModel, Trunk};
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
    loaded: ModelCache<Held<LoadedRewardModel>>,
    blocking: BlockingPool,
    /// `None` for the CPU.
    place: Option<Place>,
}

impl RewardModels {
    pub fn new(place: Option<Place>) -> Self {
        let blocking = BlockingPool::new(MAX_RUNNING, MAX_WAITING);
        Self { loaded: ModelCache::new(CACHED), blocking, place: place.filter(|place| !place.devices.is_cpu()) }
    }

    /// Unloads the models that are on devices.
    pub fn leave_devices(&self) {
        self.loaded.leave_devices();
    }

    /// Bytes of the models on a device.
    pub fn bytes_on(&self, device: &str) -> u64 {
        self.loaded.bytes_on(device)
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
        let (loading, place) = (failed.clone(), self.place.clone());
        let load = move |path: &Path| LoadedRewardModel::load(path, place.as_ref()).map_err(loading);
        let held = self.loaded.get_or_load(version, files, load).await?;
        let on_device = held.device.is_some();
        let scores = self.blocking.run(move |cancel| held.model.score(&prompt, &answers, cancel, failed)).await;
        if on_device && matches!(scores, Err(EngineError::Failed(_))) {
            // A device that has failed may work after the model is loaded anew.
            self.loaded.retain(|id, _| *id != version.id);
        }
        scores
    }
}

impl LoadedRewardModel {
    fn load(path: &Path, place: Option<&Place>) -> Result<Held<Self>, String> {
        Held::load("a reward model", path, place, Self::on_device, |path| {
            let files: Loaded = model::load(path, &Device::Cpu).map_err(|e| e.to_string())?;
            Self::of(RewardModel::new(&files).map_err(|e| e.to_string())?, &files)
        })
    }

    fn of(model: RewardModel, files: &Loaded) -> Result<Self, String> {
        let texts = Texts::for_scores(files).map_err(|e| e.to_string())?;
        Ok(Self { max_length: files.config.max_positions, model, texts })
    }

    fn on_device(opened: Opened, device: Shared, options: TrainerOptions) -> Result<Self, String> {
        let trunk = Trunk::on_device(&opened, device, options).map_err(|e| e.to_string())?;
        // What is loaded later leaves the memory of batches alone.
        trunk.reserve(BATCH_TOKENS).map_err(|e| e.to_string())?;
        let files = opened.into_heads().map_err(|e| e.to_string())?;
        let model = RewardModel::over(trunk, &files).map_err(|e| e.to_string())?;
        // The driver compiles the kernels now, and a model of other numbers is not used.
        let score = model.score(&[vec![0, 1]], BATCH_TOKENS).map_err(|e| e.to_string())?;
        if !score.iter().all(|score| score.is_finite()) {
            return Err("its scores are not finite".to_owned());
        }
        Self::of(model, &files)
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

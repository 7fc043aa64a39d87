//! Scores conversations with reward models (wired in once the reward recipe lands).

use std::path::PathBuf;

use super::EngineError;
use crate::domain::{Message, ModelVersion};

pub struct RewardModels;

impl RewardModels {
    pub fn new(_data_dir: PathBuf) -> Self {
        Self
    }

    pub async fn score(&self, version: &ModelVersion, _: &[Vec<Message>]) -> Result<Vec<f64>, EngineError> {
        Err(EngineError::UnknownModel(version.name.clone()))
    }
}

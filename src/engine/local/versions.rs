//! Loads versions: with weights of their own, or as a LoRA adapter over the model from which they were trained.

use std::sync::Arc;

use super::{LocalEngine, read, write};
use crate::domain::ModelVersion;
use crate::engine::EngineError;
use crate::engine::drafter::check_tokens;
use crate::engine::loaded::{LoadedModel, load_lora, load_model};
use crate::model::adapters::peft;

impl LocalEngine {
    /// Loads the model that drafts tokens for the served versions. It must be loaded after the active version and
    /// before the first request.
    ///
    /// # Errors
    /// If it cannot be loaded, has other tokens than the active version, or if there is a draft model already.
    pub async fn load_draft_model(&self, version: &ModelVersion) -> Result<(), EngineError> {
        let served = self.find(None)?;
        let draft = self.read_whole(version).await?;
        let failed = |reason: String| {
            let (draft, served) = (&version.name, &served.served.version.name);
            EngineError::Failed(format!("'{draft}' cannot draft tokens for '{served}': {reason}"))
        };
        check_tokens(&draft, &served).map_err(failed)?;
        let set = self.state.draft_model.set(Arc::new(draft));
        set.map_err(|_| failed("there is a draft model already".to_owned()))
    }

    /// Loads a version with weights of its own.
    pub(super) async fn load_whole(&self, version: &ModelVersion) -> Result<Arc<LoadedModel>, EngineError> {
        Ok(self.insert(self.read_whole(version).await?))
    }

    async fn read_whole(&self, version: &ModelVersion) -> Result<LoadedModel, EngineError> {
        let path = self.files.path(version).await?;
        let version = version.clone();
        self.leave_devices();
        let (weights, devices, limits) = (self.options.weights, self.devices.clone(), self.options.limits());
        tokio::task::spawn_blocking(move || load_model(&path, version, weights, &devices, limits))
            .await
            .map_err(|e| EngineError::Failed(e.to_string()))?
    }

    /// Unloads the reward models and encoders that are on devices, to leave their memory to what is loaded now. The next
    /// request loads them again.
    fn leave_devices(&self) {
        self.rewards.leave_devices();
        self.encoders.leave_devices();
    }

    /// Loads a version as a LoRA adapter over its parent, which is loaded first if necessary. `None` if the version has
    /// no adapter or the parent is itself a LoRA version.
    pub(super) async fn load_lora(
        &self,
        version: &ModelVersion,
        parent: &ModelVersion,
    ) -> Result<Option<LoadedModel>, EngineError> {
        let path = self.files.path(version).await?;
        if !path.join(peft::FOLDER).is_dir() {
            return Ok(None);
        }
        // Adapters are not stacked.
        let parent_path = self.files.path(parent).await?;
        if parent_path.join(peft::FOLDER).is_dir() {
            return Ok(None);
        }
        let known = read(&self.state.models).get(&parent.id).cloned();
        let base = match known {
            Some(base) => base,
            None => self.load_whole(parent).await?,
        };
        self.leave_devices();
        let version = version.clone();
        tokio::task::spawn_blocking(move || load_lora(&base, &path, version))
            .await
            .map_err(|e| EngineError::Failed(e.to_string()))?
    }

    /// Adds a model to the loaded ones.
    pub(super) fn insert(&self, model: LoadedModel) -> Arc<LoadedModel> {
        let model = Arc::new(model);
        write(&self.state.models).insert(model.served.version.id.clone(), model.clone());
        model
    }
}

//! How versions come into memory: whole, or as an adapter beside the model that they were trained from.

use std::sync::Arc;

use super::{LocalEngine, read, write};
use crate::domain::ModelVersion;
use crate::engine::EngineError;
use crate::engine::loaded::{LoadedModel, load_beside, load_model};
use crate::model::adapters::peft;

impl LocalEngine {
    /// A version with weights of its own, loaded if it is not.
    pub(super) async fn whole(&self, version: &ModelVersion) -> Result<Arc<LoadedModel>, EngineError> {
        let path = self.files.path(version).await.map_err(EngineError::Failed)?;
        let version = version.clone();
        let (weights, device, limits) = (self.options.weights, self.options.device.clone(), self.options.limits());
        let model = tokio::task::spawn_blocking(move || load_model(&path, version, weights, &device, limits))
            .await
            .map_err(|e| EngineError::Failed(e.to_string()))??;
        Ok(self.keep(model))
    }

    /// A version as an adapter beside its parent; `None` where it cannot stand there.
    pub(super) async fn beside(
        &self,
        version: &ModelVersion,
        parent: &ModelVersion,
    ) -> Result<Option<LoadedModel>, EngineError> {
        let path = self.files.path(version).await.map_err(EngineError::Failed)?;
        if !path.join(peft::FOLDER).is_dir() {
            return Ok(None);
        }
        // Adapters stand on models, not on adapters.
        let under = self.files.path(parent).await.map_err(EngineError::Failed)?;
        if under.join(peft::FOLDER).is_dir() {
            return Ok(None);
        }
        let known = read(&self.state.models).get(&parent.id).cloned();
        let base = match known {
            Some(base) => base,
            None => self.whole(parent).await?,
        };
        let version = version.clone();
        tokio::task::spawn_blocking(move || load_beside(&base, &path, version))
            .await
            .map_err(|e| EngineError::Failed(e.to_string()))?
    }

    pub(super) fn keep(&self, model: LoadedModel) -> Arc<LoadedModel> {
        let model = Arc::new(model);
        write(&self.state.models).insert(model.served.version.id.clone(), model.clone());
        model
    }
}

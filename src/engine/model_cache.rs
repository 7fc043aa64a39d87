//! A cache of models other than the served versions (reward models, encoders, soft prompts). The most recently used
//! ones stay in memory.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::{EngineError, ModelFiles};
use crate::domain::{ModelVersion, ModelVersionId};

type Entry<T> = (ModelVersionId, Arc<T>);

/// An LRU cache of loaded models by version.
pub struct ModelCache<T> {
    capacity: usize,
    /// Most recently used last.
    entries: Arc<Mutex<Vec<Entry<T>>>>,
    /// Locked while a model is fetched and loaded, so that concurrent requests do not load the same files twice.
    loading: Arc<tokio::sync::Mutex<()>>,
}

impl<T> Clone for ModelCache<T> {
    fn clone(&self) -> Self {
        Self { capacity: self.capacity, entries: self.entries.clone(), loading: self.loading.clone() }
    }
}

impl<T: Send + Sync + 'static> ModelCache<T> {
    /// A cache of at most `capacity` models.
    pub fn new(capacity: usize) -> Self {
        Self { capacity, entries: Arc::default(), loading: Arc::default() }
    }

    /// The model, if it is in memory. Counts as a use.
    pub fn get(&self, id: &ModelVersionId) -> Option<Arc<T>> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let at = entries.iter().position(|(known, _)| known == id)?;
        let entry = entries.remove(at);
        let found = entry.1.clone();
        entries.push(entry);
        Some(found)
    }

    /// Drops the models for which `keep` is false; those in use stay in memory until their users have ended.
    pub fn retain(&self, mut keep: impl FnMut(&ModelVersionId, &T) -> bool) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|(id, model)| keep(id, model));
    }

    /// The sum of a figure over all models in memory.
    pub fn sum(&self, figure: impl Fn(&T) -> u64) -> u64 {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.iter().map(|(_, model)| figure(model)).sum()
    }

    /// The model of `version`. If it is not in memory, `load` loads it from its files on a blocking thread. Loading
    /// continues if the caller is dropped.
    ///
    /// # Errors
    /// Those of `files` and `load`.
    pub async fn get_or_load(
        &self,
        version: &ModelVersion,
        files: &Arc<dyn ModelFiles>,
        load: impl FnOnce(&Path) -> Result<T, EngineError> + Send + 'static,
    ) -> Result<Arc<T>, EngineError> {
        if let Some(found) = self.get(&version.id) {
            return Ok(found);
        }
        let (this, version, files) = (self.clone(), version.clone(), files.clone());
        let task = tokio::spawn(async move {
            let _one_at_a_time = this.loading.lock().await;
            if let Some(found) = this.get(&version.id) {
                return Ok(found);
            }
            let path = files.path(&version).await?;
            let loaded = tokio::task::spawn_blocking(move || load(&path));
            let loaded = Arc::new(loaded.await.map_err(|e| EngineError::Failed(e.to_string()))??);
            let mut entries = this.entries.lock().unwrap_or_else(PoisonError::into_inner);
            entries.push((version.id, loaded.clone()));
            if entries.len() > this.capacity {
                entries.remove(0);
            }
            Ok(loaded)
        });
        task.await.map_err(|e| EngineError::Failed(e.to_string()))?
    }
}

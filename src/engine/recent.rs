//! A cache of models loaded beside the served versions (reward models, encoders, soft prompts): the most recently used
//! stay in memory.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::{EngineError, ModelFiles};
use crate::domain::{ModelVersion, ModelVersionId};

type Entry<T> = (ModelVersionId, Arc<T>);

pub struct Recent<T> {
    keep: usize,
    /// Most recently used last.
    entries: Arc<Mutex<Vec<Entry<T>>>>,
    /// Held while one is brought and loaded: two requests never load the same files twice.
    loading: Arc<tokio::sync::Mutex<()>>,
}

impl<T> Clone for Recent<T> {
    fn clone(&self) -> Self {
        Self { keep: self.keep, entries: self.entries.clone(), loading: self.loading.clone() }
    }
}

impl<T: Send + Sync + 'static> Recent<T> {
    pub fn new(keep: usize) -> Self {
        Self { keep, entries: Arc::default(), loading: Arc::default() }
    }

    /// One that is in memory; it counts as used.
    pub fn get(&self, id: &ModelVersionId) -> Option<Arc<T>> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let at = entries.iter().position(|(known, _)| known == id)?;
        let entry = entries.remove(at);
        let found = entry.1.clone();
        entries.push(entry);
        Some(found)
    }

    /// The one of `version`, loaded from its files by `load` on a blocking thread when it is not in memory. A
    /// caller that leaves does not end a load that has begun.
    ///
    /// # Errors
    /// What `files` and `load` say.
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
            let path = files.path(&version).await.map_err(EngineError::Failed)?;
            let loaded = tokio::task::spawn_blocking(move || load(&path));
            let loaded = Arc::new(loaded.await.map_err(|e| EngineError::Failed(e.to_string()))??);
            let mut entries = this.entries.lock().unwrap_or_else(PoisonError::into_inner);
            entries.push((version.id, loaded.clone()));
            if entries.len() > this.keep {
                entries.remove(0);
            }
            Ok(loaded)
        });
        task.await.map_err(|e| EngineError::Failed(e.to_string()))?
    }
}

//! Model versions by the names that people use for them.

use super::{Result, Store, StoreError};
use crate::domain::{ModelKind, ModelState, ModelVersion, unknown_name};

/// A version by its name or its id.
pub async fn find_version(store: &Store, name_or_id: &str) -> Result<Option<ModelVersion>> {
    if let Some(found) = store.models().find(name_or_id).await? {
        return Ok(Some(found));
    }
    match store.models().get(&name_or_id.into()).await {
        Ok(found) => Ok(Some(found)),
        Err(StoreError::NotFound { .. }) => Ok(None),
        Err(other) => Err(other),
    }
}

/// The error message for an unknown name, with similar and existing names, of one kind or of all. `more` are names of
/// further usable models.
pub async fn unknown_version(store: &Store, name: &str, kind: Option<ModelKind>, more: &[String]) -> Result<String> {
    let mut models = store.models().list().await?;
    models.retain(|model| model.state != ModelState::Retired && kind.is_none_or(|kind| kind == model.kind));
    // The active ones first, then the latest.
    models.sort_by_key(|model| (model.state != ModelState::Active, -model.created));
    let mut known: Vec<&str> = models.iter().map(|model| model.name.as_str()).collect();
    known.extend(more.iter().map(String::as_str).filter(|name| models.iter().all(|model| model.name != *name)));
    Ok(unknown_name("model", name, &known))
}

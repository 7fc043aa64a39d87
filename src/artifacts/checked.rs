//! Compares weights with the published SHA-256 of their version whenever they are loaded: small ones before they are
//! used, large ones in the background.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use super::{ArtifactError, Artifacts, Result, weights_sha256};
use crate::domain::{ModelVersion, ModelVersionId};

/// Weights larger than this (bytes) are used while their hash is computed.
const CHECKED_FIRST: u64 = 1 << 30;

/// Called with (version, message) when weights in use turn out not to be the published ones.
pub type OnDamage = Arc<dyn Fn(&ModelVersion, String) + Send + Sync>;

/// (path, bytes, modification time) of files when they were checked. Files that have changed are checked again.
type Stamp = Vec<(PathBuf, u64, Option<SystemTime>)>;

/// The checked files of each version, and the error of weights that are not the published ones.
type Found = HashMap<ModelVersionId, (Stamp, Option<String>)>;

#[derive(Default)]
pub(super) struct Checked {
    found: Arc<Mutex<Found>>,
    on_damage: Mutex<Option<OnDamage>>,
}

fn stamp(path: &Path) -> Stamp {
    let entry = |path: PathBuf| {
        let meta = std::fs::metadata(&path).ok();
        let bytes = meta.as_ref().map_or(0, std::fs::Metadata::len);
        (path, bytes, meta.and_then(|m| m.modified().ok()))
    };
    let weights = |path: &PathBuf| path.extension().is_some_and(|e| e == "safetensors" || e == "gguf");
    let mut all: Stamp = match std::fs::read_dir(path) {
        Ok(entries) => entries.flatten().map(|e| e.path()).filter(weights).map(entry).collect(),
        Err(_) => vec![entry(path.to_owned())],
    };
    all.sort();
    all
}

/// An error message if the weights at `path` do not have the hash `sha256`.
fn difference(path: &Path, sha256: &str) -> Option<String> {
    match weights_sha256(path) {
        Ok(found) if found == sha256 => None,
        Ok(found) => Some(format!(
            "{}: the weights are not the published ones (SHA-256 {found}, published {sha256})",
            path.display()
        )),
        Err(error) => Some(format!("{}: {error:#}", path.display())),
    }
}

impl Artifacts {
    /// Sets the function that is called for damage found while the weights are in use.
    pub fn on_damage(&self, report: OnDamage) {
        *self.checked.on_damage.lock().unwrap_or_else(PoisonError::into_inner) = Some(report);
    }

    /// The path of a version's files that are about to be loaded; their weights are compared with the published
    /// SHA-256.
    ///
    /// # Errors
    /// `Missing` and `Damaged` like `path`; `Damaged` when the weights are not the published ones.
    pub async fn checked_path(&self, version: &ModelVersion) -> Result<PathBuf> {
        let path = self.path(version).await?;
        // Versions of an upstream server have no files; their hash is of the name.
        let is_hash = version.sha256.len() == 64 && version.sha256.bytes().all(|b| b.is_ascii_hexdigit());
        if !is_hash || version.stage == crate::domain::STAGE_UPSTREAM {
            return Ok(path);
        }
        let looked = {
            let path = path.clone();
            tokio::task::spawn_blocking(move || (stamp(&path), crate::hub::pull::size(&path)))
        };
        let (now, bytes) = looked.await.map_err(|e| ArtifactError::Remote(e.to_string()))?;
        let damaged = |what: String| ArtifactError::Damaged {
            name: version.name.clone(),
            file: "the weights file".to_owned(),
            what,
        };
        let known = {
            let found = self.checked.found.lock().unwrap_or_else(PoisonError::into_inner);
            found.get(&version.id).filter(|(then, _)| *then == now).map(|(_, wrong)| wrong.clone())
        };
        match known {
            Some(None) => return Ok(path),
            Some(Some(wrong)) => return Err(damaged(wrong)),
            None => {}
        }
        let compare = {
            let (path, sha256) = (path.clone(), version.sha256.clone());
            move || difference(&path, &sha256)
        };
        if bytes <= CHECKED_FIRST {
            let wrong = tokio::task::spawn_blocking(compare);
            let wrong = wrong.await.map_err(|e| ArtifactError::Remote(e.to_string()))?;
            self.note(version, now, wrong.clone());
            return match wrong {
                None => {
                    tracing::info!(model.name = %version.name, "the weights' SHA-256 is the published one");
                    Ok(path)
                }
                Some(wrong) => {
                    tracing::error!(model.name = %version.name, "{wrong}");
                    Err(damaged(wrong))
                }
            };
        }
        tracing::info!(model.name = %version.name, bytes, "the weights' SHA-256 is checked in the background");
        // Until it is known, further loads of the same files do not start further checks.
        self.note(version, now.clone(), None);
        let report = self.checked.on_damage.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (found, version) = (self.checked.found.clone(), version.clone());
        tokio::task::spawn_blocking(move || match compare() {
            None => tracing::info!(model.name = %version.name, "the weights' SHA-256 is the published one"),
            Some(wrong) => {
                let message = format!("'{}' is served, but {wrong}", version.name);
                tracing::error!("{message}");
                let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                found.insert(version.id.clone(), (now, Some(wrong)));
                drop(found);
                if let Some(report) = report {
                    report(&version, message);
                }
            }
        });
        Ok(path)
    }

    fn note(&self, version: &ModelVersion, stamp: Stamp, wrong: Option<String>) {
        let mut found = self.checked.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.insert(version.id.clone(), (stamp, wrong));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_files_have_another_stamp_and_another_hash() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("model.safetensors");
        std::fs::write(&file, b"weights").expect("a file");
        let (before, sha256) = (stamp(dir.path()), weights_sha256(dir.path()).expect("a hash"));
        assert_eq!(difference(dir.path(), &sha256), None);
        std::fs::write(&file, b"weighty").expect("a file");
        std::fs::File::open(&file).expect("the file").set_modified(SystemTime::UNIX_EPOCH).expect("a time");
        assert_ne!(stamp(dir.path()), before);
        assert!(difference(dir.path(), &sha256).is_some_and(|wrong| wrong.contains("not the published ones")));
        std::fs::remove_file(&file).expect("removed");
        assert!(difference(dir.path(), &sha256).is_some());
    }
}

//! Files of model versions: under this server's data directory, and, when an artifact store is configured, in a
//! directory or bucket that all servers share. A version's files never change, so downloaded files are kept.

mod checked;
mod files;
mod remote;
mod snapshots;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::Mutex;

pub use checked::OnDamage;
pub use files::{copy_tree, describe, verify, weights_sha256};
pub use remote::Remote;
pub use snapshots::Snapshot;

use crate::config::Config;
use crate::domain::files::is_disk_full;
use crate::domain::{ModelVersion, ModelVersionId};
use crate::engine::{EngineError, ModelFiles};
use crate::store::{ModelFile, Store, StoreError};

/// Directory of downloaded versions in the data directory: `fetched/<version id>/`.
pub const FETCHED: &str = "fetched";

#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    #[error("the files of '{name}' are neither on this machine ({}) nor in an artifact store", .looked.display())]
    Missing { name: String, looked: PathBuf },
    #[error("'{name}': {file} differs from the published file: {what}")]
    Damaged { name: String, file: String, what: String },
    #[error("the artifact store: {0}")]
    Remote(String),
    #[error("{}: {error}", .path.display())]
    Io { path: PathBuf, error: std::io::Error },
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ArtifactError {
    /// Whether a retry may succeed.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Remote(_) | Self::Io { .. } | Self::Store(_))
    }

    /// Whether there is no space on this machine's disk.
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::Io { error, .. } => is_disk_full(error),
            Self::Store(error) => matches!(error, StoreError::Full(_)),
            _ => false,
        }
    }

    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |error| Self::Io { path, error }
    }
}

pub type Result<T, E = ArtifactError> = std::result::Result<T, E>;

/// Access of one server to the files of all versions.
pub struct Artifacts {
    data_dir: PathBuf,
    store: Arc<Store>,
    remote: Option<Remote>,
    /// One download at a time, so that two requests for a version download it once.
    bringing: Mutex<()>,
    /// Weights that have been compared with their published hash.
    checked: checked::Checked,
}

impl Artifacts {
    /// # Errors
    /// A location that is neither a directory nor a supported bucket.
    pub fn open(config: &Config, store: Arc<Store>) -> Result<Arc<Self>> {
        let remote = Remote::open(&config.artifacts)?;
        Ok(Self::with(config.data_dir.clone(), store, remote))
    }

    pub fn with(data_dir: PathBuf, store: Arc<Store>, remote: Option<Remote>) -> Arc<Self> {
        Arc::new(Self { data_dir, store, remote, bringing: Mutex::new(()), checked: checked::Checked::default() })
    }

    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// The version's directory or file on this machine, downloaded from the artifact store when it is missing.
    ///
    /// # Errors
    /// `Missing` when the files are neither here nor in the artifact store, `Damaged` when a file does not have its
    /// published size and hash.
    pub async fn path(&self, version: &ModelVersion) -> Result<PathBuf> {
        let here = self.data_dir.join(&version.artifact_uri);
        if here.exists() {
            return Ok(here);
        }
        let missing = || ArtifactError::Missing { name: version.name.clone(), looked: here.clone() };
        // A restored database may hold any id.
        if !crate::domain::is_path_part(version.id.as_str()) {
            return Err(missing());
        }
        let _one = self.bringing.lock().await;
        let dir = self.data_dir.join(FETCHED).join(version.id.as_str());
        let files = self.store.models().files(&version.id).await?;
        if !dir.exists() {
            let remote = self.remote.as_ref().ok_or_else(missing)?;
            if files.is_empty() {
                return Err(missing());
            }
            tracing::info!(model.name = %version.name, files = files.len(), "downloading a model from the artifact store");
            remote.download_version(version, &files, &dir).await?;
        }
        Ok(entry(version, &files, dir))
    }

    /// Describes the files at `path` and uploads them to the artifact store, if there is one. Called before the version
    /// is registered, so that every server that sees the version can download it.
    pub async fn publish(&self, id: &ModelVersionId, path: &Path) -> Result<Vec<ModelFile>> {
        let described = {
            let path = path.to_owned();
            tokio::task::spawn_blocking(move || describe(&path))
        };
        let files = described.await.map_err(|e| ArtifactError::Remote(e.to_string()))??;
        if let Some(remote) = &self.remote {
            remote.upload_version(id, path, &files).await?;
        }
        Ok(files)
    }

    pub fn is_shared(&self) -> bool {
        self.remote.is_some()
    }
}

impl std::fmt::Debug for Artifacts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Artifacts").field("data_dir", &self.data_dir).field("shared", &self.is_shared()).finish()
    }
}

#[async_trait]
impl ModelFiles for Artifacts {
    async fn path(&self, version: &ModelVersion) -> Result<PathBuf, EngineError> {
        self.checked_path(version).await.map_err(|error| match error.is_disk_full() {
            true => EngineError::DiskFull(error.to_string()),
            false => EngineError::Failed(error.to_string()),
        })
    }

    async fn parent(&self, version: &ModelVersion) -> Option<ModelVersion> {
        self.store.models().get(version.parent_id.as_ref()?).await.ok()
    }
}

/// The path to load: the directory, or the one `.gguf` file in it. A restored version may have no recorded files.
fn entry(version: &ModelVersion, files: &[ModelFile], dir: PathBuf) -> PathBuf {
    let uri = Path::new(&version.artifact_uri);
    match (files, uri.file_name()) {
        ([one], _) if version.artifact_uri.ends_with(".gguf") => dir.join(&one.path),
        ([], Some(name)) if version.artifact_uri.ends_with(".gguf") => dir.join(name),
        _ => dir,
    }
}

//! The shared artifact store: a directory or an S3-compatible bucket, one object per file at
//! `<version id>/<path>`.

use std::path::Path;
use std::sync::Arc;

use futures::StreamExt;
use object_store::aws::AmazonS3Builder;
use object_store::buffered::BufWriter;
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, ObjectStoreExt};
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;

use super::files::{is_inside, place, sync_dir};
use super::{ArtifactError, Result};
use crate::config::ArtifactsConfig;
use crate::domain::{ModelVersion, ModelVersionId};
use crate::store::ModelFile;

/// The artifact store of all servers.
pub struct Remote {
    pub(super) objects: Arc<dyn ObjectStore>,
}

pub(super) fn failed(error: impl std::fmt::Display) -> ArtifactError {
    ArtifactError::Remote(error.to_string())
}

impl Remote {
    pub fn new(objects: Arc<dyn ObjectStore>) -> Self {
        Self { objects }
    }

    /// `None` when no location is configured.
    ///
    /// # Errors
    /// A location that is neither `file://DIR` nor `s3://BUCKET[/PREFIX]`, or a directory that cannot be created.
    pub fn open(config: &ArtifactsConfig) -> Result<Option<Self>> {
        let Some(url) = &config.url else { return Ok(None) };
        if let Some(dir) = url.strip_prefix("file://") {
            std::fs::create_dir_all(dir).map_err(ArtifactError::io(Path::new(dir)))?;
            return Ok(Some(Self::new(Arc::new(LocalFileSystem::new_with_prefix(dir).map_err(failed)?))));
        }
        let Some(place) = url.strip_prefix("s3://") else {
            return Err(failed("artifacts.url must be file://DIR or s3://BUCKET/PREFIX"));
        };
        let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
        // Credentials that are not configured are read from AWS_… variables or the machine's role.
        let mut s3 = AmazonS3Builder::from_env().with_bucket_name(bucket).with_allow_http(config.allow_http);
        if let Some(endpoint) = &config.endpoint {
            s3 = s3.with_endpoint(endpoint);
        }
        if let Some(region) = &config.region {
            s3 = s3.with_region(region);
        }
        if let (Some(id), Some(secret)) = (&config.access_key_id, &config.secret_access_key) {
            s3 = s3.with_access_key_id(id).with_secret_access_key(secret);
        }
        let bucket: Arc<dyn ObjectStore> = Arc::new(s3.build().map_err(failed)?);
        let prefix = prefix.trim_end_matches('/');
        Ok(Some(Self::new(if prefix.is_empty() { bucket } else { Arc::new(PrefixStore::new(bucket, prefix)) })))
    }

    fn key(id: &ModelVersionId, file: &ModelFile) -> Result<Key> {
        if !is_inside(&file.path) {
            return Err(failed(format!("the path '{}' leads out of the model's directory", file.path)));
        }
        Key::parse(format!("{}/{}", id.as_str(), file.path)).map_err(failed)
    }

    /// Uploads every file of the version at `root`, large ones in parts. Idempotent.
    pub async fn upload_version(&self, id: &ModelVersionId, root: &Path, files: &[ModelFile]) -> Result<()> {
        for file in files {
            let at = place(root, file);
            let mut source = tokio::fs::File::open(&at).await.map_err(ArtifactError::io(&at))?;
            let mut target = BufWriter::new(self.objects.clone(), Self::key(id, file)?);
            let copied = tokio::io::copy(&mut source, &mut target).await.map_err(failed)?;
            if copied != file.bytes as u64 {
                target.abort().await.map_err(failed)?;
                return Err(failed(format!("{} changed while it was being uploaded", file.path)));
            }
            target.shutdown().await.map_err(failed)?;
        }
        Ok(())
    }

    /// Downloads a version into `dir` atomically: into a temporary directory, which is renamed once every file is
    /// verified.
    pub async fn download_version(&self, version: &ModelVersion, files: &[ModelFile], dir: &Path) -> Result<()> {
        let parent = dir.parent().unwrap_or(dir);
        let aside = parent.join(format!(".{}-{}", version.id.as_str(), ModelVersionId::new().as_str()));
        let brought = self.download_files(version, files, &aside).await;
        let done = match brought {
            Ok(()) => tokio::fs::rename(&aside, dir).await.map_err(ArtifactError::io(dir)),
            Err(error) => Err(error),
        };
        if let Err(error) = done {
            let _ = tokio::fs::remove_dir_all(&aside).await;
            // Another process may have downloaded it to this directory in the meantime.
            return if dir.exists() { Ok(()) } else { Err(error) };
        }
        sync_dir(parent).map_err(ArtifactError::io(parent))
    }

    async fn download_files(&self, version: &ModelVersion, files: &[ModelFile], aside: &Path) -> Result<()> {
        for file in files {
            let target = aside.join(&file.path);
            let parent = target.parent().unwrap_or(aside);
            let key = Self::key(&version.id, file)?;
            tokio::fs::create_dir_all(parent).await.map_err(ArtifactError::io(parent))?;
            let mut out = tokio::fs::File::create(&target).await.map_err(ArtifactError::io(&target))?;
            let damaged =
                |what: String| ArtifactError::Damaged { name: version.name.clone(), file: file.path.clone(), what };
            let mut chunks = self.objects.get(&key).await.map_err(failed)?.into_stream();
            let (mut hash, mut bytes) = (Sha256::new(), 0i64);
            while let Some(chunk) = chunks.next().await {
                let chunk = chunk.map_err(failed)?;
                bytes += chunk.len() as i64;
                if bytes > file.bytes {
                    return Err(damaged(format!("longer than the published {} bytes", file.bytes)));
                }
                hash.update(&chunk);
                out.write_all(&chunk).await.map_err(ArtifactError::io(&target))?;
            }
            let sha256 = hex::encode(hash.finalize());
            if (bytes, &sha256) != (file.bytes, &file.sha256) {
                return Err(damaged(format!("{bytes} bytes, SHA-256 {sha256}")));
            }
            out.sync_all().await.map_err(ArtifactError::io(&target))?;
        }
        sync_dir(aside).map_err(ArtifactError::io(aside))
    }
}

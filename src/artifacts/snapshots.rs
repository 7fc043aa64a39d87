//! Snapshots of running jobs in the artifact store: the newest checkpoint and the job's data, so that another machine
//! can resume the job of a lost one. Files lie under their hash at `jobs/<job id>/files/`; `jobs/<job
//! id>/at-<attempt>.json` lists those of the attempt's newest checkpoint and is written last.

use std::collections::BTreeSet;
use std::path::Path;

use futures::{StreamExt, TryStreamExt};
use object_store::buffered::BufWriter;
use object_store::path::Path as Key;
use object_store::{ObjectStoreExt, PutPayload};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;

use super::files::is_inside;
use super::remote::{Remote, failed};
use super::{ArtifactError, Artifacts, Result};
use crate::domain::{JobId, hash, is_path_part};
use crate::store::ModelFile;

/// The files of a job as of one checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The attempt that made it.
    pub attempt: i64,
    /// The checkpoint's directory under `checkpoints/`.
    pub checkpoint: String,
    /// Relative to the job's directory.
    pub files: Vec<ModelFile>,
}

const PREFIX: &str = "jobs";

fn prefix(job: &JobId) -> Result<String> {
    match is_path_part(job.as_str()) {
        true => Ok(format!("{PREFIX}/{}", job.as_str())),
        // A restored database may hold any id.
        false => Err(failed(format!("'{job}' is not a valid job id"))),
    }
}

fn file_key(job: &JobId, sha256: &str) -> Result<Key> {
    Key::parse(format!("{}/files/{sha256}", prefix(job)?)).map_err(failed)
}

/// `at-<attempt>.json` → the attempt.
fn attempt_of(key: &Key) -> Option<i64> {
    key.filename()?.strip_prefix("at-")?.strip_suffix(".json")?.parse().ok()
}

/// Sizes and hashes of files below `root`.
fn described(root: &Path, paths: &[String]) -> Result<Vec<ModelFile>> {
    let one = |path: &String| {
        let at = root.join(path);
        let (sha256, bytes) = hash::of_file(&at).map_err(ArtifactError::io(&at))?;
        Ok(ModelFile { path: path.clone(), bytes: bytes.cast_signed(), sha256 })
    };
    paths.iter().map(one).collect()
}

impl Remote {
    /// Every object under `prefix`, with its size.
    async fn under(&self, prefix: &str) -> Result<Vec<(Key, u64)>> {
        let found = self.objects.list(Some(&Key::from(prefix)));
        found.map_ok(|object| (object.location, object.size)).try_collect().await.map_err(failed)
    }

    async fn remove(&self, keys: Vec<Key>) -> Result<()> {
        for key in keys {
            match self.objects.delete(&key).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(())
    }

    async fn upload(&self, at: &Path, key: Key, file: &ModelFile) -> Result<()> {
        let mut source = tokio::fs::File::open(at).await.map_err(ArtifactError::io(at))?;
        let mut target = BufWriter::new(self.objects.clone(), key);
        let copied = tokio::io::copy(&mut source, &mut target).await.map_err(failed)?;
        if copied != file.bytes as u64 {
            target.abort().await.map_err(failed)?;
            return Err(failed(format!("{} changed while it was being uploaded", file.path)));
        }
        target.shutdown().await.map_err(failed)
    }

    async fn upload_snapshot(&self, job: &JobId, root: &Path, snapshot: &Snapshot) -> Result<()> {
        let there = self.under(&prefix(job)?).await?;
        for file in &snapshot.files {
            let key = file_key(job, &file.sha256)?;
            if !there.contains(&(key.clone(), file.bytes as u64)) {
                self.upload(&root.join(&file.path), key, file).await?;
            }
        }
        let list = Key::parse(format!("{}/at-{}.json", prefix(job)?, snapshot.attempt)).map_err(failed)?;
        let text = serde_json::to_vec(snapshot).map_err(failed)?;
        self.objects.put(&list, PutPayload::from(text)).await.map_err(failed)?;
        // Files that only this or earlier attempts listed are no longer needed, unless there is a later attempt.
        if there.iter().filter_map(|(key, _)| attempt_of(key)).any(|attempt| attempt > snapshot.attempt) {
            return Ok(());
        }
        let mut needed = BTreeSet::from([list]);
        for file in &snapshot.files {
            needed.insert(file_key(job, &file.sha256)?);
        }
        self.remove(there.into_iter().map(|(key, _)| key).filter(|key| !needed.contains(key)).collect()).await
    }

    async fn latest_snapshot(&self, job: &JobId) -> Result<Option<Snapshot>> {
        let there = self.under(&prefix(job)?).await?;
        let newest = there.into_iter().filter_map(|(key, _)| attempt_of(&key).map(|n| (n, key))).max();
        let Some((_, key)) = newest else { return Ok(None) };
        let text = match self.objects.get(&key).await {
            Ok(found) => found.bytes().await.map_err(failed)?,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        serde_json::from_slice(&text).map(Some).map_err(|e| failed(format!("{key}: {e}")))
    }

    async fn download_snapshot(&self, job: &JobId, snapshot: &Snapshot, to: &Path) -> Result<()> {
        for file in &snapshot.files {
            if !is_inside(&file.path) {
                return Err(failed(format!("the path '{}' leads out of the job's directory", file.path)));
            }
            let target = to.join(&file.path);
            let parent = target.parent().unwrap_or(to);
            tokio::fs::create_dir_all(parent).await.map_err(ArtifactError::io(parent))?;
            let mut out = tokio::fs::File::create(&target).await.map_err(ArtifactError::io(&target))?;
            let mut chunks = self.objects.get(&file_key(job, &file.sha256)?).await.map_err(failed)?.into_stream();
            while let Some(chunk) = chunks.next().await {
                out.write_all(&chunk.map_err(failed)?).await.map_err(ArtifactError::io(&target))?;
            }
            out.sync_all().await.map_err(ArtifactError::io(&target))?;
        }
        let (to, files) = (to.to_owned(), snapshot.files.clone());
        let verified = tokio::task::spawn_blocking(move || super::verify("the job's checkpoint", &to, &files));
        verified.await.map_err(failed)?
    }
}

impl Artifacts {
    /// Uploads the files at `paths` below `job_dir` as the newest checkpoint of the job; files that the store has are
    /// not uploaded again. Does nothing without an artifact store.
    ///
    /// # Errors
    /// A file that is missing, or errors of the artifact store; the previous checkpoint stays the newest.
    pub async fn upload_snapshot(
        &self,
        job: &JobId,
        attempt: i64,
        job_dir: &Path,
        checkpoint: &str,
        paths: Vec<String>,
    ) -> Result<()> {
        let Some(remote) = &self.remote else { return Ok(()) };
        let root = job_dir.to_owned();
        let files = tokio::task::spawn_blocking(move || described(&root, &paths)).await.map_err(failed)??;
        remote.upload_snapshot(job, job_dir, &Snapshot { attempt, checkpoint: checkpoint.to_owned(), files }).await
    }

    /// The newest checkpoint of the job in the artifact store.
    ///
    /// # Errors
    /// Errors of the artifact store.
    pub async fn latest_snapshot(&self, job: &JobId) -> Result<Option<Snapshot>> {
        match &self.remote {
            Some(remote) => remote.latest_snapshot(job).await,
            None => Ok(None),
        }
    }

    /// Downloads the files of a snapshot below `to`, each verified by size and hash.
    ///
    /// # Errors
    /// `Damaged` for a file that differs from the uploaded one; errors of the artifact store.
    pub async fn download_snapshot(&self, job: &JobId, snapshot: &Snapshot, to: &Path) -> Result<()> {
        match &self.remote {
            Some(remote) => remote.download_snapshot(job, snapshot, to).await,
            None => Err(failed("no artifact store is configured")),
        }
    }

    /// Removes a job's checkpoints and data from the artifact store.
    ///
    /// # Errors
    /// Errors of the artifact store.
    pub async fn remove_snapshots(&self, job: &JobId) -> Result<()> {
        let Some(remote) = &self.remote else { return Ok(()) };
        let there = remote.under(&prefix(job)?).await?;
        remote.remove(there.into_iter().map(|(key, _)| key).collect()).await
    }
}

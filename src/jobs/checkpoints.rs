//! Checkpoints in the artifact store: each checkpoint of a job is uploaded together with the job's data, and a machine
//! that takes the job over resumes from the newest one.

use std::path::Path;
use std::sync::Arc;

use tokio::task::JoinHandle;

use crate::artifacts::{ArtifactError, Artifacts, Snapshot};
use crate::domain::JobId;

const CHECKPOINTS: &str = "checkpoints";
/// File that names the best checkpoint so far, if the recipe marks one.
const BEST: &str = "best.json";

/// The step in a checkpoint's name: `ckpt-{step}-a{n}`.
fn step_of(name: &str) -> Option<u64> {
    let (step, attempt) = name.strip_prefix("ckpt-")?.split_once("-a")?;
    attempt.parse::<u64>().ok()?;
    step.parse().ok()
}

/// The highest step among the checkpoints of a job's directory.
fn newest_local_step(job_dir: &Path) -> Option<u64> {
    let entries = std::fs::read_dir(job_dir.join(CHECKPOINTS)).ok()?;
    entries.flatten().filter_map(|entry| step_of(entry.file_name().to_str()?)).max()
}

/// Whether the data in the job's directory is that of the snapshot.
fn same_data(job_dir: &Path, snapshot: &Snapshot) -> bool {
    let data = snapshot.files.iter().filter(|file| !file.path.contains('/'));
    data.into_iter().all(|file| {
        crate::domain::hash::of_file(&job_dir.join(&file.path)).is_ok_and(|(sha256, _)| sha256 == file.sha256)
    })
}

/// Files to upload with a checkpoint, relative to the job's directory: those of the checkpoint, of the best one, and
/// the job's data.
fn paths(job_dir: &Path, checkpoint: &str) -> std::io::Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(job_dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_file() && (name.ends_with(".jsonl") || name == "datasets.json") {
            found.push(name);
        }
    }
    let mut names = vec![checkpoint.to_owned()];
    // The recipe may return to its best checkpoint.
    if let Ok(text) = std::fs::read(job_dir.join(CHECKPOINTS).join(BEST)) {
        let best: serde_json::Value = serde_json::from_slice(&text)?;
        let name = best["name"].as_str().filter(|name| step_of(name).is_some()).unwrap_or(checkpoint);
        found.push(format!("{CHECKPOINTS}/{BEST}"));
        names.push(name.to_owned());
    }
    for name in names {
        for entry in std::fs::read_dir(job_dir.join(CHECKPOINTS).join(&name))? {
            found.push(format!("{CHECKPOINTS}/{name}/{}", entry?.file_name().to_string_lossy()));
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

/// Uploads the checkpoints of one attempt, one at a time. Of those that are written during an upload, only the newest
/// is uploaded next.
pub(super) struct CheckpointUploader {
    artifacts: Arc<Artifacts>,
    job: JobId,
    attempt: i64,
    job_dir: std::path::PathBuf,
    running: Option<JoinHandle<()>>,
    next: Option<String>,
}

impl CheckpointUploader {
    pub(super) fn new(artifacts: Arc<Artifacts>, job: &JobId, attempt: i64, job_dir: &Path) -> Self {
        Self { artifacts, job: job.clone(), attempt, job_dir: job_dir.to_owned(), running: None, next: None }
    }

    /// Schedules the upload of the checkpoint at `path`, which is complete.
    pub(super) fn checkpoint_written(&mut self, path: &str) {
        let name = Path::new(path).file_name().and_then(|name| name.to_str());
        if self.artifacts.is_shared()
            && let Some(name) = name.filter(|name| step_of(name).is_some())
        {
            self.next = Some(name.to_owned());
        }
        self.start_next();
    }

    /// Begins the next upload unless one is running.
    pub(super) fn start_next(&mut self) {
        if self.running.as_ref().is_some_and(|running| !running.is_finished()) {
            return;
        }
        let Some(name) = self.next.take() else { return };
        let (artifacts, job, attempt, dir) =
            (self.artifacts.clone(), self.job.clone(), self.attempt, self.job_dir.clone());
        self.running = Some(tokio::spawn(async move {
            let uploaded = match paths(&dir, &name) {
                Ok(paths) => artifacts.upload_snapshot(&job, attempt, &dir, &name, paths).await,
                Err(error) => Err(ArtifactError::Io { path: dir.join(CHECKPOINTS).join(&name), error }),
            };
            match uploaded {
                Ok(()) => tracing::debug!(job.id = %job, checkpoint = name, "the checkpoint is in the artifact store"),
                // A trainer keeps its newest checkpoints only, and reports from a place arrive late.
                Err(ArtifactError::Io { error, .. }) if error.kind() == std::io::ErrorKind::NotFound => {
                    tracing::debug!(job.id = %job, checkpoint = name, "the checkpoint was replaced by a newer one before its upload");
                }
                // A later upload may succeed; until then another machine would resume from an older checkpoint.
                Err(error) => {
                    tracing::warn!(job.id = %job, checkpoint = name, %error, "the checkpoint cannot be uploaded")
                }
            }
        }));
    }

    /// Waits until every scheduled upload has succeeded or failed.
    pub(super) async fn finish(&mut self) {
        while let Some(running) = self.running.take() {
            let _ = running.await;
            self.start_next();
        }
    }
}

/// Downloads the newest checkpoint of the artifact store into the job's directory if its step is higher than that of
/// the local one, or if it was made with other data. Returns whether it did.
///
/// # Errors
/// A store that does not answer, a damaged file, a directory that cannot be written.
pub(super) async fn download_newest(artifacts: &Artifacts, job: &JobId, job_dir: &Path) -> Result<bool, ArtifactError> {
    let Some(snapshot) = artifacts.latest_snapshot(job).await? else { return Ok(false) };
    let (dir, wanted) = (job_dir.to_owned(), snapshot.clone());
    let better = tokio::task::spawn_blocking(move || {
        newest_local_step(&dir) < step_of(&wanted.checkpoint) || !same_data(&dir, &wanted)
    });
    if !better.await.map_err(|e| ArtifactError::Remote(e.to_string()))? {
        return Ok(false);
    }
    tracing::info!(job.id = %job, checkpoint = snapshot.checkpoint, "downloading a checkpoint from the artifact store");
    let download = job_dir.join("brought.tmp");
    let cleared = tokio::fs::remove_dir_all(&download).await;
    if let Err(error) = cleared.or_else(|e| if e.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(e) }) {
        return Err(ArtifactError::Io { path: download, error });
    }
    artifacts.download_snapshot(job, &snapshot, &download).await?;
    let dir = job_dir.to_owned();
    let installed = tokio::task::spawn_blocking(move || install(&download, &dir));
    installed
        .await
        .map_err(|e| ArtifactError::Remote(e.to_string()))?
        .map_err(|error| ArtifactError::Io { path: job_dir.to_owned(), error })?;
    Ok(true)
}

/// Moves downloaded files into the job's directory. Old checkpoints are removed first: after a crash in between, the
/// job has none here and downloads them again.
fn install(download: &Path, job_dir: &Path) -> std::io::Result<()> {
    let checkpoints = job_dir.join(CHECKPOINTS);
    if checkpoints.exists() {
        std::fs::remove_dir_all(&checkpoints)?;
    }
    for entry in std::fs::read_dir(download)? {
        let entry = entry?;
        if entry.file_name() != CHECKPOINTS {
            std::fs::rename(entry.path(), job_dir.join(entry.file_name()))?;
        }
    }
    std::fs::rename(download.join(CHECKPOINTS), checkpoints)?;
    std::fs::remove_dir(download)?;
    std::fs::File::open(job_dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_checkpoint_is_found_by_its_step() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(newest_local_step(dir.path()), None);
        for name in ["ckpt-00000009-a2", "ckpt-00000010-a1", "ckpt-00000011-a1.tmp", "best.json", "other"] {
            std::fs::create_dir_all(dir.path().join(CHECKPOINTS).join(name)).expect("made");
        }
        assert_eq!(newest_local_step(dir.path()), Some(10), "not the one whose writing was cut off");
        assert!(None < step_of("ckpt-00000000-a1"), "any checkpoint is better than none");
    }
}

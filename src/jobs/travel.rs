//! Checkpoints that travel: with an artifact store, each checkpoint of a job is uploaded with the data that it was made
//! with, and a machine that takes the job over begins with the newest one.

use std::path::Path;
use std::sync::Arc;

use tokio::task::JoinHandle;

use crate::artifacts::{ArtifactError, Artifacts, Snapshot};
use crate::domain::JobId;

const CHECKPOINTS: &str = "checkpoints";
/// Names the best checkpoint so far, where a recipe marks one.
const BEST: &str = "best.json";

/// The step that a checkpoint's name tells: `ckpt-{step}-a{n}`.
fn step_of(name: &str) -> Option<u64> {
    let (step, attempt) = name.strip_prefix("ckpt-")?.split_once("-a")?;
    attempt.parse::<u64>().ok()?;
    step.parse().ok()
}

/// The highest step among the checkpoints of a job's directory.
fn newest_here(job_dir: &Path) -> Option<u64> {
    let entries = std::fs::read_dir(job_dir.join(CHECKPOINTS)).ok()?;
    entries.flatten().filter_map(|entry| step_of(entry.file_name().to_str()?)).max()
}

/// Whether the data here is that of the snapshot.
fn same_data(job_dir: &Path, snapshot: &Snapshot) -> bool {
    let data = snapshot.files.iter().filter(|file| !file.path.contains('/'));
    data.into_iter().all(|file| {
        crate::domain::hash::of_file(&job_dir.join(&file.path)).is_ok_and(|(sha256, _)| sha256 == file.sha256)
    })
}

/// What travels with a checkpoint: its files, those of the best one, and the job's data. Relative to the job's directory.
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
    // The recipe may return to its best one.
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

/// Uploads the checkpoints of one attempt, one at a time; while one is on its way, only the newest of those that follow
/// is kept for later.
pub(super) struct Courier {
    artifacts: Arc<Artifacts>,
    job: JobId,
    attempt: i64,
    job_dir: std::path::PathBuf,
    running: Option<JoinHandle<()>>,
    next: Option<String>,
}

impl Courier {
    pub(super) fn new(artifacts: Arc<Artifacts>, job: &JobId, attempt: i64, job_dir: &Path) -> Self {
        Self { artifacts, job: job.clone(), attempt, job_dir: job_dir.to_owned(), running: None, next: None }
    }

    /// A checkpoint is complete at this path.
    pub(super) fn made(&mut self, path: &str) {
        let name = Path::new(path).file_name().and_then(|name| name.to_str());
        if self.artifacts.is_shared()
            && let Some(name) = name.filter(|name| step_of(name).is_some())
        {
            self.next = Some(name.to_owned());
        }
        self.go_on();
    }

    /// Begins the next upload when none is on its way.
    pub(super) fn go_on(&mut self) {
        if self.running.as_ref().is_some_and(|running| !running.is_finished()) {
            return;
        }
        let Some(name) = self.next.take() else { return };
        let (artifacts, job, attempt, dir) =
            (self.artifacts.clone(), self.job.clone(), self.attempt, self.job_dir.clone());
        self.running = Some(tokio::spawn(async move {
            let kept = match paths(&dir, &name) {
                Ok(paths) => artifacts.keep_snapshot(&job, attempt, &dir, &name, paths).await,
                Err(error) => Err(ArtifactError::Io { path: dir.join(CHECKPOINTS).join(&name), error }),
            };
            match kept {
                Ok(()) => tracing::debug!(job.id = %job, checkpoint = name, "the checkpoint is in the artifact store"),
                // Trainers keep their newest checkpoints only; those of a trainer elsewhere are heard of late.
                Err(ArtifactError::Io { error, .. }) if error.kind() == std::io::ErrorKind::NotFound => {
                    tracing::debug!(job.id = %job, checkpoint = name, "a newer checkpoint has taken its place");
                }
                // The next one may get through; a job that is taken over elsewhere begins with an older one.
                Err(error) => tracing::warn!(job.id = %job, checkpoint = name, %error, "the checkpoint stays here"),
            }
        }));
    }

    /// Until everything has been uploaded, or could not be.
    pub(super) async fn arrived(&mut self) {
        while let Some(running) = self.running.take() {
            let _ = running.await;
            self.go_on();
        }
    }
}

/// Puts the newest checkpoint of the artifact store in the job's directory when it goes further than what is there, or was
/// made with other data. Returns whether it did.
///
/// # Errors
/// A store that does not answer, a damaged file, a directory that cannot be written.
pub(super) async fn bring(artifacts: &Artifacts, job: &JobId, job_dir: &Path) -> Result<bool, ArtifactError> {
    let Some(snapshot) = artifacts.latest_snapshot(job).await? else { return Ok(false) };
    let (dir, wanted) = (job_dir.to_owned(), snapshot.clone());
    let better = tokio::task::spawn_blocking(move || {
        newest_here(&dir) < step_of(&wanted.checkpoint) || !same_data(&dir, &wanted)
    });
    if !better.await.map_err(|e| ArtifactError::Remote(e.to_string()))? {
        return Ok(false);
    }
    tracing::info!(job.id = %job, checkpoint = snapshot.checkpoint, "bringing a checkpoint from the artifact store");
    let aside = job_dir.join("brought.tmp");
    let cleared = tokio::fs::remove_dir_all(&aside).await;
    if let Err(error) = cleared.or_else(|e| if e.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(e) }) {
        return Err(ArtifactError::Io { path: aside, error });
    }
    artifacts.bring_snapshot(job, &snapshot, &aside).await?;
    let dir = job_dir.to_owned();
    let placed = tokio::task::spawn_blocking(move || put_in_place(&aside, &dir));
    placed
        .await
        .map_err(|e| ArtifactError::Remote(e.to_string()))?
        .map_err(|error| ArtifactError::Io { path: job_dir.to_owned(), error })?;
    Ok(true)
}

/// Checkpoints that are replaced go first: in a crash between, the job has none here and brings them again.
fn put_in_place(aside: &Path, job_dir: &Path) -> std::io::Result<()> {
    let checkpoints = job_dir.join(CHECKPOINTS);
    if checkpoints.exists() {
        std::fs::remove_dir_all(&checkpoints)?;
    }
    for entry in std::fs::read_dir(aside)? {
        let entry = entry?;
        if entry.file_name() != CHECKPOINTS {
            std::fs::rename(entry.path(), job_dir.join(entry.file_name()))?;
        }
    }
    std::fs::rename(aside.join(CHECKPOINTS), checkpoints)?;
    std::fs::remove_dir(aside)?;
    std::fs::File::open(job_dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_checkpoint_is_found_by_its_step() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(newest_here(dir.path()), None);
        for name in ["ckpt-00000009-a2", "ckpt-00000010-a1", "ckpt-00000011-a1.tmp", "best.json", "other"] {
            std::fs::create_dir_all(dir.path().join(CHECKPOINTS).join(name)).expect("made");
        }
        assert_eq!(newest_here(dir.path()), Some(10), "not the one whose writing was cut off");
        assert!(None < step_of("ckpt-00000000-a1"), "any checkpoint is better than none");
    }
}

//! Files of ended jobs (checkpoints, logs, frozen data), and which of them are no longer needed.

use std::path::{Path, PathBuf};

use crate::domain::{JobId, JobState, Micros};
use crate::store::{Result, Store, StoreError};

/// The removable files of a job that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    pub job_id: JobId,
    /// When the job ended.
    pub ended: Micros,
    /// Files and directories that may be removed. The data that a published model was trained on is not among them.
    pub paths: Vec<PathBuf>,
    pub bytes: u64,
    /// Whether the whole directory may be removed.
    pub whole: bool,
}

/// Removable files under `DATA/jobs` of this machine, ordered by the end of their jobs, oldest first. Directories of
/// jobs that are not in the database are not touched.
///
/// # Errors
/// Errors of the store; a directory that cannot be read.
pub async fn leftovers(store: &Store, data_dir: &Path) -> Result<Vec<Leftover>> {
    let jobs = data_dir.join("jobs");
    let published: std::collections::HashSet<JobId> =
        store.models().list().await?.into_iter().filter_map(|version| version.job_id).collect();
    let mut found = Vec::new();
    for (name, dir) in entries(&jobs)? {
        let id = JobId::from(name.as_str());
        let job = match store.jobs().get(&id).await {
            Ok(job) => job,
            Err(StoreError::NotFound { .. }) => continue,
            Err(error) => return Err(error),
        };
        let over = matches!(job.state, JobState::Succeeded | JobState::Failed | JobState::Cancelled);
        let Some(ended) = job.finished.filter(|_| over) else { continue };
        let keeps_data = published.contains(&id);
        let mut leftover = Leftover { job_id: id, ended, paths: Vec::new(), bytes: 0, whole: !keeps_data };
        for (name, path) in entries(&dir)? {
            if keeps_data && is_data(&name) {
                continue;
            }
            leftover.bytes += size(&path)?;
            leftover.paths.push(path);
        }
        if leftover.whole || !leftover.paths.is_empty() {
            found.push(leftover);
        }
    }
    found.sort_by(|a, b| (a.ended, &a.job_id).cmp(&(b.ended, &b.job_id)));
    Ok(found)
}

/// Whether a file is frozen data or the job's description.
fn is_data(name: &str) -> bool {
    name.ends_with(".jsonl") || matches!(name, "datasets.json" | super::wire::SPEC)
}

/// Removes a job's leftover files, unless the job is running again; returns whether they were removed.
///
/// # Errors
/// Errors of the store; a file that cannot be removed.
pub async fn remove(store: &Store, data_dir: &Path, leftover: Leftover) -> Result<bool> {
    let job = store.jobs().get(&leftover.job_id).await?;
    if job.finished != Some(leftover.ended) {
        return Ok(false);
    }
    let dir = data_dir.join("jobs").join(leftover.job_id.as_str());
    let removing = tokio::task::spawn_blocking(move || -> std::io::Result<()> {
        if leftover.whole {
            return std::fs::remove_dir_all(&dir);
        }
        for path in &leftover.paths {
            match path.symlink_metadata()?.is_dir() {
                true => std::fs::remove_dir_all(path)?,
                false => std::fs::remove_file(path)?,
            }
        }
        Ok(())
    });
    removing.await.map_err(|e| StoreError::Internal(e.to_string()))?.map_err(failed(data_dir))?;
    Ok(true)
}

fn failed(path: &Path) -> impl Fn(std::io::Error) -> StoreError {
    let path = path.to_owned();
    move |e| StoreError::Internal(format!("{}: {e}", path.display()))
}

/// Names and paths in a directory; none where there is no directory.
fn entries(dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    let read = match std::fs::read_dir(dir) {
        Ok(read) => read,
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(e) => return Err(failed(dir)(e)),
    };
    let mut found = Vec::new();
    for entry in read {
        let entry = entry.map_err(failed(dir))?;
        found.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
    }
    found.sort();
    Ok(found)
}

/// Bytes of a file, or of all files below a directory. Symbolic links count as 0: their targets are not removed.
fn size(path: &Path) -> Result<u64> {
    let about = match path.symlink_metadata() {
        Ok(about) => about,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        Err(e) => return Err(failed(path)(e)),
    };
    if !about.is_dir() {
        return Ok(if about.is_file() { about.len() } else { 0 });
    }
    entries(path)?.into_iter().map(|(_, path)| size(&path)).sum()
}

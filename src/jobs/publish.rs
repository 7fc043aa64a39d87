//! Publishes a successful job: its output directory becomes an immutable model version.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::artifacts::{Artifacts, weights_sha256};
use crate::domain::*;
use crate::store::{ModelFile, Store};

/// What describes a new version, besides its files.
pub(super) struct Release<'a> {
    pub job: &'a Job,
    pub parent: Option<&'a ModelVersion>,
    pub publish_as: Option<&'a str>,
    pub model_dir: &'a Path,
    pub metrics: Value,
    pub datasets: &'a Map<String, Value>,
    pub now: Micros,
}

/// A version whose files are published; it is not registered yet.
pub(super) struct PublishedFiles {
    pub version: ModelVersion,
    pub files: Vec<ModelFile>,
    /// Directory of the files on this machine.
    pub dir: PathBuf,
}

/// The kind that the model's instructd.json states; otherwise the kind that the recipe produces.
fn kind_of(dir: &Path, recipe: &str) -> ModelKind {
    let stated = std::fs::read(dir.join("instructd.json"))
        .ok()
        .and_then(|text| serde_json::from_slice::<Value>(&text).ok())
        .and_then(|v| v.get("kind").and_then(Value::as_str).and_then(ModelKind::parse));
    stated.unwrap_or(if recipe == "reward" { ModelKind::Reward } else { ModelKind::Policy })
}

/// `<parent>-<recipe>-<end of the job id>`, cut to a valid name.
fn default_name(parent: &str, recipe: &str, job: &JobId) -> String {
    let id = job.as_str().to_lowercase();
    let end = format!("-{recipe}-{}", &id[id.len().saturating_sub(6)..]);
    let room = 64usize.saturating_sub(end.len());
    let start: String = parent.chars().take(room).collect();
    format!("{}{end}", start.trim_end_matches('.'))
}

/// An output that was moved to the directory of a version. Unless it is kept, it is moved back, so that neither an error
/// nor a lost lease leaves a directory under a name that no version has, and the name stays free.
struct Moved {
    from: PathBuf,
    to: PathBuf,
    kept: bool,
}

impl Moved {
    fn keep(mut self) -> PathBuf {
        self.kept = true;
        self.to.clone()
    }
}

impl Drop for Moved {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        if let Err(error) = std::fs::rename(&self.to, &self.from) {
            tracing::warn!(%error, from = %self.to.display(), "an output that was not published cannot be moved back");
        }
    }
}

/// Moves the output under `DATA/models/<name>`, uploads it to the artifact store and describes the version. The store
/// registers the version in the transaction that ends the job. After an error the output is back in its place.
pub(super) async fn publish_files(
    store: &Store,
    artifacts: &Artifacts,
    release: Release<'_>,
) -> anyhow::Result<PublishedFiles> {
    let job = release.job;
    let default = default_name(release.parent.map_or("new", |p| &p.name), &job.kind, &job.id);
    let wanted = release.publish_as.unwrap_or(&default);
    let models = artifacts.data_dir().join("models");
    // A name can have been taken since the job was queued; files without a version can be left by a crash.
    let mut name = wanted.to_owned();
    let mut number = 2;
    while store.models().find(&name).await?.is_some() || models.join(&name).exists() {
        let end = format!("-{number}");
        name = wanted.chars().take(64 - end.len()).collect::<String>() + &end;
        number += 1;
    }
    anyhow::ensure!(
        is_model_name(&name),
        "'{name}' is not a valid model name: lower-case letters, digits, '.', '_' and '-', at most 64"
    );
    let target = models.join(&name);
    let from = release.model_dir.to_owned();
    let recipe = job.kind.clone();
    let (sha256, kind, moved) = tokio::task::spawn_blocking(move || -> anyhow::Result<_> {
        let (sha256, kind) = (weights_sha256(&from)?, kind_of(&from, &recipe));
        std::fs::create_dir_all(&models)?;
        std::fs::rename(&from, &target)?;
        let moved = Moved { from, to: target, kept: false };
        // The rename is durable once the directory that holds the name is.
        std::fs::File::open(&models)?.sync_all()?;
        Ok((sha256, kind, moved))
    })
    .await??;
    let id = ModelVersionId::new();
    let files = artifacts.publish(&id, &moved.to).await?;
    let mut metrics = match release.metrics {
        Value::Object(map) => map,
        Value::Null => Map::new(),
        other => Map::from_iter([("result".to_owned(), other)]),
    };
    if !release.datasets.is_empty() {
        metrics.insert("datasets".into(), Value::Object(release.datasets.clone()));
    }
    let version = ModelVersion {
        id,
        kind,
        name: name.clone(),
        stage: job.kind.clone(),
        parent_id: release.parent.map(|p| p.id.clone()),
        job_id: Some(job.id.clone()),
        artifact_uri: format!("models/{name}"),
        sha256,
        metrics: Value::Object(metrics),
        state: ModelState::Candidate,
        created: release.now,
    };
    Ok(PublishedFiles { version, files, dir: moved.keep() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_names_are_legal() {
        let job = JobId::new();
        for parent in ["base", "smollm2-135m-instruct", &"x".repeat(64), &("y".repeat(52) + ".")] {
            let name = default_name(parent, "reinforce", &job);
            assert!(is_model_name(&name), "{name}");
        }
    }
}

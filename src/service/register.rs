//! Model files on this machine as versions of the database: the configured model, the built-in one, pulled ones. Every
//! use of a model's name is resolved here.

use std::path::Path;

use anyhow::{Context, bail};
use serde_json::json;

use super::{Result, ServiceError, Services};
use crate::artifacts::{Artifacts, weights_sha256};
use crate::domain::files::is_disk_full;
use crate::domain::{ModelKind, ModelState, ModelVersion, ModelVersionId, is_model_name};
use crate::hub::builtin;
use crate::hub::catalogue::Known;
use crate::hub::pull;
use crate::model;
use crate::store::{Store, StoreError, find_version, unknown_version};

/// All versions, newest first.
///
/// # Errors
/// What the store says.
pub async fn all(services: &Services) -> Result<Vec<ModelVersion>> {
    Ok(services.store.models().list().await?)
}

/// A version by its name or id. `param` is the request's field that names it; `kind` selects the names that are listed
/// when the name is unknown.
///
/// # Errors
/// `UnknownModel` with similar and existing names.
pub async fn find(
    services: &Services,
    name: &str,
    kind: Option<ModelKind>,
    param: Option<&str>,
) -> Result<ModelVersion> {
    let store = services.store.as_ref();
    match find_version(store, name).await? {
        Some(found) => Ok(found),
        None => Err(unknown(services, name, kind, param).await?),
    }
}

/// Finds a version, and registers the built-in model and pulled models when they are first named.
///
/// # Errors
/// `UnknownModel` like `find`; `BadInput` for model files that cannot be opened; `DiskFull` when the built-in model cannot
/// be written.
pub async fn find_or_register(
    services: &Services,
    name: &str,
    kind: Option<ModelKind>,
    param: Option<&str>,
) -> Result<ModelVersion> {
    if let Some(found) = find_version(services.store.as_ref(), name).await? {
        return Ok(found);
    }
    let (wanted, data_dir) = (name.to_owned(), services.config.data_dir.clone());
    let installed = tokio::task::spawn_blocking(move || {
        if wanted == builtin::NAME {
            return Ok(Some(builtin::unpack(&data_dir).context("writing the built-in model")?));
        }
        // Names only: a request cannot name a path on this machine.
        anyhow::Ok(pull::installed_by_name(&wanted, &data_dir))
    });
    let failed = |e: anyhow::Error| match e.downcast::<StoreError>() {
        Ok(error) => error.into(),
        Err(e) => {
            let full = e.chain().filter_map(|cause| cause.downcast_ref()).any(is_disk_full);
            let message = format!("{name}: {e:#}");
            if full { ServiceError::DiskFull(message) } else { super::bad_input(param.unwrap_or("model"), message) }
        }
    };
    let path = installed.await.map_err(|e| ServiceError::Internal(e.to_string()))?.map_err(failed)?;
    let Some(path) = path else { return Err(unknown(services, name, kind, param).await?) };
    let described = {
        let path = path.clone();
        tokio::task::spawn_blocking(move || model::describe(&path))
    };
    let described = described.await.map_err(|e| ServiceError::Internal(e.to_string()))?;
    let described = described.map_err(|e| failed(e.into()))?;
    let declared =
        described.instructd.as_ref().and_then(|about| about.get("kind")?.as_str()).and_then(ModelKind::parse);
    let found = declared.unwrap_or(if described.config.is_encoder() { ModelKind::Encoder } else { ModelKind::Policy });
    register(services, &path, &name_for(name, &path), found).await.map_err(failed)
}

/// The message for a model that is on this server and that the caller may not load.
pub(super) fn not_loaded(name: &str) -> String {
    format!("{name} is not loaded; a request with an admin key loads it, and promoting it makes it the active version")
}

async fn unknown(
    services: &Services,
    name: &str,
    kind: Option<ModelKind>,
    param: Option<&str>,
) -> Result<ServiceError> {
    let data_dir = services.config.data_dir.clone();
    let pulled = tokio::task::spawn_blocking(move || pull::installed_names(&data_dir));
    let pulled = pulled.await.map_err(|e| ServiceError::Internal(e.to_string()))?;
    // Pulled models are policies.
    let more = if kind.is_none_or(|kind| kind == ModelKind::Policy) { pulled } else { Vec::new() };
    let message = match more.iter().any(|installed| installed == name) {
        true => not_loaded(name),
        false => {
            let message = unknown_version(services.store.as_ref(), name, kind, &more).await?;
            match Known::named(name).filter(|_| kind.is_none_or(|kind| kind == ModelKind::Policy)) {
                Some(known) => format!("{message}. `instructd models pull {}` downloads it", known.name),
                None => message,
            }
        }
    };
    Ok(ServiceError::UnknownModel { message, param: param.map(str::to_owned) })
}

/// The version to serve: the active policy if it descends from the configured model, otherwise the configured model.
pub async fn version_to_serve(store: &Store, configured: ModelVersion) -> anyhow::Result<ModelVersion> {
    let Some(active) = store.models().active(ModelKind::Policy).await? else { return Ok(configured) };
    let mut ancestor = active.clone();
    // The bound guards against a cycle in a damaged table.
    for _ in 0..10_000 {
        if ancestor.id == configured.id {
            return Ok(active);
        }
        match &ancestor.parent_id {
            Some(parent) => ancestor = store.models().get(parent).await?,
            None => break,
        }
    }
    Ok(configured)
}

/// An activated version.
pub struct Activated {
    pub version: ModelVersion,
    /// Whether a server of this configuration serves it: a policy has to descend from the configured model.
    pub descends: bool,
}

/// Makes a version the active one of its kind in the database, without a server, for instance when no server can load
/// the active version.
///
/// # Errors
/// An unknown or retired version, or one whose files cannot be opened.
pub async fn activate_offline(services: &Services, name: &str) -> anyhow::Result<Activated> {
    let (config, store) = (&services.config, &services.store);
    let version = find_or_register(services, name, None, None).await?;
    if version.state == ModelState::Retired {
        bail!("{} is retired", version.name);
    }
    if matches!(version.kind, ModelKind::Classifier | ModelKind::PromptAdapter) {
        bail!("{} is a {}: such a version is named in requests and cannot be active", version.name, version.kind);
    }
    if version.stage != crate::domain::STAGE_UPSTREAM {
        // A version whose weights are not the published ones is not activated, because servers refuse to load it.
        let path = Artifacts::open(config, store.clone())?.checked_path(&version).await?;
        model::describe(&path).with_context(|| format!("{} cannot serve", version.name))?;
    }
    let now = services.now();
    let detail = json!({"name": version.name, "kind": version.kind, "offline": true});
    let version = store.models().promote(&version.id, &"command line".into(), "promote", detail, now).await?;
    let configured = find_version(store.as_ref(), &version_name(&config.model)).await?;
    let descends = match configured.filter(|_| version.kind == ModelKind::Policy) {
        Some(configured) => version_to_serve(store.as_ref(), configured).await?.id == version.id,
        None => true,
    };
    Ok(Activated { version, descends })
}

/// The name of the version of the configured model found at `path`.
pub fn name_for(model: &str, path: &Path) -> String {
    if is_model_name(model) { version_name(model) } else { name_of_path(path) }
}

/// Registers the model at `path`; returns the existing version when name and weights are the same.
pub async fn register(services: &Services, path: &Path, name: &str, kind: ModelKind) -> anyhow::Result<ModelVersion> {
    let path = std::fs::canonicalize(path).with_context(|| format!("there is no model at {}", path.display()))?;
    let sha256 = {
        let path = path.clone();
        tokio::task::spawn_blocking(move || weights_sha256(&path)).await??
    };
    let uri = artifact_uri(&services.config.data_dir, &path);
    let store = &services.store;
    let mut name = version_name(name);
    for suffix in [String::new(), format!("-{}", &sha256[..8])] {
        name.truncate(64 - suffix.len());
        let candidate = format!("{name}{suffix}");
        match store.models().find(&candidate).await? {
            Some(known) if known.sha256 == sha256 && known.artifact_uri == uri && known.kind == kind => {
                return Ok(known);
            }
            Some(_) => continue,
            None => return Ok(put(services, candidate, kind, uri, sha256).await?),
        }
    }
    // Same name and weights at another path: the record is updated.
    let name = format!("{}-{}", &name[..name.len().min(40)], ModelVersionId::new().as_str().to_ascii_lowercase());
    Ok(put(services, name[..name.len().min(64)].to_owned(), kind, uri, sha256).await?)
}

async fn put(
    services: &Services,
    name: String,
    kind: ModelKind,
    uri: String,
    sha256: String,
) -> Result<ModelVersion, StoreError> {
    let version = ModelVersion {
        id: ModelVersionId::new(),
        kind,
        name,
        stage: "base".to_owned(),
        parent_id: None,
        job_id: None,
        artifact_uri: uri,
        sha256,
        metrics: json!({}),
        state: ModelState::Candidate,
        created: services.now(),
    };
    services.store.models().put(version.clone()).await?;
    Ok(version)
}

/// `[a-z0-9][a-z0-9._-]{0,63}` made of any text.
pub fn version_name(text: &str) -> String {
    let fits =
        |c: char| if c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-') { c } else { '-' };
    let name: String = text.to_ascii_lowercase().chars().map(fits).collect();
    let mut name = name.trim_start_matches(['.', '_', '-']).to_owned();
    while name.contains("..") {
        name = name.replace("..", ".");
    }
    name.truncate(64);
    if name.is_empty() { "model".to_owned() } else { name }
}

/// The name of the model at a path: the directory's, or the file's without `.gguf`; `model.gguf` takes its
/// directory's.
pub fn name_of_path(path: &Path) -> String {
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let stem = if path.extension().is_some_and(|e| e == "gguf") { path.file_stem() } else { path.file_name() };
    let stem = stem.map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    let parent = path.parent().and_then(Path::file_name).map(|s| s.to_string_lossy().into_owned());
    match (stem.as_str(), parent) {
        ("model", Some(parent)) => version_name(&parent),
        _ => version_name(&stem),
    }
}

/// Relative to the data directory if it is inside, so that the directory can be moved.
fn artifact_uri(data_dir: &Path, path: &Path) -> String {
    let root = std::fs::canonicalize(data_dir).unwrap_or_else(|_| data_dir.to_owned());
    path.strip_prefix(&root).unwrap_or(path).display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_always_valid() {
        let long = "x".repeat(100);
        for (text, name) in [
            ("SmolLM2 135M", "smollm2-135m"),
            ("../../etc", "etc"),
            ("...", "model"),
            ("a..b", "a.b"),
            ("模型", "model"),
            (long.as_str(), &long[..64]),
        ] {
            assert_eq!(version_name(text), name);
        }
    }
}

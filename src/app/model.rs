//! From `--model NAME|DIR|FILE.gguf` to a registered model version that the engine serves.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::artifacts::Artifacts;
use crate::domain::{ModelKind, ModelState, ModelVersion, ModelVersionId};
use crate::engine::{EngineOptions, Generator, LocalEngine};
use crate::model::{builtin, pull};
use crate::ops::linear::WeightFormat;
use crate::service::Services;
use crate::store::Store;

/// Finds (or pulls) the configured model, registers it, starts the engine and loads what should serve.
///
/// # Errors
/// A model that is neither a path nor can be pulled (naming the ways), weights that do not load.
pub async fn start(services: &Arc<Services>) -> Result<Arc<dyn Generator>> {
    let config = &services.config;
    if config.upstream.url.is_some() {
        return super::upstream::start(services).await;
    }
    let artifacts = Artifacts::open(config, services.store.clone())?;
    let configured = configured(services, &artifacts).await?;
    share(&artifacts, services.store.as_ref(), &configured).await?;
    let wanted = choose(services.store.as_ref(), configured.clone()).await?;
    let engine = engine(services, artifacts.clone())?;
    let version = load_first(services, &artifacts, engine.as_ref(), &wanted, configured).await?;
    engine.activate(&version.id).await?;
    if version.id == wanted.id {
        services.store.activate_model(&version.id, services.now()).await?;
    }
    if let Some(encoder) = &config.encoder {
        register_encoder(services, encoder).await.with_context(|| format!("the encoder {encoder}"))?;
    }
    tracing::info!(model.name = %version.name, model.weights = %config.weights, "serving");
    Ok(engine)
}

/// Loads the wanted version; where that fails, its nearest ancestor that loads, and last the configured model: a
/// broken version does not take the server down. The database goes on naming the wanted one, so that a start after its
/// repair serves it again.
///
/// # Errors
/// What is wrong with the wanted version, when none loads.
async fn load_first(
    services: &Services,
    artifacts: &Arc<Artifacts>,
    engine: &dyn Generator,
    wanted: &ModelVersion,
    configured: ModelVersion,
) -> Result<ModelVersion> {
    let mut first_error = None;
    let mut next = Some(wanted.clone());
    let mut tried = std::collections::BTreeSet::new();
    while let Some(version) = next.take() {
        let fresh = tried.insert(version.id.to_string());
        let checked = match fresh && version.state != ModelState::Retired {
            true => checked_load(services, artifacts, engine, &version).await,
            false => Err(anyhow::anyhow!("it is retired")),
        };
        match checked {
            Ok(()) => {
                if let Some(error) = first_error {
                    let message = format!(
                        "the active version '{}' does not load, '{}' is served instead: {error}. Mend its files and \
                         start again, or choose another version: `instructd models activate NAME`",
                        wanted.name, version.name
                    );
                    tracing::error!("{message}");
                    services.set_model_fault(version.id.clone(), message);
                }
                return Ok(version);
            }
            Err(error) => {
                let error = error.context(format!("loading {}", version.name));
                tracing::error!("{}", crate::cli_models::told_once(&error));
                first_error.get_or_insert(crate::cli_models::told_once(&error));
            }
        }
        let parent = match version.parent_id.as_ref().filter(|_| fresh) {
            Some(parent) => services.store.get_model(parent).await.ok(),
            None => None,
        };
        let left = |v: &ModelVersion| !tried.contains(v.id.as_str());
        next = parent.filter(left).or_else(|| left(&configured).then(|| configured.clone()));
    }
    bail!("{}", first_error.unwrap_or_else(|| "there is no model to serve".to_owned()))
}

/// Weights larger than this are served while their hash is computed.
const HASHED_FIRST: u64 = 1 << 30;

/// Loads a version whose weights are the published ones. Large weights are checked in the background, and a difference
/// is told in the log and by `/ready`.
async fn checked_load(
    services: &Services,
    artifacts: &Arc<Artifacts>,
    engine: &dyn Generator,
    version: &ModelVersion,
) -> Result<()> {
    let path = artifacts.path(version).await?;
    let hashing = {
        let (path, sha256) = (path.clone(), version.sha256.clone());
        move || -> Result<()> {
            let found = weights_sha256(&path)?;
            anyhow::ensure!(
                found == sha256,
                "{}: the weights are not the published ones (SHA-256 {found}, published {sha256})",
                path.display()
            );
            Ok(())
        }
    };
    let bytes = crate::model::pull::size(&path);
    if bytes <= HASHED_FIRST {
        tokio::task::spawn_blocking(hashing).await??;
        engine.load(version).await?;
        tracing::info!(model.name = %version.name, "the weights' SHA-256 is the published one");
        return Ok(());
    }
    engine.load(version).await?;
    tracing::info!(model.name = %version.name, bytes, "the weights' SHA-256 is checked in the background");
    let (fault, id, name) = (services.model_fault_handle(), version.id.clone(), version.name.clone());
    tokio::task::spawn_blocking(move || match hashing() {
        Ok(()) => tracing::info!(model.name = %name, "the weights' SHA-256 is the published one"),
        Err(error) => {
            let message = format!("'{name}' is served, but {error:#}");
            tracing::error!("{message}");
            fault.set(id, message);
        }
    });
    Ok(())
}

/// Makes the configured encoder the active one. Its weights are read at the first request.
async fn register_encoder(services: &Arc<Services>, encoder: &str) -> Result<()> {
    let (name, data_dir) = (encoder.to_owned(), services.config.data_dir.clone());
    let found = tokio::task::spawn_blocking(move || {
        let located = locate(&name, &data_dir)?;
        let encoder = crate::model::describe(&located.path)?.config.is_encoder();
        anyhow::Ok((located, encoder))
    });
    let (Located { path, name }, is_encoder) = found.await??;
    if !is_encoder {
        bail!("{} is a decoder, not an encoder", path.display());
    }
    let version = register(services, &path, &name, ModelKind::Encoder).await?;
    services.store.activate_model(&version.id, services.now()).await?;
    Ok(())
}

/// The version of the configured model: the one that the database knows by its name, when its files can be
/// brought from the artifact store; else the one at the path that the name stands for.
async fn configured(services: &Services, artifacts: &Artifacts) -> Result<ModelVersion> {
    let config = &services.config;
    let (model, data_dir) = (config.model.clone(), config.data_dir.clone());
    if pull::is_name(&model)
        && model != builtin::NAME
        && artifacts.is_shared()
        && pull::resolve(&model, &data_dir).is_err()
        && let Some(known) = services.store.find_model(&version_name(&model)).await?
        && !services.store.model_files(&known.id).await?.is_empty()
    {
        return Ok(known);
    }
    let Located { path, name } = tokio::task::spawn_blocking(move || locate(&model, &data_dir)).await??;
    register(services, &path, &name, ModelKind::Policy).await
}

/// With an artifact store, the configured model is brought there once, so that workers elsewhere can start
/// from it.
pub async fn share(artifacts: &Artifacts, store: &dyn Store, version: &ModelVersion) -> Result<()> {
    if !artifacts.is_shared() || !store.model_files(&version.id).await?.is_empty() {
        return Ok(());
    }
    let path = artifacts.path(version).await?;
    let files = artifacts.publish(&version.id, &path).await.context("bringing the model to the artifact store")?;
    Ok(store.put_model_files(&version.id, files).await?)
}

fn engine(services: &Services, artifacts: Arc<Artifacts>) -> Result<Arc<dyn Generator>> {
    let config = &services.config;
    let weights = WeightFormat::parse(&config.weights)
        .with_context(|| format!("weights: '{}' is not known; use {}", config.weights, WeightFormat::names()))?;
    let options = EngineOptions {
        data_dir: config.data_dir.clone(),
        weights,
        device: config.engine.device.clone(),
        max_running: config.engine.max_batch,
        max_waiting: config.engine.max_waiting,
        kv_tokens: config.engine.kv_tokens,
        files: Some(artifacts),
        ..EngineOptions::default()
    };
    Ok(LocalEngine::start(options)?)
}

/// The name of the version of the configured model found at `path`.
pub fn name_for(model: &str, path: &Path) -> String {
    if pull::is_name(model) { version_name(model) } else { name_of_path(path) }
}

/// A path, the built-in model, a pulled name, or a name that can be pulled now. The model of the default
/// configuration that cannot be pulled (no network) gives way to the built-in one; a model that somebody
/// asked for by another name does not.
fn locate(model: &str, data_dir: &Path) -> Result<Located> {
    let own = || builtin::unpack(data_dir).context("writing the built-in model");
    if model == builtin::NAME {
        return Ok(Located { path: own()?, name: builtin::NAME.to_owned() });
    }
    let found = |path: PathBuf| Located { name: name_for(model, &path), path };
    match pull::resolve(model, data_dir) {
        Ok(path) => Ok(found(path)),
        Err(pull::PullError::NotHere { .. }) if pull::is_name(model) => {
            eprintln!("{model} is not here yet; pulling it");
            match crate::models_cli::pull_model(model, data_dir, None) {
                Ok(path) => Ok(found(path)),
                Err(error) if model == crate::config::Config::default().model => {
                    tracing::warn!(
                        "{error:#}\nServing the small built-in model instead, so that everything else can be \
                         tried. It knows very little. With a network, or with `--model PATH`, start again."
                    );
                    Ok(Located { path: own()?, name: builtin::NAME.to_owned() })
                }
                Err(error) => Err(error),
            }
        }
        Err(e) => Err(e.into()),
    }
}

/// Where the configured model is, and the name of its version.
struct Located {
    path: PathBuf,
    name: String,
}

/// The version record of the model at `path`: the known one when name and weights are the same.
pub async fn register(services: &Services, path: &Path, name: &str, kind: ModelKind) -> Result<ModelVersion> {
    let path = std::fs::canonicalize(path).with_context(|| format!("no model at {}", path.display()))?;
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
        match store.find_model(&candidate).await? {
            Some(known) if known.sha256 == sha256 && known.artifact_uri == uri && known.kind == kind => {
                return Ok(known);
            }
            Some(_) => continue,
            None => return Ok(put(services, candidate, kind, uri, sha256).await?),
        }
    }
    // Same name and weights, another place: the record would send readers to the old place.
    let name = format!("{}-{}", &name[..name.len().min(40)], ModelVersionId::new().as_str().to_ascii_lowercase());
    Ok(put(services, name[..name.len().min(64)].to_owned(), kind, uri, sha256).await?)
}

async fn put(
    services: &Services,
    name: String,
    kind: ModelKind,
    uri: String,
    sha256: String,
) -> Result<ModelVersion, crate::store::StoreError> {
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
    services.store.put_model(version.clone()).await?;
    Ok(version)
}

/// What should serve: the active policy when it descends from the configured model (the loop's progress
/// survives a restart), else the configured model itself (it was asked for).
pub async fn choose(store: &dyn Store, configured: ModelVersion) -> Result<ModelVersion> {
    let Some(active) = store.active_model(ModelKind::Policy).await? else { return Ok(configured) };
    let mut ancestor = active.clone();
    // Lineages are short; the bound only guards against a broken table.
    for _ in 0..10_000 {
        if ancestor.id == configured.id {
            return Ok(active);
        }
        match &ancestor.parent_id {
            Some(parent) => ancestor = store.get_model(parent).await?,
            None => break,
        }
    }
    Ok(configured)
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

/// The name a path gives its model: the directory's, or the file's without `.gguf`; `model.gguf` takes its
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

/// Relative to the data directory where it is inside, so that the directory can move.
fn artifact_uri(data_dir: &Path, path: &Path) -> String {
    let root = std::fs::canonicalize(data_dir).unwrap_or_else(|_| data_dir.to_owned());
    path.strip_prefix(&root).unwrap_or(path).display().to_string()
}

/// SHA-256 (hex) over the weight files, in the order of their names.
fn weights_sha256(path: &Path) -> Result<String> {
    let mut files: Vec<PathBuf> = if path.is_dir() {
        let entries = std::fs::read_dir(path)?.collect::<std::io::Result<Vec<_>>>()?;
        let weights = |p: &PathBuf| p.extension().is_some_and(|e| e == "safetensors" || e == "gguf");
        entries.into_iter().map(|e| e.path()).filter(weights).collect()
    } else {
        vec![path.to_owned()]
    };
    files.sort();
    if files.is_empty() {
        bail!("{} holds no .safetensors and no .gguf file", path.display());
    }
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    for file in files {
        let mut reader = std::fs::File::open(&file).with_context(|| format!("reading {}", file.display()))?;
        loop {
            match reader.read(&mut buffer)? {
                0 => break,
                n => hash.update(&buffer[..n]),
            }
        }
    }
    Ok(hex::encode(hash.finalize()))
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

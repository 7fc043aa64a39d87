//! From `[upstream]` of the configuration to a generator that asks that server, with a model version on record.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde_json::json;

use crate::artifacts::Artifacts;
use crate::domain::{ModelKind, ModelState, ModelVersion, ModelVersionId, STAGE_UPSTREAM, hash};
use crate::engine::upstream::tokens::LocalBase;
use crate::engine::upstream::{DiscoverError, Discovered, Upstream};
use crate::engine::{EngineError, Generator, UpstreamOptions};
use crate::hub::pull;
use crate::jobs::upstream;
use crate::service::register::{self, version_name};
use crate::service::{Services, configured};

/// Interval of attempts to reach a server that is unavailable at the start.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// Waits for the upstream server, records its model as a version, and serves it.
///
/// # Errors
/// A permanent error of the configuration: a bad address, an unknown kind, a model that the server does not have.
pub async fn start(services: &Arc<Services>) -> Result<Arc<dyn Generator>> {
    let base = match services.config.upstream.token_ids {
        true => local_base(services).await?,
        false => None,
    };
    let files = Artifacts::open(&services.config, services.store.clone())?;
    let options = upstream::options(&services.config.upstream, files, services.random.seed())?;
    let options = UpstreamOptions { base, ..options };
    let servers = Upstream::new(options).map_err(|e| anyhow!("upstream: {e}"))?;
    let wanted = services.config.upstream.model.as_deref();
    let discovered = loop {
        match servers.discover(wanted).await {
            Ok(found) => break found,
            Err(DiscoverError::Away(error)) => {
                tracing::warn!(%error, "waiting for the upstream server");
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
            Err(e) => return Err(e.into()),
        }
    };
    let version = register(services, &discovered).await?;
    register_local(services).await?;
    let pushes = services.config.upstream.push.is_some();
    let discovered = Discovered { path: known_path(&version).or(discovered.path), ..discovered };
    tracing::info!(model.name = %version.name, model.upstream = %discovered.model, "serving from upstream");
    let engine = servers.serve(version.clone(), discovered).await;
    match services.store.models().active(ModelKind::Policy).await? {
        // It was loaded there before this server was started again.
        Some(active) if pushes && active.stage != STAGE_UPSTREAM => {
            if let Err(error) = follow(&*engine, &active).await {
                let name = &active.name;
                tracing::warn!(%error, model.name = %name, "the active version is not loaded at the upstream servers");
            }
        }
        _ => {
            services.store.models().activate(&version.id, services.now()).await?;
            if pushes && let Err(error) = follow(&*engine, &version).await {
                tracing::warn!(%error, model.name = %version.name, "some upstream servers serve another version");
            }
        }
    }
    Ok(engine)
}

/// Makes the servers serve the version that is active in the database.
async fn follow(engine: &dyn Generator, active: &ModelVersion) -> Result<(), EngineError> {
    engine.load(active).await?;
    engine.activate(&active.id).await
}

/// Where the servers' own weights are for them, as recorded when they were first seen: later they may serve others.
fn known_path(version: &ModelVersion) -> Option<String> {
    version.metrics["path"].as_str().map(str::to_owned)
}

/// The tokenizer and the chat template of the configured model, if its files are on this machine.
///
/// # Errors
/// When the files cannot be read.
async fn local_base(services: &Services) -> Result<Option<LocalBase>> {
    let config = services.config.clone();
    let read = move || {
        let Ok(path) = pull::resolve(&config.model, &config.data_dir) else { return Ok(None) };
        let name = register::name_for(&config.model, &path);
        upstream::local_base(&name, &path).with_context(|| format!("model = {}", config.model))
    };
    tokio::task::spawn_blocking(read).await?
}

/// Registers the configured model, if its files are on this machine, so that jobs can train from it.
async fn register_local(services: &Services) -> Result<()> {
    let config = &services.config;
    if let Ok(path) = pull::resolve(&config.model, &config.data_dir) {
        let name = register::name_for(&config.model, &path);
        let version = register::register(services, &path, &name, ModelKind::Policy).await?;
        let artifacts = Artifacts::open(config, services.store.clone())?;
        configured::share(&artifacts, services.store.as_ref(), &version).await?;
    }
    Ok(())
}

/// The version that represents the upstream's model. It is identified by the model's full name there, whatever the
/// server's address.
async fn register(services: &Services, discovered: &Discovered) -> Result<ModelVersion> {
    let sha256 = hash::of_bytes(discovered.model.as_bytes());
    let mut name = version_name(&discovered.model);
    for suffix in [String::new(), format!("-{}", &sha256[..8])] {
        name.truncate(64 - suffix.len());
        let candidate = format!("{name}{suffix}");
        match services.store.models().find(&candidate).await? {
            Some(known) if known.stage == STAGE_UPSTREAM && known.sha256 == sha256 => return Ok(known),
            Some(_) => {}
            None => {
                let version = ModelVersion {
                    id: ModelVersionId::new(),
                    kind: ModelKind::Policy,
                    name: candidate,
                    stage: STAGE_UPSTREAM.to_owned(),
                    parent_id: None,
                    job_id: None,
                    artifact_uri: format!("upstream:{}", discovered.model),
                    sha256,
                    metrics: discovered.path.as_ref().map_or(json!({}), |path| json!({"path": path})),
                    state: ModelState::Candidate,
                    created: services.now(),
                };
                services.store.models().put(version.clone()).await?;
                return Ok(version);
            }
        }
    }
    Err(anyhow!("both names for the upstream's model '{}' are taken by other versions", discovered.model))
}

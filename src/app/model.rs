//! From `--model NAME|DIR|FILE.gguf` to a registered model version that the engine serves.

use std::sync::Arc;

use anyhow::{Context, Result, bail};

use super::pull::pull_model;
use crate::artifacts::Artifacts;
use crate::domain::{ModelKind, ModelState, ModelVersion, error_chain};
use crate::engine::{EngineOptions, Generator, LocalEngine};
use crate::ops::kv_blocks::KvFormat;
use crate::ops::linear::WeightFormat;
use crate::service::Services;
use crate::service::configured::{named, share};
use crate::service::register::version_to_serve;

/// Finds (or pulls) the configured model, registers it, starts the engine and loads the version to be served.
///
/// # Errors
/// A model that is neither a path nor can be pulled; weights that cannot be loaded.
pub async fn start(services: &Arc<Services>) -> Result<Arc<dyn Generator>> {
    let config = &services.config;
    if config.upstream.url.is_some() {
        return super::upstream::start(services).await;
    }
    let artifacts = Artifacts::open(config, services.store.clone())?;
    let fault = services.model_fault_handle();
    artifacts.on_damage(Arc::new(move |version, message| fault.set(version.id.clone(), message)));
    // First, because a model may have to be fetched.
    let engine = engine(services, artifacts.clone())?;
    let configured = named(services, &artifacts, &config.model, ModelKind::Policy, pull_model).await?;
    share(&artifacts, services.store.as_ref(), &configured).await?;
    let wanted = version_to_serve(services.store.as_ref(), configured.clone()).await?;
    let version = load_first(services, engine.as_ref(), &wanted, configured).await?;
    engine.activate(&version.id).await?;
    if version.id == wanted.id {
        services.store.models().activate(&version.id, services.now()).await?;
    }
    if let Some(draft) = &config.engine.draft_model {
        load_draft_model(services, &artifacts, &engine, draft)
            .await
            .with_context(|| format!("engine.draft_model = {draft}"))?;
    }
    if let Some(encoder) = &config.encoder {
        register_encoder(services, &artifacts, encoder).await.with_context(|| format!("the encoder {encoder}"))?;
    }
    tracing::info!(model.name = %version.name, model.weights = %config.weights, "serving");
    Ok(engine)
}

/// Loads the active version; if that fails, its nearest ancestor that loads, and finally the configured model, so that
/// a damaged version does not prevent the start. The database keeps the active version, so that a start after its
/// repair serves it again.
///
/// # Errors
/// The error of the active version, when none can be loaded.
async fn load_first(
    services: &Services,
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
            true => engine.load(&version).await.map(drop).map_err(anyhow::Error::from),
            false => Err(anyhow::anyhow!("the version is retired")),
        };
        match checked {
            Ok(()) => {
                if let Some(error) = first_error {
                    let message = format!(
                        "the active version '{}' cannot be loaded, '{}' is served instead: {error}. Repair its files and \
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
                tracing::error!("{}", error_chain(&error));
                first_error.get_or_insert(error_chain(&error));
            }
        }
        let parent = match version.parent_id.as_ref().filter(|_| fresh) {
            Some(parent) => services.store.models().get(parent).await.ok(),
            None => None,
        };
        let left = |v: &ModelVersion| !tried.contains(v.id.as_str());
        next = parent.filter(left).or_else(|| left(&configured).then(|| configured.clone()));
    }
    bail!("{}", first_error.unwrap_or_else(|| "there is no model to serve; name one with --model".to_owned()))
}

/// Makes the configured encoder the active one. Its weights are read at the first request.
async fn register_encoder(services: &Services, artifacts: &Artifacts, encoder: &str) -> Result<()> {
    let version = named(services, artifacts, encoder, ModelKind::Encoder, pull_model).await?;
    services.store.models().activate(&version.id, services.now()).await?;
    Ok(())
}

async fn load_draft_model(services: &Services, artifacts: &Artifacts, engine: &LocalEngine, name: &str) -> Result<()> {
    let version = named(services, artifacts, name, ModelKind::Policy, pull_model).await?;
    Ok(engine.load_draft_model(&version).await?)
}

fn engine(services: &Services, artifacts: Arc<Artifacts>) -> Result<Arc<LocalEngine>> {
    let config = &services.config;
    let weights = WeightFormat::parse(&config.weights).with_context(|| {
        format!("weights: '{}' is not a known format; use one of {}", config.weights, WeightFormat::names())
    })?;
    let kv_format = KvFormat::parse(&config.engine.kv_cache).with_context(|| {
        let names = KvFormat::ALL.map(KvFormat::as_str).join(", ");
        format!("engine.kv_cache: '{}' is not a known format; use one of {names}", config.engine.kv_cache)
    })?;
    let options = EngineOptions {
        data_dir: config.data_dir.clone(),
        weights,
        kv_format,
        devices: config.engine.device.clone(),
        max_running: config.engine.max_batch,
        max_waiting: config.engine.max_waiting,
        kv_tokens: config.engine.kv_tokens,
        files: Some(artifacts),
        share_base: config.engine.share_base,
        draft_tokens: config.engine.draft_tokens,
        ..EngineOptions::default()
    };
    LocalEngine::start(options).context("engine.device")
}

//! From `--model NAME|DIR|FILE.gguf` to a registered model version that the engine serves.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};

use crate::artifacts::Artifacts;
use crate::domain::{ModelKind, ModelState, ModelVersion};
use crate::engine::{EngineOptions, Generator, LocalEngine};
use crate::model::{builtin, pull};
use crate::ops::linear::WeightFormat;
use crate::service::Services;
pub use crate::service::register::{name_for, name_of_path, register, version_name};
use crate::store::{Store, find_version};

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
    let fault = services.model_fault_handle();
    artifacts.on_damage(Arc::new(move |version, message| fault.set(version.id.clone(), message)));
    let configured = named(services, &artifacts, &config.model, ModelKind::Policy).await?;
    share(&artifacts, services.store.as_ref(), &configured).await?;
    let wanted = choose(services.store.as_ref(), configured.clone()).await?;
    let engine = engine(services, artifacts.clone())?;
    let version = load_first(services, engine.as_ref(), &wanted, configured).await?;
    engine.activate(&version.id).await?;
    if version.id == wanted.id {
        services.store.activate_model(&version.id, services.now()).await?;
    }
    if let Some(encoder) = &config.encoder {
        register_encoder(services, &artifacts, encoder).await.with_context(|| format!("the encoder {encoder}"))?;
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

/// Makes the configured encoder the active one. Its weights are read at the first request.
async fn register_encoder(services: &Services, artifacts: &Artifacts, encoder: &str) -> Result<()> {
    let version = named(services, artifacts, encoder, ModelKind::Encoder).await?;
    services.store.activate_model(&version.id, services.now()).await?;
    Ok(())
}

/// The version that a name of the configuration stands for, in every form that the command line takes: the built-in
/// model, a pulled one, a directory or a .gguf file, a published version by name or id, and a name that can be pulled
/// now.
async fn named(services: &Services, artifacts: &Artifacts, model: &str, kind: ModelKind) -> Result<ModelVersion> {
    let data_dir = services.config.data_dir.clone();
    let is_here = {
        let (model, data_dir) = (model.to_owned(), data_dir.clone());
        let look =
            move || model == builtin::NAME || Path::new(&model).exists() || pull::resolve(&model, &data_dir).is_ok();
        tokio::task::spawn_blocking(look).await?
    };
    if !is_here && let Some(known) = published(services, artifacts, model, kind).await? {
        return Ok(known);
    }
    let located = {
        let model = model.to_owned();
        tokio::task::spawn_blocking(move || {
            let Some(located) = locate(&model, &data_dir)? else { return Ok(None) };
            let is_encoder = crate::model::describe(&located.path)?.config.is_encoder();
            anyhow::Ok(Some((located, is_encoder)))
        })
    };
    let Some((Located { path, name }, is_encoder)) = located.await?? else {
        let more = crate::cli_models::installed(&services.config);
        let message = crate::store::unknown_version(services.store.as_ref(), model, Some(kind), &more).await?;
        bail!("{message}. {}", crate::cli_models::other_ways(&more));
    };
    match (kind, is_encoder) {
        (ModelKind::Encoder, false) => bail!("{} is a decoder, not an encoder", path.display()),
        (ModelKind::Policy, true) => {
            bail!("{} is an encoder, not a language model; name it with --encoder", path.display())
        }
        _ => register(services, &path, &name, kind).await,
    }
}

/// A version of the database whose files can be had; `None` where there is none, or where its files are gone and may
/// be pulled again.
async fn published(
    services: &Services,
    artifacts: &Artifacts,
    model: &str,
    kind: ModelKind,
) -> Result<Option<ModelVersion>> {
    let store = services.store.as_ref();
    let found = match find_version(store, model).await? {
        Some(found) => Some(found),
        None if pull::is_name(model) => find_version(store, &version_name(model)).await?,
        None => None,
    };
    let Some(version) = found else { return Ok(None) };
    if version.state == ModelState::Retired {
        bail!("{} is retired", version.name);
    }
    if version.stage == crate::domain::STAGE_UPSTREAM {
        bail!("{} is served by an upstream server: there are no weights of it here", version.name);
    }
    if version.kind != kind {
        bail!("{} is a {}, not a {kind}", version.name, version.kind);
    }
    match artifacts.path(&version).await {
        Ok(_) => Ok(Some(version)),
        Err(_) if version.stage == "base" && pull::is_pullable(model) => Ok(None),
        Err(error) => Err(error.into()),
    }
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

/// A path, the built-in model, a pulled name, or a name that can be pulled now; `None` for names that nobody knows. The
/// model of the default configuration that cannot be pulled (no network) gives way to the built-in one; a model that
/// somebody asked for by another name does not.
fn locate(model: &str, data_dir: &Path) -> Result<Option<Located>> {
    let own = || builtin::unpack(data_dir).context("writing the built-in model");
    if model == builtin::NAME && !Path::new(model).exists() {
        return Ok(Some(Located { path: own()?, name: builtin::NAME.to_owned() }));
    }
    let found = |path: PathBuf| Some(Located { name: name_for(model, &path), path });
    match pull::resolve(model, data_dir) {
        Ok(path) => Ok(found(path)),
        Err(pull::PullError::NotHere { .. }) if pull::is_pullable(model) => {
            eprintln!("{model} is not here yet; pulling it");
            match crate::models_cli::pull_model(model, data_dir, None) {
                Ok(path) => Ok(found(path)),
                Err(error) if model == crate::config::Config::default().model => {
                    tracing::warn!(
                        "{error:#}\nServing the small built-in model instead, so that everything else can be \
                         tried. It knows very little. With a network, or with `--model PATH`, start again."
                    );
                    Ok(Some(Located { path: own()?, name: builtin::NAME.to_owned() }))
                }
                Err(error) => Err(error),
            }
        }
        Err(pull::PullError::NotHere { .. }) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Where the configured model is, and the name of its version.
struct Located {
    path: PathBuf,
    name: String,
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

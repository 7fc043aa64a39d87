//! From the model names of the configuration to registered versions: `--model NAME|DIR|FILE.gguf`, in every form that
//! an operator may use. Requests find versions by `register`, which takes names only.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::Services;
use super::register::{name_for, register, version_name};
use crate::artifacts::Artifacts;
use crate::domain::{ModelKind, ModelState, ModelVersion, is_model_name};
use crate::hub::{builtin, pull as hub};
use crate::store::{Store, find_version};

/// Pulls a model, given its name, the data directory, and the local path to copy it from, if any.
pub type Pull = fn(&str, &Path, Option<&Path>) -> Result<PathBuf>;

/// The version of a model named in the configuration: the built-in model, a pulled one, a directory or a .gguf file, a
/// published version by name or id, or a name that can be pulled now.
///
/// # Errors
/// An unknown name, with similar names; a retired version, or one of another kind.
pub async fn named(
    services: &Services,
    artifacts: &Artifacts,
    model: &str,
    kind: ModelKind,
    pull: Pull,
) -> Result<ModelVersion> {
    let data_dir = services.config.data_dir.clone();
    let is_here = {
        let (model, data_dir) = (model.to_owned(), data_dir.clone());
        let look =
            move || model == builtin::NAME || Path::new(&model).exists() || hub::resolve(&model, &data_dir).is_ok();
        tokio::task::spawn_blocking(look).await?
    };
    if !is_here && let Some(known) = published(services, artifacts, model, kind).await? {
        return Ok(known);
    }
    let located = {
        let model = model.to_owned();
        tokio::task::spawn_blocking(move || {
            let Some(located) = locate(&model, &data_dir, pull)? else { return Ok(None) };
            let is_encoder = crate::model::describe(&located.path)?.config.is_encoder();
            anyhow::Ok(Some((located, is_encoder)))
        })
    };
    let Some((Located { path, name }, is_encoder)) = located.await?? else {
        let more = hub::installed_names(&services.config.data_dir);
        let message = crate::store::unknown_version(services.store.as_ref(), model, Some(kind), &more).await?;
        bail!("{message}{}", hub::other_ways(model, &more));
    };
    match (kind, is_encoder) {
        (ModelKind::Encoder, false) => bail!("{} is a decoder, not an encoder", path.display()),
        (ModelKind::Policy, true) => {
            bail!("{} is an encoder, not a language model; name it with --encoder", path.display())
        }
        _ => register(services, &path, &name, kind).await,
    }
}

/// A version of the database whose files are available; `None` when there is none, or when its files are missing and
/// can be pulled again.
async fn published(
    services: &Services,
    artifacts: &Artifacts,
    model: &str,
    kind: ModelKind,
) -> Result<Option<ModelVersion>> {
    let store = services.store.as_ref();
    let found = match find_version(store, model).await? {
        Some(found) => Some(found),
        None if is_model_name(model) => find_version(store, &version_name(model)).await?,
        None => None,
    };
    let Some(version) = found else { return Ok(None) };
    if version.state == ModelState::Retired {
        bail!("{} is retired", version.name);
    }
    if version.stage == crate::domain::STAGE_UPSTREAM {
        bail!("{} is served by an upstream server and has no weights on this server; name another model", version.name);
    }
    if version.kind != kind {
        bail!("{} is a {}, not a {kind}", version.name, version.kind);
    }
    match artifacts.path(&version).await {
        Ok(_) => Ok(Some(version)),
        Err(_) if version.stage == "base" && hub::is_pullable(model) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Uploads the configured model to the artifact store, if there is one, so that workers on other machines can start
/// from it.
pub async fn share(artifacts: &Artifacts, store: &Store, version: &ModelVersion) -> Result<()> {
    if !artifacts.is_shared() || !store.models().files(&version.id).await?.is_empty() {
        return Ok(());
    }
    let path = artifacts.path(version).await?;
    let files = artifacts.publish(&version.id, &path).await.context("uploading the model to the artifact store")?;
    Ok(store.models().put_files(&version.id, files).await?)
}

/// Finds a path, the built-in model, a pulled name, or a name that can be pulled now; `None` for unknown names. If the
/// default model cannot be pulled (no network), the built-in one takes its place; for other names that is an error.
fn locate(model: &str, data_dir: &Path, pull: Pull) -> Result<Option<Located>> {
    let own = || builtin::unpack(data_dir).context("writing the built-in model");
    if model == builtin::NAME && !Path::new(model).exists() {
        return Ok(Some(Located { path: own()?, name: builtin::NAME.to_owned() }));
    }
    let found = |path: PathBuf| Some(Located { name: name_for(model, &path), path });
    match hub::resolve(model, data_dir) {
        Ok(path) => Ok(found(path)),
        Err(hub::PullError::NotHere { .. }) if hub::is_pullable(model) => {
            eprintln!("{model} is not installed; pulling it");
            match pull(model, data_dir, None) {
                Ok(path) => Ok(found(path)),
                Err(error) if model == crate::config::Config::default().model => {
                    tracing::warn!(
                        "{error:#}\nServing the small built-in model instead, so that everything else can be \
                     tried. Its answers are poor. Start again with a network connection or with `--model PATH`."
                    );
                    Ok(Some(Located { path: own()?, name: builtin::NAME.to_owned() }))
                }
                Err(error) => Err(error),
            }
        }
        Err(hub::PullError::NotHere { .. }) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Where the configured model is, and the name of its version.
struct Located {
    path: PathBuf,
    name: String,
}

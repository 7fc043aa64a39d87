//! Finds the models that the command line names: a path, the built-in model, a pulled model, a published version, or a
//! name that can be pulled.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::block_on;
use crate::app::pull::pull_model;
use crate::artifacts::Artifacts;
use crate::config::Config;
use crate::domain::ModelKind;
use crate::hub::{builtin, pull};
use crate::store::{Store, find_version};

/// The path of a model: the built-in one, a pulled one (also by its repository's name `OWNER/NAME`), a directory or
/// .gguf file, a published version by name or id, or a name that can be pulled.
///
/// # Errors
/// An unknown name; the message lists similar names, the installed models and how to pull others.
pub fn find(name: &str, config: &Config) -> Result<PathBuf> {
    let path = Path::new(name);
    if name == builtin::NAME && !path.exists() {
        return builtin::unpack(&config.data_dir).context("writing the built-in model");
    }
    let missing = match pull::resolve(name, &config.data_dir) {
        Ok(path) => return Ok(path),
        Err(error) => error,
    };
    // A path that exists and does not look like a model: loading it gives the error.
    if path.exists() {
        return Ok(path.to_owned());
    }
    if let Some(path) = block_on(published(name, config))? {
        return Ok(path);
    }
    if pull::is_pullable(name) && wants_it(name)? {
        return pull_model(name, &config.data_dir, None);
    }
    match missing {
        pull::PullError::NotHere { .. } => {
            let more = pull::installed_names(&config.data_dir);
            let message = block_on(unknown(name, config, &more))?;
            bail!("{message}{}", pull::other_ways(name, &more))
        }
        other => Err(other.into()),
    }
}

/// Asks on a terminal whether to pull a model; without a terminal nothing is pulled.
fn wants_it(name: &str) -> Result<bool> {
    let what = match pull::hub_name(name) {
        Some(_) => format!("{name} is neither a path nor a pulled model"),
        None => format!("{name} is not pulled yet"),
    };
    if !std::io::stdin().is_terminal() {
        bail!("{what}: run `instructd models pull {name}` first");
    }
    eprint!("{what}. Pull it now? [Y/n] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "" | "y" | "yes"))
}

/// The database, if it exists: looking up a name does not create one.
async fn database(config: &Config) -> Result<Option<std::sync::Arc<Store>>> {
    let url = config.database_url();
    let file = url.strip_prefix("sqlite:").map(|rest| rest.trim_start_matches("//").split('?').next().unwrap_or(rest));
    if file.is_some_and(|file| !Path::new(file).exists()) {
        return Ok(None);
    }
    Ok(Some(crate::store::connect(&url).await.context("opening the database")?))
}

async fn unknown(name: &str, config: &Config, more: &[String]) -> Result<String> {
    let Some(store) = database(config).await? else {
        let known: Vec<&str> = more.iter().map(String::as_str).collect();
        return Ok(crate::domain::unknown_name("model", name, &known));
    };
    let message = crate::store::unknown_version(store.as_ref(), name, None, more).await?;
    store.close().await;
    Ok(message)
}

/// The files of a version of the database, if there is a database and it knows the name or id. The weights are compared
/// with their published hash.
async fn published(name: &str, config: &Config) -> Result<Option<PathBuf>> {
    let Some(store) = database(config).await? else { return Ok(None) };
    let path = match find_version(store.as_ref(), name).await? {
        Some(version) => Some(Artifacts::open(config, store.clone())?.checked_path(&version).await?),
        None => None,
    };
    store.close().await;
    Ok(path)
}

/// Name and path of the model that a command uses when none is named: the active policy of the database, else the
/// configured model if it is installed, else the built-in one.
///
/// # Errors
/// A database that cannot be opened; missing or damaged files of the active policy.
pub fn default_model(config: &Config) -> Result<(String, PathBuf)> {
    if let Some(found) = block_on(active(config, ModelKind::Policy))? {
        return Ok(found);
    }
    let name = match pull::resolve(&config.model, &config.data_dir) {
        Ok(_) => config.model.as_str(),
        Err(_) => builtin::NAME,
    };
    Ok((name.to_owned(), find(name, config)?))
}

/// Name and path of the active version of a kind, if there is a database and the version's files are on this machine.
///
/// # Errors
/// A database that cannot be opened; damaged files.
pub async fn active(config: &Config, kind: ModelKind) -> Result<Option<(String, PathBuf)>> {
    let Some(store) = database(config).await? else { return Ok(None) };
    let version = store.models().active(kind).await?.filter(|v| v.stage != crate::domain::STAGE_UPSTREAM);
    let found = match version {
        Some(version) => {
            let path = Artifacts::open(config, store.clone())?.checked_path(&version).await?;
            Some((version.name, path))
        }
        None => None,
    };
    store.close().await;
    Ok(found)
}

/// The database for commands that read data from it.
///
/// # Errors
/// A database that cannot be opened.
pub async fn data_store(config: &Config) -> Result<Option<std::sync::Arc<Store>>> {
    database(config).await
}

/// Replaces names of models by paths in a command's arguments.
///
/// # Errors
/// Names the field.
pub fn put_paths(args: &mut Value, config: &Config) -> Result<()> {
    for (field, _) in crate::train::args::roles::models() {
        let Some(name) = args.get(field).and_then(Value::as_str).filter(|name| !name.is_empty()) else { continue };
        let path = find(name, config).with_context(|| field.to_owned())?;
        args[field] = json!(path);
    }
    for system in args.get_mut("systems").and_then(Value::as_array_mut).into_iter().flatten() {
        put_paths(system, config)?;
    }
    Ok(())
}

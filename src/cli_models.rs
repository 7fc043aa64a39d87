//! Where the command line's models are: one way for a path, the built-in model, a pulled model, a published version
//! and a name that can still be brought.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::artifacts::Artifacts;
use crate::config::Config;
use crate::domain::{ModelKind, ModelState};
use crate::model::{builtin, pull};
use crate::service::Services;
use crate::store::{Store, find_version};

/// A model by any of its names → the path that loads: the built-in model, a pulled one (also by its repository's name
/// `OWNER/NAME`), a directory or .gguf file, a published version by name or id, and a name that can still be brought.
///
/// # Errors
/// A name that nothing has: says which names are near, what there is and how it is brought.
pub fn find(name: &str, config: &Config) -> Result<PathBuf> {
    let path = Path::new(name);
    if name == builtin::NAME && !path.exists() {
        return builtin::unpack(&config.data_dir).context("writing the built-in model");
    }
    let missing = match pull::resolve(name, &config.data_dir) {
        Ok(path) => return Ok(path),
        Err(error) => error,
    };
    // A path that is there but does not look like a model: loading it says why.
    if path.exists() {
        return Ok(path.to_owned());
    }
    if let Some(path) = crate::cli::block_on(published(name, config))? {
        return Ok(path);
    }
    if pull::is_pullable(name) && wants_it(name)? {
        return crate::models_cli::pull_model(name, &config.data_dir, None);
    }
    match missing {
        pull::PullError::NotHere { .. } => {
            let more = installed(config);
            let message = crate::cli::block_on(unknown(name, config, &more))?;
            bail!("{message}. {}", other_ways(&more))
        }
        other => Err(other.into()),
    }
}

/// Asks at a terminal; elsewhere brings nothing without being told to.
fn wants_it(name: &str) -> Result<bool> {
    let what = match pull::hub_name(name) {
        Some(_) => format!("{name} is neither a path nor pulled yet"),
        None => format!("{name} is not here yet"),
    };
    if !std::io::stdin().is_terminal() {
        bail!("{what}: `instructd models pull {name}` brings it");
    }
    eprint!("{what}. Bring it now? [Y/n] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "" | "y" | "yes"))
}

/// Names of models in the data directory, the built-in one first.
pub fn installed(config: &Config) -> Vec<String> {
    let mut names = vec![builtin::NAME.to_owned()];
    names.extend(pull::list(&config.data_dir).into_iter().map(|m| m.name).filter(|name| name != builtin::NAME));
    names
}

/// How models are named that are not listed.
pub fn other_ways(here: &[String]) -> String {
    let more: Vec<&str> = pull::KNOWN.iter().map(|known| known.name).filter(|k| here.iter().all(|n| n != k)).collect();
    let bring = match more.as_slice() {
        [] => "`instructd models pull OWNER/NAME` brings one from the Hugging Face hub".to_owned(),
        more => {
            format!("`instructd models pull NAME` brings {}, or OWNER/NAME from the Hugging Face hub", more.join(", "))
        }
    };
    format!("{bring}; a path to a Hugging Face directory or a .gguf file works too")
}

/// The database, if there is one: looking a name up makes none.
async fn database(config: &Config) -> Result<Option<std::sync::Arc<dyn Store>>> {
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

/// What a command takes where no model is named: the active policy of the database, else the configured model if it is
/// here, else the built-in one. Also its name, for people.
///
/// # Errors
/// A database that does not open; the active policy's files.
pub fn default_model(config: &Config) -> Result<(String, PathBuf)> {
    if let Some(found) = crate::cli::block_on(active(config, ModelKind::Policy))? {
        return Ok(found);
    }
    let name = match pull::resolve(&config.model, &config.data_dir) {
        Ok(_) => config.model.as_str(),
        Err(_) => builtin::NAME,
    };
    Ok((name.to_owned(), find(name, config)?))
}

/// The active version of a kind, where there is a database and it has one whose files are here.
///
/// # Errors
/// A database that does not open; damaged files.
pub async fn active(config: &Config, kind: ModelKind) -> Result<Option<(String, PathBuf)>> {
    let Some(store) = database(config).await? else { return Ok(None) };
    let version = store.active_model(kind).await?.filter(|v| v.stage != crate::domain::STAGE_UPSTREAM);
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
/// A database that does not open.
pub async fn data_store(config: &Config) -> Result<Option<std::sync::Arc<dyn Store>>> {
    database(config).await
}

/// Puts paths in the place of models' names in a command's arguments.
///
/// # Errors
/// Names the field.
pub fn put_paths(args: &mut Value, config: &Config) -> Result<()> {
    for field in ["model", "reward_model", "gold_reward_model"] {
        let Some(name) = args.get(field).and_then(Value::as_str).filter(|name| !name.is_empty()) else { continue };
        let path = find(name, config).with_context(|| field.to_owned())?;
        args[field] = json!(path);
    }
    for system in args.get_mut("systems").and_then(Value::as_array_mut).into_iter().flatten() {
        put_paths(system, config)?;
    }
    Ok(())
}

/// Makes a version the active one of its kind in the database, without a server: what to do when a server cannot load
/// the version that is active.
///
/// # Errors
/// An unknown or retired version, or one whose files do not open.
pub async fn activate(config: Config, name: &str) -> Result<()> {
    let store = crate::app::open_store(&config).await?;
    // Not by `app::services`, which would make an administrator's key where there is none.
    let (clock, random) = (crate::service::system_clock(), crate::service::Random::from_os()?);
    let services = Services::new(config.clone(), store.clone(), clock, random, None, crate::train::recipes());
    let version = crate::service::register::find_or_register(&services, name, None, None).await?;
    if version.state == ModelState::Retired {
        bail!("{} is retired", version.name);
    }
    if matches!(version.kind, ModelKind::Classifier | ModelKind::PromptAdapter) {
        bail!("{} is a {}: requests name it, none is the active one", version.name, version.kind);
    }
    if version.stage != crate::domain::STAGE_UPSTREAM {
        // A version whose weights are not the published ones is not activated: no server would load it.
        let path = Artifacts::open(&config, store.clone())?.checked_path(&version).await?;
        crate::model::describe(&path).with_context(|| format!("{} cannot serve", version.name))?;
    }
    let now = crate::service::system_clock()();
    let version = store.activate_model(&version.id, now).await?;
    let detail = json!({"name": version.name, "kind": version.kind, "offline": true});
    store.audit(&"command line".into(), "promote", version.id.as_str(), detail, now).await?;
    println!(
        "{} is the active {} now; a running server follows, another one serves it when it starts",
        version.name, version.kind
    );
    let configured = find_version(store.as_ref(), &crate::app::model::version_name(&config.model)).await?;
    if version.kind == ModelKind::Policy
        && let Some(configured) = configured
        && crate::app::model::choose(store.as_ref(), configured).await?.id != version.id
    {
        println!(
            "It does not descend from the configured model {}: start the server with --model {}",
            config.model, version.name
        );
    }
    store.close().await;
    Ok(())
}

/// An error with its causes, each told once: a cause that the message before it has said already is left out.
pub fn told_once(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if text.contains(&cause) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&cause);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_once() {
        let cause = std::io::Error::other("no such file");
        let error = anyhow::Error::new(cause).context("cannot read x: no such file").context("model");
        assert_eq!(told_once(&error), "model: cannot read x: no such file");
        assert_eq!(told_once(&anyhow::anyhow!("one")), "one");
    }
}

//! Where the command line's models are: one way for a path, the built-in model, a pulled model, a published version
//! and a name that can still be brought.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::artifacts::Artifacts;
use crate::config::Config;
use crate::domain::{ModelKind, ModelState, ModelVersion};
use crate::model::{builtin, pull};
use crate::store::Store;

/// A model by any of its names → the path that loads.
///
/// # Errors
/// A name that nothing has: says what there is and how it is brought.
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
    let known = pull::KNOWN.iter().any(|known| known.name == name);
    if known && wants_it(name)? {
        return crate::models_cli::pull_model(name, &config.data_dir, None);
    }
    match missing {
        pull::PullError::NotHere { .. } => bail!("there is no model '{name}'. {}", there_are(config)),
        other => Err(other.into()),
    }
}

/// Asks at a terminal; elsewhere brings nothing without being told to.
fn wants_it(name: &str) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!("{name} is not here yet: `instructd models pull {name}` brings it");
    }
    eprint!("{name} is not here yet. Bring it now? [Y/n] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "" | "y" | "yes"))
}

/// The names that would have worked.
fn there_are(config: &Config) -> String {
    let mut names = vec![builtin::NAME.to_owned()];
    names.extend(pull::list(&config.data_dir).into_iter().map(|model| model.name));
    let more: Vec<&str> = pull::KNOWN.iter().map(|known| known.name).filter(|k| names.iter().all(|n| n != k)).collect();
    let bring = match more.as_slice() {
        [] => String::new(),
        more => format!("; `instructd models pull NAME` brings {}", more.join(", ")),
    };
    format!(
        "In {} there are {}, and the published versions of its database{bring}. A path to a Hugging Face directory or a \
         .gguf file works too",
        config.data_dir.display(),
        names.join(", ")
    )
}

/// The files of a version of the database, if there is a database and it knows the name or id.
async fn published(name: &str, config: &Config) -> Result<Option<PathBuf>> {
    let url = config.database_url();
    let file = url.strip_prefix("sqlite:").map(|rest| rest.trim_start_matches("//").split('?').next().unwrap_or(rest));
    // Looking a name up makes no database.
    if file.is_some_and(|file| !Path::new(file).exists()) {
        return Ok(None);
    }
    let store = crate::store::connect(&url).await.context("opening the database")?;
    let found = version(store.as_ref(), name).await?;
    let path = match found {
        Some(version) => {
            let artifacts = Artifacts::open(config, store.clone())?;
            Some(artifacts.path(&version).await?)
        }
        None => None,
    };
    store.close().await;
    Ok(path)
}

async fn version(store: &dyn Store, name: &str) -> Result<Option<ModelVersion>> {
    if let Some(found) = store.find_model(name).await? {
        return Ok(Some(found));
    }
    match store.get_model(&name.into()).await {
        Ok(found) => Ok(Some(found)),
        Err(crate::store::StoreError::NotFound { .. }) => Ok(None),
        Err(other) => Err(other.into()),
    }
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
    let Some(version) = version(store.as_ref(), name).await? else {
        let known = store.list_models().await?;
        let known: Vec<&str> =
            known.iter().filter(|m| m.state != ModelState::Retired).map(|m| m.name.as_str()).collect();
        bail!("there is no model version '{name}'; there are {}", known.join(", "));
    };
    if version.state == ModelState::Retired {
        bail!("{} is retired", version.name);
    }
    if matches!(version.kind, ModelKind::Classifier | ModelKind::PromptAdapter) {
        bail!("{} is a {}: requests name it, none is the active one", version.name, version.kind);
    }
    if version.stage != crate::domain::STAGE_UPSTREAM {
        let path = Artifacts::open(&config, store.clone())?.path(&version).await?;
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

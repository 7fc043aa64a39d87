//! Backup and restore, and moving between databases: the database as of one moment, the files of every model
//! version, and a manifest with sizes and hashes that both directions check.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::erased::{self, MANIFEST};
use crate::artifacts::{self, Artifacts, FETCHED};
use crate::config::Config;
use crate::domain::{Micros, ModelVersion, ModelVersionId, hash, is_path_part};
use crate::store::dump::{self, Dump};
use crate::store::{self, ErasedPerson, ModelFile, private};

const FORMAT: u32 = 1;
const DATABASE: &str = "instructd.db";
const TABLES: &str = "tables";
const MODELS: &str = "models";

/// What a backup directory holds.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    format: u32,
    /// The program that wrote it.
    program: String,
    /// UTC.
    created: String,
    database: Database,
    models: Vec<Kept>,
    /// People whose data was erased, before the backup or after it: a restore erases it.
    #[serde(default)]
    erased: Vec<ErasedPerson>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Database {
    /// A SQLite file.
    File(ModelFile),
    /// One file per table, in `tables/`.
    Tables(Dump),
}

#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    id: ModelVersionId,
    name: String,
    artifact_uri: String,
    /// In `models/<id>/`; empty when the files were nowhere to be found.
    files: Vec<ModelFile>,
}

/// Where a directory is filled before it takes its name: a backup that was cut off never looks like one.
fn aside(out: &Path) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(".part");
    PathBuf::from(name)
}

fn write_synced(path: &Path, text: &str) -> Result<()> {
    let mut file = File::create(path).with_context(|| format!("writing {}", path.display()))?;
    file.write_all(text.as_bytes())?;
    Ok(file.sync_all()?)
}

/// Fills `out` by `fill`, as a whole or not at all.
async fn filled<T>(out: &Path, fill: impl AsyncFnOnce(&Path) -> Result<T>) -> Result<T> {
    ensure!(!out.exists(), "{} exists already", out.display());
    let dir = aside(out);
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("removing {}", dir.display()))?;
    }
    fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    match fill(&dir).await {
        Ok(done) => {
            File::open(&dir)?.sync_all()?;
            fs::rename(&dir, out).with_context(|| format!("making {}", out.display()))?;
            Ok(done)
        }
        Err(error) => {
            let _ = fs::remove_dir_all(&dir);
            Err(error)
        }
    }
}

/// What a backup or a restore covers.
#[derive(Debug)]
pub struct Covered {
    pub versions: usize,
    /// When the backup was made.
    pub created: String,
    /// One sentence for each version whose files are nowhere.
    pub missing: Vec<String>,
    /// People erased again because their erasure is newer than the backup; 0 for a backup.
    pub erased: usize,
}

/// Writes a backup to the new directory `out` while servers continue to run; `now` is its date.
///
/// # Errors
/// What cannot be read or written. A version without files is not an error: `Covered::missing` names it.
pub async fn backup(config: &Config, out: &Path, now: Micros) -> Result<Covered> {
    let store = store::connect(&config.database_url()).await.context("opening the database")?;
    let artifacts = Artifacts::open(config, store.clone())?;
    let made = filled(out, async |dir| {
        // The database first: models never change and are in place before they are registered, so everything
        // that the copy names can be copied after it.
        let database = match store.backend() {
            "sqlite" => {
                let copy = dir.join(DATABASE);
                dump::copy(&config.database_url(), &copy).await?;
                let (sha256, bytes) = hash::of_file(&copy)?;
                Database::File(ModelFile { path: DATABASE.to_owned(), bytes: bytes.cast_signed(), sha256 })
            }
            _ => Database::Tables(dump::export(&config.database_url(), &dir.join(TABLES)).await?),
        };
        let (mut models, mut missing) = (Vec::new(), Vec::new());
        for version in store.models().list().await? {
            models.push(keep(&artifacts, store.as_ref(), version, dir, &mut missing).await?);
        }
        let manifest = Manifest {
            format: FORMAT,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            created: jiff::Timestamp::from_microsecond(now)?.to_string(),
            database,
            models,
            erased: store.privacy().erased_people().await?,
        };
        write_synced(&dir.join(MANIFEST), &serde_json::to_string_pretty(&manifest)?)?;
        Ok(Covered { versions: manifest.models.len(), created: manifest.created, missing, erased: 0 })
    })
    .await;
    if made.is_ok() {
        let place = std::path::absolute(out)?.display().to_string();
        store.backups().put(&place, now).await?;
    }
    store.close().await;
    made
}

async fn keep(
    artifacts: &Artifacts,
    store: &store::Store,
    version: ModelVersion,
    dir: &Path,
    missing: &mut Vec<String>,
) -> Result<Kept> {
    let (id, name, artifact_uri) = (version.id.clone(), version.name.clone(), version.artifact_uri.clone());
    let root = match artifacts.path(&version).await {
        Ok(root) => root,
        Err(error @ artifacts::ArtifactError::Missing { .. }) => {
            missing.push(error.to_string());
            return Ok(Kept { id, name, artifact_uri, files: Vec::new() });
        }
        Err(error) => return Err(error.into()),
    };
    let known = store.models().files(&id).await?;
    let to = dir.join(MODELS).join(id.as_str());
    tokio::task::spawn_blocking(move || {
        let files = if known.is_empty() { artifacts::describe(&root)? } else { known };
        artifacts::copy_tree(&name, &root, &files, &to)?;
        Ok(Kept { id, name, artifact_uri, files })
    })
    .await?
}

/// Brings a backup into an empty database and a data directory, whichever database it came from.
///
/// # Errors
/// A file that is not what the manifest says; a list that cannot be read; a database that is not empty. Nothing of an existing
/// installation is overwritten.
pub async fn restore(config: &Config, from: &Path, lists: &[PathBuf], now: Micros) -> Result<Covered> {
    let text = read_text(from, MANIFEST).with_context(|| format!("{} is no backup", from.display()))?;
    let manifest: Manifest = serde_json::from_str(&text).context(MANIFEST)?;
    ensure!(manifest.format == FORMAT, "the backup has format {}, this program reads {FORMAT}", manifest.format);
    let mut people = manifest.erased.clone();
    let own = config.data_dir.join(erased::LIST);
    for list in lists.iter().chain(own.exists().then_some(&own)) {
        people.extend(erased::read_list(list).with_context(|| format!("{} lists nobody", list.display()))?);
    }
    let people = erased::merged(people);
    for kept in &manifest.models {
        check_place(kept, from)?;
        artifacts::verify(&kept.name, &from.join(MODELS).join(kept.id.as_str()), &kept.files)?;
    }
    if let Database::File(file) = &manifest.database {
        plain_file(from, DATABASE, file.bytes)?;
        let (sha256, bytes) = hash::of_file(&from.join(DATABASE))?;
        ensure!(
            (&sha256, bytes.cast_signed()) == (&file.sha256, file.bytes),
            "{DATABASE} is not what the manifest says"
        );
    }
    private::make_data_dir(&config.data_dir)?;
    // The database last: it names the models, so they must be there when it is.
    let mut missing = Vec::new();
    for kept in &manifest.models {
        place(config, kept, from, &mut missing)?;
    }
    let url = config.database_url();
    match &manifest.database {
        Database::Tables(dump) => dump::import(&url, &from.join(TABLES), dump).await?,
        Database::File(_) if url.starts_with("sqlite") => dump::place(&from.join(DATABASE), &url).await?,
        Database::File(_) => {
            let tables = tempfile::tempdir()?;
            // The copy is opened for writing (SQLite wants its log), so it must not be the backup itself.
            let copy = tables.path().join(DATABASE);
            fs::copy(from.join(DATABASE), &copy)?;
            let dir = tables.path().join(TABLES);
            let dump = dump::export(&format!("sqlite://{}", copy.display()), &dir).await?;
            dump::import(&url, &dir, &dump).await?;
        }
    }
    let store = store::connect(&url).await.context("opening the restored database")?;
    let again = erased::apply(store.as_ref(), &people, now).await;
    store.close().await;
    let erased = again.context("erasing again the people who were erased after the backup")?;
    Ok(Covered { versions: manifest.models.len(), created: manifest.created, missing, erased })
}

/// Manifests and dumps are small; a longer one is none.
const LONGEST_TEXT: u64 = 64 << 20;

fn read_text(dir: &Path, name: &str) -> Result<String> {
    let found = fs::symlink_metadata(dir.join(name))?;
    ensure!(found.is_file(), "{name} is no plain file");
    ensure!(found.len() <= LONGEST_TEXT, "{name} has {} bytes; at most {LONGEST_TEXT} are read", found.len());
    Ok(fs::read_to_string(dir.join(name))?)
}

/// The backup may come from anywhere: what it names must lie in it, and must not lead out of it.
fn check_place(kept: &Kept, from: &Path) -> Result<()> {
    let id = kept.id.as_str();
    ensure!(is_path_part(id), "{MANIFEST}: '{id}' is no id of a model version");
    for file in &kept.files {
        plain_file(from, &format!("{MODELS}/{id}/{}", file.path), file.bytes)?;
    }
    Ok(())
}

/// A regular file of this size below `dir`, with no link on the way.
fn plain_file(dir: &Path, path: &str, bytes: i64) -> Result<()> {
    use std::path::Component;
    let mut at = dir.to_owned();
    for part in Path::new(path).components() {
        let Component::Normal(part) = part else { bail!("{path} leads out of the backup") };
        at.push(part);
        let found = fs::symlink_metadata(&at).with_context(|| format!("{path} of the backup"))?;
        ensure!(found.is_file() || found.is_dir(), "{path} is no plain file of the backup: links are not followed");
    }
    let found = fs::symlink_metadata(&at)?;
    ensure!(found.is_file(), "{path} of the backup is no file");
    ensure!(found.len() == bytes.cast_unsigned(), "{path} has {} bytes; the manifest says {bytes}", found.len());
    Ok(())
}

/// Files of one version to where this installation looks for them.
fn place(config: &Config, kept: &Kept, from: &Path, missing: &mut Vec<String>) -> Result<()> {
    if kept.files.is_empty() {
        missing.push(format!("the backup has no files of '{}'", kept.name));
        return Ok(());
    }
    let uri = Path::new(&kept.artifact_uri);
    // Only below `models/`: the other names in the data directory are the server's own.
    let parts: Vec<_> = uri.components().collect();
    let inside = parts.len() > 1
        && parts[0].as_os_str() == MODELS
        && parts.iter().all(|c| matches!(c, std::path::Component::Normal(_)));
    let root = if !inside {
        config.data_dir.join(FETCHED).join(kept.id.as_str())
    } else if kept.artifact_uri.ends_with(".gguf") {
        config.data_dir.join(uri.parent().unwrap_or(Path::new("")))
    } else {
        config.data_dir.join(uri)
    };
    if artifacts::verify(&kept.name, &root, &kept.files).is_ok() {
        return Ok(());
    }
    if let Some(file) = kept.files.iter().find(|f| root.join(&f.path).exists()) {
        bail!("{} exists already and is another file", root.join(&file.path).display());
    }
    Ok(artifacts::copy_tree(&kept.name, &from.join(MODELS).join(kept.id.as_str()), &kept.files, &root)?)
}

const DUMP: &str = "dump.json";

/// Writes every table to the new directory `out`; returns what it holds.
///
/// # Errors
/// A database that cannot be read; a directory that exists or cannot be written.
pub async fn export_db(config: &Config, out: &Path) -> Result<Dump> {
    filled(out, async |dir| {
        let dump = dump::export(&config.database_url(), dir).await?;
        write_synced(&dir.join(DUMP), &serde_json::to_string_pretty(&dump)?)?;
        Ok(dump)
    })
    .await
}

/// Fills an empty database, SQLite or PostgreSQL, from a directory that `export_db` wrote; returns what it holds.
///
/// # Errors
/// A directory that is no export; a database that is not empty.
pub async fn import_db(config: &Config, from: &Path) -> Result<Dump> {
    let text = read_text(from, DUMP).with_context(|| format!("{} is no export", from.display()))?;
    let dump: Dump = serde_json::from_str(&text).context(DUMP)?;
    private::make_data_dir(&config.data_dir)?;
    dump::import(&config.database_url(), from, &dump).await?;
    Ok(dump)
}

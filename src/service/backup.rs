//! Backup, restore, and moving between databases: a consistent copy of the database, the files of every model version,
//! and a manifest with sizes and hashes, which are verified in both directions.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::slice;

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

/// Contents of a backup directory.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    format: u32,
    /// Version of the program that wrote it.
    program: String,
    /// Time of the backup, UTC.
    created: String,
    database: Database,
    models: Vec<Kept>,
    /// People whose data was erased before or after the backup. A restore erases it again.
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
    /// Files in `models/<id>/`; empty when they could not be found.
    files: Vec<ModelFile>,
}

/// Temporary path of a directory that is being written, so that an interrupted backup never looks complete.
fn temporary(out: &Path) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(".part");
    PathBuf::from(name)
}

fn write_synced(path: &Path, text: &str) -> Result<()> {
    let mut file = File::create(path).with_context(|| format!("writing {}", path.display()))?;
    file.write_all(text.as_bytes())?;
    Ok(file.sync_all()?)
}

/// Creates the directory `out` by `fill` atomically.
async fn filled<T>(out: &Path, fill: impl AsyncFnOnce(&Path) -> Result<T>) -> Result<T> {
    ensure!(!out.exists(), "{} exists already", out.display());
    let dir = temporary(out);
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
    /// One sentence for each version whose files were not found.
    pub missing: Vec<String>,
    /// People erased again because their erasure is newer than the backup; 0 for a backup.
    pub erased: usize,
    /// Why the database does not list the backup, which is complete nevertheless.
    pub unlisted: Option<String>,
}

/// Writes a backup to the new directory `out` while servers continue to run; `now` is its date.
///
/// # Errors
/// Data that cannot be read or written; nothing is left at `out` then. A version without files is not an error; it is
/// listed in `Covered::missing`.
pub async fn backup(config: &Config, out: &Path, now: Micros) -> Result<Covered> {
    let store = store::connect(&config.database_url()).await.context("opening the database")?;
    let artifacts = Artifacts::open(config, store.clone())?;
    let mut made = filled(out, async |dir| {
        // The database first: models never change and their files exist before they are registered, so the files of all
        // versions in the copy can be copied after it.
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
        Ok(Covered { versions: manifest.models.len(), created: manifest.created, missing, erased: 0, unlisted: None })
    })
    .await;
    if let Ok(covered) = &mut made {
        let place = std::path::absolute(out)?.display().to_string();
        // The database's disk may be full, which is a reason to make a backup.
        covered.unlisted = store.backups().put(&place, now).await.err().map(|error| error.to_string());
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

/// Restores a backup, of either kind of database, into an empty database and a data directory.
///
/// # Errors
/// A file that differs from the manifest; a list that cannot be read; a database that is not empty; a full disk. No part of
/// an existing installation is overwritten, and after an error the same restore can be tried again: files that were placed
/// are used, and no SQLite database is left behind.
pub async fn restore(config: &Config, from: &Path, lists: &[PathBuf], now: Micros) -> Result<Covered> {
    let text = read_text(from, MANIFEST).with_context(|| format!("{} is not a backup", from.display()))?;
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
            "{DATABASE} differs from the manifest: the backup is damaged"
        );
    }
    private::make_data_dir(&config.data_dir)?;
    // The database last: the files of the models that it names must exist.
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
            // SQLite opens the file for writing, so a copy of the backup is opened.
            let copy = tables.path().join(DATABASE);
            fs::copy(from.join(DATABASE), &copy)?;
            let dir = tables.path().join(TABLES);
            let dump = dump::export(&format!("sqlite://{}", copy.display()), &dir).await?;
            dump::import(&url, &dir, &dump).await?;
        }
    }
    let again = erase_again(&url, &people, now).await;
    if again.is_err() {
        // No server may start on the data of people who were erased.
        dump::remove(&url)?;
    }
    let erased = again.context("erasing again the people who were erased after the backup")?;
    Ok(Covered { versions: manifest.models.len(), created: manifest.created, missing, erased, unlisted: None })
}

async fn erase_again(url: &str, people: &[ErasedPerson], now: Micros) -> Result<usize> {
    let store = store::connect(url).await.context("opening the restored database")?;
    let erased = erased::apply(store.as_ref(), people, now).await;
    store.close().await;
    Ok(erased?)
}

/// Most bytes of a manifest or dump; a longer file is refused.
const LONGEST_TEXT: u64 = 64 << 20;

fn read_text(dir: &Path, name: &str) -> Result<String> {
    let found = fs::symlink_metadata(dir.join(name))?;
    ensure!(found.is_file(), "{name} is not a regular file");
    ensure!(found.len() <= LONGEST_TEXT, "{name} has {} bytes; at most {LONGEST_TEXT} are read", found.len());
    Ok(fs::read_to_string(dir.join(name))?)
}

/// A backup is untrusted: the paths that it names must be inside of it.
fn check_place(kept: &Kept, from: &Path) -> Result<()> {
    let id = kept.id.as_str();
    ensure!(is_path_part(id), "{MANIFEST}: '{id}' is not a valid id of a model version");
    for file in &kept.files {
        plain_file(from, &format!("{MODELS}/{id}/{}", file.path), file.bytes)?;
    }
    Ok(())
}

/// Checks that `path` is a regular file of `bytes` bytes below `dir`, without symbolic links on the way.
fn plain_file(dir: &Path, path: &str, bytes: i64) -> Result<()> {
    use std::path::Component;
    let mut at = dir.to_owned();
    for part in Path::new(path).components() {
        let Component::Normal(part) = part else { bail!("{path} leads out of the backup") };
        at.push(part);
        let found = fs::symlink_metadata(&at).with_context(|| format!("{path} of the backup"))?;
        ensure!(
            found.is_file() || found.is_dir(),
            "{path} is not a regular file of the backup: links are not followed"
        );
    }
    let found = fs::symlink_metadata(&at)?;
    ensure!(found.is_file(), "{path} of the backup is not a file");
    ensure!(found.len() == bytes.cast_unsigned(), "{path} has {} bytes; the manifest says {bytes}", found.len());
    Ok(())
}

/// Copies the files of one version to where this installation looks for them.
fn place(config: &Config, kept: &Kept, from: &Path, missing: &mut Vec<String>) -> Result<()> {
    if kept.files.is_empty() {
        missing.push(format!("the backup has no files of the model version '{}'", kept.name));
        return Ok(());
    }
    let uri = Path::new(&kept.artifact_uri);
    // Only below `models/`: other names in the data directory are reserved for the server.
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
    // Those that an earlier restore copied before it failed are as they should be.
    let differs = |f: &&ModelFile| {
        root.join(&f.path).exists() && artifacts::verify(&kept.name, &root, slice::from_ref(f)).is_err()
    };
    if let Some(file) = kept.files.iter().find(differs) {
        bail!("{} exists already with other contents; move it away first", root.join(&file.path).display());
    }
    Ok(artifacts::copy_tree(&kept.name, &from.join(MODELS).join(kept.id.as_str()), &kept.files, &root)?)
}

const DUMP: &str = "dump.json";

/// Writes every table to the new directory `out`; returns a description of it.
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

/// Fills an empty database, SQLite or PostgreSQL, from a directory that `export_db` wrote; returns a description of it.
///
/// # Errors
/// A directory that is not an export; a database that is not empty.
pub async fn import_db(config: &Config, from: &Path) -> Result<Dump> {
    let text = read_text(from, DUMP).with_context(|| format!("{} is not a directory of export-db", from.display()))?;
    let dump: Dump = serde_json::from_str(&text).context(DUMP)?;
    private::make_data_dir(&config.data_dir)?;
    dump::import(&config.database_url(), from, &dump).await?;
    Ok(dump)
}

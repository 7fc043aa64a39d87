//! Lists of people whose data was erased: in a data directory and in the manifests of backups, so that restoring a
//! backup from before an erasure erases the data again.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::random::actor_hash;
use crate::domain::Micros;
use crate::domain::files::write_atomically;
use crate::store::{Erase, ErasedPerson, Store, StoreError};

/// The list in a data directory.
pub const LIST: &str = "erased.json";
/// File name of a backup's manifest.
pub const MANIFEST: &str = "manifest.json";

#[derive(Debug, Default, Serialize, Deserialize)]
struct List {
    #[serde(default)]
    erased: Vec<ErasedPerson>,
}

/// Writes the list into a data directory.
///
/// # Errors
/// What the file system says.
pub fn write_list(data_dir: &Path, people: &[ErasedPerson]) -> std::io::Result<()> {
    write_atomically(&data_dir.join(LIST), &serde_json::to_vec_pretty(&json!({"erased": people}))?)
}

/// Reads the people that a file names: a list, or a manifest (also by its backup's directory).
///
/// # Errors
/// A file that cannot be read or is not JSON.
pub fn read_list(path: &Path) -> std::io::Result<Vec<ErasedPerson>> {
    let file = if path.is_dir() { path.join(MANIFEST) } else { path.to_owned() };
    Ok(serde_json::from_slice::<List>(&std::fs::read(file)?)?.erased)
}

/// Adds people to a backup's manifest.
///
/// # Errors
/// What the file system says; a manifest that is not JSON.
pub fn add_to_manifest(backup: &Path, people: &[ErasedPerson]) -> std::io::Result<()> {
    let path = backup.join(MANIFEST);
    let mut manifest: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
    let known: List = serde_json::from_value(manifest.clone())?;
    manifest["erased"] = serde_json::to_value(merged(known.erased.into_iter().chain(people.iter().cloned())))?;
    write_atomically(&path, &serde_json::to_vec_pretty(&manifest)?)
}

/// One entry for each person; removal has priority over anonymization.
pub fn merged(people: impl IntoIterator<Item = ErasedPerson>) -> Vec<ErasedPerson> {
    let mut found: Vec<ErasedPerson> = Vec::new();
    for person in people {
        match found.iter_mut().find(|known| known.labeler_id == person.labeler_id) {
            Some(known) if person.judgments == Erase::Remove => known.judgments = Erase::Remove,
            Some(_) => {}
            None => found.push(person),
        }
    }
    found
}

/// Erases the listed people in a restored database; returns how many were found.
///
/// # Errors
/// What the store says.
pub async fn apply(store: &Store, people: &[ErasedPerson], now: Micros) -> Result<usize, StoreError> {
    let done = store.privacy().erased_people().await?;
    let mut erased = 0;
    for person in people {
        let id = &person.labeler_id;
        if done.iter().any(|d| d.labeler_id == *id && (d.judgments == person.judgments || d.judgments == Erase::Remove))
        {
            continue;
        }
        match store.privacy().erase_labeler(id, person.judgments, &actor_hash(id), now).await {
            Ok(rows) => {
                let detail = json!({"judgments": person.judgments, "erased": rows, "asked": person.created});
                store.audit_log().append(&"restore".into(), "erase", id.as_str(), detail, now).await?;
                erased += 1;
            }
            // The person was added after the backup.
            Err(StoreError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    store.privacy().flush_erased().await?;
    Ok(erased)
}

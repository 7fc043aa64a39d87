//! A dataset version as a directory that the Hugging Face hub shows and `datasets` loads: one file of rankings and a
//! card.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use tokio::io::AsyncWriteExt;

use super::transfer::{Selection, write_out};
use super::{Result, ServiceError, Services, datasets};
use crate::data::Format;
use crate::domain::{DatasetVersion, Split};

/// Writes the version's rankings in a format, in a file named by their split, and README.md into a directory. Returns the number of rankings that the
/// format cannot represent.
///
/// # Errors
/// `NotFound` for an unknown version; `Conflict` when it cannot be reproduced; `BadInput` for formats without rankings.
pub async fn write_dir(services: &Arc<Services>, id: &str, format: Format, dir: &Path) -> Result<usize> {
    let version = datasets::get(services, id).await?;
    let split = match datasets::filter_of(&version).ok().and_then(|filter| filter.split) {
        // The hub's name of a held-out split.
        Some(Split::Heldout) => "test",
        _ => "train",
    };
    let selection = Selection { dataset: Some(id.to_owned()), ..Selection::default() };
    let mut export = write_out(services, format, selection).await?;
    let ending = if format == Format::Parquet { "parquet" } else { "jsonl" };
    let name = format!("{split}.{ending}");
    let failed = |error: std::io::Error| ServiceError::Internal(format!("writing {name}: {error}"));
    let mut file = tokio::fs::File::create(dir.join(&name)).await.map_err(failed)?;
    while let Some(piece) = export.pieces.recv().await {
        file.write_all(&piece?).await.map_err(failed)?;
    }
    file.flush().await.map_err(failed)?;
    let card = card(&version, split, format, &name, export.left_out);
    tokio::fs::write(dir.join("README.md"), card).await.map_err(failed)?;
    Ok(export.left_out)
}

fn card(version: &DatasetVersion, split: &str, format: Format, file: &str, left_out: usize) -> String {
    let DatasetVersion { id, name, filter, as_of, sha256, n_sets, n_pairs } = version;
    let title = name.as_deref().unwrap_or(id.as_str());
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write!(
        out,
        "---\ntags:\n- instructd\n- preference\nconfigs:\n- config_name: default\n  data_files:\n  - split: {split}\n    path: \
         {file}\n---\n\n# Rankings `{title}`\n\nA dataset version of instructd.\n\n| | |\n|---|---|\n| sets | {n_sets} \
         |\n| pairs | {n_pairs} |\n| format | `{}` |\n| rankings that the format cannot hold | {left_out} |\n| as of | \
         {} |\n| SHA-256 of the rankings | `{sha256}` |\n",
        format.as_str(),
        jiff::Timestamp::from_microsecond(*as_of).map(|at| at.to_string()).unwrap_or_default(),
    );
    let _ = write!(out, "\nFilter:\n\n```json\n{filter:#}\n```\n");
    out
}

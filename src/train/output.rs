//! Writes the model directory of a recipe's result.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use super::args::Common;
use super::trainable::Trainable;
use crate::model::adapters::peft;
use crate::model::merged::Merged;
use crate::model::save::save_merged;
use crate::model::{Build, Loaded};
use crate::prompt::Texts;

/// Writes `weights` with the configuration and tokenizer of `source` to the output directory, and an instructd.json
/// with `kind`, `recipe`, `parent`, `seed` and the entries of `more`.
pub fn save(common: &Common, kind: &str, recipe: &str, source: &Loaded, weights: &Merged, more: Value) -> Result<()> {
    let mut about = serde_json::json!({"kind": kind, "recipe": recipe, "parent": common.model, "seed": common.seed});
    if let (Some(about), Value::Object(more)) = (about.as_object_mut(), more) {
        about.extend(more);
    }
    // The end tokens with which sequences ended in training become those of the model.
    let mut config = source.config.clone();
    if !config.is_encoder()
        && let Ok(texts) = Texts::new(source)
    {
        config.eos_ids = texts.eos_ids().to_vec();
    }
    save_merged(
        Path::new(&common.output_dir),
        &config,
        &source.hf_config,
        weights,
        source.tokenizer.as_ref(),
        source.chat_template.as_deref(),
        Some(&about),
    )
    .context("output_dir")?;
    Ok(())
}

/// Writes the LoRA adapter, if there is one, to the output directory. Call it before `save`, which writes the weights
/// last.
pub fn save_adapter<M: Build>(common: &Common, trained: &Trainable<M>) -> Result<()> {
    let dir = Path::new(&common.output_dir).join(peft::FOLDER);
    // Only the name, without the path on this machine.
    let base = Path::new(&common.model)
        .file_name()
        .map_or_else(|| common.model.as_str().into(), |name| name.to_string_lossy());
    trained.save_adapter(&dir, &base).context("output_dir")
}

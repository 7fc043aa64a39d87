//! The model directory that a recipe leaves behind.

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

/// Writes `weights` with the configuration and tokenizer of `source` to the output directory, and an
/// instructd.json of `kind`, `recipe`, `parent` and the entries of `more`.
pub fn save(common: &Common, kind: &str, recipe: &str, source: &Loaded, weights: &Merged, more: Value) -> Result<()> {
    let mut about = serde_json::json!({"kind": kind, "recipe": recipe, "parent": common.model, "seed": common.seed});
    if let (Some(about), Value::Object(more)) = (about.as_object_mut(), more) {
        about.extend(more);
    }
    // What training ended its sequences with ends them for whoever loads the files.
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

/// The adapter beside the model it is folded into, where there is one. Before `save`: the weights come last.
pub fn save_adapter<M: Build>(common: &Common, trained: &Trainable<M>) -> Result<()> {
    let dir = Path::new(&common.output_dir).join(peft::FOLDER);
    // By its name: where the model lies is this machine's business.
    let base = Path::new(&common.model)
        .file_name()
        .map_or_else(|| common.model.as_str().into(), |name| name.to_string_lossy());
    trained.save_adapter(&dir, &base).context("output_dir")
}

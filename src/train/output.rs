//! The model directory that a recipe leaves behind.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use super::args::Common;
use crate::model::{Loaded, Weights, save_dir};
use crate::prompt::Texts;

/// Writes `weights` with the configuration and tokenizer of `source` to the output directory, and an
/// instructd.json of `kind`, `recipe`, `parent` and the entries of `more`.
pub fn save(common: &Common, kind: &str, recipe: &str, source: &Loaded, weights: &Weights, more: Value) -> Result<()> {
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
    save_dir(
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

//! `instructd models import-peft`: folds a PEFT (LoRA) adapter into the model it was trained on.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};

use crate::cli::locate;
use crate::cli::settings::Settings;
use crate::domain::is_model_name;
use crate::hub::pull;
use crate::model;
use crate::model::adapters::peft;

#[derive(clap::Args)]
pub struct Args {
    /// The directory of adapter_config.json and adapter_model.safetensors.
    adapter: PathBuf,
    /// What the result is called.
    name: String,
    /// The model under the adapter: a name, a directory or a .gguf file.
    #[arg(long)]
    base: String,
    #[command(flatten)]
    settings: Settings,
}

/// Writes the merged model into the data directory under its new name.
///
/// # Errors
/// A name that is malformed or taken, a base that cannot be found, an adapter of another model.
pub fn run(args: Args) -> Result<()> {
    let Args { adapter, name, base, settings } = args;
    let config = settings.load()?;
    ensure!(
        is_model_name(&name),
        "{name:?} cannot be a model's name: use lower-case letters, digits, '.', '_' and '-', at most 64"
    );
    let base = locate::find(&base, &config)?;
    import_peft(&adapter, &base, &pull::models_dir(&config.data_dir).join(name))
}

/// Folds a PEFT adapter into its base and writes the result as a model directory.
///
/// # Errors
/// When `out` is not empty, or the adapter is not one for this model.
fn import_peft(adapter: &Path, base: &Path, out: &Path) -> Result<()> {
    if std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some()) {
        bail!("the directory {} is not empty; choose another name", out.display());
    }
    let loaded = model::load(base, &candle_core::Device::Cpu)?;
    let weights = peft::read(adapter, &loaded.config)?.merge(&loaded.config, &loaded.weights)?;
    model::save_dir(
        out,
        &loaded.config,
        &loaded.hf_config,
        &weights,
        loaded.tokenizer.as_ref(),
        loaded.chat_template.as_deref(),
        loaded.instructd.as_ref(),
    )?;
    println!("{}", out.display());
    Ok(())
}

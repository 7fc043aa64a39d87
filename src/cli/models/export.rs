//! `instructd models export`: a model as a Hugging Face directory, a GGUF file or a PEFT directory.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::cli::locate;
use crate::cli::settings::Settings;
use crate::model::adapters::peft;
use crate::model::gguf::export::{self, GgufFormat};
use crate::model::{self, FileType};

#[derive(clap::Args)]
pub struct Args {
    /// A name (builtin, pulled or published), a directory or a .gguf file.
    model: String,
    out: PathBuf,
    /// Write the weights in f16: half the size.
    #[arg(long)]
    half: bool,
    /// Write one GGUF file, which llama.cpp loads, instead of a directory: f16, q8_0 or q4_k.
    #[arg(long, value_name = "FORMAT", num_args = 0..=1, default_missing_value = "f16", conflicts_with = "half")]
    gguf: Option<String>,
    /// Write the LoRA adapter that the model was trained with as a PEFT directory.
    #[arg(long, conflicts_with_all = ["half", "gguf"])]
    peft: bool,
    #[command(flatten)]
    settings: Settings,
}

/// Writes the model and prints the SHA-256 of its weights.
///
/// # Errors
/// A model that cannot be found or read, a format that cannot hold it, an output that exists.
pub fn run(args: Args) -> Result<()> {
    let Args { model, out, half, gguf, peft, settings } = args;
    let source = locate::find(&model, &settings.load()?)?;
    if peft {
        return export_peft(&source, &out);
    }
    if let Some(format) = gguf {
        return export_gguf(&source, &model, &out, &format);
    }
    let sha256 = export_model(&source, &out, if half { FileType::F16 } else { FileType::F32 })?;
    println!("{sha256}  {}", out.display());
    Ok(())
}

/// Writes any model (directory or GGUF) as a Hugging Face directory; returns the SHA-256 of its weights.
///
/// # Errors
/// When `out` exists and is not empty, or the model cannot be read or written.
pub fn export_model(source: &Path, out: &Path, file_type: FileType) -> Result<String> {
    if std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some()) {
        bail!("the output directory {} is not empty; name another one", out.display());
    }
    let sha256 = save(source, out, file_type)?;
    println!("{}\tsha256 {sha256}", out.display());
    Ok(sha256)
}

/// Writes any model as a Hugging Face directory, without printing; returns the SHA-256 of its weights.
pub(super) fn save(source: &Path, out: &Path, file_type: FileType) -> Result<String> {
    let loaded = model::load(source, &candle_core::Device::Cpu)?;
    let sha256 = model::save_dir_as(
        out,
        file_type,
        &loaded.config,
        &loaded.hf_config,
        &loaded.weights,
        loaded.tokenizer.as_ref(),
        loaded.chat_template.as_deref(),
        loaded.instructd.as_ref(),
    )
    .with_context(|| format!("exporting {}", source.display()))?;
    Ok(sha256)
}

/// Writes the LoRA adapter that a model was trained with as a PEFT directory.
///
/// # Errors
/// When `out` is not empty, or the model has no adapter.
fn export_peft(source: &Path, out: &Path) -> Result<()> {
    if std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some()) {
        bail!("the output directory {} is not empty; name another one", out.display());
    }
    let from = source.join(peft::FOLDER);
    if !from.is_dir() {
        bail!("{} has no adapter: it was not trained with `lora`", source.display());
    }
    std::fs::create_dir_all(out).with_context(|| format!("making {}", out.display()))?;
    for entry in std::fs::read_dir(&from).with_context(|| format!("reading {}", from.display()))? {
        let entry = entry?;
        std::fs::copy(entry.path(), out.join(entry.file_name()))
            .with_context(|| format!("writing {}", out.display()))?;
    }
    println!("{}", out.display());
    Ok(())
}

/// Writes any model (directory or GGUF) as one GGUF file of a format.
///
/// # Errors
/// When the format is unknown, `out` exists, or a GGUF file cannot hold the model.
fn export_gguf(source: &Path, name: &str, out: &Path, format: &str) -> Result<()> {
    let format = GgufFormat::parse(format).map_err(anyhow::Error::msg)?;
    if out.exists() {
        bail!("{} exists already; name another output", out.display());
    }
    let loaded = model::load(source, &candle_core::Device::Cpu)?;
    if loaded.instructd.as_ref().is_some_and(|facts| facts["kind"] == "reward") {
        bail!("{} is a reward model: a GGUF file cannot hold its head; export a directory instead", source.display());
    }
    let name = Path::new(name).file_stem().map_or_else(|| name.to_owned(), |stem| stem.to_string_lossy().into_owned());
    let sha256 = export::export(&loaded, &name, out, format)?;
    println!("{sha256}  {}", out.display());
    Ok(())
}

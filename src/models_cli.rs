//! `instructd models pull|list|export`: what the subcommands do, without their parsing.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

use crate::model::gguf_export::{self, GgufFormat};
use crate::model::{self, FileType, peft, pull};

/// Pulls a model with a progress bar on stderr and prints where it is.
pub fn pull_model(name: &str, data_dir: &Path, from: Option<&Path>) -> Result<PathBuf> {
    let bar = ProgressBar::no_length();
    let known = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}")?;
    let unknown = ProgressStyle::with_template("{msg} {spinner} {bytes} {bytes_per_sec}")?;
    bar.set_style(unknown.clone());
    let mut last = String::new();
    let path = pull::pull(name, data_dir, from, &mut |at| {
        if at.what != last {
            last.clone_from(&at.what);
            bar.reset();
            bar.set_message(at.what.rsplit('/').next().unwrap_or(&at.what).to_owned());
            bar.set_style(if at.total.is_some() { known.clone() } else { unknown.clone() });
        }
        if let Some(total) = at.total {
            bar.set_length(total);
        }
        bar.set_position(at.done);
    });
    bar.finish_and_clear();
    let path = path?;
    println!("{}", path.display());
    Ok(path)
}

/// Prints the pulled models; with `available` also those that can be pulled by name, and what they need.
pub fn list_models(data_dir: &Path, available: bool) {
    let installed = pull::list(data_dir);
    for model in &installed {
        println!("{}\t{:.1} MB\t{}", model.name, model.bytes as f64 / 1e6, model.path.display());
    }
    let more = || pull::KNOWN.iter().filter(|known| installed.iter().all(|m| m.name != known.name));
    if !available {
        for known in more() {
            println!("{}\tnot pulled\t{}", known.name, known.repo);
        }
        return;
    }
    let here = crate::train::estimate::available_memory();
    println!("name\tparameters\tlicense\tlanguages\tserve\tLoRA\tfull training\thub");
    for known in more() {
        let needs = known.needs();
        let size = |bytes: u64| {
            let fits = here.is_none_or(|here| bytes <= here);
            format!("{:.1} GB{}", bytes as f64 / 1e9, if fits { "" } else { "*" })
        };
        println!(
            "{}\t{}M\t{}{}\t{}\t{}\t{}\t{}\t{}",
            known.name,
            known.millions,
            known.license,
            if known.gated { " (asks for consent)" } else { "" },
            known.languages.join(" "),
            size(needs.serve),
            size(needs.lora),
            size(needs.full),
            known.repo
        );
    }
    println!(
        "Memory by the number of parameters: weights in 16 bits; frozen in f32 under LoRA; with gradients and Adam's \
         moments in f32. Caches and activations come on top."
    );
    if let Some(here) = here {
        println!("* more than the {:.1} GB of memory that are free here", here as f64 / 1e9);
    }
}

/// Writes any model (directory or GGUF) as a Hugging Face directory; returns the SHA-256 of its weights.
///
/// # Errors
/// When `out` exists and is not empty, or the model cannot be read or written.
pub fn export_model(source: &Path, out: &Path, file_type: FileType) -> Result<String> {
    if std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some()) {
        bail!("{} is not empty", out.display());
    }
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
    println!("{}\tsha256 {sha256}", out.display());
    Ok(sha256)
}

/// Writes the LoRA adapter that a model was trained with as a PEFT directory.
///
/// # Errors
/// When `out` is not empty, or the model has no adapter.
pub fn export_peft(source: &Path, out: &Path) -> Result<()> {
    if std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some()) {
        bail!("{} is not empty", out.display());
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

/// Folds a PEFT adapter into its base and writes the result as a model directory.
///
/// # Errors
/// When `out` is not empty, or the adapter is not one for this model.
pub fn import_peft(adapter: &Path, base: &Path, out: &Path) -> Result<()> {
    if std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some()) {
        bail!("{} is not empty", out.display());
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

/// Writes any model (directory or GGUF) as one GGUF file of a format.
///
/// # Errors
/// When the format is unknown, `out` exists, or a GGUF file has no place for the model.
pub fn export_gguf(source: &Path, name: &str, out: &Path, format: &str) -> Result<()> {
    let format = GgufFormat::parse(format).map_err(anyhow::Error::msg)?;
    if out.exists() {
        bail!("{} is there already", out.display());
    }
    let loaded = model::load(source, &candle_core::Device::Cpu)?;
    if loaded.instructd.as_ref().is_some_and(|facts| facts["kind"] == "reward") {
        bail!("{} is a reward model: a GGUF file has no place for its head", source.display());
    }
    let name = Path::new(name).file_stem().map_or_else(|| name.to_owned(), |stem| stem.to_string_lossy().into_owned());
    let sha256 = gguf_export::export(&loaded, &name, out, format)?;
    println!("{sha256}  {}", out.display());
    Ok(())
}

//! `instructd models push`: a model as a repository of the Hugging Face hub.

use std::path::Path;

use anyhow::{Context, Result};

use super::export::save;
use crate::cli::settings::Settings;
use crate::cli::{block_on, locate};
use crate::hub::Hub;
use crate::hub::push::{Push, RepoKind};
use crate::model::FileType;

/// The model card beside the weights.
const CARD: &str = "README.md";

#[derive(clap::Args)]
pub struct Args {
    /// A name (builtin, pulled or published), a directory or a .gguf file.
    model: String,
    /// The repository: OWNER/NAME. It is created if it does not exist.
    repo: String,
    /// Create a private repository; an existing one stays as it is.
    #[arg(long)]
    private: bool,
    /// Write the weights in f16: half the size.
    #[arg(long)]
    half: bool,
    #[command(flatten)]
    settings: Settings,
}

/// Exports the model with its card and pushes it; prints the repository's address. HF_ENDPOINT and HF_TOKEN name the
/// hub and the token.
///
/// # Errors
/// A model that cannot be found or read; what the hub refuses.
pub fn run(args: Args) -> Result<()> {
    let Args { model, repo, private, half, settings } = args;
    let config = settings.load()?;
    let source = locate::find(&model, &config)?;
    std::fs::create_dir_all(&config.data_dir).with_context(|| format!("making {}", config.data_dir.display()))?;
    // Weights may be large, so not in the system's directory of temporary files.
    let dir = tempfile::tempdir_in(&config.data_dir).context("making a directory for the export")?;
    save(&source, dir.path(), if half { FileType::F16 } else { FileType::F32 })?;
    copy_card(&source, dir.path())?;
    let summary = format!("{model}, pushed by instructd");
    let push = Push { kind: RepoKind::Model, repo: &repo, private, dir: dir.path(), summary: &summary };
    let pushed = block_on(async { Ok(Hub::from_env().push(&push, &|file, what| eprintln!("{file} {what}")).await?) })?;
    println!("{} ({} files sent, {} there already)", pushed.url, pushed.sent, pushed.present);
    Ok(())
}

/// Copies the card that training wrote, if the model has one.
fn copy_card(source: &Path, to: &Path) -> Result<()> {
    let card = source.join(CARD);
    if card.is_file() {
        std::fs::copy(&card, to.join(CARD)).with_context(|| format!("copying {}", card.display()))?;
    }
    Ok(())
}

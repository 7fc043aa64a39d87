//! `instructd export`: stored judgments or demonstrations as JSON lines.

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};

use super::settings::Settings;
use crate::data::Format;
use crate::domain::Split;

#[derive(clap::Args)]
pub struct Args {
    /// comparisons, trl, hh, demonstrations, oasst or parquet.
    #[arg(long, default_value = "comparisons")]
    format: String,
    /// train or heldout.
    #[arg(long)]
    split: Option<String>,
    /// Id or name of a project; all when absent.
    #[arg(long)]
    project: Option<String>,
    /// A file; standard output when absent.
    #[arg(long)]
    out: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

/// The format that `--format` names.
///
/// # Errors
/// An unknown format.
pub(super) fn format(name: &str) -> Result<Format> {
    let known: Vec<&str> = Format::ALL.iter().map(|known| known.as_str()).collect();
    Format::parse(name).ok_or_else(|| anyhow!("--format: {}", crate::domain::unknown_name("format", name, &known)))
}

/// Writes stored rankings or demonstrations to a file or to standard output.
///
/// # Errors
/// An unknown format or split, a database that does not open, a file that cannot be written.
pub async fn run(args: Args) -> Result<()> {
    let Args { format, split, project, out, settings } = args;
    let config = settings.load()?;
    let format = self::format(&format)?;
    let split = match split {
        None => None,
        Some(name) => {
            let known = || crate::domain::unknown_name("split", &name, &["train", "heldout"]);
            Some(Split::parse(&name).ok_or_else(|| anyhow!("--split: {}", known()))?)
        }
    };
    let store = crate::app::open_store(&config).await?;
    let (services, generated_key) = crate::app::services(config, store.clone()).await?;
    if let Some(key) = generated_key {
        eprintln!("admin key, shown this once: {key}");
    }
    crate::service::live::refresh(&services).await?;
    let project = crate::service::projects::filter(&services, project.as_deref()).await?;
    let selection = crate::service::transfer::Selection { split, project, ..Default::default() };
    let mut file = crate::service::transfer::write_out(&services, format, selection).await?;
    use std::io::Write as _;
    let mut to: Box<dyn std::io::Write> = match &out {
        Some(path) => {
            let file = std::fs::File::create(path).with_context(|| format!("writing {}", path.display()))?;
            Box::new(std::io::BufWriter::new(file))
        }
        None => Box::new(std::io::stdout()),
    };
    while let Some(piece) = file.pieces.recv().await {
        to.write_all(&piece?).context("writing the export")?;
    }
    to.flush().context("writing the export")?;
    store.close().await;
    if file.left_out > 0 {
        eprintln!("{} rankings are left out: the format {} cannot hold them", file.left_out, format.as_str());
    }
    Ok(())
}

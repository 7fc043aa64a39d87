//! `instructd models pull`: pulls a model into the data directory.

use std::path::PathBuf;

use anyhow::Result;

use crate::app::pull::pull_model;
use crate::cli::settings::Settings;

#[derive(clap::Args)]
pub struct Args {
    name: Option<String>,
    /// A local file or directory to take it from.
    #[arg(long)]
    from: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

/// Pulls the named model, or the configured one when none is named.
///
/// # Errors
/// As `hub::pull::pull`.
pub fn run(args: Args) -> Result<()> {
    let config = args.settings.load()?;
    let name = args.name.unwrap_or_else(|| config.model.clone());
    pull_model(&name, &config.data_dir, args.from.as_deref()).map(drop)
}

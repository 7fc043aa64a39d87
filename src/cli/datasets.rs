//! `instructd datasets`: pushes dataset versions to the Hugging Face hub.

use anyhow::{Context, Result};
use clap::Subcommand;

use super::settings::Settings;
use crate::hub::Hub;
use crate::hub::push::{Push, RepoKind};
use crate::service::hub_dataset;

#[derive(Subcommand)]
pub enum Datasets {
    /// Push a dataset version to a repository of the Hugging Face hub, with a card.
    #[command(
        after_help = "Example:\n  HF_TOKEN=hf_… instructd datasets push my-rankings my-name/my-rankings --private"
    )]
    Push(PushArgs),
}

#[derive(clap::Args)]
pub struct PushArgs {
    /// Name or id of a dataset version.
    dataset: String,
    /// The repository: OWNER/NAME. It is created if it does not exist.
    repo: String,
    /// comparisons, trl, hh, oasst or parquet.
    #[arg(long, default_value = "trl")]
    format: String,
    /// Create a private repository; an existing one stays as it is.
    #[arg(long)]
    private: bool,
    #[command(flatten)]
    settings: Settings,
}

impl Datasets {
    /// Runs the subcommand.
    ///
    /// # Errors
    /// What the subcommand reports.
    pub async fn run(self) -> Result<()> {
        match self {
            Self::Push(args) => push(args).await,
        }
    }
}

/// Exports the version and pushes it; prints the repository's address. HF_ENDPOINT and HF_TOKEN name the hub and the
/// token.
///
/// # Errors
/// An unknown version or format; a version that cannot be reproduced; what the hub refuses.
async fn push(args: PushArgs) -> Result<()> {
    let PushArgs { dataset, repo, format, private, settings } = args;
    let config = settings.load()?;
    let format = super::export::format(&format)?;
    let dir = tempfile::tempdir().context("making a directory for the export")?;
    let services = crate::app::keyless_services(config).await?;
    let left_out = hub_dataset::write_dir(&services, &dataset, format, dir.path()).await?;
    services.store.close().await;
    if left_out > 0 {
        eprintln!("{left_out} rankings are left out: the format {} cannot hold them", format.as_str());
    }
    let summary = format!("{dataset}, pushed by instructd");
    let push = Push { kind: RepoKind::Dataset, repo: &repo, private, dir: dir.path(), summary: &summary };
    let pushed = Hub::from_env().push(&push, &|file, what| eprintln!("{file} {what}")).await?;
    println!("{} ({} files sent, {} there already)", pushed.url, pushed.sent, pushed.present);
    Ok(())
}

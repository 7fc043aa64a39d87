//! `instructd backup`: a copy of the database and the models.

use std::path::PathBuf;

use anyhow::Result;

use super::settings::Settings;
use crate::service::{backup, system_clock};

#[derive(clap::Args)]
pub struct Args {
    out: PathBuf,
    #[command(flatten)]
    settings: Settings,
}

/// Writes a backup to a new directory, while servers run.
///
/// # Errors
/// Files or tables that cannot be read or written.
pub async fn run(args: Args) -> Result<()> {
    let covered = backup::backup(&args.settings.load()?, &args.out, system_clock()()).await?;
    for missing in &covered.missing {
        eprintln!("left out: {missing}");
    }
    if let Some(why) = &covered.unlisted {
        eprintln!(
            "the database does not list this backup ({why}): who is erased later is not noted in it, so restore it with \
             --erased"
        );
    }
    println!("{}: the database and {} model versions", args.out.display(), covered.versions);
    Ok(())
}

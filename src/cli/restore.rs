//! `instructd restore`: a backup into an empty database and data directory.

use std::path::PathBuf;

use anyhow::Result;

use super::settings::Settings;
use crate::service::{backup, system_clock};

#[derive(clap::Args)]
pub struct Args {
    from: PathBuf,
    /// A newer backup, or the erased.json of a data directory: people erased there are erased here too. May be
    /// given several times.
    #[arg(long)]
    erased: Vec<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

/// Restores a backup without overwriting an existing installation.
///
/// # Errors
/// A damaged backup, a list that cannot be read, a database that is not empty.
pub async fn run(args: Args) -> Result<()> {
    let covered = backup::restore(&args.settings.load()?, &args.from, &args.erased, system_clock()()).await?;
    for missing in &covered.missing {
        eprintln!("left out: {missing}");
    }
    println!("restored the database and {} model versions of {}", covered.versions, covered.created);
    if covered.erased > 0 {
        println!("erased again: {} people whose data was erased after the backup", covered.erased);
    }
    Ok(())
}

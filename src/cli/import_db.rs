//! `instructd import-db`: fills an empty database from export-db's directory.

use std::path::PathBuf;

use anyhow::Result;

use super::export_db;
use super::settings::Settings;
use crate::service::backup;

#[derive(clap::Args)]
pub struct Args {
    from: PathBuf,
    #[command(flatten)]
    settings: Settings,
}

/// Fills the configured database and prints the numbers of rows.
///
/// # Errors
/// A directory that is no export; a database that is not empty.
pub async fn run(args: Args) -> Result<()> {
    export_db::print(&backup::import_db(&args.settings.load()?, &args.from).await?);
    Ok(())
}

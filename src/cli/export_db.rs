//! `instructd export-db`: every table of the database as files.

use std::path::PathBuf;

use anyhow::Result;

use super::settings::Settings;
use crate::service::backup;
use crate::store::dump::Dump;

#[derive(clap::Args)]
pub struct Args {
    out: PathBuf,
    #[command(flatten)]
    settings: Settings,
}

/// Writes every table to a new directory and prints the numbers of rows.
///
/// # Errors
/// A database that cannot be read; a directory that exists or cannot be written.
pub async fn run(args: Args) -> Result<()> {
    print(&backup::export_db(&args.settings.load()?, &args.out).await?);
    Ok(())
}

/// Prints the number of rows of each table.
pub fn print(dump: &Dump) {
    for table in dump.tables.iter().filter(|t| t.rows > 0) {
        println!("{:>9}  {}", table.rows, table.name);
    }
    println!(
        "{:>9}  rows in all, schema {}, from {}",
        dump.tables.iter().map(|t| t.rows).sum::<u64>(),
        dump.schema,
        dump.backend
    );
}

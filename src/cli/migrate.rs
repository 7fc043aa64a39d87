//! `instructd migrate`: brings the database's schema up to date.

use anyhow::Result;

use super::settings::Settings;

/// Opens the configured database, which applies missing migrations.
///
/// # Errors
/// A database that does not open.
pub async fn run(settings: Settings) -> Result<()> {
    let store = crate::app::open_store(&settings.load()?).await?;
    println!("{}: the schema is up to date", store.backend());
    store.close().await;
    Ok(())
}

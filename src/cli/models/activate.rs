//! `instructd models activate`: the active version of a kind, set without a server.

use anyhow::Result;

use crate::cli::settings::Settings;
use crate::service::register::activate_offline;
use crate::service::{Random, Services, system_clock};

#[derive(clap::Args)]
pub struct Args {
    /// Name or id of a version.
    name: String,
    #[command(flatten)]
    settings: Settings,
}

/// Makes a version the active one of its kind in the database.
///
/// # Errors
/// An unknown or retired version, or one whose files cannot be opened.
pub async fn run(args: Args) -> Result<()> {
    let config = args.settings.load()?;
    let store = crate::app::open_store(&config).await?;
    // Not by `app::services`, which would generate an admin key if there is none.
    let services =
        Services::new(config, store.clone(), system_clock(), Random::from_os()?, None, crate::train::job_kinds());
    let activated = activate_offline(&services, &args.name).await?;
    let version = &activated.version;
    println!(
        "{} is now the active {}; a running server switches to it, a stopped one serves it after its next start",
        version.name, version.kind
    );
    if !activated.descends {
        println!(
            "It does not descend from the configured model {}: start the server with --model {}",
            services.config.model, version.name
        );
    }
    store.close().await;
    Ok(())
}

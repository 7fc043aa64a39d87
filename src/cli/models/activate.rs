//! `instructd models activate`: the active version of a kind, set without a server.

use anyhow::Result;

use crate::cli::settings::Settings;
use crate::service::register::activate_offline;

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
    let services = crate::app::keyless_services(args.settings.load()?).await?;
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
    services.store.close().await;
    Ok(())
}

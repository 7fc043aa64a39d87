//! `instructd retention`: what is past its limits, shown or removed.

use anyhow::Result;

use super::settings::Settings;
use crate::service::retention::{self, Amounts, Status};

#[derive(clap::Args)]
pub struct Args {
    /// Only show what would go.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    settings: Settings,
}

/// Prints what is past the limits of configuration and database, and removes it unless this is a dry run.
///
/// # Errors
/// What the database reports; files that cannot be removed.
pub async fn run(args: Args) -> Result<()> {
    let Args { dry_run, settings } = args;
    let services = crate::app::keyless_services(settings.load()?).await?;
    let store = services.store.clone();
    crate::service::live::refresh(&services).await?;
    let limits = services.live().config.retention.clone();
    let (now, data_dir) = (services.now(), &services.config.data_dir);
    let stored = retention::stored(store.as_ref(), data_dir).await?;
    let found = retention::outlook(store.as_ref(), data_dir, &limits, now, stored).await?;
    if limits == crate::config::RetentionConfig::default() {
        println!("no limit is set (section [retention] of config.toml, or Settings on the admin page)");
    }
    let (goes, title) = match dry_run {
        true => (found.goes, "would go"),
        false => {
            let by = "command line".into();
            (retention::apply(store.as_ref(), data_dir, &limits, now, &by, &Status::default()).await?, "removed")
        }
    };
    print(&found.stored, &goes, title);
    store.close().await;
    Ok(())
}

fn print(stored: &Amounts, goes: &Amounts, title: &str) {
    println!("{:<24}{:>12}{:>16}{title:>12}{:>16}", "", "stored", "bytes", "bytes");
    for (name, stored, goes) in [
        ("answers to requests", stored.completions, goes.completions),
        ("prompts of requests", stored.prompts, goes.prompts),
        ("feedback events", stored.feedback_events, goes.feedback_events),
        ("jobs with files", stored.job_files, goes.job_files),
    ] {
        println!("{name:<24}{:>12}{:>16}{:>12}{:>16}", stored.records, stored.bytes, goes.records, goes.bytes);
    }
}

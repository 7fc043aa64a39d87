//! `instructd serve`: the model, the pages and the API.

use anyhow::Result;

use super::settings::Settings;
use crate::config::Overrides;

// No doc comment: clap would take it for the help text of the program, which flattens this.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    settings: Settings,
    /// A name (builtin, pulled or published), a directory, a .gguf file or OWNER/NAME of the hub.
    #[arg(long)]
    model: Option<String>,
    /// A BERT directory for embeddings and fill-mask.
    #[arg(long)]
    encoder: Option<String>,
    /// Format of the weights in memory: exact, file, f32, …
    #[arg(long)]
    weights: Option<String>,
    /// ADDR:PORT
    #[arg(long)]
    listen: Option<String>,
}

/// Serves until SIGTERM or ctrl-c.
///
/// # Errors
/// A data directory, database, address or model that cannot be used.
pub async fn run(args: Args) -> Result<()> {
    let Args { settings, model, encoder, weights, listen } = args;
    let config = settings.load_with(Overrides { model, encoder, weights, listen, ..Overrides::default() })?;
    crate::app::serve(config).await
}

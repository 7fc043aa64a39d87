//! `instructd train RECIPE`: a recipe in the foreground.

use std::path::PathBuf;

use anyhow::{Result, bail};

use super::args::{self, Data, Given};
use super::foreground::Foreground;
use super::locate;
use super::settings::Settings;
use crate::train::TrainOutcome;

#[derive(clap::Args)]
pub struct Args {
    recipe: String,
    #[command(flatten)]
    given: Given,
    #[command(flatten)]
    data: Data,
    /// Output directory of the trained model; default: out/RECIPE, or the next free number.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print the recipe's arguments with their defaults, and exit.
    #[arg(long)]
    explain: bool,
    /// HOST or HOST:PORT that a reward of kind `http` may call; may be given several times.
    #[arg(long = "reward-host")]
    reward_hosts: Vec<String>,
    #[command(flatten)]
    settings: Settings,
}

/// Runs a recipe in the foreground with a progress bar; ctrl-c writes a checkpoint and exits.
///
/// # Errors
/// Arguments that are refused, files that cannot be read, errors of the recipe.
pub fn run(args: Args) -> Result<()> {
    let Args { recipe, mut given, data, out, explain, reward_hosts, settings } = args;
    let found = args::recipe(&recipe)?;
    if explain {
        print!("{}", args::explain(found));
        return Ok(());
    }
    let config = &settings.load()?;
    given.set.extend(out.map(|dir| format!("output_dir={}", serde_json::json!(dir))));
    let mut args = given.read()?;
    data.put(&mut args);
    // Arguments are validated first: no model is pulled and no data is written for arguments that are refused.
    (found.validate)(&args::with_placeholders(found, &args))?;
    locate::put_paths(&mut args, config)?;
    args::complete(found, &mut args, config)?;
    (found.validate)(&args)?;
    crate::ops::par::configure_for_training();
    match found.execute(&args, &mut Foreground::new(&reward_hosts, config)?)? {
        TrainOutcome::Done { model_dir, metrics } => {
            println!("{}", serde_json::json!({"model_dir": model_dir, "metrics": metrics}));
            Ok(())
        }
        TrainOutcome::Stopped { checkpoint } => bail!(
            "stopped; {}",
            checkpoint.map_or_else(|| "no checkpoint was written".to_owned(), |c| format!("checkpoint: {c}"))
        ),
    }
}

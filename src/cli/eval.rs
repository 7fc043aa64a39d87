//! `instructd eval`: measures a model on a file.

use anyhow::{Context, Result};

use super::args::Given;
use super::locate;
use super::settings::Settings;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    given: Given,
    #[command(flatten)]
    settings: Settings,
}

/// Measures a model on a file and prints the figures as JSON.
///
/// # Errors
/// Arguments that are refused, files that cannot be read, a model of the wrong kind.
pub fn run(args: Args) -> Result<()> {
    let config = &args.settings.load()?;
    let mut args = args.given.read()?;
    let names_model = args.get("model").is_some_and(|v| !v.is_null()) || args.get("systems").is_some();
    if !names_model {
        let (name, path) = locate::default_model(config)?;
        eprintln!("model: {name} (none was given)");
        args["model"] = serde_json::json!(path);
    }
    locate::put_paths(&mut args, config)?;
    let args = serde_path_to_error::deserialize(&args).context("the evaluation's arguments")?;
    let result = crate::eval::run::run(&args)?;
    if let crate::eval::run::EvalResult::Choice(table) = &result {
        eprint!("{}", table.markdown);
    }
    println!("{}", serde_json::to_string_pretty(&result)?);
    Ok(())
}

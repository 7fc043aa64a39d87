//! `instructd instructgpt`: the whole pipeline as one resumable command.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use super::args::{self, Data, Given};
use super::foreground::Foreground;
use super::settings::Settings;
use crate::instructgpt::{Ended, InstructGptArgs};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    given: Given,
    #[command(flatten)]
    data: Data,
    /// Output directory; default: out/instructgpt.
    #[arg(long, value_name = "DIR")]
    work_dir: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

/// Runs the whole InstructGPT pipeline. Ctrl-c stops it at the next step; the same command continues from there.
///
/// # Errors
/// Arguments that are refused, and errors of a step.
pub fn run(args: Args) -> Result<()> {
    let Args { given, data, work_dir, settings } = args;
    let config = &settings.load()?;
    let mut args = given.read()?;
    data.put(&mut args);
    if let Some(dir) = work_dir {
        args["work_dir"] = serde_json::json!(dir);
    }
    // Arguments are validated before models and data are prepared.
    crate::instructgpt::check(&pipeline_args(&args::pipeline_with_placeholders(&args))?)?;
    args::complete_pipeline(&mut args, config)?;
    let args = pipeline_args(&args)?;
    match crate::instructgpt::run(&args, &mut Foreground::new(&[], config)?)? {
        Ended::Done { report } => {
            println!("{}", report.display());
            Ok(())
        }
        Ended::Stopped { step } => bail!("stopped in step {step}; the same command continues from there"),
    }
}

fn pipeline_args(args: &serde_json::Value) -> Result<InstructGptArgs> {
    serde_path_to_error::deserialize(args).context("the pipeline's arguments")
}

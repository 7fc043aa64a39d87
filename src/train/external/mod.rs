//! Training by an external program: data and models are written as files, a command of the configuration runs, and its
//! result is checked before it becomes a version.

mod command;
mod layout;
mod result;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::args::{self, ExternalArgs};
use super::{Reporter, TrainOutcome};
use crate::domain::Progress;

/// Runs the recipe.
///
/// # Errors
/// If the trainer is not configured or fails, or its result is refused.
pub fn run(value: &Value, reporter: &mut dyn Reporter) -> Result<TrainOutcome> {
    let args: ExternalArgs = args::parse(value)?;
    let command = reporter
        .trainer(&args.trainer)
        .with_context(|| format!("the configuration has no trainer '{}' ([trainers] in config.toml)", args.trainer))?;
    let phase = |reporter: &mut dyn Reporter, phase: &str| {
        reporter.progress(&Progress { phase: phase.to_owned(), ..Progress::default() });
    };
    phase(reporter, "laying out");
    let place = layout::lay_out(&args, &work_dir(&args)?)?;
    phase(reporter, "training");
    if let command::Exit::Stopped = command::run(&command, &place, reporter)? {
        return Ok(TrainOutcome::Stopped { checkpoint: args.checkpoint_dir.clone() });
    }
    phase(reporter, "checking");
    let accepted = result::accept(&args, &place, reporter)?;
    phase(reporter, "saving");
    let metrics = json!({"trainer": args.trainer, "options": args.options, "kl": accepted.kl, "form": accepted.form,
        "rows": place.rows});
    result::save(&args, &accepted, &metrics)?;
    Ok(TrainOutcome::Done { model_dir: args.output_dir.clone(), metrics })
}

/// The working directory of the trainer: next to the checkpoints, where a resumed job finds it.
fn work_dir(args: &ExternalArgs) -> Result<PathBuf> {
    let dir = match &args.checkpoint_dir {
        Some(dir) => Path::new(dir).with_file_name("external"),
        None => PathBuf::from(format!("{}.work", args.output_dir)),
    };
    std::path::absolute(&dir).with_context(|| dir.display().to_string())
}

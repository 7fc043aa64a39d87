//! `instructd train-job`: the child process of a training job.

use std::path::PathBuf;
use std::process::ExitCode;

use super::telemetry;
use crate::config::LogConfig;

#[derive(clap::Args)]
pub struct Args {
    #[arg(long)]
    job_dir: PathBuf,
}

/// Runs the prepared job in a directory; the exit code shows the supervisor how it ended.
pub fn run(args: &Args) -> ExitCode {
    telemetry::start(&LogConfig::default());
    ExitCode::from(crate::jobs::child::main(&args.job_dir, crate::train::job_kinds()))
}

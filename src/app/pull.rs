//! Pulling a model in a terminal.

use std::path::{Path, PathBuf};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};

use crate::hub::pull;

/// Pulls a model with a progress bar on standard error and prints its path.
///
/// # Errors
/// As `hub::pull::pull`.
pub fn pull_model(name: &str, data_dir: &Path, from: Option<&Path>) -> Result<PathBuf> {
    let bar = ProgressBar::no_length();
    let known = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}")?;
    let unknown = ProgressStyle::with_template("{msg} {spinner} {bytes} {bytes_per_sec}")?;
    bar.set_style(unknown.clone());
    let mut last = String::new();
    let path = pull::pull(name, data_dir, from, &mut |at| {
        if at.what != last {
            last.clone_from(&at.what);
            bar.reset();
            bar.set_message(at.what.rsplit('/').next().unwrap_or(&at.what).to_owned());
            bar.set_style(if at.total.is_some() { known.clone() } else { unknown.clone() });
        }
        if let Some(total) = at.total {
            bar.set_length(total);
        }
        bar.set_position(at.done);
    });
    bar.finish_and_clear();
    let path = path?;
    println!("{}", path.display());
    Ok(path)
}

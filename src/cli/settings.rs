//! Options that every command takes: configuration file, data directory, database.

use std::path::PathBuf;

use anyhow::Result;

use super::telemetry;
use crate::config::{Config, Overrides};

// No doc comment: clap would take it for the help text of the command that flattens this.
#[derive(clap::Args)]
pub struct Settings {
    #[arg(long, env = "INSTRUCTD_CONFIG")]
    pub config: Option<PathBuf>,
    #[arg(long)]
    pub data_dir: Option<PathBuf>,
    #[arg(long)]
    pub database_url: Option<String>,
}

impl Settings {
    /// The configuration from file, environment and flags; starts the log.
    ///
    /// # Errors
    /// A configuration file that cannot be read, or a value that is refused.
    pub fn load(self) -> Result<Config> {
        self.load_with(Overrides::default())
    }

    /// The configuration from file, environment, flags and `overrides`, further flags of the command; starts the log.
    ///
    /// # Errors
    /// A configuration file that cannot be read, or a value that is refused.
    pub fn load_with(self, overrides: Overrides) -> Result<Config> {
        let Self { config: file, data_dir, database_url } = self;
        let config = Config::load(file.as_deref(), &Overrides { data_dir, database_url, ..overrides })?;
        telemetry::start(&config.log);
        Ok(config)
    }
}

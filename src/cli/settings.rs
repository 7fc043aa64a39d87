//! Options that every command takes: configuration file, data directory, database; and the log.

use std::io::IsTerminal;
use std::path::PathBuf;

use anyhow::Result;
use tracing_subscriber::EnvFilter;

use crate::config::{Config, LogConfig, Overrides};

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

    /// As `load`, with further flags of the command in `overrides`.
    ///
    /// # Errors
    /// A configuration file that cannot be read, or a value that is refused.
    pub fn load_with(self, overrides: Overrides) -> Result<Config> {
        let Self { config: file, data_dir, database_url } = self;
        let config = Config::load(file.as_deref(), &Overrides { data_dir, database_url, ..overrides })?;
        start_log(&config.log);
        Ok(config)
    }
}

/// Logs to standard error; a second call changes nothing.
pub fn start_log(config: &LogConfig) {
    // The HTML parser behind the Markdown filter warns once for each odd table cell: a short text could fill the log.
    let filter = format!("html5ever=error,{}", config.filter);
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info,html5ever=error"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Colours are for people: a file or a collector gets plain lines.
    let builder = builder.with_ansi(std::io::stderr().is_terminal());
    let _ = if config.json { builder.json().try_init() } else { builder.with_target(false).try_init() };
}

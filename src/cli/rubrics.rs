//! `instructd rubrics`: rubrics of the database, also while no server runs.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Subcommand;

use super::settings::Settings;
use crate::app::keyless_services;
use crate::domain::{ProjectId, RubricDefinition};
use crate::service::access::Actor;
use crate::service::{Services, projects, rubrics};

#[derive(Subcommand)]
pub enum Rubrics {
    /// List the stored versions, newest first; the active one has a star.
    #[command(after_help = "Example:\n  instructd rubrics list --data-dir data")]
    List(List),
    /// Store a version of a rubric: a JSON file with a definition, as the API takes it.
    #[command(
        after_help = "Example:\n  instructd rubrics add rubric.json --activate\n\nrubric.json: {\"name\": \"Helpful\", \"dimensions\": [{\"key\": \"helpful\", \"label\": {\"en\": \"Helpful\"},\n\"kind\": \"likert\", \"points\": 7}]}"
    )]
    Add(Add),
    /// Activate a stored version, or none.
    #[command(after_help = "Example:\n  instructd rubrics activate 0123456789ab\n  instructd rubrics activate none")]
    Activate(Activate),
}

#[derive(clap::Args)]
pub struct List {
    /// Id or name of the project whose active rubric has the star; the first project if absent.
    #[arg(long)]
    project: Option<String>,
    #[command(flatten)]
    settings: Settings,
}

#[derive(clap::Args)]
pub struct Add {
    file: PathBuf,
    /// Also activate it.
    #[arg(long)]
    activate: bool,
    /// Id or name of the project in which it is activated; the first if absent.
    #[arg(long)]
    project: Option<String>,
    #[command(flatten)]
    settings: Settings,
}

#[derive(clap::Args)]
pub struct Activate {
    /// A version of `rubrics list`, or `none`.
    version: String,
    /// Id or name of the project; the first if absent.
    #[arg(long)]
    project: Option<String>,
    #[command(flatten)]
    settings: Settings,
}

impl Rubrics {
    /// Runs the subcommand.
    ///
    /// # Errors
    /// A file that is not a rubric, naming the field; an unknown version; what the database reports.
    pub async fn run(self) -> Result<()> {
        match self {
            Self::List(List { project, settings }) => {
                let services = keyless_services(settings.load()?).await?;
                let project = projects::named(&services, project.as_deref()).await?;
                list(&services, &project).await
            }
            Self::Add(Add { file, activate, project, settings }) => {
                let text = std::fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
                let reader = &mut serde_json::Deserializer::from_slice(&text);
                let definition: RubricDefinition = serde_path_to_error::deserialize(reader)
                    .with_context(|| format!("{} is not the definition of a rubric", file.display()))?;
                let services = keyless_services(settings.load()?).await?;
                let project = projects::named(&services, project.as_deref()).await?;
                let put = rubrics::put(&services, &Actor::command_line(), &project, definition, activate).await;
                let stored = put.map_err(with_field).with_context(|| file.display().to_string())?;
                println!("{}", stored.rubric.version);
                close(&services).await
            }
            Self::Activate(Activate { version, project, settings }) => {
                let services = keyless_services(settings.load()?).await?;
                let wanted = (version != "none").then_some(version);
                let project = projects::named(&services, project.as_deref()).await?;
                let activated = rubrics::activate(&services, &Actor::command_line(), &project, wanted).await;
                match activated.map_err(with_field)? {
                    Some(rubric) => println!("{} ({}) is active", rubric.version, rubric.definition.name),
                    None => println!("no rubric is active"),
                }
                close(&services).await
            }
        }
    }
}

async fn list(services: &Services, project: &ProjectId) -> Result<()> {
    let (versions, active) = rubrics::versions(services, project).await?;
    for stored in &versions {
        let rubric = &stored.rubric;
        let mark = if active.as_ref().is_some_and(|a| a.version == rubric.version) { "*" } else { " " };
        let dimensions = rubric.definition.dimensions.len();
        println!("{mark} {}  {}  {dimensions} dimensions", rubric.version, rubric.definition.name);
    }
    if versions.is_empty() {
        println!("no rubric is stored; `instructd rubrics add FILE` stores one");
    }
    close(services).await
}

async fn close(services: &Services) -> Result<()> {
    services.store.close().await;
    Ok(())
}

/// An error of the service with the field that it is about.
fn with_field(error: crate::service::ServiceError) -> anyhow::Error {
    match error {
        crate::service::ServiceError::BadInput { param, message } => anyhow::anyhow!("{param} {message}"),
        other => other.into(),
    }
}

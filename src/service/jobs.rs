//! Training jobs: enqueue with checked arguments, list, cancel, resume, follow.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::{Result, ServiceError, Services, bad_input, to_the_end};
use crate::domain::{Job, JobEvent, JobId, JobState, Metric, ModelKind};
use crate::service::people::Actor;
use crate::store::{Page, StoreError};
use crate::train::Recipe;

/// Arguments that hold paths: jobs set them, callers must not.
pub const PATHS: &[&str] =
    &["output_dir", "checkpoint_dir", "comparisons", "demonstrations", "prompts", "ptx_demonstrations", "resume"];
/// Tells the validator that a path will be there; jobs replace it.
const PLACEHOLDER: &str = "set-by-the-job";

pub fn recipe<'a>(services: &'a Services, name: &str) -> Option<&'a Recipe> {
    services.recipes.iter().find(|r| r.name == name)
}

/// The schema of a recipe's arguments as a job takes them: without the paths that jobs set.
pub fn job_schema(recipe: &Recipe) -> Value {
    let mut schema = (recipe.schema)();
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        properties.retain(|name, _| !PATHS.contains(&name.as_str()));
    }
    if let Some(required) = schema.get_mut("required").and_then(Value::as_array_mut) {
        // The model defaults to the active one.
        required.retain(|name| !name.as_str().is_some_and(|n| PATHS.contains(&n) || n == "model"));
    }
    schema
}

/// Checks the arguments against the recipe and queues the job.
///
/// # Errors
/// `BadInput` naming `kind` or `args.<field>`, `Conflict` when the unique key is taken.
pub async fn enqueue(
    services: &Arc<Services>,
    by: &Actor,
    kind: &str,
    args: Value,
    unique_key: Option<String>,
    priority: i64,
) -> Result<Job> {
    let Some(recipe) = recipe(services, kind) else {
        let known: Vec<_> = services.recipes.iter().map(|r| r.name).collect();
        return Err(bad_input("kind", format!("there is no recipe '{kind}'; there are {}", known.join(", "))));
    };
    let Value::Object(mut args) = args else { return Err(bad_input("args", "must be an object")) };
    if let Some(path) = PATHS.iter().find(|p| args.contains_key(**p)) {
        return Err(bad_input(format!("args.{path}"), "is set by the job itself"));
    }
    if unique_key.as_ref().is_some_and(|k| k.is_empty() || k.len() > 200) {
        return Err(bad_input("unique_key", "must be 1 to 200 bytes"));
    }
    let schema = (recipe.schema)();
    let takes = |name: &str| schema["properties"].get(name).is_some();
    name_model(services, &mut args, "model", ModelKind::Policy).await?;
    if takes("reward_model") && args.get("reward").is_none_or(Value::is_null) {
        name_model(services, &mut args, "reward_model", ModelKind::Reward).await?;
    } else if args.get("reward_model").is_some_and(|v| !v.is_null()) && takes("reward_model") {
        name_model(services, &mut args, "reward_model", ModelKind::Reward).await?;
    }
    validate(recipe, &args, &schema)?;
    let job = Job {
        id: JobId::new(),
        kind: kind.to_owned(),
        args: Value::Object(args),
        state: JobState::Queued,
        unique_key,
        priority,
        attempt: 0,
        max_attempts: 3,
        crash_count: 0,
        lease_owner: None,
        lease_expires: None,
        cancel_requested: false,
        checkpoint_uri: None,
        external_ref: None,
        progress: None,
        result: None,
        error: None,
        created: services.now(),
        started: None,
        finished: None,
    };
    let (services, actor) = (services.clone(), by.labeler_id.clone());
    to_the_end(async move {
        let now = job.created;
        let job = services.store.enqueue_job(job).await?;
        services.store.audit(actor.as_str(), "enqueue", job.id.as_str(), json!({"kind": job.kind}), now).await?;
        Ok(job)
    })
    .await
}

/// Puts the version's name into `args[field]`: the one given by name or id, else the active one.
async fn name_model(services: &Services, args: &mut Map<String, Value>, field: &str, kind: ModelKind) -> Result<()> {
    let param = format!("args.{field}");
    let version = match args.get(field) {
        None | Some(Value::Null) => services
            .store
            .active_model(kind)
            .await?
            .ok_or_else(|| bad_input(&param, format!("no {kind} is active; name a model version")))?,
        Some(Value::String(name)) => super::publish::find(services, name).await.map_err(|e| match e {
            ServiceError::Store(StoreError::NotFound { .. }) => {
                bad_input(&param, format!("there is no model version '{name}'"))
            }
            other => other,
        })?,
        Some(_) => return Err(bad_input(param, "must be the name of a model version")),
    };
    if version.kind != kind && field == "reward_model" {
        return Err(bad_input(param, format!("{} is a {} and no {kind}", version.name, version.kind)));
    }
    args.insert(field.to_owned(), Value::String(version.name));
    Ok(())
}

fn validate(recipe: &Recipe, args: &Map<String, Value>, schema: &Value) -> Result<()> {
    let mut complete = args.clone();
    for path in ["output_dir", "comparisons", "demonstrations", "prompts"] {
        if schema["properties"].get(path).is_some() {
            complete.insert(path.to_owned(), Value::String(PLACEHOLDER.to_owned()));
        }
    }
    // Text for the language-model term of PPO comes from the stored demonstrations.
    if args.get("ptx_coef").and_then(Value::as_f64).is_some_and(|c| c > 0.0) {
        complete.insert("ptx_demonstrations".to_owned(), Value::String(PLACEHOLDER.to_owned()));
    }
    (recipe.validate)(&Value::Object(complete)).map_err(|e| bad_input(format!("args.{}", e.field), e.message))
}

pub async fn list(services: &Services, state: Option<JobState>, page: Page) -> Result<Vec<Job>> {
    Ok(services.store.list_jobs(page, state).await?)
}

/// Queued jobs end at once; running ones stop after their next step.
pub async fn cancel(services: &Arc<Services>, by: &Actor, id: &JobId) -> Result<Job> {
    let (services, actor, id) = (services.clone(), by.labeler_id.clone(), id.clone());
    to_the_end(async move {
        let job = services.store.cancel_job(&id).await?;
        services.store.audit(actor.as_str(), "cancel", id.as_str(), json!({}), services.now()).await?;
        Ok(job)
    })
    .await
}

/// Failed and cancelled jobs queue again and go on from their checkpoint.
pub async fn resume(services: &Arc<Services>, by: &Actor, id: &JobId) -> Result<Job> {
    let (services, actor, id) = (services.clone(), by.labeler_id.clone(), id.clone());
    to_the_end(async move {
        let job = services.store.resume_job(&id).await?;
        services.store.audit(actor.as_str(), "resume", id.as_str(), json!({}), services.now()).await?;
        Ok(job)
    })
    .await
}

/// Events after `after`, and whether the job has ended (so that no more will come).
pub async fn events(services: &Services, id: &JobId, after: i64, limit: i64) -> Result<(Vec<JobEvent>, Job)> {
    // The state is read first: a job that ends in between has its last events in the next round.
    let job = services.store.get_job(id).await?;
    let events = services.store.job_events(id, after, limit).await?;
    Ok((events, job))
}

pub async fn metrics(services: &Services, id: &JobId, names: &[String]) -> Result<Vec<Metric>> {
    services.store.get_job(id).await?;
    Ok(services.store.metrics(id, names).await?)
}

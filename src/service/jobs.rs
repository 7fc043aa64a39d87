//! Training jobs: enqueue with checked arguments, list, cancel, resume, follow.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{Result, ServiceError, Services, bad_input, to_the_end};
use crate::domain::{Job, JobEvent, JobId, JobState, Metric};
use crate::jobs::estimate::{self, Estimate};
use crate::jobs::queue::{self, EnqueueError};
use crate::service::people::Actor;
use crate::store::Page;

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
    if !args.is_object() {
        return Err(bad_input("args", "must be an object"));
    }
    if unique_key.as_ref().is_some_and(|k| k.is_empty() || k.len() > 200) {
        return Err(bad_input("unique_key", "must be 1 to 200 bytes"));
    }
    let now = services.now();
    let request = queue::Request { kind: kind.to_owned(), args, unique_key, priority, now };
    let (services, actor) = (services.clone(), by.labeler_id.clone());
    to_the_end(async move {
        let mut request = request;
        if let Some(args) = request.args.as_object_mut() {
            estimate::fill_defaults(services.store.as_ref(), &services.config.data_dir, &request.kind, args).await?;
        }
        let job = queue::enqueue(services.store.as_ref(), services.recipes, request).await.map_err(refusal)?;
        services.store.audit(actor.as_str(), "enqueue", job.id.as_str(), json!({"kind": job.kind}), now).await?;
        Ok(job)
    })
    .await
}

fn refusal(error: EnqueueError) -> ServiceError {
    match error {
        EnqueueError::UnknownKind { .. } => bad_input("kind", error.to_string()),
        EnqueueError::Args(e) => bad_input(format!("args.{}", e.field), e.message),
        EnqueueError::Store(e) => e.into(),
    }
}

/// What such a job would need. Nothing is queued.
///
/// # Errors
/// As `enqueue`.
pub async fn estimate(services: &Services, kind: &str, mut args: Value) -> Result<Estimate> {
    let Some(given) = args.as_object_mut() else { return Err(bad_input("args", "must be an object")) };
    let (store, data_dir) = (services.store.as_ref(), services.config.data_dir.as_path());
    estimate::fill_defaults(store, data_dir, kind, given).await?;
    estimate::estimate(store, services.recipes, data_dir, kind, args).await.map_err(refusal)
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

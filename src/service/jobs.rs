//! Training jobs: enqueue with checked arguments, list, cancel, resume, follow.

use std::sync::Arc;

use serde::Serialize;
use serde_json::{Value, json};

use super::searches::{Listed, search};
use super::{Result, ServiceError, Services, bad_input, filters, register, uncancelled};
use crate::domain::{Job, JobEvent, JobId, JobNotes, LabelerId, Metric, ModelKind, unknown_name};
use crate::jobs::available;
use crate::jobs::estimate::{self, Estimate};
use crate::jobs::executors::{self, RemoteLog};
use crate::jobs::queue::{self, EnqueueError};
use crate::service::people::Actor;
use crate::store::{JobFilter, Page, RankedFilter};
use crate::train::args::{named_judges, roles};

/// Longest name of a job, in characters.
const NAME: usize = 120;
/// Most bytes of a job's arguments, which lists of jobs contain.
const ARGS: usize = 64 << 10;
const NOTE: usize = 4000;
const TAGS: usize = 20;
const TAG: usize = 40;

/// A job to be queued.
#[derive(Clone, Debug, Default)]
pub struct NewJob {
    pub kind: String,
    pub args: Value,
    pub unique_key: Option<String>,
    pub priority: i64,
    pub notes: NotesChange,
}

/// A change of name, note and tags: an absent field stays as it is, an empty one is cleared.
#[derive(Clone, Debug, Default)]
pub struct NotesChange {
    pub name: Option<String>,
    pub note: Option<String>,
    pub tags: Option<Vec<String>>,
}

impl NotesChange {
    fn apply(self, to: JobNotes) -> Result<JobNotes> {
        let short = |field: &'static str, given: Option<String>, before: Option<String>, most: usize| {
            let Some(given) = given.map(|g| g.trim().to_owned()) else { return Ok(before) };
            let length = given.chars().count();
            if length > most {
                return Err(bad_input(field, format!("has {length} characters; at most {most} are stored")));
            }
            Ok(Some(given).filter(|g| !g.is_empty()))
        };
        let mut tags = self.tags.unwrap_or(to.tags);
        for (i, tag) in tags.iter_mut().enumerate() {
            *tag = tag.trim().to_owned();
            let length = tag.chars().count();
            if !(1..=TAG).contains(&length) {
                return Err(bad_input(format!("tags[{i}]"), format!("has {length} characters; must have 1 to {TAG}")));
            }
        }
        let mut seen = std::collections::HashSet::new();
        tags.retain(|tag| seen.insert(tag.clone()));
        if tags.len() > TAGS {
            return Err(bad_input("tags", format!("{} tags; at most {TAGS} are stored", tags.len())));
        }
        let name = short("name", self.name, to.name, NAME)?;
        Ok(JobNotes { name, note: short("note", self.note, to.note, NOTE)?, tags, created_by: to.created_by })
    }
}

/// A job with its author's current name.
#[derive(Clone, Debug, Serialize, schemars::JsonSchema)]
pub struct JobView {
    #[serde(flatten)]
    pub job: Job,
    /// Name of the person who queued it.
    pub author: Option<String>,
}

/// Jobs with their authors' names.
pub async fn with_authors(services: &Services, jobs: Vec<Job>) -> Result<Vec<JobView>> {
    let people = match jobs.iter().any(|j| j.notes.created_by.is_some()) {
        true => services.store.people().list().await?,
        false => Vec::new(),
    };
    let name = |id: &LabelerId| people.iter().find(|p| p.id == *id).map(|p| p.name.clone());
    Ok(jobs.into_iter().map(|job| JobView { author: job.notes.created_by.as_ref().and_then(name), job }).collect())
}

/// One job with its author's name.
pub async fn with_author(services: &Services, job: Job) -> Result<JobView> {
    let author = match &job.notes.created_by {
        Some(id) => services.store.people().get(id).await.ok().map(|p| p.name),
        None => None,
    };
    Ok(JobView { job, author })
}

/// Checks the arguments against the recipe and queues the job.
///
/// # Errors
/// `BadInput` naming `kind` or `args.<field>`; `Conflict` when there is nothing to learn from, or the unique key or the
/// name of the model is that of an unfinished job.
pub async fn enqueue(services: &Arc<Services>, by: &Actor, new: NewJob) -> Result<Job> {
    if !new.args.is_object() {
        return Err(bad_input("args", "must be an object"));
    }
    let bytes = new.args.to_string().len();
    if bytes > ARGS {
        return Err(bad_input("args", format!("has {bytes} bytes; at most {ARGS} are taken")));
    }
    if new.unique_key.as_ref().is_some_and(|k| k.is_empty() || k.len() > 200) {
        return Err(bad_input("unique_key", "must be 1 to 200 bytes"));
    }
    let feedback = new.args["filter"]["feedback"].as_bool().unwrap_or(false);
    super::datasets::check_feedback(services, feedback, "args.filter.feedback")?;
    let now = services.now();
    let author = JobNotes { created_by: Some(by.labeler_id.clone()), ..JobNotes::default() };
    let NewJob { kind, args, unique_key, priority, notes } = new;
    let request = queue::Request { kind, args, unique_key, priority, notes: notes.apply(author)?, now };
    let (services, actor) = (services.clone(), by.signature());
    uncancelled(async move {
        let mut request = request;
        check_trainer(&services, &request.kind, &request.args)?;
        check_judges(&services, &request.args)?;
        check_rollouts(&services, &request.args)?;
        check_filter(&services, &request.args).await?;
        if request.kind == "reward" {
            filters::check_dimensions(&services, &request.args).await?;
        }
        register_named(&services, &mut request.args).await?;
        if let Some(args) = request.args.as_object_mut() {
            estimate::fill_defaults(services.store.as_ref(), &services.config.data_dir, &request.kind, args).await?;
        }
        check_data(&services, &request.kind, request.args.clone()).await?;
        let job = queue::enqueue(services.store.as_ref(), services.recipes, request).await.map_err(refusal)?;
        services.store.audit_log().append(&actor, "enqueue", job.id.as_str(), json!({"kind": job.kind}), now).await?;
        Ok(job)
    })
    .await
}

/// Changes name, note and tags of a job in any state.
///
/// # Errors
/// `BadInput` naming the field that is too long.
pub async fn describe(services: &Arc<Services>, by: &Actor, id: &JobId, change: NotesChange) -> Result<Job> {
    let notes = change.apply(services.store.jobs().get(id).await?.notes)?;
    let (services, actor, id) = (services.clone(), by.signature(), id.clone());
    uncancelled(async move {
        let job = services.store.jobs().describe(&id, notes).await?;
        let detail = json!({"name": job.notes.name, "tags": job.notes.tags});
        services.store.audit_log().append(&actor, "describe_job", id.as_str(), detail, services.now()).await?;
        Ok(job)
    })
    .await
}

/// Registers the built-in model and pulled ones as versions when a job names them for the first time.
async fn register_named(services: &Services, args: &mut Value) -> Result<()> {
    for (field, kind) in roles::models() {
        // A job may start from a version of any kind.
        let kind = (kind == ModelKind::Reward).then_some(kind);
        let Some(name) = args.get(field).and_then(Value::as_str).filter(|name| !name.trim().is_empty()) else {
            continue;
        };
        let param = format!("args.{field}");
        let found = register::find_or_register(services, name, kind, Some(&param)).await.map_err(|e| match e {
            // A field of the body is refused by its own name.
            ServiceError::UnknownModel { message, .. } => bad_input(&param, message),
            other => other,
        })?;
        args[field] = json!(found.name);
    }
    Ok(())
}

/// Checks that a job of kind `external` names a configured trainer.
fn check_trainer(services: &Services, kind: &str, args: &Value) -> Result<()> {
    let Some(name) = queue::trainer_of(kind, args) else { return Ok(()) };
    if services.config.trainers.contains_key(name) {
        return Ok(());
    }
    let known: Vec<&str> = services.config.trainers.keys().map(String::as_str).collect();
    let message = match known.is_empty() {
        true => "no trainers are configured; add them to [trainers] in config.toml".to_owned(),
        false => unknown_name("trainer", name, &known),
    };
    Err(bad_input("args.trainer", message))
}

/// Checks that a job's rewards name judges of the configuration.
fn check_judges(services: &Services, args: &Value) -> Result<()> {
    let known: Vec<&str> = services.config.judges.keys().map(String::as_str).collect();
    let Some((field, name)) = named_judges(args).into_iter().find(|(_, name)| !known.contains(&name.as_str())) else {
        return Ok(());
    };
    let message = match known.is_empty() {
        true => "the configuration has no judges ([judges] in config.toml)".to_owned(),
        false => unknown_name("judge", &name, &known),
    };
    Err(bad_input(format!("args.{field}"), message))
}

/// Checks that the servers that are to generate rollouts are configured.
fn check_rollouts(services: &Services, args: &Value) -> Result<()> {
    let upstream = &services.config.upstream;
    if !queue::asks_for_fleet(args) || upstream.url.is_some() && upstream.push.as_deref() == Some("vllm") {
        return Ok(());
    }
    let message =
        "upstream needs servers that load adapters while they run: set upstream.url and upstream.push = \"vllm\"";
    Err(bad_input("args.rollouts", message))
}

/// Checks that the data exists that the job would learn from.
async fn check_data(services: &Services, kind: &str, args: Value) -> Result<()> {
    let store = services.store.as_ref();
    let (recipe, _, job) = queue::resolve(store, services.recipes, kind, args).await.map_err(refusal)?;
    let (learns, judges) = (services.learns_from_requests(), &services.config.judges);
    match available::missing(store, recipe, &job, learns, judges).await? {
        None => Ok(()),
        Some(message) => Err(ServiceError::Conflict(message)),
    }
}

/// Checks that the filter of the arguments names an existing tag or labeler.
async fn check_filter(services: &Services, args: &Value) -> Result<()> {
    let Some(filter) = args.get("filter").filter(|f| !f.is_null()) else { return Ok(()) };
    // A malformed filter is refused by the queue, with the reason.
    let Ok(filter) = serde_json::from_value::<RankedFilter>(filter.clone()) else { return Ok(()) };
    filters::check_ranked(services, &filter, "args.filter").await
}

fn refusal(error: EnqueueError) -> ServiceError {
    match error {
        EnqueueError::UnknownKind(_) => bad_input("kind", error.to_string()),
        EnqueueError::Args(e) => bad_input(format!("args.{}", e.field), e.message),
        EnqueueError::Store(e) => e.into(),
    }
}

/// Estimates what a job would need, without queuing it.
///
/// # Errors
/// As `enqueue`.
pub async fn estimate(services: &Services, kind: &str, mut args: Value) -> Result<Estimate> {
    if !args.is_object() {
        return Err(bad_input("args", "must be an object"));
    }
    check_filter(services, &args).await?;
    register_named(services, &mut args).await?;
    let Some(given) = args.as_object_mut() else { return Err(bad_input("args", "must be an object")) };
    let (store, data_dir) = (services.store.as_ref(), services.config.data_dir.as_path());
    estimate::fill_defaults(store, data_dir, kind, given).await?;
    let learns = services.learns_from_requests();
    estimate::estimate(store, services.recipes, data_dir, kind, args, learns).await.map_err(refusal)
}

/// One job.
///
/// # Errors
/// `NotFound` when there is none with this id.
pub async fn get(services: &Services, id: &JobId) -> Result<JobView> {
    with_author(services, services.store.jobs().get(id).await?).await
}

fn id(job: &Job) -> &str {
    job.id.as_str()
}

/// A page of jobs that match the filter, newest first; only a search knows the total.
///
/// # Errors
/// `BadInput` at `kind` for an unknown recipe.
pub async fn list(services: &Services, filter: &JobFilter, page: Page) -> Result<Listed<JobView>> {
    if let Some(kind) = filter.kind.as_ref().filter(|kind| services.recipes.iter().all(|r| r.name != **kind)) {
        let known: Vec<&str> = services.recipes.iter().map(|recipe| recipe.name).collect();
        return Err(bad_input("kind", unknown_name("recipe", kind, &known)));
    }
    let store = services.store.jobs();
    let listed = if filter.text.is_some() {
        search(services.search, page, id, |part| store.search(filter, part)).await?
    } else {
        Listed::counted(store.find(page, filter).await?, None, id)
    };
    let Listed { rows, after, total, searched_to } = listed;
    Ok(Listed { rows: with_authors(services, rows).await?, after, total, searched_to })
}

/// Queued jobs end at once; running ones stop after their next step.
pub async fn cancel(services: &Arc<Services>, by: &Actor, id: &JobId) -> Result<Job> {
    let (services, actor, id) = (services.clone(), by.signature(), id.clone());
    uncancelled(async move {
        let job = services.store.jobs().cancel(&id).await?;
        services.store.audit_log().append(&actor, "cancel", id.as_str(), json!({}), services.now()).await?;
        Ok(job)
    })
    .await
}

/// Queues a failed or cancelled job again; it resumes from its checkpoint.
pub async fn resume(services: &Arc<Services>, by: &Actor, id: &JobId) -> Result<Job> {
    let (services, actor, id) = (services.clone(), by.signature(), id.clone());
    uncancelled(async move {
        let job = services.store.jobs().resume(&id).await?;
        services.store.audit_log().append(&actor, "resume", id.as_str(), json!({}), services.now()).await?;
        Ok(job)
    })
    .await
}

/// The place of a job's last attempt, and its trainer's log.
#[derive(Clone, Debug, Serialize, schemars::JsonSchema)]
pub struct PlaceLog {
    /// Name of the place in the configuration; null for a child process of a server or worker.
    pub place: Option<String>,
    /// The attempt's id there: the submission id in Ray, the job's name in Slurm.
    pub id: Option<String>,
    /// The end of the log, at most 256 KB; null when it cannot be read.
    pub text: Option<String>,
    /// Why there is no text.
    pub message: Option<String>,
}

/// Asks the place of a job for its log.
///
/// # Errors
/// `NotFound` for an unknown job. A place that does not answer is not an error; the reason is in the result.
pub async fn place_log(services: &Services, id: &JobId) -> Result<PlaceLog> {
    let job = services.store.jobs().get(id).await?;
    let (place, at) = job.external_ref.as_deref().and_then(|r| r.split_once('/')).unzip();
    let (place, at) = (place.map(str::to_owned), at.map(str::to_owned));
    let config = &services.config;
    Ok(match executors::log(&config.executors, &config.data_dir, &job).await {
        RemoteLog::Text(text) => PlaceLog { place, id: at, text: Some(text), message: None },
        RemoteLog::None(message) => PlaceLog { place, id: at, text: None, message: Some(message) },
    })
}

/// Events after `after`, and the job, whose state shows whether more events can follow.
pub async fn events(services: &Services, id: &JobId, after: i64, limit: i64) -> Result<(Vec<JobEvent>, Job)> {
    // The state is read first: if the job ends in between, the next call returns its last events.
    let job = services.store.jobs().get(id).await?;
    let events = services.store.jobs().events(id, after, limit).await?;
    Ok((events, job))
}

/// The curves of these names; all curves when none is named.
///
/// # Errors
/// `BadInput` for a name that none of the job's curves has. Any name is accepted for a job without curves.
pub async fn metrics(services: &Services, id: &JobId, names: &[String]) -> Result<Vec<Metric>> {
    services.store.jobs().get(id).await?;
    let found = services.store.jobs().metrics(id, names).await?;
    if let Some(missing) = names.iter().find(|name| found.iter().all(|metric| metric.name != **name)) {
        let all = services.store.jobs().metrics(id, &[]).await?;
        let known: std::collections::BTreeSet<&str> = all.iter().map(|metric| metric.name.as_str()).collect();
        if !known.is_empty() {
            let known: Vec<&str> = known.into_iter().collect();
            return Err(bad_input("names", unknown_name("metric", missing, &known)));
        }
    }
    Ok(found)
}

//! Training jobs: queue, list, cancel, resume, follow.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::domain::{Job, JobEvent, JobId, JobState, Metric, Micros};
use crate::http::AppState;
use crate::http::auth::Caller;
use crate::http::contract::{List, Searched};
use crate::http::error::{ApiError, ApiResult, ErrorBody};
use crate::http::extract::{Json, Path, Query};
use crate::http::label::page;
use crate::jobs::estimate::Estimate;
use crate::service::jobs::{self, JobView, PlaceLog};
use crate::store::JobFilter;

/// Interval at which a followed job is read.
const POLL: Duration = Duration::from_millis(500);
const EVENTS_AT_ONCE: i64 = 500;

/// A recipe that jobs can run.
#[derive(Debug, Serialize, JsonSchema)]
pub struct RecipeView {
    pub name: &'static str,
    pub about: &'static str,
    /// JSON Schema of the job's `args`.
    pub schema: Value,
}

pub async fn recipes(State(state): State<AppState>) -> axum::Json<List<RecipeView>> {
    let judges = state.services.config.judges.keys();
    let hosts: Vec<Value> = judges.map(|name| json!(name)).chain([Value::Null]).collect();
    let one = |r: &crate::train::Recipe| {
        let mut schema = crate::jobs::queue::job_schema(r);
        // A job can only name judges of the configuration.
        if let Some(host) = schema["properties"].get_mut("host").and_then(Value::as_object_mut) {
            host.insert("enum".into(), json!(hosts));
        }
        RecipeView { name: r.name, about: r.about, schema }
    };
    axum::Json(List { data: state.services.recipes.iter().map(one).collect() })
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JobRequest {
    /// A recipe's name: `sft`, `reward`, `ppo`, …
    pub kind: String,
    /// The recipe's arguments; models by name. See `GET /admin/recipes`.
    #[serde(default)]
    #[schemars(with = "std::collections::BTreeMap<String, Value>")]
    pub args: Option<Value>,
    /// At most one unfinished job has this key.
    pub unique_key: Option<String>,
    /// Higher runs first. Default 0.
    #[serde(default)]
    pub priority: i64,
    /// Name of the job on the pages; at most 120 characters.
    pub name: Option<String>,
    /// Note on the purpose of the job; at most 4000 characters.
    pub note: Option<String>,
    /// At most 20, of at most 40 characters each.
    pub tags: Option<Vec<String>>,
}

/// A job's name, note and tags. Absent fields are kept; an empty string or list clears one.
#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JobWords {
    pub name: Option<String>,
    pub note: Option<String>,
    pub tags: Option<Vec<String>>,
}

pub async fn create(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Json(body): Json<JobRequest>,
) -> ApiResult<Response> {
    let args = body.args.unwrap_or_else(|| json!({}));
    let new = jobs::NewJob {
        kind: body.kind,
        args,
        unique_key: body.unique_key,
        priority: body.priority,
        notes: jobs::NotesChange { name: body.name, note: body.note, tags: body.tags },
    };
    let job = jobs::enqueue(&state.services, &actor, new).await?;
    Ok((StatusCode::CREATED, axum::Json(jobs::with_author(&state.services, job).await?)).into_response())
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EstimateRequest {
    /// A recipe's name.
    pub kind: String,
    /// The job's arguments, as for `POST /admin/jobs`.
    #[serde(default)]
    #[schemars(with = "std::collections::BTreeMap<String, Value>")]
    pub args: Option<Value>,
}

pub async fn estimate(
    State(state): State<AppState>,
    Json(body): Json<EstimateRequest>,
) -> ApiResult<axum::Json<Estimate>> {
    let args = body.args.unwrap_or_else(|| json!({}));
    Ok(axum::Json(jobs::estimate(&state.services, &body.kind, args).await?))
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JobsQuery {
    state: Option<JobState>,
    /// A recipe's name.
    kind: Option<String>,
    /// Text in id, name, note, tags, arguments or result.
    q: Option<String>,
    after: Option<String>,
    limit: Option<u32>,
}

pub async fn list(
    State(state): State<AppState>,
    Query(query): Query<JobsQuery>,
) -> ApiResult<axum::Json<Searched<JobView>>> {
    let filter = JobFilter {
        state: query.state,
        kind: query.kind.filter(|k| !k.is_empty()),
        text: query.q.map(|q| q.trim().to_owned()).filter(|q| !q.is_empty()),
    };
    Ok(axum::Json(jobs::list(&state.services, &filter, page(query.after, query.limit)?).await?.into()))
}

pub async fn get(State(state): State<AppState>, Path(id): Path<JobId>) -> ApiResult<axum::Json<JobView>> {
    Ok(axum::Json(jobs::get(&state.services, &id).await?))
}

pub async fn describe(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Path(id): Path<JobId>,
    Json(body): Json<JobWords>,
) -> ApiResult<axum::Json<JobView>> {
    let words = jobs::NotesChange { name: body.name, note: body.note, tags: body.tags };
    let job = jobs::describe(&state.services, &actor, &id, words).await?;
    Ok(axum::Json(jobs::with_author(&state.services, job).await?))
}

pub async fn cancel(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Path(id): Path<JobId>,
) -> ApiResult<axum::Json<Job>> {
    Ok(axum::Json(jobs::cancel(&state.services, &actor, &id).await?))
}

pub async fn resume(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Path(id): Path<JobId>,
) -> ApiResult<axum::Json<Job>> {
    Ok(axum::Json(jobs::resume(&state.services, &actor, &id).await?))
}

/// The place of the job's last attempt, with the end of its log there.
pub async fn log(State(state): State<AppState>, Path(id): Path<JobId>) -> ApiResult<axum::Json<PlaceLog>> {
    Ok(axum::Json(jobs::place_log(&state.services, &id).await?))
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EventsQuery {
    /// `json` = the current events as a list.
    format: Option<String>,
    /// Events after this number; `Last-Event-ID` does the same.
    after: Option<i64>,
}

/// The current events, with `?format=json`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct JobEvents {
    pub data: Vec<JobEvent>,
    pub state: JobState,
}

/// One event of the stream: `event` is its kind, or `error` when the stream ends early.
#[derive(Debug, Serialize, JsonSchema)]
pub struct StreamedJobEvent {
    pub event: String,
    /// The event's `seq`; absent for errors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    pub data: JobEventData,
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum JobEventData {
    Event {
        seq: i64,
        /// `state`, `progress`, `log`, `sample` or `warning`.
        kind: String,
        data: Value,
        created: Micros,
    },
    Error(ErrorBody),
}

impl StreamedJobEvent {
    fn sse(&self) -> Event {
        let event = Event::default().event(&self.event);
        let event = match &self.id {
            Some(id) => event.id(id),
            None => event,
        };
        event.data(serde_json::to_string(&self.data).unwrap_or_default())
    }
}

impl From<JobEvent> for StreamedJobEvent {
    fn from(event: JobEvent) -> Self {
        let JobEvent { seq, kind, data, created, .. } = event;
        Self { event: kind.clone(), id: Some(seq.to_string()), data: JobEventData::Event { seq, kind, data, created } }
    }
}

impl From<ApiError> for StreamedJobEvent {
    fn from(error: ApiError) -> Self {
        Self { event: "error".to_owned(), id: None, data: JobEventData::Error(error.body()) }
    }
}

/// Streams events from `Last-Event-ID` on, until the job ends or the server shuts down.
pub async fn events(
    State(state): State<AppState>,
    Path(id): Path<JobId>,
    Query(query): Query<EventsQuery>,
    headers: HeaderMap,
) -> ApiResult<Response> {
    let last = headers.get("last-event-id").and_then(|v| v.to_str().ok()).and_then(|v| v.trim().parse().ok());
    let mut after: i64 = query.after.or(last).unwrap_or(0);
    match query.format.as_deref() {
        None => {}
        Some("json") => {
            let (events, job) = jobs::events(&state.services, &id, after, EVENTS_AT_ONCE).await?;
            return Ok(axum::Json(JobEvents { data: events, state: job.state }).into_response());
        }
        Some(_) => return Err(ApiError::bad("format", "must be json, or absent for a stream")),
    }
    // Unknown jobs are refused before the stream begins.
    jobs::get(&state.services, &id).await?;
    let (sender, receiver) = mpsc::channel::<Result<Event, Infallible>>(64);
    tokio::spawn(async move {
        loop {
            let (events, job) = match jobs::events(&state.services, &id, after, EVENTS_AT_ONCE).await {
                Ok(found) => found,
                Err(e) => {
                    let error = StreamedJobEvent::from(ApiError::from(e));
                    let _ = sender.send(Ok(error.sse())).await;
                    return;
                }
            };
            let full = events.len() as i64 == EVENTS_AT_ONCE;
            for event in events {
                after = event.seq;
                if sender.send(Ok(StreamedJobEvent::from(event).sse())).await.is_err() {
                    return;
                }
            }
            if full {
                continue;
            }
            if job.state.is_terminal() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(POLL) => {}
                () = sender.closed() => return,
                () = state.services.shutdown.cancelled() => return,
            }
        }
    });
    let keep_alive = KeepAlive::new().interval(Duration::from_secs(15));
    Ok(Sse::new(ReceiverStream::new(receiver)).keep_alive(keep_alive).into_response())
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MetricsQuery {
    /// Names, separated by commas; absent = all.
    names: Option<String>,
}

pub async fn metrics(
    State(state): State<AppState>,
    Path(id): Path<JobId>,
    Query(query): Query<MetricsQuery>,
) -> ApiResult<axum::Json<Curves>> {
    let names = query.names.unwrap_or_default();
    let names: Vec<String> = names.split(',').filter(|n| !n.is_empty()).map(str::to_owned).collect();
    Ok(axum::Json(Curves { metrics: jobs::metrics(&state.services, &id, &names).await? }))
}

/// Points of a job's curves.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Curves {
    pub metrics: Vec<Metric>,
}

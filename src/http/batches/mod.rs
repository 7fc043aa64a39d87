//! `/v1/files` and `/v1/batches`: requests in a file, answered with low priority, in OpenAI's form.

mod files;
mod handlers;

use axum::extract::State;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use self::files::{DeletedFile, FileObject, FilesQuery, content, delete_file, get_file, list_files, upload};
pub use self::handlers::Handlers;
use super::AppState;
use super::auth::Caller;
use super::error::{ApiError, ApiResult};
use super::extract::{Json, Path, Query};
use crate::domain::{Batch, BatchFault, BatchState, Micros};
use crate::service::batches::{self, NewBatch};
use crate::store::Page;

/// Default and largest number of rows in a page.
const ROWS: i64 = 20;
const MOST_ROWS: i64 = 500;
/// OpenAI's bounds on metadata.
const MOST_METADATA: usize = 16;
const LONGEST_KEY: usize = 64;
const LONGEST_VALUE: usize = 512;

/// Whole seconds since 1970.
fn seconds(time: Micros) -> i64 {
    time.div_euclid(1_000_000)
}

/// One page of a list, newest first, OpenAI's form.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "{T}Listing")]
pub struct Listing<T> {
    #[schemars(extend("const" = "list"))]
    pub object: &'static str,
    pub data: Vec<T>,
    pub first_id: Option<String>,
    /// Id of the last row, for `?after=` of the next page.
    pub last_id: Option<String>,
    pub has_more: bool,
}

impl<T> Listing<T> {
    /// Makes a page of up to `limit + 1` rows: the last one only shows that there are more.
    fn new(mut data: Vec<T>, limit: i64, id: impl Fn(&T) -> &str) -> Self {
        let has_more = data.len() as i64 > limit;
        data.truncate(limit as usize);
        let named = |row: Option<&T>| row.map(|row| id(row).to_owned());
        Self { object: "list", first_id: named(data.first()), last_id: named(data.last()), data, has_more }
    }
}

/// The requested page with one additional row.
fn page(after: Option<String>, limit: Option<i64>, prefix: &str) -> ApiResult<(Page, i64)> {
    let limit = limit.unwrap_or(ROWS);
    if !(1..=MOST_ROWS).contains(&limit) {
        return Err(ApiError::bad("limit", format!("is {limit}; must be 1 to {MOST_ROWS}")));
    }
    if after.as_ref().is_some_and(|id| !id.starts_with(prefix)) {
        return Err(ApiError::bad("after", "is not a valid id; take it from `last_id` of the previous page"));
    }
    Ok((Page { after, limit: limit + 1 }, limit))
}

/// A request for a batch.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchRequest {
    /// A file of purpose `batch`: one request on each line, `{"custom_id", "method": "POST", "url", "body"}`.
    pub input_file_id: String,
    /// The `url` of every line: `/v1/chat/completions`, `/v1/completions`, `/v1/embeddings` or `/v1/responses`.
    pub endpoint: String,
    /// `24h`: requests that are not answered by then are listed as errors.
    pub completion_window: String,
    /// Up to 16 texts by name, returned unchanged.
    #[schemars(with = "Option<Value>")]
    pub metadata: Option<Map<String, Value>>,
    /// Not supported: files are kept as long as the server's setting says.
    #[schemars(with = "Option<Value>")]
    pub output_expires_after: Option<Value>,
}

/// A batch and its progress.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Batch")]
pub struct BatchObject {
    pub id: String,
    #[schemars(extend("const" = "batch"))]
    pub object: &'static str,
    pub endpoint: String,
    pub errors: Option<BatchErrors>,
    pub input_file_id: String,
    #[schemars(extend("const" = "24h"))]
    pub completion_window: &'static str,
    /// State; `validating` until a server begins with it.
    pub status: BatchState,
    /// File of the results, one on a line. Created when the batch ends.
    pub output_file_id: Option<String>,
    /// File of the requests that were refused or not answered in time, one on a line.
    pub error_file_id: Option<String>,
    /// Times in seconds since 1970.
    pub created_at: i64,
    pub in_progress_at: Option<i64>,
    pub expires_at: i64,
    pub finalizing_at: Option<i64>,
    pub completed_at: Option<i64>,
    pub failed_at: Option<i64>,
    pub expired_at: Option<i64>,
    pub cancelling_at: Option<i64>,
    pub cancelled_at: Option<i64>,
    pub request_counts: RequestTally,
    /// As in the request.
    pub metadata: Option<Value>,
}

/// Why a batch failed.
#[derive(Debug, Serialize, JsonSchema)]
pub struct BatchErrors {
    #[schemars(extend("const" = "list"))]
    pub object: &'static str,
    pub data: Vec<BatchFault>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct RequestTally {
    pub total: i64,
    pub completed: i64,
    pub failed: i64,
}

impl From<Batch> for BatchObject {
    fn from(b: Batch) -> Self {
        let ended = |state: BatchState| b.ended.filter(|_| b.state == state).map(seconds);
        Self {
            object: "batch",
            errors: (!b.faults.is_empty()).then(|| BatchErrors { object: "list", data: b.faults.clone() }),
            completion_window: "24h",
            status: b.state,
            created_at: seconds(b.created),
            in_progress_at: b.began.map(seconds),
            expires_at: seconds(b.expires),
            finalizing_at: ended(BatchState::Done),
            completed_at: ended(BatchState::Done),
            failed_at: ended(BatchState::Failed),
            expired_at: ended(BatchState::Expired),
            cancelling_at: b.cancelling.map(seconds),
            cancelled_at: ended(BatchState::Cancelled),
            request_counts: RequestTally { total: b.total, completed: b.completed, failed: b.failed },
            metadata: Some(b.metadata).filter(|m| !m.is_null()),
            id: b.id,
            endpoint: b.endpoint,
            input_file_id: b.input_file,
            output_file_id: b.output_file,
            error_file_id: b.error_file,
        }
    }
}

fn check_metadata(metadata: Option<&Map<String, Value>>) -> ApiResult<()> {
    let Some(metadata) = metadata else { return Ok(()) };
    if metadata.len() > MOST_METADATA {
        return Err(ApiError::bad("metadata", format!("has {} names; at most {MOST_METADATA}", metadata.len())));
    }
    let fits = |(name, value): &(&String, &Value)| {
        name.chars().count() <= LONGEST_KEY && value.as_str().is_some_and(|v| v.chars().count() <= LONGEST_VALUE)
    };
    match metadata.iter().find(|entry| !fits(entry)) {
        None => Ok(()),
        Some((name, _)) => {
            let message = format!("must be a text of at most {LONGEST_VALUE} characters under a name of {LONGEST_KEY}");
            Err(ApiError::bad(format!("metadata.{name}"), message))
        }
    }
}

pub async fn create(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Json(request): Json<BatchRequest>,
) -> ApiResult<axum::Json<BatchObject>> {
    super::openai::params::refuse(&[("output_expires_after", &request.output_expires_after, &[])])?;
    if request.completion_window != "24h" {
        return Err(ApiError::bad("completion_window", "must be 24h"));
    }
    check_metadata(request.metadata.as_ref())?;
    let new = NewBatch {
        input_file: request.input_file_id,
        endpoint: request.endpoint,
        metadata: request.metadata.map_or(Value::Null, Value::Object),
    };
    Ok(axum::Json(batches::create(&state.services, &actor, new).await?.into()))
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchesQuery {
    /// The last id of the page before.
    after: Option<String>,
    /// 1 to 500; default 20.
    limit: Option<i64>,
}

pub async fn list(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Query(query): Query<BatchesQuery>,
) -> ApiResult<axum::Json<Listing<BatchObject>>> {
    let (page, limit) = page(query.after, query.limit, "batch_")?;
    let found = batches::list(&state.services, &actor, page).await?;
    Ok(axum::Json(Listing::new(found.into_iter().map(BatchObject::from).collect(), limit, |b| &b.id)))
}

pub async fn get(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Path(id): Path<String>,
) -> ApiResult<axum::Json<BatchObject>> {
    Ok(axum::Json(batches::get(&state.services, &actor, &id).await?.into()))
}

pub async fn cancel(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Path(id): Path<String>,
) -> ApiResult<axum::Json<BatchObject>> {
    Ok(axum::Json(batches::cancel(&state.services, &actor, &id).await?.into()))
}

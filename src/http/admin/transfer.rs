//! Import, export and dataset versions.

use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::TryStreamExt;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio_stream::wrappers::ReceiverStream;

use crate::data::Format;
use crate::data::source::Content;
use crate::domain::{DatasetVersion, LabelersUsed, SetKind, Split};
use crate::http::AppState;
use crate::http::auth::Caller;
use crate::http::contract::List;
use crate::http::error::{ApiError, ApiResult, ErrorDetail};
use crate::http::extract::{Body, Json, Path, Query};
use crate::service::sample::{self, Sample};
use crate::service::transfer::{self, Selection};
use crate::service::{datasets, imports, projects};
use crate::store::RankedFilter;

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportQuery {
    format: String,
    name: Option<String>,
    /// Id or name of the project that the prompts and sets belong to; when absent, the project that a line names, the
    /// first where it names none.
    project: Option<String>,
    /// Rankings become known answers of this kind instead of judgments.
    known_answer: Option<SetKind>,
}

fn format(name: &str) -> ApiResult<Format> {
    let known: Vec<_> = Format::ALL.iter().map(|f| f.as_str()).collect();
    Format::parse(name).ok_or_else(|| ApiError::bad("format", format!("must be one of {}", known.join(", "))))
}

pub async fn import(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Query(query): Query<ImportQuery>,
    headers: HeaderMap,
    Body(body): Body,
) -> ApiResult<Response> {
    let format = format(&query.format)?;
    let name = query.name.as_deref().unwrap_or("api");
    if query.known_answer == Some(SetKind::Normal) {
        return Err(ApiError::bad("known_answer", "must be gold or calibration"));
    }
    check_body(&headers, &body)?;
    let project = match query.project.as_deref() {
        None => None,
        wanted => Some(projects::to_add_to(&state.services, &actor, wanted).await?),
    };
    let done =
        imports::read_in(&state.services, &actor, format, name, project.as_ref(), query.known_answer, body).await?;
    Ok(match failure(&done) {
        None => axum::Json(done).into_response(),
        Some(error) => (error.status, axum::Json(FailedImport { report: done, error: error.detail() })).into_response(),
    })
}

/// The error of a refused import, with its report.
#[derive(Debug, Serialize, JsonSchema)]
pub struct FailedImport {
    #[serde(flatten)]
    pub report: imports::Imported,
    pub error: ErrorDetail,
}

/// Checks the headers of an upload: the body must be the file itself, compressed or not. Its format is detected from
/// its content, so the content type must only rule out forms.
fn check_body(headers: &HeaderMap, body: &[u8]) -> ApiResult<()> {
    let header = |name| headers.get(name).and_then(|v: &HeaderValue| v.to_str().ok()).unwrap_or_default().trim();
    let kind = header(header::CONTENT_TYPE).split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if kind.starts_with("multipart/") {
        let message = format!("Content-Type {kind} is not supported; send the file itself: curl --data-binary @FILE");
        return Err(unsupported("content-type", message));
    }
    let packed = match header(header::CONTENT_ENCODING).to_ascii_lowercase().as_str() {
        "" | "identity" => return Ok(()),
        "gzip" | "x-gzip" => Content::Gzip,
        "zstd" => Content::Zstd,
        other => {
            let message =
                format!("Content-Encoding {other} is not supported; send the file uncompressed, or with gzip or zstd");
            return Err(unsupported("content-encoding", message));
        }
    };
    if Content::of(&body[..body.len().min(64)]) != packed {
        return Err(ApiError::bad("content-encoding", "the body is not compressed as Content-Encoding states"));
    }
    Ok(())
}

fn unsupported(param: &str, message: String) -> ApiError {
    let error = ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message).code("unsupported_media_type");
    ApiError { param: Some(param.to_owned()), ..error }
}

/// Most bad lines in an error's message.
const NAMED: usize = 20;

/// The error of an import whose file could not be read completely or had no usable line; otherwise `None`.
fn failure(done: &imports::Imported) -> Option<ApiError> {
    if let Some(why) = &done.stopped {
        let kept = match done.usable() {
            0 => "nothing was stored".to_owned(),
            n => format!("{n} lines before it are stored; correct the file and send it again, known lines are skipped"),
        };
        return Some(ApiError::bad("body", format!("{why} ({kept})")).code("unreadable_file"));
    }
    if done.usable() > 0 {
        return None;
    }
    if done.failed == 0 {
        return Some(ApiError::bad("body", "the file contains nothing to import").code("empty_file"));
    }
    let mut message = match done.failed {
        1 => "the only line cannot be used".to_owned(),
        n => format!("none of {n} lines can be used"),
    };
    let named: Vec<String> = done.errors.iter().take(NAMED).map(ToString::to_string).collect();
    message.push_str(&format!(": {}", named.join("; ")));
    if done.failed > named.len() {
        message.push_str(&format!("; and {} more", done.failed - named.len()));
    }
    Some(ApiError::bad("body", message).code("no_usable_line"))
}

/// Loads the sample data.
pub async fn sample(State(state): State<AppState>, Caller(actor): Caller) -> ApiResult<axum::Json<Sample>> {
    Ok(axum::Json(sample::load(&state.services, &actor).await?))
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExportQuery {
    format: String,
    split: Option<Split>,
    /// Id or name of a project; all when absent.
    project: Option<String>,
    dataset: Option<String>,
    feedback: Option<bool>,
    /// Whose rankings; people's if absent. Lines of `comparisons` by language models have `labeler_kind`.
    labelers: Option<LabelersUsed>,
}

pub async fn export(State(state): State<AppState>, Query(query): Query<ExportQuery>) -> ApiResult<Response> {
    let format = format(&query.format)?;
    let name = query.dataset.clone().unwrap_or_else(|| format.as_str().to_owned());
    let feedback = query.feedback.unwrap_or(false);
    let labelers = query.labelers.unwrap_or_default();
    let project = projects::filter(&state.services, query.project.as_deref()).await?;
    let selection = Selection { split: query.split, project, dataset: query.dataset, feedback, labelers };
    let file = transfer::write_out(&state.services, format, selection).await?;
    let (kind, ending) = match format {
        Format::Parquet => ("application/vnd.apache.parquet", "parquet"),
        _ => ("application/x-ndjson", "jsonl"),
    };
    // A name in the query is untrusted; only characters that cannot end the header's string are used.
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let name: String = name.chars().filter(|c| fits(*c)).take(64).collect();
    let disposition = format!("attachment; filename=\"{name}.{ending}\"");
    let headers = [(header::CONTENT_TYPE, kind.to_owned()), (header::CONTENT_DISPOSITION, disposition)];
    // Number of rankings that the format cannot represent.
    let left_out = [(HeaderName::from_static("x-left-out"), file.left_out.to_string())];
    // An error ends the connection without an end of the body, so that an incomplete file is detected.
    let pieces = ReceiverStream::new(file.pieces).map_err(|e| {
        tracing::error!(error = %e, "an export ended early");
        std::io::Error::other(e)
    });
    Ok((headers, left_out, axum::body::Body::from_stream(pieces)).into_response())
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NewDataset {
    /// Unique, `[a-z0-9._-]{1,64}`.
    pub name: Option<String>,
    /// Which rankings; all of normal sets when absent. `feedback: true` adds preferences that follow from
    /// applications' events: an edit over the text it was made from, thumbs averaged over users, scores
    /// compared within one user.
    #[serde(default)]
    pub filter: RankedFilter,
}

pub async fn create_dataset(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Json(body): Json<NewDataset>,
) -> ApiResult<(StatusCode, axum::Json<DatasetVersion>)> {
    let version = datasets::create(&state.services, &actor, body.name, body.filter).await?;
    Ok((StatusCode::CREATED, axum::Json(version)))
}

pub async fn list_datasets(State(state): State<AppState>) -> ApiResult<axum::Json<List<DatasetVersion>>> {
    Ok(axum::Json(List { data: datasets::list(&state.services).await? }))
}

pub async fn get_dataset(
    State(state): State<AppState>,
    Path(id): Path<String>,
) -> ApiResult<axum::Json<DatasetVersion>> {
    Ok(axum::Json(datasets::get(&state.services, &id).await?))
}

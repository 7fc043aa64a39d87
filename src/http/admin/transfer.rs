//! Import, export and dataset versions.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::data::Format;
use crate::domain::{SetKind, Split};
use crate::http::AppState;
use crate::http::auth::Caller;
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::{Body, Json, Path, Query};
use crate::service::datasets;
use crate::service::transfer::{self, Selection};
use crate::store::RankedFilter;

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportQuery {
    format: String,
    name: Option<String>,
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
    Body(body): Body,
) -> ApiResult<Response> {
    let format = format(&query.format)?;
    let name = query.name.as_deref().unwrap_or("api");
    if query.known_answer == Some(SetKind::Normal) {
        return Err(ApiError::bad("known_answer", "must be gold or calibration"));
    }
    let done = transfer::read_in(&state.services, &actor, format, name, query.known_answer, body).await?;
    Ok(axum::Json(done).into_response())
}

/// Loads the sample data of a first walk through the loop.
pub async fn sample(State(state): State<AppState>, Caller(actor): Caller) -> ApiResult<Response> {
    Ok(axum::Json(crate::service::sample::load(&state.services, &actor).await?).into_response())
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExportQuery {
    format: String,
    split: Option<Split>,
    dataset: Option<String>,
    feedback: Option<bool>,
}

pub async fn export(State(state): State<AppState>, Query(query): Query<ExportQuery>) -> ApiResult<Response> {
    let format = format(&query.format)?;
    let name = query.dataset.clone().unwrap_or_else(|| format.as_str().to_owned());
    let feedback = query.feedback.unwrap_or(false);
    let selection = Selection { split: query.split, dataset: query.dataset, feedback };
    let bytes = transfer::write_out(&state.services, format, selection).await?;
    let (kind, ending) = match format {
        Format::Parquet => ("application/vnd.apache.parquet", "parquet"),
        _ => ("application/x-ndjson", "jsonl"),
    };
    // A name in the query is anybody's text; only what cannot end the header's string goes into it.
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let name: String = name.chars().filter(|c| fits(*c)).take(64).collect();
    let disposition = format!("attachment; filename=\"{name}.{ending}\"");
    let headers = [(header::CONTENT_TYPE, kind.to_owned()), (header::CONTENT_DISPOSITION, disposition)];
    Ok((headers, bytes).into_response())
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
) -> ApiResult<Response> {
    let version = datasets::create(&state.services, &actor, body.name, body.filter).await?;
    Ok((StatusCode::CREATED, axum::Json(version)).into_response())
}

pub async fn list_datasets(State(state): State<AppState>) -> ApiResult<axum::Json<Value>> {
    Ok(axum::Json(json!({"data": state.services.store.list_datasets().await?})))
}

pub async fn get_dataset(State(state): State<AppState>, Path(id): Path<String>) -> ApiResult<Response> {
    Ok(axum::Json(state.services.store.get_dataset(&id).await?).into_response())
}

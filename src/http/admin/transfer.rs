//! Import and export of JSON lines.

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use crate::data::Format;
use crate::domain::Split;
use crate::http::AppState;
use crate::http::auth::Caller;
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::{Body, Query};
use crate::service::transfer;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImportQuery {
    format: String,
    name: Option<String>,
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
    let done = transfer::read_in(&state.services, &actor, format, name, body).await?;
    Ok(axum::Json(done).into_response())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportQuery {
    format: String,
    split: Option<Split>,
}

pub async fn export(State(state): State<AppState>, Query(query): Query<ExportQuery>) -> ApiResult<Response> {
    let format = format(&query.format)?;
    let text = transfer::write_out(&state.services, format, query.split).await?;
    let name = format!("attachment; filename=\"{}.jsonl\"", format.as_str());
    let headers = [(header::CONTENT_TYPE, "application/x-ndjson".to_owned()), (header::CONTENT_DISPOSITION, name)];
    Ok((headers, text).into_response())
}

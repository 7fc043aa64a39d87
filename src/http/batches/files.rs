//! Files: uploaded by forms, listed, read and removed by their owner.

use std::time::Duration;

use axum::body::Body;
use axum::extract::multipart::MultipartError;
use axum::extract::{FromRequest, Multipart, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Listing, page, seconds};
use crate::domain::time::{DAY, after};
use crate::domain::{FilePurpose, StoredFile};
use crate::http::AppState;
use crate::http::auth::Caller;
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::{Path, Query};
use crate::service::Services;
use crate::service::batches::{self, Content};

/// Longest name of a file, in characters.
const LONGEST_NAME: usize = 255;
/// Bytes of results that are read from the database at once.
const PIECE: usize = 1 << 20;

/// A file, without its text.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "File")]
pub struct FileObject {
    pub id: String,
    #[schemars(extend("const" = "file"))]
    pub object: &'static str,
    pub bytes: i64,
    /// Seconds since 1970.
    pub created_at: i64,
    /// Time of its removal, in seconds since 1970.
    pub expires_at: i64,
    pub filename: String,
    pub purpose: FilePurpose,
    #[schemars(extend("const" = "processed"))]
    pub status: &'static str,
}

fn object(services: &Services, file: StoredFile) -> FileObject {
    FileObject {
        id: file.id,
        object: "file",
        bytes: file.bytes,
        created_at: seconds(file.created),
        expires_at: seconds(after(file.created, services.config.batches.keep_days, DAY)),
        filename: file.name,
        purpose: file.purpose,
        status: "processed",
    }
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct DeletedFile {
    pub id: String,
    #[schemars(extend("const" = "file"))]
    pub object: &'static str,
    pub deleted: bool,
}

/// The parts of the form.
#[derive(Default)]
struct Form {
    purpose: Option<String>,
    file: Option<(String, Vec<u8>)>,
}

fn unreadable(error: &MultipartError) -> ApiError {
    if error.status() == StatusCode::PAYLOAD_TOO_LARGE {
        let error = ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "the file is too large").code("body_too_large");
        return ApiError { param: Some("file".to_owned()), ..error };
    }
    ApiError::bad("body", format!("the form could not be read: {}", error.body_text()))
}

async fn form(request: Request, state: &AppState) -> ApiResult<Form> {
    let mut parts = Multipart::from_request(request, state).await.map_err(|e| {
        ApiError::bad("content-type", format!("this route takes multipart/form-data: {}", e.body_text()))
    })?;
    let mut form = Form::default();
    while let Some(part) = parts.next_field().await.map_err(|e| unreadable(&e))? {
        let name = part.name().unwrap_or_default().to_owned();
        match name.as_str() {
            "purpose" if form.purpose.is_none() => {
                form.purpose = Some(part.text().await.map_err(|e| unreadable(&e))?);
            }
            "file" if form.file.is_none() => {
                let name = part.file_name().unwrap_or_default().chars().filter(|c| !c.is_control());
                let name = name.take(LONGEST_NAME).collect();
                let bytes = part.bytes().await.map_err(|e| unreadable(&e))?;
                form.file = Some((name, bytes.into()));
            }
            "purpose" | "file" => return Err(ApiError::bad(name.as_str(), "is given twice")),
            _ => {
                let message = format!("unknown field `{name}`: the form has file and purpose");
                return Err(ApiError::bad(if name.is_empty() { "body" } else { &name }, message));
            }
        }
    }
    Ok(form)
}

pub async fn upload(
    State(state): State<AppState>,
    Caller(actor): Caller,
    request: Request,
) -> ApiResult<axum::Json<FileObject>> {
    let deadline = Duration::from_secs(state.services.config.server.body_timeout_seconds);
    let form = tokio::time::timeout(deadline, form(request, &state)).await;
    let late = |_| ApiError::new(StatusCode::REQUEST_TIMEOUT, "the request body did not arrive in time");
    let Form { purpose, file } = form.map_err(late)??;
    match purpose.as_deref() {
        Some("batch") => {}
        Some(other) => return Err(ApiError::bad("purpose", format!("is {other}; must be batch"))),
        None => return Err(ApiError::bad("purpose", "is missing")),
    }
    let (name, content) = file.ok_or_else(|| ApiError::bad("file", "is missing"))?;
    let stored = batches::upload(&state.services, &actor, name, content).await?;
    Ok(axum::Json(object(&state.services, stored)))
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FilesQuery {
    /// `batch` or `batch_output`.
    purpose: Option<FilePurpose>,
    /// The last id of the previous page.
    after: Option<String>,
    /// 1 to 500; default 20.
    limit: Option<i64>,
}

pub async fn list_files(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Query(query): Query<FilesQuery>,
) -> ApiResult<axum::Json<Listing<FileObject>>> {
    let (page, limit) = page(query.after, query.limit, "file-")?;
    let found = batches::files(&state.services, &actor, query.purpose, page).await?;
    let found = found.into_iter().map(|file| object(&state.services, file)).collect();
    Ok(axum::Json(Listing::new(found, limit, |f: &FileObject| &f.id)))
}

pub async fn get_file(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Path(id): Path<String>,
) -> ApiResult<axum::Json<FileObject>> {
    let file = batches::file(&state.services, &actor, &id).await?;
    Ok(axum::Json(object(&state.services, file)))
}

pub async fn delete_file(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Path(id): Path<String>,
) -> ApiResult<axum::Json<DeletedFile>> {
    batches::delete(&state.services, &actor, &id).await?;
    Ok(axum::Json(DeletedFile { id, object: "file", deleted: true }))
}

/// The text of a file. Results of a batch are read from the database piece by piece.
pub async fn content(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Path(id): Path<String>,
) -> ApiResult<Response> {
    let kind = [(header::CONTENT_TYPE, "application/jsonl")];
    let (batch, failed) = match batches::content(&state.services, &actor, &id).await? {
        Content::Whole(text) => return Ok((kind, text).into_response()),
        Content::Answers { batch, failed } => (batch, failed),
    };
    let services = state.services.clone();
    let pieces = futures::stream::unfold(Some(0), move |after| {
        let (services, batch) = (services.clone(), batch.clone());
        async move {
            let after = after?;
            match batches::answers(&services, &batch, failed, after, PIECE).await {
                Ok(lines) => {
                    let last = lines.last()?.0;
                    let text: String = lines.into_iter().map(|(_, text)| text + "\n").collect();
                    Some((Ok(text), Some(last)))
                }
                Err(error) => {
                    tracing::error!(%error, "a file download ended early");
                    Some((Err(std::io::Error::other(error)), None))
                }
            }
        }
    });
    Ok((kind, Body::from_stream(pieces)).into_response())
}

//! Errors of the API, `{"error": {"message", "type", "param", "code"}}`, and the mapping of failures to status codes.
//! Internal details are logged, not returned.

use axum::http::{HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::engine::EngineError;
use crate::service::ServiceError;
use crate::store::StoreError;

/// An error response.
#[derive(Debug)]
pub struct ApiError {
    pub status: StatusCode,
    pub message: String,
    /// The request field at fault, such as `messages[0].role`.
    pub param: Option<String>,
    pub code: Option<&'static str>,
    pub retry_after_s: Option<u64>,
}

pub type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code: None, retry_after_s: None }
    }

    /// 400 that names the field.
    pub fn bad(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..Self::new(StatusCode::BAD_REQUEST, message) }
    }

    pub fn code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    pub fn unauthorized(message: &str) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, message).code("invalid_api_key")
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message).code("not_found")
    }

    pub fn forbidden(message: &str) -> Self {
        Self::new(StatusCode::FORBIDDEN, message).code("forbidden")
    }

    pub(super) fn internal(detail: &str) -> Self {
        tracing::error!(error = detail, "request failed");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "the server failed; the reason is in its log")
            .code("internal_error")
    }

    /// 429 with the time to wait.
    pub fn too_many(message: &str, code: &'static str, retry_after_s: u64) -> Self {
        Self { retry_after_s: Some(retry_after_s), ..Self::new(StatusCode::TOO_MANY_REQUESTS, message) }.code(code)
    }

    fn unavailable(message: impl Into<String>) -> Self {
        Self { retry_after_s: Some(1), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, message) }
    }

    fn disk_full(detail: &str) -> Self {
        tracing::error!(error = detail, "the server's disk is full");
        let message = "the server's disk is full; the operator must free space";
        Self { retry_after_s: Some(60), ..Self::unavailable(message) }.code("disk_full")
    }

    fn kind(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            409 => "conflict_error",
            429 => "rate_limit_error",
            503 => "service_unavailable_error",
            500..=599 => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// The body; also the error event of a stream.
    pub fn body(&self) -> ErrorBody {
        ErrorBody { error: self.detail() }
    }

    /// The message names the field, because clients show the message alone.
    pub fn detail(&self) -> ErrorDetail {
        let message = match &self.param {
            Some(param) if !self.message.contains(param.as_str()) => format!("{param}: {}", self.message),
            _ => self.message.clone(),
        };
        ErrorDetail { message, kind: self.kind(), param: self.param.clone(), code: self.code }
    }
}

/// The body of every error response.
#[derive(Clone, Debug, Serialize, schemars::JsonSchema)]
#[schemars(rename = "Error")]
pub struct ErrorBody {
    pub error: ErrorDetail,
}

#[derive(Clone, Debug, Serialize, schemars::JsonSchema)]
pub struct ErrorDetail {
    pub message: String,
    /// `invalid_request_error`, `authentication_error`, `permission_error`, `conflict_error`, `rate_limit_error`,
    /// `service_unavailable_error` or `server_error`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The field, parameter or header at fault.
    pub param: Option<String>,
    /// A stable code of the case.
    pub code: Option<&'static str>,
}

impl std::fmt::Display for ErrorBody {
    /// As JSON.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&serde_json::to_string(self).unwrap_or_default())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, axum::Json(self.body())).into_response();
        if let Some(seconds) = self.retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        let message = error.to_string();
        match error {
            EngineError::BadRequest { param, .. } => Self::bad(param, message),
            EngineError::TooLong { param, .. } => Self::bad(param, message).code("context_length_exceeded"),
            EngineError::UnknownModel(_) => Self {
                param: Some("model".to_owned()),
                ..Self::new(StatusCode::NOT_FOUND, message).code("model_not_found")
            },
            EngineError::Overloaded { retry_after_s } => Self {
                retry_after_s: Some(retry_after_s.max(1)),
                ..Self::new(StatusCode::TOO_MANY_REQUESTS, message).code("overloaded")
            },
            EngineError::Draining => Self::unavailable(message).code("draining"),
            EngineError::NotReady => Self::unavailable(message).code("loading"),
            EngineError::Unavailable { retry_after_s, .. } => {
                Self { retry_after_s: Some(retry_after_s.max(1)), ..Self::unavailable(message) }
                    .code("upstream_unavailable")
            }
            EngineError::DiskFull(_) => Self::disk_full(&message),
            EngineError::Failed(_) => Self::internal(&message),
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        let message = error.to_string();
        match error {
            StoreError::NotFound { .. } => Self::new(StatusCode::NOT_FOUND, message).code("not_found"),
            StoreError::Conflict(_) => Self::new(StatusCode::CONFLICT, message).code("conflict"),
            StoreError::KeyReused(_) => Self {
                param: Some("idempotency_key".to_owned()),
                ..Self::new(StatusCode::CONFLICT, message).code("idempotency_key_reused")
            },
            StoreError::LeaseLost(_) => Self::new(StatusCode::CONFLICT, message).code("lease_lost"),
            StoreError::Unavailable(_) => {
                tracing::warn!(error = message, "the database is not available");
                Self::unavailable("the database is not available; try again").code("database_unavailable")
            }
            StoreError::Full(_) => Self::disk_full(&message),
            StoreError::Internal(_) => Self::internal(&message),
        }
    }
}

impl From<ServiceError> for ApiError {
    fn from(error: ServiceError) -> Self {
        match error {
            ServiceError::BadInput { param, message } => Self::bad(param, message),
            ServiceError::NotFound { what, id, param } => {
                let message = format!("no such {what}: {id}");
                Self { param, ..Self::new(StatusCode::NOT_FOUND, message).code("not_found") }
            }
            ServiceError::UnknownModel { message, param } => {
                Self { param, ..Self::new(StatusCode::NOT_FOUND, message).code("model_not_found") }
            }
            ServiceError::Forbidden(message) => Self::forbidden(&message),
            ServiceError::SignIn(refusal) => Self::forbidden(refusal.message()).code(refusal.code()),
            ServiceError::Conflict(message) => Self::new(StatusCode::CONFLICT, message).code("conflict"),
            ServiceError::Store(e) => e.into(),
            ServiceError::Engine(e) => e.into(),
            ServiceError::DiskFull(detail) => Self::disk_full(&detail),
            ServiceError::Internal(detail) => Self::internal(&detail),
        }
    }
}

/// The response to an unknown route. A client whose base URL lacks `/v1` is told so.
pub async fn no_route(uri: Uri) -> ApiError {
    unknown_route(uri.path())
}

/// The response to an unknown path.
pub(super) fn unknown_route(path: &str) -> ApiError {
    const OF_V1: [&str; 6] = ["/chat/", "/completions", "/embeddings", "/models", "/responses", "/messages"];
    let message = match OF_V1.iter().any(|start| path.starts_with(start)) {
        true => format!("there is no such route; did you mean /v1{path}? The base URL of clients ends with /v1"),
        false => "there is no such route; see /docs".to_owned(),
    };
    ApiError::new(StatusCode::NOT_FOUND, message).code("no_route")
}

/// The response to a known path with an unsupported method.
pub async fn no_method() -> ApiError {
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "this route does not support this method; see /docs")
        .code("no_method")
}

/// The response after a panic in a handler.
pub fn panicked(detail: Box<dyn std::any::Any + Send>) -> Response {
    let text = detail.downcast_ref::<String>().map(String::as_str).or_else(|| detail.downcast_ref::<&str>().copied());
    ApiError::internal(&format!("a handler panicked: {}", text.unwrap_or("no message"))).into_response()
}

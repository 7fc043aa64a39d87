//! The handlers of requests in batches.

use async_trait::async_trait;
use axum::body::to_bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::http::auth::MaybeCaller;
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::{self, Json};
use crate::http::observe::RequestId;
use crate::http::{AppState, encoders, openai, responses};
use crate::service::batch_runner::{BatchResponse, RequestHandler};
use crate::service::people::Actor;

/// Most bytes of one response.
const ANSWER_BYTES: usize = 64 << 20;

/// Handles requests of batches in the same way as the router.
pub struct Handlers(pub AppState);

#[async_trait]
impl RequestHandler for Handlers {
    async fn answer(&self, actor: Actor, endpoint: &str, id: &str, body: &[u8]) -> BatchResponse {
        let response = handled(self.0.clone(), actor, endpoint, id, body).await;
        let response = response.unwrap_or_else(IntoResponse::into_response);
        let status = response.status().as_u16();
        let body = match to_bytes(response.into_body(), ANSWER_BYTES).await {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or(Value::Null),
            Err(e) => json!({"error": {"message": e.to_string()}}),
        };
        BatchResponse { status, body }
    }
}

async fn handled(state: AppState, actor: Actor, endpoint: &str, id: &str, body: &[u8]) -> ApiResult<Response> {
    let (app, id, caller) = (State(state), RequestId(format!("batch-{id}")), MaybeCaller(Some(actor)));
    match endpoint {
        "/v1/chat/completions" => openai::chat::create(app, id, caller, Json(extract::parse(body)?)).await,
        "/v1/completions" => openai::completions::create(app, id, caller, Json(extract::parse(body)?)).await,
        "/v1/responses" => responses::create(app, id, caller, Json(extract::parse(body)?)).await,
        "/v1/embeddings" => encoders::embeddings(app, Json(extract::parse(body)?)).await,
        other => Err(ApiError::bad("url", format!("{other} is not supported in a batch"))),
    }
}

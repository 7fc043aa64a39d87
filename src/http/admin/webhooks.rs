//! Webhooks and their deliveries.

use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;

use crate::domain::{Delivery, DeliveryState, Webhook};
use crate::http::AppState;
use crate::http::auth::Caller;
use crate::http::contract::{List, Paged};
use crate::http::error::ApiResult;
use crate::http::extract::{Json, Path, Query};
use crate::http::label::rows;
use crate::service::webhooks::{self, CreatedWebhook, NewWebhook};
use crate::store::Page;

pub async fn list(State(state): State<AppState>) -> ApiResult<axum::Json<List<Webhook>>> {
    Ok(axum::Json(List { data: webhooks::list(&state.services).await? }))
}

pub async fn create(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Json(body): Json<NewWebhook>,
) -> ApiResult<(StatusCode, axum::Json<CreatedWebhook>)> {
    Ok((StatusCode::CREATED, axum::Json(webhooks::create(&state.services, &actor, body).await?)))
}

pub async fn delete(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Path(id): Path<String>,
) -> ApiResult<StatusCode> {
    webhooks::delete(&state.services, &actor, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn test(
    State(state): State<AppState>,
    Path(id): Path<String>,
) -> ApiResult<(StatusCode, axum::Json<Delivery>)> {
    Ok((StatusCode::ACCEPTED, axum::Json(webhooks::test(&state.services, &id).await?)))
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeliveriesQuery {
    /// Id of a webhook.
    webhook: Option<String>,
    state: Option<DeliveryState>,
    after: Option<String>,
    limit: Option<i64>,
}

pub async fn deliveries(
    State(state): State<AppState>,
    Query(query): Query<DeliveriesQuery>,
) -> ApiResult<axum::Json<Paged<Delivery>>> {
    let page = Page { after: query.after, limit: rows(query.limit)? };
    let found = webhooks::deliveries(&state.services, query.webhook.as_deref(), query.state, &page).await?;
    Ok(axum::Json(Paged::new(found, |delivery| &delivery.id)))
}

pub async fn resend(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Path(id): Path<String>,
) -> ApiResult<(StatusCode, axum::Json<Delivery>)> {
    Ok((StatusCode::ACCEPTED, axum::Json(webhooks::resend(&state.services, &actor, &id).await?)))
}

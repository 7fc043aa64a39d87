//! Conversations of labelers: which sets follow each other.

use axum::extract::State;
use serde::Deserialize;

use super::AppState;
use super::auth::Caller;
use super::contract::Paged;
use super::error::ApiResult;
use super::extract::{Path, Query};
use super::label;
use crate::domain::{Conversation, ConversationId, SetId};
use crate::service::conversations;

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConversationsQuery {
    /// Only the conversation that has this set as a turn.
    set_id: Option<SetId>,
    after: Option<String>,
    limit: Option<u32>,
}

pub async fn list(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Query(query): Query<ConversationsQuery>,
) -> ApiResult<axum::Json<Paged<Conversation>>> {
    let page = label::page(query.after, query.limit)?;
    let found = conversations::list(&state.services, &actor, query.set_id.as_ref(), page).await?;
    Ok(axum::Json(Paged::new(found, |c: &Conversation| c.id.as_str())))
}

pub async fn get(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Path(id): Path<ConversationId>,
) -> ApiResult<axum::Json<Conversation>> {
    Ok(axum::Json(conversations::get(&state.services, &actor, &id).await?))
}

//! Conversations of labelers: which sets follow each other.

use axum::extract::State;
use serde::{Deserialize, Serialize};

use super::AppState;
use super::auth::Caller;
use super::contract::Paged;
use super::error::ApiResult;
use super::extract::{Path, Query};
use super::label;
use crate::domain::{Conversation, ConversationId, SetId};
use crate::service::{browse, conversations};

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConversationsQuery {
    /// Only the conversation that has this set as a turn.
    set_id: Option<SetId>,
    after: Option<String>,
    limit: Option<u32>,
}

/// A conversation with its first message.
#[derive(Debug, Serialize, schemars::JsonSchema)]
pub struct ListedConversation {
    #[serde(flatten)]
    pub conversation: Conversation,
    /// One line of the first prompt.
    pub prompt: Option<String>,
}

pub async fn list(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Query(query): Query<ConversationsQuery>,
) -> ApiResult<axum::Json<Paged<ListedConversation>>> {
    let page = label::page(query.after, query.limit)?;
    let found = conversations::list(&state.services, &actor, query.set_id.as_ref(), page).await?;
    let first = |c: &Conversation| c.turns.first().map(|turn| turn.set_id.clone());
    let mut prompts = browse::previews(&state.services, &found.iter().filter_map(first).collect::<Vec<_>>()).await?;
    let listed = |conversation: Conversation| ListedConversation {
        prompt: first(&conversation).and_then(|set| prompts.remove(&set)),
        conversation,
    };
    let listed = found.into_iter().map(listed).collect();
    Ok(axum::Json(Paged::new(listed, |c: &ListedConversation| c.conversation.id.as_str())))
}

pub async fn get(
    State(state): State<AppState>,
    Caller(actor): Caller,
    Path(id): Path<ConversationId>,
) -> ApiResult<axum::Json<Conversation>> {
    Ok(axum::Json(conversations::get(&state.services, &actor, &id).await?))
}

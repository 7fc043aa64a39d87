//! Conversations: a labeler ranks the answers to a message of theirs, and goes on with the better one.

use std::sync::Arc;

use super::label::{ASKED, VERSIONS};
use super::{Result, ServiceError, Services, bad_input, not_found_as, prompts};
use crate::domain::*;
use crate::prompt::answer::without_thoughts;
use crate::service::people::Actor;
use crate::store::{Page, SetContent};

/// Most turns of a conversation. Twice as many messages nest in an Open-Assistant tree, which importers can still read.
pub const MAX_TURNS: usize = 24;

/// The labeler's next message, behind one of the answers that they have ranked.
pub struct NextMessage {
    /// The set of the answers.
    pub set_id: SetId,
    /// The answer to go on with.
    pub completion_id: CompletionId,
    pub content: String,
}

/// The set that a new set continues, and the answer that it goes on with.
#[derive(Clone, Debug)]
pub struct Continued {
    pub set_id: SetId,
    pub completion_id: CompletionId,
}

/// Stores the prompt of the next turn: the conversation so far, the chosen answer without its reasoning, and the message.
/// It is in the project, and on the side of the split, of the conversation's first prompt.
///
/// # Errors
/// `Forbidden` for a set that the labeler did not ask for; `Conflict` for one that they have not judged, that is continued
/// already, or that is the last turn there may be; `BadInput` for an answer that is not among the best, and for an empty
/// or over-long message.
pub async fn next_prompt(services: &Arc<Services>, actor: &Actor, next: NextMessage) -> Result<(Prompt, Continued)> {
    let NextMessage { set_id, completion_id, content } = next;
    if content.trim().is_empty() {
        return Err(bad_input("content", "must have text"));
    }
    let found = services.store.sets().content(&set_id).await.map_err(|e| not_found_as(e, "set_id"))?;
    let SetContent { set, prompt, completions } = found;
    let maker = services.store.sets().maker(&set_id).await?;
    if ![ASKED, VERSIONS].contains(&set.selection_policy.as_str()) || maker.as_ref() != Some(&actor.labeler_id) {
        return Err(ServiceError::Forbidden(format!(
            "set {set_id} is not of a question of yours; ask one first: POST /v1/label/ask"
        )));
    }
    let judgments = services.store.judgments().of_set(&set_id).await?;
    let own = judgments.into_iter().find(|j| j.labeler_id == actor.labeler_id && j.outcome != Outcome::Skip);
    let own = own.ok_or_else(|| {
        ServiceError::Conflict(format!("set {set_id} is not judged yet; judge its answers, then continue it"))
    })?;
    check_answer(&own, &set, &completion_id)?;
    if let Some(conversation) = services.store.conversations().of_set(&set_id).await? {
        check_last(&conversation, &set_id)?;
    }
    let answer = completions.iter().find(|c| c.id == completion_id).map(|c| without_thoughts(&c.text));
    let mut messages = prompt.messages;
    messages.push(Message { role: "assistant".into(), content: answer.unwrap_or_default().to_owned() });
    messages.push(Message { role: "user".into(), content });
    let prompt =
        prompts::add_on_side(services, &actor.labeler_id, &prompt.project_id, messages, "page", prompt.split).await?;
    Ok((prompt, Continued { set_id, completion_id }))
}

/// A ranking is continued with one of its best answers; after another outcome the labeler chooses.
fn check_answer(judgment: &Judgment, set: &ComparisonSet, chosen: &CompletionId) -> Result<()> {
    if !set.completion_ids.contains(chosen) {
        return Err(bad_input("completion_id", format!("{chosen} is not in set {}", set.id)));
    }
    let tier = |id: &CompletionId| judgment.items.iter().find(|item| item.completion_id == *id).map(|item| item.tier);
    let best = judgment.items.iter().map(|item| item.tier).min();
    if judgment.outcome != Outcome::Ranked || tier(chosen) == best {
        return Ok(());
    }
    let best: Vec<_> = set.completion_ids.iter().filter(|id| tier(id) == best).map(CompletionId::as_str).collect();
    let message =
        format!("{chosen} is ranked below the best; go on with {}, or revise the judgment", best.join(" or "));
    Err(bad_input("completion_id", message))
}

fn check_last(conversation: &Conversation, set_id: &SetId) -> Result<()> {
    let Some(last) = conversation.turns.last() else { return Ok(()) };
    if last.set_id != *set_id {
        return Err(ServiceError::Conflict(format!(
            "the conversation {} goes on after set {set_id}; its last set is {}: GET /v1/label/next?set_id={}",
            conversation.id, last.set_id, last.set_id
        )));
    }
    let turns = conversation.turns.len();
    if turns >= MAX_TURNS {
        return Err(ServiceError::Conflict(format!(
            "the conversation has {turns} turns, and may have at most {MAX_TURNS}; ask a new question to begin another"
        )));
    }
    Ok(())
}

/// The caller's conversations, newest first; with `set_id` only the one that has this set as a turn.
///
/// # Errors
/// What the store says.
pub async fn list(services: &Services, actor: &Actor, set_id: Option<&SetId>, page: Page) -> Result<Vec<Conversation>> {
    let conversations = services.store.conversations();
    match set_id {
        None => Ok(conversations.list(&actor.labeler_id, page).await?),
        Some(id) => {
            let found = conversations.of_set(id).await?;
            Ok(found.into_iter().filter(|c| c.labeler_id == actor.labeler_id).collect())
        }
    }
}

/// One conversation.
///
/// # Errors
/// `NotFound`; `Forbidden` for labelers who name a conversation of somebody else.
pub async fn get(services: &Services, actor: &Actor, id: &ConversationId) -> Result<Conversation> {
    let found = services.store.conversations().get(id).await?;
    if found.labeler_id != actor.labeler_id && actor.role < Role::Reviewer {
        return Err(ServiceError::Forbidden("this conversation is another labeler's".into()));
    }
    Ok(found)
}

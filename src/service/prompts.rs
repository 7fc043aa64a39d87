//! Prompts: how a conversation or a raw text becomes a stored prompt, and which side of the split it is on.

use std::sync::Arc;

use super::{Result, Services, bad_input, uncancelled};
use crate::data::{PromptInput, content_hash, split_of};
use crate::domain::{LabelerId, Message, ProjectId, Prompt, PromptId, Split, hash};

/// Share of held-out prompts; a hash of the content decides.
const HELDOUT: f64 = 0.1;

/// A raw text prompt in the shape all prompts are stored in.
pub fn raw_text(text: impl Into<String>) -> Vec<Message> {
    PromptInput::Text(text.into()).into_messages()
}

/// A new prompt record (the store returns the known one instead when the content is known). The same text in two
/// projects is two prompts, on the same side of the split.
pub fn prompt_record(project: &ProjectId, messages: Vec<Message>, source: &str, now: i64) -> Prompt {
    let of_messages = content_hash(&messages);
    Prompt {
        id: PromptId::new(),
        project_id: project.clone(),
        split: split_of(&of_messages, HELDOUT),
        // Prompts of the first project keep the hash that they had before there were others.
        content_hash: match project.is_first() {
            true => of_messages,
            false => hash::of_bytes(format!("{project}\n{of_messages}").as_bytes()),
        },
        messages,
        lang: None,
        source: source.to_owned(),
        tags: Vec::new(),
        answer: None,
        created: now,
    }
}

/// Refuses conversations that no template can render. `field` is the name of the request's field.
pub fn check_messages(messages: &[Message], field: &str, max_bytes: usize) -> Result<()> {
    if messages.is_empty() {
        return Err(bad_input(field, "must have at least one message"));
    }
    if messages.len() > 1024 {
        return Err(bad_input(field, "must have at most 1024 messages"));
    }
    for (i, message) in messages.iter().enumerate() {
        if !matches!(message.role.as_str(), "system" | "user" | "assistant") {
            return Err(bad_input(format!("{field}[{i}].role"), "must be system, user or assistant"));
        }
    }
    check_size(messages.iter().map(|m| m.content.len()).sum(), field, max_bytes)
}

/// Refuses prompts beyond the byte limit before anything is computed.
pub fn check_size(bytes: usize, field: &str, max_bytes: usize) -> Result<()> {
    if bytes > max_bytes {
        return Err(bad_input(field, format!("is {bytes} bytes long; at most {max_bytes} are taken")));
    }
    Ok(())
}

/// Stores a prompt given through the API or a page.
///
/// # Errors
/// `BadInput` for empty or over-long conversations.
pub async fn add(
    services: &Arc<Services>,
    by: &LabelerId,
    project: &ProjectId,
    messages: Vec<Message>,
    source: &str,
    lang: Option<String>,
    tags: Vec<String>,
) -> Result<Prompt> {
    check_messages(&messages, "messages", services.config.limits.prompt_bytes)?;
    if tags.len() > 32 || tags.iter().any(|t| t.is_empty() || t.len() > 64) {
        return Err(bad_input("tags", "at most 32 tags of 1 to 64 bytes"));
    }
    if lang.as_ref().is_some_and(|l| l.len() > 35) {
        return Err(bad_input("lang", "must be a language tag"));
    }
    let mut prompt = prompt_record(project, messages, source, services.now());
    prompt.lang = lang;
    prompt.tags = tags;
    submit(services, by, prompt).await
}

/// Stores a prompt on a side of the split that is known, whatever its hash. A prompt that is stored already stays where it
/// is.
///
/// # Errors
/// As [`add`].
pub async fn add_on_side(
    services: &Arc<Services>,
    by: &LabelerId,
    project: &ProjectId,
    messages: Vec<Message>,
    source: &str,
    split: Split,
) -> Result<Prompt> {
    check_messages(&messages, "messages", services.config.limits.prompt_bytes)?;
    submit(services, by, Prompt { split, ..prompt_record(project, messages, source, services.now()) }).await
}

async fn submit(services: &Arc<Services>, by: &LabelerId, prompt: Prompt) -> Result<Prompt> {
    let services = services.clone();
    let by = by.clone();
    uncancelled(async move { Ok(services.store.prompts().submit(prompt, &by).await?) }).await
}

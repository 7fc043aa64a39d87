//! Prompts and completions as answers show them to people.

use schemars::JsonSchema;
use serde::Serialize;

use super::markdown;
use crate::domain::{Completion, CompletionId, Message, Prompt, PromptId};
use crate::service::label::ExpectedTier;

/// A message with its safe HTML.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ShownMessage {
    pub role: String,
    pub content: String,
    pub html: String,
}

/// A prompt as people read it.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ShownPrompt {
    pub id: PromptId,
    pub messages: Vec<ShownMessage>,
}

impl From<&Prompt> for ShownPrompt {
    fn from(prompt: &Prompt) -> Self {
        let shown = |m: &Message| ShownMessage {
            role: m.role.clone(),
            content: m.content.clone(),
            html: markdown::render(&m.content),
        };
        Self { id: prompt.id.clone(), messages: prompt.messages.iter().map(shown).collect() }
    }
}

/// A prompt as labelers read it.
#[derive(Debug, Serialize, JsonSchema)]
pub struct LabelerPrompt {
    #[serde(flatten)]
    pub prompt: ShownPrompt,
    pub lang: Option<String>,
}

impl From<&Prompt> for LabelerPrompt {
    fn from(prompt: &Prompt) -> Self {
        Self { prompt: prompt.into(), lang: prompt.lang.clone() }
    }
}

/// A completion without its author.
#[derive(Debug, Serialize, JsonSchema)]
pub struct BlindCompletion {
    pub id: CompletionId,
    pub text: String,
    pub html: String,
    /// Ended by the length limit.
    pub cut_off: bool,
    /// Number of tokens at which the length limit ended it; null where it did not, or where tokens are unknown.
    pub cut_off_at: Option<usize>,
}

impl From<&Completion> for BlindCompletion {
    fn from(completion: &Completion) -> Self {
        let cut_off = completion.finish_reason.as_deref() == Some("length");
        let tokens = completion.token_ids.len();
        Self {
            id: completion.id.clone(),
            text: completion.text.clone(),
            html: markdown::render(&completion.text),
            cut_off,
            cut_off_at: (cut_off && tokens > 0).then_some(tokens),
        }
    }
}

/// The completions, each without its author.
pub fn blind(completions: &[Completion]) -> Vec<BlindCompletion> {
    completions.iter().map(BlindCompletion::from).collect()
}

/// Who wrote a completion.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Author {
    pub completion_id: CompletionId,
    /// Name of the model version; `human`, `edit` or `import` for texts that no model wrote.
    pub model: String,
}

/// Tiers as answers list them.
pub fn tiers(tiers: Vec<(CompletionId, i64)>) -> Vec<ExpectedTier> {
    tiers.into_iter().map(|(completion_id, tier)| ExpectedTier { completion_id, tier }).collect()
}

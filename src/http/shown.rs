//! Prompts and completions in responses for people.

use schemars::JsonSchema;
use serde::Serialize;

use super::error::ApiResult;
use super::markdown;
use crate::domain::{Completion, CompletionId, Prompt, PromptId};
use crate::prompt::answer::without_thoughts;
use crate::service::Services;
use crate::service::judge::ExpectedTier;

/// A message with its safe HTML.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ShownMessage {
    pub role: String,
    pub content: String,
    pub html: String,
}

/// A prompt with rendered messages.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ShownPrompt {
    pub id: PromptId,
    pub messages: Vec<ShownMessage>,
}

impl ShownPrompt {
    /// The prompt with the HTML of its messages.
    ///
    /// # Errors
    /// 429 when too many texts wait to be rendered.
    pub async fn new(prompt: &Prompt) -> ApiResult<Self> {
        let texts: Vec<&str> = prompt.messages.iter().map(|m| m.content.as_str()).collect();
        let html = markdown::render_all(&texts).await?;
        let shown = prompt.messages.iter().zip(html).map(|(m, html)| ShownMessage {
            role: m.role.clone(),
            content: m.content.clone(),
            html: html.to_string(),
        });
        Ok(Self { id: prompt.id.clone(), messages: shown.collect() })
    }
}

/// A prompt in the labelers' form.
#[derive(Debug, Serialize, JsonSchema)]
pub struct LabelerPrompt {
    #[serde(flatten)]
    pub prompt: ShownPrompt,
    pub lang: Option<String>,
}

impl LabelerPrompt {
    /// # Errors
    /// As [`ShownPrompt::new`].
    pub async fn new(prompt: &Prompt) -> ApiResult<Self> {
        Ok(Self { prompt: ShownPrompt::new(prompt).await?, lang: prompt.lang.clone() })
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
    /// Number of tokens at which the length limit ended it; null if it did not, or if the number is not known.
    pub cut_off_at: Option<usize>,
}

impl BlindCompletion {
    fn new(completion: &Completion, text: &str, html: &str) -> Self {
        let cut_off = completion.finish_reason.as_deref() == Some("length");
        let tokens = completion.token_ids.len();
        Self {
            id: completion.id.clone(),
            text: text.to_owned(),
            html: html.to_owned(),
            cut_off,
            cut_off_at: (cut_off && tokens > 0).then_some(tokens),
        }
    }
}

/// The completions without their authors, and without thoughts if `labeling.show_reasoning` is off.
///
/// # Errors
/// 429 when too many texts wait to be rendered.
pub async fn blind(services: &Services, completions: &[Completion]) -> ApiResult<Vec<BlindCompletion>> {
    let whole = services.live().config.labeling.show_reasoning;
    let mut texts: Vec<&str> = completions.iter().map(|c| c.text.as_str()).collect();
    if !whole {
        texts.iter_mut().for_each(|text| *text = without_thoughts(text));
    }
    let html = markdown::render_all(&texts).await?;
    let all = completions.iter().zip(&texts).zip(html);
    Ok(all.map(|((c, text), html)| BlindCompletion::new(c, text, &html)).collect())
}

/// The author of a completion.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Author {
    pub completion_id: CompletionId,
    /// Name of the model version; `human`, `edit` or `import` for texts that no model wrote.
    pub model: String,
}

/// Tiers in the form of responses.
pub fn tiers(tiers: Vec<(CompletionId, i64)>) -> Vec<ExpectedTier> {
    tiers.into_iter().map(|(completion_id, tier)| ExpectedTier { completion_id, tier }).collect()
}

//! Prompts and completions in responses for people.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::error::ApiResult;
use super::markdown;
use crate::domain::{Completion, CompletionId, Prompt, PromptId};
use crate::prompt::Reasoning;
use crate::prompt::answer::{OfferedTool, StoredPart, offers_tools, split_answer, split_message};
use crate::service::Services;
use crate::service::judge::ExpectedTier;

/// Texts with more parts are shown in one piece.
const MAX_PARTS: usize = 64;

/// A message with its safe HTML.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ShownMessage {
    pub role: String,
    pub content: String,
    pub html: String,
    /// The parts of a message that is more than text, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<ShownPart>,
}

/// A part of a message or completion.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ShownPart {
    Text {
        text: String,
        html: String,
    },
    /// The reasoning before an answer.
    Reasoning {
        text: String,
        html: String,
    },
    ToolCall {
        name: String,
        arguments: Vec<ShownArgument>,
    },
    ToolResult {
        text: String,
    },
    /// The tools that the model may call.
    Tools {
        tools: Vec<ShownTool>,
    },
}

/// An argument of a tool call.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ShownArgument {
    /// Empty if the arguments are not an object.
    pub name: String,
    /// A string as it is; other values as JSON.
    pub value: String,
}

/// A tool that the model may call.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ShownTool {
    pub name: String,
    pub description: String,
}

fn arguments(json: &str) -> Vec<ShownArgument> {
    let value_of = |value: Value| match value {
        Value::String(text) => text,
        other => other.to_string(),
    };
    match serde_json::from_str(json) {
        Ok(Value::Object(fields)) => {
            fields.into_iter().map(|(name, value)| ShownArgument { name, value: value_of(value) }).collect()
        }
        _ => vec![ShownArgument { name: String::new(), value: json.to_owned() }],
    }
}

/// A text, and its parts if it is more than text.
struct SplitText<'t> {
    text: &'t str,
    parts: Vec<StoredPart>,
}

impl<'t> SplitText<'t> {
    fn new(text: &'t str, parts: Vec<StoredPart>) -> Self {
        let plain = matches!(parts[..], [] | [StoredPart::Text(_)]) || parts.len() > MAX_PARTS;
        Self { text, parts: if plain { Vec::new() } else { parts } }
    }

    /// The texts to be rendered: the whole, and those of the parts.
    fn markdown(&self) -> impl Iterator<Item = &str> {
        fn of(part: &StoredPart) -> Option<&str> {
            match part {
                StoredPart::Text(text) | StoredPart::Reasoning(text) => Some(text),
                _ => None,
            }
        }
        std::iter::once(self.text).chain(self.parts.iter().filter_map(of))
    }
}

/// The HTML of each text and its parts.
///
/// # Errors
/// 429 when too many texts wait to be rendered.
async fn render(texts: Vec<SplitText<'_>>) -> ApiResult<Vec<(String, Vec<ShownPart>)>> {
    let markdown: Vec<&str> = texts.iter().flat_map(SplitText::markdown).collect();
    let mut html = markdown::render_all(&markdown).await?.into_iter().map(|html| html.to_string());
    let mut next = || html.next().unwrap_or_default();
    let mut shown = Vec::with_capacity(texts.len());
    for SplitText { parts, .. } in &texts {
        let whole = next();
        let part = |part: &StoredPart| match part.clone() {
            StoredPart::Text(text) => ShownPart::Text { text, html: next() },
            StoredPart::Reasoning(text) => ShownPart::Reasoning { text, html: next() },
            StoredPart::Call { name, arguments: json } => ShownPart::ToolCall { name, arguments: arguments(&json) },
            StoredPart::Result(text) => ShownPart::ToolResult { text },
            StoredPart::Tools(tools) => {
                let shown = |tool: OfferedTool| ShownTool { name: tool.name, description: tool.description };
                ShownPart::Tools { tools: tools.into_iter().map(shown).collect() }
            }
        };
        shown.push((whole, parts.iter().map(part).collect()));
    }
    Ok(shown)
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
        let offered = offers_tools(&prompt.messages);
        let split = prompt.messages.iter().map(|m| SplitText::new(&m.content, split_message(m, offered)));
        let rendered = render(split.collect()).await?;
        let shown = prompt.messages.iter().zip(rendered).map(|(m, (html, parts))| ShownMessage {
            role: m.role.clone(),
            content: m.content.clone(),
            html,
            parts,
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
    /// Position in the stored text at which `text` begins, in Unicode scalar values: the length of hidden reasoning. The
    /// positions of a judgment's spans are in the stored text.
    pub text_start: usize,
    pub html: String,
    /// The parts of a completion that is more than text, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<ShownPart>,
    /// Ended by the length limit.
    pub cut_off: bool,
    /// Number of tokens at which the length limit ended it; null if it did not, or if the number is not known.
    pub cut_off_at: Option<usize>,
}

impl BlindCompletion {
    fn new(completion: &Completion, text: &str, html: String, parts: Vec<ShownPart>) -> Self {
        let cut_off = completion.finish_reason.as_deref() == Some("length");
        let tokens = completion.token_ids.len();
        Self {
            id: completion.id.clone(),
            text: text.to_owned(),
            // What is shown is the end of the stored text.
            text_start: completion.text.chars().count().saturating_sub(text.chars().count()),
            html,
            parts,
            cut_off,
            cut_off_at: (cut_off && tokens > 0).then_some(tokens),
        }
    }
}

/// The completions of a prompt without their authors, and without reasoning if `labeling.show_reasoning` is off.
///
/// # Errors
/// 429 when too many texts wait to be rendered.
pub async fn blind(
    services: &Services,
    prompt: &Prompt,
    completions: &[Completion],
) -> ApiResult<Vec<BlindCompletion>> {
    let reasoning = if services.live().config.labeling.show_reasoning { Reasoning::Keep } else { Reasoning::Remove };
    let offered = offers_tools(&prompt.messages);
    let texts: Vec<&str> = completions.iter().map(|c| reasoning.part_of(&c.text)).collect();
    let split = texts.iter().map(|text| SplitText::new(text, split_answer(text, offered)));
    let rendered = render(split.collect()).await?;
    let all = completions.iter().zip(&texts).zip(rendered);
    Ok(all.map(|((c, text), (html, parts))| BlindCompletion::new(c, text, html, parts)).collect())
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

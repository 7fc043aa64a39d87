//! Chat requests and their messages, in OpenAI's form.

use serde_json::Value;

use super::params;
use crate::domain::Message;
use crate::http::error::{ApiError, ApiResult};
use crate::service::prompts::check_messages;

params::generation_request!(
    /// A chat request. Unknown fields are refused.
    ChatRequest {
        /// The conversation so far. Required.
        messages: Vec<ChatMessage>,
        /// Most tokens to generate; by default the rest of the context, limited by the server.
        max_tokens: Option<u64>,
        /// The newer name of `max_tokens`.
        max_completion_tokens: Option<u64>,
        /// Report log-probs.
        logprobs: Option<bool>,
        /// 0 to 20 alternatives per token; with `logprobs`.
        top_logprobs: Option<u64>,
        /// Add the begin token that the model expects before the rendered conversation. Default false, because
        /// templates contain their own.
        add_special_tokens: Option<bool>,
        /// Functions that the model may call: `{"type": "function", "function": {name, description, parameters,
        /// strict}}`.
        tools: Option<Value>,
        /// `"none"`, `"auto"` (the default), `"required"`, or `{"type": "function", "function": {"name"}}`. The last two
        /// are enforced, with the schemas of the arguments.
        tool_choice: Option<Value>,
        /// Whether an enforced answer may contain several calls. Default true.
        parallel_tool_calls: Option<bool>,
        /// Variables for the chat template, such as `{"enable_thinking": false}`. A variable that the template does
        /// not read is refused.
        chat_template_kwargs: Option<Value>,
        /// `none`, `minimal`, `low`, `medium`, `high` or `xhigh`, for templates that read `reasoning_effort` or
        /// `enable_thinking`.
        reasoning_effort: Option<String>,
        /// Not supported, except empty.
        functions: Option<Value>,
        /// Not supported, except `"none"` and `"auto"`.
        function_call: Option<Value>,
        /// Not supported.
        audio: Option<Value>,
        /// Not supported, except `["text"]`.
        modalities: Option<Value>,
        /// Not supported.
        prediction: Option<Value>,
        /// Not supported, except `"medium"`.
        verbosity: Option<Value>,
        /// Not supported.
        web_search_options: Option<Value>,
    }
);

/// A message: role and content, and the fields that servers and libraries add. Fields for features that this server
/// lacks are refused by name unless they are empty.
#[derive(Debug, Default, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant` or `tool`; `developer` counts as `system`.
    pub role: String,
    /// A text, or a list of parts of type text. The assistant's may be missing.
    #[schemars(with = "Option<Value>")]
    pub content: Option<Value>,
    /// Name of the participant. Accepted, without effect.
    pub name: Option<String>,
    /// The assistant's refusal; used as its content.
    pub refusal: Option<String>,
    /// The message as HTML, as this server shows it to people. Accepted, without effect.
    pub html: Option<String>,
    /// The parts of the message, as this server shows them to people. Accepted, without effect.
    #[schemars(with = "Option<Value>")]
    pub parts: Option<Value>,
    /// The assistant's calls of tools. Not supported for choices, except empty.
    #[schemars(with = "Option<Value>")]
    pub tool_calls: Option<Value>,
    /// The call that a message of the role `tool` answers. Not supported for choices.
    #[schemars(with = "Option<Value>")]
    pub tool_call_id: Option<Value>,
    /// Not supported.
    #[schemars(with = "Option<Value>")]
    pub function_call: Option<Value>,
    /// Not supported.
    #[schemars(with = "Option<Value>")]
    pub audio: Option<Value>,
    /// Not supported, except empty.
    #[schemars(with = "Option<Value>")]
    pub annotations: Option<Value>,
    /// The assistant's thoughts, for templates that use them. Elsewhere than in chat without effect; not supported for
    /// choices, except empty.
    #[schemars(with = "Option<Value>")]
    pub reasoning_content: Option<Value>,
    /// Another name of `reasoning_content`.
    #[schemars(with = "Option<Value>")]
    pub reasoning: Option<Value>,
}

impl ChatMessage {
    /// Text parts are joined; anything else is refused.
    pub fn into_message(self, field: &str) -> ApiResult<Message> {
        params::refuse_in(
            field,
            &[
                ("tool_calls", &self.tool_calls, &["[]"]),
                ("tool_call_id", &self.tool_call_id, &[]),
                ("function_call", &self.function_call, &[]),
                ("audio", &self.audio, &[]),
                ("annotations", &self.annotations, &["[]"]),
                ("reasoning_content", &self.reasoning_content, &["\"\""]),
                ("reasoning", &self.reasoning, &["\"\""]),
            ],
        )?;
        let role = if self.role == "developer" { "system".to_owned() } else { self.role };
        let assistant = role == "assistant";
        let refusal = self.refusal.filter(|r| !r.is_empty());
        if refusal.is_some() && !assistant {
            return Err(ApiError::bad(format!("{field}.refusal"), "is for messages of the assistant only"));
        }
        let content = match (self.content, refusal) {
            (None | Some(Value::Null), Some(refusal)) => refusal,
            (Some(_), Some(_)) => {
                return Err(ApiError::bad(format!("{field}.refusal"), "give content or refusal, not both"));
            }
            (None | Some(Value::Null), None) if assistant => String::new(),
            (Some(Value::String(text)), None) => text,
            (Some(Value::Array(parts)), None) => joined(&parts, field, assistant)?,
            _ => return Err(ApiError::bad(format!("{field}.content"), "must be text or a list of text parts")),
        };
        Ok(Message { role, content })
    }
}

pub(super) fn joined(parts: &[Value], field: &str, assistant: bool) -> ApiResult<String> {
    let mut joined = String::new();
    for (i, part) in parts.iter().enumerate() {
        let text = match part["type"].as_str() {
            Some("text") => part["text"].as_str(),
            Some("refusal") if assistant => part["refusal"].as_str(),
            _ => None,
        };
        joined.push_str(
            text.ok_or_else(|| {
                ApiError::bad(format!("{field}.content[{i}]"), "only parts of type text are supported")
            })?,
        );
    }
    Ok(joined)
}

/// Parses a list of messages without tools.
///
/// # Errors
/// 400 at the invalid field of a message, also at calls of tools and their results, or when the messages have more than
/// `max_bytes`.
pub fn messages(given: Vec<ChatMessage>, field: &str, max_bytes: usize) -> ApiResult<Vec<Message>> {
    let one = |(i, m): (usize, ChatMessage)| m.into_message(&format!("{field}[{i}]"));
    let messages: Vec<Message> = given.into_iter().enumerate().map(one).collect::<ApiResult<_>>()?;
    check_messages(&messages, field, max_bytes)?;
    Ok(messages)
}

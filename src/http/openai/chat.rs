//! `POST /v1/chat/completions`: takes a conversation and returns the assistant's next message, in OpenAI's form.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::begin::{self, StartedChat, Texts};
use super::logprobs::{self, ChatLogprobs};
use super::stream::{self, Format, Piece};
use super::written::{self, JsonText};
use super::{Generated, TokenUsage, params, usage};
use crate::domain::{CompletionId, Message};
use crate::engine::FinishReason;
use crate::http::AppState;
use crate::http::auth::MaybeCaller;
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::Json;
use crate::http::observe::RequestId;
use crate::prompt::answer::{Part, Whole};
use crate::service::complete::Running;
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
    /// `system`, `user`, `assistant` or, in chat, `tool`; `developer` counts as `system`.
    pub role: String,
    /// A text, or a list of parts of type text. The assistant's may be missing.
    #[schemars(with = "Option<Value>")]
    pub content: Option<Value>,
    /// Name of the participant. Accepted, without effect.
    pub name: Option<String>,
    /// The assistant's refusal; used as its content.
    pub refusal: Option<String>,
    /// As this server returns it beside the content. Accepted, without effect.
    pub html: Option<String>,
    /// The assistant's calls of tools. In chat; elsewhere not supported, except empty.
    #[schemars(with = "Option<Value>")]
    pub tool_calls: Option<Value>,
    /// The call that a message of the role `tool` answers. In chat; elsewhere not supported.
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
    /// The assistant's thoughts, for templates that use them. In chat; elsewhere not supported, except empty.
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

/// Reads a list of messages.
pub fn messages(given: Vec<ChatMessage>, field: &str, max_bytes: usize) -> ApiResult<Vec<Message>> {
    let one = |(i, m): (usize, ChatMessage)| m.into_message(&format!("{field}[{i}]"));
    let messages: Vec<Message> = given.into_iter().enumerate().map(one).collect::<ApiResult<_>>()?;
    check_messages(&messages, field, max_bytes)?;
    Ok(messages)
}

/// The assistant's next message, once for each sample.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ChatCompletion {
    pub id: String,
    #[schemars(extend("const" = "chat.completion"))]
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: i64,
    pub model: String,
    pub choices: Vec<ChatChoice>,
    pub instructd: Generated,
    pub usage: TokenUsage,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct ChatChoice {
    pub index: usize,
    pub message: AssistantMessage,
    pub finish_reason: Option<ChatFinish>,
    /// Only with `logprobs`.
    pub logprobs: Option<ChatLogprobs>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct AssistantMessage {
    #[schemars(extend("const" = "assistant"))]
    pub role: &'static str,
    /// Null when there are only calls of tools.
    pub content: Option<String>,
    /// Always null.
    pub refusal: Option<String>,
    /// The model's thoughts before its answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<CalledTool>,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ChatFinish {
    Stop,
    Length,
    Abort,
    /// The answer calls tools.
    ToolCalls,
}

impl ChatFinish {
    fn of(reason: FinishReason, called: bool) -> Self {
        match reason {
            FinishReason::Stop if called => Self::ToolCalls,
            FinishReason::Stop => Self::Stop,
            FinishReason::Length => Self::Length,
            FinishReason::Abort => Self::Abort,
        }
    }
}

/// One call of a tool.
#[derive(Debug, Serialize, JsonSchema)]
pub struct CalledTool {
    pub id: String,
    #[serde(rename = "type")]
    #[schemars(extend("const" = "function"))]
    pub kind: &'static str,
    pub function: CalledFunction,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct CalledFunction {
    pub name: String,
    /// The text of a JSON object; incomplete when the answer was cut off.
    pub arguments: String,
}

/// A piece of a streamed chat completion.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ChatChunk {
    pub id: String,
    #[schemars(extend("const" = "chat.completion.chunk"))]
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: i64,
    pub model: String,
    pub choices: Vec<ChatChunkChoice>,
    pub instructd: Generated,
    /// In the last chunk, with `stream_options.include_usage`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<TokenUsage>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct ChatChunkChoice {
    pub index: usize,
    pub delta: ChatDelta,
    /// Only with `logprobs`.
    pub logprobs: Option<ChatLogprobs>,
    pub finish_reason: Option<ChatFinish>,
}

/// The addition to the message.
#[derive(Debug, Default, Serialize, JsonSchema)]
pub struct ChatDelta {
    /// In the first chunk of a choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// More of the model's thoughts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<CallDelta>,
}

/// A call that begins, with its id and name, or more of its arguments.
#[derive(Debug, Serialize, JsonSchema)]
pub struct CallDelta {
    pub index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<&'static str>,
    pub function: FunctionDelta,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct FunctionDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub arguments: String,
}

struct Shape {
    id: String,
    created: i64,
    begun: StartedChat,
    logprobs: bool,
    include_usage: bool,
    texts: Texts,
}

pub async fn create(
    State(state): State<AppState>,
    RequestId(request_id): RequestId,
    caller: MaybeCaller,
    Json(request): Json<ChatRequest>,
) -> ApiResult<Response> {
    let services = &state.services;
    let (logprobs, include_usage) = (request.logprobs.unwrap_or(false), request.include_usage());
    let streamed = request.stream.unwrap_or(false);
    let (mut running, begun) = begin::begin(services, &request_id, caller.is_admin(), request).await?;
    let shape = Shape {
        id: format!("chatcmpl-{request_id}"),
        created: services.now() / 1_000_000,
        texts: begun.texts(running.samples.len()),
        begun,
        logprobs,
        include_usage,
    };
    if streamed {
        return Ok(stream::respond(vec![running], shape));
    }
    running.finish().await?;
    running.store(|_| true).await?;
    shape.answer(running).await
}

/// The id of a call, from the sample's id and the call's number.
pub fn call_id(running: &Running, sample: usize, index: usize) -> String {
    let own: String = running.samples[sample].id.as_str().chars().filter(char::is_ascii_alphanumeric).collect();
    format!("call_{}{index}", own.to_lowercase())
}

/// The answer as a message of the assistant.
fn message(running: &Running, sample: usize, whole: Whole) -> AssistantMessage {
    let silent = whole.content.is_empty() && !whole.calls.is_empty();
    let one = |(i, (name, arguments)): (usize, (String, String))| CalledTool {
        id: call_id(running, sample, i),
        kind: "function",
        function: CalledFunction { name, arguments },
    };
    AssistantMessage {
        role: "assistant",
        content: (!silent).then_some(whole.content),
        refusal: None,
        reasoning_content: (!whole.reasoning.is_empty()).then_some(whole.reasoning),
        tool_calls: whole.calls.into_iter().enumerate().map(one).collect(),
    }
}

impl Shape {
    fn generated(&self, completion_ids: Vec<Option<CompletionId>>) -> Generated {
        Generated { completion_ids, model_version: self.begun.model.version.id.clone(), seed: self.begun.seed }
    }

    fn piece(&self, choices: Vec<ChatChunkChoice>, ids: Vec<Option<CompletionId>>) -> ChatChunk {
        ChatChunk {
            id: self.id.clone(),
            object: "chat.completion.chunk",
            created: self.created,
            model: self.begun.model.version.name.clone(),
            choices,
            instructd: self.generated(ids),
            usage: None,
        }
    }

    async fn answer(&self, running: Running) -> ApiResult<Response> {
        let mut choices = JsonText::list();
        for (index, sample) in running.samples.iter().enumerate() {
            let whole = Whole::read(&sample.text, self.begun.reader());
            let finish_reason = sample.finish.map(|f| ChatFinish::of(f, !whole.calls.is_empty()));
            let choice = ChatChoice { index, message: message(&running, index, whole), finish_reason, logprobs: None };
            let mut reported = JsonText::null();
            if self.logprobs {
                let (engine, left) = (self.begun.engine.as_ref(), running.prompt_tail());
                let content = written::chat_logprobs(engine, running.version_id(), left, &sample.tokens).await?;
                reported = JsonText::object(&ChatLogprobs::default(), "content", content);
            }
            choices.push(JsonText::object(&choice, "logprobs", reported));
        }
        let ids = running.samples.iter().map(|s| (!s.text.is_empty()).then(|| s.id.clone())).collect();
        let answer = ChatCompletion {
            id: self.id.clone(),
            object: "chat.completion",
            created: self.created,
            model: self.begun.model.version.name.clone(),
            choices: Vec::new(),
            instructd: self.generated(ids),
            usage: usage(std::slice::from_ref(&running)),
        };
        Ok(JsonText::object(&answer, "choices", choices.end()).into_response())
    }

    fn chunk_of(
        &self,
        running: &Running,
        index: usize,
        delta: ChatDelta,
        logprobs: Option<ChatLogprobs>,
        finish_reason: Option<ChatFinish>,
    ) -> ChatChunk {
        let choice = ChatChunkChoice { index, delta, logprobs, finish_reason };
        self.piece(vec![choice], vec![Some(running.samples[index].id.clone())])
    }
}

/// The delta of a part of an answer in a streamed message.
fn delta(running: &Running, sample: usize, part: Part) -> ChatDelta {
    let call = |index, id, kind, name, arguments| {
        vec![CallDelta { index, id, kind, function: FunctionDelta { name, arguments } }]
    };
    match part {
        Part::Reasoning(text) => ChatDelta { reasoning_content: Some(text), ..ChatDelta::default() },
        Part::Content(text) => ChatDelta { content: Some(text), ..ChatDelta::default() },
        Part::Call { index, name } => {
            let id = Some(call_id(running, sample, index));
            let tool_calls = call(index, id, Some("function"), Some(name), String::new());
            ChatDelta { tool_calls, ..ChatDelta::default() }
        }
        Part::Arguments { index, text } => {
            ChatDelta { tool_calls: call(index, None, None, None, text), ..ChatDelta::default() }
        }
    }
}

impl Format for Shape {
    type Chunk = ChatChunk;

    async fn chunk(&self, running: &Running, _: usize, index: usize, piece: Piece<'_>) -> ApiResult<Vec<ChatChunk>> {
        let mut reported = None;
        let said = |text: &str| ChatDelta { content: Some(text.to_owned()), ..ChatDelta::default() };
        let parts = match piece {
            Piece::Start { .. } => {
                let start = ChatDelta { role: Some("assistant"), ..said("") };
                return Ok(vec![self.chunk_of(running, index, start, None, None)]);
            }
            Piece::Delta { text, tokens } => {
                if self.logprobs && !tokens.is_empty() {
                    let left = running.left_of(index, tokens.len());
                    let engine = self.begun.engine.as_ref();
                    let content = logprobs::chat(engine, running.version_id(), &left, tokens).await?;
                    reported = Some(ChatLogprobs { content, refusal: None });
                }
                self.texts.push(index, text)
            }
            Piece::Finish(_) => self.texts.finish(index),
        };
        let mut chunks: Vec<ChatChunk> = Vec::new();
        for part in parts {
            chunks.push(self.chunk_of(running, index, delta(running, index, part), reported.take(), None));
        }
        if reported.is_some() {
            // Tokens whose text is held back.
            chunks.push(self.chunk_of(running, index, said(""), reported, None));
        }
        if let Piece::Finish(reason) = piece {
            let finish = ChatFinish::of(reason, self.texts.called(index));
            chunks.push(self.chunk_of(running, index, ChatDelta::default(), None, Some(finish)));
        }
        Ok(chunks)
    }

    fn usage(&self, usage: TokenUsage) -> Option<ChatChunk> {
        self.include_usage.then(|| ChatChunk { usage: Some(usage), ..self.piece(Vec::new(), Vec::new()) })
    }
}

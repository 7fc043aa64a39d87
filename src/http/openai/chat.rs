//! `POST /v1/chat/completions`: takes a conversation and returns the assistant's next message, in OpenAI's form.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;

use super::begin::{self, StartedChat, Texts};
use super::chat_request::ChatRequest;
use super::logprobs::{self, ChatLogprobs};
use super::stream::{self, Format, Piece};
use super::written::{self, JsonText};
use super::{Generated, TokenUsage, usage};
use crate::domain::CompletionId;
use crate::engine::FinishReason;
use crate::http::AppState;
use crate::http::auth::MaybeCaller;
use crate::http::error::ApiResult;
use crate::http::extract::Json;
use crate::http::observe::RequestId;
use crate::prompt::answer::{Part, Whole};
use crate::service::complete::Running;

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
        let content = |text: &str| ChatDelta { content: Some(text.to_owned()), ..ChatDelta::default() };
        let parts = match piece {
            Piece::Start { .. } => {
                let start = ChatDelta { role: Some("assistant"), ..content("") };
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
            chunks.push(self.chunk_of(running, index, content(""), reported, None));
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

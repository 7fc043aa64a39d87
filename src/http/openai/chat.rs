//! `POST /v1/chat/completions`: a conversation in, the assistant's next message out, OpenAI's form.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::completions::check_bias;
use super::logprobs::{self, ChatLogprobs};
use super::stream::{self, Format, Piece};
use super::written::{self, Written};
use super::{Generated, TokenUsage, params, usage};
use crate::domain::{CompletionId, Message};
use crate::engine::{FinishReason, Generator, SamplingParams, ServedModel};
use crate::http::AppState;
use crate::http::auth::MaybeCaller;
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::Json;
use crate::http::observe::RequestId;
use crate::service::budget::Drawing;
use crate::service::complete::{self, PromptInput, Running, Start, StoredAs};
use crate::service::prompts::check_messages;

params::generation_request!(
    /// A chat request. Unknown fields are refused.
    ChatRequest {
        /// The conversation so far. Required.
        messages: Vec<ChatMessage>,
        /// Tokens to draw at most; by default what the context still holds, bounded by the server.
        max_tokens: Option<u64>,
        /// The newer name of `max_tokens`.
        max_completion_tokens: Option<u64>,
        /// Report log-probs.
        logprobs: Option<bool>,
        /// 0 to 20 alternatives per token; with `logprobs`.
        top_logprobs: Option<u64>,
        /// Put what the model expects before a text (a begin token) before the rendered conversation too. Default
        /// false: templates write their own.
        add_special_tokens: Option<bool>,
        /// Not supported, except `{"type": "text"}`.
        response_format: Option<Value>,
        /// Not supported, except empty.
        tools: Option<Value>,
        /// Not supported, except `"none"` and `"auto"`: there are no tools to choose from.
        tool_choice: Option<Value>,
        /// Without effect: there are no tools.
        parallel_tool_calls: Option<bool>,
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
        /// Not supported, except `"none"`.
        reasoning_effort: Option<Value>,
        /// Not supported, except `"medium"`.
        verbosity: Option<Value>,
        /// Not supported.
        web_search_options: Option<Value>,
    }
);

/// A message as clients keep it: role and content, and the fields that servers and libraries add. Those that ask
/// for something this server has not are refused by name unless they are empty.
#[derive(Debug, Default, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ChatMessage {
    /// `system`, `user` or `assistant`; `developer` counts as `system`.
    pub role: String,
    /// A text, or a list of parts of type text. The assistant's may be missing: it said nothing.
    #[schemars(with = "Option<Value>")]
    pub content: Option<Value>,
    /// Who speaks. Accepted, without effect.
    pub name: Option<String>,
    /// What the assistant said instead of an answer; stands for its content.
    pub refusal: Option<String>,
    /// As this server returns it beside the content. Accepted, without effect.
    pub html: Option<String>,
    /// Not supported, except empty.
    #[schemars(with = "Option<Value>")]
    pub tool_calls: Option<Value>,
    /// Not supported.
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
    /// Not supported, except empty.
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
            return Err(ApiError::bad(format!("{field}.refusal"), "only the assistant refuses"));
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

fn joined(parts: &[Value], field: &str, assistant: bool) -> ApiResult<String> {
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
    pub finish_reason: Option<FinishReason>,
    /// Only with `logprobs`.
    pub logprobs: Option<ChatLogprobs>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct AssistantMessage {
    #[schemars(extend("const" = "assistant"))]
    pub role: &'static str,
    pub content: String,
    /// Always null: nothing here refuses.
    pub refusal: Option<String>,
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
    pub finish_reason: Option<FinishReason>,
}

/// What is added to the message.
#[derive(Debug, Default, Serialize, JsonSchema)]
pub struct ChatDelta {
    /// In the first chunk of a choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}

struct Shape {
    id: String,
    created: i64,
    model: Arc<ServedModel>,
    engine: Arc<dyn Generator>,
    logprobs: bool,
    include_usage: bool,
    seed: u64,
}

pub async fn create(
    State(state): State<AppState>,
    RequestId(request_id): RequestId,
    caller: MaybeCaller,
    Json(mut request): Json<ChatRequest>,
) -> ApiResult<Response> {
    let services = &state.services;
    let limits = &services.config.limits;
    params::refuse(&[
        ("response_format", &request.response_format, &[r#"{"type":"text"}"#]),
        ("tools", &request.tools, &["[]"]),
        ("tool_choice", &request.tool_choice, &["\"none\"", "\"auto\""]),
        ("functions", &request.functions, &["[]"]),
        ("function_call", &request.function_call, &["\"none\"", "\"auto\""]),
        ("audio", &request.audio, &[]),
        ("modalities", &request.modalities, &[r#"["text"]"#]),
        ("prediction", &request.prediction, &[]),
        ("reasoning_effort", &request.reasoning_effort, &["\"none\""]),
        ("verbosity", &request.verbosity, &["\"medium\""]),
        ("web_search_options", &request.web_search_options, &[]),
    ])?;
    let sampling = request.sampling(limits)?;
    let messages = messages(std::mem::take(&mut request.messages), "messages", limits.prompt_bytes)?;
    let (max_field, max_tokens) = match (request.max_completion_tokens, request.max_tokens) {
        (Some(_), Some(_)) => {
            return Err(ApiError::bad("max_tokens", "give max_tokens or max_completion_tokens, not both"));
        }
        (Some(max), None) => ("max_completion_tokens", Some(params::count("max_completion_tokens", max)?)),
        (None, max) => ("max_tokens", max.map(|m| params::count("max_tokens", m)).transpose()?),
    };
    if max_tokens == Some(0) {
        return Err(ApiError::bad(max_field, "must be at least 1"));
    }
    let reported = request.logprobs.unwrap_or(false);
    if request.top_logprobs.is_some_and(|k| k > 0) && !reported {
        return Err(ApiError::bad("top_logprobs", "is for logprobs = true only"));
    }
    if request.top_logprobs.is_some_and(|k| k > params::MAX_LOGPROBS) {
        return Err(ApiError::bad("top_logprobs", format!("must be 0 to {}", params::MAX_LOGPROBS)));
    }
    let n = params::check_samples("n", 1, request.n.unwrap_or(1), limits)?;
    let seed = match &request.seed {
        Some(given) => params::seed(given)?,
        None => services.random.seed(),
    };
    // A soft prompt belongs to one base: such a request is no case for the canary.
    let name = request.model.as_deref().or(request.prompt_adapter.as_ref().map(|_| "active"));
    let model = complete::route(services, name, caller.is_admin()).await?;
    let engine = services.engine()?;
    check_bias(&sampling, &model)?;
    if reported {
        params::needs_ids("logprobs", &model)?;
    }
    let before = request.add_special_tokens.unwrap_or(false);
    if before {
        params::needs_ids("add_special_tokens", &model)?;
    }
    let top = request.top_logprobs.map_or(0, |k| k as usize);
    let drawing = |max_tokens: usize| Drawing {
        prompts: 1,
        drawn: n,
        returned: n,
        max_tokens: max_tokens.min(model.max_context),
        alternatives: reported.then_some(top),
    };
    // What was asked for is refused before the conversation is read.
    drawing(max_tokens.unwrap_or(0)).check(if top > 0 { "top_logprobs" } else { "logprobs" })?;
    let mut prompt = PromptInput::chat(engine.as_ref(), &model, &messages, max_tokens.is_some()).await?;
    if before && let PromptInput::Ids(ids) = &mut prompt {
        ids.splice(0..0, model.before_text.iter().copied());
    }
    let adapter = complete::resolve_adapter(services, request.prompt_adapter.as_deref(), &model).await?;
    let room = prompt.room(&model).saturating_sub(adapter.as_ref().map_or(0, |a| a.tokens)).max(1);
    let max_tokens = max_tokens.unwrap_or(room.min(services.live().config.limits.default_chat_tokens));
    if sampling.min_tokens > max_tokens {
        return Err(ApiError::bad("min_tokens", "is more than max_tokens"));
    }
    drawing(max_tokens).check(if top > 0 { "top_logprobs" } else { "logprobs" })?;
    let start = Start {
        request_id: request_id.clone(),
        model: model.clone(),
        prompt,
        stored_as: StoredAs::Request(messages, "chat"),
        n,
        params: SamplingParams { max_tokens, seed, logprobs: Some(top), ..sampling },
        prompt_logprobs: None,
        adapter,
    };
    let mut running = complete::start(services, start).await?;
    let shape = Shape {
        id: format!("chatcmpl-{request_id}"),
        created: services.now() / 1_000_000,
        model,
        engine,
        logprobs: reported,
        include_usage: request.include_usage(),
        seed,
    };
    if request.stream.unwrap_or(false) {
        return Ok(stream::respond(vec![running], shape));
    }
    running.finish().await?;
    running.store(|_| true).await?;
    shape.answer(running).await
}

impl Shape {
    fn generated(&self, completion_ids: Vec<Option<CompletionId>>) -> Generated {
        Generated { completion_ids, model_version: self.model.version.id.clone(), seed: self.seed }
    }

    fn piece(&self, choices: Vec<ChatChunkChoice>, ids: Vec<Option<CompletionId>>) -> ChatChunk {
        ChatChunk {
            id: self.id.clone(),
            object: "chat.completion.chunk",
            created: self.created,
            model: self.model.version.name.clone(),
            choices,
            instructd: self.generated(ids),
            usage: None,
        }
    }

    async fn answer(&self, running: Running) -> ApiResult<Response> {
        let mut choices = Written::list();
        for (index, sample) in running.samples.iter().enumerate() {
            let message = AssistantMessage { role: "assistant", content: sample.text.clone(), refusal: None };
            let choice = ChatChoice { index, message, finish_reason: sample.finish, logprobs: None };
            let mut reported = Written::null();
            if self.logprobs {
                let (engine, left) = (self.engine.as_ref(), running.prompt_tail());
                let content = written::chat_logprobs(engine, running.version_id(), left, &sample.tokens).await?;
                reported = Written::object(&ChatLogprobs::default(), "content", content);
            }
            choices.push(Written::object(&choice, "logprobs", reported));
        }
        let ids = running.samples.iter().map(|s| (!s.text.is_empty()).then(|| s.id.clone())).collect();
        let answer = ChatCompletion {
            id: self.id.clone(),
            object: "chat.completion",
            created: self.created,
            model: self.model.version.name.clone(),
            choices: Vec::new(),
            instructd: self.generated(ids),
            usage: usage(std::slice::from_ref(&running)),
        };
        Ok(Written::object(&answer, "choices", choices.end()).into_response())
    }
}

impl Format for Shape {
    type Chunk = ChatChunk;

    async fn chunk(&self, running: &Running, _: usize, index: usize, piece: Piece<'_>) -> ApiResult<Option<ChatChunk>> {
        let mut reported = None;
        let (delta, finish_reason) = match piece {
            Piece::Start { .. } => (ChatDelta { role: Some("assistant"), content: Some(String::new()) }, None),
            Piece::Delta { text, tokens } => {
                if self.logprobs && !tokens.is_empty() {
                    let left = running.left_of(index, tokens.len());
                    let content = logprobs::chat(self.engine.as_ref(), running.version_id(), &left, tokens).await?;
                    reported = Some(ChatLogprobs { content, refusal: None });
                } else if text.is_empty() {
                    return Ok(None);
                }
                (ChatDelta { role: None, content: Some(text.to_owned()) }, None)
            }
            Piece::Finish(reason) => (ChatDelta::default(), Some(reason)),
        };
        let choice = ChatChunkChoice { index, delta, logprobs: reported, finish_reason };
        let ids = vec![Some(running.samples[index].id.clone())];
        Ok(Some(self.piece(vec![choice], ids)))
    }

    fn usage(&self, usage: TokenUsage) -> Option<ChatChunk> {
        self.include_usage.then(|| ChatChunk { usage: Some(usage), ..self.piece(Vec::new(), Vec::new()) })
    }
}

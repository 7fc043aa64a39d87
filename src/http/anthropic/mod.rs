//! `POST /v1/messages` and `/v1/messages/count_tokens`: Anthropic's form of chat, on the same models.

mod answer;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

pub use self::answer::{AnthropicEvent, AnthropicMessage};
use self::answer::{Message, MessageEvents};
use super::AppState;
use super::auth::MaybeCaller;
use super::error::{ApiError, ApiResult};
use super::extract::Json;
use super::observe::RequestId;
use super::openai::begin;
use super::openai::blocks::{self, Blocks};
use super::openai::chat_request::ChatRequest;

/// Anthropic's request. Unknown fields are refused.
#[derive(Debug, Default, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MessagesRequest {
    /// Name or id of a model version; absent = the active policy.
    pub model: Option<String>,
    /// Turns of `user` and `assistant`, of a text or of blocks: `text`, `tool_use`, `tool_result`, `thinking`.
    #[schemars(with = "Vec<Value>")]
    pub messages: Option<Value>,
    /// A text, or a list of text blocks.
    #[schemars(with = "Option<Value>")]
    pub system: Option<Value>,
    /// Most tokens to generate. Required, except for counting.
    pub max_tokens: Option<u64>,
    /// The text ends before the first of them.
    pub stop_sequences: Option<Vec<String>>,
    /// Server-sent events instead of one response.
    pub stream: Option<bool>,
    /// 0 to 2; 0 is greedy. Default 1.
    pub temperature: Option<f64>,
    /// Over 0, to 1. Default 1.
    pub top_p: Option<f64>,
    /// Default 0 (off).
    pub top_k: Option<i64>,
    /// `{name, description, input_schema}` each. The server has no tools of its own.
    #[schemars(with = "Option<Vec<Value>>")]
    pub tools: Option<Value>,
    /// `{"type": "auto"}`, `any`, `none`, or `{"type": "tool", "name"}`; with `disable_parallel_tool_use`.
    #[schemars(with = "Option<Value>")]
    pub tool_choice: Option<Value>,
    /// `{"type": "enabled"}`, `adaptive` or `disabled`, for templates that read `enable_thinking`. The length of the
    /// thoughts has no limit of its own: `budget_tokens` is accepted, without effect.
    #[schemars(with = "Option<Value>")]
    pub thinking: Option<Value>,
    /// Accepted, without effect.
    #[schemars(with = "Option<Value>")]
    pub metadata: Option<Value>,
    /// Not supported, except `auto` and `standard_only`.
    pub service_tier: Option<String>,
}

/// (field of chat, field here): names in error messages of the chat code.
const NAMES: [(&str, &str); 4] = [
    ("stop", "stop_sequences"),
    ("tool_choice.function.name", "tool_choice.name"),
    ("reasoning_effort", "thinking"),
    ("chat_template_kwargs", "thinking"),
];

pub async fn create(
    State(state): State<AppState>,
    RequestId(request_id): RequestId,
    caller: MaybeCaller,
    Json(request): Json<MessagesRequest>,
) -> ApiResult<Response> {
    if request.max_tokens.is_none() {
        return Err(ApiError::bad("max_tokens", "is missing"));
    }
    let streamed = request.stream.unwrap_or(false);
    let stops = request.stop_sequences.clone().unwrap_or_default();
    let chat = chat(request)?;
    let begun = begin::begin(&state.services, &request_id, caller.is_admin(), chat).await;
    let (mut running, begun) = begun.map_err(|e| blocks::renamed(e, &NAMES))?;
    let message = Message { id: format!("msg_{request_id}"), stops };
    if streamed {
        return Ok(blocks::respond(running, &begun, MessageEvents::new(message)));
    }
    running.finish().await?;
    running.store(|_| true).await?;
    let (text, stop) = message.ended(&running.samples[0]);
    let read = Blocks::read(text, &begun);
    Ok(axum::Json(message.whole(&running, &read.all, stop)).into_response())
}

/// Number of tokens of a rendered conversation.
#[derive(Debug, serde::Serialize, schemars::JsonSchema)]
pub struct CountedTokens {
    pub input_tokens: usize,
}

/// Counts the tokens of a rendered conversation.
pub async fn count_tokens(
    State(state): State<AppState>,
    caller: MaybeCaller,
    Json(request): Json<MessagesRequest>,
) -> ApiResult<axum::Json<CountedTokens>> {
    let rendered = begin::rendered(&state.services, caller.is_admin(), chat(request)?).await;
    let (ids, _) = rendered.map_err(|e| blocks::renamed(e, &NAMES))?;
    Ok(axum::Json(CountedTokens { input_tokens: ids.len() }))
}

/// The request translated to a chat request.
fn chat(request: MessagesRequest) -> ApiResult<ChatRequest> {
    if !matches!(request.service_tier.as_deref(), None | Some("auto" | "standard_only")) {
        let error = ApiError::bad("service_tier", "service_tier is not supported, except auto and standard_only");
        return Err(error.code("unsupported_parameter"));
    }
    let mut messages: Vec<Value> = Vec::new();
    if let Some(system) = &request.system {
        let text = text_of(system, "system")?;
        if !text.is_empty() {
            messages.push(json!({"role": "system", "content": text}));
        }
    }
    let Some(Value::Array(given)) = &request.messages else {
        return Err(ApiError::bad("messages", "must be a list of messages"));
    };
    if given.len() > 1024 {
        return Err(ApiError::bad("messages", "must have at most 1024 messages"));
    }
    for (i, message) in given.iter().enumerate() {
        turn(message, &format!("messages[{i}]"), &mut messages)?;
    }
    if given.last().is_none_or(|last| last["role"] != "user") {
        return Err(ApiError::bad(
            "messages",
            "the last message must be of the user: continuing the assistant's message is not supported",
        ));
    }
    let (choice, parallel) = tool_choice(request.tool_choice.as_ref())?;
    let mut chat = json!({
        "messages": messages, "model": request.model, "max_tokens": request.max_tokens, "stop": request.stop_sequences,
        "temperature": request.temperature, "top_p": request.top_p, "top_k": request.top_k,
        "tools": tools(request.tools.as_ref())?, "tool_choice": choice, "parallel_tool_calls": parallel,
        "chat_template_kwargs": thinking(request.thinking.as_ref())?,
    });
    if request.stop_sequences.is_some_and(|stops| !stops.is_empty()) {
        // The stop sequence is kept in the text to determine which one ended it.
        chat["include_stop_str_in_output"] = true.into();
    }
    if let Some(map) = chat.as_object_mut() {
        map.retain(|_, value| !value.is_null());
    }
    serde_json::from_value(chat).map_err(|e| ApiError::bad("messages", e.to_string()))
}

/// The text of a text or of text blocks.
fn text_of(given: &Value, field: &str) -> ApiResult<String> {
    match given {
        Value::String(text) => Ok(text.clone()),
        Value::Array(blocks) => {
            let one = |(i, block): (usize, &Value)| match (block["type"].as_str(), block["text"].as_str()) {
                (Some("text"), Some(text)) => Ok(text.to_owned()),
                _ => Err(ApiError::bad(format!("{field}[{i}]"), "only blocks of type text are supported here")),
            };
            blocks.iter().enumerate().map(one).collect()
        }
        _ => Err(ApiError::bad(field, "must be a text or a list of blocks")),
    }
}

/// Translates one of Anthropic's messages to messages of chat.
fn turn(message: &Value, field: &str, messages: &mut Vec<Value>) -> ApiResult<()> {
    let role = message["role"].as_str().filter(|role| matches!(*role, "user" | "assistant"));
    let role = role.ok_or_else(|| ApiError::bad(format!("{field}.role"), "must be user or assistant"))?;
    let content = format!("{field}.content");
    let blocks = match &message["content"] {
        Value::Array(blocks) => blocks,
        given => {
            messages.push(json!({"role": role, "content": text_of(given, &content)?}));
            return Ok(());
        }
    };
    let (mut text, mut thoughts, mut calls) = (String::new(), String::new(), Vec::new());
    for (i, block) in blocks.iter().enumerate() {
        let here = format!("{content}[{i}]");
        let needs =
            |name: &str| block[name].as_str().ok_or_else(|| ApiError::bad(format!("{here}.{name}"), "must be a text"));
        match (block["type"].as_str(), role) {
            (Some("text"), _) => text.push_str(needs("text")?),
            (Some("thinking"), "assistant") => thoughts.push_str(needs("thinking")?),
            (Some("redacted_thinking"), "assistant") => {}
            (Some("tool_use"), "assistant") => {
                let function = json!({"name": needs("name")?, "arguments": block["input"]});
                calls.push(json!({"id": needs("id")?, "type": "function", "function": function}));
            }
            (Some("tool_result"), "user") => {
                let result =
                    if block["content"].is_null() { String::new() } else { text_of(&block["content"], &here)? };
                messages.push(json!({"role": "tool", "tool_call_id": needs("tool_use_id")?, "content": result}));
            }
            _ => {
                let message =
                    "must be of type text, or tool_result of the user, or tool_use or thinking of the assistant";
                return Err(ApiError::bad(here, message));
            }
        }
    }
    let only_results = role == "user" && text.is_empty() && !blocks.is_empty();
    if !only_results {
        let mut message = json!({"role": role, "content": text});
        if !calls.is_empty() {
            message["tool_calls"] = calls.into();
        }
        if !thoughts.is_empty() {
            message["reasoning_content"] = thoughts.into();
        }
        messages.push(message);
    }
    Ok(())
}

fn tools(given: Option<&Value>) -> ApiResult<Option<Value>> {
    let list = match given {
        None => return Ok(None),
        Some(Value::Array(list)) => list,
        Some(_) => return Err(ApiError::bad("tools", "must be a list of tools")),
    };
    let one = |(i, tool): (usize, &Value)| {
        let known = ["name", "description", "input_schema", "type", "cache_control", "strict"];
        let own = tool.as_object().and_then(|t| t.keys().find(|key| !known.contains(&key.as_str())));
        if !matches!(tool["type"].as_str(), None | Some("custom")) || own.is_some() || !tool.is_object() {
            return Err(ApiError::bad(format!("tools[{i}]"), "must be {name, description, input_schema}"));
        }
        let mut function = Map::new();
        for (from, to) in [("name", "name"), ("description", "description"), ("input_schema", "parameters")] {
            if let Some(value) = tool.get(from).filter(|v| !v.is_null()) {
                function.insert(to.into(), value.clone());
            }
        }
        Ok(json!({"type": "function", "function": function}))
    };
    list.iter().enumerate().map(one).collect::<ApiResult<Value>>().map(Some)
}

fn tool_choice(given: Option<&Value>) -> ApiResult<(Value, Option<bool>)> {
    let Some(given) = given else { return Ok((Value::Null, None)) };
    let parallel = match given.get("disable_parallel_tool_use") {
        None | Some(Value::Null) => None,
        Some(Value::Bool(one)) => Some(!one),
        Some(_) => return Err(ApiError::bad("tool_choice.disable_parallel_tool_use", "must be true or false")),
    };
    let choice = match given["type"].as_str() {
        Some("auto") => json!("auto"),
        Some("none") => json!("none"),
        Some("any") => json!("required"),
        Some("tool") => match given["name"].as_str() {
            Some(name) => json!({"type": "function", "function": {"name": name}}),
            None => return Err(ApiError::bad("tool_choice.name", "is missing")),
        },
        _ => return Err(ApiError::bad("tool_choice.type", "must be auto, any, tool or none")),
    };
    Ok((choice, parallel))
}

fn thinking(given: Option<&Value>) -> ApiResult<Option<Value>> {
    match given.map(|g| g["type"].as_str()) {
        None | Some(Some("adaptive")) => Ok(None),
        Some(Some("enabled")) => Ok(Some(json!({"enable_thinking": true}))),
        Some(Some("disabled")) => Ok(Some(json!({"enable_thinking": false}))),
        Some(_) => Err(ApiError::bad("thinking.type", "must be enabled, adaptive or disabled")),
    }
}

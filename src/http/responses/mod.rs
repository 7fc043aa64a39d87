//! `POST /v1/responses` and stored responses: OpenAI's newer form of chat, on the same models.

mod answer;
mod input;
mod types;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use serde_json::{Map, Value, json};

use self::answer::{MessageEvents, Shape};
pub use self::types::{ResponseEvent, ResponseObject};
use super::AppState;
use super::auth::MaybeCaller;
use super::error::{ApiError, ApiResult};
use super::extract::{Json, Path};
use super::observe::RequestId;
use super::openai::begin;
use super::openai::blocks::{self, Blocks};
use super::openai::chat_request::ChatRequest;
use super::openai::params;
use crate::domain::KeptResponse;
use crate::service::access::owner_of;
use crate::service::responses as kept;

/// OpenAI's request. Unknown fields are refused.
#[derive(Debug, Default, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ResponsesRequest {
    /// Name or id of a model version; absent = the active policy.
    pub model: Option<String>,
    /// A text, or a list of items: messages, `function_call`, `function_call_output`, `reasoning`. Required.
    #[schemars(with = "Value")]
    pub input: Option<Value>,
    /// A system message before the conversation; later requests do not inherit it.
    pub instructions: Option<String>,
    /// Continues the stored response with this id.
    pub previous_response_id: Option<String>,
    /// Store the response for 30 days, or as long as requests are stored, so that a later request can continue it.
    /// Default: whether the server stores completions.
    pub store: Option<bool>,
    /// Server-sent events instead of one answer.
    pub stream: Option<bool>,
    /// Most tokens to generate.
    pub max_output_tokens: Option<u64>,
    /// 0 to 2; 0 is greedy. Default 1.
    pub temperature: Option<f64>,
    /// Over 0, to 1. Default 1.
    pub top_p: Option<f64>,
    /// `{"type": "function", name, description, parameters, strict}` each. The server has no tools of its own.
    #[schemars(with = "Option<Vec<Value>>")]
    pub tools: Option<Value>,
    /// `"none"`, `"auto"`, `"required"` or `{"type": "function", "name"}`.
    #[schemars(with = "Option<Value>")]
    pub tool_choice: Option<Value>,
    /// Whether an enforced answer may contain several calls. Default true.
    pub parallel_tool_calls: Option<bool>,
    /// `{"format": {"type": "text" | "json_object" | "json_schema", name, schema, strict}}`.
    #[schemars(with = "Option<Value>")]
    pub text: Option<Value>,
    /// `{"effort"}`, for templates that use it.
    #[schemars(with = "Option<Value>")]
    pub reasoning: Option<Value>,
    /// Returned unchanged.
    #[schemars(with = "Option<Value>")]
    pub metadata: Option<Map<String, Value>>,
    /// Not supported, except `"disabled"`.
    #[schemars(with = "Option<Value>")]
    pub truncation: Option<Value>,
    /// Not supported, except empty and `["reasoning.encrypted_content"]`, which is without effect.
    #[schemars(with = "Option<Value>")]
    pub include: Option<Value>,
    /// Not supported, except `false`.
    #[schemars(with = "Option<Value>")]
    pub background: Option<Value>,
    /// Not supported, except 0.
    #[schemars(with = "Option<Value>")]
    pub top_logprobs: Option<Value>,
    /// Not supported, except `"auto"` and `"default"`.
    #[schemars(with = "Option<Value>")]
    pub service_tier: Option<Value>,
    /// Not supported, except `{"include_obfuscation": false}`.
    #[schemars(with = "Option<Value>")]
    pub stream_options: Option<Value>,
    /// Accepted, without effect.
    #[schemars(with = "Option<Value>")]
    pub user: Option<Value>,
    /// Accepted, without effect.
    #[schemars(with = "Option<Value>")]
    pub safety_identifier: Option<Value>,
    /// Accepted, without effect: prefixes are shared wherever they are equal.
    #[schemars(with = "Option<Value>")]
    pub prompt_cache_key: Option<Value>,
}

/// (field of chat, field here): names in error messages of the chat code.
const NAMES: [(&str, &str); 6] = [
    ("max_tokens", "max_output_tokens"),
    ("messages", "input"),
    ("response_format.json_schema", "text.format"),
    ("response_format", "text.format"),
    ("tool_choice.function.name", "tool_choice.name"),
    ("reasoning_effort", "reasoning.effort"),
];

fn owner(caller: &MaybeCaller) -> Option<String> {
    caller.0.as_ref().map(owner_of)
}

pub async fn create(
    State(state): State<AppState>,
    RequestId(request_id): RequestId,
    caller: MaybeCaller,
    Json(request): Json<ResponsesRequest>,
) -> ApiResult<Response> {
    let services = &state.services;
    params::refuse(&[
        ("truncation", &request.truncation, &["\"disabled\""]),
        ("include", &request.include, &["[]", r#"["reasoning.encrypted_content"]"#]),
        ("background", &request.background, &["false"]),
        ("top_logprobs", &request.top_logprobs, &["0"]),
        ("service_tier", &request.service_tier, &["\"auto\"", "\"default\""]),
        ("stream_options", &request.stream_options, &[r#"{"include_obfuscation":false}"#, "{}"]),
    ])?;
    let owner = owner(&caller);
    let mut messages = match &request.previous_response_id {
        None => Vec::new(),
        Some(id) => {
            let kept = kept::get(services, id, owner.as_deref()).await?;
            let missing = || {
                let error = ApiError::not_found(format!("the response {id} is not stored, or has expired"));
                ApiError { param: Some("previous_response_id".to_owned()), ..error }
            };
            kept.ok_or_else(missing)?.messages
        }
    };
    messages.extend(input::messages(request.input.as_ref())?);
    let chat = chat(&request, &messages)?;
    let streamed = request.stream.unwrap_or(false);
    let begun = begin::begin(services, &request_id, caller.is_admin(), chat).await;
    let (mut running, begun) = begun.map_err(|e| blocks::renamed(e, &NAMES))?;
    let keeps = request.store.unwrap_or(services.config.server.store_completions);
    let shape = Shape::new(&request, begun.model.version.name.clone(), keeps, services.now());
    let keeper = keeps.then(|| {
        let (services, created) = (services.clone(), services.now());
        move |id: &str, answer: Value, response: &ResponseObject| {
            messages.push(answer);
            let response = serde_json::to_value(response).unwrap_or_default();
            let kept = KeptResponse { id: id.to_owned(), owner, messages, response, created };
            let keeping = async move {
                // The response is returned in any case; a request that continues it gets an error.
                if let Err(error) = kept::keep(&services, kept).await {
                    tracing::warn!(%error, "a response cannot be stored");
                }
            };
            keeping.boxed()
        }
    });
    if streamed {
        return Ok(blocks::respond(running, &begun, MessageEvents::new(shape, keeper)));
    }
    running.finish().await?;
    running.store(|_| true).await?;
    let read = Blocks::read(&running.samples[0].text, &begun);
    let response = shape.ended(&running, &read.all);
    if let Some(keep) = keeper {
        keep(&shape.id, answer::as_message(&running, &read.all), &response).await;
    }
    Ok(axum::Json(response).into_response())
}

/// Returns a stored response.
pub async fn get(
    State(state): State<AppState>,
    caller: MaybeCaller,
    Path(id): Path<String>,
) -> ApiResult<axum::Json<Value>> {
    let kept = kept::get(&state.services, &id, owner(&caller).as_deref()).await?;
    let kept = kept.ok_or_else(|| ApiError::not_found(format!("the response {id} is not stored, or has expired")))?;
    Ok(axum::Json(kept.response))
}

/// A deleted response.
#[derive(Debug, serde::Serialize, schemars::JsonSchema)]
pub struct Forgotten {
    pub id: String,
    #[schemars(extend("const" = "response.deleted"))]
    pub object: &'static str,
    pub deleted: bool,
}

/// Deletes a stored response.
pub async fn delete(
    State(state): State<AppState>,
    caller: MaybeCaller,
    Path(id): Path<String>,
) -> ApiResult<axum::Json<Forgotten>> {
    if !kept::forget(&state.services, &id, owner(&caller).as_deref()).await? {
        return Err(ApiError::not_found(format!("the response {id} is not stored, or has expired")));
    }
    Ok(axum::Json(Forgotten { id, object: "response.deleted", deleted: true }))
}

/// The request translated to a chat request.
fn chat(request: &ResponsesRequest, messages: &[Value]) -> ApiResult<ChatRequest> {
    let instructions = request.instructions.iter().map(|text| json!({"role": "system", "content": text}));
    let all: Vec<Value> = instructions.chain(messages.iter().cloned()).collect();
    let mut chat = json!({
        "messages": all, "model": request.model, "max_tokens": request.max_output_tokens,
        "temperature": request.temperature, "top_p": request.top_p, "tools": tools(request.tools.as_ref())?,
        "tool_choice": tool_choice(request.tool_choice.as_ref()), "parallel_tool_calls": request.parallel_tool_calls,
        "response_format": format(request.text.as_ref())?, "reasoning_effort": effort(request.reasoning.as_ref())?,
    });
    if let Some(map) = chat.as_object_mut() {
        map.retain(|_, value| !value.is_null());
    }
    serde_json::from_value(chat).map_err(|e| ApiError::bad("input", e.to_string()))
}

fn tools(given: Option<&Value>) -> ApiResult<Option<Value>> {
    let list = match given {
        None => return Ok(None),
        Some(Value::Array(list)) => list,
        Some(_) => return Err(ApiError::bad("tools", "must be a list of tools")),
    };
    let one = |(i, tool): (usize, &Value)| {
        let Some(mut function) = tool.as_object().filter(|_| tool["type"] == "function").cloned() else {
            let error = ApiError::bad(format!("tools[{i}].type"), "only tools of type function are supported");
            return Err(error.code("unsupported_parameter"));
        };
        function.remove("type");
        Ok(json!({"type": "function", "function": function}))
    };
    list.iter().enumerate().map(one).collect::<ApiResult<Value>>().map(Some)
}

fn tool_choice(given: Option<&Value>) -> Option<Value> {
    let given = given?;
    match given["name"].as_str().filter(|_| given["type"] == "function") {
        Some(name) => Some(json!({"type": "function", "function": {"name": name}})),
        None => Some(given.clone()),
    }
}

fn format(text: Option<&Value>) -> ApiResult<Option<Value>> {
    let Some(text) = text else { return Ok(None) };
    let fields = text.as_object().ok_or_else(|| ApiError::bad("text", "must be an object with a format"))?;
    if let Some(other) = fields.keys().find(|key| !matches!(key.as_str(), "format" | "verbosity")) {
        return Err(ApiError::bad(format!("text.{other}"), format!("unknown field {other}")));
    }
    params::refuse_in("text", &[("verbosity", &fields.get("verbosity").cloned(), &["\"medium\""])])?;
    let Some(format) = fields.get("format").filter(|f| !f.is_null()) else { return Ok(None) };
    if format["type"] != "json_schema" {
        return Ok(Some(format.clone()));
    }
    let mut inner = format.as_object().cloned().unwrap_or_default();
    inner.remove("type");
    Ok(Some(json!({"type": "json_schema", "json_schema": inner})))
}

fn effort(reasoning: Option<&Value>) -> ApiResult<Option<Value>> {
    let Some(reasoning) = reasoning else { return Ok(None) };
    let fields = reasoning.as_object().ok_or_else(|| ApiError::bad("reasoning", "must be an object"))?;
    let field = |name: &str| fields.get(name).cloned();
    params::refuse_in(
        "reasoning",
        &[("summary", &field("summary"), &["\"auto\""]), ("generate_summary", &field("generate_summary"), &[])],
    )?;
    Ok(field("effort").filter(|e| !e.is_null()))
}

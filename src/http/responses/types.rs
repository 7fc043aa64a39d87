//! The objects of the Responses API.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::http::error::{ApiError, ErrorBody};
use crate::http::openai::Generated;

/// A response.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(rename = "Response")]
pub struct ResponseObject {
    pub id: String,
    #[schemars(extend("const" = "response"))]
    pub object: &'static str,
    /// Seconds since 1970.
    pub created_at: i64,
    pub status: Status,
    pub background: bool,
    pub error: Option<ResponseError>,
    /// Why it is incomplete.
    pub incomplete_details: Option<Incomplete>,
    pub instructions: Option<String>,
    pub max_output_tokens: Option<u64>,
    pub model: String,
    pub output: Vec<Item>,
    pub parallel_tool_calls: bool,
    pub previous_response_id: Option<String>,
    pub reasoning: Reasoned,
    pub service_tier: &'static str,
    /// Whether a later request can continue it.
    pub store: bool,
    pub temperature: f64,
    pub text: TextFormat,
    /// As in the request.
    pub tool_choice: Value,
    /// As in the request.
    pub tools: Vec<Value>,
    pub top_p: f64,
    pub truncation: &'static str,
    /// Null while it is incomplete.
    pub usage: Option<ResponseUsage>,
    pub user: Option<Value>,
    pub metadata: Map<String, Value>,
    /// Absent while it is incomplete.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instructd: Option<Generated>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "ResponseStatus")]
pub enum Status {
    InProgress,
    Completed,
    Incomplete,
    Failed,
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ResponseError {
    pub code: &'static str,
    pub message: String,
}

impl From<&ApiError> for ResponseError {
    fn from(error: &ApiError) -> Self {
        Self { code: "server_error", message: error.message.clone() }
    }
}

#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
#[schemars(rename = "ResponseIncomplete")]
pub struct Incomplete {
    #[schemars(extend("const" = "max_output_tokens"))]
    pub reason: &'static str,
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(rename = "ResponseReasoning")]
pub struct Reasoned {
    pub effort: Option<String>,
    /// Always null.
    pub summary: Option<String>,
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(rename = "ResponseText")]
pub struct TextFormat {
    /// As in the request.
    pub format: Value,
}

/// Token counts of a response.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
pub struct ResponseUsage {
    pub input_tokens: usize,
    pub input_tokens_details: InputDetails,
    pub output_tokens: usize,
    pub output_tokens_details: OutputDetails,
    pub total_tokens: usize,
}

#[derive(Clone, Copy, Debug, Default, Serialize, JsonSchema)]
#[schemars(rename = "ResponseInputDetails")]
pub struct InputDetails {
    /// Not counted here: always 0.
    pub cached_tokens: usize,
}

#[derive(Clone, Copy, Debug, Default, Serialize, JsonSchema)]
#[schemars(rename = "ResponseOutputDetails")]
pub struct OutputDetails {
    /// Not counted here: always 0.
    pub reasoning_tokens: usize,
}

impl ResponseUsage {
    pub fn new(input: usize, output: usize) -> Self {
        Self {
            input_tokens: input,
            input_tokens_details: InputDetails::default(),
            output_tokens: output,
            output_tokens_details: OutputDetails::default(),
            total_tokens: input + output,
        }
    }
}

/// One output item of a response.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schemars(rename = "ResponseItem")]
pub enum Item {
    Reasoning {
        id: String,
        /// Always empty.
        summary: Vec<Value>,
        content: Vec<ReasoningText>,
        status: Status,
    },
    Message {
        id: String,
        #[schemars(extend("const" = "assistant"))]
        role: &'static str,
        status: Status,
        content: Vec<OutputText>,
    },
    FunctionCall {
        id: String,
        call_id: String,
        name: String,
        /// The text of a JSON object; incomplete when the answer was cut off.
        arguments: String,
        status: Status,
    },
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ReasoningText {
    #[serde(rename = "type")]
    #[schemars(extend("const" = "reasoning_text"))]
    pub kind: &'static str,
    pub text: String,
}

impl ReasoningText {
    pub fn of(text: &str) -> Self {
        Self { kind: "reasoning_text", text: text.to_owned() }
    }
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct OutputText {
    #[serde(rename = "type")]
    #[schemars(extend("const" = "output_text"))]
    pub kind: &'static str,
    pub text: String,
    /// Always empty.
    pub annotations: Vec<Value>,
    /// Always empty.
    pub logprobs: Vec<Value>,
}

impl OutputText {
    pub fn of(text: &str) -> Self {
        Self { kind: "output_text", text: text.to_owned(), annotations: Vec::new(), logprobs: Vec::new() }
    }
}

/// One event of a streamed response.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ResponseEvent {
    /// The type of the data; `error` when the key or session of the stream has ended.
    pub event: &'static str,
    pub data: ResponseEventData,
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum ResponseEventData {
    Event(Box<EventData>),
    /// The key or session of the stream has ended.
    Ended(ErrorBody),
}

/// Data of an event; each type has some of the fields.
#[derive(Debug, Default, Serialize, JsonSchema)]
#[schemars(rename = "ResponseEventBody")]
pub struct EventData {
    /// Such as `response.output_text.delta`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// From 0, without gaps.
    pub sequence_number: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response: Option<Box<ResponseObject>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_index: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub item: Option<Item>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub item_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_index: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub part: Option<OutputText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delta: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Always empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<Vec<Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arguments: Option<String>,
}

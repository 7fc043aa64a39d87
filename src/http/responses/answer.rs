//! A response: a list of items, whole or as a stream of events.

use futures::future::BoxFuture;
use serde_json::{Value, json};

use super::ResponsesRequest;
use super::types::{
    EventData, Incomplete, Item, OutputText, Reasoned, ReasoningText, ResponseObject, ResponseUsage, Status, TextFormat,
};
use crate::domain::Micros;
use crate::engine::FinishReason;
use crate::http::error::ApiError;
use crate::http::openai::Generated;
use crate::http::openai::blocks::{Block, Blocks, EventEncoder, Step, StreamEvent};
use crate::http::openai::chat::call_id;
use crate::prompt::answer::Part;
use crate::service::complete::Running;

/// Data shared by all forms of a response.
#[derive(Clone)]
pub struct Shape {
    pub id: String,
    key: String,
    begun: ResponseObject,
}

impl Shape {
    pub fn new(request: &ResponsesRequest, model: String, keeps: bool, now: Micros) -> Self {
        let key = crate::domain::new_id().to_lowercase();
        let id = format!("resp_{key}");
        let format = request.text.as_ref().and_then(|t| t.get("format")).filter(|f| !f.is_null()).cloned();
        let effort = request.reasoning.as_ref().and_then(|r| r["effort"].as_str()).map(str::to_owned);
        let begun = ResponseObject {
            id: id.clone(),
            object: "response",
            created_at: now / 1_000_000,
            status: Status::InProgress,
            background: false,
            error: None,
            incomplete_details: None,
            instructions: request.instructions.clone(),
            max_output_tokens: request.max_output_tokens,
            model,
            output: Vec::new(),
            parallel_tool_calls: request.parallel_tool_calls.unwrap_or(true),
            previous_response_id: request.previous_response_id.clone(),
            reasoning: Reasoned { effort, summary: None },
            service_tier: "default",
            store: keeps,
            temperature: request.temperature.unwrap_or(1.0),
            text: TextFormat { format: format.unwrap_or_else(|| json!({"type": "text"})) },
            tool_choice: request.tool_choice.clone().unwrap_or_else(|| json!("auto")),
            tools: request.tools.as_ref().and_then(Value::as_array).cloned().unwrap_or_default(),
            top_p: request.top_p.unwrap_or(1.0),
            truncation: "disabled",
            usage: None,
            user: request.user.clone(),
            metadata: request.metadata.clone().unwrap_or_default(),
            instructd: None,
        };
        Self { id, key, begun }
    }

    fn item_id(&self, blocks: &[Block], index: usize) -> String {
        let kind = match &blocks[index] {
            Block::Reasoning(_) => "rs",
            Block::Text(_) => "msg",
            Block::Call { .. } => "fc",
        };
        format!("{kind}_{}{index}", self.key)
    }

    /// The item of a block; empty while it is in progress.
    fn item(&self, running: &Running, blocks: &[Block], index: usize, status: Status) -> Item {
        let written = status != Status::InProgress;
        let id = self.item_id(blocks, index);
        match &blocks[index] {
            Block::Reasoning(text) => Item::Reasoning {
                id,
                summary: Vec::new(),
                content: written.then(|| ReasoningText::of(text)).into_iter().collect(),
                status,
            },
            Block::Text(text) => Item::Message {
                id,
                role: "assistant",
                status,
                content: written.then(|| OutputText::of(text)).into_iter().collect(),
            },
            Block::Call { name, arguments } => {
                let number = blocks[..index].iter().filter(|b| matches!(b, Block::Call { .. })).count();
                Item::FunctionCall {
                    id,
                    call_id: call_id(running, 0, number),
                    name: name.clone(),
                    arguments: if written { arguments.clone() } else { String::new() },
                    status,
                }
            }
        }
    }

    /// The response when the answer has ended.
    pub fn ended(&self, running: &Running, blocks: &[Block]) -> ResponseObject {
        let sample = &running.samples[0];
        let cut = sample.finish == Some(FinishReason::Length);
        let last = blocks.len().saturating_sub(1);
        let of = |i: usize| if cut && i == last { Status::Incomplete } else { Status::Completed };
        ResponseObject {
            output: (0..blocks.len()).map(|i| self.item(running, blocks, i, of(i))).collect(),
            status: if cut { Status::Incomplete } else { Status::Completed },
            incomplete_details: cut.then_some(Incomplete { reason: "max_output_tokens" }),
            usage: Some(ResponseUsage::new(running.prompt_tokens, running.generated_tokens())),
            instructd: Some(Generated {
                completion_ids: vec![(!sample.text.is_empty()).then(|| sample.id.clone())],
                model_version: running.version_id().clone(),
                seed: running.seed(),
            }),
            ..self.begun.clone()
        }
    }
}

/// The answer as a message of chat, for a request that continues it.
pub fn as_message(running: &Running, blocks: &[Block]) -> Value {
    let (mut text, mut thoughts, mut calls) = (String::new(), String::new(), Vec::new());
    for block in blocks {
        match block {
            Block::Reasoning(said) => thoughts.push_str(said),
            Block::Text(said) => text.push_str(said),
            Block::Call { name, arguments } => {
                let function = json!({"name": name, "arguments": arguments});
                calls.push(json!({"id": call_id(running, 0, calls.len()), "type": "function", "function": function}));
            }
        }
    }
    let mut message = json!({"role": "assistant", "content": text});
    if !thoughts.is_empty() {
        message["reasoning_content"] = thoughts.into();
    }
    if !calls.is_empty() {
        message["tool_calls"] = calls.into();
    }
    message
}

/// Encodes a response as OpenAI's events. `keep` is called with the complete response before its last event.
pub struct MessageEvents<K> {
    shape: Shape,
    blocks: Blocks,
    number: u64,
    keep: Option<K>,
    keeping: Option<BoxFuture<'static, ()>>,
}

impl<K: FnOnce(&str, Value, &ResponseObject) -> BoxFuture<'static, ()> + Send + 'static> MessageEvents<K> {
    pub fn new(shape: Shape, keep: Option<K>) -> Self {
        Self { shape, blocks: Blocks::default(), number: 0, keep, keeping: None }
    }

    fn event(&mut self, kind: &'static str, data: EventData) -> StreamEvent {
        let sequence_number = self.number;
        self.number += 1;
        StreamEvent::new(kind, &EventData { kind, sequence_number, ..data })
    }

    fn encode_all(&mut self, running: &Running, steps: Vec<Step>, status: Status) -> Vec<StreamEvent> {
        steps.into_iter().flat_map(|step| self.encode(running, step, status)).collect()
    }

    /// An event about a part of the item with this number.
    fn place(&self, index: usize) -> EventData {
        let content = !matches!(self.blocks.all[index], Block::Call { .. });
        EventData {
            item_id: Some(self.shape.item_id(&self.blocks.all, index)),
            output_index: Some(index),
            content_index: content.then_some(0),
            ..EventData::default()
        }
    }

    fn encode(&mut self, running: &Running, step: Step, status: Status) -> Vec<StreamEvent> {
        match step {
            Step::Opened(index) => {
                let item = self.shape.item(running, &self.blocks.all, index, Status::InProgress);
                let added = EventData { output_index: Some(index), item: Some(item), ..EventData::default() };
                let mut events = vec![self.event("response.output_item.added", added)];
                if matches!(self.blocks.all[index], Block::Text(_)) {
                    let part = EventData { part: Some(OutputText::of("")), ..self.place(index) };
                    events.push(self.event("response.content_part.added", part));
                }
                events
            }
            Step::Grown(index, text) => {
                let (kind, logprobs) = match &self.blocks.all[index] {
                    Block::Reasoning(_) => ("response.reasoning_text.delta", None),
                    Block::Text(_) => ("response.output_text.delta", Some(Vec::new())),
                    Block::Call { .. } => ("response.function_call_arguments.delta", None),
                };
                let more = EventData { delta: Some(text), logprobs, ..self.place(index) };
                vec![self.event(kind, more)]
            }
            Step::Closed(index) => {
                let place = self.place(index);
                let mut events = match self.blocks.all[index].clone() {
                    Block::Reasoning(text) => {
                        let done = EventData { text: Some(text), ..place };
                        vec![self.event("response.reasoning_text.done", done)]
                    }
                    Block::Text(text) => {
                        let part = EventData { part: Some(OutputText::of(&text)), ..self.place(index) };
                        let done = EventData { text: Some(text), logprobs: Some(Vec::new()), ..place };
                        vec![
                            self.event("response.output_text.done", done),
                            self.event("response.content_part.done", part),
                        ]
                    }
                    Block::Call { name, arguments } => {
                        let done = EventData { name: Some(name), arguments: Some(arguments), ..place };
                        vec![self.event("response.function_call_arguments.done", done)]
                    }
                };
                let item = self.shape.item(running, &self.blocks.all, index, status);
                let done = EventData { output_index: Some(index), item: Some(item), ..EventData::default() };
                events.push(self.event("response.output_item.done", done));
                events
            }
        }
    }

    fn whole(&mut self, kind: &'static str, response: ResponseObject) -> StreamEvent {
        self.event(kind, EventData { response: Some(Box::new(response)), ..EventData::default() })
    }
}

impl<K: FnOnce(&str, Value, &ResponseObject) -> BoxFuture<'static, ()> + Send + 'static> EventEncoder
    for MessageEvents<K>
{
    fn start(&mut self, _: &Running) -> Vec<StreamEvent> {
        let begun = self.shape.begun.clone();
        vec![self.whole("response.created", begun.clone()), self.whole("response.in_progress", begun)]
    }

    fn parts(&mut self, running: &Running, parts: Vec<Part>) -> Vec<StreamEvent> {
        let mut events = Vec::new();
        for part in parts {
            let steps = self.blocks.add(part);
            events.extend(self.encode_all(running, steps, Status::Completed));
        }
        events
    }

    fn end(&mut self, running: &Running, rest: Vec<Part>, reason: FinishReason) -> Vec<StreamEvent> {
        let mut events = self.parts(running, rest);
        let cut = reason == FinishReason::Length;
        let closed = self.blocks.close().into_iter().collect();
        events.extend(self.encode_all(running, closed, if cut { Status::Incomplete } else { Status::Completed }));
        let response = self.shape.ended(running, &self.blocks.all);
        if let Some(keep) = self.keep.take() {
            self.keeping = Some(keep(&self.shape.id, as_message(running, &self.blocks.all), &response));
        }
        events.push(self.whole(if cut { "response.incomplete" } else { "response.completed" }, response));
        events
    }

    fn failed(&mut self, error: &ApiError) -> Vec<StreamEvent> {
        let response = ResponseObject { status: Status::Failed, error: Some(error.into()), ..self.shape.begun.clone() };
        vec![self.whole("response.failed", response)]
    }

    fn settle(&mut self) -> Option<BoxFuture<'static, ()>> {
        self.keeping.take()
    }
}

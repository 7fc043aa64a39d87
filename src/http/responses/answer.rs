//! A response: a list of items, whole or told by events.

use serde_json::{Value, json};

use super::ResponsesRequest;
use crate::domain::Micros;
use crate::engine::FinishReason;
use crate::http::error::ApiError;
use crate::http::openai::blocks::{Block, Blocks, Narrator, Step, Told};
use crate::http::openai::chat::call_id;
use crate::prompt::answer::Part;
use crate::service::complete::Running;

/// What is the same for all forms of a response.
#[derive(Clone)]
pub struct Shape {
    pub id: String,
    key: String,
    envelope: Value,
}

impl Shape {
    pub fn new(request: &ResponsesRequest, model: String, keeps: bool, now: Micros) -> Self {
        let key = ulid::Ulid::generate().to_string().to_lowercase();
        let id = format!("resp_{key}");
        let field = |value: &Option<Value>, default: Value| value.clone().unwrap_or(default);
        let format = request.text.as_ref().and_then(|t| t.get("format")).filter(|f| !f.is_null()).cloned();
        let effort = request.reasoning.as_ref().and_then(|r| r.get("effort")).cloned();
        let envelope = json!({
            "id": id, "object": "response", "created_at": now / 1_000_000, "status": "in_progress", "background": false,
            "error": null, "incomplete_details": null, "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens, "model": model, "output": [],
            "parallel_tool_calls": request.parallel_tool_calls.unwrap_or(true),
            "previous_response_id": request.previous_response_id,
            "reasoning": {"effort": effort, "summary": null}, "service_tier": "default",
            "store": keeps, "temperature": request.temperature.unwrap_or(1.0),
            "text": {"format": format.unwrap_or_else(|| json!({"type": "text"}))},
            "tool_choice": field(&request.tool_choice, json!("auto")), "tools": field(&request.tools, json!([])),
            "top_p": request.top_p.unwrap_or(1.0), "truncation": "disabled", "usage": null, "user": request.user,
            "metadata": request.metadata.clone().unwrap_or_default(),
        });
        Self { id, key, envelope }
    }

    /// The item of a block. `status` is `in_progress`, `completed` or `incomplete`; one in progress is empty.
    fn item(&self, running: &Running, blocks: &[Block], index: usize, status: &str) -> Value {
        let begun = status == "in_progress";
        let id = |kind: &str| format!("{kind}_{}{index}", self.key);
        match &blocks[index] {
            Block::Reasoning(text) => {
                let content = if begun { json!([]) } else { json!([{"type": "reasoning_text", "text": text}]) };
                json!({"id": id("rs"), "type": "reasoning", "summary": [], "content": content, "status": status})
            }
            Block::Text(text) => {
                let content = if begun { json!([]) } else { json!([part(text)]) };
                json!({"id": id("msg"), "type": "message", "role": "assistant", "status": status, "content": content})
            }
            Block::Call { name, arguments } => {
                let number = blocks[..index].iter().filter(|b| matches!(b, Block::Call { .. })).count();
                let arguments = if begun { "" } else { arguments.as_str() };
                json!({"id": id("fc"), "type": "function_call", "call_id": call_id(running, 0, number), "name": name,
                    "arguments": arguments, "status": status})
            }
        }
    }

    /// The response when the answer has ended.
    pub fn ended(&self, running: &Running, blocks: &[Block]) -> Value {
        let sample = &running.samples[0];
        let cut = sample.finish == Some(FinishReason::Length);
        let last = blocks.len().saturating_sub(1);
        let status = |i: usize| if cut && i == last { "incomplete" } else { "completed" };
        let mut response = self.envelope.clone();
        response["output"] = (0..blocks.len()).map(|i| self.item(running, blocks, i, status(i))).collect();
        response["status"] = if cut { "incomplete" } else { "completed" }.into();
        if cut {
            response["incomplete_details"] = json!({"reason": "max_output_tokens"});
        }
        let (input, output) = (running.prompt_tokens, running.generated_tokens());
        response["usage"] = json!({
            "input_tokens": input, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": output,
            "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": input + output,
        });
        response["instructd"] = json!({
            "completion_ids": [(!sample.text.is_empty()).then(|| sample.id.as_str())],
            "model_version": running.version_id(), "seed": running.seed(),
        });
        response
    }
}

fn part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

/// The answer as messages of chat, for a request that goes on from it.
pub fn as_messages(running: &Running, blocks: &[Block]) -> Vec<Value> {
    let mut message = json!({"role": "assistant", "content": ""});
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
    message["content"] = text.into();
    if !thoughts.is_empty() {
        message["reasoning_content"] = thoughts.into();
    }
    if !calls.is_empty() {
        message["tool_calls"] = calls.into();
    }
    vec![message]
}

/// Tells a response by OpenAI's events. `keep` is called with the whole of it before its last event.
pub struct Narrated<K> {
    shape: Shape,
    blocks: Blocks,
    number: u64,
    keep: Option<K>,
}

impl<K: FnOnce(&str, Vec<Value>, Value) + Send + 'static> Narrated<K> {
    pub fn new(shape: Shape, keep: Option<K>) -> Self {
        Self { shape, blocks: Blocks::default(), number: 0, keep }
    }

    fn event(&mut self, name: &'static str, mut data: Value) -> Told {
        data["type"] = name.into();
        data["sequence_number"] = self.number.into();
        self.number += 1;
        Told(name, data)
    }

    fn tell(&mut self, running: &Running, steps: Vec<Step>, status: &str) -> Vec<Told> {
        steps.into_iter().flat_map(|step| self.told(running, step, status)).collect()
    }

    fn told(&mut self, running: &Running, step: Step, status: &str) -> Vec<Told> {
        let index = match &step {
            Step::Opened(i) | Step::Grown(i, _) | Step::Closed(i) => *i,
        };
        let block = self.blocks.all[index].clone();
        let begun = self.shape.item(running, &self.blocks.all, index, "in_progress");
        let place = |more: Value| {
            let mut data = json!({"item_id": begun["id"], "output_index": index});
            if !matches!(block, Block::Call { .. }) {
                data["content_index"] = 0.into();
            }
            if let (Some(data), Value::Object(more)) = (data.as_object_mut(), more) {
                data.extend(more);
            }
            data
        };
        match step {
            Step::Opened(_) => {
                let mut told =
                    vec![self.event("response.output_item.added", json!({"output_index": index, "item": begun}))];
                if matches!(block, Block::Text(_)) {
                    told.push(self.event("response.content_part.added", place(json!({"part": part("")}))));
                }
                told
            }
            Step::Grown(_, text) => {
                let (name, more) = match block {
                    Block::Reasoning(_) => ("response.reasoning_text.delta", json!({"delta": text})),
                    Block::Text(_) => ("response.output_text.delta", json!({"delta": text, "logprobs": []})),
                    Block::Call { .. } => ("response.function_call_arguments.delta", json!({"delta": text})),
                };
                vec![self.event(name, place(more))]
            }
            Step::Closed(_) => {
                let item = self.shape.item(running, &self.blocks.all, index, status);
                let mut told = match &block {
                    Block::Reasoning(text) => {
                        vec![self.event("response.reasoning_text.done", place(json!({"text": text})))]
                    }
                    Block::Text(text) => vec![
                        self.event("response.output_text.done", place(json!({"text": text, "logprobs": []}))),
                        self.event("response.content_part.done", place(json!({"part": part(text)}))),
                    ],
                    Block::Call { name, arguments } => vec![self.event(
                        "response.function_call_arguments.done",
                        place(json!({"name": name, "arguments": arguments})),
                    )],
                };
                told.push(self.event("response.output_item.done", json!({"output_index": index, "item": item})));
                told
            }
        }
    }
}

impl<K: FnOnce(&str, Vec<Value>, Value) + Send + 'static> Narrator for Narrated<K> {
    fn start(&mut self, _: &Running) -> Vec<Told> {
        let begun = json!({"response": self.shape.envelope});
        vec![self.event("response.created", begun.clone()), self.event("response.in_progress", begun)]
    }

    fn parts(&mut self, running: &Running, parts: Vec<Part>) -> Vec<Told> {
        let mut told = Vec::new();
        for part in parts {
            let steps = self.blocks.add(part);
            told.extend(self.tell(running, steps, "completed"));
        }
        told
    }

    fn end(&mut self, running: &Running, rest: Vec<Part>, reason: FinishReason) -> Vec<Told> {
        let mut told = self.parts(running, rest);
        let cut = reason == FinishReason::Length;
        let closed = self.blocks.close().into_iter().collect();
        told.extend(self.tell(running, closed, if cut { "incomplete" } else { "completed" }));
        let response = self.shape.ended(running, &self.blocks.all);
        if let Some(keep) = self.keep.take() {
            keep(&self.shape.id, as_messages(running, &self.blocks.all), response.clone());
        }
        let name = if cut { "response.incomplete" } else { "response.completed" };
        told.push(self.event(name, json!({"response": response})));
        told
    }

    fn failed(&mut self, error: &ApiError) -> Vec<Told> {
        let mut response = self.shape.envelope.clone();
        response["status"] = "failed".into();
        response["error"] = json!({"code": "server_error", "message": error.message});
        vec![self.event("response.failed", json!({"response": response}))]
    }
}

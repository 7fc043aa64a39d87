//! Anthropic's answers: a message of blocks, whole or told by events.

use serde_json::{Value, json};

use crate::engine::FinishReason;
use crate::http::error::ApiError;
use crate::http::openai::blocks::{Block, Blocks, Narrator, Step, Told};
use crate::http::openai::chat::call_id;
use crate::prompt::answer::Part;
use crate::service::complete::{Running, Sample};

/// What is the same for all forms of an answer.
pub struct Message {
    pub id: String,
    pub stops: Vec<String>,
}

/// Why an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    reason: &'static str,
    sequence: Option<String>,
}

impl Message {
    /// The text without the stop sequence that ended it.
    pub fn ended<'a>(&self, sample: &'a Sample) -> (&'a str, Ended) {
        let reason = sample.finish.unwrap_or(FinishReason::Abort);
        let found = self.stop_of(&sample.text, reason);
        let text = found.map_or(sample.text.as_str(), |stop| &sample.text[..sample.text.len() - stop.len()]);
        (text, Ended { reason: plain(reason), sequence: found.map(str::to_owned) })
    }

    fn stop_of(&self, text: &str, reason: FinishReason) -> Option<&str> {
        let stops = self.stops.iter().filter(|_| reason == FinishReason::Stop);
        stops.filter(|stop| text.ends_with(stop.as_str())).map(String::as_str).max_by_key(|stop| stop.len())
    }

    /// The whole message.
    pub fn whole(&self, running: &Running, blocks: &[Block], ended: &Ended) -> Value {
        let mut message = self.envelope(running);
        message["content"] = blocks.iter().enumerate().map(|(i, b)| content(running, blocks, i, b, true)).collect();
        message["stop_reason"] = reason(blocks, ended).into();
        message["stop_sequence"] = json!(ended.sequence);
        message["usage"]["output_tokens"] = running.generated_tokens().into();
        message
    }

    fn envelope(&self, running: &Running) -> Value {
        json!({
            "id": self.id, "type": "message", "role": "assistant", "model": running.model().version.name,
            "content": [], "stop_reason": null, "stop_sequence": null,
            "usage": {"input_tokens": running.prompt_tokens, "output_tokens": 0},
        })
    }
}

fn plain(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Length => "max_tokens",
        FinishReason::Stop | FinishReason::Abort => "end_turn",
    }
}

fn reason(blocks: &[Block], ended: &Ended) -> &'static str {
    let called = blocks.iter().any(|b| matches!(b, Block::Call { .. }));
    match ended {
        Ended { sequence: Some(_), .. } => "stop_sequence",
        Ended { reason: "end_turn", .. } if called => "tool_use",
        Ended { reason, .. } => reason,
    }
}

/// A block; `whole` with what it holds, else as it begins.
fn content(running: &Running, blocks: &[Block], index: usize, block: &Block, whole: bool) -> Value {
    let text = |text: &String| if whole { text.clone() } else { String::new() };
    match block {
        Block::Reasoning(thought) => json!({"type": "thinking", "thinking": text(thought), "signature": ""}),
        Block::Text(said) => json!({"type": "text", "text": text(said)}),
        Block::Call { name, arguments } => {
            let number = blocks[..index].iter().filter(|b| matches!(b, Block::Call { .. })).count();
            // What was cut off by its length is no JSON: it is kept as a text.
            let read = || serde_json::from_str(arguments).unwrap_or_else(|_| json!({"unfinished": arguments}));
            let input: Value = if whole { read() } else { json!({}) };
            json!({"type": "tool_use", "id": call_id(running, 0, number), "name": name, "input": input})
        }
    }
}

/// Tells an answer by Anthropic's events.
pub struct Narrated {
    message: Message,
    blocks: Blocks,
    /// The last part, which may end in a stop sequence.
    held: Option<Part>,
}

impl Narrated {
    pub fn new(message: Message) -> Self {
        Self { message, blocks: Blocks::default(), held: None }
    }

    fn tell(&self, running: &Running, steps: Vec<Step>) -> Vec<Told> {
        steps.into_iter().map(|step| self.told(running, step)).collect()
    }

    fn told(&self, running: &Running, step: Step) -> Told {
        match step {
            Step::Opened(i) => {
                let block = content(running, &self.blocks.all, i, &self.blocks.all[i], false);
                let data = json!({"type": "content_block_start", "index": i, "content_block": block});
                Told("content_block_start", data)
            }
            Step::Grown(i, text) => {
                let delta = match &self.blocks.all[i] {
                    Block::Reasoning(_) => json!({"type": "thinking_delta", "thinking": text}),
                    Block::Text(_) => json!({"type": "text_delta", "text": text}),
                    Block::Call { .. } => json!({"type": "input_json_delta", "partial_json": text}),
                };
                Told("content_block_delta", json!({"type": "content_block_delta", "index": i, "delta": delta}))
            }
            Step::Closed(i) => Told("content_block_stop", json!({"type": "content_block_stop", "index": i})),
        }
    }

    fn add(&mut self, running: &Running, part: Part) -> Vec<Told> {
        let steps = self.blocks.add(part);
        self.tell(running, steps)
    }
}

impl Narrator for Narrated {
    fn start(&mut self, running: &Running) -> Vec<Told> {
        let message = self.message.envelope(running);
        vec![Told("message_start", json!({"type": "message_start", "message": message}))]
    }

    fn parts(&mut self, running: &Running, parts: Vec<Part>) -> Vec<Told> {
        let mut told = Vec::new();
        for part in parts {
            let ready = if self.message.stops.is_empty() { Some(part) } else { self.held.replace(part) };
            if let Some(part) = ready {
                told.extend(self.add(running, part));
            }
        }
        told
    }

    fn end(&mut self, running: &Running, rest: Vec<Part>, finish: FinishReason) -> Vec<Told> {
        let mut last: Vec<Part> = self.held.take().into_iter().chain(rest).collect();
        let found = self.message.stop_of(&running.samples[0].text, finish).map(str::to_owned);
        if let (Some(stop), Some(Part::Content(text) | Part::Reasoning(text))) = (&found, last.last_mut())
            && text.ends_with(stop.as_str())
        {
            text.truncate(text.len() - stop.len());
        }
        last.retain(|part| !matches!(part, Part::Content(text) | Part::Reasoning(text) if text.is_empty()));
        let mut told: Vec<Told> = Vec::new();
        for part in last {
            told.extend(self.add(running, part));
        }
        let closed = self.blocks.close().into_iter().collect();
        told.extend(self.tell(running, closed));
        let ended = Ended { reason: plain(finish), sequence: found };
        let delta = json!({"stop_reason": reason(&self.blocks.all, &ended), "stop_sequence": ended.sequence});
        let usage = json!({"input_tokens": running.prompt_tokens, "output_tokens": running.generated_tokens()});
        told.push(Told("message_delta", json!({"type": "message_delta", "delta": delta, "usage": usage})));
        told.push(Told("message_stop", json!({"type": "message_stop"})));
        told
    }

    fn failed(&mut self, error: &ApiError) -> Vec<Told> {
        let mut body = error.body();
        body["type"] = "error".into();
        vec![Told("error", body)]
    }
}

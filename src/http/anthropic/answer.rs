//! Anthropic's responses: a message of blocks, whole or as a stream of events.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};

use crate::engine::FinishReason;
use crate::http::error::{ApiError, ErrorBody, ErrorDetail};
use crate::http::openai::blocks::{Block, Blocks, EventEncoder, Step, StreamEvent};
use crate::http::openai::chat::call_id;
use crate::prompt::answer::Part;
use crate::service::complete::{Running, Sample};

/// A message of the assistant.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct AnthropicMessage {
    pub id: String,
    #[serde(rename = "type")]
    #[schemars(extend("const" = "message"))]
    pub kind: &'static str,
    #[schemars(extend("const" = "assistant"))]
    pub role: &'static str,
    pub model: String,
    pub content: Vec<AnthropicBlock>,
    /// Null while the message is incomplete.
    pub stop_reason: Option<StopReason>,
    /// The stop sequence that ended the text.
    pub stop_sequence: Option<String>,
    pub usage: AnthropicUsage,
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum AnthropicBlock {
    Thinking {
        thinking: String,
        /// Always empty.
        signature: &'static str,
    },
    Text {
        text: String,
    },
    ToolUse {
        id: String,
        name: String,
        /// An object; `{"unfinished": text}` when the answer was cut off in it.
        input: Value,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    EndTurn,
    MaxTokens,
    StopSequence,
    ToolUse,
}

#[derive(Clone, Copy, Debug, Default, Serialize, JsonSchema)]
pub struct AnthropicUsage {
    pub input_tokens: usize,
    pub output_tokens: usize,
}

/// One event of a streamed message.
#[derive(Debug, Serialize, JsonSchema)]
pub struct AnthropicEvent {
    /// The type of the data; `error` when the key or session of the stream has ended.
    pub event: &'static str,
    pub data: AnthropicEventData,
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum AnthropicEventData {
    Message(AnthropicEventBody),
    /// The key or session of the stream has ended.
    Ended(ErrorBody),
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum AnthropicEventBody {
    MessageStart {
        message: AnthropicMessage,
    },
    ContentBlockStart {
        index: usize,
        content_block: AnthropicBlock,
    },
    ContentBlockDelta {
        index: usize,
        delta: AnthropicDelta,
    },
    ContentBlockStop {
        index: usize,
    },
    MessageDelta {
        delta: MessageEnd,
        usage: AnthropicUsage,
    },
    MessageStop,
    /// The generation failed.
    Error {
        error: ErrorDetail,
    },
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[expect(clippy::enum_variant_names, reason = "the names are Anthropic's")]
pub enum AnthropicDelta {
    ThinkingDelta { thinking: String },
    TextDelta { text: String },
    InputJsonDelta { partial_json: String },
}

/// Why a message ended.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct MessageEnd {
    pub stop_reason: StopReason,
    pub stop_sequence: Option<String>,
}

/// Data shared by all forms of an answer.
pub struct Message {
    pub id: String,
    pub stops: Vec<String>,
}

impl Message {
    /// The text without the stop sequence that ended it, and that sequence.
    pub fn ended<'a>(&self, sample: &'a Sample) -> (&'a str, Option<String>) {
        let found = self.stop_of(&sample.text, sample.finish.unwrap_or(FinishReason::Abort));
        let text = found.map_or(sample.text.as_str(), |stop| &sample.text[..sample.text.len() - stop.len()]);
        (text, found.map(str::to_owned))
    }

    fn stop_of(&self, text: &str, reason: FinishReason) -> Option<&str> {
        let stops = self.stops.iter().filter(|_| reason == FinishReason::Stop);
        stops.filter(|stop| text.ends_with(stop.as_str())).map(String::as_str).max_by_key(|stop| stop.len())
    }

    /// The whole message.
    pub fn whole(&self, running: &Running, blocks: &[Block], sequence: Option<String>) -> AnthropicMessage {
        let reason = running.samples[0].finish.unwrap_or(FinishReason::Abort);
        AnthropicMessage {
            content: (0..blocks.len()).map(|i| content(running, blocks, i, true)).collect(),
            stop_reason: Some(stop_reason(blocks, reason, sequence.is_some())),
            stop_sequence: sequence,
            usage: counts(running),
            ..self.begun(running)
        }
    }

    fn begun(&self, running: &Running) -> AnthropicMessage {
        AnthropicMessage {
            id: self.id.clone(),
            kind: "message",
            role: "assistant",
            model: running.model().version.name.clone(),
            content: Vec::new(),
            stop_reason: None,
            stop_sequence: None,
            usage: AnthropicUsage { input_tokens: running.prompt_tokens, output_tokens: 0 },
        }
    }
}

fn counts(running: &Running) -> AnthropicUsage {
    AnthropicUsage { input_tokens: running.prompt_tokens, output_tokens: running.generated_tokens() }
}

fn stop_reason(blocks: &[Block], reason: FinishReason, by_sequence: bool) -> StopReason {
    let called = blocks.iter().any(|b| matches!(b, Block::Call { .. }));
    match reason {
        _ if by_sequence => StopReason::StopSequence,
        FinishReason::Length => StopReason::MaxTokens,
        FinishReason::Stop if called => StopReason::ToolUse,
        FinishReason::Stop | FinishReason::Abort => StopReason::EndTurn,
    }
}

/// A block; with its contents if `whole`, otherwise as it begins.
fn content(running: &Running, blocks: &[Block], index: usize, whole: bool) -> AnthropicBlock {
    let text = |text: &String| if whole { text.clone() } else { String::new() };
    match &blocks[index] {
        Block::Reasoning(thought) => AnthropicBlock::Thinking { thinking: text(thought), signature: "" },
        Block::Text(said) => AnthropicBlock::Text { text: text(said) },
        Block::Call { name, arguments } => {
            let number = blocks[..index].iter().filter(|b| matches!(b, Block::Call { .. })).count();
            let read = || serde_json::from_str(arguments).unwrap_or_else(|_| json!({"unfinished": arguments}));
            let input = if whole { read() } else { json!({}) };
            AnthropicBlock::ToolUse { id: call_id(running, 0, number), name: name.clone(), input }
        }
    }
}

/// Encodes an answer as Anthropic's events.
pub struct MessageEvents {
    message: Message,
    blocks: Blocks,
    /// The last part, which may end in a stop sequence.
    held: Option<Part>,
}

impl MessageEvents {
    pub fn new(message: Message) -> Self {
        Self { message, blocks: Blocks::default(), held: None }
    }

    fn encode_all(&self, running: &Running, steps: Vec<Step>) -> Vec<StreamEvent> {
        steps.into_iter().map(|step| self.encode(running, step)).collect()
    }

    fn encode(&self, running: &Running, step: Step) -> StreamEvent {
        match step {
            Step::Opened(index) => {
                let content_block = content(running, &self.blocks.all, index, false);
                StreamEvent::new("content_block_start", &AnthropicEventBody::ContentBlockStart { index, content_block })
            }
            Step::Grown(index, text) => {
                let delta = match &self.blocks.all[index] {
                    Block::Reasoning(_) => AnthropicDelta::ThinkingDelta { thinking: text },
                    Block::Text(_) => AnthropicDelta::TextDelta { text },
                    Block::Call { .. } => AnthropicDelta::InputJsonDelta { partial_json: text },
                };
                StreamEvent::new("content_block_delta", &AnthropicEventBody::ContentBlockDelta { index, delta })
            }
            Step::Closed(index) => {
                StreamEvent::new("content_block_stop", &AnthropicEventBody::ContentBlockStop { index })
            }
        }
    }

    fn add(&mut self, running: &Running, part: Part) -> Vec<StreamEvent> {
        let steps = self.blocks.add(part);
        self.encode_all(running, steps)
    }
}

impl EventEncoder for MessageEvents {
    fn start(&mut self, running: &Running) -> Vec<StreamEvent> {
        vec![StreamEvent::new(
            "message_start",
            &AnthropicEventBody::MessageStart { message: self.message.begun(running) },
        )]
    }

    fn parts(&mut self, running: &Running, parts: Vec<Part>) -> Vec<StreamEvent> {
        let mut events = Vec::new();
        for part in parts {
            let ready = if self.message.stops.is_empty() { Some(part) } else { self.held.replace(part) };
            if let Some(part) = ready {
                events.extend(self.add(running, part));
            }
        }
        events
    }

    fn end(&mut self, running: &Running, rest: Vec<Part>, finish: FinishReason) -> Vec<StreamEvent> {
        let mut last: Vec<Part> = self.held.take().into_iter().chain(rest).collect();
        let stop_sequence = self.message.stop_of(&running.samples[0].text, finish).map(str::to_owned);
        if let (Some(stop), Some(Part::Content(text) | Part::Reasoning(text))) = (&stop_sequence, last.last_mut())
            && text.ends_with(stop.as_str())
        {
            text.truncate(text.len() - stop.len());
        }
        last.retain(|part| !matches!(part, Part::Content(text) | Part::Reasoning(text) if text.is_empty()));
        let mut events: Vec<StreamEvent> = Vec::new();
        for part in last {
            events.extend(self.add(running, part));
        }
        let closed = self.blocks.close().into_iter().collect();
        events.extend(self.encode_all(running, closed));
        let stop_reason = stop_reason(&self.blocks.all, finish, stop_sequence.is_some());
        let delta = MessageEnd { stop_reason, stop_sequence };
        events.push(StreamEvent::new(
            "message_delta",
            &AnthropicEventBody::MessageDelta { delta, usage: counts(running) },
        ));
        events.push(StreamEvent::new("message_stop", &AnthropicEventBody::MessageStop));
        events
    }

    fn failed(&mut self, error: &ApiError) -> Vec<StreamEvent> {
        vec![StreamEvent::new("error", &AnthropicEventBody::Error { error: error.detail() })]
    }
}

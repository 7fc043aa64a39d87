//! An answer as a list of blocks, for the APIs that have them, and the events of its stream.

use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::future::BoxFuture;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::begin::StartedChat;
use crate::engine::{FinishReason, GenEvent};
use crate::http::error::ApiError;
use crate::prompt::answer::Part;
use crate::service::complete::Running;

/// Events that are buffered for a slow client before its task waits.
const BUFFER: usize = 64;

/// One block of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Block {
    Reasoning(String),
    Text(String),
    Call { name: String, arguments: String },
}

/// A change of the block with this index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Opened(usize),
    Grown(usize, String),
    Closed(usize),
}

/// The blocks so far; the last one may be incomplete.
#[derive(Debug, Default)]
pub struct Blocks {
    pub all: Vec<Block>,
    open: bool,
}

impl Blocks {
    pub fn add(&mut self, part: Part) -> Vec<Step> {
        let mut steps = Vec::new();
        let (fresh, text) = match part {
            Part::Reasoning(text) => (Block::Reasoning(String::new()), text),
            Part::Content(text) => (Block::Text(String::new()), text),
            Part::Call { name, .. } => {
                steps.extend(self.close());
                self.open(Block::Call { name, arguments: String::new() }, &mut steps);
                return steps;
            }
            Part::Arguments { text, .. } => {
                if let (true, Some(Block::Call { arguments, .. })) = (self.open, self.all.last_mut()) {
                    arguments.push_str(&text);
                    steps.push(Step::Grown(self.all.len() - 1, text));
                }
                return steps;
            }
        };
        let same = self.open
            && self.all.last().is_some_and(|last| std::mem::discriminant(last) == std::mem::discriminant(&fresh));
        if !same {
            steps.extend(self.close());
            self.open(fresh, &mut steps);
        }
        if let Some(Block::Reasoning(all) | Block::Text(all)) = self.all.last_mut() {
            all.push_str(&text);
        }
        steps.push(Step::Grown(self.all.len() - 1, text));
        steps
    }

    fn open(&mut self, block: Block, steps: &mut Vec<Step>) {
        self.all.push(block);
        self.open = true;
        steps.push(Step::Opened(self.all.len() - 1));
    }

    /// Ends the last block.
    pub fn close(&mut self) -> Option<Step> {
        std::mem::take(&mut self.open).then(|| Step::Closed(self.all.len() - 1))
    }

    /// The blocks of a whole text.
    pub fn read(text: &str, begun: &StartedChat) -> Self {
        let mut blocks = Self::default();
        let mut reader = begun.reader();
        let parts = reader.push(text).into_iter().chain(reader.finish()).collect::<Vec<_>>();
        parts.into_iter().for_each(|part| drop(blocks.add(part)));
        blocks.close();
        blocks
    }
}

/// An event with its name and data.
pub struct StreamEvent(pub &'static str, pub String);

impl StreamEvent {
    pub fn new(name: &'static str, data: &impl Serialize) -> Self {
        Self(name, serde_json::to_string(data).unwrap_or_default())
    }
}

/// Encodes the stream of an answer as one API's events.
pub trait EventEncoder: Send + 'static {
    fn start(&mut self, running: &Running) -> Vec<StreamEvent>;
    /// Text was generated.
    fn parts(&mut self, running: &Running, parts: Vec<Part>) -> Vec<StreamEvent>;
    /// The answer has ended; `rest` is the text that was held back.
    fn end(&mut self, running: &Running, rest: Vec<Part>, reason: FinishReason) -> Vec<StreamEvent>;
    fn failed(&mut self, error: &ApiError) -> Vec<StreamEvent>;
    /// Work that must be done before the client gets the end of the answer.
    fn settle(&mut self) -> Option<BoxFuture<'static, ()>> {
        None
    }
}

/// Server-sent events of one answer; dropping the response ends the generation within one step.
pub fn respond(mut running: Running, begun: &StartedChat, mut narrator: impl EventEncoder) -> Response {
    let (sender, receiver) = mpsc::channel::<Result<Event, Infallible>>(BUFFER);
    let texts = begun.texts(1);
    tokio::spawn(async move {
        let send = async |events: Vec<StreamEvent>| {
            for StreamEvent(name, data) in events {
                sender.send(Ok(Event::default().event(name).data(data))).await.map_err(drop)?;
            }
            Ok::<(), ()>(())
        };
        let first = narrator.start(&running);
        if send(first).await.is_err() {
            return;
        }
        loop {
            let next = tokio::select! {
                () = sender.closed() => return,
                next = running.next() => next.map_err(ApiError::from),
            };
            let events = match next {
                Ok(None) => return,
                Ok(Some(GenEvent::Delta { text, .. })) => narrator.parts(&running, texts.push(0, &text)),
                Ok(Some(GenEvent::Finish { reason, .. })) => {
                    // Stored before the client can act on it.
                    match running.store(|_| true).await.map_err(ApiError::from) {
                        Ok(()) => narrator.end(&running, texts.finish(0), reason),
                        Err(error) => narrator.failed(&error),
                    }
                }
                Ok(Some(_)) => Vec::new(),
                Err(error) => {
                    let _ = send(narrator.failed(&error)).await;
                    return;
                }
            };
            if let Some(settling) = narrator.settle() {
                settling.await;
            }
            if send(events).await.is_err() {
                return;
            }
        }
    });
    let keep_alive = KeepAlive::new().interval(Duration::from_secs(15));
    Sse::new(ReceiverStream::new(receiver)).keep_alive(keep_alive).into_response()
}

/// An error of a chat request with another API's names of fields.
pub fn renamed(mut error: ApiError, names: &[(&str, &str)]) -> ApiError {
    let Some(param) = &error.param else { return error };
    let found = names.iter().find_map(|(from, to)| {
        let rest = param.strip_prefix(from)?;
        (rest.is_empty() || rest.starts_with(['.', '['])).then(|| format!("{to}{rest}"))
    });
    if let Some(found) = found {
        error.param = Some(found);
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_open_grow_and_close() {
        let mut blocks = Blocks::default();
        let parts = [
            Part::Reasoning("a".into()),
            Part::Reasoning("b".into()),
            Part::Content("c".into()),
            Part::Call { index: 0, name: "f".into() },
            Part::Arguments { index: 0, text: "{".into() },
            Part::Arguments { index: 0, text: "}".into() },
            Part::Call { index: 1, name: "g".into() },
        ];
        let mut steps: Vec<Step> = parts.into_iter().flat_map(|p| blocks.add(p)).collect();
        steps.extend(blocks.close());
        let grown = |i, t: &str| Step::Grown(i, t.into());
        assert_eq!(
            steps,
            [
                Step::Opened(0),
                grown(0, "a"),
                grown(0, "b"),
                Step::Closed(0),
                Step::Opened(1),
                grown(1, "c"),
                Step::Closed(1),
                Step::Opened(2),
                grown(2, "{"),
                grown(2, "}"),
                Step::Closed(2),
                Step::Opened(3),
                Step::Closed(3),
            ]
        );
        assert_eq!(blocks.all[0], Block::Reasoning("ab".into()));
        assert_eq!(blocks.all[2], Block::Call { name: "f".into(), arguments: "{}".into() });
        assert_eq!(blocks.close(), None);
    }

    #[test]
    fn fields_are_named_as_the_client_knows_them() {
        let names = [("max_tokens", "max_output_tokens"), ("messages", "input")];
        let of = |param: &str| renamed(ApiError::bad(param, "x"), &names).param.unwrap();
        assert_eq!(of("max_tokens"), "max_output_tokens");
        assert_eq!(of("messages[2].content"), "input[2].content");
        assert_eq!(of("max_tokens_of"), "max_tokens_of");
    }
}

//! One sample that is generated elsewhere: its tokens so far, its text, and its end by the rules of the local engine.

use tokio::sync::mpsc::UnboundedSender;

use crate::engine::model_text::ModelText;
use crate::engine::text::{SampleProgress, TextStream};
use crate::engine::{FinishReason, GenEvent, GenerateRequest, TokenLogprob};

/// A sample of a request.
pub(super) struct Sample {
    index: usize,
    /// The tokens so far.
    pub ids: Vec<u32>,
    text: TextStream,
    pub is_finished: bool,
}

/// What the samples of a request share.
pub(super) struct Samples<'a> {
    pub request: &'a GenerateRequest,
    pub events: &'a UnboundedSender<GenEvent>,
    /// Ids that end a sample.
    pub end_ids: &'a [u32],
    /// Most tokens of a sample: those of the request, or the rest of the context.
    pub max_tokens: usize,
}

impl Sample {
    pub fn new(index: usize, text: &ModelText, request: &GenerateRequest) -> Self {
        Self { index, ids: Vec::new(), text: text.stream(request), is_finished: false }
    }

    /// Adds tokens and sends their events. Tokens after the end of the sample are dropped.
    pub fn accept(&mut self, tokens: Vec<TokenLogprob>, shared: &Samples<'_>) {
        for token in tokens {
            if self.is_finished {
                return;
            }
            self.ids.push(token.id);
            let count = self.ids.len();
            let progress = SampleProgress {
                ended: shared.end_ids.contains(&token.id),
                complete: false,
                full: count >= shared.max_tokens,
                may_stop: count >= shared.request.params.min_tokens,
            };
            let (text, reason) = self.text.accept(token.id, progress);
            shared.events.send(GenEvent::Delta { index: self.index, text, tokens: vec![token] }).ok();
            if let Some(reason) = reason {
                self.send_finish(reason, shared);
            }
        }
    }

    /// Ends the sample where the server has ended it, unless it has ended before.
    pub fn finish(&mut self, reason: FinishReason, shared: &Samples<'_>) {
        if self.is_finished {
            return;
        }
        let text = self.text.finish();
        if !text.is_empty() {
            shared.events.send(GenEvent::Delta { index: self.index, text, tokens: Vec::new() }).ok();
        }
        self.send_finish(reason, shared);
    }

    fn send_finish(&mut self, reason: FinishReason, shared: &Samples<'_>) {
        self.is_finished = true;
        shared.events.send(GenEvent::Finish { index: self.index, reason }).ok();
    }
}

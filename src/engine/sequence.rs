//! One sample of one request while it is being generated.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use candle_core::Tensor;
use tokio::sync::mpsc::UnboundedSender;

use super::constraint::Guide;
use super::loaded::LoadedModel;
use super::queue::Cancellable;
use super::stats::StatCounters;
use super::text::{SampleProgress, TextStream};
use super::{EngineError, FinishReason, GenEvent, GenerateRequest, TokenLogprob};
use crate::domain::ModelVersionId;
use crate::generation::sampling::{DrawContext, Drawn, draw};
use crate::generation::stepper::{RunningSequence, SequenceState};
use crate::model::SoftPrompt;
use crate::model::adapters::served::ServedAdapter;

/// A request that is being answered: the part that all its samples share.
pub struct RunningRequest {
    pub request: GenerateRequest,
    pub events: UnboundedSender<GenEvent>,
    /// Ids that end a sample: those of the model, unless `ignore_eos` is set, and those of the request.
    pub end_ids: Vec<u32>,
    pub queued: QueueWait,
    /// Embeddings that precede the prompt.
    pub soft: Option<Arc<SoftPrompt>>,
    /// The constraint of the texts, at its start.
    pub guide: Option<Guide>,
    /// The version that answers. A LoRA version runs in the batch of its base.
    pub model: Arc<LoadedModel>,
}

/// When the request was admitted, and whether its wait has been reported.
pub struct QueueWait {
    since: Instant,
    reported: AtomicBool,
}

impl QueueWait {
    pub fn since(since: Instant) -> Self {
        Self { since, reported: AtomicBool::new(false) }
    }
}

impl RunningRequest {
    /// Records the time in the queue before the first step. Later calls, after a preemption, do nothing.
    pub fn record_queue_time(&self) {
        if !self.queued.reported.swap(true, Relaxed) {
            metrics::histogram!("instructd_queue_seconds").record(self.queued.since.elapsed());
        }
    }

    /// The model in whose batch the request runs: the base of a LoRA version.
    pub fn batch_model(&self) -> &Arc<LoadedModel> {
        self.model.base.as_ref().unwrap_or(&self.model)
    }

    /// The root in the prefix tree whose pages this request may read: that of its soft prompt or LoRA version; `None`
    /// for the base model itself.
    pub fn prefix_root(&self) -> Option<&ModelVersionId> {
        let lora = self.model.lora.as_ref().map(|_| &self.model.served.version.id);
        self.request.soft_prompt.as_ref().or(lora)
    }

    /// Number of positions of the soft prompt.
    pub fn soft_len(&self) -> usize {
        self.soft.as_ref().map_or(0, |s| s.info.n_tokens)
    }

    /// The input of the model: placeholders for the soft prompt, then the prompt.
    pub fn prompt_tokens(&self) -> Vec<u32> {
        let mut tokens = vec![0; self.soft_len()];
        tokens.extend_from_slice(&self.request.prompt_ids);
        tokens
    }
}

impl Cancellable for Arc<RunningRequest> {
    /// Whether the receiver of the events was dropped.
    fn is_cancelled(&self) -> bool {
        self.events.is_closed()
    }
}

/// One sample of a request.
pub struct Sequence {
    pub shared: Arc<RunningRequest>,
    pub index: usize,
    pub state: SequenceState,
    pub text: TextStream,
    /// The prompt's log-probs so far, if they were requested.
    pub prompt: Option<Vec<TokenLogprob>>,
    /// Number of samples that are forked from this one once its prompt is computed.
    pub siblings: usize,
    /// The state of this sample's constraint.
    pub guide: Option<Guide>,
    /// The next token, where the device has drawn it.
    pub drawn: Option<Drawn>,
}

impl RunningSequence for Sequence {
    fn state(&self) -> &SequenceState {
        &self.state
    }

    fn state_mut(&mut self) -> &mut SequenceState {
        &mut self.state
    }

    fn adapter(&self) -> Option<&Arc<ServedAdapter>> {
        self.shared.model.lora.as_ref()
    }

    fn soft_prompt(&self) -> Option<&Tensor> {
        self.shared.soft.as_ref().map(|soft| &soft.vectors)
    }
}

impl Sequence {
    /// The tokens whose cached keys may come from other requests. Rows that report log-probs must be computed.
    pub fn shareable(&self) -> &[u32] {
        match self.prompt {
            Some(_) => {
                let reported = self.shared.soft_len() + self.shared.request.prompt_from;
                &self.state.ids[..self.state.prompt_len.min(reported)]
            }
            None => &self.state.ids,
        }
    }

    /// Whether the request yields to requests that are not in the background.
    pub fn background(&self) -> bool {
        self.shared.request.background
    }

    /// The inputs of the next draw.
    pub fn context(&self) -> DrawContext<'_> {
        let params = &self.shared.request.params;
        let early = self.state.generated().len() < params.min_tokens;
        DrawContext {
            prompt: &self.shared.request.prompt_ids,
            generated: self.state.generated(),
            forbidden: if early { &self.shared.end_ids } else { &[] },
            seed: params.seed,
            stream: self.index as u64,
            logprob_temperature: 1.0,
            top: params.logprobs.unwrap_or(0),
        }
    }

    /// The inputs of a draw on the device: 1 / temperature (0 for the most likely token) and the random number. `None`
    /// where the sampler of the host is needed: for the first token, which samples of a request share the logits of,
    /// for constraints, alternatives, penalties, and truncated distributions. Depends only on the request and the
    /// position, so that a token does not depend on the batch.
    pub fn device_draw(&self) -> Option<(f32, f64)> {
        let context = self.context();
        let first = context.generated.is_empty();
        if first || self.guide.is_some() || context.top > 0 || !context.forbidden.is_empty() {
            return None;
        }
        self.shared.request.params.warpers.plain_draw(&context)
    }

    /// Draws the next token from a row of logits, unless the device has drawn it.
    ///
    /// # Errors
    /// If no token satisfies the constraint.
    pub fn draw(&mut self, logits: &[f32]) -> Result<Drawn, EngineError> {
        if let Some(drawn) = self.drawn.take() {
            return Ok(drawn);
        }
        let params = &self.shared.request.params;
        let warpers = &params.warpers;
        match &self.guide {
            None => Ok(draw(logits, warpers, &self.context())),
            Some(guide) => guide
                .draw(logits, warpers, &self.context(), params.ignore_eos)
                .map_err(|message| self.constraint_error(message)),
        }
    }

    fn constraint_error(&self, message: String) -> EngineError {
        let constraint = self.shared.request.params.constraint.as_ref();
        EngineError::BadRequest { param: constraint.map_or("grammar", |c| c.field), message }
    }

    /// Ends the whole request with an error.
    pub fn fail(&self, error: EngineError) {
        self.send(GenEvent::Failed { error });
    }

    /// Appends a drawn token and sends its events. `Some` when the sample is complete.
    pub fn accept(&mut self, drawn: Drawn, max_positions: usize) -> Option<FinishReason> {
        let params = &self.shared.request.params;
        self.state.ids.push(drawn.id);
        let count = self.state.generated().len();
        let ended = self.shared.end_ids.contains(&drawn.id);
        let token = TokenLogprob { id: drawn.id, logprob: Some(drawn.logprob), top: drawn.top };
        let full = count >= params.max_tokens || self.state.ids.len() >= max_positions;
        let advanced = match &self.guide {
            Some(guide) if !ended => guide.advance(drawn.id),
            _ => Ok(false),
        };
        let complete = match advanced {
            Ok(complete) => complete,
            Err(message) => {
                self.fail(self.constraint_error(message));
                return Some(FinishReason::Abort);
            }
        };
        let may_stop = count >= params.min_tokens;
        let (text, reason) = self.text.accept(drawn.id, SampleProgress { ended, complete, full, may_stop });
        self.send(GenEvent::Delta { index: self.index, text, tokens: vec![token] });
        if let Some(reason) = reason {
            self.send(GenEvent::Finish { index: self.index, reason });
        }
        reason
    }

    /// Draws a token from the first of `rows` `[vocab]` and, as long as the drawn token equals the drafted one, from
    /// the next row: keys and values of the drafted token are in the cache already. `true` when the sample is complete.
    pub fn draw_tokens<'a>(
        &mut self,
        rows: impl Iterator<Item = &'a [f32]>,
        draft: &[u32],
        max_positions: usize,
        stats: &StatCounters,
    ) -> bool {
        if self.shared.request.params.max_tokens == 0 {
            self.send(GenEvent::Finish { index: self.index, reason: FinishReason::Length });
            return true;
        }
        stats.drafted.fetch_add(draft.len() as u64, Relaxed);
        for (i, row) in rows.enumerate() {
            let drawn = match self.draw(row) {
                Ok(drawn) => drawn,
                Err(error) => {
                    self.fail(error);
                    return true;
                }
            };
            stats.generated.fetch_add(1, Relaxed);
            let id = drawn.id;
            if self.accept(drawn, max_positions).is_some() {
                return true;
            }
            if draft.get(i) != Some(&id) {
                return false;
            }
            stats.accepted.fetch_add(1, Relaxed);
            self.state.cached.len += 1;
        }
        false
    }

    /// Sends an event. If the receiver was dropped, the scheduler removes the request in its next step
    /// (`Cancellable::is_cancelled`).
    pub fn send(&self, event: GenEvent) {
        self.shared.events.send(event).ok();
    }
}

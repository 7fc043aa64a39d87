//! One sample of one request while it is being written.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use candle_core::Tensor;
use tokio::sync::mpsc::UnboundedSender;

use super::constraint::Guide;
use super::loaded::LoadedModel;
use super::stats::StatCells;
use super::text::TextStream;
use super::{EngineError, FinishReason, GenEvent, GenerateRequest, TokenLogprob};
use crate::domain::ModelVersionId;
use crate::generation::sampling::{Context, Drawn, draw};
use crate::generation::stepper::{Track, Tracked};
use crate::model::SoftPrompt;
use crate::model::adapters::served::ServedAdapter;

/// What all samples of a request share.
pub struct Shared {
    pub request: GenerateRequest,
    pub events: UnboundedSender<GenEvent>,
    /// Ids that end a sample: the model's (none under `ignore_eos`) and those that the request names.
    pub end_ids: Vec<u32>,
    pub queued: Queued,
    /// Embeddings that stand before the prompt.
    pub soft: Option<Arc<SoftPrompt>>,
    /// The beginning of the form that the texts must have.
    pub guide: Option<Guide>,
    /// The version that answers; its base may answer others in the same batch.
    pub model: Arc<LoadedModel>,
}

/// When the request was admitted, and whether its wait has been reported.
pub struct Queued {
    since: Instant,
    reported: AtomicBool,
}

impl Queued {
    pub fn since(since: Instant) -> Self {
        Self { since, reported: AtomicBool::new(false) }
    }
}

impl Shared {
    /// Reports the wait before the first step, once: samples that are preempted begin again.
    pub fn begun(&self) {
        if !self.queued.reported.swap(true, Relaxed) {
            metrics::histogram!("instructd_queue_seconds").record(self.queued.since.elapsed());
        }
    }

    /// Nobody listens any more: the request is cancelled.
    pub fn abandoned(&self) -> bool {
        self.events.is_closed()
    }

    /// Whose cached pages it may read, beside the base's own: a soft prompt's or an adapter's.
    pub fn prefix_root(&self) -> Option<&ModelVersionId> {
        let beside = self.model.lora.as_ref().map(|_| &self.model.served.version.id);
        self.request.adapter.as_ref().or(beside)
    }

    /// Positions that the soft prompt takes.
    pub fn soft_len(&self) -> usize {
        self.soft.as_ref().map_or(0, |s| s.info.n_tokens)
    }

    /// What the model reads first: placeholders for the soft prompt, then the prompt.
    pub fn prompt_tokens(&self) -> Vec<u32> {
        let mut tokens = vec![0; self.soft_len()];
        tokens.extend_from_slice(&self.request.prompt_ids);
        tokens
    }
}

/// One sample of a request.
pub struct Sequence {
    pub shared: Arc<Shared>,
    pub index: usize,
    pub track: Track,
    pub text: TextStream,
    /// Prompt log-probs gathered so far, if asked for.
    pub prompt: Option<Vec<TokenLogprob>>,
    /// Samples that start from this one's prompt once it is computed.
    pub siblings: usize,
    /// This sample's place in the form that its text must have.
    pub guide: Option<Guide>,
}

impl Tracked for Sequence {
    fn track(&self) -> &Track {
        &self.track
    }

    fn track_mut(&mut self) -> &mut Track {
        &mut self.track
    }

    fn adapter(&self) -> Option<&Arc<ServedAdapter>> {
        self.shared.model.lora.as_ref()
    }

    fn soft_prompt(&self) -> Option<&Tensor> {
        self.shared.soft.as_ref().map(|soft| &soft.vectors)
    }
}

impl Sequence {
    /// The tokens whose cached keys may come from other requests: rows that report log-probs are computed.
    pub fn shareable(&self) -> &[u32] {
        match self.prompt {
            Some(_) => {
                let reported = self.shared.soft_len() + self.shared.request.prompt_from;
                &self.track.ids[..self.track.prompt_len.min(reported)]
            }
            None => &self.track.ids,
        }
    }

    /// Whether it may wait for others.
    pub fn background(&self) -> bool {
        self.shared.request.background
    }

    /// What a draw may look at.
    pub fn context(&self) -> Context<'_> {
        let params = &self.shared.request.params;
        let early = self.track.generated().len() < params.min_tokens;
        Context {
            prompt: &self.shared.request.prompt_ids,
            generated: self.track.generated(),
            forbidden: if early { &self.shared.end_ids } else { &[] },
            seed: params.seed,
            stream: self.index as u64,
            logprob_temperature: 1.0,
            top: params.logprobs.unwrap_or(0),
        }
    }

    /// Draws the next token from a row of logits.
    ///
    /// # Errors
    /// When the form that the text must have can be followed no further.
    pub fn draw(&self, logits: &[f32]) -> Result<Drawn, EngineError> {
        let params = &self.shared.request.params;
        let warpers = &params.warpers;
        match &self.guide {
            None => Ok(draw(logits, warpers, &self.context())),
            Some(guide) => guide
                .draw(logits, warpers, &self.context(), params.ignore_eos)
                .map_err(|message| self.not_followed(message)),
        }
    }

    fn not_followed(&self, message: String) -> EngineError {
        let constraint = self.shared.request.params.constraint.as_ref();
        EngineError::BadRequest { param: constraint.map_or("grammar", |c| c.field), message }
    }

    /// Ends the whole request with an error.
    pub fn fail(&self, error: EngineError) {
        self.send(GenEvent::Failed { error });
    }

    /// Books a drawn token and tells the listener. `Some` when the sample is complete.
    pub fn accept(&mut self, drawn: Drawn, max_positions: usize) -> Option<FinishReason> {
        let params = &self.shared.request.params;
        self.track.ids.push(drawn.id);
        let count = self.track.generated().len();
        let ended = self.shared.end_ids.contains(&drawn.id);
        let token = TokenLogprob { id: drawn.id, logprob: Some(drawn.logprob), top: drawn.top };
        let full = count >= params.max_tokens || self.track.ids.len() >= max_positions;
        let (mut text, mut reason) = (String::new(), None);
        let followed = match &self.guide {
            Some(guide) if !ended => guide.advance(drawn.id),
            _ => Ok(false),
        };
        let complete = match followed {
            Ok(complete) => complete,
            Err(message) => {
                self.fail(self.not_followed(message));
                return Some(FinishReason::Abort);
            }
        };
        if ended {
            reason = Some(FinishReason::Stop);
        } else {
            let added = self.text.push(drawn.id, count >= params.min_tokens);
            text = added.text;
            if added.stopped || complete {
                reason = Some(FinishReason::Stop);
            } else if full {
                reason = Some(FinishReason::Length);
            }
        }
        if reason.is_some() {
            text.push_str(&self.text.finish());
        }
        self.send(GenEvent::Delta { index: self.index, text, tokens: vec![token] });
        if let Some(reason) = reason {
            self.send(GenEvent::Finish { index: self.index, reason });
        }
        reason
    }

    /// Draws from the row of the last token and, as long as `draft` is what is drawn, from the rows behind it: a token that
    /// was guessed is in the cache already. `true` when the sample is complete.
    pub fn follow<'a>(
        &mut self,
        rows: impl Iterator<Item = &'a [f32]>,
        draft: &[u32],
        max_positions: usize,
        stats: &StatCells,
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
            stats.followed.fetch_add(1, Relaxed);
            self.track.cached.len += 1;
        }
        false
    }

    /// A closed channel means the client left; the scheduler notices by `Shared::abandoned`.
    pub fn send(&self, event: GenEvent) {
        self.shared.events.send(event).ok();
    }
}

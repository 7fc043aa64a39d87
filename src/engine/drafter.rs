//! Drafts by a small model (speculative decoding, arXiv 2211.17192). The draft model reads the running samples and
//! draws the tokens that may follow with the same random numbers as the sampler, so two models with the same
//! distribution draw the same token. Drafts do not change which tokens are sampled.

use std::sync::{Arc, Weak};

use super::SamplingParams;
use super::limits::{Limits, cache_tokens};
use super::loaded::LoadedModel;
use super::sequence::{RunningRequest, Sequence};
use crate::generation::sampling::{DrawContext, draw};
use crate::generation::stepper::{RunningSequence, ScheduledTokens, SequenceState, Stepper};
use crate::model::decoder::kv_cache::{CachedSequence, KvCache};

/// The draft model, with a cache of its own for the samples that run on the served model.
pub(super) struct Drafter {
    model: Arc<LoadedModel>,
    batch: Stepper<DraftedSample>,
    prefill_tokens: usize,
}

/// One sample in the draft model. It does not keep the request alive, whose client waits until it is dropped.
struct DraftedSample {
    request: Weak<RunningRequest>,
    index: usize,
    params: SamplingParams,
    end_ids: Vec<u32>,
    /// The tokens of the sample, then the drafted ones.
    state: SequenceState,
    /// Number of tokens of the sample; the ids from there on are drafted.
    sampled: usize,
    /// Maximum length of the draft; 0 if none can be made in this step.
    limit: usize,
}

impl RunningSequence for DraftedSample {
    fn state(&self) -> &SequenceState {
        &self.state
    }

    fn state_mut(&mut self) -> &mut SequenceState {
        &mut self.state
    }
}

impl DraftedSample {
    fn is_of(&self, sequence: &Sequence) -> bool {
        self.request.as_ptr() == Arc::as_ptr(&sequence.shared) && self.index == sequence.index
    }

    fn draft(&self) -> &[u32] {
        &self.state.ids[self.sampled..]
    }

    /// Whether one more token is to be drafted. Nothing follows an end token.
    fn continues(&self) -> bool {
        let ended = self.draft().last().is_some_and(|id| self.end_ids.contains(id));
        self.draft().len() < self.limit && !ended
    }

    /// Draws the next token as the sample does, but without its constraint.
    fn draw(&mut self, logits: &[f32]) {
        let (prompt, generated) = self.state.ids.split_at(self.state.prompt_len);
        let context = DrawContext {
            prompt,
            generated,
            forbidden: if generated.len() < self.params.min_tokens { &self.end_ids } else { &[] },
            seed: self.params.seed,
            stream: self.index as u64,
            logprob_temperature: 1.0,
            top: 0,
        };
        let id = draw(logits, &self.params.warpers, &context).id;
        self.state.ids.push(id);
    }
}

impl Drafter {
    pub fn new(model: Arc<LoadedModel>, limits: Limits) -> Self {
        let (tokens, windowed) = cache_tokens(&model.decoder.config, limits);
        let cache = KvCache::with_format(&model.decoder.config, limits.kv_format, tokens, windowed);
        Self { model, batch: Stepper::new(cache), prefill_tokens: limits.prefill_tokens }
    }

    /// Drafts at most `wanted[i].1` tokens for each sample `running[wanted[i].0]`; the drafts are in the order of
    /// `wanted`. A draft is empty if the draft model has not yet read the whole prompt, or its cache is full.
    ///
    /// # Errors
    /// Those of the draft model.
    pub fn draft(&mut self, running: &[Sequence], wanted: &[(usize, usize)]) -> candle_core::Result<Vec<Vec<u32>>> {
        self.batch.retain(|sample| running.iter().any(|sequence| sample.is_of(sequence)));
        self.batch.running_mut().iter_mut().for_each(|sample| sample.limit = 0);
        for (i, limit) in wanted {
            self.follow(&running[*i], *limit);
        }
        self.prefill()?;
        while self.step()? {}
        let of = |i: usize| {
            let current = |s: &&DraftedSample| s.is_of(&running[i]) && s.sampled == running[i].state.ids.len();
            self.batch.running().iter().find(current).map_or_else(Vec::new, |s| s.draft().to_vec())
        };
        Ok(wanted.iter().map(|(i, _)| of(*i)).collect())
    }

    /// Sets the tokens of a sample. Cached tokens of drafts that were rejected are computed again.
    fn follow(&mut self, sequence: &Sequence, limit: usize) {
        let (decoder, ids) = (&self.model.decoder, &sequence.state.ids);
        let vocab = decoder.config.vocab_size;
        let fits = ids.len() + limit < decoder.config.max_positions && ids.iter().all(|id| (*id as usize) < vocab);
        let rope = decoder.rope_length(sequence.state.prompt_len);
        if !fits || sequence.shared.soft.is_some() || decoder.is_long(ids.len() + limit) != rope.long {
            return;
        }
        let i = match self.batch.running().iter().position(|sample| sample.is_of(sequence)) {
            Some(i) => i,
            None => self.batch.add(DraftedSample {
                request: Arc::downgrade(&sequence.shared),
                index: sequence.index,
                params: sequence.shared.request.params.clone(),
                end_ids: sequence.shared.end_ids.clone(),
                state: SequenceState {
                    prompt_len: sequence.state.prompt_len,
                    ids: Vec::new(),
                    cached: CachedSequence { rope, ..CachedSequence::default() },
                },
                sampled: 0,
                limit: 0,
            }),
        };
        let sample = &mut self.batch.running_mut()[i];
        let common = sample.state.ids.iter().zip(ids).take_while(|(a, b)| a == b).count();
        sample.state.cached.len = sample.state.cached.len.min(common).min(ids.len().saturating_sub(1));
        sample.state.ids.clone_from(ids);
        (sample.sampled, sample.limit) = (ids.len(), limit);
        self.batch.trim(i);
    }

    /// Computes the pending tokens of each sample except the last one, at most `prefill_tokens` in all.
    fn prefill(&mut self) -> candle_core::Result<()> {
        let (mut budget, mut scheduled) = (self.prefill_tokens, Vec::new());
        for i in 0..self.batch.running().len() {
            let DraftedSample { state, limit, .. } = &self.batch.running()[i];
            let pending = if *limit > 0 { state.pending() - 1 } else { 0 };
            let tokens = pending.min(budget);
            let reserved = tokens > 0 && self.batch.reserve(i, tokens);
            if reserved {
                budget -= tokens;
                scheduled.push(ScheduledTokens { sequence: i, tokens, draft: Vec::new() });
            }
            if tokens < pending || (tokens > 0 && !reserved) {
                self.batch.running_mut()[i].limit = 0;
            }
        }
        if !scheduled.is_empty() {
            let step = self.batch.build_step(scheduled)?;
            self.batch.hidden(&self.model.decoder, &step)?;
            self.batch.commit(&step);
        }
        Ok(())
    }

    /// Drafts one more token for each sample that continues; `false` if none does.
    fn step(&mut self) -> candle_core::Result<bool> {
        let mut scheduled = Vec::new();
        for i in 0..self.batch.running().len() {
            if !self.batch.running()[i].continues() {
                continue;
            }
            if self.batch.reserve(i, 1) {
                scheduled.push(ScheduledTokens { sequence: i, tokens: 1, draft: Vec::new() });
            } else {
                self.batch.running_mut()[i].limit = 0;
            }
        }
        if scheduled.is_empty() {
            return Ok(false);
        }
        let step = self.batch.build_step(scheduled)?;
        let hidden = self.batch.hidden(&self.model.decoder, &step)?;
        self.batch.commit(&step);
        let mut logits = Vec::new();
        self.model.decoder.logits_into(&hidden, &step.predicting_rows(), &mut logits)?;
        self.batch.draw(&step, &logits, |sample, row, _| sample.draw(row));
        Ok(true)
    }
}

/// Checks that both models have the same tokens, so that an id means the same text in both.
///
/// # Errors
/// The first difference.
pub(super) fn check_tokens(draft: &LoadedModel, served: &LoadedModel) -> Result<(), String> {
    let (own, other) = match (draft.text.tokenizer(), served.text.tokenizer()) {
        (Ok(own), Ok(other)) => (own, other),
        (Err(_), Err(_)) if draft.served.vocab_size == served.served.vocab_size => return Ok(()),
        _ => return Err("their vocabularies differ".to_owned()),
    };
    for id in 0..own.vocab_size().max(other.vocab_size()) as u32 {
        let [own, other] = [own, other].map(|tokenizer| tokenizer.id_to_token(id));
        if own != other {
            let [own, other] =
                [own, other].map(|token| token.map_or_else(|| "missing".to_owned(), |t| format!("{t:?}")));
            return Err(format!("token id {id} is {own} in the draft model and {other} in the served one"));
        }
    }
    Ok(())
}

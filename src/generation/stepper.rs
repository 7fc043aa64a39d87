//! The core of all generation: sequences that are advanced together over one paged cache. A step computes tokens of
//! some of the sequences, writes their keys and values to the cache, and returns the rows from which tokens are drawn
//! or scored. The server's scheduler adds admission, preemption and events; rollouts add saved activations; evaluation
//! scores given tokens.

use std::sync::Arc;

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use crate::model::adapters::served::ServedAdapter;
use crate::model::decoder::kv_cache::{CachedSequence, KvCache, PAGE, StepRows};
use crate::model::{Decoder, SampledActivations};

/// The tokens of one sequence and their pages in the cache.
#[derive(Debug, Default)]
pub struct SequenceState {
    /// Placeholders of a soft prompt, the prompt, then the generated tokens.
    pub ids: Vec<u32>,
    /// Number of placeholders and prompt tokens; the ids from there on are generated.
    pub prompt_len: usize,
    pub cached: CachedSequence,
}

impl SequenceState {
    /// A prompt without cached tokens.
    pub fn new(decoder: &Decoder, ids: Vec<u32>) -> Self {
        let cached = CachedSequence { rope: decoder.rope_length(ids.len()), ..CachedSequence::default() };
        Self { prompt_len: ids.len(), ids, cached }
    }

    /// Number of tokens whose keys and values are not cached.
    pub fn pending(&self) -> usize {
        self.ids.len() - self.cached.len
    }

    pub fn generated(&self) -> &[u32] {
        &self.ids[self.prompt_len..]
    }
}

/// A sequence that a [`Stepper`] advances.
pub trait RunningSequence: Send {
    fn state(&self) -> &SequenceState;

    fn state_mut(&mut self) -> &mut SequenceState;

    /// The LoRA adapter that is applied to the sequence's rows.
    fn adapter(&self) -> Option<&Arc<ServedAdapter>> {
        None
    }

    /// Embeddings `[n, hidden]` that replace those of the first n ids.
    fn soft_prompt(&self) -> Option<&Tensor> {
        None
    }
}

/// The tokens of one sequence that the next step computes.
#[derive(Debug)]
pub struct ScheduledTokens {
    /// Index among the running sequences.
    pub sequence: usize,
    /// Number of pending tokens to compute.
    pub tokens: usize,
    /// Drafted tokens that follow the pending ones and are computed with them. Their cache entries become valid when
    /// the sampler draws the same tokens.
    pub draft: Vec<u32>,
}

/// The rows of one sequence in a step.
#[derive(Debug)]
pub struct SequenceRows {
    /// Index among the running sequences.
    pub sequence: usize,
    pub first_row: usize,
    /// Number of rows of pending tokens; the rows of `draft` follow them.
    pub tokens: usize,
    /// Whether the sequence has no pending tokens after the step, so that its next token can be drawn.
    pub complete: bool,
    pub draft: Vec<u32>,
}

impl SequenceRows {
    /// The row of the last pending token, from which the next token is drawn.
    pub fn last_row(&self) -> u32 {
        (self.first_row + self.tokens - 1) as u32
    }

    /// The last row and those of the draft. Each predicts the token that follows it.
    pub fn predicting_rows(&self) -> std::ops::RangeInclusive<u32> {
        self.last_row()..=self.last_row() + self.draft.len() as u32
    }
}

/// The rows of a step, and the sequences to which they belong.
#[derive(Debug, Default)]
pub struct Step {
    pub rows: StepRows,
    pub sequences: Vec<SequenceRows>,
}

impl Step {
    /// The sequences whose next tokens can be drawn after this step.
    pub fn complete(&self) -> impl Iterator<Item = &SequenceRows> {
        self.sequences.iter().filter(|s| s.complete)
    }

    /// The predicting rows of all complete sequences, in the order of the sequences.
    pub fn predicting_rows(&self) -> Vec<u32> {
        self.complete().flat_map(SequenceRows::predicting_rows).collect()
    }

    /// The complete sequences, each with its part of `logits`, which holds `[vocab]` values for each of
    /// [`Self::predicting_rows`].
    pub fn with_logits<'a>(&'a self, logits: &'a [f32]) -> impl Iterator<Item = (&'a SequenceRows, &'a [f32])> {
        let rows: usize = self.complete().map(|s| 1 + s.draft.len()).sum();
        let (vocab, mut rest) = (logits.len() / rows.max(1), logits);
        self.complete().map(move |s| {
            let (own, others) = rest.split_at((1 + s.draft.len()) * vocab);
            rest = others;
            (s, own)
        })
    }
}

/// Sequences that are advanced together, and the cache that they share.
#[derive(Debug)]
pub struct Stepper<S> {
    pub cache: KvCache,
    running: Vec<S>,
}

impl<S: RunningSequence> Stepper<S> {
    /// A stepper without sequences, over an empty cache.
    pub fn new(cache: KvCache) -> Self {
        Self { cache, running: Vec::new() }
    }

    /// The sequences, in the order in which they were added unless the caller has sorted them.
    pub fn running(&self) -> &[S] {
        &self.running
    }

    /// The sequences, for changes and sorting.
    pub fn running_mut(&mut self) -> &mut [S] {
        &mut self.running
    }

    /// A sequence and the cache that holds its keys and values.
    pub fn with_cache(&mut self, i: usize) -> (&mut S, &mut KvCache) {
        (&mut self.running[i], &mut self.cache)
    }

    /// Adds a sequence, whose cached tokens, if any, are in this cache. Returns its index.
    pub fn add(&mut self, sequence: S) -> usize {
        self.running.push(sequence);
        self.running.len() - 1
    }

    /// Removes a sequence and releases its pages.
    pub fn remove(&mut self, i: usize) -> S {
        let mut sequence = self.running.remove(i);
        self.release(&mut sequence);
        sequence
    }

    /// Removes the sequences for which `keep` is false, and releases their pages.
    pub fn retain(&mut self, keep: impl Fn(&S) -> bool) {
        let cache = &mut self.cache;
        self.running.retain_mut(|sequence| {
            let stays = keep(sequence);
            if !stays {
                cache.release_all(&mut sequence.state_mut().cached);
            }
            stays
        });
    }

    /// Removes the sequences at these ascending indices, and releases their pages.
    pub fn remove_all(&mut self, ended: &[usize]) {
        for i in ended.iter().rev() {
            self.remove(*i);
        }
    }

    /// Releases the pages of a sequence that is not running. All its tokens become pending.
    pub fn release(&mut self, sequence: &mut S) {
        self.cache.release_all(&mut sequence.state_mut().cached);
    }

    /// A copy of the first `len` cached tokens of a sequence. Full pages are shared; a partly filled page is copied.
    /// `None` if no page is free for that copy.
    pub fn fork(&mut self, i: usize, len: usize) -> Option<CachedSequence> {
        let CachedSequence { pages, windowed, rope, .. } = &self.running[i].state().cached;
        let head = |pages: &[u32]| pages.get(..len.div_ceil(PAGE)).unwrap_or_default().to_vec();
        self.cache.fork(&CachedSequence { pages: head(pages), windowed: head(windowed), len, rope: *rope })
    }

    /// Reserves pages for `tokens` more tokens of a sequence. `false` if there are too few free pages.
    #[must_use]
    pub fn reserve(&mut self, i: usize, tokens: usize) -> bool {
        self.cache.reserve(&mut self.running[i].state_mut().cached, tokens)
    }

    /// Releases the cached tokens of sequences that have grown past the length at which the rotary frequencies of all
    /// their tokens change (longrope), so that they are computed again.
    pub fn restart_grown(&mut self, decoder: &Decoder) {
        for sequence in &mut self.running {
            let state = sequence.state_mut();
            if !state.cached.rope.long && decoder.is_long(state.ids.len()) {
                self.cache.release_all(&mut state.cached);
                state.cached.rope.long = true;
            }
        }
    }

    /// Builds the rows of a step. The caller has reserved pages for all of them.
    ///
    /// # Errors
    /// If a soft prompt cannot be read.
    pub fn build_step(&self, scheduled: Vec<ScheduledTokens>) -> Result<Step> {
        let mut step = Step { rows: StepRows::default(), sequences: Vec::with_capacity(scheduled.len()) };
        for ScheduledTokens { sequence, tokens, draft } in scheduled {
            let owner = &self.running[sequence];
            let state = owner.state();
            let from = state.cached.len;
            let ids = [&state.ids[from..from + tokens], &draft].concat();
            let first_row = step.rows.push(&ids, &state.cached) + 1 - ids.len();
            if let Some(adapter) = owner.adapter() {
                step.rows.with_adapter(adapter, ids.len());
            }
            if let Some(soft) = owner.soft_prompt() {
                let n = soft.dim(0)?;
                if from < n {
                    step.rows.replace(first_row, soft.narrow(0, from, tokens.min(n - from))?);
                }
            }
            let complete = state.pending() == tokens;
            step.sequences.push(SequenceRows { sequence, first_row, tokens, complete, draft });
        }
        Ok(step)
    }

    /// Computes the step on the CPU or with candle's operations. Writes keys and values to the cache, where
    /// [`Self::commit`] makes them valid, and returns hidden states `[rows, hidden]` after the final norm.
    ///
    /// # Errors
    /// Those of the model.
    pub fn hidden(&mut self, decoder: &Decoder, step: &Step) -> Result<Tensor> {
        decoder.step(&step.rows, &mut self.cache)
    }

    /// Computes the step as [`Self::hidden`] does, and saves in `activations` the activations that an update needs.
    /// `number` maps a sequence to its number in `activations`.
    ///
    /// # Errors
    /// Those of the model.
    pub fn hidden_with_activations(
        &mut self,
        decoder: &Decoder,
        step: &Step,
        activations: &mut SampledActivations,
        number: impl Fn(&S) -> usize,
    ) -> Result<Tensor> {
        let places = step.sequences.iter().flat_map(|s| {
            let (number, from) = (number(&self.running[s.sequence]), self.running[s.sequence].state().cached.len);
            (from..from + s.tokens).map(move |position| (number, position))
        });
        let places: Vec<_> = places.collect();
        decoder.step_with_activations(&step.rows, &mut self.cache, Some((activations, &places)))
    }

    /// Counts the step's pending tokens as cached. Drafted tokens are not counted.
    pub fn commit(&mut self, step: &Step) {
        for s in &step.sequences {
            self.running[s.sequence].state_mut().cached.len += s.tokens;
        }
    }

    /// Releases pages of windowed layers to which no later token of the sequence attends.
    pub fn trim(&mut self, i: usize) {
        self.cache.trim(&mut self.running[i].state_mut().cached);
    }

    /// Calls `draw(sequence, logits, draft)` for each complete sequence of the step, in parallel, with the logits that
    /// [`Step::with_logits`] assigns to it. Returns the results with the sequences' indices, in ascending order.
    pub fn draw<T: Send>(
        &mut self,
        step: &Step,
        logits: &[f32],
        draw: impl Fn(&mut S, &[f32], &[u32]) -> T + Sync,
    ) -> Vec<(usize, T)> {
        let mut own: Vec<Option<(&[f32], &[u32])>> = vec![None; self.running.len()];
        for (s, rows) in step.with_logits(logits) {
            own[s.sequence] = Some((rows, &s.draft));
        }
        let drawn = self.running.par_iter_mut().zip(own).enumerate().filter_map(|(i, (sequence, own))| {
            let (rows, draft) = own?;
            Some((i, draw(sequence, rows, draft)))
        });
        drawn.collect()
    }
}

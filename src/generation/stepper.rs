//! The core of all generation: sequences that are advanced together over one paged cache. A step feeds tokens of some of
//! them, writes their keys and values, and gives the rows from which tokens are drawn or scored. The server's scheduler
//! adds admission, preemption and events; rollouts add saved activations; evaluation scores given tokens.

use std::sync::Arc;

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use crate::model::adapters::served::ServedAdapter;
use crate::model::decoder::kv_cache::{CachedSequence, KvCache, PAGE, StepRows};
use crate::model::{Decoder, Recording};

/// The tokens of one sequence and their place in the cache.
#[derive(Debug, Default)]
pub struct Track {
    /// Placeholders of a soft prompt, the prompt, then drawn tokens.
    pub ids: Vec<u32>,
    /// How many of the ids were given; those behind were drawn.
    pub prompt_len: usize,
    pub cached: CachedSequence,
}

impl Track {
    /// A prompt of which nothing is cached.
    pub fn new(decoder: &Decoder, ids: Vec<u32>) -> Self {
        let cached = CachedSequence { rope: decoder.rope_length(ids.len()), ..CachedSequence::default() };
        Self { prompt_len: ids.len(), ids, cached }
    }

    /// Tokens whose keys and values are not cached.
    pub fn pending(&self) -> usize {
        self.ids.len() - self.cached.len
    }

    /// The drawn tokens.
    pub fn generated(&self) -> &[u32] {
        &self.ids[self.prompt_len..]
    }
}

/// A sequence that a [`Stepper`] advances.
pub trait Tracked: Send {
    fn track(&self) -> &Track;

    fn track_mut(&mut self) -> &mut Track;

    /// The LoRA adapter that is applied to its rows.
    fn adapter(&self) -> Option<&Arc<ServedAdapter>> {
        None
    }

    /// Embeddings `[n, d]` that are read in place of the first n ids.
    fn soft_prompt(&self) -> Option<&Tensor> {
        None
    }
}

/// The part of one sequence in a step that is being put together.
#[derive(Debug)]
pub struct Feed {
    /// Index among the running sequences.
    pub sequence: usize,
    /// Pending tokens to feed.
    pub tokens: usize,
    /// Guesses of the tokens behind them, fed as well. Their cache entries count once they are confirmed.
    pub draft: Vec<u32>,
}

/// The rows of one sequence in a step.
#[derive(Debug)]
pub struct Fed {
    /// Index among the running sequences.
    pub sequence: usize,
    pub first_row: usize,
    /// Rows of pending tokens; the rows of `draft` follow.
    pub tokens: usize,
    /// Whether no token of the sequence is pending after the step, so that the next one can be drawn.
    pub complete: bool,
    pub draft: Vec<u32>,
}

impl Fed {
    /// The row of the last pending token, from which the next token is drawn.
    pub fn last_row(&self) -> u32 {
        (self.first_row + self.tokens - 1) as u32
    }

    /// The last row and those of the draft, each of which predicts the token after it.
    pub fn predicting_rows(&self) -> std::ops::RangeInclusive<u32> {
        self.last_row()..=self.last_row() + self.draft.len() as u32
    }
}

/// The rows of a step, and whose they are.
#[derive(Debug, Default)]
pub struct Step {
    pub rows: StepRows,
    pub fed: Vec<Fed>,
}

impl Step {
    /// The sequences from which tokens can be drawn after this step.
    pub fn complete(&self) -> impl Iterator<Item = &Fed> {
        self.fed.iter().filter(|f| f.complete)
    }

    /// The rows that predict tokens to be drawn, sequence by sequence.
    pub fn predicting_rows(&self) -> Vec<u32> {
        self.complete().flat_map(Fed::predicting_rows).collect()
    }

    /// The sequences from which tokens can be drawn, each with its part of `logits`, which are those of
    /// [`Self::predicting_rows`], end to end: the row of its last token, then those of its draft.
    pub fn with_logits<'a>(&'a self, logits: &'a [f32]) -> impl Iterator<Item = (&'a Fed, &'a [f32])> {
        let rows: usize = self.complete().map(|f| 1 + f.draft.len()).sum();
        let (vocab, mut rest) = (logits.len() / rows.max(1), logits);
        self.complete().map(move |f| {
            let (own, others) = rest.split_at((1 + f.draft.len()) * vocab);
            rest = others;
            (f, own)
        })
    }
}

/// Sequences that are advanced together, and the cache that they share.
#[derive(Debug)]
pub struct Stepper<S> {
    pub cache: KvCache,
    running: Vec<S>,
}

impl<S: Tracked> Stepper<S> {
    /// No sequences, over an empty cache.
    pub fn new(cache: KvCache) -> Self {
        Self { cache, running: Vec::new() }
    }

    /// The sequences in the order of their joining.
    pub fn running(&self) -> &[S] {
        &self.running
    }

    /// The sequences, to be changed or put in another order.
    pub fn running_mut(&mut self) -> &mut [S] {
        &mut self.running
    }

    /// A sequence and the cache that holds its keys and values.
    pub fn with_cache(&mut self, i: usize) -> (&mut S, &mut KvCache) {
        (&mut self.running[i], &mut self.cache)
    }

    /// Takes a sequence in, which may have cached tokens of this cache; gives its index.
    pub fn join(&mut self, sequence: S) -> usize {
        self.running.push(sequence);
        self.running.len() - 1
    }

    /// Takes a sequence out. Its pages are released.
    pub fn leave(&mut self, i: usize) -> S {
        let mut sequence = self.running.remove(i);
        self.release(&mut sequence);
        sequence
    }

    /// Takes out the sequences that `keep` refuses, and releases their pages.
    pub fn retain(&mut self, keep: impl Fn(&S) -> bool) {
        let cache = &mut self.cache;
        self.running.retain_mut(|sequence| {
            let kept = keep(sequence);
            if !kept {
                cache.release_all(&mut sequence.track_mut().cached);
            }
            kept
        });
    }

    /// Takes out the sequences at these indices, which ascend, and releases their pages.
    pub fn retire(&mut self, ended: &[usize]) {
        for i in ended.iter().rev() {
            self.leave(*i);
        }
    }

    /// Releases the pages of a sequence that is not running. Its tokens become pending.
    pub fn release(&mut self, sequence: &mut S) {
        self.cache.release_all(&mut sequence.track_mut().cached);
    }

    /// A copy of the first `len` cached tokens of a sequence. Full pages are shared. `None` where no page is free for the
    /// rest.
    pub fn fork(&mut self, i: usize, len: usize) -> Option<CachedSequence> {
        let CachedSequence { pages, windowed, rope, .. } = &self.running[i].track().cached;
        let head = |pages: &[u32]| pages.get(..len.div_ceil(PAGE)).unwrap_or_default().to_vec();
        self.cache.fork(&CachedSequence { pages: head(pages), windowed: head(windowed), len, rope: *rope })
    }

    /// Makes room for tokens of a sequence; `false` where pages are missing.
    #[must_use]
    pub fn reserve(&mut self, i: usize, tokens: usize) -> bool {
        self.cache.reserve(&mut self.running[i].track_mut().cached, tokens)
    }

    /// Releases what is cached of sequences that have grown past the length from which all their tokens have other rotary
    /// frequencies (longrope), so that they are computed again.
    pub fn restart_grown(&mut self, decoder: &Decoder) {
        for sequence in &mut self.running {
            let track = sequence.track_mut();
            if !track.cached.rope.long && decoder.is_long(track.ids.len()) {
                self.cache.release_all(&mut track.cached);
                track.cached.rope.long = true;
            }
        }
    }

    /// The rows of a step. Pages for all of them were reserved.
    ///
    /// # Errors
    /// A soft prompt that cannot be read.
    pub fn rows(&self, feeds: Vec<Feed>) -> Result<Step> {
        let mut step = Step { rows: StepRows::default(), fed: Vec::with_capacity(feeds.len()) };
        for Feed { sequence, tokens, draft } in feeds {
            let owner = &self.running[sequence];
            let track = owner.track();
            let from = track.cached.len;
            let ids = [&track.ids[from..from + tokens], &draft].concat();
            let first_row = step.rows.push(&ids, &track.cached) + 1 - ids.len();
            if let Some(adapter) = owner.adapter() {
                step.rows.with_adapter(adapter, ids.len());
            }
            if let Some(soft) = owner.soft_prompt() {
                let n = soft.dim(0)?;
                if from < n {
                    step.rows.replace(first_row, soft.narrow(0, from, tokens.min(n - from))?);
                }
            }
            let complete = track.pending() == tokens;
            step.fed.push(Fed { sequence, first_row, tokens, complete, draft });
        }
        Ok(step)
    }

    /// Computes the step on the CPU or with candle's operations: hidden states `[rows, d]` after the final norm, their keys
    /// and values in the cache. [`Self::written`] accounts for them.
    ///
    /// # Errors
    /// Those of the model.
    pub fn hidden(&mut self, decoder: &Decoder, step: &Step) -> Result<Tensor> {
        decoder.step(&step.rows, &mut self.cache)
    }

    /// As [`Self::hidden`]; saves the activations that an update needs. `number` is a sequence's number in the recording.
    ///
    /// # Errors
    /// Those of the model.
    pub fn hidden_recorded(
        &mut self,
        decoder: &Decoder,
        step: &Step,
        recording: &mut Recording,
        number: impl Fn(&S) -> usize,
    ) -> Result<Tensor> {
        let places = step.fed.iter().flat_map(|f| {
            let (number, from) = (number(&self.running[f.sequence]), self.running[f.sequence].track().cached.len);
            (from..from + f.tokens).map(move |position| (number, position))
        });
        let places: Vec<_> = places.collect();
        decoder.step_recorded(&step.rows, &mut self.cache, Some((recording, &places)))
    }

    /// Counts the step's tokens as cached, but not its guesses.
    pub fn written(&mut self, step: &Step) {
        for f in &step.fed {
            self.running[f.sequence].track_mut().cached.len += f.tokens;
        }
    }

    /// Releases pages of windowed layers that no later token of the sequence attends to.
    pub fn trim(&mut self, i: usize) {
        self.cache.trim(&mut self.running[i].track_mut().cached);
    }

    /// Calls `draw` for each sequence from which tokens can be drawn, in parallel, with its logits as of
    /// [`Step::with_logits`] and its draft. The results come with the index of the sequence, in ascending order.
    pub fn draw<T: Send>(
        &mut self,
        step: &Step,
        logits: &[f32],
        draw: impl Fn(&mut S, &[f32], &[u32]) -> T + Sync,
    ) -> Vec<(usize, T)> {
        let mut own: Vec<Option<(&[f32], &[u32])>> = vec![None; self.running.len()];
        for (f, rows) in step.with_logits(logits) {
            own[f.sequence] = Some((rows, &f.draft));
        }
        let drawn = self.running.par_iter_mut().zip(own).enumerate().filter_map(|(i, (sequence, own))| {
            let (rows, draft) = own?;
            Some((i, draw(sequence, rows, draft)))
        });
        drawn.collect()
    }
}

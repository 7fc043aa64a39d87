//! Log-probs of given continuations, for evaluation outside the server. A prefix that the continuations share is
//! computed once. The server's `/v1/choices` scores continuations through the engine instead.

mod device;

use std::collections::BTreeSet;

use candle_core::{DType, Device, Error, Result, Tensor};

use super::sampling::logprob_and_top;
use super::stepper::{RunningSequence, ScheduledTokens, SequenceState, Stepper};
use crate::model::Decoder;
use crate::model::decoder::attached::Attached;
use crate::model::decoder::kv_cache::{CachedSequence, KvCache, PAGE, RopeLength};

/// Maximum number of tokens of a prefix, or of a step or of whole sequences on a device, that are computed together.
const CHUNK: usize = 512;

/// A sequence and the index of the first token whose log-prob is reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Continuation {
    pub ids: Vec<u32>,
    pub from: usize,
}

/// A sequence to score: placeholders of the soft prompt, then its tokens.
struct ScoredTokens {
    state: SequenceState,
    soft: Option<Tensor>,
}

impl RunningSequence for ScoredTokens {
    fn state(&self) -> &SequenceState {
        &self.state
    }

    fn state_mut(&mut self) -> &mut SequenceState {
        &mut self.state
    }

    fn soft_prompt(&self) -> Option<&Tensor> {
        self.soft.as_ref()
    }
}

/// Scores continuations of one cached prefix, such as few-shot examples.
pub struct ContinuationScorer<'a> {
    decoder: &'a Decoder,
    /// The first sequence is the cached prefix: placeholders of the soft prompt, then the tokens of `set_prefix`.
    batch: Stepper<ScoredTokens>,
    soft: Option<Tensor>,
    /// Advances the sequences on the device of the decoder, if it is on one that has room for their keys and values.
    steps: Option<Attached>,
}

/// The index of the cached prefix in the batch.
const PREFIX: usize = 0;

fn without_tokens() -> Error {
    Error::msg("a continuation needs at least one token, and a token before it")
}

impl<'a> ContinuationScorer<'a> {
    /// `soft` `[n, hidden]` are embeddings that precede every sequence. At most `max_sequences` are scored together.
    ///
    /// # Errors
    /// If `soft` has another shape, and those of the model.
    pub fn new(decoder: &'a Decoder, soft: Option<Tensor>, max_sequences: usize) -> Result<Self> {
        let soft_len = soft.as_ref().map_or(Ok(0), |s| s.dim(0))?;
        // The prefix, its successor and one shared stem, and ten pages for each continuation.
        let tokens = 3 * decoder.config.max_positions.min(4096) + (max_sequences + 3) * 10 * PAGE;
        let (cache, steps) = match decoder.attached() {
            None => (KvCache::new(&decoder.config, tokens), None),
            Some(_) if soft.is_some() => {
                candle_core::bail!("soft prompts are evaluated on the CPU; set device to cpu")
            }
            Some(attached) => device::cache(decoder, attached, tokens),
        };
        let mut scorer = Self { decoder, batch: Stepper::new(cache), soft, steps };
        let prefix =
            SequenceState { cached: CachedSequence::default(), ..SequenceState::new(decoder, vec![0; soft_len]) };
        let prefix = scorer.add(prefix);
        scorer.compute(prefix)?;
        Ok(scorer)
    }

    /// Caches `tokens` as the prefix for the sequences that begin with them, in place of the previous prefix.
    ///
    /// # Errors
    /// If there are more tokens than the model has positions, and those of the model.
    pub fn set_prefix(&mut self, tokens: &[u32]) -> Result<()> {
        self.remove_continuations();
        let n = self.soft_len();
        let ids = [vec![0; n], tokens.to_vec()].concat();
        self.check_length(ids.len())?;
        if self.decoder.attached().is_some() && !self.has_room(ids.len()) {
            // Continuations are then computed without it.
            return Ok(());
        }
        let rope = self.decoder.rope_length(ids.len());
        let next = self.add_fork(PREFIX, n, ids, rope)?;
        self.compute(next)?;
        self.batch.remove(PREFIX);
        Ok(())
    }

    /// For each sequence, the log-probs in nats of its tokens from `from` on. Sequences that do not begin with the
    /// cached prefix are computed from their start.
    ///
    /// # Errors
    /// If a continuation is empty or has no token before it, if a sequence has more tokens than the model has positions
    /// or the cache has room for, and those of the model.
    pub fn score(&mut self, sequences: &[Continuation]) -> Result<Vec<Vec<f32>>> {
        if self.decoder.attached().is_some() && self.steps.is_none() {
            return self.score_whole(sequences);
        }
        self.remove_continuations();
        let soft = self.soft_len();
        let whole: Vec<Continuation> = sequences
            .iter()
            .map(|s| Continuation { ids: [vec![0; soft], s.ids.clone()].concat(), from: soft + s.from })
            .collect();
        let Some(first) = whole.first() else { return Ok(Vec::new()) };
        let rope = |s: &Continuation| self.decoder.rope_length(s.ids.len());
        if whole.iter().any(|s| rope(s) != rope(first)) {
            return self.score_separately(sequences);
        }
        let rope = rope(first);
        // The last token predicts nothing and is not computed.
        self.check_length(whole.iter().map(|s| s.ids.len().saturating_sub(1)).max().unwrap_or(0))?;
        let common = |a: &[u32], b: &[u32]| a.iter().zip(b).take_while(|(x, y)| x == y).count();
        let shared = whole.iter().map(|s| common(&first.ids, &s.ids).min(s.ids.len().saturating_sub(1))).min();
        let shared = shared.unwrap_or(0);
        let earliest = whole.iter().map(|s| s.from).min().unwrap_or(0);
        if earliest == 0 || whole.iter().any(|s| s.from >= s.ids.len()) || shared == 0 {
            return Err(without_tokens());
        }
        // The row that predicts the first scored token must be computed, so it is not reused from the prefix.
        let prefix = &self.batch.running()[PREFIX].state.ids;
        let reuse = common(prefix, &first.ids[..shared]).min(earliest - 1).min(shared - 1);
        if self.steps.is_some() && !self.can_share(&whole, shared) {
            return self.score_whole(sequences);
        }
        let stem = self.add_fork(PREFIX, reuse, first.ids[..shared].to_vec(), rope)?;
        if self.steps.is_some() {
            return self.score_from_stem(&whole, stem, shared);
        }
        let reuse = self.batch.running()[stem].state.cached.len;
        let stem_hidden = self.compute(stem)?;
        let mut scheduled = Vec::new();
        for s in &whole {
            let branch = self.add_fork(stem, shared, s.ids[..s.ids.len() - 1].to_vec(), rope)?;
            scheduled.push(self.schedule(branch, usize::MAX)?);
        }
        let mut starts = vec![0; whole.len()];
        scheduled.retain(|part| part.tokens > 0);
        // The rows of the stem, then those of the branches.
        let mut hidden = stem_hidden;
        if !scheduled.is_empty() {
            let step = self.batch.build_step(scheduled)?;
            hidden = Tensor::cat(&[&hidden, &self.batch.hidden(self.decoder, &step)?], 0)?;
            for branch in &step.sequences {
                starts[branch.sequence - stem - 1] = branch.first_row;
            }
        }
        let row = |i: usize, at: usize| match at < shared {
            true => (at - reuse) as u32,
            false => (shared - reuse + starts[i] + at - shared) as u32,
        };
        let mut wanted: Vec<u32> = Vec::new();
        for (i, s) in whole.iter().enumerate() {
            wanted.extend((s.from..s.ids.len()).map(|t| row(i, t - 1)));
        }
        wanted.sort_unstable();
        wanted.dedup();
        let predicting = hidden.index_select(&Tensor::new(wanted.as_slice(), hidden.device())?, 0)?;
        let logits = self.decoder.logits(&predicting)?.to_vec2::<f32>()?;
        let scores = whole.iter().enumerate().map(|(i, s)| {
            let one = |t: usize| {
                let at = wanted.partition_point(|w| *w < row(i, t - 1));
                logprob_and_top(&logits[at], s.ids[t], 1.0, 0).0
            };
            (s.from..s.ids.len()).map(one).collect()
        });
        let scores = scores.collect();
        self.remove_continuations();
        Ok(scores)
    }

    /// Scores sequences one at a time. Needed if their rotary frequencies differ (see `Decoder::rope_length`), because
    /// they can then not share keys.
    fn score_separately(&mut self, sequences: &[Continuation]) -> Result<Vec<Vec<f32>>> {
        sequences.iter().map(|s| Ok(self.score(std::slice::from_ref(s))?.concat())).collect()
    }

    /// Removes all sequences except the prefix from the batch.
    fn remove_continuations(&mut self) {
        while self.batch.running().len() > PREFIX + 1 {
            self.batch.remove(self.batch.running().len() - 1);
        }
    }

    fn soft_len(&self) -> usize {
        self.soft.as_ref().map_or(0, |s| s.dims()[0])
    }

    fn check_length(&self, tokens: usize) -> Result<()> {
        let limit = self.decoder.config.max_positions;
        if tokens > limit {
            candle_core::bail!("{tokens} tokens, with the prompt before them, exceed the model's {limit} positions");
        }
        Ok(())
    }

    fn add(&mut self, state: SequenceState) -> usize {
        self.batch.add(ScoredTokens { state, soft: self.soft.clone() })
    }

    /// Adds a sequence that shares the first `len` cached tokens of another one, or none if their rotary frequencies
    /// differ. Returns its index.
    fn add_fork(&mut self, other: usize, len: usize, ids: Vec<u32>, rope: RopeLength) -> Result<usize> {
        let cached = match self.batch.running()[other].state.cached.rope == rope {
            true => self.batch.fork(other, len),
            false => Some(CachedSequence { rope, ..CachedSequence::default() }),
        };
        let Some(cached) = cached else { candle_core::bail!("the key/value cache is full") };
        Ok(self.add(SequenceState { prompt_len: ids.len(), ids, cached }))
    }

    /// Schedules at most `limit` pending tokens of a sequence, and reserves pages for them.
    fn schedule(&mut self, sequence: usize, limit: usize) -> Result<ScheduledTokens> {
        let tokens = self.batch.running()[sequence].state.pending().min(limit);
        if !self.batch.reserve(sequence, tokens) {
            candle_core::bail!("the key/value cache is full");
        }
        Ok(ScheduledTokens { sequence, tokens, draft: Vec::new() })
    }

    /// Computes the n pending tokens of a sequence. Returns their hidden states `[n, hidden]`, on a device none.
    fn compute(&mut self, sequence: usize) -> Result<Tensor> {
        if self.steps.is_some() {
            self.advance(sequence..sequence + 1, &BTreeSet::new())?;
        }
        let mut parts = Vec::new();
        while self.batch.running()[sequence].state.pending() > 0 {
            let chunk = self.schedule(sequence, CHUNK)?;
            let step = self.batch.build_step(vec![chunk])?;
            parts.push(self.batch.hidden(self.decoder, &step)?);
            self.batch.commit(&step);
        }
        match parts.len() {
            0 => Tensor::zeros((0, self.decoder.config.hidden_size), DType::F32, &Device::Cpu),
            _ => Tensor::cat(&parts, 0),
        }
    }
}

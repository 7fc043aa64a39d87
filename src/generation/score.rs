//! Log-probs of given continuations for evaluation in the foreground; their shared prefix is computed once. The server's
//! `/v1/choices` scores continuations through the engine instead.

use candle_core::{DType, Device, Result, Tensor};

use super::sampling::report;
use super::stepper::{Feed, Stepper, Track, Tracked};
use crate::model::Decoder;
use crate::model::decoder::kv_cache::{CachedSequence, KvCache, PAGE, RopeLength};

/// Prompt tokens per step.
const CHUNK: usize = 512;

/// A sequence and the index of the first token whose log-prob is reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Continuation {
    pub ids: Vec<u32>,
    pub from: usize,
}

/// Tokens that are scored, behind the soft prompt.
struct ScoredTokens {
    track: Track,
    soft: Option<Tensor>,
}

impl Tracked for ScoredTokens {
    fn track(&self) -> &Track {
        &self.track
    }

    fn track_mut(&mut self) -> &mut Track {
        &mut self.track
    }

    fn soft_prompt(&self) -> Option<&Tensor> {
        self.soft.as_ref()
    }
}

/// Scores continuations of one cached prefix, such as few-shot examples.
pub struct ContinuationScorer<'a> {
    decoder: &'a Decoder,
    /// The first sequence is the kept prefix: placeholders of the soft prompt and the tokens computed so far.
    batch: Stepper<ScoredTokens>,
    soft: Option<Tensor>,
}

/// The index of the kept prefix in the batch.
const PREFIX: usize = 0;

impl<'a> ContinuationScorer<'a> {
    /// `soft` `[n, d]` is read before everything. `most` sequences are scored together.
    ///
    /// # Errors
    /// A soft prompt of another shape, and those of the model.
    pub fn new(decoder: &'a Decoder, soft: Option<Tensor>, most: usize) -> Result<Self> {
        let soft_len = soft.as_ref().map_or(Ok(0), |s| s.dim(0))?;
        // The kept prefix, the next one, one prompt; for each candidate ten pages of its own.
        let tokens = 3 * decoder.config.max_positions.min(4096) + (most + 3) * 10 * PAGE;
        let batch = Stepper::new(KvCache::new(&decoder.config, tokens));
        let mut scorer = Self { decoder, batch, soft };
        let prefix = Track { cached: CachedSequence::default(), ..Track::new(decoder, vec![0; soft_len]) };
        let prefix = scorer.join(prefix);
        scorer.compute(prefix)?;
        Ok(scorer)
    }

    /// Computes `tokens` once for all sequences that begin with them; replaces the former prefix.
    ///
    /// # Errors
    /// More tokens than the model has positions, and those of the model.
    pub fn keep(&mut self, tokens: &[u32]) -> Result<()> {
        self.forget();
        let n = self.soft_len();
        let ids = [vec![0; n], tokens.to_vec()].concat();
        self.fits(ids.len())?;
        let rope = self.decoder.rope_length(ids.len());
        let next = self.join_behind(PREFIX, n, ids, rope)?;
        self.compute(next)?;
        self.batch.leave(PREFIX);
        Ok(())
    }

    /// For each sequence log p of its tokens from `from` on, in nats. Sequences that do not begin with the kept prefix
    /// are computed from their start.
    ///
    /// # Errors
    /// A continuation without a token before it or of its own, more tokens than the model has positions or than the cache
    /// holds, and those of the model.
    pub fn score(&mut self, sequences: &[Continuation]) -> Result<Vec<Vec<f32>>> {
        self.forget();
        let soft = self.soft_len();
        let whole: Vec<Continuation> = sequences
            .iter()
            .map(|s| Continuation { ids: [vec![0; soft], s.ids.clone()].concat(), from: soft + s.from })
            .collect();
        let Some(first) = whole.first() else { return Ok(Vec::new()) };
        let rope = |s: &Continuation| self.decoder.rope_length(s.ids.len());
        if whole.iter().any(|s| rope(s) != rope(first)) {
            return self.score_apart(sequences);
        }
        let rope = rope(first);
        // The last token is not fed.
        self.fits(whole.iter().map(|s| s.ids.len().saturating_sub(1)).max().unwrap_or(0))?;
        let common = |a: &[u32], b: &[u32]| a.iter().zip(b).take_while(|(x, y)| x == y).count();
        let shared = whole.iter().map(|s| common(&first.ids, &s.ids).min(s.ids.len().saturating_sub(1))).min();
        let shared = shared.unwrap_or(0);
        let earliest = whole.iter().map(|s| s.from).min().unwrap_or(0);
        if earliest == 0 || whole.iter().any(|s| s.from >= s.ids.len()) || shared == 0 {
            candle_core::bail!("a continuation needs a token before it and one of its own");
        }
        // The row before the first token that counts is computed here, not read from the prefix.
        let prefix = &self.batch.running()[PREFIX].track.ids;
        let reuse = common(prefix, &first.ids[..shared]).min(earliest - 1).min(shared - 1);
        let stem = self.join_behind(PREFIX, reuse, first.ids[..shared].to_vec(), rope)?;
        let reuse = self.batch.running()[stem].track.cached.len;
        let stem_hidden = self.compute(stem)?;
        let mut feeds = Vec::new();
        for s in &whole {
            // The last token predicts nothing that is asked for.
            let tail = self.join_behind(stem, shared, s.ids[..s.ids.len() - 1].to_vec(), rope)?;
            feeds.push(self.feed(tail, usize::MAX)?);
        }
        let mut starts = vec![0; whole.len()];
        feeds.retain(|feed| feed.tokens > 0);
        // Rows of [stem; tails] that predict each counted token.
        let mut hidden = stem_hidden;
        if !feeds.is_empty() {
            let step = self.batch.rows(feeds)?;
            hidden = Tensor::cat(&[&hidden, &self.batch.hidden(self.decoder, &step)?], 0)?;
            for f in &step.fed {
                starts[f.sequence - stem - 1] = f.first_row;
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
        let picked = hidden.index_select(&Tensor::new(wanted.as_slice(), hidden.device())?, 0)?;
        let logits = self.decoder.logits(&picked)?.to_vec2::<f32>()?;
        let scores = whole.iter().enumerate().map(|(i, s)| {
            let one = |t: usize| {
                let at = wanted.partition_point(|w| *w < row(i, t - 1));
                report(&logits[at], s.ids[t], 1.0, 0).0
            };
            (s.from..s.ids.len()).map(one).collect()
        });
        let scores = scores.collect();
        self.forget();
        Ok(scores)
    }

    /// `score` of sequences with different rotary frequencies (see `Decoder::rope_length`), which share no keys.
    fn score_apart(&mut self, sequences: &[Continuation]) -> Result<Vec<Vec<f32>>> {
        sequences.iter().map(|s| Ok(self.score(std::slice::from_ref(s))?.concat())).collect()
    }

    /// Takes all sequences but the prefix out of the batch.
    fn forget(&mut self) {
        while self.batch.running().len() > PREFIX + 1 {
            self.batch.leave(self.batch.running().len() - 1);
        }
    }

    fn soft_len(&self) -> usize {
        self.soft.as_ref().map_or(0, |s| s.dims()[0])
    }

    fn fits(&self, tokens: usize) -> Result<()> {
        let most = self.decoder.config.max_positions;
        if tokens > most {
            candle_core::bail!(
                "{tokens} tokens, with all that stands before them, exceed the model's {most} positions"
            );
        }
        Ok(())
    }

    fn join(&mut self, track: Track) -> usize {
        self.batch.join(ScoredTokens { track, soft: self.soft.clone() })
    }

    /// A sequence that has the first `len` cached tokens of another one, or none where its rotary frequencies differ.
    fn join_behind(&mut self, other: usize, len: usize, ids: Vec<u32>, rope: RopeLength) -> Result<usize> {
        let cached = match self.batch.running()[other].track.cached.rope == rope {
            true => self.batch.fork(other, len),
            false => Some(CachedSequence { rope, ..CachedSequence::default() }),
        };
        let Some(cached) = cached else { candle_core::bail!("the cache is full") };
        Ok(self.join(Track { prompt_len: ids.len(), ids, cached }))
    }

    /// At most `most` pending tokens of a sequence, with pages for them.
    fn feed(&mut self, sequence: usize, most: usize) -> Result<Feed> {
        let tokens = self.batch.running()[sequence].track.pending().min(most);
        if !self.batch.reserve(sequence, tokens) {
            candle_core::bail!("the cache is full");
        }
        Ok(Feed { sequence, tokens, draft: Vec::new() })
    }

    /// Computes the pending tokens of a sequence; their hidden states `[n, d]`.
    fn compute(&mut self, sequence: usize) -> Result<Tensor> {
        let mut parts = Vec::new();
        while self.batch.running()[sequence].track.pending() > 0 {
            let feed = self.feed(sequence, CHUNK)?;
            let step = self.batch.rows(vec![feed])?;
            parts.push(self.batch.hidden(self.decoder, &step)?);
            self.batch.written(&step);
        }
        match parts.len() {
            0 => Tensor::zeros((0, self.decoder.config.hidden_size), DType::F32, &Device::Cpu),
            _ => Tensor::cat(&parts, 0),
        }
    }
}

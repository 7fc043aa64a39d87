//! Log-probs of given continuations for evaluation in the foreground; their shared prefix is computed once. The server's
//! `/v1/choices` scores continuations through the engine instead.

use candle_core::{Result, Tensor};

use super::sampling::report;
use crate::model::Decoder;
use crate::model::decoder::kv_cache::{CachedSequence, KvCache, PAGE, RopeLength, StepRows};

/// Prompt tokens per step.
const CHUNK: usize = 512;

/// A sequence and the index of the first token whose log-prob is reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Continuation {
    pub ids: Vec<u32>,
    pub from: usize,
}

/// Scores continuations of one cached prefix, such as few-shot examples.
pub struct ContinuationScorer<'a> {
    decoder: &'a Decoder,
    cache: KvCache,
    /// Placeholders of the soft prompt, and the tokens computed so far.
    prefix: Vec<u32>,
    cached: CachedSequence,
    soft: Option<Tensor>,
}

impl<'a> ContinuationScorer<'a> {
    /// `soft` [n, d] stands before everything. `most` sequences are scored together.
    pub fn new(decoder: &'a Decoder, soft: Option<Tensor>, most: usize) -> Result<Self> {
        let soft_len = soft.as_ref().map_or(Ok(0), |s| s.dim(0))?;
        // The kept prefix, the next one, one prompt; for each candidate ten pages of its own.
        let tokens = 3 * decoder.config.max_positions.min(4096) + (most + 3) * 10 * PAGE;
        let cache = KvCache::new(&decoder.config, tokens);
        let mut scorer = Self { decoder, cache, prefix: Vec::new(), cached: CachedSequence::default(), soft };
        let placeholders = vec![0; soft_len];
        let mut cached = CachedSequence::default();
        scorer.feed(&mut cached, &placeholders)?;
        (scorer.cached, scorer.prefix) = (cached, placeholders);
        Ok(scorer)
    }

    fn soft_len(&self) -> usize {
        self.soft.as_ref().map_or(0, |s| s.dims()[0])
    }

    /// Computes `tokens` once for all sequences that begin with them; replaces the former prefix.
    pub fn keep(&mut self, tokens: &[u32]) -> Result<()> {
        let n = self.soft_len();
        self.fits(n + tokens.len())?;
        let mut cached = self.stem(n, self.decoder.rope_length(n + tokens.len()))?;
        let placeholders = vec![0; n - cached.len];
        self.feed(&mut cached, &placeholders)?;
        self.feed(&mut cached, tokens)?;
        let mut former = std::mem::replace(&mut self.cached, cached);
        self.cache.release_all(&mut former);
        self.prefix.truncate(n);
        self.prefix.extend_from_slice(tokens);
        Ok(())
    }

    /// For each sequence log p of its tokens from `from` on. Sequences that do not begin with the kept prefix
    /// are computed from their start.
    pub fn score(&mut self, sequences: &[Continuation]) -> Result<Vec<Vec<f32>>> {
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
        let reuse = common(&self.prefix, &first.ids[..shared]).min(earliest - 1).min(shared - 1);
        let mut stem = self.stem(reuse, rope)?;
        let reuse = stem.len;
        let stem_hidden = self.feed(&mut stem, &first.ids[reuse..shared])?;
        let (mut rows, mut tails, mut starts) = (StepRows::default(), Vec::new(), Vec::new());
        for s in &whole {
            // The last token predicts nothing that is asked for.
            let own = &s.ids[shared..s.ids.len() - 1];
            let Some(mut tail) = self.cache.fork(&stem) else { candle_core::bail!("the cache is full") };
            if !self.cache.reserve(&mut tail, own.len()) {
                candle_core::bail!("the cache is full");
            }
            starts.push(if own.is_empty() { 0 } else { rows.push(own, &tail) + 1 - own.len() });
            tails.push(tail);
        }
        let tail_hidden = if rows.is_empty() { None } else { Some(self.decoder.step(&rows, &mut self.cache)?) };
        // Rows of [stem; tails] that predict each counted token.
        let hidden = match &tail_hidden {
            Some(tail) => Tensor::cat(&[&stem_hidden, tail], 0)?,
            None => stem_hidden,
        };
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
        for tail in &mut tails {
            self.cache.release_all(tail);
        }
        self.cache.release_all(&mut stem);
        Ok(scores)
    }

    /// `score` of sequences with different rotary frequencies (see `Decoder::rope_length`), which share no keys.
    fn score_apart(&mut self, sequences: &[Continuation]) -> Result<Vec<Vec<f32>>> {
        sequences.iter().map(|s| Ok(self.score(std::slice::from_ref(s))?.concat())).collect()
    }

    /// A sequence with the first `len` cached tokens of the prefix, or with none where its rotary frequencies are others.
    fn stem(&mut self, len: usize, rope: RopeLength) -> Result<CachedSequence> {
        match self.cached.rope == rope {
            true => self.fork(len),
            false => Ok(CachedSequence { rope, ..CachedSequence::default() }),
        }
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

    /// A sequence with the first `len` cached tokens of the prefix.
    fn fork(&mut self, len: usize) -> Result<CachedSequence> {
        let head = |pages: &[u32]| pages.get(..len.div_ceil(PAGE)).unwrap_or_default().to_vec();
        let (pages, windowed) = (head(&self.cached.pages), head(&self.cached.windowed));
        let view = CachedSequence { pages, windowed, len, rope: self.cached.rope };
        match self.cache.fork(&view) {
            Some(copy) => Ok(copy),
            None => candle_core::bail!("the cache is full"),
        }
    }

    /// Computes `tokens` behind what is cached; their hidden states [n, d].
    fn feed(&mut self, cached: &mut CachedSequence, tokens: &[u32]) -> Result<Tensor> {
        let mut parts = Vec::new();
        for chunk in tokens.chunks(CHUNK) {
            if !self.cache.reserve(cached, chunk.len()) {
                candle_core::bail!("the cache is full");
            }
            let mut rows = StepRows::default();
            rows.push(chunk, cached);
            if let Some(soft) = &self.soft
                && cached.len < soft.dim(0)?
            {
                let count = chunk.len().min(soft.dim(0)? - cached.len);
                rows.replace(0, soft.narrow(0, cached.len, count)?);
            }
            parts.push(self.decoder.step(&rows, &mut self.cache)?);
            cached.len += chunk.len();
        }
        match parts.len() {
            0 => {
                Tensor::zeros((0, self.decoder.config.hidden_size), candle_core::DType::F32, &candle_core::Device::Cpu)
            }
            _ => Tensor::cat(&parts, 0),
        }
    }
}

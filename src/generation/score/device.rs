//! Continuations on a device: steps of cached sequences, or whole sequences where these have no room.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use candle_core::{Error, Result};

use super::{CHUNK, Continuation, ContinuationScorer, without_tokens};
use crate::generation::sampling::logprob_and_top;
use crate::model::decoder::attached::Attached;
use crate::model::decoder::device::Room;
use crate::model::decoder::kv_cache::{KvCache, PAGE};
use crate::model::{Decoder, PackedBatch};

/// Most rows of a step whose logits are copied to the host.
const LOGITS: usize = 64;
/// Most rows of continuations whose logits are copied to the host. The log-probs of more tokens are computed on the device,
/// from whole sequences.
const MOST_LOGITS: usize = 4 * LOGITS;

/// A sequence of the batch, and a position in it.
type Place = (usize, usize);

/// The cache for `tokens` tokens on the device of a decoder, and what advances its sequences; neither where the device has
/// no room for it.
pub(super) fn cache(decoder: &Decoder, attached: &Attached, tokens: usize) -> (KvCache, Option<Attached>) {
    let pages = tokens.div_ceil(PAGE);
    let room = Room { pages, longest: decoder.config.max_positions.min(4096), rows: CHUNK, wanted: LOGITS };
    let steps = attached.with_steps(room, 1.0).inspect_err(|why| {
        tracing::warn!(%why, "the beginning that texts share is computed for each of them");
    });
    let steps = steps.ok().filter(|steps| steps.steps().is_some_and(|device| device.page_count() >= pages));
    let tokens = if steps.is_some() { pages * PAGE } else { 0 };
    (KvCache::on_device(tokens), steps)
}

impl ContinuationScorer<'_> {
    /// Whether the cache has room for another sequence of `tokens` tokens.
    pub(super) fn has_room(&self, tokens: usize) -> bool {
        self.steps.is_some() && tokens.div_ceil(PAGE) < self.batch.cache.free_pages()
    }

    /// Whether the cache has room for all sequences, of which `shared` tokens are shared, and the logits that predict their
    /// tokens are few.
    pub(super) fn can_share(&self, sequences: &[Continuation], shared: usize) -> bool {
        let pages = |tokens: usize| tokens.div_ceil(PAGE) + 1;
        let own: usize = sequences.iter().map(|s| pages(s.ids.len() - shared)).sum();
        let logits: usize = sequences.iter().map(|s| s.ids.len() - s.from).sum();
        pages(shared) + own <= self.batch.cache.free_pages() && logits <= MOST_LOGITS
    }

    /// Scores sequences whose first `shared` tokens are those of the sequence `stem` of the batch.
    pub(super) fn score_from_stem(
        &mut self,
        sequences: &[Continuation],
        stem: usize,
        shared: usize,
    ) -> Result<Vec<Vec<f32>>> {
        // Each token is predicted by the one before it.
        let place = |i: usize, t: usize| if t <= shared { (stem, t - 1) } else { (stem + 1 + i, t - 1) };
        let tokens = |(i, s): (usize, &Continuation)| (s.from..s.ids.len()).map(move |t| place(i, t));
        let wanted: BTreeSet<Place> = sequences.iter().enumerate().flat_map(tokens).collect();
        let mut logits = self.advance(stem..stem + 1, &wanted)?;
        let rope = self.batch.running()[stem].state.cached.rope;
        for s in sequences {
            self.add_fork(stem, shared, s.ids[..s.ids.len() - 1].to_vec(), rope)?;
        }
        logits.extend(self.advance(stem + 1..stem + 1 + sequences.len(), &wanted)?);
        self.remove_continuations();
        let missing = || Error::msg("a token that a continuation needs was not computed");
        let score = |i: usize, s: &Continuation, t: usize| {
            let row = logits.get(&place(i, t)).ok_or_else(missing)?;
            Ok(logprob_and_top(row, s.ids[t], 1.0, 0).0)
        };
        let of = |(i, s): (usize, &Continuation)| (s.from..s.ids.len()).map(|t| score(i, s, t)).collect();
        sequences.iter().enumerate().map(of).collect()
    }

    /// Computes the pending tokens of some sequences in steps of at most `CHUNK` tokens. Returns the logits of those tokens
    /// whose places are in `wanted`.
    pub(super) fn advance(
        &mut self,
        sequences: Range<usize>,
        wanted: &BTreeSet<Place>,
    ) -> Result<BTreeMap<Place, Vec<f32>>> {
        let mut found = BTreeMap::new();
        loop {
            let (mut scheduled, mut rows, mut total) = (Vec::new(), Vec::new(), 0);
            for i in sequences.clone() {
                let state = &self.batch.running()[i].state;
                let (from, mut tokens) = (state.cached.len, 0);
                while tokens < state.pending() && total < CHUNK {
                    let place = (i, from + tokens);
                    if wanted.contains(&place) {
                        if rows.len() == LOGITS {
                            break;
                        }
                        rows.push((place, total as u32));
                    }
                    (tokens, total) = (tokens + 1, total + 1);
                }
                if tokens > 0 {
                    scheduled.push(self.schedule(i, tokens)?);
                }
            }
            if scheduled.is_empty() {
                return Ok(found);
            }
            let step = self.batch.build_step(scheduled)?;
            let Some(mut device) = self.steps.as_ref().and_then(Attached::steps) else {
                candle_core::bail!("the sequences are not on a device");
            };
            for (from, to) in self.batch.cache.take_copies() {
                device.copy_page(from, to).map_err(Error::wrap)?;
            }
            let asked: Vec<u32> = rows.iter().map(|(_, row)| *row).collect();
            let logits = device.step(self.decoder, &step.rows, &asked, &[]).map_err(Error::wrap)?.logits;
            drop(device);
            self.batch.commit(&step);
            let each = logits.chunks_exact(self.decoder.config.vocab_size);
            found.extend(rows.iter().zip(each).map(|((place, _), row)| (*place, row.to_vec())));
        }
    }

    /// Scores sequences without cached tokens, as many at a time as `CHUNK` tokens have room for.
    pub(super) fn score_whole(&self, sequences: &[Continuation]) -> Result<Vec<Vec<f32>>> {
        if sequences.iter().any(|s| s.from == 0 || s.from >= s.ids.len()) {
            return Err(without_tokens());
        }
        // The last token predicts nothing and is not computed.
        let lengths: Vec<usize> = sequences.iter().map(|s| s.ids.len() - 1).collect();
        self.check_length(lengths.iter().copied().max().unwrap_or(0))?;
        let mut scores = Vec::with_capacity(sequences.len());
        while let Some(rest) = sequences.get(scores.len()..).filter(|rest| !rest.is_empty()) {
            let mut tokens = 0;
            let fits = lengths[scores.len()..].iter().take_while(|length| {
                tokens += **length;
                tokens <= CHUNK
            });
            let now = &rest[..fits.count().max(1)];
            let batch = PackedBatch::new(&now.iter().map(|s| &s.ids[..s.ids.len() - 1]).collect::<Vec<_>>());
            let (mut rows, mut targets) = (Vec::new(), Vec::new());
            for (s, offset) in now.iter().zip(&batch.offsets) {
                rows.extend((s.from..s.ids.len()).map(|t| (offset + t - 1) as u32));
                targets.extend_from_slice(&s.ids[s.from..]);
            }
            let logprobs = self.decoder.logprobs_at(&batch, &rows, &targets)?.to_vec1::<f32>()?;
            let mut logprobs = logprobs.into_iter();
            scores.extend(now.iter().map(|s| logprobs.by_ref().take(s.ids.len() - s.from).collect()));
        }
        Ok(scores)
    }
}

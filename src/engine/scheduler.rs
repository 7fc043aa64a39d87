//! Continuous batching: every step feeds one token of each running sample and, within a token budget,
//! chunks of prompts that wait. Samples join and leave between steps; memory is paged; when pages run
//! out the youngest sample gives its pages back and is computed again later, with the same result.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError};

use rayon::prelude::*;

use super::constraint::Guide;
use super::loaded::LoadedModel;
use super::lookup;
use super::output::Output;
use super::prefix::PrefixTree;
use super::sequence::{Sequence, Shared};
use super::stats::StatCells;
use super::{EngineError, GenEvent, TokenLogprob};
use crate::generation::sampling::report;
use crate::generation::stepper::{Fed, Feed, Step, Stepper, Track};
use crate::model::ModelConfig;
use crate::model::decoder::kv_cache::{CachedSequence, KvCache, PAGE};
use crate::ops::attn_kernel::padded;
use crate::ops::kv_blocks::KvFormat;

/// Limits of one step and of one version's memory.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Samples advanced together.
    pub max_running: usize,
    /// Prompt tokens fed per step beside the running samples.
    pub prefill_tokens: usize,
    /// Cached tokens per loaded version.
    pub kv_tokens: usize,
    /// How keys and values are stored on the CPU.
    pub kv_format: KvFormat,
    /// Tokens guessed for each running sample and step; 0 = none.
    pub draft_tokens: usize,
}

/// Tokens in all layers and in windowed ones: the configured size, or by default full contexts for all running samples
/// within a memory bound. Windowed layers hold the windows of all running samples, and a quarter of all tokens for
/// prefixes.
pub(super) fn cache_tokens(config: &ModelConfig, limits: Limits) -> (usize, usize) {
    const MOST_BYTES: usize = 2 << 30;
    let window = config.switches.layers.iter().filter_map(|layer| layer.window).max();
    let windowed = |tokens: usize| match window {
        Some(window) => {
            let own = window + 2 * PAGE;
            tokens.min(limits.max_running * own + window + limits.prefill_tokens + tokens / 4)
        }
        None => tokens,
    };
    if limits.kv_tokens > 0 {
        return (limits.kv_tokens, windowed(limits.kv_tokens));
    }
    let per_token = config.n_layers * config.n_kv_heads * 2 * limits.kv_format.bytes(padded(config.head_dim));
    let fits = (MOST_BYTES / per_token.max(1)).max(config.max_positions);
    let tokens = (limits.max_running * config.max_positions).min(fits);
    (tokens, windowed(tokens))
}

/// All work on one model version.
pub struct Lane {
    pub model: Arc<LoadedModel>,
    limits: Limits,
    batch: Stepper<Sequence>,
    prefixes: PrefixTree,
    waiting: VecDeque<Sequence>,
    /// Memory for the logits of a step. It is given back when nothing is left to do.
    logits: Vec<f32>,
}

impl Lane {
    pub fn new(model: Arc<LoadedModel>, limits: Limits) -> Self {
        let cache = match &model.device {
            None => {
                let (tokens, windowed) = cache_tokens(&model.decoder.config, limits);
                KvCache::with_format(&model.decoder.config, limits.kv_format, tokens, windowed)
            }
            Some(device) => KvCache::elsewhere(device.pages * PAGE),
        };
        // Rows of other devices depend on what is beside them: guesses would change texts.
        let on_host = model.device.is_none() && model.decoder.on_host();
        let draft_tokens = if on_host { limits.draft_tokens } else { 0 };
        let limits = Limits { draft_tokens, ..limits };
        Self {
            model,
            limits,
            batch: Stepper::new(cache),
            prefixes: PrefixTree::default(),
            waiting: VecDeque::new(),
            logits: Vec::new(),
        }
    }

    /// Takes a request in; its samples wait their turn.
    pub fn submit(&mut self, shared: Arc<Shared>) {
        let request = &shared.request;
        let (ids, siblings) = (shared.prompt_tokens(), request.n - 1);
        let prompt = request.prompt_logprobs.map(|_| Vec::with_capacity(ids.len()));
        let text = shared.model.text_stream(request);
        let guide = shared.guide.as_ref().map(Guide::fork);
        self.waiting.push_back(Sequence {
            shared,
            index: 0,
            track: Track { prompt_len: ids.len(), ids, cached: CachedSequence::default() },
            text,
            prompt,
            siblings,
            guide,
        });
    }

    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.batch.running().is_empty()
    }

    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub fn running(&self) -> usize {
        self.batch.running().len()
    }

    pub fn total_tokens(&self) -> usize {
        self.batch.cache.total_pages() * PAGE
    }

    /// Held by running samples.
    pub fn used_tokens(&self) -> usize {
        (self.batch.cache.total_pages() - self.batch.cache.free_pages()) * PAGE - self.remembered_tokens()
    }

    /// Prefixes of former prompts that nobody uses now.
    pub fn remembered_tokens(&self) -> usize {
        self.prefixes.idle_pages(&self.batch.cache) * PAGE
    }

    /// One step for all. On an error every sample of the lane fails with it.
    pub fn step(&mut self, stats: &StatCells) {
        self.drop_abandoned();
        self.admit();
        // A panic in one step must not end serving: it fails the samples of this step, like any other error.
        let step = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.advance(stats)));
        let error = match step {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the engine panicked in this step".to_owned(),
        };
        tracing::error!(error = %error, version = %self.model.served.version.name, "engine step failed");
        self.fail_all(&EngineError::Failed(error));
    }

    /// Ends everything, for instance at the shutdown deadline.
    pub fn fail_all(&mut self, error: &EngineError) {
        for s in self.batch.running().iter().chain(&self.waiting) {
            s.send(GenEvent::Failed { error: error.clone() });
        }
        self.batch.retain(|_| false);
        self.waiting.clear();
    }

    fn drop_abandoned(&mut self) {
        self.waiting.retain(|s| !s.shared.abandoned());
        self.batch.retain(|s| !s.shared.abandoned());
    }

    /// Moves waiting samples into the batch while there is room for their prompts: the oldest first, those that may wait
    /// behind all others. A sample that may wait gives its place back to one that may not.
    fn admit(&mut self) {
        loop {
            let urgent = self.waiting.iter().position(|s| !s.background());
            let Some(next) = urgent.or(if self.waiting.is_empty() { None } else { Some(0) }) else { break };
            if self.running() >= self.limits.max_running {
                if urgent.is_some() && self.preempt_background() {
                    continue;
                }
                break;
            }
            let wanted = &self.waiting[next];
            let pages = (wanted.track.ids.len() + 1).div_ceil(PAGE) + wanted.siblings.min(4);
            let cache = &mut self.batch.cache;
            let windowed = cache.windowed_need(pages, self.limits.prefill_tokens);
            self.prefixes.evict(pages, windowed, cache);
            if cache.free_pages() < pages || cache.windowed_pages().1 < windowed {
                if urgent.is_some() && self.preempt_background() {
                    continue;
                }
                if self.running() > 0 {
                    break;
                }
            }
            let Some(mut sequence) = self.waiting.remove(next) else { break };
            let mut rope = self.model.decoder.rope_length(sequence.track.prompt_len);
            rope.long |= self.model.decoder.is_long(sequence.track.ids.len());
            sequence.track.cached.rope = rope;
            if sequence.track.cached.len == 0 && rope.shares_prefixes() {
                let root = sequence.shared.prefix_root();
                sequence.track.cached = self.prefixes.lookup(root, sequence.shareable(), &mut self.batch.cache);
            }
            sequence.shared.begun();
            self.batch.join(sequence);
        }
        // The last ones give way first: see `make_room`.
        self.batch.running_mut().sort_by_key(Sequence::background);
    }

    /// Puts the youngest sample that may wait back behind all others; `false` where there is none.
    fn preempt_background(&mut self) -> bool {
        let Some(i) = self.batch.running().iter().rposition(Sequence::background) else { return false };
        self.put_back(i);
        true
    }

    /// The sample's pages become free; it is computed again later, with the same result.
    fn put_back(&mut self, i: usize) {
        let mut victim = self.batch.leave(i);
        if let Some(prompt) = &mut victim.prompt {
            prompt.clear();
        }
        self.waiting.push_front(victim);
    }

    fn advance(&mut self, stats: &StatCells) -> candle_core::Result<()> {
        let step = self.feed()?;
        if step.rows.is_empty() {
            return Ok(());
        }
        let output = self.compute(&step)?;
        for f in &step.fed {
            let track = &self.batch.running()[f.sequence].track;
            let of_prompt = f.tokens.min(track.prompt_len.saturating_sub(track.cached.len));
            stats.prompt_tokens.fetch_add(of_prompt as u64, Relaxed);
        }
        self.batch.written(&step);
        for f in &step.fed {
            self.keep_what_is_seen(f.sequence);
        }
        let mut logits = std::mem::take(&mut self.logits);
        self.prompt_logprobs(&output, &step, &mut logits)?;
        output.logits_into(&self.model, &step.predicting_rows(), &mut logits)?;
        let born = self.start_siblings(&step, &logits, stats);
        let (vocab, max_positions) = (self.model.decoder.config.vocab_size, self.model.decoder.config.max_positions);
        let ended = self.batch.draw(&step, &logits, |sequence, rows, draft| {
            sequence.follow(rows.chunks_exact(vocab), draft, max_positions, stats)
        });
        let ended: Vec<usize> = ended.into_iter().filter(|(_, ended)| *ended).map(|(i, _)| i).collect();
        self.batch.retire(&ended);
        for sample in born {
            self.batch.join(sample);
        }
        if !self.is_idle() {
            self.logits = logits;
        }
        Ok(())
    }

    /// Runs the step where the model is.
    fn compute(&mut self, step: &Step) -> candle_core::Result<Output> {
        let Some(device) = &self.model.device else {
            return self.batch.hidden(&self.model.decoder, step).map(Output::Hidden);
        };
        let mut wanted: Vec<u32> = step.complete().map(Fed::last_row).collect();
        for f in &step.fed {
            let targets = self.prompt_targets(f, self.batch.running()[f.sequence].track.cached.len);
            wanted.extend(targets.iter().map(|(row, _)| *row as u32));
        }
        wanted.sort_unstable();
        wanted.dedup();
        let mut device = device.model.lock().unwrap_or_else(PoisonError::into_inner);
        for (from, to) in self.batch.cache.take_copies() {
            device.copy_page(from, to).map_err(candle_core::Error::wrap)?;
        }
        let logits = device.step(&self.model.decoder, &step.rows, &wanted).map_err(candle_core::Error::wrap)?;
        Ok(Output::Logits { rows: wanted, logits })
    }

    /// Releases the windowed layers' pages that no later token attends to. Pages of a prompt enter the prefix tree first.
    fn keep_what_is_seen(&mut self, i: usize) {
        if !self.batch.cache.has_windows() {
            return;
        }
        if self.batch.running()[i].track.cached.len <= self.batch.running()[i].track.prompt_len {
            self.remember_prefix(i);
        }
        self.batch.trim(i);
    }

    /// Shares what is cached of sample `i` with later prompts that begin with the same tokens.
    fn remember_prefix(&mut self, i: usize) {
        let (Sequence { shared, track, .. }, cache) = self.batch.with_cache(i);
        if track.cached.rope.shares_prefixes() {
            self.prefixes.insert(shared.prefix_root(), &track.ids, &track.cached, cache);
        }
    }

    /// Chooses this step's rows: all decodes, then prompt chunks within the budget.
    fn feed(&mut self) -> candle_core::Result<Step> {
        self.batch.restart_grown(&self.model.decoder);
        let mut budget = self.limits.prefill_tokens;
        let mut feeds: Vec<Feed> = Vec::new();
        let mut i = 0;
        while i < self.running() {
            let pending = self.batch.running()[i].track.pending();
            let tokens = if pending == 1 { 1 } else { pending.min(budget) };
            if tokens > 0 {
                if self.make_room(i, tokens) {
                    budget -= if pending == 1 { 0 } else { tokens };
                    feeds.push(Feed { sequence: i, tokens, draft: Vec::new() });
                } else if self.running() == 1 {
                    // Alone and still no room: it can never finish.
                    self.batch.leave(0).fail(EngineError::Overloaded { retry_after_s: 1 });
                }
            }
            i += 1;
        }
        feeds.retain(|feed| feed.sequence < self.running());
        // Guesses use places of the batch that nobody else needs.
        let mut spare = self.limits.max_running.saturating_sub(feeds.len());
        for feed in &mut feeds {
            if feed.tokens == self.batch.running()[feed.sequence].track.pending() {
                feed.draft = self.draft(feed.sequence, feed.tokens, spare);
                spare -= feed.draft.len();
            }
        }
        self.batch.rows(feeds)
    }

    /// What may come next in sample `i`, with pages for it; nothing where that would take pages from others.
    fn draft(&mut self, i: usize, tokens: usize, spare: usize) -> Vec<u32> {
        let (decoder, Sequence { shared, track, .. }) = (&self.model.decoder, &self.batch.running()[i]);
        if self.limits.draft_tokens == 0 || track.generated().is_empty() {
            return Vec::new();
        }
        // The last token of an answer is never fed.
        let left = shared.request.params.max_tokens.saturating_sub(track.generated().len() + 1);
        let room = decoder.config.max_positions.saturating_sub(track.ids.len() + 1);
        let most = self.limits.draft_tokens.min(left).min(room).min(spare);
        let draft = lookup::continued(&track.ids[shared.soft_len()..], most);
        let grows_long = decoder.is_long(track.ids.len() + draft.len()) && !track.cached.rope.long;
        if draft.is_empty() || grows_long || !self.batch.reserve(i, tokens + draft.len()) {
            return Vec::new();
        }
        draft
    }

    /// Reserves pages for sample `i`, evicting cached prefixes and then the youngest samples behind it.
    fn make_room(&mut self, i: usize, tokens: usize) -> bool {
        loop {
            if self.batch.reserve(i, tokens) {
                return true;
            }
            let cached = &self.batch.running()[i].track.cached;
            let need = (cached.len + tokens).div_ceil(PAGE) - cached.pages.len();
            self.prefixes.evict(need, need, &mut self.batch.cache);
            if self.batch.reserve(i, tokens) {
                return true;
            }
            if i + 1 >= self.running() {
                return false;
            }
            self.put_back(self.running() - 1);
        }
    }

    /// Where a prompt is computed, shares its pages with later prompts and starts the other samples of its request; gives
    /// those that are to run. `logits` are those of the step's predicting rows.
    fn start_siblings(&mut self, step: &Step, logits: &[f32], stats: &StatCells) -> Vec<Sequence> {
        let vocab = self.model.decoder.config.vocab_size;
        let mut born = Vec::new();
        for (f, rows) in step.with_logits(logits) {
            if self.batch.running()[f.sequence].track.generated().is_empty() {
                self.prompt_done(f.sequence, &rows[..vocab], &mut born, stats);
            }
        }
        born
    }

    /// The prompt of sample `i` is computed, and `row` are the logits of its last token.
    fn prompt_done(&mut self, i: usize, row: &[f32], born: &mut Vec<Sequence>, stats: &StatCells) {
        self.remember_prefix(i);
        let sequence = &mut self.batch.running_mut()[i];
        let siblings = std::mem::take(&mut sequence.siblings);
        if let Some(tokens) = sequence.prompt.take() {
            sequence.send(GenEvent::Prompt { tokens });
        }
        let (shared, ids, cached) = (sequence.shared.clone(), sequence.track.ids.clone(), sequence.track.cached.len);
        for index in 1..=siblings {
            let text = shared.model.text_stream(&shared.request);
            // No page free for the copy: it computes its prompt itself, later.
            let forked = self.batch.fork(i, cached);
            let waits = forked.is_none();
            let track = Track { prompt_len: ids.len(), ids: ids.clone(), cached: forked.unwrap_or_default() };
            let guide = shared.guide.as_ref().map(Guide::fork);
            let mut sample = Sequence { shared: shared.clone(), index, track, text, prompt: None, siblings: 0, guide };
            if waits {
                self.waiting.push_front(sample);
            } else if sample.follow(std::iter::once(row), &[], self.model.decoder.config.max_positions, stats) {
                self.batch.release(&mut sample);
            } else {
                born.push(sample);
            }
        }
    }

    /// The prompt tokens whose log-probs are wanted and that rows of this step predict, each with that row; `start`
    /// tokens were cached before the step. Row r predicts the token after it; the soft prompt's last row predicts the
    /// prompt's first token.
    fn prompt_targets(&self, f: &Fed, start: usize) -> Vec<(usize, u32)> {
        let s = &self.batch.running()[f.sequence];
        if s.prompt.is_none() {
            return Vec::new();
        }
        let (prompt, first) = (&s.shared.request.prompt_ids, s.shared.request.prompt_from);
        let soft = s.shared.soft_len();
        let target = |r: usize| {
            let at = (start + r + 1).checked_sub(soft).filter(|at| *at >= first)?;
            prompt.get(at).map(|id| (f.first_row + r, *id))
        };
        (0..f.tokens).filter_map(target).collect()
    }

    /// Log-probs of the prompt tokens whose preceding rows were computed in this step. `logits` is memory for a part of
    /// them at a time.
    fn prompt_logprobs(&mut self, output: &Output, step: &Step, logits: &mut Vec<f32>) -> candle_core::Result<()> {
        let vocab = self.model.decoder.config.vocab_size;
        for f in &step.fed {
            let s = &self.batch.running()[f.sequence];
            let Some(known) = s.prompt.as_ref().map(Vec::len) else { continue };
            let k = s.shared.request.prompt_logprobs.unwrap_or(0);
            let (prompt, first) = (&s.shared.request.prompt_ids, s.shared.request.prompt_from);
            let soft = s.shared.soft_len();
            let mut found = Vec::new();
            if known == 0 && first == 0 && soft == 0 {
                found.push(TokenLogprob { id: prompt[0], logprob: None, top: Vec::new() });
            }
            let targets = self.prompt_targets(f, s.track.cached.len - f.tokens);
            for chunk in targets.chunks(64) {
                let rows: Vec<u32> = chunk.iter().map(|(r, _)| *r as u32).collect();
                output.logits_into(&self.model, &rows, logits)?;
                let pairs: Vec<_> = chunk.iter().zip(logits.chunks_exact(vocab)).collect();
                found.par_extend(pairs.into_par_iter().map(|((_, id), row)| {
                    let (logprob, top) = report(row, *id, 1.0, k);
                    TokenLogprob { id: *id, logprob: Some(logprob), top }
                }));
            }
            if let Some(prompt) = &mut self.batch.running_mut()[f.sequence].prompt {
                prompt.extend(found);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_in_fewer_bits_has_room_for_more_tokens() {
        let config = serde_json::json!({
            "model_type": "llama", "vocab_size": 100, "hidden_size": 4096, "intermediate_size": 64,
            "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
            "max_position_embeddings": 4096,
        });
        let config = ModelConfig::from_hf(&config, None).unwrap();
        let tokens = |kv_format| {
            let limits = Limits { max_running: 64, prefill_tokens: 512, kv_tokens: 0, kv_format, draft_tokens: 0 };
            cache_tokens(&config, limits).0
        };
        // 2 GiB at 256 KiB a token.
        assert_eq!(tokens(KvFormat::F32), 8192);
        assert_eq!(tokens(KvFormat::F16), 16384);
        assert_eq!(tokens(KvFormat::Q8_0), 8192 * 32 / 9);
    }
}

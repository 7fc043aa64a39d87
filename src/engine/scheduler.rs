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
use super::{EngineError, FinishReason, GenEvent, TokenLogprob};
use crate::generation::sampling::report;
use crate::model::ModelConfig;
use crate::model::decoder::kv_cache::{CachedSequence, KvCache, PAGE, StepRows};

/// Limits of one step and of one version's memory.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Samples advanced together.
    pub max_running: usize,
    /// Prompt tokens fed per step beside the running samples.
    pub prefill_tokens: usize,
    /// Cached tokens per loaded version.
    pub kv_tokens: usize,
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
    let per_token = config.n_layers * config.n_kv_heads * config.head_dim * 2 * size_of::<f32>();
    let fits = (MOST_BYTES / per_token.max(1)).max(config.max_positions);
    let tokens = (limits.max_running * config.max_positions).min(fits);
    (tokens, windowed(tokens))
}

/// A sample's rows of logits, of its last token and of the guesses behind it; and those guesses.
type OwnRows<'a> = (&'a [f32], &'a [u32]);

/// All work on one model version.
pub struct Lane {
    pub model: Arc<LoadedModel>,
    limits: Limits,
    cache: KvCache,
    prefixes: PrefixTree,
    waiting: VecDeque<Sequence>,
    running: Vec<Sequence>,
}

/// A row whose hidden state is needed: which running sample, and up to which token it was fed.
struct Fed {
    sequence: usize,
    first_row: usize,
    tokens: usize,
    /// The sample has no pending tokens left: draw from the last row.
    complete: bool,
    /// Guessed tokens, whose rows follow: each is right if it is what is drawn before it.
    draft: Vec<u32>,
}

impl Fed {
    fn last_row(&self) -> u32 {
        (self.first_row + self.tokens - 1) as u32
    }
}

impl Lane {
    pub fn new(model: Arc<LoadedModel>, limits: Limits) -> Self {
        let cache = match &model.device {
            None => {
                let (tokens, windowed) = cache_tokens(&model.decoder.config, limits);
                KvCache::with_windows(&model.decoder.config, tokens, windowed)
            }
            Some(device) => KvCache::elsewhere(device.pages * PAGE),
        };
        // Rows of other devices depend on what is beside them: guesses would change texts.
        let on_host = model.device.is_none() && model.decoder.on_host();
        let draft_tokens = if on_host { limits.draft_tokens } else { 0 };
        let limits = Limits { draft_tokens, ..limits };
        Self { model, limits, cache, prefixes: PrefixTree::default(), waiting: VecDeque::new(), running: Vec::new() }
    }

    /// Takes a request in; its samples wait their turn.
    pub fn submit(&mut self, shared: Arc<Shared>) {
        let request = &shared.request;
        let (tokens, siblings) = (shared.prompt_tokens(), request.n - 1);
        let prompt = request.prompt_logprobs.map(|_| Vec::with_capacity(tokens.len()));
        let text = shared.model.text_stream(request);
        let guide = shared.guide.as_ref().map(Guide::fork);
        self.waiting.push_back(Sequence {
            shared,
            index: 0,
            tokens,
            cached: CachedSequence::default(),
            text,
            prompt,
            siblings,
            guide,
        });
    }

    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub fn running(&self) -> usize {
        self.running.len()
    }

    pub fn total_tokens(&self) -> usize {
        self.cache.total_pages() * PAGE
    }

    /// Held by running samples.
    pub fn used_tokens(&self) -> usize {
        (self.cache.total_pages() - self.cache.free_pages()) * PAGE - self.remembered_tokens()
    }

    /// Prefixes of former prompts that nobody uses now.
    pub fn remembered_tokens(&self) -> usize {
        self.prefixes.idle_pages(&self.cache) * PAGE
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
        for mut s in self.running.drain(..).chain(self.waiting.drain(..)) {
            s.send(GenEvent::Failed { error: error.clone() });
            self.cache.release_all(&mut s.cached);
        }
    }

    fn drop_abandoned(&mut self) {
        self.waiting.retain(|s| !s.shared.abandoned());
        let cache = &mut self.cache;
        self.running.retain_mut(|s| {
            let keep = !s.shared.abandoned();
            if !keep {
                cache.release_all(&mut s.cached);
            }
            keep
        });
    }

    /// Moves waiting samples into the batch while there is room for their prompts: the oldest first, those that may wait
    /// behind all others. A sample that may wait gives its place back to one that may not.
    fn admit(&mut self) {
        loop {
            let urgent = self.waiting.iter().position(|s| !s.background());
            let Some(next) = urgent.or(if self.waiting.is_empty() { None } else { Some(0) }) else { break };
            if self.running.len() >= self.limits.max_running {
                if urgent.is_some() && self.preempt_background() {
                    continue;
                }
                break;
            }
            let wanted = &self.waiting[next];
            let pages = (wanted.tokens.len() + 1).div_ceil(PAGE) + wanted.siblings.min(4);
            let windowed = self.cache.windowed_need(pages, self.limits.prefill_tokens);
            self.prefixes.evict(pages, windowed, &mut self.cache);
            if self.cache.free_pages() < pages || self.cache.windowed_pages().1 < windowed {
                if urgent.is_some() && self.preempt_background() {
                    continue;
                }
                if !self.running.is_empty() {
                    break;
                }
            }
            let Some(mut sequence) = self.waiting.remove(next) else { break };
            sequence.cached.rope = self.model.decoder.rope_length(sequence.prompt_len());
            sequence.cached.rope.long |= self.model.decoder.is_long(sequence.tokens.len());
            if sequence.cached.len == 0 && sequence.cached.rope.shares_prefixes() {
                let root = sequence.shared.prefix_root();
                sequence.cached = self.prefixes.lookup(root, sequence.shareable(), &mut self.cache);
            }
            sequence.shared.begun();
            self.running.push(sequence);
        }
        // The last ones give way first: see `make_room`.
        self.running.sort_by_key(Sequence::background);
    }

    /// Puts the youngest sample that may wait back behind all others; `false` where there is none.
    fn preempt_background(&mut self) -> bool {
        let Some(i) = self.running.iter().rposition(Sequence::background) else { return false };
        let victim = self.running.remove(i);
        self.put_back(victim);
        true
    }

    /// The sample's pages become free; it is computed again later, with the same result.
    fn put_back(&mut self, mut victim: Sequence) {
        self.cache.release_all(&mut victim.cached);
        if let Some(prompt) = &mut victim.prompt {
            prompt.clear();
        }
        self.waiting.push_front(victim);
    }

    fn advance(&mut self, stats: &StatCells) -> candle_core::Result<()> {
        let (rows, fed) = self.feed()?;
        if rows.is_empty() {
            return Ok(());
        }
        let output = self.compute(&rows, &fed)?;
        for f in &fed {
            let sequence = &mut self.running[f.sequence];
            stats
                .prompt_tokens
                .fetch_add(f.tokens.min(sequence.prompt_len().saturating_sub(sequence.cached.len)) as u64, Relaxed);
            sequence.cached.len += f.tokens;
            self.keep_what_is_seen(f.sequence);
        }
        self.prompt_logprobs(&output, &fed)?;
        let complete: Vec<&Fed> = fed.iter().filter(|f| f.complete).collect();
        // Each sample's last row and those of its guesses, end to end.
        let last: Vec<u32> = complete.iter().flat_map(|f| f.last_row()..=f.last_row() + f.draft.len() as u32).collect();
        let logits = output.logits(&self.model, &last)?;
        let vocab = self.model.decoder.config.vocab_size;
        let mut born: Vec<Sequence> = Vec::new();
        // Each sample's rows: of its last token, and of the guesses behind it.
        let mut own: Vec<Option<OwnRows<'_>>> = vec![None; self.running.len()];
        let mut first = 0;
        for f in &complete {
            let rows = &logits[first * vocab..(first + 1 + f.draft.len()) * vocab];
            first += 1 + f.draft.len();
            if self.running[f.sequence].generated().is_empty() {
                self.prompt_done(f.sequence, &rows[..vocab], &mut born, stats);
            }
            own[f.sequence] = Some((rows, f.draft.as_slice()));
        }
        let max_positions = self.model.decoder.config.max_positions;
        let follow = |(sequence, own): (&mut Sequence, &Option<OwnRows<'_>>)| {
            own.is_some_and(|(rows, draft)| sequence.follow(rows.chunks_exact(vocab), draft, max_positions, stats))
        };
        let ended: Vec<bool> = self.running.par_iter_mut().zip(&own).map(follow).collect();
        let finished = ended.iter().enumerate().filter(|(_, ended)| **ended).map(|(i, _)| i).collect();
        self.retire(finished);
        self.running.extend(born);
        Ok(())
    }

    /// Runs the step where the model is.
    fn compute(&mut self, rows: &StepRows, fed: &[Fed]) -> candle_core::Result<Output> {
        let Some(device) = &self.model.device else {
            return self.model.decoder.step(rows, &mut self.cache).map(Output::Hidden);
        };
        let mut wanted: Vec<u32> = fed.iter().filter(|f| f.complete).map(Fed::last_row).collect();
        for f in fed {
            let targets = self.prompt_targets(f, self.running[f.sequence].cached.len);
            wanted.extend(targets.iter().map(|(row, _)| *row as u32));
        }
        wanted.sort_unstable();
        wanted.dedup();
        let mut device = device.model.lock().unwrap_or_else(PoisonError::into_inner);
        for (from, to) in self.cache.take_copies() {
            device.copy_page(from, to).map_err(candle_core::Error::wrap)?;
        }
        let logits = device.step(&self.model.decoder, rows, &wanted).map_err(candle_core::Error::wrap)?;
        Ok(Output::Logits { rows: wanted, logits })
    }

    /// Computes samples anew that have grown past the length from which all their tokens have other rotary frequencies.
    fn restart_grown(&mut self) {
        for s in &mut self.running {
            if !s.cached.rope.long && self.model.decoder.is_long(s.tokens.len()) {
                self.cache.release_all(&mut s.cached);
                s.cached.rope.long = true;
            }
        }
    }

    /// Releases the windowed layers' pages that no later token attends to. Pages of a prompt enter the prefix tree first.
    fn keep_what_is_seen(&mut self, i: usize) {
        if !self.cache.has_windows() {
            return;
        }
        let prompt = self.running[i].prompt_len();
        let Sequence { shared, tokens, cached, .. } = &mut self.running[i];
        if cached.rope.shares_prefixes() && cached.len <= prompt {
            self.prefixes.insert(shared.prefix_root(), tokens, cached, &mut self.cache);
        }
        self.cache.trim(cached);
    }

    /// Chooses this step's rows: all decodes, then prompt chunks within the budget.
    fn feed(&mut self) -> candle_core::Result<(StepRows, Vec<Fed>)> {
        self.restart_grown();
        let mut budget = self.limits.prefill_tokens;
        let mut plan: Vec<(usize, usize)> = Vec::new();
        let mut i = 0;
        while i < self.running.len() {
            let pending = self.running[i].pending();
            let take = if pending == 1 { 1 } else { pending.min(budget) };
            if take > 0 {
                if self.make_room(i, take) {
                    budget -= if pending == 1 { 0 } else { take };
                    plan.push((i, take));
                } else if self.running.len() == 1 {
                    // Alone and still no room: it can never finish.
                    let mut s = self.running.remove(0);
                    s.send(GenEvent::Failed { error: EngineError::Overloaded { retry_after_s: 1 } });
                    self.cache.release_all(&mut s.cached);
                }
            }
            i += 1;
        }
        plan.retain(|(i, _)| *i < self.running.len());
        let mut rows = StepRows::default();
        let mut fed = Vec::with_capacity(plan.len());
        // Guesses use places of the batch that nobody else needs.
        let mut spare = self.limits.max_running.saturating_sub(plan.len());
        for (i, take) in plan {
            let draft = if take == self.running[i].pending() { self.draft(i, take, spare) } else { Vec::new() };
            spare -= draft.len();
            let s = &self.running[i];
            let ids = [&s.tokens[s.cached.len..s.cached.len + take], &draft].concat();
            let last = rows.push(&ids, &s.cached) - draft.len();
            if let Some(lora) = &s.shared.model.lora {
                rows.with_adapter(lora, ids.len());
            }
            if let Some(soft) = s.shared.soft.as_ref().filter(|soft| s.cached.len < soft.info.n_tokens) {
                let count = take.min(soft.info.n_tokens - s.cached.len);
                rows.replace(last + 1 - take, soft.vectors.narrow(0, s.cached.len, count)?);
            }
            let complete = s.pending() == take;
            fed.push(Fed { sequence: i, first_row: last + 1 - take, tokens: take, complete, draft });
        }
        Ok((rows, fed))
    }

    /// What may come next in sample `i`, with pages for it; nothing where that would take pages from others.
    fn draft(&mut self, i: usize, take: usize, spare: usize) -> Vec<u32> {
        let (decoder, s) = (&self.model.decoder, &mut self.running[i]);
        if self.limits.draft_tokens == 0 || s.generated().is_empty() {
            return Vec::new();
        }
        let params = &s.shared.request.params;
        // The last token of an answer is never fed.
        let left = params.max_tokens.saturating_sub(s.generated().len() + 1);
        let room = decoder.config.max_positions.saturating_sub(s.tokens.len() + 1);
        let most = self.limits.draft_tokens.min(left).min(room).min(spare);
        let draft = lookup::continued(&s.tokens[s.shared.soft_len()..], most);
        let grows_long = decoder.is_long(s.tokens.len() + draft.len()) && !s.cached.rope.long;
        if draft.is_empty() || grows_long || !self.cache.reserve(&mut s.cached, take + draft.len()) {
            return Vec::new();
        }
        draft
    }

    /// Reserves pages for sample `i`, evicting cached prefixes and then the youngest samples behind it.
    fn make_room(&mut self, i: usize, tokens: usize) -> bool {
        loop {
            if self.cache.reserve(&mut self.running[i].cached, tokens) {
                return true;
            }
            let need = (self.running[i].cached.len + tokens).div_ceil(PAGE) - self.running[i].cached.pages.len();
            self.prefixes.evict(need, need, &mut self.cache);
            if self.cache.reserve(&mut self.running[i].cached, tokens) {
                return true;
            }
            if i + 1 >= self.running.len() {
                return false;
            }
            if let Some(victim) = self.running.pop() {
                self.put_back(victim);
            }
        }
    }

    /// The prompt is computed: share its pages with later prompts, and start the other samples.
    fn prompt_done(&mut self, i: usize, row: &[f32], born: &mut Vec<Sequence>, stats: &StatCells) {
        let sequence = &mut self.running[i];
        let siblings = std::mem::take(&mut sequence.siblings);
        let (shared, tokens) = (sequence.shared.clone(), sequence.tokens.clone());
        if self.running[i].cached.rope.shares_prefixes() {
            self.prefixes.insert(shared.prefix_root(), &tokens, &self.running[i].cached, &mut self.cache);
        }
        if let Some(tokens) = self.running[i].prompt.take() {
            self.running[i].send(GenEvent::Prompt { tokens });
        }
        for index in 1..=siblings {
            let text = shared.model.text_stream(&shared.request);
            // No page free for the copy: it computes its prompt itself, later.
            let forked = self.cache.fork(&self.running[i].cached);
            let waits = forked.is_none();
            let cached = forked.unwrap_or_default();
            let guide = shared.guide.as_ref().map(Guide::fork);
            let (shared, tokens) = (shared.clone(), tokens.clone());
            let mut sample = Sequence { shared, index, tokens, cached, text, prompt: None, siblings: 0, guide };
            if waits {
                self.waiting.push_front(sample);
                continue;
            }
            if sample.shared.request.params.max_tokens == 0 {
                sample.send(GenEvent::Finish { index, reason: FinishReason::Length });
                self.cache.release_all(&mut sample.cached);
                continue;
            }
            let drawn = match sample.draw(row) {
                Ok(drawn) => drawn,
                Err(error) => {
                    sample.fail(error);
                    self.cache.release_all(&mut sample.cached);
                    continue;
                }
            };
            stats.generated.fetch_add(1, Relaxed);
            match sample.accept(drawn, self.model.decoder.config.max_positions) {
                Some(_) => self.cache.release_all(&mut sample.cached),
                None => born.push(sample),
            }
        }
    }

    /// The prompt tokens whose log-probs are wanted and that rows of this step predict, each with that row; `start`
    /// tokens were cached before the step. Row r predicts the token after it; the soft prompt's last row predicts the
    /// prompt's first token.
    fn prompt_targets(&self, f: &Fed, start: usize) -> Vec<(usize, u32)> {
        let s = &self.running[f.sequence];
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

    /// Log-probs of the prompt tokens whose preceding rows were computed in this step.
    fn prompt_logprobs(&mut self, output: &Output, fed: &[Fed]) -> candle_core::Result<()> {
        let vocab = self.model.decoder.config.vocab_size;
        for f in fed {
            let s = &self.running[f.sequence];
            let Some(known) = s.prompt.as_ref().map(Vec::len) else { continue };
            let k = s.shared.request.prompt_logprobs.unwrap_or(0);
            let (prompt, first) = (&s.shared.request.prompt_ids, s.shared.request.prompt_from);
            let soft = s.shared.soft_len();
            let mut found = Vec::new();
            if known == 0 && first == 0 && soft == 0 {
                found.push(TokenLogprob { id: prompt[0], logprob: None, top: Vec::new() });
            }
            let targets = self.prompt_targets(f, s.cached.len - f.tokens);
            for chunk in targets.chunks(64) {
                let rows: Vec<u32> = chunk.iter().map(|(r, _)| *r as u32).collect();
                let logits = output.logits(&self.model, &rows)?;
                let pairs: Vec<_> = chunk.iter().zip(logits.chunks_exact(vocab)).collect();
                found.par_extend(pairs.into_par_iter().map(|((_, id), row)| {
                    let (logprob, top) = report(row, *id, 1.0, k);
                    TokenLogprob { id: *id, logprob: Some(logprob), top }
                }));
            }
            if let Some(prompt) = &mut self.running[f.sequence].prompt {
                prompt.extend(found);
            }
        }
        Ok(())
    }

    fn retire(&mut self, mut finished: Vec<usize>) {
        finished.sort_unstable();
        for i in finished.into_iter().rev() {
            let mut s = self.running.remove(i);
            self.cache.release_all(&mut s.cached);
        }
    }
}

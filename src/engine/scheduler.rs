//! Continuous batching: every step feeds one token of each running sample and, within a token budget,
//! chunks of prompts that wait. Samples join and leave between steps; memory is paged; when pages run
//! out the youngest sample gives its pages back and is computed again later, with the same result.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError};

use candle_core::Tensor;
use rayon::prelude::*;

use super::constraint::Guide;
use super::loaded::LoadedModel;
use super::prefix::PrefixTree;
use super::sequence::{Sequence, Shared};
use super::stats::StatCells;
use super::{EngineError, FinishReason, GenEvent, TokenLogprob};
use crate::generation::sampling::{Drawn, report};
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
}

impl Fed {
    fn last_row(&self) -> u32 {
        (self.first_row + self.tokens - 1) as u32
    }
}

/// What a step gave.
enum Output {
    /// Hidden states of all rows, where the model is.
    Hidden(Tensor),
    /// Logits of the rows that were asked for, ascending.
    Logits { rows: Vec<u32>, logits: Vec<f32> },
}

impl Output {
    /// Logits of some rows, end to end.
    fn logits(&self, model: &LoadedModel, wanted: &[u32]) -> candle_core::Result<Vec<f32>> {
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        match self {
            Self::Hidden(hidden) => {
                let picked = hidden.index_select(&Tensor::new(wanted, hidden.device())?, 0)?;
                model.decoder.logits(&picked)?.flatten_all()?.to_vec1::<f32>()
            }
            Self::Logits { rows, logits } => {
                let vocab = model.decoder.config.vocab_size;
                let mut picked = Vec::with_capacity(wanted.len() * vocab);
                for row in wanted {
                    let Ok(at) = rows.binary_search(row) else { candle_core::bail!("row {row} has no logits") };
                    picked.extend_from_slice(&logits[at * vocab..(at + 1) * vocab]);
                }
                Ok(picked)
            }
        }
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
        Self { model, limits, cache, prefixes: PrefixTree::default(), waiting: VecDeque::new(), running: Vec::new() }
    }

    /// Takes a request in; its samples wait their turn.
    pub fn submit(&mut self, shared: Arc<Shared>) {
        let request = &shared.request;
        let (tokens, siblings) = (shared.prompt_tokens(), request.n - 1);
        let prompt = request.prompt_logprobs.map(|_| Vec::with_capacity(tokens.len()));
        let text = self.model.text_stream(request);
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

    /// Moves waiting samples into the batch, oldest first, while there is room for their prompts.
    fn admit(&mut self) {
        while self.running.len() < self.limits.max_running {
            let Some(next) = self.waiting.front() else { break };
            let pages = (next.tokens.len() + 1).div_ceil(PAGE) + next.siblings.min(4);
            let windowed = self.cache.windowed_need(pages, self.limits.prefill_tokens);
            self.prefixes.evict(pages, windowed, &mut self.cache);
            let room = self.cache.free_pages() >= pages && self.cache.windowed_pages().1 >= windowed;
            if !room && !self.running.is_empty() {
                break;
            }
            let Some(mut sequence) = self.waiting.pop_front() else { break };
            sequence.cached.rope = self.model.decoder.rope_length(sequence.prompt_len());
            sequence.cached.rope.long |= self.model.decoder.is_long(sequence.tokens.len());
            if sequence.cached.len == 0 && sequence.cached.rope.shares_prefixes() {
                let adapter = sequence.shared.request.adapter.as_ref();
                sequence.cached = self.prefixes.lookup(adapter, sequence.shareable(), &mut self.cache);
            }
            sequence.shared.begun();
            self.running.push(sequence);
        }
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
        let last: Vec<u32> = complete.iter().map(|f| f.last_row()).collect();
        let logits = output.logits(&self.model, &last)?;
        let vocab = self.model.decoder.config.vocab_size;
        let mut finished: Vec<usize> = Vec::new();
        let mut born: Vec<Sequence> = Vec::new();
        for (f, row) in complete.iter().zip(logits.chunks_exact(vocab)) {
            if self.running[f.sequence].generated().is_empty() {
                self.prompt_done(f.sequence, row, &mut born, stats);
            }
        }
        let drawn = self.draw_all(&complete, &logits);
        let max_positions = self.model.decoder.config.max_positions;
        for (f, drawn) in complete.iter().zip(drawn) {
            let sequence = &mut self.running[f.sequence];
            let Some(drawn) = drawn else {
                sequence.send(GenEvent::Finish { index: sequence.index, reason: FinishReason::Length });
                finished.push(f.sequence);
                continue;
            };
            match drawn {
                Err(error) => {
                    sequence.fail(error);
                    finished.push(f.sequence);
                }
                Ok(drawn) => {
                    stats.generated.fetch_add(1, Relaxed);
                    if sequence.accept(drawn, max_positions).is_some() {
                        finished.push(f.sequence);
                    }
                }
            }
        }
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
            self.prefixes.insert(shared.request.adapter.as_ref(), tokens, cached, &mut self.cache);
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
        let mut rows = StepRows::default();
        let mut fed = Vec::with_capacity(plan.len());
        for (i, take) in plan.into_iter().filter(|(i, _)| *i < self.running.len()) {
            let s = &self.running[i];
            let ids = &s.tokens[s.cached.len..s.cached.len + take];
            let last = rows.push(ids, &s.cached);
            if let Some(soft) = s.shared.soft.as_ref().filter(|soft| s.cached.len < soft.info.n_tokens) {
                let count = take.min(soft.info.n_tokens - s.cached.len);
                rows.replace(last + 1 - take, soft.vectors.narrow(0, s.cached.len, count)?);
            }
            fed.push(Fed { sequence: i, first_row: last + 1 - take, tokens: take, complete: s.pending() == take });
        }
        Ok((rows, fed))
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
            if let Some(mut victim) = self.running.pop() {
                self.cache.release_all(&mut victim.cached);
                if let Some(prompt) = &mut victim.prompt {
                    prompt.clear();
                }
                self.waiting.push_front(victim);
            }
        }
    }

    /// `None` for samples that want no token at all (`max_tokens` 0).
    fn draw_all(&self, complete: &[&Fed], logits: &[f32]) -> Vec<Option<Result<Drawn, EngineError>>> {
        let vocab = self.model.decoder.config.vocab_size;
        let rows: Vec<_> = complete.iter().zip(logits.chunks_exact(vocab)).collect();
        rows.into_par_iter()
            .map(|(f, row)| {
                let s = &self.running[f.sequence];
                (s.shared.request.params.max_tokens > 0).then(|| s.draw(row))
            })
            .collect()
    }

    /// The prompt is computed: share its pages with later prompts, and start the other samples.
    fn prompt_done(&mut self, i: usize, row: &[f32], born: &mut Vec<Sequence>, stats: &StatCells) {
        let sequence = &mut self.running[i];
        let siblings = std::mem::take(&mut sequence.siblings);
        let (shared, tokens) = (sequence.shared.clone(), sequence.tokens.clone());
        if self.running[i].cached.rope.shares_prefixes() {
            self.prefixes.insert(shared.request.adapter.as_ref(), &tokens, &self.running[i].cached, &mut self.cache);
        }
        if let Some(tokens) = self.running[i].prompt.take() {
            self.running[i].send(GenEvent::Prompt { tokens });
        }
        for index in 1..=siblings {
            let text = self.model.text_stream(&shared.request);
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

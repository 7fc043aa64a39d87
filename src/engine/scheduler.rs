//! Continuous batching (Orca, OSDI 2022): every step computes one token of each running sample and, within a token
//! budget, chunks of prompts. Samples join and leave between steps. The cache is paged; if no page is free, the
//! youngest sample is preempted and recomputed later, with the same result.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use rayon::prelude::*;

use super::constraint::Guide;
use super::drafter::{Drafter, check_tokens};
use super::limits::{Limits, cache_tokens};
use super::loaded::LoadedModel;
use super::lookup;
use super::output::StepOutput;
use super::prefix::PrefixTree;
use super::queue::{Cancellable, VersionLoad};
use super::sequence::{RunningRequest, Sequence};
use super::stats::StatCounters;
use super::{EngineError, GenEvent, TokenLogprob};
use crate::generation::sampling::{Drawn, logprob_and_top};
use crate::generation::stepper::{ScheduledTokens, SequenceRows, SequenceState, Step, Stepper};
use crate::model::decoder::device::Draw;
use crate::model::decoder::kv_cache::{CachedSequence, KvCache, PAGE};

/// Batches the requests to one model version, and to the LoRA versions that share its weights.
pub struct Scheduler {
    pub model: Arc<LoadedModel>,
    /// Which of the model's replicas computes the steps, where they are on devices.
    replica: usize,
    limits: Limits,
    batch: Stepper<Sequence>,
    prefixes: PrefixTree,
    waiting: VecDeque<Sequence>,
    /// Drafts tokens where a draft model is configured and has the same tokens. Prompt lookup drafts otherwise.
    drafter: Option<Drafter>,
    /// Buffer for the logits of a step. It is freed when the scheduler becomes idle.
    logits: Vec<f32>,
}

/// A drafter for `model`; `None`, with a warning, if the draft model has other tokens.
fn drafter(draft: &Arc<LoadedModel>, model: &LoadedModel, limits: Limits) -> Option<Drafter> {
    if let Err(reason) = check_tokens(draft, model) {
        let (draft, served) = (&draft.served.version.name, &model.served.version.name);
        tracing::warn!("the draft model '{draft}' is not used for '{served}': {reason}");
        return None;
    }
    Some(Drafter::new(draft.clone(), limits))
}

impl Scheduler {
    pub fn new(
        model: Arc<LoadedModel>,
        replica: usize,
        limits: Limits,
        draft_model: Option<&Arc<LoadedModel>>,
    ) -> Self {
        let cache = match model.replicas.get(replica) {
            None => {
                let (tokens, windowed) = cache_tokens(&model.decoder.config, limits);
                KvCache::with_format(&model.decoder.config, limits.kv_format, tokens, windowed)
            }
            Some(device) => KvCache::on_device(device.pages * PAGE),
        };
        // On other devices a row's result depends on the batch, so drafts could change the text.
        let on_host = model.replicas.is_empty() && model.decoder.on_host();
        let draft_tokens = if on_host { limits.draft_tokens } else { 0 };
        let limits = Limits { draft_tokens, ..limits };
        let drafter = draft_model.filter(|_| draft_tokens > 0).and_then(|draft| drafter(draft, &model, limits));
        Self {
            drafter,
            model,
            replica,
            limits,
            batch: Stepper::new(cache),
            prefixes: PrefixTree::default(),
            waiting: VecDeque::new(),
            logits: Vec::new(),
        }
    }

    /// Enqueues the samples of a request.
    pub fn submit(&mut self, shared: Arc<RunningRequest>) {
        let request = &shared.request;
        let (ids, siblings) = (shared.prompt_tokens(), request.n - 1);
        let prompt = request.prompt_logprobs.map(|_| Vec::with_capacity(ids.len()));
        let text = shared.model.text_stream(request);
        let guide = shared.guide.as_ref().map(Guide::fork);
        self.waiting.push_back(Sequence {
            shared,
            index: 0,
            state: SequenceState { prompt_len: ids.len(), ids, cached: CachedSequence::default() },
            text,
            prompt,
            siblings,
            guide,
            drawn: None,
        });
    }

    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.batch.running().is_empty()
    }

    fn running(&self) -> usize {
        self.batch.running().len()
    }

    /// The samples of this scheduler and the use of its cache.
    pub fn load(&self) -> VersionLoad {
        let cache = &self.batch.cache;
        let remembered_tokens = self.prefixes.idle_pages(cache) * PAGE;
        VersionLoad {
            version: self.model.served.version.id.clone(),
            running: self.running(),
            waiting: self.waiting.len(),
            running_background: self.batch.running().iter().filter(|s| s.background()).count(),
            waiting_background: self.waiting.iter().filter(|s| s.background()).count(),
            used_tokens: (cache.total_pages() - cache.free_pages()) * PAGE - remembered_tokens,
            remembered_tokens,
            total_tokens: cache.total_pages() * PAGE,
        }
    }

    /// Whether the device computes a step. Always `true` on the CPU.
    pub fn device_works(&mut self) -> bool {
        let Some(device) = self.model.replicas.get(self.replica) else { return true };
        self.prefixes.evict(1, 0, &mut self.batch.cache);
        let (decoder, cache) = (&self.model.decoder, &mut self.batch.cache);
        let check = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| device.check(decoder, cache)));
        matches!(check, Ok(Ok(())))
    }

    /// Advances all samples by one step. On an error every sample of this scheduler fails with it, and the result is
    /// `false`.
    pub fn step(&mut self, stats: &StatCounters) -> bool {
        self.drop_cancelled();
        self.admit();
        // A panic must not end serving: like any other error, it fails this scheduler's samples only.
        let step = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.advance(stats)));
        let error = match step {
            Ok(Ok(())) => return true,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the engine panicked in this step".to_owned(),
        };
        tracing::error!(error = %error, version = %self.model.served.version.name, "engine step failed");
        self.fail_all(&EngineError::Failed(error));
        false
    }

    /// Ends all samples with `error`, for instance at the shutdown deadline.
    pub fn fail_all(&mut self, error: &EngineError) {
        for s in self.batch.running().iter().chain(&self.waiting) {
            s.send(GenEvent::Failed { error: error.clone() });
        }
        self.batch.retain(|_| false);
        self.waiting.clear();
    }

    fn drop_cancelled(&mut self) {
        self.waiting.retain(|s| !s.shared.is_cancelled());
        self.batch.retain(|s| !s.shared.is_cancelled());
    }

    /// Moves waiting samples into the batch while there is room for their prompts, the oldest first and background
    /// samples last. A background sample is preempted if another sample needs its place.
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
            let pages = (wanted.state.ids.len() + 1).div_ceil(PAGE) + wanted.siblings.min(4);
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
            let mut rope = self.model.decoder.rope_length(sequence.state.prompt_len);
            rope.long |= self.model.decoder.is_long(sequence.state.ids.len());
            sequence.state.cached.rope = rope;
            if sequence.state.cached.len == 0 && rope.shares_prefixes() {
                let root = sequence.shared.prefix_root();
                sequence.state.cached = self.prefixes.lookup(root, sequence.shareable(), &mut self.batch.cache);
            }
            sequence.shared.record_queue_time();
            self.batch.add(sequence);
        }
        // `make_room` preempts from the end.
        self.batch.running_mut().sort_by_key(Sequence::background);
    }

    /// Preempts the youngest background sample. `false` if there is none.
    fn preempt_background(&mut self) -> bool {
        let Some(i) = self.batch.running().iter().rposition(Sequence::background) else { return false };
        self.preempt(i);
        true
    }

    /// Releases the sample's pages and puts it first in the queue. It is recomputed later, with the same result.
    fn preempt(&mut self, i: usize) {
        let mut victim = self.batch.remove(i);
        if let Some(prompt) = &mut victim.prompt {
            prompt.clear();
        }
        self.waiting.push_front(victim);
    }

    fn advance(&mut self, stats: &StatCounters) -> candle_core::Result<()> {
        let step = self.schedule()?;
        if step.rows.is_empty() {
            return Ok(());
        }
        let output = self.compute(&step)?;
        for s in &step.sequences {
            let state = &self.batch.running()[s.sequence].state;
            let of_prompt = s.tokens.min(state.prompt_len.saturating_sub(state.cached.len));
            stats.prompt_tokens.fetch_add(of_prompt as u64, Relaxed);
        }
        self.batch.commit(&step);
        for s in &step.sequences {
            self.trim_windows(s.sequence);
        }
        let mut logits = std::mem::take(&mut self.logits);
        self.prompt_logprobs(&output, &step, &mut logits)?;
        output.logits_into(&self.model, &step.predicting_rows(), &mut logits)?;
        let started = self.start_siblings(&step, &logits, stats);
        let (vocab, max_positions) = (self.model.decoder.config.vocab_size, self.model.decoder.config.max_positions);
        let ended = self.batch.draw(&step, &logits, |sequence, rows, draft| {
            sequence.draw_tokens(rows.chunks_exact(vocab), draft, max_positions, stats)
        });
        let ended: Vec<usize> = ended.into_iter().filter(|(_, ended)| *ended).map(|(i, _)| i).collect();
        self.batch.remove_all(&ended);
        for sample in started {
            self.batch.add(sample);
        }
        if !self.is_idle() {
            self.logits = logits;
        }
        Ok(())
    }

    /// Runs the step on the device of the model.
    fn compute(&mut self, step: &Step) -> candle_core::Result<StepOutput> {
        let Some(device) = self.model.replicas.get(self.replica) else {
            return self.batch.hidden(&self.model.decoder, step).map(StepOutput::Hidden);
        };
        let (mut wanted, mut draws, mut owners) = (Vec::new(), Vec::new(), Vec::new());
        for s in step.complete() {
            match self.batch.running()[s.sequence].device_draw() {
                Some((inverse_temperature, uniform)) => {
                    draws.push(Draw { row: s.last_row(), inverse_temperature, uniform });
                    owners.push(s.sequence);
                }
                None => wanted.push(s.last_row()),
            }
        }
        for s in &step.sequences {
            let targets = self.prompt_targets(s, self.batch.running()[s.sequence].state.cached.len);
            wanted.extend(targets.iter().map(|(row, _)| *row as u32));
        }
        wanted.sort_unstable();
        wanted.dedup();
        let mut device = device.model();
        for (from, to) in self.batch.cache.take_copies() {
            device.copy_page(from, to).map_err(candle_core::Error::wrap)?;
        }
        let result = device.step(&self.model.decoder, &step.rows, &wanted, &draws).map_err(candle_core::Error::wrap)?;
        drop(device);
        for (owner, (id, logprob)) in owners.into_iter().zip(result.drawn) {
            self.batch.running_mut()[owner].drawn = Some(Drawn { id, logprob, top: Vec::new() });
        }
        let drawn = draws.iter().map(|draw| draw.row).collect();
        Ok(StepOutput::Logits { rows: wanted, logits: result.logits, drawn })
    }

    /// Releases the windowed layers' pages to which no later token attends. Pages of a prompt are added to the prefix
    /// tree first.
    fn trim_windows(&mut self, i: usize) {
        if !self.batch.cache.has_windows() {
            return;
        }
        if self.batch.running()[i].state.cached.len <= self.batch.running()[i].state.prompt_len {
            self.cache_prefix(i);
        }
        self.batch.trim(i);
    }

    /// Shares the cached tokens of sample `i` with later prompts that begin with the same tokens.
    fn cache_prefix(&mut self, i: usize) {
        let (Sequence { shared, state, .. }, cache) = self.batch.with_cache(i);
        if state.cached.rope.shares_prefixes() {
            self.prefixes.insert(shared.prefix_root(), &state.ids, &state.cached, cache);
        }
    }

    /// Chooses the rows of the next step: one token of each decoding sample, and prompt chunks within the budget.
    fn schedule(&mut self) -> candle_core::Result<Step> {
        self.batch.restart_grown(&self.model.decoder);
        let mut budget = self.limits.prefill_tokens;
        let mut scheduled: Vec<ScheduledTokens> = Vec::new();
        let mut i = 0;
        while i < self.running() {
            let pending = self.batch.running()[i].state.pending();
            let tokens = if pending == 1 { 1 } else { pending.min(budget) };
            if tokens > 0 {
                if self.make_room(i, tokens) {
                    budget -= if pending == 1 { 0 } else { tokens };
                    scheduled.push(ScheduledTokens { sequence: i, tokens, draft: Vec::new() });
                } else if self.running() == 1 {
                    // The only sample, and the cache is too small for it: it can never finish.
                    self.batch.remove(0).fail(EngineError::Overloaded { retry_after_s: 1 });
                }
            }
            i += 1;
        }
        scheduled.retain(|part| part.sequence < self.running());
        self.draft(&mut scheduled);
        self.batch.build_step(scheduled)
    }

    /// Adds drafts, which use only rows of the batch that are free.
    fn draft(&mut self, scheduled: &mut [ScheduledTokens]) {
        let mut spare = self.limits.max_running.saturating_sub(scheduled.len());
        let mut of_model = Vec::new();
        for part in scheduled.iter_mut() {
            let limit = self.draft_limit(part).min(spare);
            if self.drafter.is_none() {
                let Sequence { shared, state, .. } = &self.batch.running()[part.sequence];
                let draft = lookup::draft(&state.ids[shared.soft_len()..], limit);
                self.add_draft(part, draft);
                spare -= part.draft.len();
            } else if limit > 0 {
                of_model.push((part.sequence, limit));
                spare -= limit;
            }
        }
        let drafts = self.drafts_of_model(&of_model);
        for ((sequence, _), draft) in of_model.into_iter().zip(drafts) {
            if let Some(part) = scheduled.iter_mut().find(|part| part.sequence == sequence) {
                self.add_draft(part, draft);
            }
        }
    }

    /// Maximum number of tokens that can be drafted behind the scheduled ones of a sample.
    fn draft_limit(&self, part: &ScheduledTokens) -> usize {
        let Sequence { shared, state, .. } = &self.batch.running()[part.sequence];
        if state.generated().is_empty() || part.tokens < state.pending() {
            return 0;
        }
        // The last token of an answer is never computed.
        let left = shared.request.params.max_tokens.saturating_sub(state.generated().len() + 1);
        let room = self.model.decoder.config.max_positions.saturating_sub(state.ids.len() + 1);
        self.limits.draft_tokens.min(left).min(room)
    }

    /// Drafts of the draft model for samples with their limits; none after it has failed.
    fn drafts_of_model(&mut self, wanted: &[(usize, usize)]) -> Vec<Vec<u32>> {
        let Some(drafter) = self.drafter.as_mut().filter(|_| !wanted.is_empty()) else { return Vec::new() };
        drafter.draft(self.batch.running(), wanted).unwrap_or_else(|error| {
            tracing::error!(%error, "the draft model failed and is not used any more");
            self.drafter = None;
            Vec::new()
        })
    }

    /// Adds a draft to the scheduled tokens of a sample and reserves pages for it; does nothing if no pages are free.
    fn add_draft(&mut self, part: &mut ScheduledTokens, mut draft: Vec<u32>) {
        let (decoder, state) = (&self.model.decoder, &self.batch.running()[part.sequence].state);
        // The draft model may have unused ids beyond the vocabulary.
        let known = draft.iter().take_while(|id| (**id as usize) < decoder.config.vocab_size).count();
        draft.truncate(known);
        let grows_long = decoder.is_long(state.ids.len() + draft.len()) && !state.cached.rope.long;
        if !draft.is_empty() && !grows_long && self.batch.reserve(part.sequence, part.tokens + draft.len()) {
            part.draft = draft;
        }
    }

    /// Reserves pages for sample `i`; evicts cached prefixes, then preempts the samples after it, last first. `false`
    /// if that was not enough.
    fn make_room(&mut self, i: usize, tokens: usize) -> bool {
        loop {
            if self.batch.reserve(i, tokens) {
                return true;
            }
            let cached = &self.batch.running()[i].state.cached;
            let need = (cached.len + tokens).div_ceil(PAGE) - cached.pages.len();
            self.prefixes.evict(need, need, &mut self.batch.cache);
            if self.batch.reserve(i, tokens) {
                return true;
            }
            if i + 1 >= self.running() {
                return false;
            }
            self.preempt(self.running() - 1);
        }
    }

    /// For each prompt that this step completed: shares its pages with later prompts and starts the other samples of
    /// its request. Returns the samples that are to run. `logits` are those of the step's predicting rows.
    fn start_siblings(&mut self, step: &Step, logits: &[f32], stats: &StatCounters) -> Vec<Sequence> {
        let vocab = self.model.decoder.config.vocab_size;
        let mut started = Vec::new();
        for (s, rows) in step.with_logits(logits) {
            if self.batch.running()[s.sequence].state.generated().is_empty() {
                self.complete_prompt(s.sequence, &rows[..vocab], &mut started, stats);
            }
        }
        started
    }

    /// Handles the completed prompt of sample `i`; `row` are the logits `[vocab]` of its last token.
    fn complete_prompt(&mut self, i: usize, row: &[f32], started: &mut Vec<Sequence>, stats: &StatCounters) {
        self.cache_prefix(i);
        let sequence = &mut self.batch.running_mut()[i];
        let siblings = std::mem::take(&mut sequence.siblings);
        if let Some(tokens) = sequence.prompt.take() {
            sequence.send(GenEvent::Prompt { tokens });
        }
        let (shared, ids, cached) = (sequence.shared.clone(), sequence.state.ids.clone(), sequence.state.cached.len);
        for index in 1..=siblings {
            let text = shared.model.text_stream(&shared.request);
            // If no page is free for the copy, the sample waits and computes the prompt itself.
            let forked = self.batch.fork(i, cached);
            let waits = forked.is_none();
            let state = SequenceState { prompt_len: ids.len(), ids: ids.clone(), cached: forked.unwrap_or_default() };
            let guide = shared.guide.as_ref().map(Guide::fork);
            let shared = shared.clone();
            let mut sample = Sequence { shared, index, state, text, prompt: None, siblings: 0, guide, drawn: None };
            if waits {
                self.waiting.push_front(sample);
            } else if sample.draw_tokens(std::iter::once(row), &[], self.model.decoder.config.max_positions, stats) {
                self.batch.release(&mut sample);
            } else {
                started.push(sample);
            }
        }
    }

    /// The (row, token id) pairs of prompt tokens whose log-probs were requested and that rows of this step predict.
    /// `start` tokens of the sequence were cached before the step. A row predicts the token after it; the last row of a
    /// soft prompt predicts the first token of the prompt.
    fn prompt_targets(&self, rows: &SequenceRows, start: usize) -> Vec<(usize, u32)> {
        let s = &self.batch.running()[rows.sequence];
        if s.prompt.is_none() {
            return Vec::new();
        }
        let (prompt, first) = (&s.shared.request.prompt_ids, s.shared.request.prompt_from);
        let soft = s.shared.soft_len();
        let target = |r: usize| {
            let at = (start + r + 1).checked_sub(soft).filter(|at| *at >= first)?;
            prompt.get(at).map(|id| (rows.first_row + r, *id))
        };
        (0..rows.tokens).filter_map(target).collect()
    }

    /// Adds the log-probs of the prompt tokens that rows of this step predict. `logits` is a buffer that holds up to 64
    /// rows at a time.
    fn prompt_logprobs(&mut self, output: &StepOutput, step: &Step, logits: &mut Vec<f32>) -> candle_core::Result<()> {
        let vocab = self.model.decoder.config.vocab_size;
        for in_step in &step.sequences {
            let s = &self.batch.running()[in_step.sequence];
            let Some(known) = s.prompt.as_ref().map(Vec::len) else { continue };
            let k = s.shared.request.prompt_logprobs.unwrap_or(0);
            let (prompt, first) = (&s.shared.request.prompt_ids, s.shared.request.prompt_from);
            let soft = s.shared.soft_len();
            let mut found = Vec::new();
            if known == 0 && first == 0 && soft == 0 {
                found.push(TokenLogprob { id: prompt[0], logprob: None, top: Vec::new() });
            }
            let targets = self.prompt_targets(in_step, s.state.cached.len - in_step.tokens);
            for chunk in targets.chunks(64) {
                let rows: Vec<u32> = chunk.iter().map(|(r, _)| *r as u32).collect();
                output.logits_into(&self.model, &rows, logits)?;
                let pairs: Vec<_> = chunk.iter().zip(logits.chunks_exact(vocab)).collect();
                found.par_extend(pairs.into_par_iter().map(|((_, id), row)| {
                    let (logprob, top) = logprob_and_top(row, *id, 1.0, k);
                    TokenLogprob { id: *id, logprob: Some(logprob), top }
                }));
            }
            if let Some(prompt) = &mut self.batch.running_mut()[in_step.sequence].prompt {
                prompt.extend(found);
            }
        }
        Ok(())
    }
}

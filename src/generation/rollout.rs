//! Batched generation for RL rollouts and evaluation: samples one response for each prompt of a fixed list, or a response
//! to each turn of a conversation. A prompt joins the batch when another sequence has ended. Works on token ids and starts
//! no threads.

use candle_core::{Device, Result, Tensor};

use super::sampling::{DrawContext, Drawn, Warpers, draw};
use super::stepper::{RunningSequence, ScheduledTokens, SequenceState, Step, Stepper};
use crate::model::decoder::attached::Attached;
use crate::model::decoder::device::Draw;
use crate::model::decoder::kv_cache::{KvCache, PAGE};
use crate::model::{Decoder, DeviceModel, SampledActivations};
use crate::ops::token_logprobs::entropy;

/// How to sample a batch of prompts.
#[derive(Clone, Debug)]
pub struct GenParams {
    pub max_new_tokens: usize,
    pub warpers: Warpers,
    /// Generation ends after any of these; the end token is part of the sample.
    pub eos_ids: Vec<u32>,
    /// Prompt i draws from stream `first_stream + i` of this seed.
    pub seed: u64,
    pub first_stream: u64,
    /// Maximum number of sequences advanced together.
    pub max_batch: usize,
    /// Whether samples include entropies and hidden states.
    pub with_hidden: bool,
}

impl Default for GenParams {
    fn default() -> Self {
        Self {
            max_new_tokens: 64,
            warpers: Warpers::default(),
            eos_ids: Vec::new(),
            seed: 0,
            first_stream: 0,
            max_batch: 64,
            with_hidden: false,
        }
    }
}

/// One response.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    pub ids: Vec<u32>,
    /// log softmax(logits / temperature) of each id in nats (temperature 1 when greedy). On the CPU equal, bit for bit,
    /// to what `Decoder::token_logprobs` computes over the whole sequence.
    pub logprobs: Vec<f32>,
    /// Whether the sample ended with an end token, not at the maximum length.
    pub finished: bool,
    /// With `with_hidden`: the entropy in nats of the distribution from which each id was drawn, at the temperature of
    /// the log-probs.
    pub entropies: Vec<f32>,
    /// With `with_hidden`: the final hidden state from which each id was drawn, `[ids, hidden]`, flat.
    pub hidden: Vec<f32>,
}

/// The ids between the last of the responses to the prompt with an index and the next one, if there is one.
pub type NextTurnIds<'a> = dyn Fn(usize, &[Sample]) -> Option<&'a [u32]> + 'a;

/// The turns of conversations after the first.
pub struct LaterTurns<'a> {
    /// Maximum number of tokens of a conversation. One whose next turn leaves no room for a response of the maximum
    /// length ends before that turn.
    pub max_tokens: usize,
    /// Returns the ids between the last of the responses so far and the next one, given the index of the prompt; `None`
    /// where the conversation ends.
    pub next: &'a NextTurnIds<'a>,
}

impl LaterTurns<'_> {
    /// The ids between the last response and the next one, if there is one and it fits after `length` tokens.
    fn after(&self, index: usize, responses: &[Sample], length: usize, max_new_tokens: usize) -> Option<&[u32]> {
        (self.next)(index, responses).filter(|ids| length + ids.len() + max_new_tokens <= self.max_tokens)
    }
}

/// The responses to one prompt while they are being generated.
struct Response {
    /// Index of the prompt.
    index: usize,
    state: SequenceState,
}

impl RunningSequence for Response {
    fn state(&self) -> &SequenceState {
        &self.state
    }

    fn state_mut(&mut self) -> &mut SequenceState {
        &mut self.state
    }
}

/// Maximum number of prompt tokens computed in one step, or of one longer prompt or turn.
pub const PREFILL_TOKENS: usize = 2048;

/// Samples one response per prompt, in prompt order. `stop` is called before each step; if it returns `true`, the
/// samples so far are returned.
///
/// # Errors
/// If a prompt is empty or leaves no room for the response, and those of the model.
pub fn generate(
    decoder: &Decoder,
    prompts: &[Vec<u32>],
    params: &GenParams,
    stop: &dyn Fn() -> bool,
) -> Result<Vec<Sample>> {
    let responses = generate_conversations(decoder, prompts, params, None, None, stop)?;
    Ok(responses.into_iter().flatten().collect())
}

/// Samples the responses of conversations that begin with the prompts, in prompt order: one each, and one to each of the
/// turns that `later` adds. A conversation draws all its tokens from one random stream. Saves in `activations`, which
/// was made for these prompts and must be `None` with later turns, the activations that an update on the samples needs.
/// `stop` is called before each step; if it returns `true`, the samples so far are returned.
///
/// # Errors
/// If a prompt is empty or leaves no room for the response, and those of the model.
pub fn generate_conversations(
    decoder: &Decoder,
    prompts: &[Vec<u32>],
    params: &GenParams,
    later: Option<&LaterTurns<'_>>,
    mut activations: Option<&mut SampledActivations>,
    stop: &dyn Fn() -> bool,
) -> Result<Vec<Vec<Sample>>> {
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0) + params.max_new_tokens;
    let longest = later.map_or(longest, |later| longest.max(later.max_tokens));
    if longest > decoder.config.max_positions {
        candle_core::bail!("{longest} tokens exceed the model's {} positions", decoder.config.max_positions);
    }
    if prompts.iter().any(Vec::is_empty) {
        candle_core::bail!("a prompt has no tokens");
    }
    let mut slots = params.max_batch.min(prompts.len()).max(1);
    let cache = match decoder.attached().and_then(Attached::steps) {
        None => KvCache::new(&decoder.config, slots * (longest + PAGE)),
        Some(device) => {
            let tokens = device.page_count() * PAGE;
            slots = slots.min(tokens / (longest + PAGE)).max(1);
            KvCache::on_device(tokens)
        }
    };
    let mut batch = Stepper::new(cache);
    let mut samples = vec![vec![Sample::default()]; prompts.len()];
    let mut next = 0;
    while (next < prompts.len() && params.max_new_tokens > 0) || !batch.running().is_empty() {
        if stop() {
            break;
        }
        refill(&mut batch, decoder, prompts, &mut next, slots);
        let scheduled = schedule_pending(&mut batch)?;
        let step = batch.build_step(scheduled)?;
        if let Some(mut device) = decoder.attached().and_then(Attached::steps) {
            let drawn = step_on_device(&mut batch, decoder, &mut device, &step, params)?;
            append(&mut batch, drawn, &mut samples, params, later);
            batch.restart_grown(decoder);
            continue;
        }
        let hidden = match activations.as_deref_mut() {
            None => batch.hidden(decoder, &step)?,
            Some(activations) => {
                batch.hidden_with_activations(decoder, &step, activations, |response| response.index)?
            }
        };
        batch.commit(&step);
        let rows = hidden.index_select(&Tensor::new(step.predicting_rows(), hidden.device())?, 0)?;
        if params.with_hidden {
            let states: Vec<Vec<f32>> = rows.to_dtype(candle_core::DType::F32)?.to_vec2()?;
            for (rows, state) in step.complete().zip(states) {
                let responses = &mut samples[batch.running()[rows.sequence].index];
                responses.last_mut().into_iter().for_each(|sample| sample.hidden.extend(&state));
            }
        }
        let drawn = draw_tokens(&mut batch, decoder, &rows, &step, params)?;
        append(&mut batch, drawn, &mut samples, params, later);
        batch.restart_grown(decoder);
    }
    Ok(samples)
}

/// Adds prompts to the batch while slots are free, up to `PREFILL_TOKENS` tokens per step, but at least one prompt.
fn refill(batch: &mut Stepper<Response>, decoder: &Decoder, prompts: &[Vec<u32>], next: &mut usize, slots: usize) {
    let mut tokens = 0;
    while batch.running().len() < slots
        && let Some(prompt) = prompts.get(*next)
        && (tokens == 0 || tokens + prompt.len() <= PREFILL_TOKENS)
    {
        tokens += prompt.len();
        batch.add(Response { index: *next, state: SequenceState::new(decoder, prompt.clone()) });
        *next += 1;
    }
}

/// Schedules all pending tokens of the sequences. Sequences with several pending tokens, at the beginning of a turn, wait
/// for a later step once there are `PREFILL_TOKENS` of them.
fn schedule_pending(batch: &mut Stepper<Response>) -> Result<Vec<ScheduledTokens>> {
    let mut scheduled = Vec::with_capacity(batch.running().len());
    let mut prefilled = 0;
    for i in 0..batch.running().len() {
        let tokens = batch.running()[i].state.pending();
        if tokens > 1 {
            if prefilled > 0 && prefilled + tokens > PREFILL_TOKENS {
                continue;
            }
            prefilled += tokens;
        }
        if !batch.reserve(i, tokens) {
            candle_core::bail!("the key/value cache has no free page for sequence {i} of the rollout");
        }
        scheduled.push(ScheduledTokens { sequence: i, tokens, draft: Vec::new() });
    }
    Ok(scheduled)
}

/// Tokens with the index of their sequence, and the entropy of the distribution if it is asked for.
type DrawnTokens = Vec<(usize, (Drawn, Option<f32>))>;

/// Computes a step on a device, which draws one token for every complete sequence with the random numbers of the host.
///
/// # Errors
/// With warpers that change the distribution, or `with_hidden`; those of the device.
fn step_on_device(
    batch: &mut Stepper<Response>,
    decoder: &Decoder,
    device: &mut DeviceModel,
    step: &Step,
    params: &GenParams,
) -> Result<DrawnTokens> {
    if params.with_hidden {
        candle_core::bail!("a device returns no hidden states of a rollout");
    }
    let mut draws = Vec::new();
    for rows in step.complete() {
        let response = &batch.running()[rows.sequence];
        let context = draw_context(response, params);
        let Some((inverse_temperature, uniform)) = params.warpers.plain_draw(&context) else {
            candle_core::bail!("a device draws from the whole distribution only");
        };
        draws.push(Draw { row: rows.last_row(), inverse_temperature, uniform });
    }
    for (from, to) in batch.cache.take_copies() {
        device.copy_page(from, to).map_err(candle_core::Error::wrap)?;
    }
    let drawn = device.step(decoder, &step.rows, &[], &draws).map_err(candle_core::Error::wrap)?.drawn;
    batch.commit(step);
    let tokens = step.complete().zip(drawn);
    Ok(tokens.map(|(rows, (id, logprob))| (rows.sequence, (Drawn { id, logprob, top: Vec::new() }, None))).collect())
}

fn draw_context<'r>(response: &'r Response, params: &GenParams) -> DrawContext<'r> {
    let temperature = params.warpers.temperature;
    DrawContext {
        prompt: &response.state.ids[..response.state.prompt_len],
        generated: response.state.generated(),
        forbidden: &[],
        seed: params.seed,
        stream: params.first_stream + response.index as u64,
        logprob_temperature: if temperature == 0.0 { 1.0 } else { temperature },
        top: 0,
    }
}

/// Draws one token for every complete sequence of the step from its row of `hidden` `[sequences, hidden]`. Returns it with
/// the index of the sequence, and with `with_hidden` the entropy of the distribution.
fn draw_tokens(
    batch: &mut Stepper<Response>,
    decoder: &Decoder,
    hidden: &Tensor,
    step: &Step,
    params: &GenParams,
) -> Result<DrawnTokens> {
    let logits = decoder.logits(hidden)?.to_device(&Device::Cpu)?;
    let one = |response: &mut Response, row: &[f32], _: &[u32]| {
        let context = draw_context(response, params);
        let entropy = params.with_hidden.then(|| entropy(row, context.logprob_temperature));
        (draw(row, &params.warpers, &context), entropy)
    };
    crate::ops::with_f32s(&logits, |logits| Ok(batch.draw(step, logits, one)))
}

/// Appends the drawn tokens to the samples. After a complete response, the sequence gets the ids of the next turn, or is
/// removed from the batch.
fn append(
    batch: &mut Stepper<Response>,
    drawn: DrawnTokens,
    samples: &mut [Vec<Sample>],
    params: &GenParams,
    later: Option<&LaterTurns<'_>>,
) {
    let mut ended = Vec::new();
    for (i, (drawn, entropy)) in drawn {
        batch.trim(i);
        let response = &mut batch.running_mut()[i];
        response.state.ids.push(drawn.id);
        let responses = &mut samples[response.index];
        let Some(sample) = responses.last_mut() else { continue };
        sample.ids.push(drawn.id);
        sample.logprobs.push(drawn.logprob);
        sample.entropies.extend(entropy);
        sample.finished = params.eos_ids.contains(&drawn.id);
        if !sample.finished && sample.ids.len() < params.max_new_tokens {
            continue;
        }
        let (index, length) = (response.index, response.state.ids.len());
        match later.and_then(|later| later.after(index, responses, length, params.max_new_tokens)) {
            Some(ids) => {
                response.state.ids.extend(ids);
                responses.push(Sample::default());
            }
            None => ended.push(i),
        }
    }
    batch.remove_all(&ended);
}

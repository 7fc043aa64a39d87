//! Batched generation for RL rollouts and evaluation: a fixed list of prompts, refilled as sequences end. Nothing of
//! it is text, and it has no threads of its own.

use candle_core::{Device, Result, Tensor};

use super::sampling::{Context, Drawn, Warpers, draw};
use super::stepper::{Feed, Step, Stepper, Track, Tracked};
use crate::model::decoder::kv_cache::{KvCache, PAGE};
use crate::model::{Decoder, Recording};
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
    /// Sequences advanced together.
    pub max_batch: usize,
    /// Whether samples bring entropies and hidden states.
    pub trace: bool,
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
            trace: false,
        }
    }
}

/// One response.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    pub ids: Vec<u32>,
    /// log softmax(logits / temperature) of each id (temperature 1 when greedy), equal to what
    /// `Decoder::token_logprobs` gives over the whole sequence.
    pub logprobs: Vec<f32>,
    /// Whether it ended with an end token rather than by length.
    pub finished: bool,
    /// With `trace`: entropy in nats of the distribution that each id was drawn from, at the log-probs'
    /// temperature, and the hidden state `[d]` that gave it, end to end.
    pub entropies: Vec<f32>,
    pub hidden: Vec<f32>,
}

/// The response to one prompt while it is drawn.
struct Response {
    /// Of its prompt.
    index: usize,
    track: Track,
}

impl Tracked for Response {
    fn track(&self) -> &Track {
        &self.track
    }

    fn track_mut(&mut self) -> &mut Track {
        &mut self.track
    }
}

/// Most prompt tokens fed in one step.
const PREFILL_TOKENS: usize = 2048;

/// Samples one response per prompt, in prompt order. `stop` is called before each step; `true` ends early with the samples
/// so far.
///
/// # Errors
/// An empty prompt, a prompt that leaves no room for the response, and those of the model.
pub fn generate(
    decoder: &Decoder,
    prompts: &[Vec<u32>],
    params: &GenParams,
    stop: &dyn Fn() -> bool,
) -> Result<Vec<Sample>> {
    generate_recorded(decoder, prompts, params, None, stop)
}

/// Samples one response per prompt, in prompt order, and saves in `recording`, which was made for these prompts, the
/// activations that an update on the samples needs. `stop` is called before each step; `true` ends early with the
/// samples so far.
///
/// # Errors
/// An empty prompt, a prompt that leaves no room for the response, and those of the model.
pub fn generate_recorded(
    decoder: &Decoder,
    prompts: &[Vec<u32>],
    params: &GenParams,
    mut recording: Option<&mut Recording>,
    stop: &dyn Fn() -> bool,
) -> Result<Vec<Sample>> {
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0) + params.max_new_tokens;
    if longest > decoder.config.max_positions {
        candle_core::bail!("{longest} tokens exceed the model's {} positions", decoder.config.max_positions);
    }
    if prompts.iter().any(Vec::is_empty) {
        candle_core::bail!("a prompt has no tokens");
    }
    let slots = params.max_batch.min(prompts.len()).max(1);
    let mut batch = Stepper::new(KvCache::new(&decoder.config, slots * (longest + PAGE)));
    let mut samples = vec![Sample::default(); prompts.len()];
    let mut next = 0;
    while (next < prompts.len() && params.max_new_tokens > 0) || !batch.running().is_empty() {
        if stop() {
            break;
        }
        refill(&mut batch, decoder, prompts, &mut next, slots);
        let feeds = feeds(&mut batch)?;
        let step = batch.rows(feeds)?;
        let hidden = match recording.as_deref_mut() {
            None => batch.hidden(decoder, &step)?,
            Some(recording) => batch.hidden_recorded(decoder, &step, recording, |response| response.index)?,
        };
        batch.written(&step);
        let picked = hidden.index_select(&Tensor::new(step.predicting_rows(), hidden.device())?, 0)?;
        if params.trace {
            let states: Vec<Vec<f32>> = picked.to_dtype(candle_core::DType::F32)?.to_vec2()?;
            for (response, state) in batch.running().iter().zip(states) {
                samples[response.index].hidden.extend(state);
            }
        }
        let drawn = draw_tokens(&mut batch, decoder, &picked, &step, params)?;
        take(&mut batch, drawn, &mut samples, params);
        batch.restart_grown(decoder);
    }
    Ok(samples)
}

/// Lets prompts join while there are free slots, up to `PREFILL_TOKENS` in one step.
fn refill(batch: &mut Stepper<Response>, decoder: &Decoder, prompts: &[Vec<u32>], next: &mut usize, slots: usize) {
    let mut fed = 0;
    while batch.running().len() < slots
        && let Some(prompt) = prompts.get(*next)
        && (fed == 0 || fed + prompt.len() <= PREFILL_TOKENS)
    {
        fed += prompt.len();
        batch.join(Response { index: *next, track: Track::new(decoder, prompt.clone()) });
        *next += 1;
    }
}

/// All pending tokens of all sequences.
fn feeds(batch: &mut Stepper<Response>) -> Result<Vec<Feed>> {
    let mut feeds = Vec::with_capacity(batch.running().len());
    for i in 0..batch.running().len() {
        let tokens = batch.running()[i].track.pending();
        if !batch.reserve(i, tokens) {
            candle_core::bail!("the rollout's key/value cache is too small");
        }
        feeds.push(Feed { sequence: i, tokens, draft: Vec::new() });
    }
    Ok(feeds)
}

/// Draws one token for every sequence from its hidden row of `picked`; with it the entropy of the distribution, if traced.
fn draw_tokens(
    batch: &mut Stepper<Response>,
    decoder: &Decoder,
    picked: &Tensor,
    step: &Step,
    params: &GenParams,
) -> Result<Vec<(Drawn, Option<f32>)>> {
    let logits = decoder.logits(picked)?.to_device(&Device::Cpu)?;
    let logprob_temperature = if params.warpers.temperature == 0.0 { 1.0 } else { params.warpers.temperature };
    let one = |response: &mut Response, row: &[f32], _: &[u32]| {
        let context = Context {
            prompt: &response.track.ids[..response.track.prompt_len],
            generated: response.track.generated(),
            forbidden: &[],
            seed: params.seed,
            stream: params.first_stream + response.index as u64,
            logprob_temperature,
            top: 0,
        };
        let entropy = params.trace.then(|| entropy(row, logprob_temperature));
        (draw(row, &params.warpers, &context), entropy)
    };
    crate::ops::with_f32s(&logits, |logits| {
        Ok(batch.draw(step, logits, one).into_iter().map(|(_, drawn)| drawn).collect())
    })
}

/// Adds the drawn tokens to the samples and takes complete ones out of the batch.
fn take(batch: &mut Stepper<Response>, drawn: Vec<(Drawn, Option<f32>)>, samples: &mut [Sample], params: &GenParams) {
    let mut ended = Vec::new();
    for (i, (drawn, entropy)) in drawn.into_iter().enumerate() {
        batch.trim(i);
        let response = &mut batch.running_mut()[i];
        response.track.ids.push(drawn.id);
        let sample = &mut samples[response.index];
        sample.ids.push(drawn.id);
        sample.logprobs.push(drawn.logprob);
        sample.entropies.extend(entropy);
        sample.finished = params.eos_ids.contains(&drawn.id);
        if sample.finished || sample.ids.len() >= params.max_new_tokens {
            ended.push(i);
        }
    }
    batch.retire(&ended);
}

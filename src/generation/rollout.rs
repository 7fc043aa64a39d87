//! Batched generation for RL rollouts and evaluation: continuous refill, no text, no threads of its own.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::sampling::{Context, Drawn, Warpers, draw};
use crate::model::decoder::kv_cache::{CachedSequence, KvCache, StepRows};
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

struct RunningSequence {
    index: usize,
    cached: CachedSequence,
    /// Tokens to feed next: the prompt first, then the last drawn id.
    pending: Vec<u32>,
}

/// Most prompt tokens fed in one step.
const PREFILL_TOKENS: usize = 2048;

/// Samples one response per prompt, in prompt order. `stop` is called after each step; `true` ends early with the samples
/// so far.
pub fn generate(
    decoder: &Decoder,
    prompts: &[Vec<u32>],
    params: &GenParams,
    stop: &dyn Fn() -> bool,
) -> Result<Vec<Sample>> {
    generate_recorded(decoder, prompts, params, None, stop)
}

/// Samples one response per prompt, in prompt order, and saves in `recording`, which was made for these prompts, the
/// activations that an update on the samples needs. `stop` is called after each step; `true` ends early with the
/// samples so far.
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
    let mut cache = KvCache::new(&decoder.config, slots * (longest + crate::model::decoder::kv_cache::PAGE));
    let mut samples = vec![Sample::default(); prompts.len()];
    let mut running: Vec<RunningSequence> = Vec::new();
    let mut next = 0;
    while (next < prompts.len() && params.max_new_tokens > 0) || !running.is_empty() {
        if stop() {
            break;
        }
        let mut rows = StepRows::default();
        let mut fed = 0;
        while running.len() < slots && next < prompts.len() && (fed == 0 || fed + prompts[next].len() <= PREFILL_TOKENS)
        {
            fed += prompts[next].len();
            let cached = CachedSequence { rope: decoder.rope_length(prompts[next].len()), ..CachedSequence::default() };
            running.push(RunningSequence { index: next, cached, pending: prompts[next].clone() });
            next += 1;
        }
        let mut last_rows = Vec::with_capacity(running.len());
        for r in &mut running {
            if !cache.reserve(&mut r.cached, r.pending.len()) {
                candle_core::bail!("the rollout's key/value cache is too small");
            }
            last_rows.push(rows.push(&r.pending, &r.cached) as u32);
        }
        let hidden = match recording.as_deref_mut() {
            None => decoder.step(&rows, &mut cache)?,
            Some(recording) => {
                let span =
                    |r: &RunningSequence| (0..r.pending.len()).map(|i| (r.index, r.cached.len + i)).collect::<Vec<_>>();
                let fed: Vec<_> = running.iter().flat_map(span).collect();
                decoder.step_recorded(&rows, &mut cache, Some((recording, &fed)))?
            }
        };
        let picked = hidden.index_select(&Tensor::new(last_rows.as_slice(), hidden.device())?, 0)?;
        let drawn = draw_rows(decoder, &picked, &running, &samples, prompts, params)?;
        if params.trace {
            let states: Vec<Vec<f32>> = picked.to_dtype(candle_core::DType::F32)?.to_vec2()?;
            for (r, state) in running.iter().zip(states) {
                samples[r.index].hidden.extend(state);
            }
        }
        running = advance(running, drawn, &mut samples, &mut cache, params);
        restart_grown(decoder, &mut running, prompts, &samples, &mut cache);
    }
    Ok(samples)
}

/// Feeds sequences anew that have grown past the length from which all their tokens have other rotary frequencies.
fn restart_grown(
    decoder: &Decoder,
    running: &mut [RunningSequence],
    prompts: &[Vec<u32>],
    samples: &[Sample],
    cache: &mut KvCache,
) {
    for r in running {
        let (prompt, ids) = (&prompts[r.index], &samples[r.index].ids);
        if !r.cached.rope.long && decoder.is_long(prompt.len() + ids.len()) {
            cache.release_all(&mut r.cached);
            r.cached.rope.long = true;
            r.pending = [prompt.as_slice(), ids].concat();
        }
    }
}

/// Draws from the distributions of `picked` hidden rows; with them, their entropies if they are traced.
fn draw_rows(
    decoder: &Decoder,
    picked: &Tensor,
    running: &[RunningSequence],
    samples: &[Sample],
    prompts: &[Vec<u32>],
    params: &GenParams,
) -> Result<Vec<(Drawn, Option<f32>)>> {
    let logits = decoder.logits(picked)?.to_device(&candle_core::Device::Cpu)?;
    let vocab = decoder.config.vocab_size;
    let logprob_temperature = if params.warpers.temperature == 0.0 { 1.0 } else { params.warpers.temperature };
    crate::ops::with_f32s(&logits, |logits| {
        let rows: Vec<_> = logits.chunks_exact(vocab).zip(running).collect();
        Ok(rows
            .into_par_iter()
            .map(|(row, r)| {
                let context = Context {
                    prompt: &prompts[r.index],
                    generated: &samples[r.index].ids,
                    forbidden: &[],
                    seed: params.seed,
                    stream: params.first_stream + r.index as u64,
                    logprob_temperature,
                    top: 0,
                };
                let entropy = params.trace.then(|| entropy(row, logprob_temperature));
                (draw(row, &params.warpers, &context), entropy)
            })
            .collect())
    })
}

/// Books the drawn tokens; keeps the sequences that go on.
fn advance(
    running: Vec<RunningSequence>,
    drawn: Vec<(Drawn, Option<f32>)>,
    samples: &mut [Sample],
    cache: &mut KvCache,
    params: &GenParams,
) -> Vec<RunningSequence> {
    let mut keep = Vec::with_capacity(running.len());
    for (mut r, (drawn, entropy)) in running.into_iter().zip(drawn) {
        r.cached.len += r.pending.len();
        cache.trim(&mut r.cached);
        let sample = &mut samples[r.index];
        sample.ids.push(drawn.id);
        sample.logprobs.push(drawn.logprob);
        sample.entropies.extend(entropy);
        sample.finished = params.eos_ids.contains(&drawn.id);
        if sample.finished || sample.ids.len() >= params.max_new_tokens {
            cache.release_all(&mut r.cached);
        } else {
            r.pending = vec![drawn.id];
            keep.push(r);
        }
    }
    keep
}

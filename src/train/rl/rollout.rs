//! The rollout of a round: sampled responses, their scores, and for every token of the policy the log-probs of policy and
//! reference and the value of the critic, before any update.

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use candle_core::{Device, Tensor};

use super::critic::Critic;
use super::fleet::{Fleet, FleetResponses};
use super::group_counts::GroupCounts;
use super::response::{Answer, ResponseTexts, SampledResponse};
use super::rewards::Reward;
use super::services::Completion;
use crate::generation::{GenParams, LaterTurns, PREFILL_TOKENS, Sample, Warpers, generate_conversations};
use crate::model::decoder::device::Room;
use crate::model::decoder::kv_cache::PAGE;
use crate::model::{Decoder, SampledActivations};
use crate::objective::importance::{self, ImportanceWeights};
use crate::prompt::Texts;
use crate::train::args::{Numerics, RlCommon, Turns};
use crate::train::meter::Stopwatch;
use crate::train::rng::{Stream, derive, permutation, rng};
use crate::train::step::{PredictionBatch, TurnSequence, micro_batches};
use crate::train::trainable::Trainable;
use crate::train::turns::{PromptTexts, StoredPrompt};

/// The responses of a round. Per-sequence fields are in sampling order, in which samples of a prompt are consecutive.
/// Per-token fields have the tokens of the policy in all sequences, concatenated: those of all answers of a conversation,
/// and none of its prompt, its user turns and its template.
#[derive(Default)]
pub struct Rollout {
    pub sequences: Vec<TurnSequence>,
    pub texts: Vec<ResponseTexts>,
    /// Number of tokens of the policy in each sequence, including end tokens.
    pub lengths: Vec<usize>,
    /// The answers of each sequence.
    pub answers: Vec<Vec<Answer>>,
    /// Number of conversations that ended before a user turn for which there was no room; `None` with `turns` last.
    pub cut_conversations: Option<usize>,
    /// Number of updates of the weights that wrote each response.
    pub versions: Vec<u64>,
    /// Other servers wrote the responses.
    pub is_generated_elsewhere: bool,
    /// Scores of the reward.
    pub raw_scores: Vec<f64>,
    /// With dynamic sampling, the responses before groups were replaced: the replaced ones would bias the mean reward.
    pub first: Option<FirstResponses>,
    /// Counts of groups, if there are several samples per prompt.
    pub groups: Option<GroupCounts>,
    /// Scores after the penalty for missing end tokens, summed over the answers of a sequence.
    pub scores: Vec<f64>,
    /// Log-probs of the trainer's forward pass, for ratios and penalties.
    pub logprobs: Vec<f64>,
    /// Log-probs of the sampler. They have the bits of `logprobs` if sampler and trainer use the same kernels and
    /// weights.
    pub sampled: Vec<f64>,
    /// Importance weights of the losses, if sampler and trainer differ.
    pub importance: Option<ImportanceWeights>,
    pub reference: Vec<f64>,
    pub entropy: Vec<f64>,
    /// Empty without a critic.
    pub values: Vec<f64>,
    /// The values `[n]` with their gradient, if the first update can reuse the critic's forward pass: a separate
    /// critic, and all sequences in one micro-batch of a single minibatch.
    pub critic_pass: Option<Tensor>,
    /// The saved activations of sampling, if the first update can reuse them.
    pub activations: Option<SampledActivations>,
    pub seconds: Seconds,
}

/// Time of the phases of a round, in seconds.
#[derive(Clone, Copy, Default)]
pub struct Seconds {
    pub generation: f64,
    /// Of the reward.
    pub reward: f64,
    /// Of reference and critic.
    pub reference: f64,
}

/// Responses before groups were replaced.
pub struct FirstResponses {
    pub texts: Vec<ResponseTexts>,
    pub raw_scores: Vec<f64>,
}

impl Rollout {
    /// Raw scores of the responses before groups were replaced.
    pub fn first_scores(&self) -> &[f64] {
        self.first.as_ref().map_or(&self.raw_scores, |first| &first.raw_scores)
    }

    fn first_texts(&self) -> &[ResponseTexts] {
        self.first.as_ref().map_or(&self.texts, |first| &first.texts)
    }

    /// Concatenates responses. Also returns their hidden states `[n, hidden]`, flat.
    fn of(
        responses: Vec<SampledResponse>,
        activations: Option<SampledActivations>,
        seconds: Seconds,
    ) -> (Self, Vec<f32>) {
        let mut rollout = Self { seconds, activations, ..Self::default() };
        let mut hidden = Vec::new();
        for SampledResponse { texts, sequence, samples, answers, raw_score, score, version } in responses {
            rollout.versions.push(version);
            rollout.texts.push(texts);
            rollout.lengths.push(answers.iter().map(|answer| answer.length).sum());
            rollout.answers.push(answers);
            for sample in samples {
                rollout.logprobs.extend(sample.logprobs.iter().map(|lp| f64::from(*lp)));
                rollout.entropy.extend(sample.entropies.iter().map(|e| f64::from(*e)));
                hidden.extend(sample.hidden);
            }
            rollout.sequences.push(sequence);
            rollout.raw_scores.push(raw_score);
            rollout.scores.push(score);
        }
        (rollout, hidden)
    }

    /// The mean absolute difference between the log-probs of sampler and trainer, in nats per token.
    pub fn mean_gap(&self) -> f64 {
        let differences = self.logprobs.iter().zip(&self.sampled).map(|(trainer, sampler)| (trainer - sampler).abs());
        differences.sum::<f64>() / self.logprobs.len().max(1) as f64
    }

    /// Number of tokens and score of every answer of all sequences.
    pub fn scored_answers(&self) -> (Vec<usize>, Vec<f64>) {
        self.answers.iter().flatten().map(|answer| (answer.length, answer.score)).unzip()
    }

    /// Index of the first token of each sequence in the per-token fields.
    pub fn token_starts(&self) -> Vec<usize> {
        let mut at = 0;
        let next = |n: &usize| {
            at += n;
            at - n
        };
        self.lengths.iter().map(next).collect()
    }
}

/// The settings and models of a rollout.
pub struct Sampler<'a> {
    pub args: &'a RlCommon,
    pub texts: &'a Texts,
    pub prompts: &'a [StoredPrompt],
    pub reward: &'a Reward,
    pub reference: &'a Decoder,
    /// The trainer's policy. It recomputes log-probs if the sampler uses other kernels or weights.
    pub trainer: &'a Decoder,
    /// Whether the sampler computes the log-probs and states of the trainer's forward pass, bit for bit. True for the
    /// CPU's kernels with the trainer's weights.
    pub exact_sampler: bool,
    /// Maximum number of tokens of a conversation.
    pub max_length: usize,
    /// Samples per prompt.
    pub group: usize,
    /// Maximum number of attempts to replace groups without variance.
    pub redraws: u64,
    /// The servers that generate the responses, if it is not this run.
    pub fleet: Option<&'a Fleet>,
    /// The policy to update, if sampling may save activations for the first update.
    pub activations_for: Option<&'a Decoder>,
}

/// Receives a phase, and optionally (done, total) within it.
pub type ReportPhase<'a> = &'a dyn Fn(&str, Option<(u64, u64)>);

/// Receives the progress of a round, and decides whether to stop it.
pub struct RoundMonitor<'a> {
    pub stop: &'a dyn Fn() -> bool,
    pub report: ReportPhase<'a>,
}

/// Minimum interval between reports within a phase.
const REPORT_INTERVAL: Duration = Duration::from_millis(500);

impl Sampler<'_> {
    /// The policy that generates the responses of `iteration`.
    pub fn behaviour(&self, policy: &Trainable, iteration: u64) -> Result<Decoder> {
        if policy.is_on_device() {
            if self.fleet.is_some() {
                // Other servers generate; this model samples nothing.
                return Ok(policy.decoder().clone());
            }
            let slots = GenParams::default().max_batch.min(self.args.rollout_batch_size);
            let chosen = match self.redraws {
                0 => self.chosen(iteration),
                // Replaced groups may have any prompt.
                _ => (0..self.prompts.len()).collect(),
            };
            let longest = self.longest(&chosen) + PAGE;
            // A step has the tokens of a prefill, or of a longer prompt, and one of every other sequence.
            let rows = slots + PREFILL_TOKENS.max(self.max_length);
            let room = Room { pages: (slots * longest).div_ceil(PAGE), longest, rows, wanted: slots };
            return Ok(policy.behaviour_on_device(room, self.args.temperature as f32)?);
        }
        Ok(match self.args.numerics {
            Numerics::Fast => policy.rounded_behaviour()?,
            Numerics::Exact => policy.behaviour()?,
        })
    }

    /// Maximum number of tokens of the conversations with these prompts.
    fn longest(&self, chosen: &[usize]) -> usize {
        let most = chosen.iter().map(|&i| self.prompts[i].ids.most_tokens(self.args.response_length)).max();
        most.unwrap_or(0).min(self.max_length)
    }

    /// The prompts of an iteration. Every pass over all prompts has its own random order.
    pub(super) fn chosen(&self, iteration: u64) -> Vec<usize> {
        let n = (self.args.rollout_batch_size / self.group) as u64;
        let all = self.prompts.len() as u64;
        let mut order = (u64::MAX, Vec::new());
        let mut pick = |k: u64| {
            if order.0 != k / all {
                let mut rng = rng(self.args.common.seed, Stream::DataOrder, k / all);
                order = (k / all, permutation(self.prompts.len(), &mut rng));
            }
            order.1[(k % all) as usize]
        };
        (iteration * n..(iteration + 1) * n).flat_map(|k| std::iter::repeat_n(pick(k), self.group)).collect()
    }

    /// Lets the servers generate the responses of `iteration` while the round before it is trained on, if the run allows
    /// it.
    pub fn generate_ahead(&self, iteration: u64) -> Result<()> {
        let Some(fleet) = self.fleet else { return Ok(()) };
        fleet.generate_ahead(|| self.ids_of(&self.chosen(iteration)), self.gen_params(iteration, 0))
    }

    fn ids_of(&self, chosen: &[usize]) -> Vec<Vec<u32>> {
        chosen.iter().map(|&i| self.prompts[i].ids.first.to_vec()).collect()
    }

    /// How responses are sampled. `attempt` is 0 for the first sampling of an iteration; every attempt has its own
    /// random streams.
    fn gen_params(&self, iteration: u64, attempt: u64) -> GenParams {
        GenParams {
            max_new_tokens: self.args.response_length,
            // The distribution is not truncated, so that log-probs are those of the sampled distribution.
            warpers: Warpers { temperature: self.args.temperature as f32, ..Warpers::default() },
            eos_ids: self.texts.eos_ids().to_vec(),
            seed: derive(self.args.common.seed, Stream::Rollout, iteration),
            first_stream: attempt * self.args.rollout_batch_size as u64,
            // Without an exact sampler, the trainer recomputes log-probs, entropies and states.
            with_hidden: self.exact_sampler,
            ..GenParams::default()
        }
    }

    /// Samples, scores and measures one round. `None` if a stop was requested. A device frees what it needs for sampling
    /// after the last response, so that `policy` samples nothing afterwards.
    pub fn collect(
        &self,
        policy: &mut Decoder,
        critic: Option<&Critic>,
        iteration: u64,
        monitor: &RoundMonitor<'_>,
    ) -> Result<Option<Rollout>> {
        let chosen = self.chosen(iteration);
        let mut watch = Stopwatch::start();
        let mut activations = self.activations(&chosen);
        let Some(mut responses) = self.draw(policy, &chosen, iteration, 0, activations.as_mut(), monitor)? else {
            return Ok(None);
        };
        let generation = watch.lap();
        if self.group == 1 || self.redraws == 0 {
            policy.end_steps();
        }
        (monitor.report)("scoring", None);
        self.score(&mut responses)?;
        let mut seconds = Seconds { generation, reward: watch.lap(), ..Seconds::default() };
        let (mut first, mut groups) = (None, None);
        if self.group > 1 {
            first = (self.redraws > 0).then(|| FirstResponses {
                texts: responses.iter().map(|d| d.texts.clone()).collect(),
                raw_scores: responses.iter().map(|d| d.raw_score).collect(),
            });
            let Some(found) = self.replace_flat_groups(policy, &mut responses, iteration, monitor)? else {
                return Ok(None);
            };
            if found.drawn_again > 0 {
                // The activations are those of other responses than the update has.
                activations = None;
            }
            groups = Some(found);
            seconds.generation += watch.lap();
        }
        let is_cut = |d: &&SampledResponse| d.answers.len() < self.prompts[d.texts.prompt].ids.turns();
        let cut = (self.args.turns == Turns::All).then(|| responses.iter().filter(is_cut).count());
        let (mut rollout, hidden) = Rollout::of(responses, activations, seconds);
        rollout.cut_conversations = cut;
        (rollout.first, rollout.groups) = (first, groups);
        rollout.is_generated_elsewhere = self.fleet.is_some();
        policy.end_steps();
        (monitor.report)("reference", None);
        rollout.sampled = rollout.logprobs.clone();
        self.measure(&mut rollout, hidden, critic)?;
        rollout.importance = (!self.exact_sampler).then(|| {
            let (correction, cap) = (self.args.sampler_correction, self.args.sampler_correction_cap);
            importance::weights(&rollout.logprobs, &rollout.sampled, &rollout.lengths, correction, cap)
        });
        rollout.seconds.reference = watch.lap();
        Ok(Some(rollout))
    }

    /// Samples a response to each chosen prompt, without scores. `None` if a stop was requested. `attempt` is 0 for the
    /// first sampling of an iteration; every attempt has its own random streams.
    pub(super) fn draw(
        &self,
        policy: &Decoder,
        chosen: &[usize],
        iteration: u64,
        attempt: u64,
        activations: Option<&mut SampledActivations>,
        monitor: &RoundMonitor<'_>,
    ) -> Result<Option<Vec<SampledResponse>>> {
        let (prompts, params) = (self.ids_of(chosen), self.gen_params(iteration, attempt));
        let (steps, reported) = (Cell::new(0), Cell::new(Instant::now()));
        // Called before every token.
        let stop = || {
            steps.set(steps.get() + 1);
            if reported.get().elapsed() >= REPORT_INTERVAL {
                reported.set(Instant::now());
                let turns = chosen.iter().map(|&i| self.prompts[i].ids.turns()).max().unwrap_or(1);
                let most = (self.args.response_length * turns) as u64;
                (monitor.report)("sampling", Some((most.min(steps.get()), most)));
            }
            (monitor.stop)()
        };
        let (samples, version): (Vec<Vec<Sample>>, u64) = match self.fleet {
            None => {
                let next = |i: usize, answers: &[Sample]| self.prompts[chosen[i]].ids.after(answers);
                let later = LaterTurns { max_tokens: self.longest(chosen), next: &next };
                (generate_conversations(policy, &prompts, &params, Some(&later), activations, &stop)?, iteration)
            }
            Some(fleet) => match fleet.responses(&prompts, &params, monitor.stop)? {
                Some(FleetResponses { samples, version }) => (samples.into_iter().map(|s| vec![s]).collect(), version),
                None => return Ok(None),
            },
        };
        if (monitor.stop)() {
            return Ok(None);
        }
        let mut responses = Vec::with_capacity(chosen.len());
        // Responses to one prompt are adjacent and share its texts.
        let mut known: Option<(usize, Arc<PromptTexts>)> = None;
        for (&i, samples) in chosen.iter().zip(samples) {
            let source = match known.take().filter(|(number, _)| *number == i) {
                Some((_, source)) => source,
                None => Arc::new(self.prompts[i].texts()?),
            };
            known = Some((i, source.clone()));
            let (ids, reasoning) = (&self.prompts[i].ids, self.args.scored_reasoning);
            responses.push(SampledResponse::new(self.texts, (i, source, ids), samples, reasoning, version)?);
        }
        Ok(Some(responses))
    }

    /// Scores the responses: the last answer of each with the conversation before it, or every answer.
    pub(super) fn score(&self, responses: &mut [SampledResponse]) -> Result<()> {
        let longest = responses.iter().map(|d| d.answers.len()).max().unwrap_or(0);
        let is_scored = |d: &SampledResponse, turn: usize| match self.args.rewarded_turns {
            Turns::Last => turn + 1 == d.answers.len(),
            Turns::All => turn < d.answers.len(),
        };
        // Turn by turn, so that first answers to one prompt are adjacent.
        let scored: Vec<(usize, usize)> = (0..longest)
            .flat_map(|turn| (0..responses.len()).map(move |i| (i, turn)))
            .filter(|&(i, turn)| is_scored(&responses[i], turn))
            .collect();
        let items: Vec<Completion<'_>> = scored.iter().map(|&(i, turn)| self.item(&responses[i].texts, turn)).collect();
        let scores = self.reward.score(&items)?;
        let mut raw: Vec<Vec<f64>> = responses.iter().map(|d| vec![0.0; d.answers.len()]).collect();
        scored.into_iter().zip(scores).for_each(|((i, turn), score)| raw[i][turn] = score);
        let (penalty, mode) = (self.args.missing_eos_penalty, self.args.missing_eos_mode);
        responses.iter_mut().zip(raw).for_each(|(d, raw)| d.set_scores(&raw, penalty, mode));
        Ok(())
    }

    /// The answer with this number, as input of a reward.
    fn item<'r>(&'r self, texts: &'r ResponseTexts, turn: usize) -> Completion<'r> {
        let (source, before) = (&texts.source, self.prompts[texts.prompt].ids.before(turn));
        let prompt = turn.checked_sub(1).map_or(&source.prompt, |i| &texts.conversations[i]);
        let text = self.texts.answer_in(before, &texts.answers[turn], self.args.scored_reasoning);
        Completion { prompt, text, answer: source.answer.as_deref() }
    }

    /// The last answers of the responses before groups were replaced, as input of a reward.
    pub fn items<'r>(&'r self, rollout: &'r Rollout) -> Vec<Completion<'r>> {
        self.last_answers(rollout.first_texts())
    }

    /// The last answers of responses, as input of a reward.
    pub(super) fn last_answers<'r>(
        &'r self,
        responses: impl IntoIterator<Item = &'r ResponseTexts>,
    ) -> Vec<Completion<'r>> {
        responses.into_iter().map(|texts| self.item(texts, texts.answers.len() - 1)).collect()
    }

    /// Computes the values of a critic whose forward pass the first update can reuse. Called separately, after the
    /// behaviour policy was dropped, because the activations of this pass are large.
    pub fn first_critic_pass(&self, rollout: &mut Rollout, critic: &Critic) -> Result<()> {
        let lengths: Vec<usize> = rollout.sequences.iter().map(|s| s.ids.len()).collect();
        let Some(order) = self.one_pass(critic, &lengths) else { return Ok(()) };
        let mut watch = Stopwatch::start();
        let packed = PredictionBatch::of_turns(&order.iter().map(|&i| &rollout.sequences[i]).collect::<Vec<_>>());
        let pass = critic.own_values(&packed)?;
        let (values, starts) = (to_f64(pass.to_vec1()?), rollout.token_starts());
        let mut at = 0;
        for i in order {
            let len = rollout.lengths[i];
            rollout.values[starts[i]..starts[i] + len].copy_from_slice(&values[at..at + len]);
            at += len;
        }
        rollout.critic_pass = Some(pass);
        rollout.seconds.reference += watch.lap();
        Ok(())
    }

    /// Where to save activations, if the first update will be one pass over all sequences, whatever the lengths of the
    /// responses. Conversations of several turns have none.
    fn activations(&self, chosen: &[usize]) -> Option<SampledActivations> {
        let lengths: Vec<usize> = chosen.iter().map(|&i| self.prompts[i].ids.first.len()).collect();
        let response = self.args.response_length;
        let most = lengths.iter().map(|n| n + response).sum::<usize>();
        let single = chosen.iter().all(|&i| self.prompts[i].ids.turns() == 1);
        let one = single && self.args.minibatches == 1 && most <= self.args.common.micro_batch_tokens;
        SampledActivations::new(self.activations_for.filter(|_| one)?, &lengths, response)
    }

    /// The order of all sequences in a single pass for the values and the first update; `None` if there are several
    /// passes, or the critic uses the policy's states.
    fn one_pass(&self, critic: &Critic, lengths: &[usize]) -> Option<Vec<usize>> {
        let mut groups = micro_batches(lengths, self.args.common.micro_batch_tokens);
        (self.args.minibatches == 1 && groups.len() == 1 && !critic.is_shared()).then(|| groups.pop()).flatten()
    }

    /// Computes the reference's log-probs and the critic's values of all response tokens, and without an exact sampler
    /// also the policy's log-probs and entropies. `hidden` are the policy's states `[n, hidden]` from sampling.
    fn measure(&self, rollout: &mut Rollout, hidden: Vec<f32>, critic: Option<&Critic>) -> Result<()> {
        let n: usize = rollout.lengths.iter().sum();
        let starts = rollout.token_starts();
        let (d, exact_sampler) = (self.trainer.config.hidden_size, self.exact_sampler);
        if !exact_sampler {
            rollout.logprobs = vec![0.0; n];
            rollout.entropy = vec![0.0; n];
        }
        rollout.reference = vec![0.0; n];
        rollout.values = vec![0.0; if critic.is_some() { n } else { 0 }];
        let lengths: Vec<usize> = rollout.sequences.iter().map(|s| s.ids.len()).collect();
        let later = critic.is_some_and(|critic| self.one_pass(critic, &lengths).is_some());
        for group in micro_batches(&lengths, self.args.common.micro_batch_tokens) {
            let packed = PredictionBatch::of_turns(&group.iter().map(|&i| &rollout.sequences[i]).collect::<Vec<_>>());
            let reference = packed.scores_frozen(self.reference, self.args.temperature)?;
            let mut columns = vec![(&mut rollout.reference, to_f64(reference.logprobs.to_vec1()?))];
            let states = if exact_sampler {
                let rows = group.iter().flat_map(|&i| &hidden[starts[i] * d..(starts[i] + rollout.lengths[i]) * d]);
                Some(Tensor::from_iter(rows.copied(), &Device::Cpu)?.reshape(((), d))?)
            } else {
                let states = critic.is_some_and(Critic::is_shared).then(|| packed.hidden_frozen(self.trainer));
                let states = states.transpose()?;
                let now = match &states {
                    Some(states) => packed.logprobs(self.trainer, states, self.args.temperature)?,
                    None => packed.scores_frozen(self.trainer, self.args.temperature)?,
                };
                columns.push((&mut rollout.logprobs, to_f64(now.logprobs.to_vec1()?)));
                columns.push((&mut rollout.entropy, to_f64(now.entropy.to_vec1()?)));
                states
            };
            if let Some(critic) = critic.filter(|_| !later) {
                columns.push((&mut rollout.values, critic.numbers(&packed, states.as_ref())?));
            }
            for (into, from) in columns {
                let mut at = 0;
                for &i in &group {
                    let len = rollout.lengths[i];
                    into[starts[i]..starts[i] + len].copy_from_slice(&from[at..at + len]);
                    at += len;
                }
            }
        }
        Ok(())
    }
}

fn to_f64(values: Vec<f32>) -> Vec<f64> {
    values.into_iter().map(f64::from).collect()
}

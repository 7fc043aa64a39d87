//! One round of experience: sampled responses, their scores, and the log-probs of policy and reference and the values
//! of the critic for every token before any update.

use std::cell::Cell;
use std::time::{Duration, Instant};

use anyhow::Result;
use candle_core::{Device, Tensor};

use super::critic::Critic;
use super::redraw::Groups;
use super::rewards::Reward;
use super::services::Item;
use crate::data::PromptInput;
use crate::generation::{GenParams, Sample, Warpers, generate_recorded};
use crate::model::{Decoder, Recording};
use crate::objective::importance::{self, ImportanceWeights};
use crate::prompt::Texts;
use crate::train::args::{MissingEos, RlCommon};
use crate::train::meter::Stopwatch;
use crate::train::rng::{Stream, derive, permutation, rng};
use crate::train::step::{Picked, Sequence, micro_batches};

/// A prompt as given and as ids.
pub struct PromptIds {
    pub prompt: PromptInput,
    /// Its right answer, where the record has one.
    pub answer: Option<String>,
    pub ids: Vec<u32>,
    /// How messages call it.
    pub name: String,
}

/// Per-sequence fields in sampling order (samples of one prompt stand together), per-token fields over the
/// response tokens of all sequences end to end.
#[derive(Default)]
pub struct Rollout {
    pub sequences: Vec<Sequence>,
    /// Index of the prompt, and the text of the response.
    pub texts: Vec<(usize, String)>,
    /// Response tokens of each sequence, end token included.
    pub lengths: Vec<usize>,
    /// Whether the response ended with an end token.
    pub finished: Vec<bool>,
    /// As the reward gave them.
    pub raw_scores: Vec<f64>,
    /// Texts and raw scores as first drawn, where groups were drawn again: what is drawn until it varies says nothing
    /// about the policy's mean.
    pub first: Option<First>,
    /// What became of the groups, where responses come in groups.
    pub groups: Option<Groups>,
    /// After the missing-end penalty.
    pub scores: Vec<f64>,
    /// Log-probs by the trainer's forward pass: what ratios and penalties are taken of.
    pub logprobs: Vec<f64>,
    /// Log-probs as sampling computed them; the same bits where the sampler's kernels and weights are the trainer's.
    pub sampled: Vec<f64>,
    /// What losses are weighted by, where they are not.
    pub importance: Option<ImportanceWeights>,
    pub reference: Vec<f64>,
    pub entropy: Vec<f64>,
    /// Empty without a critic.
    pub values: Vec<f64>,
    /// The values [n] with their gradient, where the first update may go on from the pass that gave them: a critic
    /// of its own, and all sequences in one micro-batch of the only minibatch.
    pub critic_pass: Option<Tensor>,
    /// The policy's own pass, likewise, as sampling made it.
    pub recording: Option<Recording>,
    pub seconds: Seconds,
}

/// Where the time of a round went.
#[derive(Clone, Copy, Default)]
pub struct Seconds {
    pub generation: f64,
    /// The reward.
    pub reward: f64,
    /// Reference and critic.
    pub reference: f64,
}

/// Responses before any was drawn again.
pub struct First {
    pub texts: Vec<(usize, String)>,
    pub raw_scores: Vec<f64>,
}

/// One response as sampled.
pub struct Drawn {
    /// Index of its prompt.
    pub prompt: usize,
    pub sequence: Sequence,
    pub text: String,
    pub sample: Sample,
    /// As the reward gave it, and after the missing-end penalty.
    pub raw_score: f64,
    pub score: f64,
}

impl Rollout {
    /// Raw scores of an unselected sample of the policy.
    pub fn first_scores(&self) -> &[f64] {
        self.first.as_ref().map_or(&self.raw_scores, |first| &first.raw_scores)
    }

    fn first_texts(&self) -> &[(usize, String)] {
        self.first.as_ref().map_or(&self.texts, |first| &first.texts)
    }

    /// The responses end to end; their states [n, d] are taken out.
    fn of(drawn: Vec<Drawn>, recording: Option<Recording>, seconds: Seconds) -> (Self, Vec<f32>) {
        let mut rollout = Self { seconds, recording, ..Self::default() };
        let mut hidden = Vec::new();
        for Drawn { prompt, sequence, text, sample, raw_score, score } in drawn {
            rollout.texts.push((prompt, text));
            rollout.lengths.push(sample.ids.len());
            rollout.finished.push(sample.finished);
            rollout.logprobs.extend(sample.logprobs.iter().map(|lp| f64::from(*lp)));
            rollout.entropy.extend(sample.entropies.iter().map(|e| f64::from(*e)));
            hidden.extend(sample.hidden);
            rollout.sequences.push(sequence);
            rollout.raw_scores.push(raw_score);
            rollout.scores.push(score);
        }
        (rollout, hidden)
    }

    /// The mean size of the difference between the sampler's log-probs and the trainer's, in nats per token.
    pub fn mean_gap(&self) -> f64 {
        let differences = self.logprobs.iter().zip(&self.sampled).map(|(trainer, sampler)| (trainer - sampler).abs());
        differences.sum::<f64>() / self.logprobs.len().max(1) as f64
    }

    /// Index of the first response token of each sequence in the per-token fields.
    pub fn token_starts(&self) -> Vec<usize> {
        let mut at = 0;
        let next = |n: &usize| {
            at += n;
            at - n
        };
        self.lengths.iter().map(next).collect()
    }
}

/// What a rollout is made with; nothing in it changes while the round runs.
pub struct Sampler<'a> {
    pub args: &'a RlCommon,
    pub texts: &'a Texts,
    pub prompts: &'a [PromptIds],
    pub reward: &'a Reward,
    pub reference: &'a Decoder,
    /// The policy as updates compute it: where the sampler's kernels are others, log-probs are computed again by it.
    pub trainer: &'a Decoder,
    /// Whether sampling gives the log-probs and states of the trainer's forward pass. True of the CPU's kernels over
    /// the trainer's weights.
    pub traced: bool,
    /// Samples per prompt.
    pub group: usize,
    /// How often groups without variance are drawn again.
    pub redraws: u64,
    /// What the samples will update, where sampling may leave its activations to the first update.
    pub recorded: Option<&'a Decoder>,
}

/// Takes a phase, and how much of it is done of how much.
pub type Tell<'a> = &'a dyn Fn(&str, Option<(u64, u64)>);

/// Who is told how far a round is, and says whether it shall end.
pub struct Watch<'a> {
    pub stop: &'a dyn Fn() -> bool,
    pub tell: Tell<'a>,
}

/// Progress within a phase is told so often.
const TELL: Duration = Duration::from_millis(500);

impl Sampler<'_> {
    /// The prompts of an iteration: a fresh order in every pass over them.
    fn chosen(&self, iteration: u64) -> Vec<usize> {
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

    /// Samples, scores and measures one round; `None` when `stop` cut it short.
    pub fn collect(
        &self,
        policy: &Decoder,
        critic: Option<&Critic>,
        iteration: u64,
        watch_over: &Watch<'_>,
    ) -> Result<Option<Rollout>> {
        let chosen = self.chosen(iteration);
        let mut watch = Stopwatch::start();
        let prompts: Vec<Vec<u32>> = chosen.iter().map(|&i| self.prompts[i].ids.clone()).collect();
        let mut recording = self.recording(&prompts);
        let Some(mut drawn) = self.draw(policy, &chosen, iteration, 0, recording.as_mut(), watch_over)? else {
            return Ok(None);
        };
        let generation = watch.lap();
        (watch_over.tell)("scoring", None);
        self.score(&mut drawn)?;
        let mut seconds = Seconds { generation, reward: watch.lap(), ..Seconds::default() };
        let (mut first, mut groups) = (None, None);
        if self.group > 1 {
            first = (self.redraws > 0).then(|| First {
                texts: drawn.iter().map(|d| (d.prompt, d.text.clone())).collect(),
                raw_scores: drawn.iter().map(|d| d.raw_score).collect(),
            });
            let Some(found) = self.replace_flat_groups(policy, &mut drawn, iteration, watch_over)? else {
                return Ok(None);
            };
            if found.drawn_again > 0 {
                // It knows other responses than those that the update will see.
                recording = None;
            }
            groups = Some(found);
            seconds.generation += watch.lap();
        }
        let (mut rollout, hidden) = Rollout::of(drawn, recording, seconds);
        (rollout.first, rollout.groups) = (first, groups);
        (watch_over.tell)("reference", None);
        rollout.sampled = rollout.logprobs.clone();
        self.measure(&mut rollout, hidden, critic)?;
        rollout.importance = (!self.traced).then(|| {
            let (correction, cap) = (self.args.sampler_correction, self.args.sampler_correction_cap);
            importance::weights(&rollout.logprobs, &rollout.sampled, &rollout.lengths, correction, cap)
        });
        rollout.seconds.reference = watch.lap();
        Ok(Some(rollout))
    }

    /// One response to each chosen prompt, not scored yet; `None` when asked to stop. `attempt` is 0 for the first
    /// draw of an iteration; every attempt has random streams of its own.
    pub(super) fn draw(
        &self,
        policy: &Decoder,
        chosen: &[usize],
        iteration: u64,
        attempt: u64,
        recording: Option<&mut Recording>,
        watch_over: &Watch<'_>,
    ) -> Result<Option<Vec<Drawn>>> {
        let prompts: Vec<Vec<u32>> = chosen.iter().map(|&i| self.prompts[i].ids.clone()).collect();
        let params = GenParams {
            max_new_tokens: self.args.response_length,
            // No truncation of the distribution: what is sampled from is what log-probs are taken of.
            warpers: Warpers { temperature: self.args.temperature as f32, ..Warpers::default() },
            eos_ids: self.texts.eos_ids().to_vec(),
            seed: derive(self.args.common.seed, Stream::Rollout, iteration),
            first_stream: attempt * self.args.rollout_batch_size as u64,
            // The kernels of the CPU are batch-invariant, so the log-probs of sampling are those of the update's
            // forward pass; elsewhere the trainer computes them again.
            with_hidden: self.traced,
            ..GenParams::default()
        };
        let (steps, told) = (Cell::new(0), Cell::new(Instant::now()));
        // Asked before every token of the samples.
        let stop = || {
            steps.set(steps.get() + 1);
            if told.get().elapsed() >= TELL {
                told.set(Instant::now());
                let most = self.args.response_length as u64;
                (watch_over.tell)("sampling", Some((most.min(steps.get()), most)));
            }
            (watch_over.stop)()
        };
        let samples = generate_recorded(policy, &prompts, &params, recording, &stop)?;
        if (watch_over.stop)() {
            return Ok(None);
        }
        let mut drawn = Vec::with_capacity(chosen.len());
        for ((ids, &prompt), sample) in prompts.iter().zip(chosen).zip(samples) {
            let (text, sequence) = (self.texts.text(ids, &sample.ids)?, Sequence::new(ids, &sample.ids));
            drawn.push(Drawn { prompt, sequence, text, sample, raw_score: 0.0, score: 0.0 });
        }
        Ok(Some(drawn))
    }

    /// Has the reward score the responses.
    pub(super) fn score(&self, drawn: &mut [Drawn]) -> Result<()> {
        let items: Vec<Item<'_>> = drawn.iter().map(|d| self.item(d.prompt, &d.text)).collect();
        let scores = self.reward.score(&items)?;
        let (penalty, mode) = (self.args.missing_eos_penalty, self.args.missing_eos_mode);
        for (d, raw) in drawn.iter_mut().zip(scores) {
            d.raw_score = raw;
            d.score = penalised(raw, d.sample.finished, penalty, mode);
        }
        Ok(())
    }

    fn item<'r>(&'r self, prompt: usize, text: &'r str) -> Item<'r> {
        let PromptIds { prompt, answer, .. } = &self.prompts[prompt];
        Item { prompt, text, answer: answer.as_deref() }
    }

    /// The responses as first drawn, as rewards see them.
    pub fn items<'r>(&'r self, rollout: &'r Rollout) -> Vec<Item<'r>> {
        rollout.first_texts().iter().map(|(prompt, text)| self.item(*prompt, text)).collect()
    }

    /// The values of a critic whose pass the first update can go on from, if this is one. Apart from the rest of
    /// the round because what the pass keeps is large: the policy that sampled should be gone by then.
    pub fn first_critic_pass(&self, rollout: &mut Rollout, critic: &Critic) -> Result<()> {
        let lengths: Vec<usize> = rollout.sequences.iter().map(|s| s.ids.len()).collect();
        let Some(order) = self.one_pass(critic, &lengths) else { return Ok(()) };
        let mut watch = Stopwatch::start();
        let picked = Picked::new(&order.iter().map(|&i| &rollout.sequences[i]).collect::<Vec<_>>());
        let pass = critic.own_values(&picked)?;
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

    /// Where one pass over all sequences will be the first update's, whatever their lengths turn out to be.
    fn recording(&self, prompts: &[Vec<u32>]) -> Option<Recording> {
        let (lengths, response): (Vec<usize>, _) = (prompts.iter().map(Vec::len).collect(), self.args.response_length);
        let most = lengths.iter().map(|n| n + response).sum::<usize>();
        let one = self.args.minibatches == 1 && most <= self.args.common.micro_batch_tokens;
        Recording::new(self.recorded.filter(|_| one)?, &lengths, response)
    }

    /// The order of all sequences in the one pass that both the values and the first update need; `None` where
    /// there are several passes, or the critic reads the policy's states.
    fn one_pass(&self, critic: &Critic, lengths: &[usize]) -> Option<Vec<usize>> {
        let mut groups = micro_batches(lengths, self.args.common.micro_batch_tokens);
        (self.args.minibatches == 1 && groups.len() == 1 && !critic.is_shared()).then(|| groups.pop()).flatten()
    }

    /// What the reference and the critic think of every response token, by forward passes over whole sequences;
    /// and the policy, where sampling did not say. `hidden` are the policy's states [n, d] as sampling saw them.
    fn measure(&self, rollout: &mut Rollout, hidden: Vec<f32>, critic: Option<&Critic>) -> Result<()> {
        let n: usize = rollout.lengths.iter().sum();
        let starts = rollout.token_starts();
        let (d, traced) = (self.trainer.config.hidden_size, self.traced);
        if !traced {
            rollout.logprobs = vec![0.0; n];
            rollout.entropy = vec![0.0; n];
        }
        rollout.reference = vec![0.0; n];
        rollout.values = vec![0.0; if critic.is_some() { n } else { 0 }];
        let lengths: Vec<usize> = rollout.sequences.iter().map(|s| s.ids.len()).collect();
        let later = critic.is_some_and(|critic| self.one_pass(critic, &lengths).is_some());
        for group in micro_batches(&lengths, self.args.common.micro_batch_tokens) {
            let picked = Picked::new(&group.iter().map(|&i| &rollout.sequences[i]).collect::<Vec<_>>());
            let reference_hidden = picked.hidden_frozen(self.reference)?;
            let reference = picked.logprobs(self.reference, &reference_hidden, self.args.temperature)?;
            let mut columns = vec![(&mut rollout.reference, to_f64(reference.logprobs.to_vec1()?))];
            let states = if traced {
                let rows = group.iter().flat_map(|&i| &hidden[starts[i] * d..(starts[i] + rollout.lengths[i]) * d]);
                Tensor::from_iter(rows.copied(), &Device::Cpu)?.reshape(((), d))?
            } else {
                let states = picked.hidden_frozen(self.trainer)?;
                let now = picked.logprobs(self.trainer, &states, self.args.temperature)?;
                columns.push((&mut rollout.logprobs, to_f64(now.logprobs.to_vec1()?)));
                columns.push((&mut rollout.entropy, to_f64(now.entropy.to_vec1()?)));
                states
            };
            if let Some(critic) = critic.filter(|_| !later) {
                columns.push((&mut rollout.values, critic.numbers(&picked, Some(&states))?));
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

/// The score of one response after the missing-end penalty.
fn penalised(score: f64, finished: bool, penalty: Option<f64>, mode: MissingEos) -> f64 {
    match (penalty, finished, mode) {
        (None, _, _) | (_, true, _) => score,
        (Some(penalty), false, MissingEos::Subtract) => score - penalty,
        (Some(penalty), false, MissingEos::Replace) => -penalty,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_missing_end_is_penalised_and_the_mode_decides_how() {
        assert_eq!(penalised(2.0, true, Some(1.0), MissingEos::Replace), 2.0);
        assert_eq!(penalised(2.0, false, None, MissingEos::Subtract), 2.0);
        assert_eq!(penalised(2.0, false, Some(0.5), MissingEos::Subtract), 1.5);
        assert_eq!(penalised(2.0, false, Some(1.0), MissingEos::Replace), -1.0);
    }
}

//! The updates of a round: epochs of shuffled minibatches, each accumulated over micro-batches.

use anyhow::{Result, bail};
use candle_core::{DType, Device, Tensor};

use super::Algorithm;
use super::critic::Critic;
use super::group::{Columns, GroupLoss};
use super::rollout::Rollout;
use super::selection::Selection;
use crate::model::SampledActivations;
use crate::objective::{Stats, causal_lm, ppo, reinforce};
use crate::ops::token_logprobs::TokenLogprobs;
use crate::train::args::{PpoArgs, RlCommon};
use crate::train::meter::Stopwatch;
use crate::train::optim::Params;
use crate::train::rng::{Stream, permutation, rng};
use crate::train::run::Run;
use crate::train::sft::groups;
use crate::train::step::{Accumulator, PredictionBatch, Sequence, micro_batches};
use crate::train::trainable::Trainable;

/// The data of a round's losses. Per-token fields are as in `Rollout`.
pub struct Experience {
    pub rollout: Rollout,
    pub advantages: Vec<f64>,
    /// PPO only.
    pub returns: Vec<f64>,
    /// The responses to learn from, if these are not all.
    pub selection: Option<Selection>,
}

impl Experience {
    /// Number of items of which minibatches consist: responses, or selected pairs or single responses.
    fn len(&self) -> usize {
        self.selection.as_ref().map_or(self.rollout.sequences.len(), Selection::len)
    }
}

/// The models under training, and the settings of their updates.
pub struct Learner<'a> {
    pub args: &'a RlCommon,
    pub algorithm: &'a Algorithm,
    pub policy: &'a Trainable,
    pub critic: Option<&'a Critic>,
    /// All variables: `policy.…` and `critic.…`.
    pub params: &'a Params,
    /// Demonstrations of PPO-ptx; may be empty.
    pub ptx: &'a [Sequence],
}

/// Statistics of a round's updates.
pub struct UpdateSummary {
    /// Means over all steps.
    pub all: Stats,
    /// Of the first minibatch, before any update: ratio 1, approximate KL 0, clip fraction 0.
    pub first: Stats,
    pub grad_norm: f64,
    pub learning_rate: f64,
    /// Number of passes that were started before the early stop.
    pub epochs: u64,
    /// Differences between the log-probs of sampling and of the first forward pass, in nats. Differences beyond
    /// rounding mean that rollout and update disagree about positions, temperature or weights.
    pub sampling_gap: LogprobGap,
    pub seconds: Seconds,
}

/// Time of the phases of a round's updates, in seconds.
#[derive(Clone, Copy, Default)]
pub struct Seconds {
    pub forward: f64,
    pub backward: f64,
    pub optimizer: f64,
}

/// Absolute differences of log-probs: the largest and the mean, in nats.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LogprobGap {
    pub max: f64,
    sum: f64,
    count: usize,
}

impl LogprobGap {
    pub fn add(&mut self, differences: &[f32]) {
        for difference in differences {
            let size = f64::from(difference.abs());
            // NaN counts as infinite.
            self.max = if size.is_nan() { f64::INFINITY } else { self.max.max(size) };
            self.sum += size;
        }
        self.count += differences.len();
    }

    pub fn mean(&self) -> f64 {
        self.sum / self.count.max(1) as f64
    }
}

/// The gradients of a minibatch, and its statistics.
pub(super) struct MinibatchGradients {
    pub sum: Accumulator,
    pub stats: Stats,
    pub gap: LogprobGap,
}

impl Learner<'_> {
    pub fn update(&self, run: &mut Run<'_>, experience: &mut Experience, kl_coef: f64) -> Result<UpdateSummary> {
        let n = experience.len();
        let mut summary = UpdateSummary {
            all: Stats::default(),
            first: Stats::default(),
            grad_norm: 0.0,
            learning_rate: run.schedule.at(run.optimizer.step),
            epochs: 0,
            sampling_gap: LogprobGap::default(),
            seconds: Seconds::default(),
        };
        let mut updates = 0;
        'epochs: for epoch in 0..self.args.ppo_epochs {
            summary.epochs += 1;
            let order = match self.args.minibatches {
                // The order of a single minibatch does not matter, and this one is that of the rollout's passes.
                1 => (0..n).collect(),
                _ => permutation(n, &mut rng(self.args.common.seed, Stream::Minibatch, run.step * 1000 + epoch)),
            };
            for part in 0..self.args.minibatches {
                // The sizes of minibatches differ by at most one, and no response is left out.
                let minibatch = &order[part * n / self.args.minibatches..(part + 1) * n / self.args.minibatches];
                if minibatch.is_empty() {
                    // There are fewer selected responses than minibatches.
                    continue;
                }
                let done = epoch * self.args.minibatches as u64 + part as u64;
                run.phase("updating", Some((done, self.args.ppo_epochs * self.args.minibatches as u64)));
                let mut watch = Stopwatch::start();
                let made = (experience.rollout.critic_pass.take(), experience.rollout.activations.take());
                let MinibatchGradients { sum, stats, gap } = match &experience.selection {
                    Some(selection) => {
                        self.selected_gradients(run, &experience.rollout, selection, minibatch, kl_coef)?
                    }
                    None => self.gradients(run, experience, minibatch, kl_coef, made)?,
                };
                summary.seconds.backward += sum.seconds;
                summary.seconds.forward += watch.lap() - sum.seconds;
                if updates == 0 {
                    summary.first = stats.clone();
                    summary.sampling_gap = gap;
                }
                // Checked before the update of a policy that has already moved too far.
                if self.args.target_kl.is_some_and(|max| stats.mean("approx_kl").is_some_and(|kl| kl > max)) {
                    run.drop_gradients()?;
                    break 'epochs;
                }
                summary.all.merge(&stats);
                let (norm, rate) = run.finish(self.params, sum)?;
                summary.seconds.optimizer += watch.lap();
                summary.grad_norm += norm;
                summary.learning_rate = rate;
                updates += 1;
            }
        }
        summary.grad_norm /= f64::from(updates.max(1));
        Ok(summary)
    }

    /// The gradients of a minibatch of sequences. Reused passes are those of all sequences.
    fn gradients(
        &self,
        run: &mut Run<'_>,
        experience: &Experience,
        minibatch: &[usize],
        kl_coef: f64,
        (mut critic_pass, mut activations): (Option<Tensor>, Option<SampledActivations>),
    ) -> Result<MinibatchGradients> {
        let rollout = &experience.rollout;
        let starts = rollout.token_starts();
        let total_tokens: usize = minibatch.iter().map(|&i| rollout.lengths[i]).sum();
        let lengths: Vec<usize> = minibatch.iter().map(|&i| rollout.sequences[i].ids.len()).collect();
        let groups = micro_batches(&lengths, self.args.common.micro_batch_tokens);
        // Only with one loss per parameter, and without an early stop that must precede the update.
        let ptx = matches!(self.algorithm, Algorithm::Ppo(args) if args.ptx_coef > 0.0);
        let at_once = groups.len() == 1 && !ptx && self.args.target_kl.is_none();
        let by_group = match self.algorithm {
            Algorithm::Grpo(args) => Some(GroupLoss::new(args, self.args, rollout, minibatch, kl_coef)),
            _ => None,
        };
        let mut sum = run.accumulator(self.params, at_once);
        let (mut stats, mut gap) = (Stats::default(), LogprobGap::default());
        for group in groups {
            let members: Vec<usize> = group.into_iter().map(|k| minibatch[k]).collect();
            let packed = PredictionBatch::of_turns(&members.iter().map(|&i| &rollout.sequences[i]).collect::<Vec<_>>());
            let device = self.policy.device();
            let column = |field: &[f64]| -> Result<Tensor> {
                let cut = members.iter().flat_map(|&i| &field[starts[i]..starts[i] + rollout.lengths[i]]);
                tensor(cut.copied().collect(), &device)
            };
            let value_loss = |args: &PpoArgs, values: &Tensor| -> Result<(Tensor, Stats)> {
                let (old, returns) = (column(&rollout.values)?, column(&experience.returns)?);
                let (loss, part) = ppo::value_loss(values, &old, &returns, args.cliprange_value, total_tokens as f64)?;
                Ok(((loss * args.vf_coef)?, part))
            };
            // A reused pass comes first, because its activations are in memory.
            let mut critic_is_done = false;
            if let (Algorithm::Ppo(args), Some(values)) = (self.algorithm, critic_pass.take()) {
                let (loss, part) = value_loss(args, &values)?;
                drop(values);
                sum.add(self.params, &loss)?;
                stats.merge(&part);
                critic_is_done = true;
            }
            let (decoder, temperature) = (self.policy.decoder(), self.args.temperature);
            let with_entropy = by_group.as_ref().is_some_and(GroupLoss::needs_entropy);
            // Only a critic on the policy's trunk reads the states.
            let shared = self.critic.is_some_and(Critic::is_shared);
            let hidden = match activations.take() {
                Some(made) => Some(decoder.forward_sampled(&packed.batch, &packed.lengths, made, &members)?),
                None if shared || with_entropy => Some(packed.hidden(decoder)?),
                None => None,
            };
            let TokenLogprobs { logprobs: new, entropy } = match &hidden {
                Some(hidden) if with_entropy => packed.logprobs_and_entropy(decoder, hidden, temperature)?,
                Some(hidden) => packed.logprobs(decoder, hidden, temperature)?,
                None => packed.scores(decoder, temperature)?,
            };
            let (old, advantages) = (column(&rollout.logprobs)?, column(&experience.advantages)?);
            gap.add(&(&new.detach() - &column(&rollout.sampled)?)?.to_vec1::<f32>()?);
            let total_sequences = minibatch.len() as f64;
            let (mut loss, part) = match self.algorithm {
                Algorithm::Ppo(args) => ppo::policy_loss(&new, &old, &advantages, args.cliprange, total_tokens as f64)?,
                Algorithm::Reinforce { .. } | Algorithm::Rloo { .. } => {
                    let (loss, mut part) = reinforce::loss(&new, &advantages, members.len(), total_sequences)?;
                    // The loss has no ratio. It is measured to show how far the policy moves in a round.
                    part.merge(
                        &ppo::policy_loss(&new.detach(), &old, &advantages, 0.2, 1.0)?.1.only(&["ratio", "approx_kl"]),
                    );
                    (loss, part)
                }
                Algorithm::Grpo(_) => {
                    let Some(by_group) = &by_group else { bail!("the group loss is missing") };
                    let weights = tensor(by_group.weights(&members), &device)?;
                    let reference = column(&rollout.reference)?;
                    let columns =
                        Columns { old: &old, reference: &reference, advantages: &advantages, weights: &weights };
                    by_group.loss(&members, &new, &entropy, &columns)?
                }
                Algorithm::OnlineDpo(_) | Algorithm::Raft(_) => bail!("this recipe learns from selected responses"),
            };
            stats.merge(&part);
            if let (Algorithm::Ppo(args), Some(critic), false) = (self.algorithm, self.critic, critic_is_done) {
                if !critic.is_shared() {
                    // Two models have separate losses, so that the policy's activations are freed before the critic's
                    // forward pass.
                    sum.add(self.params, &loss)?;
                    loss = loss.detach();
                }
                let (value, part) = value_loss(args, &critic.values(&packed, hidden.as_ref())?)?;
                stats.merge(&part);
                loss = if critic.is_shared() { (loss + value)? } else { value };
            }
            sum.add(self.params, &loss)?;
            run.meter.add_tokens(packed.batch.len());
        }
        if let Algorithm::Ppo(args) = self.algorithm {
            self.ptx(run, args.ptx_coef, minibatch.len(), &mut sum, &mut stats)?;
        }
        Ok(MinibatchGradients { sum, stats, gap })
    }

    /// PPO-ptx (InstructGPT, equation 2): adds the language-model loss on the next `n` demonstrations.
    fn ptx(&self, run: &mut Run<'_>, coef: f64, n: usize, sum: &mut Accumulator, stats: &mut Stats) -> Result<()> {
        if coef == 0.0 || self.ptx.is_empty() {
            return Ok(());
        }
        let mut rng = rng(self.args.common.seed, Stream::Ptx, run.optimizer.step);
        let order = permutation(self.ptx.len(), &mut rng);
        let batch: Vec<&Sequence> = order.iter().take(n).map(|&i| &self.ptx[i]).collect();
        let total: usize = batch.iter().map(|s| s.predicted()).sum();
        for group in groups(&batch, self.args.common.micro_batch_tokens) {
            let packed = PredictionBatch::new(&group);
            let logprobs = packed.scores(self.policy.decoder(), 1.0)?.logprobs;
            let (loss, part) = causal_lm::loss(&logprobs, total as f64)?;
            sum.add(self.params, &(loss * coef)?)?;
            stats.add(
                "ptx_loss",
                part.mean("loss").unwrap_or(0.0) * logprobs.elem_count() as f64,
                logprobs.elem_count() as f64,
            );
            run.meter.add_tokens(packed.batch.len());
        }
        Ok(())
    }
}

pub(super) fn tensor(values: Vec<f64>, device: &Device) -> Result<Tensor> {
    let n = values.len();
    Ok(Tensor::from_vec(values, n, device)?.to_dtype(DType::F32)?)
}

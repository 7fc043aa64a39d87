//! The loss of GRPO with its entropy bonus, and the weights of tokens in it.

use anyhow::Result;
use candle_core::Tensor;

use super::response::Answer;
use super::rollout::Rollout;
use crate::objective::{Stats, entropy, grpo};
use crate::train::args::{GrpoArgs, RlCommon};

/// The loss of one minibatch of sequences.
pub struct GroupLoss<'a> {
    args: &'a GrpoArgs,
    rollout: &'a Rollout,
    settings: grpo::Settings,
    /// Divisor of weighted sums.
    total: f64,
    /// Number of tokens that count.
    tokens: f64,
    /// Maximum length of an answer.
    longest: usize,
}

/// Per-token values of a micro-batch, all `[n]` and without a gradient.
pub struct Columns<'t> {
    pub old: &'t Tensor,
    pub reference: &'t Tensor,
    pub advantages: &'t Tensor,
    pub weights: &'t Tensor,
}

impl<'a> GroupLoss<'a> {
    pub fn new(args: &'a GrpoArgs, rl: &RlCommon, rollout: &'a Rollout, minibatch: &[usize], kl_coef: f64) -> Self {
        let tokens: usize = minibatch.iter().map(|&i| counted_tokens(args, &rollout.answers[i])).sum();
        Self {
            args,
            rollout,
            settings: grpo::Settings {
                clip_low: args.cliprange,
                clip_high: args.cliprange_high.unwrap_or(args.cliprange),
                level: args.importance_sampling_level,
                surrogate: args.surrogate,
                beta: kl_coef,
            },
            total: args.loss_normalization.total(minibatch.len(), tokens),
            tokens: tokens as f64,
            longest: rl.response_length,
        }
    }

    /// The weight of every token of the members; 0 for answers that are left out.
    pub fn weights(&self, members: &[usize]) -> Vec<f64> {
        let mut weights = Vec::new();
        for &i in members {
            let answers = &self.rollout.answers[i];
            let of_token = self.args.loss_normalization.weight(counted_tokens(self.args, answers), self.longest);
            for answer in answers {
                let weight = if is_counted(self.args, answer) { of_token } else { 0.0 };
                weights.extend(std::iter::repeat_n(weight, answer.length));
            }
        }
        weights
    }

    /// Whether the policy's entropy needs a gradient.
    pub fn needs_entropy(&self) -> bool {
        self.args.entropy_coef != 0.0
    }

    /// The loss of the members' tokens. `new` log-probs and `policy_entropy` are `[n]` with a gradient.
    pub fn loss(
        &self,
        members: &[usize],
        new: &Tensor,
        policy_entropy: &Tensor,
        columns: &Columns<'_>,
    ) -> Result<(Tensor, Stats)> {
        let lengths: Vec<usize> = members.iter().map(|&i| self.rollout.lengths[i]).collect();
        let &Columns { old, reference, advantages, weights } = columns;
        let targets = grpo::Targets { old, reference, advantages, weights, lengths: &lengths };
        let (mut loss, mut stats) = grpo::loss(new, &targets, &self.settings, self.total)?;
        if self.needs_entropy() {
            let (bonus, part) = entropy::loss(policy_entropy, weights, self.tokens)?;
            loss = (loss + (bonus * self.args.entropy_coef)?)?;
            stats.merge(&part);
        }
        Ok((loss, stats))
    }
}

/// Whether the tokens of an answer count. With `mask_truncated_completions` only answers with an end token do.
fn is_counted(args: &GrpoArgs, answer: &Answer) -> bool {
    !args.mask_truncated_completions || answer.finished
}

/// Number of tokens that count in a response of these answers.
fn counted_tokens(args: &GrpoArgs, answers: &[Answer]) -> usize {
    answers.iter().filter(|answer| is_counted(args, answer)).map(|answer| answer.length).sum()
}

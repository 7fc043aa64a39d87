//! The loss of GRPO with its entropy bonus, and the weights of tokens in it.

use anyhow::Result;
use candle_core::Tensor;

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
    /// Maximum length of a response.
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
        let counts = |i: &&usize| is_counted(args, rollout, **i);
        let tokens: usize = minibatch.iter().filter(counts).map(|&i| rollout.lengths[i]).sum();
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

    /// The weight of every token of the members; 0 for responses that are left out.
    pub fn weights(&self, members: &[usize]) -> Vec<f64> {
        let of = |&i: &usize| {
            let length = self.rollout.lengths[i];
            let weight = match is_counted(self.args, self.rollout, i) {
                true => self.args.loss_normalization.weight(length, self.longest),
                false => 0.0,
            };
            std::iter::repeat_n(weight, length)
        };
        members.iter().flat_map(of).collect()
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

/// Whether the tokens of response `i` count. With `mask_truncated_completions` only responses with an end token do.
fn is_counted(args: &GrpoArgs, rollout: &Rollout, i: usize) -> bool {
    !args.mask_truncated_completions || rollout.finished[i]
}

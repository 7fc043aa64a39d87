//! Updates from selected responses of a round: `online_dpo` uses the best and the worst of each prompt as a preference,
//! `raft` trains on the best with a supervised loss.

use anyhow::{Context, Result, bail};
use candle_core::Tensor;

use super::Algorithm;
use super::rollout::Rollout;
use super::selection::Selection;
use super::update::{Learner, LogprobGap, MinibatchGradients, tensor};
use crate::objective::logprobs::sequence_sums_tensor;
use crate::objective::{Stats, causal_lm, dpo, ppo};
use crate::train::run::Run;
use crate::train::step::{PredictionBatch, TurnSequence, micro_batches};

impl Learner<'_> {
    /// The gradients of a minibatch of pairs or of single responses, given by their numbers.
    pub(super) fn selected_gradients(
        &self,
        run: &mut Run<'_>,
        rollout: &Rollout,
        selection: &Selection,
        minibatch: &[usize],
        kl_coef: f64,
    ) -> Result<MinibatchGradients> {
        let starts = rollout.token_starts();
        let tokens_of = |numbers: &[usize]| -> usize {
            selection.responses(numbers).iter().map(|&i| rollout.sequences[i].ids.len()).sum()
        };
        // The responses of a pair have a common loss and are in the same pass.
        let lengths: Vec<usize> = minibatch.iter().map(|&number| tokens_of(&[number])).collect();
        let total_tokens: usize = selection.responses(minibatch).iter().map(|&i| rollout.lengths[i]).sum();
        let groups = micro_batches(&lengths, self.args.common.micro_batch_tokens);
        // Gradients must not be applied before the check of `target_kl`.
        let mut sum = run.accumulator(self.params, groups.len() == 1 && self.args.target_kl.is_none());
        let (mut stats, mut gap) = (Stats::default(), LogprobGap::default());
        for group in groups {
            let members = selection.responses(&group.iter().map(|&k| minibatch[k]).collect::<Vec<_>>());
            let sequences: Vec<&TurnSequence> = members.iter().map(|&i| &rollout.sequences[i]).collect();
            let packed = PredictionBatch::of_turns(&sequences);
            let device = self.policy.device();
            let column = |field: &[f64]| -> Result<Tensor> {
                let cut = members.iter().flat_map(|&i| &field[starts[i]..starts[i] + rollout.lengths[i]]);
                tensor(cut.copied().collect(), &device)
            };
            let new = packed.scores(self.policy.decoder(), self.args.temperature)?.logprobs;
            let old = column(&rollout.logprobs)?;
            gap.add(&(&new.detach() - &column(&rollout.sampled)?)?.to_vec1::<f32>()?);
            // The losses have no ratio. It is measured to show how far the policy moves in a round.
            let moved = ppo::policy_loss(&new.detach(), &old, &old.zeros_like()?, 0.2, 1.0)?.1;
            stats.merge(&moved.only(&["ratio", "approx_kl"]));
            let (loss, part) = match self.algorithm {
                Algorithm::OnlineDpo(args) => {
                    let settings =
                        dpo::Settings { kind: args.loss, beta: kl_coef, label_smoothing: args.label_smoothing };
                    let reference = column(&rollout.reference)?;
                    pair_loss(&new, &reference, &packed.lengths, &settings, minibatch.len() as f64)?
                }
                Algorithm::Raft(_) => causal_lm::loss(&new, total_tokens as f64)?,
                _ => bail!("this recipe learns from all responses"),
            };
            stats.merge(&part);
            sum.add(self.params, &loss)?;
            run.meter.add_tokens(packed.batch.len());
        }
        Ok(MinibatchGradients { sum, stats, gap })
    }
}

/// The DPO loss of consecutive pairs with the better response first, from the log-probs `[n]` of their tokens under
/// policy and reference, and the number of tokens of each response.
fn pair_loss(
    policy: &Tensor,
    reference: &Tensor,
    lengths: &[usize],
    settings: &dpo::Settings,
    total_pairs: f64,
) -> Result<(Tensor, Stats)> {
    let sides = |logprobs: &Tensor| -> Result<(Tensor, Tensor)> {
        let sums = sequence_sums_tensor(logprobs, lengths)?.reshape(((), 2))?;
        let side = |i| sums.narrow(1, i, 1)?.flatten_all();
        Ok((side(0)?, side(1)?))
    };
    let ((policy_chosen, policy_rejected), (ref_chosen, ref_rejected)) = (sides(policy)?, sides(reference)?);
    let logps = dpo::Logps {
        policy_chosen: &policy_chosen,
        policy_rejected: &policy_rejected,
        ref_chosen: &ref_chosen,
        ref_rejected: &ref_rejected,
    };
    let weights = policy_chosen.ones_like()?.detach();
    dpo::loss(&logps, &weights, settings, total_pairs).context("the loss of pairs")
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::objective::dpo::DpoLoss;

    fn loss_at(values: &[f64]) -> f64 {
        let at = |values: &[f64]| Tensor::new(values, &Device::Cpu).unwrap();
        let reference = at(&[-1.0, -2.0, -0.5, -1.5, -0.3, -0.8, -2.0]);
        let settings = dpo::Settings { kind: DpoLoss::Sigmoid, beta: 0.3, label_smoothing: 0.1 };
        pair_loss(&at(values), &reference, &[2, 1, 1, 3], &settings, 2.0).unwrap().0.to_scalar().unwrap()
    }

    #[test]
    fn the_loss_of_pairs_is_that_of_their_summed_log_probs() {
        let policy = [-0.9, -1.8, -0.7, -1.0, -0.5, -0.9, -1.7];
        // By hand: h of both pairs, from sums of 2 and 1, and of 1 and 3 tokens.
        let h = [(-2.7 + 3.0) - (-0.7 + 0.5), (-1.0 + 1.5) - (-3.1 + 3.1)];
        let log_sigmoid = |x: f64| -(1.0 + (-x).exp()).ln();
        let term = |h: &f64| -0.9 * log_sigmoid(0.3 * h) - 0.1 * log_sigmoid(-0.3 * h);
        let expected = h.iter().map(term).sum::<f64>() / 2.0;
        assert!((loss_at(&policy) - expected).abs() < 1e-12, "{} {expected}", loss_at(&policy));
    }

    #[test]
    fn the_gradient_equals_finite_differences_and_reaches_every_token() {
        let policy = [-0.9, -1.8, -0.7, -1.0, -0.5, -0.9, -1.7];
        let var = Var::new(&policy, &Device::Cpu).unwrap();
        let reference = Tensor::new(&[-1.0, -2.0, -0.5, -1.5, -0.3, -0.8, -2.0], &Device::Cpu).unwrap();
        let settings = dpo::Settings { kind: DpoLoss::Sigmoid, beta: 0.3, label_smoothing: 0.1 };
        let loss = pair_loss(var.as_tensor(), &reference, &[2, 1, 1, 3], &settings, 2.0).unwrap().0;
        let grads = loss.backward().unwrap();
        let grad: Vec<f64> = grads.get(&var).unwrap().to_vec1().unwrap();
        for (i, grad) in grad.iter().enumerate() {
            let moved = |by: f64| {
                let mut at = policy;
                at[i] += by;
                loss_at(&at)
            };
            let difference = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            assert!((grad - difference).abs() < 1e-9 && grad.abs() > 1e-3, "token {i}: {grad} {difference}");
        }
    }
}

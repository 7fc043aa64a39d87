//! Dynamic sampling (DAPO, arXiv 2503.14476): groups whose responses all have the same score have no gradient and are
//! replaced by groups of other prompts, in a bounded number of attempts.

use anyhow::Result;

use super::group_counts::GroupCounts;
use super::response::SampledResponse;
use super::rollout::{RoundMonitor, Sampler};
use crate::model::Decoder;
use crate::objective::grpo::without_variance;
use crate::train::rng::{Stream, permutation, rng};

impl Sampler<'_> {
    /// Replaces groups without variance by groups of other prompts, which seed, iteration and attempt determine. `None`
    /// if a stop was requested.
    pub(super) fn replace_flat_groups(
        &self,
        policy: &Decoder,
        responses: &mut [SampledResponse],
        iteration: u64,
        watch: &RoundMonitor<'_>,
    ) -> Result<Option<GroupCounts>> {
        let scores = |responses: &[SampledResponse]| responses.iter().map(|d| d.score).collect::<Vec<f64>>();
        let flat_of = |responses: &[SampledResponse]| -> Vec<usize> {
            let flat = without_variance(&scores(responses), self.group);
            flat.into_iter().enumerate().filter(|(_, flat)| *flat).map(|(g, _)| g).collect()
        };
        let mut flat = flat_of(responses);
        let mut groups =
            GroupCounts { all: responses.len() / self.group, flat: flat.len(), left: flat.len(), drawn_again: 0 };
        for attempt in 1..=self.redraws {
            if flat.is_empty() {
                break;
            }
            let chosen: Vec<usize> = self
                .others(responses, iteration, attempt, flat.len())
                .into_iter()
                .flat_map(|prompt| std::iter::repeat_n(prompt, self.group))
                .collect();
            let Some(mut fresh) = self.draw(policy, &chosen, iteration, attempt, None, watch)? else { return Ok(None) };
            self.score(&mut fresh)?;
            groups.drawn_again += flat.len();
            let varied = without_variance(&scores(&fresh), self.group);
            let mut fresh = fresh.into_iter();
            for (&g, is_flat) in flat.iter().zip(varied) {
                let group: Vec<SampledResponse> = fresh.by_ref().take(self.group).collect();
                if !is_flat {
                    responses[g * self.group..(g + 1) * self.group]
                        .iter_mut()
                        .zip(group)
                        .for_each(|(old, new)| *old = new);
                }
            }
            flat = flat_of(responses);
        }
        groups.left = flat.len();
        Ok(Some(groups))
    }

    /// `n` random prompts: first those that are not in the round.
    fn others(&self, responses: &[SampledResponse], iteration: u64, attempt: u64, n: usize) -> Vec<usize> {
        let mut rng = rng(self.args.common.seed, Stream::Redraw, (iteration << 16) + attempt);
        let order = permutation(self.prompts.len(), &mut rng);
        let (mut new, known): (Vec<usize>, Vec<usize>) =
            order.into_iter().partition(|p| responses.iter().all(|d| d.texts.prompt != *p));
        new.extend(known);
        new.into_iter().cycle().take(n).collect()
    }
}

//! Dynamic sampling (DAPO, 2503.14476): a group whose responses all have the same score teaches nothing, so other
//! prompts are answered in its place, a bounded number of times.

use anyhow::Result;

use super::rollout::{Drawn, Sampler, Watch};
use crate::model::Decoder;
use crate::objective::grpo::without_variance;
use crate::train::rng::{Stream, permutation, rng};

/// What became of the groups of a round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Groups {
    pub all: usize,
    /// Groups without variance as first drawn, and in the end.
    pub flat: usize,
    pub left: usize,
    /// Groups drawn beyond the first ones.
    pub drawn_again: usize,
}

impl Groups {
    /// `frac_reward_zero_std` is TRL's name for the share of groups without variance.
    pub fn metrics(self) -> [(&'static str, f64); 3] {
        let share = |n: usize| n as f64 / self.all.max(1) as f64;
        [
            ("frac_reward_zero_std", share(self.flat)),
            ("frac_without_signal", share(self.left)),
            ("groups_drawn_again", self.drawn_again as f64),
        ]
    }
}

impl Sampler<'_> {
    /// Puts groups of other prompts in the place of groups without variance. What is drawn follows from the seed, the
    /// iteration and the attempt alone. `None` when asked to stop.
    pub(super) fn replace_flat_groups(
        &self,
        policy: &Decoder,
        drawn: &mut [Drawn],
        iteration: u64,
        watch: &Watch<'_>,
    ) -> Result<Option<Groups>> {
        let scores = |drawn: &[Drawn]| drawn.iter().map(|d| d.score).collect::<Vec<f64>>();
        let flat_of = |drawn: &[Drawn]| -> Vec<usize> {
            let flat = without_variance(&scores(drawn), self.group);
            flat.into_iter().enumerate().filter(|(_, flat)| *flat).map(|(g, _)| g).collect()
        };
        let mut flat = flat_of(drawn);
        let mut groups = Groups { all: drawn.len() / self.group, flat: flat.len(), left: flat.len(), drawn_again: 0 };
        for attempt in 1..=self.redraws {
            if flat.is_empty() {
                break;
            }
            let chosen: Vec<usize> = self
                .others(drawn, iteration, attempt, flat.len())
                .into_iter()
                .flat_map(|prompt| std::iter::repeat_n(prompt, self.group))
                .collect();
            let Some(mut fresh) = self.draw(policy, &chosen, iteration, attempt, None, watch)? else { return Ok(None) };
            self.score(&mut fresh)?;
            groups.drawn_again += flat.len();
            let varied = without_variance(&scores(&fresh), self.group);
            let mut fresh = fresh.into_iter();
            for (&g, is_flat) in flat.iter().zip(varied) {
                let group: Vec<Drawn> = fresh.by_ref().take(self.group).collect();
                if !is_flat {
                    drawn[g * self.group..(g + 1) * self.group].iter_mut().zip(group).for_each(|(old, new)| *old = new);
                }
            }
            flat = flat_of(drawn);
        }
        groups.left = flat.len();
        Ok(Some(groups))
    }

    /// `n` prompts, those that the round has not answered before the others.
    fn others(&self, drawn: &[Drawn], iteration: u64, attempt: u64, n: usize) -> Vec<usize> {
        let mut rng = rng(self.args.common.seed, Stream::Redraw, (iteration << 16) + attempt);
        let order = permutation(self.prompts.len(), &mut rng);
        let (mut new, known): (Vec<usize>, Vec<usize>) =
            order.into_iter().partition(|p| drawn.iter().all(|d| d.prompt != *p));
        new.extend(known);
        new.into_iter().cycle().take(n).collect()
    }
}

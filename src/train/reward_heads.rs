//! Forward and backward passes of a reward model under training: the scores of every head, their ranking losses, and
//! the scales that normalise the scores of reference completions to mean 0 and variance 1.

use anyhow::{Context, Result};
use candle_core::{Tensor, Var};

use super::baselines::doublings;
use super::optim::Params;
use super::ranked::RankedSequences;
use super::rng::{Stream, rng, uniform};
use super::step::{Accumulator, Sequence, micro_batches};
use crate::model::heads::reward::{Part, Scale, Scoring};
use crate::model::{PackedBatch, Trunk};
use crate::objective::whiten::moments;
use crate::objective::{Stats, reward};

/// A ranked set with its weight for each head.
pub struct WeightedSet<'s> {
    pub set: &'s RankedSequences,
    pub shares: Vec<f64>,
}

/// The weight of set `index` for each head. A single head learns from all sets. Of several heads, each takes a set
/// twice or not at all (half-sampling bootstrap), so that they differ where the data is ambiguous.
pub fn head_shares(heads: usize, seed: u64, index: u64) -> Vec<f64> {
    if heads == 1 {
        return vec![1.0];
    }
    let mut rng = rng(seed, Stream::Bootstrap, index);
    (0..heads).map(|_| if uniform(&mut rng) < 0.5 { 2.0 } else { 0.0 }).collect()
}

/// The heads of a reward model under training, and the settings of its passes.
pub struct RewardTrainer<'a> {
    /// `[heads, hidden]`.
    pub head: &'a Var,
    pub separator: Option<u32>,
    /// Maximum number of tokens in one pass.
    pub max_tokens: usize,
    /// Whether each head but the first learns one of the dimensions by which the sets are rated.
    pub by_dimension: bool,
    /// `[heads]`: of each head, the log-odds of being preferred per doubling of the length, which the loss adds to
    /// differences of scores and which is learned with them. `None` = nothing is added.
    pub length_slopes: Option<&'a Var>,
}

impl RewardTrainer<'_> {
    /// Groups of sets for one pass each. A set is never divided.
    pub fn groups<'i, 's>(&self, items: &'i [WeightedSet<'s>]) -> Vec<Vec<&'i WeightedSet<'s>>> {
        let lengths: Vec<usize> = items.iter().map(|item| item.set.tokens()).collect();
        let groups = micro_batches(&lengths, self.max_tokens);
        groups.into_iter().map(|g| g.into_iter().map(|i| &items[i]).collect()).collect()
    }

    /// Adds the gradients of the loss over whole sets to `sum`. A set that is larger than a micro-batch takes two
    /// passes: the first computes its scores and the gradients of the loss with respect to them, the second
    /// backpropagates these gradients for a few completions at a time. The result equals that of a single pass.
    pub fn learn(
        &self,
        trunk: &Trunk,
        params: &Params,
        group: &[&WeightedSet<'_>],
        margin: f64,
        total_sets: &[f64],
        sum: &mut Accumulator,
    ) -> Result<Stats> {
        let ids: Vec<&[u32]> = group.iter().flat_map(|i| &i.set.sequences).map(|s| &*s.ids).collect();
        let lengths: Vec<usize> = ids.iter().map(|ids| ids.len()).collect();
        let parts = micro_batches(&lengths, self.max_tokens);
        if parts.len() == 1 {
            let (loss, stats) = self.loss(&self.scores(trunk, self.head, &ids)?, group, margin, total_sets)?;
            sum.add(params, &loss)?;
            return Ok(stats);
        }
        let pick = |part: &[usize]| -> Vec<&[u32]> { part.iter().map(|&i| ids[i]).collect() };
        let heads = self.head.dim(0)?;
        let mut all = vec![0f32; ids.len() * heads];
        for part in &parts {
            let some = self.numbers(trunk, &pick(part))?;
            part.iter().zip(some).for_each(|(&i, scores)| all[i * heads..(i + 1) * heads].copy_from_slice(&scores));
        }
        let leaf = Var::from_tensor(&Tensor::from_vec(all, (ids.len(), heads), self.head.device())?)?;
        let (loss, stats) = self.loss(leaf.as_tensor(), group, margin, total_sets)?;
        let slopes = loss.backward()?;
        // The slopes of the length are in the first pass only: a loss with their gradient.
        if let Some((var, gradient)) = self.length_slopes.and_then(|var| Some((var, slopes.get(var)?))) {
            sum.add(params, &(var.as_tensor() * gradient.detach())?.sum_all()?)?;
        }
        let slopes = slopes.get(&leaf).context("the ranking loss has no gradient")?.contiguous()?.detach();
        for part in &parts {
            let rows: Vec<u32> = part.iter().map(|&i| i as u32).collect();
            let weights = slopes.index_select(&Tensor::new(rows, slopes.device())?, 0)?;
            let weighted = (self.scores(trunk, self.head, &pick(part))? * weights)?;
            sum.add(params, &weighted.sum_all()?)?;
        }
        Ok(stats)
    }

    /// The mean over the heads of their ranking losses. `scores` is `[n, heads]`. Statistics are those of the labelers'
    /// ranking.
    fn loss(
        &self,
        scores: &Tensor,
        group: &[&WeightedSet<'_>],
        margin: f64,
        total_sets: &[f64],
    ) -> Result<(Tensor, Stats)> {
        let heads = scores.dim(1)?;
        let (mut total, mut stats) = (None, Stats::default());
        for (h, total_sets) in total_sets.iter().enumerate() {
            let (mut pairs, mut first) = (Vec::new(), 0);
            for item in group {
                let share = item.shares[h];
                let of_set = self.pairs(item.set, h, first, margin).into_iter();
                pairs.extend(of_set.filter(|_| share > 0.0).map(|p| reward::Pair { weight: p.weight * share, ..p }));
                first += item.set.sequences.len();
            }
            let column = scores.narrow(1, h, 1)?.squeeze(1)?.contiguous()?;
            let known = match self.length_slopes {
                Some(slopes) if !pairs.is_empty() => {
                    let doublings = Tensor::new(doublings_of(&pairs, group), scores.device())?;
                    Some(doublings.to_dtype(slopes.dtype())?.broadcast_mul(&slopes.narrow(0, h, 1)?)?)
                }
                _ => None,
            };
            let (loss, part) = reward::loss(&column, &pairs, total_sets * heads as f64, known.as_ref())?;
            if h == 0 || !self.by_dimension {
                stats.merge(&part);
            }
            total = Some(match total {
                None => loss,
                Some(before) => (before + loss)?,
            });
        }
        Ok((total.context("a reward model has at least one head")?, stats))
    }

    /// The pairs from which head `h` learns of a set whose first completion has index `first` in the batch.
    pub fn pairs(&self, set: &RankedSequences, h: usize, first: usize, margin: f64) -> Vec<reward::Pair> {
        match h {
            1.. if self.by_dimension => set.pairs_by(h - 1, first),
            _ => set.pairs(first, margin),
        }
    }

    /// For each head, the number of sets of a batch over which its loss is a mean: all of them for an ensemble, else
    /// those with a pair for the head (at least 1).
    pub fn total_sets(&self, items: &[WeightedSet<'_>]) -> Result<Vec<f64>> {
        let heads = self.head.dim(0)?;
        if !self.by_dimension {
            return Ok(vec![items.len() as f64; heads]);
        }
        let has = |item: &&WeightedSet<'_>, h: usize| !self.pairs(item.set, h, 0, 0.0).is_empty();
        Ok((0..heads).map(|h| items.iter().filter(|item| has(item, h)).count().max(1) as f64).collect())
    }

    /// Scores `[n, heads]`, with a gradient if the trunk has variables.
    fn scores(&self, trunk: &Trunk, head: &Tensor, ids: &[&[u32]]) -> Result<Tensor> {
        let summaries = trunk.summaries(&PackedBatch::new(ids), self.separator)?;
        Ok(summaries.matmul(&head.t()?)?)
    }

    /// Scores `[n][heads]`, without a gradient.
    fn numbers(&self, trunk: &Trunk, ids: &[&[u32]]) -> Result<Vec<Vec<f32>>> {
        let summaries = trunk.frozen_summaries(&PackedBatch::new(ids), self.separator)?;
        Ok(summaries.matmul(&self.head.as_detached_tensor().t()?)?.to_vec2()?)
    }

    /// Unscaled scores `[sequences][heads]`, without a gradient, a micro-batch at a time.
    pub fn raw(&self, trunk: &Trunk, sequences: &[&Sequence]) -> Result<Vec<Vec<f32>>> {
        let lengths: Vec<usize> = sequences.iter().map(|s| s.ids.len()).collect();
        let mut all = vec![Vec::new(); sequences.len()];
        for part in micro_batches(&lengths, self.max_tokens) {
            let ids: Vec<&[u32]> = part.iter().map(|&i| &*sequences[i].ids).collect();
            let some = self.numbers(trunk, &ids)?;
            part.iter().zip(some).for_each(|(&i, scores)| all[i] = scores);
        }
        Ok(all)
    }
}

/// Of each pair of a group's sets, the doublings from the length of the loser to that of the winner, f32.
fn doublings_of(pairs: &[reward::Pair], group: &[&WeightedSet<'_>]) -> Vec<f32> {
    let sequences: Vec<&Sequence> = group.iter().flat_map(|item| &item.set.sequences).collect();
    let of = |pair: &reward::Pair| doublings(sequences[pair.winner as usize], sequences[pair.loser as usize]) as f32;
    pairs.iter().map(of).collect()
}

/// The scales that normalise each head to mean 0 and variance 1 over `raw` `[sequences][heads]`. Those of an ensemble
/// (without `parts`) have a common factor with which their mean has variance 1, too. With `parts` their weights have
/// such a factor, with which the weighted sum has variance 1.
pub fn scales(raw: &[Vec<f32>], parts: Vec<Part>) -> Scoring {
    let mut scoring = Scoring { scales: each_head(raw), parts };
    if scoring.scales.len() < 2 {
        return scoring;
    }
    let scores: Vec<f64> = raw.iter().map(|row| scoring.combine(row).mean).collect();
    let factor = 1.0 / (moments(&scores).1 + 1e-8).sqrt();
    scoring.parts.iter_mut().for_each(|part| part.weight *= factor);
    if scoring.parts.is_empty() {
        scoring.scales.iter_mut().for_each(|s| *s = Scale { gain: s.gain * factor, bias: s.bias * factor });
    }
    scoring
}

fn each_head(raw: &[Vec<f32>]) -> Vec<Scale> {
    let heads = raw.first().map_or(0, Vec::len);
    (0..heads)
        .map(|h| {
            let column: Vec<f64> = raw.iter().map(|row| f64::from(row[h])).collect();
            let (mean, variance) = moments(&column);
            let gain = 1.0 / (variance + 1e-8).sqrt();
            Scale { gain, bias: -mean * gain }
        })
        .collect()
}

/// A number for one head, or a list for several, as in instructd.json.
pub fn by_scale(scales: &[Scale], pick: impl Fn(&Scale) -> f64) -> serde_json::Value {
    match scales {
        [one] => pick(one).into(),
        many => many.iter().map(pick).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_normalise_every_ensemble_to_mean_0_and_variance_1() {
        let raw: Vec<Vec<f32>> = (0..50).map(|i| vec![i as f32, 3.0 - 0.1 * (i * i % 17) as f32, 2.0]).collect();
        for heads in [1, 2] {
            let raw: Vec<Vec<f32>> = raw.iter().map(|row| row[..heads].to_vec()).collect();
            let scoring = scales(&raw, Vec::new());
            let means: Vec<f64> = raw.iter().map(|row| scoring.combine(row).mean).collect();
            let (mean, variance) = moments(&means);
            assert!(mean.abs() < 1e-9 && (variance - 1.0).abs() < 1e-6, "{heads} heads: {mean}, {variance}");
        }
        assert_eq!(scales(&[vec![0.0], vec![2.0]], Vec::new()).combine(&[1.0]).std, 0.0);
    }

    #[test]
    fn parts_are_normalised_each_and_their_weighted_sum_too() {
        let raw: Vec<Vec<f32>> = (0..50).map(|i| vec![i as f32, 3.0 - 0.1 * (i * i % 17) as f32]).collect();
        let part = |name: &str, weight| Part { name: name.to_owned(), weight };
        let scoring = scales(&raw, vec![part("ranking", 1.0), part("harm", -3.0)]);
        let scores: Vec<_> = raw.iter().map(|row| scoring.combine(row)).collect();
        for column in [
            scores.iter().map(|s| s.mean).collect::<Vec<f64>>(),
            scores.iter().map(|s| s.parts["ranking"]).collect(),
            scores.iter().map(|s| s.parts["harm"]).collect(),
        ] {
            let (mean, variance) = moments(&column);
            assert!(mean.abs() < 1e-9 && (variance - 1.0).abs() < 1e-6, "{mean}, {variance}");
        }
        let ratio = scoring.parts[1].weight / scoring.parts[0].weight;
        assert!((ratio + 3.0).abs() < 1e-12 && scoring.parts[0].weight > 0.0, "{:?}", scoring.parts);
    }

    #[test]
    fn one_head_takes_all_sets_and_several_take_different_halves() {
        assert_eq!(head_shares(1, 7, 3), [1.0]);
        let all: Vec<Vec<f64>> = (0..400).map(|i| head_shares(3, 7, i)).collect();
        for h in 0..3 {
            let mean = all.iter().map(|s| s[h]).sum::<f64>() / 400.0;
            assert!((mean - 1.0).abs() < 0.15, "head {h} takes {mean}");
        }
        assert!(all.iter().any(|s| s[0] != s[1]) && all.iter().any(|s| s[1] != s[2]));
    }
}

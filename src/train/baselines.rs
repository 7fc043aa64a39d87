//! What a reward model must exceed to have learned more than what is simple: a preference for longer (or shorter)
//! answers, and a bag of words. Both are fitted on the sets that the model learns from.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::ranked::RankedSequences;
use super::step::Sequence;
use crate::statistics::logistic::{sigmoid, slope};

/// Passes over the pairs for the bag of words, and the number of pairs from which it learns.
const EPOCHS: usize = 30;
const MAX_PAIRS: usize = 20_000;
/// Step size of Adagrad, and the factor of the squared weights in the loss of a pair.
const RATE: f64 = 0.1;
const RIDGE: f64 = 1e-3;

/// The fitted baselines.
pub struct Baselines {
    /// Log-odds of being preferred per doubling of the number of tokens.
    per_doubling: f64,
    /// Weight of each token's ln(1 + count), by token id.
    words: Vec<f64>,
}

/// What a reward model is compared with on its held-out pairs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Baseline {
    /// `longer` or `shorter`: a preference for the longer or shorter answer; `words`: a bag of words.
    pub name: String,
    /// Share of pairs that it orders as people did; no order counts half.
    pub accuracy: f64,
    /// The model's accuracy minus the baseline's, with its 95 % interval; the pairs of a set are not independent.
    pub gain: f64,
    pub low: f64,
    pub high: f64,
}

/// A held-out pair: by how much the preferred completion is ahead of the other, and the index of its set.
#[derive(Clone, Copy, Debug)]
pub struct HeldoutPair {
    pub set: usize,
    /// By the model's score.
    pub model: f64,
    /// In doublings of the length.
    pub doublings: f64,
    /// By the bag of words.
    pub words: f64,
}

/// The number of doublings from the length of `other` to that of `preferred`, in tokens of the response.
pub fn doublings(preferred: &Sequence, other: &Sequence) -> f64 {
    (preferred.predicted() as f64 / other.predicted().max(1) as f64).max(f64::MIN_POSITIVE).log2()
}

/// ln(1 + count) of each token of the response.
fn counts(sequence: &Sequence) -> BTreeMap<u32, f64> {
    let mut found = BTreeMap::<u32, f64>::new();
    sequence.ids[sequence.start..].iter().for_each(|id| *found.entry(*id).or_default() += 1.0);
    found.values_mut().for_each(|count| *count = count.ln_1p());
    found
}

/// The log-odds of being preferred per doubling of the length, over the pairs of `index`-th ratings or of the ranking; 0
/// if all lengths are equal.
pub fn per_doubling(train: &[RankedSequences], index: Option<usize>) -> f64 {
    let of_set = |set: &RankedSequences| match index {
        None => set.pairs(0, 0.0),
        Some(index) => set.pairs_by(index, 0),
    };
    let pairs: Vec<(f64, f64)> = train
        .iter()
        .flat_map(|set| {
            let at = |i: u32| &set.sequences[i as usize];
            of_set(set).into_iter().map(move |p| (doublings(at(p.winner), at(p.loser)), p.weight))
        })
        .collect();
    slope(pairs.iter().copied(), 0.0).unwrap_or(0.0)
}

impl Baselines {
    /// Fits both on the pairs of the sets; each set has the same weight.
    pub fn fit(train: &[RankedSequences]) -> Self {
        Self { per_doubling: per_doubling(train, None), words: fit_words(train) }
    }

    /// By how much the bag of words puts `preferred` ahead of `other`.
    pub fn words_ahead(&self, preferred: &Sequence, other: &Sequence) -> f64 {
        let score = |sequence: &Sequence| -> f64 {
            counts(sequence).iter().map(|(id, x)| self.words.get(*id as usize).copied().unwrap_or(0.0) * x).sum()
        };
        score(preferred) - score(other)
    }

    /// Each baseline beside the model; nothing without pairs.
    pub fn compare(&self, pairs: &[HeldoutPair]) -> Vec<Baseline> {
        if pairs.is_empty() {
            return Vec::new();
        }
        let sign = if self.per_doubling < 0.0 { -1.0 } else { 1.0 };
        let by_length = if sign < 0.0 { "shorter" } else { "longer" };
        vec![beside(by_length, pairs, |pair| sign * pair.doublings), beside("words", pairs, |pair| pair.words)]
    }
}

/// Adagrad over the pairs in their order, with a bias towards 0: the optimum hardly depends on the order.
fn fit_words(train: &[RankedSequences]) -> Vec<f64> {
    let ids = train.iter().flat_map(|set| &set.sequences).flat_map(|sequence| sequence.ids.iter());
    let size = ids.max().map_or(0, |id| *id as usize + 1);
    let mut pairs: Vec<(Vec<(u32, f64)>, f64)> = Vec::new();
    for set in train {
        if pairs.len() >= MAX_PAIRS {
            break;
        }
        let of_set: Vec<BTreeMap<u32, f64>> = set.sequences.iter().map(counts).collect();
        for pair in set.pairs(0, 0.0) {
            let mut difference = of_set[pair.winner as usize].clone();
            for (id, x) in &of_set[pair.loser as usize] {
                *difference.entry(*id).or_default() -= x;
            }
            difference.retain(|_, x| *x != 0.0);
            pairs.push((difference.into_iter().collect(), pair.weight));
        }
    }
    // Of each token: weight, and sum of squared gradients.
    let mut weights = vec![(0.0, 0.0); size];
    for _ in 0..EPOCHS {
        for (difference, weight) in &pairs {
            let ahead: f64 = difference.iter().map(|(id, x)| weights[*id as usize].0 * x).sum();
            let pull = weight * (1.0 - sigmoid(ahead));
            for (id, x) in difference {
                let (value, squares): &mut (f64, f64) = &mut weights[*id as usize];
                let gradient = pull * x - RIDGE * *value;
                *squares += gradient * gradient;
                *value += RATE * gradient / (squares.sqrt() + 1e-8);
            }
        }
    }
    weights.into_iter().map(|(value, _)| value).collect()
}

/// 1 for a pair that is ordered as people did, ½ for one without an order.
fn hit(ahead: f64) -> f64 {
    match ahead.partial_cmp(&0.0) {
        Some(std::cmp::Ordering::Greater) => 1.0,
        Some(std::cmp::Ordering::Less) => 0.0,
        _ => 0.5,
    }
}

/// The standard error adds the deviations of a set's pairs before it squares them, because pairs of a set depend on each
/// other.
fn beside(name: &str, pairs: &[HeldoutPair], ahead: impl Fn(&HeldoutPair) -> f64) -> Baseline {
    let n = pairs.len() as f64;
    let accuracy = pairs.iter().map(|pair| hit(ahead(pair))).sum::<f64>() / n;
    let gains: Vec<f64> = pairs.iter().map(|pair| hit(pair.model) - hit(ahead(pair))).collect();
    let gain = gains.iter().sum::<f64>() / n;
    let mut by_set = BTreeMap::<usize, f64>::new();
    pairs.iter().zip(&gains).for_each(|(pair, one)| *by_set.entry(pair.set).or_default() += one - gain);
    let half = 1.959_964 * by_set.values().map(|sum| sum * sum).sum::<f64>().sqrt() / n;
    Baseline { name: name.to_owned(), accuracy, gain, low: gain - half, high: gain + half }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A set of two responses, the first preferred.
    fn pair(preferred: &[u32], other: &[u32]) -> RankedSequences {
        RankedSequences {
            sequences: [preferred, other].map(|response| Sequence::new(&[1, 2], response)).into(),
            tiers: vec![0, 1],
            strength: 0.0,
            rated: Vec::new(),
        }
    }

    #[test]
    fn the_length_and_a_word_are_found() {
        let mut train: Vec<RankedSequences> = (0..30).map(|i| pair(&[7, 20 + i, 5, 5], &[8, 21 + i])).collect();
        train.extend((0..10).map(|i| pair(&[7, 20 + i], &[8, 21 + i, 5, 5])));
        let found = Baselines::fit(&train);
        // The preferred one is twice as long in 3 of 4 pairs.
        assert!((found.per_doubling - 3f64.ln()).abs() < 1e-2, "{}", found.per_doubling);
        let one = |set: &RankedSequences| HeldoutPair {
            set: 0,
            model: 1.0,
            doublings: doublings(&set.sequences[0], &set.sequences[1]),
            words: found.words_ahead(&set.sequences[0], &set.sequences[1]),
        };
        let pairs: Vec<HeldoutPair> =
            train.iter().enumerate().map(|(set, pair)| HeldoutPair { set, ..one(pair) }).collect();
        let by = found.compare(&pairs);
        assert_eq!((by[0].name.as_str(), by[0].accuracy), ("longer", 0.75));
        assert_eq!((by[1].name.as_str(), by[1].accuracy), ("words", 1.0));
        // The model is always right: 25 points more than the length, and as good as the words.
        assert!((by[0].gain - 0.25).abs() < 1e-12 && by[0].low > 0.0, "{:?}", by[0]);
        assert_eq!((by[1].gain, by[1].low, by[1].high), (0.0, 0.0, 0.0));
        assert_eq!(found.compare(&[]), []);
    }

    #[test]
    fn shorter_is_a_baseline_too_and_pairs_of_a_set_count_together() {
        let train: Vec<RankedSequences> = (0..9).map(|i| pair(&[30 + i], &[30 + i, 4, 4])).collect();
        let found = Baselines::fit(&train);
        let one = |set, model| HeldoutPair { set, model, doublings: -1.0, words: 0.0 };
        let apart: Vec<HeldoutPair> = (0..8).map(|i| one(i, if i < 4 { 1.0 } else { -1.0 })).collect();
        let together: Vec<HeldoutPair> = apart.iter().map(|pair| HeldoutPair { set: pair.set / 4, ..*pair }).collect();
        let (a, b) = (&found.compare(&apart)[0], &found.compare(&together)[0]);
        assert_eq!((a.name.as_str(), a.accuracy, a.gain), ("shorter", 1.0, -0.5));
        assert!(b.high - b.low > 1.9 * (a.high - a.low), "{a:?} {b:?}");
        assert_eq!(found.compare(&apart)[1].accuracy, 0.5, "no order counts half");
    }
}

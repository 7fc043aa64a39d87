//! K-wise ranking loss of the reward model (InstructGPT eq. 1) with ties and optional margins.

use candle_core::{Result, Tensor};

use super::{Stats, log_sigmoid, sum_f64};

/// One comparison of a set: `winner` and `loser` index the scores of the whole batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair {
    pub winner: u32,
    pub loser: u32,
    /// 1 / (number of pairs of the set), so that every set has the same weight.
    pub weight: f64,
    /// The margin that is subtracted from the score difference.
    pub margin: f64,
}

/// All pairs (a, b) of a set with tier a < tier b. `first` is the index of the set's first completion among the scores.
pub fn pairs_of_set(tiers: &[i64], first: usize, margin: f64) -> Vec<Pair> {
    let mut pairs = Vec::new();
    for (a, tier_a) in tiers.iter().enumerate() {
        for (b, tier_b) in tiers.iter().enumerate() {
            if tier_a < tier_b {
                pairs.push(Pair { winner: (first + a) as u32, loser: (first + b) as u32, weight: 1.0, margin });
            }
        }
    }
    let n = pairs.len() as f64;
    for pair in &mut pairs {
        pair.weight = 1.0 / n;
    }
    pairs
}

/// `scores [m]` of all completions of the micro-batch, their pairs, and the number of sets (with at least
/// one pair) in the global batch → mean over sets of the mean over pairs of −log σ(r_w − r_l − margin + known), where
/// `known [pairs]` is the part of the log-odds that is not the scores' to explain; none = 0.
/// Stats: `loss` per set, `accuracy` and `margin` (score difference) per pair.
pub fn loss(scores: &Tensor, pairs: &[Pair], total_sets: f64, known: Option<&Tensor>) -> Result<(Tensor, Stats)> {
    let (device, dtype) = (scores.device(), scores.dtype());
    if pairs.is_empty() {
        // A loss that is connected to the graph, so that a batch of ties has a zero gradient.
        return Ok(((scores.sum_all()? * 0.0)?, Stats::default()));
    }
    let column = |f: &dyn Fn(&Pair) -> f64| -> Result<Tensor> {
        Tensor::from_vec(pairs.iter().map(f).collect::<Vec<f64>>(), pairs.len(), device)?.to_dtype(dtype)
    };
    let winners = Tensor::new(pairs.iter().map(|p| p.winner).collect::<Vec<u32>>(), device)?;
    let losers = Tensor::new(pairs.iter().map(|p| p.loser).collect::<Vec<u32>>(), device)?;
    let weights = column(&|p| p.weight)?;

    let difference = (scores.index_select(&winners, 0)? - scores.index_select(&losers, 0)?)?;
    let mut log_odds = (&difference - column(&|p| p.margin)?)?;
    if let Some(known) = known {
        log_odds = (log_odds + known)?;
    }
    let terms = (log_sigmoid(&log_odds)?.neg()? * &weights)?;
    let loss = (terms.sum_all()? / total_sets)?;

    let mut stats = Stats::default();
    let n = pairs.len() as f64;
    stats.add("loss", sum_f64(&terms)?, pairs.iter().map(|p| p.weight).sum());
    stats.add("accuracy", sum_f64(&difference.detach().gt(0.0)?)?, n);
    stats.add("margin", sum_f64(&difference)?, n);
    Ok((loss, stats))
}

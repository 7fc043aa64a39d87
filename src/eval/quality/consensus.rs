//! The consensus of labelers, each weighted by attention: a noisy Bradley–Terry model.
//!
//! The likelihood is that of crowd-kit's NoisyBradleyTerry: labeler k, shown i before j, prefers i with
//! probability γ_k σ(s_i − s_j) + (1 − γ_k) q_k. γ_k is the labeler's attention (with probability 1 − γ_k the answer is
//! independent of the items), q_k the probability of then choosing the first. A tie is half a vote for each. Priors: s
//! ~ N(0, 2²), γ ~ Beta(8, 2), q ~ Beta(5, 5); they keep a labeler with few judgments near the average and scores
//! finite. The maximum is found by EM over the hidden attention of each vote, with the scores at their maximum for the
//! labelers' parameters in every round.

mod profile;

use self::profile::{Expected, Parameters, Profile};
use super::fixed_point::{fixed_point, largest, minus};
use crate::statistics::logistic::sigmoid;

pub const SCORE_SD: f64 = 2.0;
pub const ATTENTION_PRIOR: (f64, f64) = (8.0, 2.0);
pub const FIRST_PRIOR: (f64, f64) = (5.0, 5.0);
const MAX_ROUNDS: usize = 2000;
/// Votes of each labeler in the sample, where there are very many.
const SAMPLE_VOTES: usize = 300;

/// A vote: labeler `by`, shown `first` before `second`, preferred one of them, with a weight.
#[derive(Clone, Debug, PartialEq)]
pub struct Vote {
    pub by: usize,
    /// Items, numbered over everything that is compared.
    pub first: usize,
    pub second: usize,
    /// 1 = the first, 0 = the second, ½ = tie.
    pub preferred_first: f64,
    pub weight: f64,
}

/// The most probable values.
#[derive(Clone, Debug, PartialEq)]
pub struct Consensus {
    /// Log-odds; comparable within a component of compared items only.
    pub scores: Vec<f64>,
    /// γ of each labeler, their weight, 0 to 1.
    pub attention: Vec<f64>,
    /// q of each labeler.
    pub first: Vec<f64>,
}

/// ln p of the votes without the priors.
pub fn log_likelihood(votes: &[Vote], c: &Consensus) -> f64 {
    let one = |w: &Vote| {
        let (gamma, q) = (c.attention[w.by], c.first[w.by]);
        let p = gamma * sigmoid(c.scores[w.first] - c.scores[w.second]) + (1.0 - gamma) * q;
        let for_first = if w.preferred_first > 0.0 { w.preferred_first * p.ln() } else { 0.0 };
        let for_second = if w.preferred_first < 1.0 { (1.0 - w.preferred_first) * (1.0 - p).ln() } else { 0.0 };
        w.weight * (for_first + for_second)
    };
    votes.iter().map(one).sum()
}

/// ln p of the parameters up to a constant.
pub fn log_prior(c: &Consensus) -> f64 {
    let beta = |x: f64, (a, b): (f64, f64)| (a - 1.0) * x.ln() + (b - 1.0) * (1.0 - x).ln();
    let scores: f64 = c.scores.iter().map(|s| -0.5 * (s / SCORE_SD).powi(2)).sum();
    let attention: f64 = c.attention.iter().map(|g| beta(*g, ATTENTION_PRIOR)).sum();
    scores + attention + c.first.iter().map(|q| beta(*q, FIRST_PRIOR)).sum::<f64>()
}

/// Fits the model to votes of `labelers` labelers on `items` items.
pub fn consensus(votes: &[Vote], items: usize, labelers: usize) -> Consensus {
    let mut profile = Profile::new(votes, items, labelers);
    let sample = profile.sample(SAMPLE_VOTES);
    let x = if sample.len() * 4 < profile.components() {
        fit_by_sample(&mut profile, &sample, start(labelers))
    } else {
        fit_all(&mut profile, start(labelers))
    };
    let Parameters { attention, first } = parameters(&x);
    Consensus { scores: profile.scores(items), attention, first }
}

/// The coordinates of the priors' modes.
fn start(labelers: usize) -> Vec<f64> {
    let mean = |(a, b): (f64, f64)| logit((a - 1.0) / (a + b - 2.0));
    [vec![mean(ATTENTION_PRIOR); labelers], vec![mean(FIRST_PRIOR); labelers]].concat()
}

/// The labelers' coordinates that EM over all votes converges to.
fn fit_all(profile: &mut Profile, start: Vec<f64>) -> Vec<f64> {
    fixed_point(start, 1e-9, MAX_ROUNDS, |x| em_step(profile, x))
}

/// Fits very many votes. Rounds of EM over all of them are few, because most rounds read a sample: the map of EM on the
/// sample is shifted so that it agrees with the map on all votes at the current point, and its fixed point is the next
/// point. The fixed point of that is the fixed point on all votes.
fn fit_by_sample(profile: &mut Profile, sample: &[usize], start: Vec<f64>) -> Vec<f64> {
    const CLOSE: f64 = 1e-6;
    const MAX_CYCLES: usize = 30;
    // How many times as many votes each labeler has as in the sample.
    let weights = profile.weights(None).into_iter().zip(profile.weights(Some(sample)));
    let scale: Vec<f64> = weights.map(|(all, sampled)| if sampled > 0.0 { all / sampled } else { 1.0 }).collect();
    let sample_step = |profile: &mut Profile, x: &[f64]| {
        let mut expected = profile.expect(Some(sample), &parameters(x));
        for sums in [&mut expected.all, &mut expected.attentive, &mut expected.blind_first] {
            sums.iter_mut().zip(&scale).for_each(|(sum, scale)| *sum *= scale);
        }
        coordinates(&expected)
    };
    // More digits would be those of the sample alone.
    let x = fixed_point(start, 1e-3, MAX_ROUNDS, |x| sample_step(profile, x));
    let mut last = f64::INFINITY;
    let x = fixed_point(x, 10.0 * CLOSE, MAX_CYCLES, |x| {
        let change = minus(&em_step(profile, x), x);
        last = largest(&change);
        let shift = minus(&minus(&sample_step(profile, x), x), &change);
        let tolerance = (last * 1e-2).max(CLOSE * 1e-2);
        fixed_point(x.to_vec(), tolerance, MAX_ROUNDS, |x| minus(&sample_step(profile, x), &shift))
    });
    if last < CLOSE { x } else { fixed_point(x, CLOSE, MAX_ROUNDS, |x| em_step(profile, x)) }
}

/// One round of EM over all votes: from the labelers' coordinates to the next ones. The scores are at their maximum for
/// the given coordinates afterwards.
fn em_step(profile: &mut Profile, x: &[f64]) -> Vec<f64> {
    coordinates(&profile.expect(None, &parameters(x)))
}

/// The log-odds of γ, then of q, that are most probable given the expected votes.
fn coordinates(expected: &Expected) -> Vec<f64> {
    let posterior = |hits: f64, n: f64, (a, b): (f64, f64)| logit((hits + a - 1.0) / (n + a + b - 2.0));
    let labelers = expected.all.len();
    let attention = (0..labelers).map(|k| posterior(expected.attentive[k], expected.all[k], ATTENTION_PRIOR));
    let blind = |k: usize| expected.all[k] - expected.attentive[k];
    let first = (0..labelers).map(|k| posterior(expected.blind_first[k], blind(k), FIRST_PRIOR));
    attention.chain(first).collect()
}

fn parameters(x: &[f64]) -> Parameters {
    let (attention, first) = x.split_at(x.len() / 2);
    let probabilities = |x: &[f64]| x.iter().map(|x| sigmoid(*x)).collect();
    Parameters { attention: probabilities(attention), first: probabilities(first) }
}

fn logit(p: f64) -> f64 {
    (p / (1.0 - p)).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inattentive_labeler_counts_less() {
        // Three look; the fourth always takes the first shown.
        let mut votes = Vec::new();
        for set in 0..40 {
            let (good, bad) = (2 * set, 2 * set + 1);
            for by in 0..4 {
                let good_first = (set + by) % 2 == 0;
                let (first, second) = if good_first { (good, bad) } else { (bad, good) };
                let preferred_first = if by == 3 || good_first { 1.0 } else { 0.0 };
                votes.push(Vote { by, first, second, preferred_first, weight: 1.0 });
            }
        }
        let c = consensus(&votes, 80, 4);
        assert!((0..3).all(|k| c.attention[k] > 0.9), "{:?}", c.attention);
        assert!(c.attention[3] < 0.35 && c.first[3] > 0.8, "{} {}", c.attention[3], c.first[3]);
        assert!((0..40).all(|s| c.scores[2 * s] > c.scores[2 * s + 1] + 1.0));
    }

    #[test]
    fn it_is_a_maximum() {
        let vote = |by, first, second, preferred_first, weight| Vote { by, first, second, preferred_first, weight };
        let votes = vec![
            vote(0, 0, 1, 1.0, 1.0),
            vote(1, 1, 0, 0.5, 1.0),
            vote(1, 1, 2, 1.0, 0.5),
            vote(2, 2, 0, 0.0, 0.5),
            vote(2, 0, 1, 0.0, 2.0),
            vote(0, 3, 4, 0.5, 1.0),
        ];
        let c = consensus(&votes, 5, 3);
        let objective = |c: &Consensus| log_likelihood(&votes, c) + log_prior(c);
        let best = objective(&c);
        for i in 0..5 {
            for step in [-1e-3, 1e-3] {
                let mut other = c.clone();
                other.scores[i] += step;
                assert!(objective(&other) < best, "score {i} by {step}");
            }
        }
        for k in 0..3 {
            for step in [-1e-3, 1e-3] {
                let mut other = c.clone();
                other.attention[k] += step;
                assert!(objective(&other) < best, "attention {k} by {step}");
                let mut other = c.clone();
                other.first[k] += step;
                assert!(objective(&other) < best, "first {k} by {step}");
            }
        }
        // A tie is hardly a preference: only what the labeler's liking for the first side explains away.
        assert!((c.scores[3] - c.scores[4]).abs() < 0.01);
    }
    #[test]
    fn a_sample_leads_to_the_same_maximum() {
        // 4000 pairs, ranked by two of four labelers, of whom one hardly looks.
        let mut votes = Vec::new();
        let mut state = 1u64;
        let mut random = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 11) as f64 / (1u64 << 53) as f64
        };
        for pair in 0..4000 {
            let quality = 2.0 * random() - 1.0;
            for by in [pair % 4, (pair / 4 + 1 + pair) % 4] {
                let attentive = random() < [0.9, 0.8, 0.7, 0.3][by];
                let preferred_first = f64::from(random() < if attentive { sigmoid(quality) } else { 0.7 });
                votes.push(Vote { by, first: 2 * pair, second: 2 * pair + 1, preferred_first, weight: 1.0 });
            }
        }
        let mut profile = Profile::new(&votes, 8000, 4);
        let sample = profile.sample(SAMPLE_VOTES);
        assert!(sample.len() * 4 < profile.components(), "{}", sample.len());
        let by_sample = parameters(&fit_by_sample(&mut profile, &sample, start(4)));
        let plain = parameters(&fit_all(&mut Profile::new(&votes, 8000, 4), start(4)));
        for (a, b) in by_sample.attention.iter().zip(&plain.attention) {
            assert!((a - b).abs() < 1e-5, "{:?} {:?}", by_sample.attention, plain.attention);
        }
        for (a, b) in by_sample.first.iter().zip(&plain.first) {
            assert!((a - b).abs() < 1e-5, "{:?} {:?}", by_sample.first, plain.first);
        }
    }
}

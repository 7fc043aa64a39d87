//! The consensus of labelers, each weighted by attention: a noisy Bradley–Terry model.
//!
//! The likelihood is that of crowd-kit's NoisyBradleyTerry: labeler k, shown i before j, prefers i with
//! probability γ_k σ(s_i − s_j) + (1 − γ_k) q_k. γ_k is the labeler's attention (with probability 1 − γ_k the answer is
//! independent of the items), q_k the probability of then choosing the first. A tie is half a vote for each. Priors: s
//! ~ N(0, 2²), γ ~ Beta(8, 2), q ~ Beta(5, 5); they keep a labeler with few judgments near the average and scores
//! finite. The maximum is found by EM over the hidden attention of each vote; every step increases the objective.

use super::statistics::{Curvature, log_sigmoid, maximise, sigmoid};

pub const SCORE_SD: f64 = 2.0;
pub const ATTENTION_PRIOR: (f64, f64) = (8.0, 2.0);
pub const FIRST_PRIOR: (f64, f64) = (5.0, 5.0);
const MAX_ROUNDS: usize = 2000;

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

/// Half of a vote: the preferred item and its part of the vote's weight.
struct Half {
    vote: usize,
    /// +1: the first was preferred.
    sign: f64,
    weight: f64,
    /// Probability that the labeler was attentive.
    looked: f64,
}

/// Fits the model to votes of `labelers` labelers on `items` items.
pub fn consensus(votes: &[Vote], items: usize, labelers: usize) -> Consensus {
    let mean = |(a, b): (f64, f64)| (a - 1.0) / (a + b - 2.0);
    let mut c = Consensus {
        scores: vec![0.0; items],
        attention: vec![mean(ATTENTION_PRIOR); labelers],
        first: vec![mean(FIRST_PRIOR); labelers],
    };
    let mut halves: Vec<Half> = Vec::new();
    for (vote, w) in votes.iter().enumerate() {
        for (sign, part) in [(1.0, w.preferred_first), (-1.0, 1.0 - w.preferred_first)] {
            if part > 0.0 {
                halves.push(Half { vote, sign, weight: part * w.weight, looked: 0.0 });
            }
        }
    }
    let components = components(votes, &halves, items);
    for _ in 0..MAX_ROUNDS {
        for half in &mut halves {
            let w = &votes[half.vote];
            let gamma = c.attention[w.by];
            let looked = gamma * sigmoid(half.sign * (c.scores[w.first] - c.scores[w.second]));
            let q = if half.sign > 0.0 { c.first[w.by] } else { 1.0 - c.first[w.by] };
            half.looked = looked / (looked + (1.0 - gamma) * q);
        }
        let mut moved: f64 = 0.0;
        for component in &components {
            moved = moved.max(rescore(votes, &halves, component, &mut c.scores));
        }
        let (mut looked, mut all, mut blind_first, mut blind) =
            (vec![0.0; labelers], vec![0.0; labelers], vec![0.0; labelers], vec![0.0; labelers]);
        for half in &halves {
            let by = votes[half.vote].by;
            looked[by] += half.weight * half.looked;
            all[by] += half.weight;
            blind[by] += half.weight * (1.0 - half.looked);
            if half.sign > 0.0 {
                blind_first[by] += half.weight * (1.0 - half.looked);
            }
        }
        let posterior = |hits: f64, n: f64, (a, b): (f64, f64)| (hits + a - 1.0) / (n + a + b - 2.0);
        for (k, (gamma, q)) in c.attention.iter_mut().zip(&mut c.first).enumerate() {
            let attention = posterior(looked[k], all[k], ATTENTION_PRIOR);
            let first = posterior(blind_first[k], blind[k], FIRST_PRIOR);
            moved = moved.max((attention - *gamma).abs()).max((first - *q).abs());
            (*gamma, *q) = (attention, first);
        }
        if moved < 1e-9 {
            break;
        }
    }
    c
}

/// Items connected by votes, each with its half-votes.
struct Component {
    items: Vec<usize>,
    halves: Vec<usize>,
}

fn components(votes: &[Vote], halves: &[Half], items: usize) -> Vec<Component> {
    let mut root: Vec<usize> = (0..items).collect();
    fn find(root: &mut [usize], mut i: usize) -> usize {
        while root[i] != i {
            root[i] = root[root[i]];
            i = root[i];
        }
        i
    }
    for w in votes {
        let (a, b) = (find(&mut root, w.first), find(&mut root, w.second));
        root[a] = b;
    }
    let mut by_root: std::collections::BTreeMap<usize, Component> = Default::default();
    for i in 0..items {
        let r = find(&mut root, i);
        by_root.entry(r).or_insert_with(|| Component { items: vec![], halves: vec![] }).items.push(i);
    }
    for (h, half) in halves.iter().enumerate() {
        let r = find(&mut root, votes[half.vote].first);
        if let Some(component) = by_root.get_mut(&r) {
            component.halves.push(h);
        }
    }
    by_root.into_values().filter(|c| !c.halves.is_empty()).collect()
}

/// Maximises the component's expected log-likelihood over its scores; returns the largest move.
fn rescore(votes: &[Vote], halves: &[Half], component: &Component, scores: &mut [f64]) -> f64 {
    let size = component.items.len();
    // A component has few items (one prompt's completions), so a linear search is faster than a map.
    let local = |item: usize| component.items.iter().position(|i| *i == item).unwrap_or(0);
    let pulls: Vec<(usize, usize, f64)> = component
        .halves
        .iter()
        .map(|h| {
            let half = &halves[*h];
            let (first, second) = (local(votes[half.vote].first), local(votes[half.vote].second));
            let (up, down) = if half.sign > 0.0 { (first, second) } else { (second, first) };
            (up, down, half.weight * half.looked)
        })
        .collect();
    let ridge = 1.0 / (SCORE_SD * SCORE_SD);
    let start: Vec<f64> = component.items.iter().map(|i| scores[*i]).collect();
    let best = maximise(start, |s| {
        let mut at = Curvature {
            value: -0.5 * ridge * s.iter().map(|x| x * x).sum::<f64>(),
            gradient: s.iter().map(|x| -ridge * x).collect(),
            information: vec![0.0; size * size],
        };
        for i in 0..size {
            at.information[i * size + i] = ridge;
        }
        for (up, down, weight) in &pulls {
            let p = sigmoid(s[*up] - s[*down]);
            at.value += weight * log_sigmoid(s[*up] - s[*down]);
            at.gradient[*up] += weight * (1.0 - p);
            at.gradient[*down] -= weight * (1.0 - p);
            let spread = weight * p * (1.0 - p);
            for (i, j, sign) in [(up, up, 1.0), (down, down, 1.0), (up, down, -1.0), (down, up, -1.0)] {
                at.information[i * size + j] += sign * spread;
            }
        }
        at
    });
    let mut moved: f64 = 0.0;
    for (item, new) in component.items.iter().zip(best) {
        moved = moved.max((scores[*item] - new).abs());
        scores[*item] = new;
    }
    moved
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
}

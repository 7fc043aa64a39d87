//! Whether the order of things is certain from their comparisons, and which two to compare next: the design of a
//! tournament.
//!
//! Strengths have a normal approximation of their posterior under the model of `bradley_terry`. Neighbours in the order
//! decide whether it is certain, and comparing them directly tells most about them.

use statrs::distribution::{ContinuousCDF, Normal};

use super::bradley_terry::{Match, Options, bradley_terry, contrast_variances};

/// Comparisons of two neighbours before their order can be certain. Looking after every comparison would otherwise stop
/// too often at a lead by chance.
const LEAST: f64 = 8.0;

/// Things by strength.
#[derive(Clone, Debug, PartialEq)]
pub struct Order {
    /// Indices of the things, best first.
    pub places: Vec<usize>,
    /// Natural log-odds over their mean, by thing.
    pub strengths: Vec<f64>,
    /// Probability that each place is better than the next, from 0.5 to 1: one fewer than there are things.
    pub certainty: Vec<f64>,
    /// Comparisons between each place and the next.
    met: Vec<f64>,
}

impl Order {
    /// The order of `things` things after these matches.
    pub fn new(matches: &[Match], things: usize) -> Self {
        let fit = bradley_terry(matches, things, Options::default());
        let mut places: Vec<usize> = (0..things).collect();
        places.sort_by(|a, b| fit.strengths[*b].total_cmp(&fit.strengths[*a]));
        let pairs: Vec<(usize, usize)> = places.windows(2).map(|w| (w[0], w[1])).collect();
        let normal = Normal::standard();
        let certainty = contrast_variances(matches, things, Options::default(), &pairs)
            .into_iter()
            .zip(&pairs)
            .map(|(variance, (a, b))| normal.cdf((fit.strengths[*a] - fit.strengths[*b]) / variance.sqrt()))
            .collect();
        let between = |(a, b): &(usize, usize)| {
            let meets = |m: &&Match| (m.a, m.b) == (*a, *b) || (m.b, m.a) == (*a, *b);
            matches.iter().filter(meets).map(|m| m.weight).sum()
        };
        let met = pairs.iter().map(between).collect();
        Self { places, strengths: fit.strengths, certainty, met }
    }

    /// Whether the whole order is right with at least this probability: the chances of error of the neighbours are
    /// added up (Bonferroni).
    pub fn is_certain(&self, level: f64) -> bool {
        let error: f64 = self.certainty.iter().map(|c| 1.0 - c).sum();
        error <= 1.0 - level && self.met.iter().all(|met| *met >= LEAST)
    }

    /// Pairs of neighbours, the least certain first.
    pub fn pairs(&self) -> Vec<(usize, usize)> {
        let mut places: Vec<usize> = (0..self.certainty.len()).collect();
        let known = |i: &usize| if self.met[*i] < LEAST { self.met[*i] / LEAST - 1.0 } else { self.certainty[*i] };
        places.sort_by(|a, b| known(a).total_cmp(&known(b)));
        places.into_iter().map(|i| (self.places[i], self.places[i + 1])).collect()
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::super::bradley_terry::Won;
    use super::*;

    fn uniform(rng: &mut ChaCha8Rng) -> f64 {
        (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A comparison of things with these strengths, a third of the close ones tied.
    fn compare(truth: &[f64], (a, b): (usize, usize), cluster: usize, rng: &mut ChaCha8Rng) -> Match {
        let half = (truth[a] - truth[b]) / 2.0;
        let (wins, loses, tie) = (half.exp(), (-half).exp(), 1.0);
        let draw = uniform(rng) * (wins + loses + tie);
        let won = if draw < wins {
            Won::A
        } else if draw < wins + loses {
            Won::B
        } else {
            Won::Tie
        };
        Match { a, b, won, weight: 1.0, x: 0.0, cluster }
    }

    /// Runs a tournament; `choose` is the design. Returns its order and the number of comparisons.
    fn tournament(truth: &[f64], seed: u64, mut choose: impl FnMut(&Order, usize) -> (usize, usize)) -> (Order, usize) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut matches = Vec::new();
        for n in 0..3000 {
            let order = Order::new(&matches, truth.len());
            if order.is_certain(0.9) {
                return (order, n);
            }
            matches.push(compare(truth, choose(&order, n), n, &mut rng));
        }
        panic!("never certain")
    }

    #[test]
    fn a_tournament_ends_with_the_right_order_as_often_as_it_says() {
        let truth = [0.0, 2.2, 1.4, 0.7];
        let mut right = 0;
        let runs = 60;
        for seed in 0..runs {
            let (order, _) = tournament(&truth, seed, |order, _| order.pairs()[0]);
            right += usize::from(order.places == [1, 2, 3, 0]);
        }
        // 0.9 less three standard errors.
        assert!(right as f64 / runs as f64 >= 0.9 - 3.0 * (0.09f64 / runs as f64).sqrt(), "{right} of {runs}");
    }

    #[test]
    fn comparing_doubtful_neighbours_needs_fewer_comparisons_than_all_pairs_in_turn() {
        let truth = [0.0, 3.0, 2.3, 4.2, 1.5];
        let all: Vec<(usize, usize)> = (0..5).flat_map(|a| (0..a).map(move |b| (a, b))).collect();
        let mean = |adaptive: bool| {
            let runs = (0..12).map(|seed| {
                tournament(&truth, seed, |order, n| if adaptive { order.pairs()[0] } else { all[n % all.len()] }).1
            });
            runs.sum::<usize>() as f64 / 12.0
        };
        let (adaptive, in_turn) = (mean(true), mean(false));
        assert!(adaptive < 0.75 * in_turn, "{adaptive} comparisons, {in_turn} in turn");
    }

    #[test]
    fn without_comparisons_nothing_is_certain_and_no_pair_is_left_out() {
        let order = Order::new(&[], 3);
        assert_eq!(order.certainty, [0.5, 0.5]);
        assert!(!order.is_certain(0.5));
        assert_eq!(order.pairs().len(), 2);
        // A lead is not certain before the least number of comparisons.
        let rows: Vec<Match> =
            (0..7).map(|i| Match { a: 0, b: 1, won: Won::A, weight: 1.0, x: 0.0, cluster: i }).collect();
        let order = Order::new(&rows, 2);
        assert!(order.certainty[0] > 0.9 && !order.is_certain(0.9), "{order:?}");
    }
}

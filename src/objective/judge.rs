//! Scores from a language model's probabilities of a few choices: the expected grade (G-Eval, arXiv 2303.16634) and the
//! preference between two answers that were shown in both orders (arXiv 2306.05685). Plain numbers only.

/// Minimum total probability of the choices for a score.
const LEAST: f64 = 1e-12;

/// The probability of each of several texts, from `logprobs`: of text i, the log-prob of an answer that begins with it.
/// `extends[i]` is the longest other text that text i begins with ("10" extends "1"): what is on the longer text is
/// taken from the shorter one.
pub fn probabilities(logprobs: &[f64], extends: &[Option<usize>]) -> Vec<f64> {
    let mut probabilities: Vec<f64> = logprobs.iter().map(|logprob| logprob.exp()).collect();
    for (i, shorter) in extends.iter().enumerate() {
        if let Some(shorter) = shorter {
            probabilities[*shorter] -= logprobs[i].exp();
        }
    }
    // Rounding may make a difference slightly negative.
    probabilities.into_iter().map(|mass| mass.max(0.0)).collect()
}

/// The mean of the grades 1, 2, …, n under probabilities proportional to `probabilities` `[n]`; `None` if all are 0.
pub fn expected_grade(probabilities: &[f64]) -> Option<f64> {
    let total: f64 = probabilities.iter().sum();
    let weighted: f64 = probabilities.iter().enumerate().map(|(i, mass)| (i + 1) as f64 * mass).sum();
    (total.is_finite() && total > LEAST).then(|| weighted / total)
}

/// A judge's preference between two answers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Preference {
    /// Probability that the first answer is better: the mean over both orders.
    pub probability: f64,
    /// 1 if both orders prefer the same answer, 0 if they prefer the same position, ½ if one of them has no preference.
    pub consistency: f64,
    /// Mean probability of the answer that was shown first; ½ without position bias.
    pub first_place: f64,
}

/// The preference between answers a and b. `ab` are the probabilities that the answer in the first and in the second
/// place is better where a was shown first, `ba` the same where b was; neither needs to add up to 1. `None` where one
/// of the two has no probability on the choices.
pub fn preference(ab: [f64; 2], ba: [f64; 2]) -> Option<Preference> {
    let first = |[first, second]: [f64; 2]| {
        let total = first + second;
        (total.is_finite() && total > LEAST).then(|| first / total)
    };
    let (a_of_ab, b_of_ba) = (first(ab)?, first(ba)?);
    let agreement = (a_of_ab - 0.5) * (0.5 - b_of_ba);
    let consistency = if agreement > 0.0 {
        1.0
    } else if agreement < 0.0 {
        0.0
    } else {
        0.5
    };
    Some(Preference {
        // This formula gives exactly ½ for equal answers, without a rounding error.
        probability: 0.5 + (a_of_ab - b_of_ba) / 2.0,
        consistency,
        first_place: (a_of_ab + b_of_ba) / 2.0,
    })
}

/// All pairs (i, j) of `n` answers with i < j: (0, 1), (0, 2), …, (1, 2), ….
fn pairs_of(n: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..n).flat_map(move |i| (i + 1..n).map(move |j| (i, j)))
}

/// For each of `n` answers the mean probability that it is better than another one, from that of every pair (i, j), i <
/// j, in the order (0, 1), (0, 2), …, (1, 2), …; ½ for a single answer. The means of a group add up to n/2.
pub fn win_rates(n: usize, pairs: &[f64]) -> Vec<f64> {
    if n < 2 {
        return vec![0.5; n];
    }
    let mut rates = vec![0.0; n];
    for ((i, j), first) in pairs_of(n).zip(pairs) {
        rates[i] += first;
        rates[j] += 1.0 - first;
    }
    rates.into_iter().map(|sum| sum / (n - 1) as f64).collect()
}

/// A ranking of the answers to a prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Ranking {
    /// Of each answer; 0 is the best.
    pub tiers: Vec<i64>,
    /// The mean over the pairs of 1 − |2p − 1|, where p is the probability that the first answer is better; 1 for a pair
    /// whose two orders disagree, and for one without an answer. 0 without pairs.
    pub doubt: f64,
}

/// Ranks `n` answers by the number of others that they are preferred to; a tie counts half. A pair on which the two
/// orders disagree is a tie, and so is one without a preference. `pairs` has one entry for every pair (i, j), i < j, in
/// the order (0, 1), (0, 2), …, (1, 2), ….
pub fn ranking(n: usize, pairs: &[Option<Preference>]) -> Ranking {
    let mut points = vec![0i64; n];
    let mut doubts = Vec::with_capacity(pairs.len());
    for ((i, j), pair) in pairs_of(n).zip(pairs) {
        let decided = pair.filter(|found| found.consistency > 0.0);
        let first = decided.map_or(0.5, |found| found.probability);
        let (to_i, to_j) = match first.total_cmp(&0.5) {
            std::cmp::Ordering::Greater => (2, 0),
            std::cmp::Ordering::Equal => (1, 1),
            std::cmp::Ordering::Less => (0, 2),
        };
        points[i] += to_i;
        points[j] += to_j;
        doubts.push(1.0 - (2.0 * first - 1.0).abs());
    }
    let mut levels = points.clone();
    levels.sort_unstable_by(|a, b| b.cmp(a));
    levels.dedup();
    let tier = |own: &i64| levels.iter().position(|level| level == own).unwrap_or(0) as i64;
    let doubt = if doubts.is_empty() { 0.0 } else { doubts.iter().sum::<f64>() / doubts.len() as f64 };
    Ranking { tiers: points.iter().map(tier).collect(), doubt }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_whose_orders_disagree_is_a_tie_and_doubted() {
        let sure = preference([0.9, 0.1], [0.1, 0.9]);
        let swapped = preference([0.9, 0.1], [0.8, 0.2]);
        assert_eq!(ranking(2, &[sure]).tiers, [0, 1]);
        assert!(close(ranking(2, &[sure]).doubt, 0.2));
        assert_eq!(ranking(2, &[swapped]), Ranking { tiers: vec![0, 0], doubt: 1.0 });
        assert_eq!(ranking(2, &[None]), Ranking { tiers: vec![0, 0], doubt: 1.0 });
        assert_eq!(ranking(1, &[]), Ranking { tiers: vec![0], doubt: 0.0 });
        let worse = preference([0.1, 0.9], [0.9, 0.1]);
        // The third is better than both, which tie.
        let found = ranking(3, &[swapped, worse, worse]);
        assert_eq!(found.tiers, [1, 1, 0]);
        assert!(close(found.doubt, (1.0 + 0.2 + 0.2) / 3.0));
        // A cycle: nobody is better.
        assert_eq!(ranking(3, &[sure, worse, sure]).tiers, [0, 0, 0]);
    }

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-12
    }

    #[test]
    fn a_grade_is_the_mean_over_the_grades_alone() {
        // Half of the probability is on other words: 0.1 on grade 2, 0.4 on grade 4.
        assert!(close(expected_grade(&[0.0, 0.1, 0.0, 0.4]).unwrap(), (0.1 * 2.0 + 0.4 * 4.0) / 0.5));
        assert_eq!(expected_grade(&[0.0, 0.0, 1.0]), Some(3.0));
        // Equal probabilities: the middle of 1 to 10.
        assert!(close(expected_grade(&[0.1; 10]).unwrap(), 5.5));
        assert_eq!(expected_grade(&[0.0; 10]), None);
        assert_eq!(expected_grade(&[f64::NAN, 1.0]), None);
        // Softmax of log-probs: a constant factor of all probabilities changes nothing.
        let logprobs = [-3.0f64, -1.0, -2.0];
        let grade = |shift: f64| expected_grade(&logprobs.map(|lp| (lp + shift).exp())).unwrap();
        assert!(close(grade(0.0), grade(-4.0)));
    }

    #[test]
    fn a_longer_text_takes_its_probability_from_the_one_it_extends() {
        // "1" is read in 0.5 of the answers; in 0.6 of these "0" follows.
        let probabilities = probabilities(&[0.5f64.ln(), 0.2f64.ln(), (0.5f64 * 0.6).ln()], &[None, None, Some(0)]);
        for (mass, expected) in probabilities.iter().zip([0.2, 0.2, 0.3]) {
            assert!(close(*mass, expected), "{probabilities:?}");
        }
        // Rounding never makes a probability negative.
        let all = super::probabilities(&[-0.1, -0.1 + 1e-16], &[None, Some(0)]);
        assert!(all[0] >= 0.0 && all[1] > 0.9);
    }

    #[test]
    fn both_orders_are_averaged_and_a_bias_towards_a_place_cancels() {
        let p = preference([0.8, 0.2], [0.3, 0.7]).unwrap();
        assert!(close(p.probability, (0.8 + 0.7) / 2.0) && p.consistency == 1.0 && close(p.first_place, 0.55));
        // A judge that always names the first place prefers nothing.
        let biased = preference([0.9, 0.1], [0.9, 0.1]).unwrap();
        assert!(biased.probability == 0.5 && biased.consistency == 0.0 && close(biased.first_place, 0.9));
        // Probabilities on other words do not count.
        let scaled = preference([0.08, 0.02], [0.003, 0.007]).unwrap();
        assert!(close(scaled.probability, p.probability));
        assert_eq!(preference([0.5, 0.5], [0.2, 0.8]).unwrap().consistency, 0.5);
        assert_eq!(preference([0.0, 0.0], [0.2, 0.8]), None);
        // Exchanging the answers turns the preference around.
        let other = preference([0.3, 0.7], [0.8, 0.2]).unwrap();
        assert!(close(other.probability, 1.0 - p.probability) && other.consistency == p.consistency);
    }

    #[test]
    fn win_rates_are_means_over_the_other_answers() {
        let rates = win_rates(3, &[0.9, 0.6, 0.2]);
        for (rate, expected) in rates.iter().zip([(0.9 + 0.6) / 2.0, (0.1 + 0.2) / 2.0, (0.4 + 0.8) / 2.0]) {
            assert!(close(*rate, expected), "{rates:?}");
        }
        assert!(close(rates.iter().sum::<f64>(), 1.5));
        assert_eq!((win_rates(1, &[]), win_rates(0, &[])), (vec![0.5], vec![]));
    }
}

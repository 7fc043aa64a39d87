//! Length bias: the share of preferences for the longer text, and the log-odds per doubling of the length.

use serde::Serialize;

use super::bootstrap::{Groups, MAX_GROUPS, Sums, bootstrap, bootstrap_sums};
use super::statistics::{Figure, Resampling, figure, of_few};
use crate::statistics::logistic::{derivatives, slope, step};

/// One preference: lengths in characters of the preferred and the other text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Preference {
    pub preferred: f64,
    pub other: f64,
    pub weight: f64,
    /// Index of its prompt: preferences of one prompt are resampled together.
    pub cluster: usize,
}

/// Figures of length bias; `None` if the data does not allow one.
#[derive(Clone, Debug, PartialEq, Serialize, schemars::JsonSchema)]
pub struct LengthBias {
    pub preferences: usize,
    /// Number of prompts; preferences of one prompt are not independent.
    pub prompts: usize,
    /// Weighted share in which the longer text is preferred, of those of different length.
    pub longer_wins: Option<Figure>,
    /// β of P(preferred) = σ(β log2(length / other length)), without intercept: log-odds per doubling.
    pub per_doubling: Option<Figure>,
    /// Mean characters of preferred and other texts.
    pub mean_preferred: Option<f64>,
    pub mean_other: Option<f64>,
}

fn doublings(p: &Preference) -> f64 {
    ((p.preferred + 1.0) / (p.other + 1.0)).log2()
}

/// The report over preferences whose clusters are numbered below `clusters`.
///
/// Up to [`MAX_GROUPS`] clusters, each replicate fits the slope again. Of more, groups are drawn and a replicate takes
/// one Newton step from the slope of all data, whose error is small of the order 1 / clusters.
pub fn length_bias(preferences: &[Preference], clusters: usize, resampling: Resampling) -> LengthBias {
    let x: Vec<f64> = preferences.iter().map(doublings).collect();
    let weighted = |from: usize| preferences.iter().zip(&x).skip(from).map(|(p, x)| (*x, p.weight));
    // Newton's steps are cheaper on a part of the data, and one or two more are enough on all of it.
    let start = slope(weighted(preferences.len() - preferences.len() / 32), 0.0).unwrap_or(0.0);
    let beta = slope(weighted(0), start);
    let groups = Groups::new(clusters, MAX_GROUPS, resampling);
    // Of each group: weights of longer and of unequal texts, derivatives at β.
    let mut sums = Sums::new(groups.count(), 4);
    let at = beta.unwrap_or(0.0);
    for (p, x) in preferences.iter().zip(&x).filter(|(_, x)| **x != 0.0) {
        let (gradient, information) = derivatives(std::iter::once((*x, p.weight)), at);
        let row = sums.row(groups.of(p.cluster));
        row[0] += if *x > 0.0 { p.weight } else { 0.0 };
        row[1] += p.weight;
        row[2] += gradient;
        row[3] += information;
    }
    let longer = |sums: &[f64]| (sums[1] > 0.0).then(|| sums[0] / sums[1]);
    let intervals = if groups.are_merged() {
        bootstrap_sums(&sums, 2, resampling, |sums| {
            vec![longer(sums), (sums[1] > 0.0).then(|| at + step(at, sums[2], sums[3]))]
        })
    } else {
        let share = bootstrap_sums(&sums, 1, resampling, |sums| vec![longer(sums)]);
        let slopes = bootstrap(clusters, 1, resampling, |counts| {
            let drawn = preferences.iter().zip(&x).map(|(p, x)| (*x, p.weight * counts[p.cluster]));
            vec![slope(drawn, at)]
        });
        vec![share[0], slopes[0]]
    };
    let n = x.iter().filter(|x| **x != 0.0).count();
    let mut about: Vec<usize> = preferences.iter().map(|p| p.cluster).collect();
    about.sort_unstable();
    about.dedup();
    let prompts = about.len();
    let mean = |length: &dyn Fn(&Preference) -> f64| {
        let total: f64 = preferences.iter().map(|p| p.weight).sum();
        (total > 0.0).then(|| preferences.iter().map(|p| p.weight * length(p)).sum::<f64>() / total)
    };
    LengthBias {
        preferences: preferences.len(),
        prompts,
        longer_wins: of_few(figure(longer(&sums.total()), intervals[0], n), prompts, true),
        per_doubling: of_few(figure(beta, intervals[1], n), prompts, false),
        mean_preferred: mean(&|p| p.preferred),
        mean_other: mean(&|p| p.other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slope_is_the_log_odds() {
        // One doubling each; the longer wins 3 of 4: β = ln 3.
        let preference = |i: usize| {
            let (preferred, other) = if i.is_multiple_of(4) { (9.0, 19.0) } else { (19.0, 9.0) };
            Preference { preferred, other, weight: 1.0, cluster: i }
        };
        let all: Vec<_> = (0..2000).map(preference).collect();
        let report = length_bias(&all, 2000, Resampling { replicates: 100, seed: 1 });
        let (share, beta) = (report.longer_wins.unwrap(), report.per_doubling.unwrap());
        assert_eq!((share.value, share.n), (0.75, 2000));
        assert!((beta.value - 3f64.ln()).abs() < 1e-3, "{beta:?}");
        assert!(beta.low.unwrap() < beta.value && beta.value < beta.high.unwrap());
        let equal = Preference { preferred: 5.0, other: 5.0, weight: 1.0, cluster: 0 };
        let report = length_bias(&[equal], 1, Resampling { replicates: 100, seed: 1 });
        assert_eq!((report.longer_wins, report.per_doubling, report.mean_other), (None, None, Some(5.0)));
    }
}

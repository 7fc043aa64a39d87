//! Agreement of labelers: pairwise agreement, Krippendorff's α, Fleiss' and Cohen's κ, each with a bootstrap
//! interval over sets.
//!
//! The unit is a pair of completions of one set; a rating is the labeler's preference or a tie: three ordered
//! categories. Missing ratings are the normal case.

use std::collections::BTreeMap;

use serde::Serialize;

use super::statistics::{Figure, Resampling, bootstrap, figure, of_few};

/// Second preferred, tie, first preferred.
pub const CATEGORIES: usize = 3;
/// The category of a tie.
pub const TIE: usize = 1;
/// Pairs of labelers are listed for the most shared units first, up to this many.
const MAX_LABELER_PAIRS: usize = 100;

type Table = [[f64; CATEGORIES]; CATEGORIES];

/// One unit that several labelers rated.
#[derive(Clone, Debug, PartialEq)]
pub struct Unit {
    /// Index of its set: units of one set are resampled together.
    pub cluster: usize,
    /// (labeler, category below `CATEGORIES`), each labeler once.
    pub ratings: Vec<(usize, usize)>,
}

/// Distance of two categories, for Krippendorff's α.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distance {
    Nominal,
    Ordinal,
}

/// Figures of agreement; `None` if the data does not allow one.
#[derive(Clone, Debug, PartialEq, Serialize, schemars::JsonSchema)]
pub struct Agreement {
    /// Units with two ratings or more. Units of one set are not independent: each figure's `n` counts sets.
    pub units: usize,
    pub sets: usize,
    pub labelers: usize,
    /// Share of pairs of labelers with equal ratings, ties included.
    pub pairwise: Option<Figure>,
    /// Share of pairs of labelers with equal ratings, of those where both have a preference: the figure that papers
    /// report (72–77 %).
    pub pairwise_without_ties: Option<Figure>,
    pub alpha_ordinal: Option<Figure>,
    pub alpha_nominal: Option<Figure>,
    /// Over the units with exactly `fleiss_raters` ratings, the most common number.
    pub fleiss_kappa: Option<Figure>,
    pub fleiss_raters: Option<usize>,
    pub cohen: Vec<Cohen>,
}

/// Cohen's κ of two labelers (indices) over the units both rated.
#[derive(Clone, Debug, PartialEq, Serialize, schemars::JsonSchema)]
#[schemars(rename = "CohenKappa")]
pub struct Cohen {
    #[serde(skip)]
    pub pair: (usize, usize),
    pub kappa: Option<Figure>,
    /// With linear weights: a tie is half as far from a preference as the opposite is.
    pub weighted_kappa: Option<f64>,
}

/// Additive sums from which every figure is computed, so that a resampled set only changes its weight.
#[derive(Clone, Debug, Default)]
struct Tally {
    coincidences: Table,
    pairs: f64,
    same: f64,
    strict: f64,
    strict_same: f64,
    /// Over units of the Fleiss count: how many, Σ P_i, ratings by category.
    fleiss_units: f64,
    fleiss_sum: f64,
    fleiss_ratings: [f64; CATEGORIES],
}

impl Tally {
    fn add(&mut self, other: &Self, weight: f64) {
        for (row, more) in self.coincidences.iter_mut().zip(&other.coincidences) {
            for (cell, more) in row.iter_mut().zip(more) {
                *cell += weight * more;
            }
        }
        self.pairs += weight * other.pairs;
        self.same += weight * other.same;
        self.strict += weight * other.strict;
        self.strict_same += weight * other.strict_same;
        self.fleiss_units += weight * other.fleiss_units;
        self.fleiss_sum += weight * other.fleiss_sum;
        for (cell, more) in self.fleiss_ratings.iter_mut().zip(&other.fleiss_ratings) {
            *cell += weight * more;
        }
    }

    fn count(&mut self, unit: &Unit, fleiss_raters: usize) {
        let m = unit.ratings.len();
        if m < 2 {
            return;
        }
        let given: Vec<usize> = unit.ratings.iter().map(|rating| rating.1).collect();
        add_coincidences(&mut self.coincidences, &given);
        let mut by_category = [0.0; CATEGORIES];
        for category in &given {
            by_category[*category] += 1.0;
        }
        for (i, a) in given.iter().enumerate() {
            for b in &given[i + 1..] {
                self.pairs += 1.0;
                self.same += f64::from(a == b);
                if *a != TIE && *b != TIE {
                    self.strict += 1.0;
                    self.strict_same += f64::from(a == b);
                }
            }
        }
        if m == fleiss_raters {
            let n = m as f64;
            self.fleiss_units += 1.0;
            self.fleiss_sum += (by_category.iter().map(|c| c * c).sum::<f64>() - n) / (n * (n - 1.0));
            for (cell, more) in self.fleiss_ratings.iter_mut().zip(by_category) {
                *cell += more;
            }
        }
    }

    fn figures(&self) -> Vec<Option<f64>> {
        let ratio = |a: f64, b: f64| (b > 0.0).then(|| a / b);
        vec![
            ratio(self.same, self.pairs),
            ratio(self.strict_same, self.strict),
            alpha(&self.coincidences, Distance::Ordinal),
            alpha(&self.coincidences, Distance::Nominal),
            self.fleiss(),
        ]
    }

    fn fleiss(&self) -> Option<f64> {
        let total: f64 = self.fleiss_ratings.iter().sum();
        let chance: f64 = self.fleiss_ratings.iter().map(|c| (c / total).powi(2)).sum();
        (self.fleiss_units > 0.0 && chance < 1.0)
            .then(|| (self.fleiss_sum / self.fleiss_units - chance) / (1.0 - chance))
    }
}

/// Adds one unit to a coincidence matrix: each ordered pair of its m ratings weighs 1 / (m − 1).
pub(super) fn add_coincidences<R: AsMut<[f64]>>(coincidences: &mut [R], ratings: &[usize]) {
    for (i, a) in ratings.iter().enumerate() {
        for (j, b) in ratings.iter().enumerate() {
            if i != j {
                coincidences[*a].as_mut()[*b] += 1.0 / (ratings.len() - 1) as f64;
            }
        }
    }
}

/// Krippendorff's α of a coincidence matrix (Hayes and Krippendorff 2007). `None` without ratings, or when all are
/// equal.
pub(super) fn alpha<R: AsRef<[f64]>>(coincidences: &[R], distance: Distance) -> Option<f64> {
    let margin: Vec<f64> = coincidences.iter().map(|row| row.as_ref().iter().sum()).collect();
    let n: f64 = margin.iter().sum();
    let apart = |a: usize, b: usize| match distance {
        Distance::Nominal => f64::from(a != b),
        Distance::Ordinal => {
            let between: f64 = margin[a.min(b)..=a.max(b)].iter().sum();
            (between - (margin[a] + margin[b]) / 2.0).powi(2)
        }
    };
    let (mut observed, mut expected) = (0.0, 0.0);
    for (a, row) in coincidences.iter().enumerate() {
        for (b, cell) in row.as_ref().iter().enumerate() {
            if a != b {
                observed += cell * apart(a, b);
                expected += margin[a] * margin[b] * apart(a, b);
            }
        }
    }
    (expected > 0.0).then(|| 1.0 - (n - 1.0) * observed / expected)
}

/// Cohen's κ of a confusion table, unweighted or with linear weights.
fn kappa(table: &Table, linear: bool) -> Option<f64> {
    let rows: Vec<f64> = table.iter().map(|row| row.iter().sum()).collect();
    let n: f64 = rows.iter().sum();
    let columns: Vec<f64> = (0..CATEGORIES).map(|j| table.iter().map(|row| row[j]).sum()).collect();
    let (mut observed, mut expected) = (0.0, 0.0);
    for (i, row) in table.iter().enumerate() {
        for (j, cell) in row.iter().enumerate() {
            let apart = if linear { i.abs_diff(j) as f64 } else { f64::from(i != j) };
            observed += apart * cell;
            expected += apart * rows[i] * columns[j] / n;
        }
    }
    (expected > 0.0).then(|| 1.0 - observed / expected)
}

/// All figures over `units`; clusters are numbered below `clusters`.
pub fn agreement(units: &[Unit], clusters: usize, resampling: Resampling) -> Agreement {
    let shared: Vec<&Unit> = units.iter().filter(|u| u.ratings.len() >= 2).collect();
    let mut sizes: BTreeMap<usize, usize> = BTreeMap::new();
    for unit in &shared {
        *sizes.entry(unit.ratings.len()).or_default() += 1;
    }
    let fleiss_raters = sizes.iter().max_by_key(|(_, count)| **count).map(|(size, _)| *size);
    let mut tallies = vec![Tally::default(); clusters];
    for unit in &shared {
        tallies[unit.cluster].count(unit, fleiss_raters.unwrap_or(0));
    }
    // Sets without a shared unit are not resampled.
    tallies.retain(|t| t.pairs > 0.0);
    let sum = |counts: &dyn Fn(usize) -> f64| {
        let mut all = Tally::default();
        for (i, tally) in tallies.iter().enumerate() {
            all.add(tally, counts(i));
        }
        all
    };
    let whole = sum(&|_| 1.0);
    let values = whole.figures();
    let intervals = bootstrap(tallies.len(), values.len(), resampling, |counts| sum(&|i| counts[i]).figures());
    let mut labelers: Vec<usize> = shared.iter().flat_map(|u| u.ratings.iter().map(|r| r.0)).collect();
    labelers.sort_unstable();
    labelers.dedup();
    let sets = |says: &dyn Fn(&Tally) -> f64| tallies.iter().filter(|t| says(t) > 0.0).count();
    let n = [sets(&|t| t.pairs), sets(&|t| t.strict), tallies.len(), tallies.len(), sets(&|t| t.fleiss_units)];
    let of = |i: usize| of_few(figure(values[i], intervals[i], n[i]), n[i], i < 2);
    Agreement {
        units: shared.len(),
        sets: tallies.len(),
        labelers: labelers.len(),
        pairwise: of(0),
        pairwise_without_ties: of(1),
        alpha_ordinal: of(2),
        alpha_nominal: of(3),
        fleiss_kappa: of(4),
        fleiss_raters: fleiss_raters.filter(|_| values[4].is_some()),
        cohen: cohen(&shared, resampling),
    }
}

fn cohen(units: &[&Unit], resampling: Resampling) -> Vec<Cohen> {
    // By pair of labelers: one confusion table per set.
    let mut tables: BTreeMap<(usize, usize), BTreeMap<usize, Table>> = BTreeMap::new();
    for unit in units {
        for (i, (first, a)) in unit.ratings.iter().enumerate() {
            for (second, b) in &unit.ratings[i + 1..] {
                let (pair, cell) =
                    if first < second { ((*first, *second), (*a, *b)) } else { ((*second, *first), (*b, *a)) };
                let table = tables.entry(pair).or_default().entry(unit.cluster).or_default();
                table[cell.0][cell.1] += 1.0;
            }
        }
    }
    let count = |t: &Table| t.iter().flatten().sum::<f64>();
    let mut most_shared: Vec<_> =
        tables.into_iter().map(|(pair, sets)| (pair, sets.values().map(count).sum::<f64>() as usize, sets)).collect();
    most_shared.sort_by_key(|(pair, shared, _)| (std::cmp::Reverse(*shared), *pair));
    most_shared.truncate(MAX_LABELER_PAIRS);
    let sum = |tables: &[&Table], weight: &dyn Fn(usize) -> f64| {
        let mut all = Table::default();
        for (i, table) in tables.iter().enumerate() {
            for (row, more) in all.iter_mut().zip(*table) {
                for (cell, more) in row.iter_mut().zip(more) {
                    *cell += weight(i) * more;
                }
            }
        }
        all
    };
    most_shared
        .into_iter()
        .map(|(pair, _, sets)| {
            let tables: Vec<&Table> = sets.values().collect();
            let whole = sum(&tables, &|_| 1.0);
            let interval =
                bootstrap(tables.len(), 1, resampling, |counts| vec![kappa(&sum(&tables, &|i| counts[i]), false)]);
            Cohen {
                pair,
                kappa: of_few(figure(kappa(&whole, false), interval[0], tables.len()), tables.len(), false),
                weighted_kappa: kappa(&whole, true),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::statistics::share;
    use super::*;

    const QUICK: Resampling = Resampling { replicates: 200, seed: 3 };

    fn unit(cluster: usize, categories: &[usize]) -> Unit {
        Unit { cluster, ratings: categories.iter().copied().enumerate().collect() }
    }

    #[test]
    fn perfect_and_chance_agreement() {
        let perfect: Vec<_> = (0..30).map(|i| unit(i, &[i % 3; 3])).collect();
        let a = agreement(&perfect, 30, QUICK);
        for figure in [a.pairwise, a.alpha_ordinal, a.alpha_nominal, a.fleiss_kappa, a.cohen[0].kappa] {
            let figure = figure.unwrap();
            assert_eq!((figure.value, figure.low, figure.high), (1.0, Some(1.0), Some(1.0)));
        }
        assert_eq!((a.units, a.sets, a.labelers, a.fleiss_raters, a.cohen.len()), (30, 30, 3, Some(3), 3));
        // Always the opposite: worse than chance.
        let opposite: Vec<_> = (0..20).map(|i| unit(i, &[0, 2])).collect();
        let a = agreement(&opposite, 20, QUICK);
        assert_eq!(a.pairwise.unwrap().value, 0.0);
        assert!(a.alpha_ordinal.unwrap().value < -0.9);
    }

    #[test]
    fn nothing_to_compare_is_no_figure() {
        let a = agreement(&[unit(0, &[1]), unit(1, &[])], 2, QUICK);
        assert_eq!((a.pairwise, a.alpha_ordinal, a.fleiss_kappa, a.cohen.len()), (None, None, None, 0));
        // All the same answer: agreement is whole, but chance would give it too.
        let same: Vec<_> = (0..5).map(|i| unit(i, &[2, 2])).collect();
        let a = agreement(&same, 5, QUICK);
        assert_eq!((a.pairwise.unwrap().value, a.alpha_nominal, a.fleiss_kappa), (1.0, None, None));
    }

    #[test]
    fn units_of_one_set_are_resampled_together() {
        // The same twenty units, in twenty sets or in two: the second interval must be wider.
        let rows: Vec<[usize; 2]> =
            (0..20).map(|i| [if i % 3 == 0 { 0 } else { 2 }, if i < 10 { 0 } else { 2 }]).collect();
        let of = |cluster: &dyn Fn(usize) -> usize, n| {
            let units: Vec<_> = rows.iter().enumerate().map(|(i, r)| unit(cluster(i), r)).collect();
            agreement(&units, n, QUICK).pairwise.unwrap()
        };
        let (apart, together) = (of(&|i| i, 20), of(&|i| i / 10, 2));
        assert_eq!(apart.value, together.value);
        let width = |f: Figure| f.high.unwrap() - f.low.unwrap();
        assert!(width(together) > 0.0 && width(apart) > 0.0);
        assert_eq!((apart.n, together.n), (20, 2), "a figure rests on sets, not on their pairs");
        assert!(width(together) > width(apart));
    }

    #[test]
    fn few_sets_do_not_pose_as_many_pairs() {
        // Four sets of three answers, ranked by two people who agree on one set: 12 pairs, 25 %.
        let units: Vec<_> = (0..12).map(|i| unit(i / 3, if i < 3 { &[2, 2] } else { &[2, 0] })).collect();
        let a = agreement(&units, 4, QUICK);
        let figure = a.pairwise.unwrap();
        assert_eq!((a.units, figure.n, figure.value), (12, 4, 0.25));
        let four = share(1.0, 4).unwrap();
        assert!(figure.low.unwrap() <= four.low.unwrap() && figure.high.unwrap() >= four.high.unwrap(), "{figure:?}");
        assert_eq!(a.alpha_ordinal.unwrap().low, None, "no interval of four sets");
    }
}

//! Agreement of labelers: pairwise agreement, Krippendorff's α, Fleiss' and Cohen's κ, each with a bootstrap
//! interval over sets.
//!
//! The unit is a pair of completions of one set; a rating is the labeler's preference or a tie: three ordered
//! categories. Missing ratings are the normal case.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::bootstrap::{Groups, MAX_GROUPS, Sums, bootstrap_sums};
use super::statistics::{Figure, Resampling, figure, of_few};

/// Second preferred, tie, first preferred.
pub const CATEGORIES: usize = 3;
/// The category of a tie.
pub const TIE: usize = 1;
/// Pairs of labelers are listed for the most shared units first, up to this many.
const MAX_LABELER_PAIRS: usize = 100;
/// Above this number of sets that two labelers share, groups of sets are drawn. Smaller than [`MAX_GROUPS`]: there are
/// many pairs, and those with equally many groups share their draws.
const MAX_PAIR_GROUPS: usize = 250;

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
#[derive(Clone, Debug, Default, PartialEq)]
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
    const WIDTH: usize = CATEGORIES * CATEGORIES + 6 + CATEGORIES;

    /// Adds the tally to `WIDTH` sums.
    fn add_to(&self, sums: &mut [f64]) {
        let rest = [self.pairs, self.same, self.strict, self.strict_same, self.fleiss_units, self.fleiss_sum];
        let (table, tail) = sums.split_at_mut(CATEGORIES * CATEGORIES);
        let (middle, ratings) = tail.split_at_mut(rest.len());
        add_table(&self.coincidences, table);
        for (sum, more) in middle.iter_mut().zip(rest) {
            *sum += more;
        }
        for (sum, more) in ratings.iter_mut().zip(self.fleiss_ratings) {
            *sum += more;
        }
    }

    /// The tally whose sums are `sums`.
    fn of_sums(sums: &[f64]) -> Self {
        let (table, rest) = sums.split_at(CATEGORIES * CATEGORIES);
        let mut fleiss_ratings = [0.0; CATEGORIES];
        fleiss_ratings.copy_from_slice(&rest[6..]);
        Self {
            coincidences: table_of(table),
            pairs: rest[0],
            same: rest[1],
            strict: rest[2],
            strict_same: rest[3],
            fleiss_units: rest[4],
            fleiss_sum: rest[5],
            fleiss_ratings,
        }
    }

    fn count(&mut self, unit: &Unit, fleiss_raters: usize) {
        let m = unit.ratings.len();
        let each = 1.0 / (m as f64 - 1.0);
        let mut by_category = [0.0; CATEGORIES];
        for (i, (_, a)) in unit.ratings.iter().enumerate() {
            by_category[*a] += 1.0;
            for (_, b) in &unit.ratings[i + 1..] {
                self.coincidences[*a][*b] += each;
                self.coincidences[*b][*a] += each;
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

/// Adds a table, row after row, to as many sums.
fn add_table(table: &Table, sums: &mut [f64]) {
    for (sum, more) in sums.iter_mut().zip(table.iter().flatten()) {
        *sum += more;
    }
}

/// The table whose rows are one after the other in `sums`.
fn table_of(sums: &[f64]) -> Table {
    let mut table = Table::default();
    for (cell, sum) in table.iter_mut().flatten().zip(sums) {
        *cell = *sum;
    }
    table
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
    let rows: [f64; CATEGORIES] = std::array::from_fn(|i| table[i].iter().sum());
    let n: f64 = rows.iter().sum();
    let columns: [f64; CATEGORIES] = std::array::from_fn(|j| table.iter().map(|row| row[j]).sum());
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

/// All figures over `units`.
pub fn agreement(units: &[Unit], resampling: Resampling) -> Agreement {
    let mut shared: Vec<&Unit> = units.iter().filter(|u| u.ratings.len() >= 2).collect();
    shared.sort_by_key(|u| u.cluster);
    let mut sizes: BTreeMap<usize, usize> = BTreeMap::new();
    for unit in &shared {
        *sizes.entry(unit.ratings.len()).or_default() += 1;
    }
    let fleiss_raters = sizes.iter().max_by_key(|(_, count)| **count).map(|(size, _)| *size);
    // Sets without a shared unit are not resampled.
    let sets = shared.chunk_by(|a, b| a.cluster == b.cluster).count();
    let groups = Groups::new(sets, MAX_GROUPS, resampling);
    let mut sums = Sums::new(groups.count(), Tally::WIDTH);
    let (mut strict_sets, mut fleiss_sets) = (0, 0);
    for (i, of_set) in shared.chunk_by(|a, b| a.cluster == b.cluster).enumerate() {
        let mut tally = Tally::default();
        for unit in of_set {
            tally.count(unit, fleiss_raters.unwrap_or(0));
        }
        strict_sets += usize::from(tally.strict > 0.0);
        fleiss_sets += usize::from(tally.fleiss_units > 0.0);
        tally.add_to(sums.row(groups.of(i)));
    }
    let values = Tally::of_sums(&sums.total()).figures();
    let intervals = bootstrap_sums(&sums, values.len(), resampling, |sums| Tally::of_sums(sums).figures());
    let mut is_labeler = Vec::new();
    for (labeler, _) in shared.iter().flat_map(|unit| &unit.ratings) {
        if is_labeler.len() <= *labeler {
            is_labeler.resize(labeler + 1, false);
        }
        is_labeler[*labeler] = true;
    }
    let n = [sets, strict_sets, sets, sets, fleiss_sets];
    let of = |i: usize| of_few(figure(values[i], intervals[i], n[i]), n[i], i < 2);
    Agreement {
        units: shared.len(),
        sets,
        labelers: is_labeler.into_iter().filter(|is| *is).count(),
        pairwise: of(0),
        pairwise_without_ties: of(1),
        alpha_ordinal: of(2),
        alpha_nominal: of(3),
        fleiss_kappa: of(4),
        fleiss_raters: fleiss_raters.filter(|_| values[4].is_some()),
        cohen: cohen(&shared, resampling),
    }
}

/// The units that two labelers share.
#[derive(Default)]
struct SharedUnits {
    units: usize,
    sets: usize,
    /// The set of the last unit that was counted.
    last: Option<usize>,
}

impl SharedUnits {
    /// Counts a unit; units come set by set. Returns the number of its set among those of the pair.
    fn count(&mut self, cluster: usize) -> usize {
        self.units += 1;
        if self.last != Some(cluster) {
            self.last = Some(cluster);
            self.sets += 1;
        }
        self.sets - 1
    }
}

/// κ of the pairs of labelers with the most shared units. `units` are ordered by set.
fn cohen(units: &[&Unit], resampling: Resampling) -> Vec<Cohen> {
    let mut shared: HashMap<(usize, usize), SharedUnits> = HashMap::new();
    for unit in units {
        for (pair, _) in labeler_pairs(unit) {
            shared.entry(pair).or_default().count(unit.cluster);
        }
    }
    let mut most_shared: Vec<((usize, usize), SharedUnits)> = shared.into_iter().collect();
    most_shared.sort_by_key(|(pair, shared)| (std::cmp::Reverse(shared.units), *pair));
    most_shared.truncate(MAX_LABELER_PAIRS);
    // Pairs with as many groups as others are drawn together: their tables are columns of the same sums.
    let mut columns: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    let groups: Vec<Groups> =
        most_shared.iter().map(|(_, shared)| Groups::new(shared.sets, MAX_PAIR_GROUPS, resampling)).collect();
    for (i, groups) in groups.iter().enumerate() {
        columns.entry(groups.count()).or_default().push(i);
    }
    let mut place = vec![0; groups.len()];
    for pairs in columns.values() {
        pairs.iter().enumerate().for_each(|(column, i)| place[*i] = column * CATEGORIES * CATEGORIES);
    }
    let width = |pairs: &Vec<usize>| pairs.len() * CATEGORIES * CATEGORIES;
    let mut sums: BTreeMap<usize, Sums> =
        columns.iter().map(|(count, pairs)| (*count, Sums::new(*count, width(pairs)))).collect();
    let rank: HashMap<(usize, usize), usize> =
        most_shared.iter().enumerate().map(|(i, (pair, _))| (*pair, i)).collect();
    let mut counted: Vec<SharedUnits> = most_shared.iter().map(|_| SharedUnits::default()).collect();
    for unit in units {
        for (pair, (a, b)) in labeler_pairs(unit) {
            let Some(i) = rank.get(&pair).copied() else { continue };
            let set = counted[i].count(unit.cluster);
            if let Some(sums) = sums.get_mut(&groups[i].count()) {
                sums.row(groups[i].of(set))[place[i] + a * CATEGORIES + b] += 1.0;
            }
        }
    }
    let mut found: Vec<Option<Cohen>> = most_shared.iter().map(|_| None).collect();
    for (count, pairs) in &columns {
        let sums = &sums[count];
        let whole: Vec<Table> = sums.total().chunks(CATEGORIES * CATEGORIES).map(table_of).collect();
        let intervals = bootstrap_sums(sums, pairs.len(), resampling, |sums| {
            sums.chunks(CATEGORIES * CATEGORIES).map(|table| kappa(&table_of(table), false)).collect()
        });
        for ((i, table), interval) in pairs.iter().zip(&whole).zip(intervals) {
            let sets = most_shared[*i].1.sets;
            found[*i] = Some(Cohen {
                pair: most_shared[*i].0,
                kappa: of_few(figure(kappa(table, false), interval, sets), sets, false),
                weighted_kappa: kappa(table, true),
            });
        }
    }
    found.into_iter().flatten().collect()
}

/// Each pair of labelers of a unit, the lower index first, with their categories.
fn labeler_pairs(unit: &Unit) -> impl Iterator<Item = ((usize, usize), (usize, usize))> {
    unit.ratings.iter().enumerate().flat_map(move |(i, (first, a))| {
        unit.ratings[i + 1..].iter().map(move |(second, b)| {
            if first < second { ((*first, *second), (*a, *b)) } else { ((*second, *first), (*b, *a)) }
        })
    })
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
        let a = agreement(&perfect, QUICK);
        for figure in [a.pairwise, a.alpha_ordinal, a.alpha_nominal, a.fleiss_kappa, a.cohen[0].kappa] {
            let figure = figure.unwrap();
            assert_eq!((figure.value, figure.low, figure.high), (1.0, Some(1.0), Some(1.0)));
        }
        assert_eq!((a.units, a.sets, a.labelers, a.fleiss_raters, a.cohen.len()), (30, 30, 3, Some(3), 3));
        // Always the opposite: worse than chance.
        let opposite: Vec<_> = (0..20).map(|i| unit(i, &[0, 2])).collect();
        let a = agreement(&opposite, QUICK);
        assert_eq!(a.pairwise.unwrap().value, 0.0);
        assert!(a.alpha_ordinal.unwrap().value < -0.9);
    }

    #[test]
    fn nothing_to_compare_is_no_figure() {
        let a = agreement(&[unit(0, &[1]), unit(1, &[])], QUICK);
        assert_eq!((a.pairwise, a.alpha_ordinal, a.fleiss_kappa, a.cohen.len()), (None, None, None, 0));
        // All the same answer: agreement is whole, but chance would give it too.
        let same: Vec<_> = (0..5).map(|i| unit(i, &[2, 2])).collect();
        let a = agreement(&same, QUICK);
        assert_eq!((a.pairwise.unwrap().value, a.alpha_nominal, a.fleiss_kappa), (1.0, None, None));
    }

    #[test]
    fn units_of_one_set_are_resampled_together() {
        // The same twenty units, in twenty sets or in two: the second interval must be wider.
        let rows: Vec<[usize; 2]> =
            (0..20).map(|i| [if i % 3 == 0 { 0 } else { 2 }, if i < 10 { 0 } else { 2 }]).collect();
        let of = |cluster: &dyn Fn(usize) -> usize| {
            let units: Vec<_> = rows.iter().enumerate().map(|(i, r)| unit(cluster(i), r)).collect();
            agreement(&units, QUICK).pairwise.unwrap()
        };
        let (apart, together) = (of(&|i| i), of(&|i| i / 10));
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
        let a = agreement(&units, QUICK);
        let figure = a.pairwise.unwrap();
        assert_eq!((a.units, figure.n, figure.value), (12, 4, 0.25));
        let four = share(1.0, 4).unwrap();
        assert!(figure.low.unwrap() <= four.low.unwrap() && figure.high.unwrap() >= four.high.unwrap(), "{figure:?}");
        assert_eq!(a.alpha_ordinal.unwrap().low, None, "no interval of four sets");
    }
}

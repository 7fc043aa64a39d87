//! Figures of one dimension of a rubric: how it was rated, and how far labelers agree on the same completion.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::agreement::{Distance, add_coincidences, alpha};
use super::statistics::{Figure, Resampling, bootstrap, figure, of_few};
use crate::domain::{CompletionId, Dimension, DimensionKind, GivenRating, LabelerId, RatingValue, SetId};

/// Tags are listed up to this many.
const MAX_TAGS: usize = 20;

/// How a dimension was rated. Intervals resample whole sets.
#[derive(Clone, Debug, PartialEq, Serialize, schemars::JsonSchema)]
pub struct DimensionFigures {
    pub key: String,
    /// By language.
    pub label: BTreeMap<String, String>,
    pub kind: DimensionKind,
    pub ratings: usize,
    pub completions: usize,
    pub labelers: usize,
    /// Mean of `likert`, share of yes of `flag`; null for `tags` and without ratings. `n` counts sets.
    pub mean: Option<Figure>,
    /// How often each value was given: 1 to the highest of `likert`; no, yes of `flag`; empty for `tags`.
    pub counts: Vec<usize>,
    /// The most frequent tags with how often they were given.
    pub tags: Vec<TagCount>,
    /// Krippendorff's α, ordinal for `likert` and nominal for `flag`. Null for `tags`, and where no completion has two
    /// ratings or all ratings are the same.
    pub alpha: Option<Figure>,
    /// Share of pairs of labelers who gave the same completion the same value.
    pub same: Option<Figure>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct TagCount {
    pub tag: String,
    pub n: usize,
}

/// Sums of one set; additive, so that a resampled set only changes its weight.
#[derive(Clone)]
struct Tally {
    ratings: f64,
    sum: f64,
    /// Of values, both orders of each pair of ratings of a completion.
    coincidences: Vec<Vec<f64>>,
    pairs: f64,
    same: f64,
}

impl Tally {
    fn new(categories: usize) -> Self {
        let coincidences = vec![vec![0.0; categories]; categories];
        Self { ratings: 0.0, sum: 0.0, coincidences, pairs: 0.0, same: 0.0 }
    }

    fn add(&mut self, other: &Self, weight: f64) {
        if weight == 0.0 {
            return;
        }
        self.ratings += weight * other.ratings;
        self.sum += weight * other.sum;
        self.pairs += weight * other.pairs;
        self.same += weight * other.same;
        // Most sets have one labeler, and nothing here.
        if other.pairs > 0.0 {
            for (row, more) in self.coincidences.iter_mut().zip(&other.coincidences) {
                for (cell, more) in row.iter_mut().zip(more) {
                    *cell += weight * more;
                }
            }
        }
    }

    /// Adds the categories that labelers gave one completion; `worth` is what each category adds to the mean.
    fn count(&mut self, given: &[usize], worth: impl Fn(usize) -> f64) {
        add_coincidences(&mut self.coincidences, given);
        for (i, a) in given.iter().enumerate() {
            self.ratings += 1.0;
            self.sum += worth(*a);
            for b in &given[i + 1..] {
                self.pairs += 1.0;
                self.same += f64::from(a == b);
            }
        }
    }

    /// Mean, α and the share of equal pairs.
    fn figures(&self, distance: Distance) -> Vec<Option<f64>> {
        let ratio = |a: f64, b: f64| (b > 0.0).then(|| a / b);
        vec![ratio(self.sum, self.ratings), alpha(&self.coincidences, distance), ratio(self.same, self.pairs)]
    }
}

/// The figures of `dimension` over the ratings of its rubric; those of other dimensions are passed over.
pub fn figures(dimension: &Dimension, given: &[&GivenRating], resampling: Resampling) -> DimensionFigures {
    let given: Vec<&GivenRating> = given.iter().copied().filter(|g| g.rating.dimension == dimension.key).collect();
    let completions: BTreeSet<&CompletionId> = given.iter().map(|g| &g.rating.completion_id).collect();
    let labelers: BTreeSet<&LabelerId> = given.iter().map(|g| &g.labeler_id).collect();
    let mut found = DimensionFigures {
        key: dimension.key.clone(),
        label: dimension.label.clone(),
        kind: dimension.kind,
        ratings: given.len(),
        completions: completions.len(),
        labelers: labelers.len(),
        mean: None,
        counts: Vec::new(),
        tags: Vec::new(),
        alpha: None,
        same: None,
    };
    let (categories, first, distance) = match dimension.kind {
        DimensionKind::Likert => (dimension.points.unwrap_or(0).max(0) as usize, 1.0, Distance::Ordinal),
        DimensionKind::Flag => (2, 0.0, Distance::Nominal),
        DimensionKind::Tags => {
            found.tags = tags(&given);
            return found;
        }
    };
    let category = |value: &RatingValue| match value {
        RatingValue::Likert(n) => usize::try_from(n - 1).ok().filter(|c| *c < categories),
        RatingValue::Flag(yes) => Some(usize::from(*yes)),
        RatingValue::Tags(_) => None,
    };
    let mut by_completion: BTreeMap<(&SetId, &CompletionId), Vec<usize>> = BTreeMap::new();
    found.counts = vec![0; categories];
    for one in &given {
        let Some(category) = category(&one.rating.value) else { continue };
        found.counts[category] += 1;
        by_completion.entry((&one.set_id, &one.rating.completion_id)).or_default().push(category);
    }
    let mut by_set: BTreeMap<&SetId, Tally> = BTreeMap::new();
    for ((set, _), values) in &by_completion {
        let tally = by_set.entry(set).or_insert_with(|| Tally::new(categories));
        tally.count(values, |c| first + c as f64);
    }
    let tallies: Vec<Tally> = by_set.into_values().collect();
    let sum = |counts: &dyn Fn(usize) -> f64| {
        let mut all = Tally::new(categories);
        for (i, tally) in tallies.iter().enumerate() {
            all.add(tally, counts(i));
        }
        all
    };
    let values = sum(&|_| 1.0).figures(distance);
    let intervals = bootstrap(tallies.len(), values.len(), resampling, |counts| sum(&|i| counts[i]).figures(distance));
    let shared = tallies.iter().filter(|t| t.pairs > 0.0).count();
    let is_flag = dimension.kind == DimensionKind::Flag;
    let of = |i: usize, n: usize, is_share: bool| of_few(figure(values[i], intervals[i], n), n, is_share);
    found.mean = of(0, tallies.len(), is_flag);
    found.alpha = of(1, shared, false);
    found.same = of(2, shared, true);
    found
}

/// The most frequent first, equals by name.
fn tags(given: &[&GivenRating]) -> Vec<TagCount> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for one in given {
        if let RatingValue::Tags(tags) = &one.rating.value {
            tags.iter().for_each(|tag| *counts.entry(tag).or_default() += 1);
        }
    }
    let mut counts: Vec<TagCount> = counts.into_iter().map(|(tag, n)| TagCount { tag: tag.to_owned(), n }).collect();
    counts.sort_by(|a, b| (b.n, &a.tag).cmp(&(a.n, &b.tag)));
    counts.truncate(MAX_TAGS);
    counts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Rating;

    fn dimension(kind: DimensionKind, points: Option<i64>) -> Dimension {
        let label = BTreeMap::from([("en".to_owned(), "Quality".to_owned())]);
        let (low, high) = (BTreeMap::new(), BTreeMap::new());
        Dimension { key: "q".into(), label, kind, required: true, points, low, high, suggestions: vec![] }
    }

    /// (set, labeler, value), of one completion in each set.
    fn given(rows: &[(&str, &str, RatingValue)]) -> Vec<GivenRating> {
        let one = |(set, labeler, value): &(&str, &str, RatingValue)| GivenRating {
            rubric_version: "v".into(),
            set_id: (*set).into(),
            labeler_id: (*labeler).into(),
            rating: Rating {
                completion_id: format!("c{set}").as_str().into(),
                dimension: "q".into(),
                value: value.clone(),
            },
        };
        rows.iter().map(one).collect()
    }

    const NONE: Resampling = Resampling { replicates: 0, seed: 0 };

    /// The reliability data of Krippendorff's "Computing Krippendorff's Alpha-Reliability" (2011), section C: four
    /// observers, twelve units, ordinal α = 0.815; nominal α = 0.743.
    #[test]
    fn agreement_is_krippendorffs() {
        let table: [(&str, [i64; 12]); 4] = [
            ("a", [1, 2, 3, 3, 2, 1, 4, 1, 2, 0, 0, 0]),
            ("b", [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, 0, 3]),
            ("c", [0, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, 0]),
            ("d", [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, 0]),
        ];
        let units: Vec<String> = (0..12).map(|u| format!("{u:02}")).collect();
        let mut rows = Vec::new();
        for (labeler, values) in &table {
            for (unit, value) in units.iter().zip(values) {
                if *value > 0 {
                    rows.push((unit.as_str(), *labeler, RatingValue::Likert(*value)));
                }
            }
        }
        let said = given(&rows);
        let said: Vec<&GivenRating> = said.iter().collect();
        let found = figures(&dimension(DimensionKind::Likert, Some(5)), &said, NONE);
        let value = found.alpha.unwrap().value;
        assert!((value - 0.815).abs() < 5e-4, "{value}");
        assert_eq!((found.ratings, found.completions, found.labelers), (41, 12, 4));
        assert_eq!(found.counts, [9, 13, 11, 5, 3]);
        let mean = found.mean.unwrap();
        assert!((mean.value - 103.0 / 41.0).abs() < 1e-12, "{}", mean.value);
        assert_eq!(mean.n, 12);
        assert_eq!(found.alpha.unwrap().n, 11, "one unit has a single rating");
    }

    #[test]
    fn flags_have_a_share_and_nominal_agreement() {
        let yes = RatingValue::Flag(true);
        let no = RatingValue::Flag(false);
        let said = given(&[
            ("1", "a", yes.clone()),
            ("1", "b", yes.clone()),
            ("2", "a", no.clone()),
            ("2", "b", no.clone()),
            ("3", "a", no.clone()),
            ("3", "b", yes),
            ("4", "a", no),
        ]);
        let said: Vec<&GivenRating> = said.iter().collect();
        let found = figures(&dimension(DimensionKind::Flag, None), &said, NONE);
        assert_eq!(found.counts, [4, 3]);
        assert!((found.mean.unwrap().value - 3.0 / 7.0).abs() < 1e-12);
        assert!((found.same.unwrap().value - 2.0 / 3.0).abs() < 1e-12);
        // Observed disagreement 2 of 6; expected 2·3·3 / (6·5): α = 1 − (1/3) / (3/5).
        let alpha = found.alpha.unwrap().value;
        assert!((alpha - (1.0 - (1.0 / 3.0) / 0.6)).abs() < 1e-12, "{alpha}");
    }

    #[test]
    fn tags_are_counted_and_nothing_gives_nothing() {
        let tags = |list: &[&str]| RatingValue::Tags(list.iter().map(|t| (*t).to_owned()).collect());
        let said =
            given(&[("1", "a", tags(&["long", "kind"])), ("1", "b", tags(&["long"])), ("2", "a", tags(&["odd"]))]);
        let said: Vec<&GivenRating> = said.iter().collect();
        let found = figures(&dimension(DimensionKind::Tags, None), &said, NONE);
        let counted: Vec<_> = found.tags.iter().map(|t| (t.tag.as_str(), t.n)).collect();
        assert_eq!(counted, [("long", 2), ("kind", 1), ("odd", 1)]);
        assert_eq!((found.mean, found.alpha), (None, None));
        let empty = figures(&dimension(DimensionKind::Likert, Some(3)), &[], NONE);
        assert_eq!((empty.ratings, empty.mean, empty.alpha, empty.counts), (0, None, None, vec![0; 3]));
    }
}

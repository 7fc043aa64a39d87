//! Figures of one dimension of a rubric: how it was rated, and how far labelers agree on the same completion.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::agreement::{Distance, add_coincidences, alpha};
use super::bootstrap::{Groups, MAX_GROUPS, Sums, bootstrap_sums};
use super::statistics::{Figure, Resampling, figure, of_few};
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

/// Where the sums of a set are, after the coincidences of values (both orders of each pair of ratings of a completion).
struct Layout {
    categories: usize,
}

impl Layout {
    const RATINGS: usize = 0;
    const SUM: usize = 1;
    const PAIRS: usize = 2;
    const SAME: usize = 3;

    fn width(&self) -> usize {
        self.categories * self.categories + 4
    }

    /// Adds the categories that labelers gave one completion; `worth` is what each category adds to the mean.
    fn count(&self, sums: &mut [f64], given: &[usize], worth: impl Fn(usize) -> f64) {
        let (coincidences, rest) = sums.split_at_mut(self.categories * self.categories);
        let mut rows: Vec<&mut [f64]> = coincidences.chunks_mut(self.categories.max(1)).collect();
        add_coincidences(&mut rows, given);
        for (i, a) in given.iter().enumerate() {
            rest[Self::RATINGS] += 1.0;
            rest[Self::SUM] += worth(*a);
            for b in &given[i + 1..] {
                rest[Self::PAIRS] += 1.0;
                rest[Self::SAME] += f64::from(a == b);
            }
        }
    }

    /// Mean, α and the share of equal pairs.
    fn figures(&self, sums: &[f64], distance: Distance) -> Vec<Option<f64>> {
        let (coincidences, rest) = sums.split_at(self.categories * self.categories);
        let rows: Vec<&[f64]> = coincidences.chunks(self.categories.max(1)).collect();
        let ratio = |a: usize, b: usize| (rest[b] > 0.0).then(|| rest[a] / rest[b]);
        vec![ratio(Self::SUM, Self::RATINGS), alpha(&rows, distance), ratio(Self::SAME, Self::PAIRS)]
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
    let by_completion: Vec<((&SetId, &CompletionId), Vec<usize>)> = by_completion.into_iter().collect();
    let by_set: Vec<_> = by_completion.chunk_by(|a, b| a.0.0 == b.0.0).collect();
    let sets = by_set.len();
    let groups = Groups::new(sets, MAX_GROUPS, resampling);
    let layout = Layout { categories };
    let mut sums = Sums::new(groups.count(), layout.width());
    for (i, of_set) in by_set.iter().enumerate() {
        for (_, values) in *of_set {
            layout.count(sums.row(groups.of(i)), values, |c| first + c as f64);
        }
    }
    let shared = by_set.iter().filter(|of_set| of_set.iter().any(|(_, values)| values.len() > 1)).count();
    let values = layout.figures(&sums.total(), distance);
    let intervals = bootstrap_sums(&sums, values.len(), resampling, |sums| layout.figures(sums, distance));
    let is_flag = dimension.kind == DimensionKind::Flag;
    let of = |i: usize, n: usize, is_share: bool| of_few(figure(values[i], intervals[i], n), n, is_share);
    found.mean = of(0, sets, is_flag);
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

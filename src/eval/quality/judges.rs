//! Agreement of language models that rank sets with the people who ranked the same sets.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::agreement::{self, Unit};
use super::facts::{Author, Facts, Judged};
use super::statistics::{Figure, Resampling};
use crate::domain::{
    CompletionId, GivenRating, LabelerId, ModelJudgment, ModelLabeler, ModelVersionId, RatingValue, Rubric, SetId,
};

/// A judge's agreement with people: each pair of completions counts once for each person who ranked it. Intervals are
/// bootstrapped over sets.
#[derive(Clone, Debug, PartialEq, Serialize, schemars::JsonSchema)]
pub struct JudgeAgreement {
    /// Sets that the judge and at least one person ranked.
    pub shared_sets: usize,
    /// Compared pairs of completions, once for each person.
    pub pairs: usize,
    /// Share of pairs on which judge and person say the same, ties included.
    pub same: Option<Figure>,
    /// The same of the pairs on which both have a preference.
    pub same_without_ties: Option<Figure>,
    /// Cohen's κ: 0 is the agreement of chance, 1 is complete.
    pub kappa: Option<Figure>,
    /// κ with linear weights: a tie is half as far from a preference as the opposite is.
    pub weighted_kappa: Option<f64>,
}

/// Agreement on the pairs that have a completion of one model version.
#[derive(Clone, Debug, PartialEq, Serialize, schemars::JsonSchema)]
pub struct VersionAgreement {
    pub model_version_id: ModelVersionId,
    #[serde(flatten)]
    pub agreement: JudgeAgreement,
}

/// Agreement of the judge's ranking with people's ratings on one dimension of a rubric: of two completions that a
/// person rated, the one with the higher rating, or with yes, counts as preferred.
#[derive(Clone, Debug, PartialEq, Serialize, schemars::JsonSchema)]
pub struct DimensionAgreement {
    /// Version of the rubric.
    pub rubric: String,
    /// Key of a dimension of kind `likert` or `flag`.
    pub dimension: String,
    /// Of the dimension, by language.
    pub label: BTreeMap<String, String>,
    #[serde(flatten)]
    pub agreement: JudgeAgreement,
}

/// Figures of one judge that was told one text about good answers.
#[derive(Clone, Debug, PartialEq, Serialize, schemars::JsonSchema)]
pub struct JudgeFigures {
    pub labeler_id: LabelerId,
    pub name: String,
    /// What the judge was told about good answers.
    pub criteria: String,
    /// Sets that the judge ranked by these criteria.
    pub sets: usize,
    /// Mean doubt over these sets, 0 to 1.
    pub doubt: f64,
    #[serde(flatten)]
    pub agreement: JudgeAgreement,
    /// By model version that wrote one of the two completions, with the most compared pairs first.
    pub versions: Vec<VersionAgreement>,
    /// By dimension of each rubric by which people rated the same sets, in the order of the rubrics.
    pub dimensions: Vec<DimensionAgreement>,
}

/// People's ratings, and the rubrics that they are by.
#[derive(Clone, Copy)]
pub struct Rated<'a> {
    pub rubrics: &'a [Rubric],
    pub ratings: &'a [GivenRating],
}

/// A unit of judge (0) and person (1), with the authors of its two completions.
struct Compared {
    unit: Unit,
    authors: [Option<usize>; 2],
}

/// What people said about each set, by set.
struct People<'a> {
    facts: &'a Facts,
    /// Index of each judged set.
    sets: HashMap<&'a SetId, usize>,
    rankings: Vec<Vec<&'a Judged>>,
}

impl<'a> People<'a> {
    fn new(facts: &'a Facts) -> Self {
        let mut rankings = vec![Vec::new(); facts.sets.len()];
        for judged in facts.compared() {
            rankings[judged.set].push(judged);
        }
        let sets = facts.sets.iter().enumerate().map(|(i, set)| (&set.id, i)).collect();
        Self { facts, sets, rankings }
    }

    /// The pairs of the judgment's set, once for each person who ranked it.
    fn compare(&self, judgment: &ModelJudgment) -> Vec<Compared> {
        let Some(&set) = self.sets.get(&judgment.set_id) else { return Vec::new() };
        let mut tiers: HashMap<usize, i64> = HashMap::new();
        for item in &self.facts.sets[set].items {
            let id = &self.facts.items[*item].id;
            tiers.extend(judgment.items.iter().find(|(known, _)| known == id).map(|(_, tier)| (*item, *tier)));
        }
        let mut compared = Vec::new();
        for (a, b, order) in self.rankings[set].iter().flat_map(|judged| judged.pairs()) {
            let (Some(first), Some(second)) = (tiers.get(&a), tiers.get(&b)) else { continue };
            let ratings = vec![(0, category(first.cmp(second))), (1, category(order))];
            let authors = [a, b].map(|item| self.facts.items[item].author);
            compared.push(Compared { unit: Unit { cluster: set, ratings }, authors });
        }
        compared
    }
}

/// The category of a pair whose tiers are in this order.
fn category(order: Ordering) -> usize {
    match order {
        Ordering::Greater => 0,
        Ordering::Equal => agreement::TIE,
        Ordering::Less => 2,
    }
}

fn agree(units: &[Unit], resampling: Resampling) -> JudgeAgreement {
    let found = agreement::agreement(units, resampling);
    let cohen = found.cohen.first();
    JudgeAgreement {
        shared_sets: found.sets,
        pairs: found.units,
        same: found.pairwise,
        same_without_ties: found.pairwise_without_ties,
        kappa: cohen.and_then(|cohen| cohen.kappa),
        weighted_kappa: cohen.and_then(|cohen| cohen.weighted_kappa),
    }
}

/// Figures of each judge by each of its criteria, in the order of `judges` and of the criteria's first use.
pub fn figures(
    facts: &Facts,
    judgments: &[ModelJudgment],
    judges: &[ModelLabeler],
    rated: Rated<'_>,
    resampling: Resampling,
) -> Vec<JudgeFigures> {
    let people = People::new(facts);
    let levels = levels(rated.ratings);
    let mut all = Vec::new();
    for judge in judges {
        let mut by_criteria: Vec<(&str, Vec<&ModelJudgment>)> = Vec::new();
        for judgment in judgments.iter().filter(|judgment| judgment.labeler_id == judge.id) {
            match by_criteria.iter_mut().find(|(criteria, _)| *criteria == judgment.criteria) {
                Some((_, of_criteria)) => of_criteria.push(judgment),
                None => by_criteria.push((&judgment.criteria, vec![judgment])),
            }
        }
        for (criteria, judgments) in by_criteria {
            let compared: Vec<Compared> = judgments.iter().flat_map(|judgment| people.compare(judgment)).collect();
            let units: Vec<Unit> = compared.iter().map(|one| one.unit.clone()).collect();
            all.push(JudgeFigures {
                labeler_id: judge.id.clone(),
                name: judge.name.clone(),
                criteria: criteria.to_owned(),
                sets: judgments.len(),
                doubt: judgments.iter().map(|judgment| judgment.doubt).sum::<f64>() / judgments.len() as f64,
                agreement: agree(&units, resampling),
                versions: by_version(facts, &compared, resampling),
                dimensions: by_dimension(&levels, &judgments, rated.rubrics, resampling),
            });
        }
    }
    all
}

fn by_version(facts: &Facts, compared: &[Compared], resampling: Resampling) -> Vec<VersionAgreement> {
    let mut units: BTreeMap<usize, Vec<Unit>> = BTreeMap::new();
    for one in compared {
        let [first, second] = one.authors;
        for author in first.into_iter().chain(second.filter(|_| second != first)) {
            units.entry(author).or_default().push(one.unit.clone());
        }
    }
    let version = |(author, units): (usize, Vec<Unit>)| match &facts.authors[author] {
        Author::Version(id) => {
            Some(VersionAgreement { model_version_id: id.clone(), agreement: agree(&units, resampling) })
        }
        Author::Human => None,
    };
    let mut all: Vec<VersionAgreement> = units.into_iter().filter_map(version).collect();
    all.sort_by_key(|version| std::cmp::Reverse(version.agreement.pairs));
    all
}

/// A person's ratings of a set's completions on one dimension: 1 to the highest number, or 0 and 1 for no and yes.
type Levels<'a> = HashMap<&'a CompletionId, i64>;
/// By rubric, dimension and set: the ratings of each person.
type ByDimension<'a> = HashMap<(&'a str, &'a str, &'a SetId), BTreeMap<&'a LabelerId, Levels<'a>>>;

fn levels(ratings: &[GivenRating]) -> ByDimension<'_> {
    let mut all = ByDimension::new();
    for one in ratings {
        let level = match one.rating.value {
            RatingValue::Likert(n) => n,
            RatingValue::Flag(yes) => i64::from(yes),
            RatingValue::Tags(_) => continue,
        };
        let key = (one.rubric_version.as_str(), one.rating.dimension.as_str(), &one.set_id);
        let of_person = all.entry(key).or_default().entry(&one.labeler_id).or_default();
        of_person.insert(&one.rating.completion_id, level);
    }
    all
}

fn by_dimension(
    levels: &ByDimension<'_>,
    judgments: &[&ModelJudgment],
    rubrics: &[Rubric],
    resampling: Resampling,
) -> Vec<DimensionAgreement> {
    let mut all = Vec::new();
    for rubric in rubrics {
        for dimension in &rubric.definition.dimensions {
            let mut units = Vec::new();
            for (cluster, judgment) in judgments.iter().enumerate() {
                let key = (rubric.version.as_str(), dimension.key.as_str(), &judgment.set_id);
                for of_person in levels.get(&key).into_iter().flat_map(BTreeMap::values) {
                    units.extend(rated_pairs(judgment, of_person, cluster));
                }
            }
            if !units.is_empty() {
                all.push(DimensionAgreement {
                    rubric: rubric.version.clone(),
                    dimension: dimension.key.clone(),
                    label: dimension.label.clone(),
                    agreement: agree(&units, resampling),
                });
            }
        }
    }
    all
}

/// A unit of judge (0) and person (1) for every two completions that the person rated.
fn rated_pairs(judgment: &ModelJudgment, levels: &Levels<'_>, cluster: usize) -> Vec<Unit> {
    let both: Vec<(i64, i64)> =
        judgment.items.iter().filter_map(|(id, tier)| Some((*tier, *levels.get(id)?))).collect();
    let mut units = Vec::new();
    for (i, a) in both.iter().enumerate() {
        for b in &both[i + 1..] {
            // A lower tier is better, and a higher rating.
            let ratings = vec![(0, category(a.0.cmp(&b.0))), (1, category(b.1.cmp(&a.1)))];
            units.push(Unit { cluster, ratings });
        }
    }
    units
}

/// How much a set deserves people's judgment, by what judges said about it.
#[derive(Clone, Debug, PartialEq)]
pub struct SetUrgency {
    pub set_id: SetId,
    /// The largest doubt of a judge, 0 to 1.
    pub doubt: f64,
    /// The largest mean distance of a judge from the people who ranked the set: 0 the same, ½ a tie against a
    /// preference, 1 opposite. `None` if no person ranked it.
    pub disagreement: Option<f64>,
}

/// The urgency of every set that a judge has ranked. A judge's last judgment of a set counts.
pub fn urgencies(facts: &Facts, judgments: &[ModelJudgment]) -> Vec<SetUrgency> {
    let people = People::new(facts);
    let mut latest: HashMap<(&SetId, &LabelerId), &ModelJudgment> = HashMap::new();
    for judgment in judgments {
        latest.insert((&judgment.set_id, &judgment.labeler_id), judgment);
    }
    let mut place: HashMap<&SetId, usize> = HashMap::new();
    let mut all: Vec<SetUrgency> = Vec::new();
    for judgment in judgments {
        if latest.get(&(&judgment.set_id, &judgment.labeler_id)).is_some_and(|last| last.id != judgment.id) {
            continue;
        }
        let at = *place.entry(&judgment.set_id).or_insert_with(|| {
            all.push(SetUrgency { set_id: judgment.set_id.clone(), doubt: 0.0, disagreement: None });
            all.len() - 1
        });
        let compared = people.compare(judgment);
        let distance = |one: &Compared| one.unit.ratings[0].1.abs_diff(one.unit.ratings[1].1) as f64 / 2.0;
        let found = (!compared.is_empty()).then(|| compared.iter().map(distance).sum::<f64>() / compared.len() as f64);
        all[at].doubt = all[at].doubt.max(judgment.doubt);
        all[at].disagreement = all[at].disagreement.into_iter().chain(found).reduce(f64::max);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        CompletionOrigin, JudgedItem, JudgedSet, JudgmentId, Labeler, Outcome, Rating, Role, RubricDefinition, SetKind,
    };

    const NONE: Rated<'static> = Rated { rubrics: &[], ratings: &[] };
    const QUICK: Resampling = Resampling { replicates: 100, seed: 1 };

    /// A person's ranking of two completions of the set, whose ids are those of the set with a letter.
    fn human(set: usize, person: &str, tiers: [i64; 2]) -> JudgedSet {
        let item = |(i, tier): (usize, i64)| JudgedItem {
            completion_id: format!("{set}{}", ["a", "b"][i]).into(),
            model_version_id: Some(["old", "new"][i].into()),
            origin: CompletionOrigin::Model,
            length: 10,
            tier,
            shown_position: i as i64,
        };
        JudgedSet {
            judgment_id: JudgmentId::new(),
            set_id: set.to_string().into(),
            prompt_id: set.to_string().into(),
            labeler_id: person.into(),
            kind: SetKind::Normal,
            outcome: Outcome::Ranked,
            active_ms: 1,
            leased: true,
            created: 0,
            items: tiers.into_iter().enumerate().map(item).collect(),
        }
    }

    fn judge(set: usize, tiers: [i64; 2], criteria: &str, doubt: f64) -> ModelJudgment {
        ModelJudgment {
            id: JudgmentId::new(),
            set_id: set.to_string().into(),
            labeler_id: "j".into(),
            criteria: criteria.to_owned(),
            doubt,
            // In another order than people's.
            items: vec![(format!("{set}b").into(), tiers[1]), (format!("{set}a").into(), tiers[0])],
            created: 0,
        }
    }

    fn facts(judged: &[JudgedSet]) -> Facts {
        let person = |id: &str| Labeler::new(id.into(), id.to_owned(), Role::Labeler, 0);
        Facts::new(judged, &[], &[person("ada"), person("bob")])
    }

    fn judges() -> Vec<ModelLabeler> {
        vec![ModelLabeler { id: "j".into(), name: "wise".into(), created: 0 }]
    }

    #[test]
    fn kappa_is_that_of_the_table_of_judge_and_people() {
        // Person: first, first, second, tie. Judge: first, second, second, first. Computed by hand: observed 1/2, by
        // chance (2/4 · 2/4) + (2/4 · 1/4) + (0 · 1/4) = 3/8, so κ = (1/2 − 3/8) / (5/8) = 1/5.
        let people = [[0, 1], [0, 1], [1, 0], [0, 0]];
        let model = [[0, 1], [1, 0], [1, 0], [0, 1]];
        let judged: Vec<JudgedSet> = people.into_iter().enumerate().map(|(i, t)| human(i, "ada", t)).collect();
        let mut said: Vec<ModelJudgment> =
            model.into_iter().enumerate().map(|(i, t)| judge(i, t, "good", 0.5)).collect();
        // Nobody has ranked this one.
        said.push(judge(9, [0, 1], "good", 1.0));
        let found = figures(&facts(&judged), &said, &judges(), NONE, QUICK);
        assert_eq!(found.len(), 1);
        let one = &found[0];
        assert_eq!((one.sets, one.agreement.shared_sets, one.agreement.pairs, one.name.as_str()), (5, 4, 4, "wise"));
        assert!((one.doubt - 0.6).abs() < 1e-12);
        assert!((one.agreement.kappa.unwrap().value - 0.2).abs() < 1e-12, "{one:?}");
        assert_eq!(one.agreement.same.unwrap().value, 0.5);
        assert!((one.agreement.same_without_ties.unwrap().value - 2.0 / 3.0).abs() < 1e-12);
        let versions: Vec<(&str, usize)> =
            one.versions.iter().map(|v| (v.model_version_id.as_str(), v.agreement.pairs)).collect();
        assert_eq!(versions, [("old", 4), ("new", 4)]);
    }

    #[test]
    fn each_person_counts_and_criteria_are_apart() {
        let judged = [human(0, "ada", [0, 1]), human(0, "bob", [1, 0])];
        let said = [judge(0, [0, 1], "good", 0.0), judge(0, [1, 0], "kind", 0.0)];
        let found = figures(&facts(&judged), &said, &judges(), NONE, QUICK);
        let of: Vec<_> =
            found.iter().map(|f| (f.criteria.as_str(), f.agreement.pairs, f.agreement.same.unwrap().value)).collect();
        assert_eq!(of, [("good", 2, 0.5), ("kind", 2, 0.5)]);
    }

    #[test]
    fn dimensions_are_compared_by_their_ratings_and_apart_by_rubric() {
        let definition: RubricDefinition = serde_json::from_value(serde_json::json!({
            "name": "two", "dimensions": [
                {"key": "helpful", "label": {"en": "Helpful"}, "kind": "likert", "points": 7},
                {"key": "harmful", "label": {"en": "Harmful"}, "kind": "flag"},
                {"key": "kind_of", "label": {"en": "Kind"}, "kind": "tags"},
            ],
        }))
        .expect("a rubric");
        let rubric = |version: &str| Rubric { version: version.to_owned(), definition: definition.clone() };
        let rating = |rubric: &str, set: usize, item: &str, dimension: &str, value| GivenRating {
            rubric_version: rubric.to_owned(),
            set_id: set.to_string().into(),
            labeler_id: "ada".into(),
            rating: Rating { completion_id: format!("{set}{item}").into(), dimension: dimension.to_owned(), value },
        };
        let (likert, flag) = (RatingValue::Likert, RatingValue::Flag);
        let ratings = [
            // The judge prefers a in both sets. Ada finds a more helpful in set 0 and less in set 1.
            rating("v2", 0, "a", "helpful", likert(6)),
            rating("v2", 0, "b", "helpful", likert(2)),
            rating("v2", 1, "a", "helpful", likert(1)),
            rating("v2", 1, "b", "helpful", likert(2)),
            // Only b is harmful, so that yes is the opposite of the judge's preference.
            rating("v2", 0, "a", "harmful", flag(false)),
            rating("v2", 0, "b", "harmful", flag(true)),
            // One rated completion is no pair, and tags have no order.
            rating("v1", 0, "a", "helpful", likert(6)),
            rating("v2", 0, "a", "kind_of", RatingValue::Tags(vec!["poem".to_owned()])),
        ];
        let said = [judge(0, [0, 1], "good", 0.0), judge(1, [0, 1], "good", 0.0)];
        let rubrics = [rubric("v2"), rubric("v1")];
        let rated = Rated { rubrics: &rubrics, ratings: &ratings };
        let found = figures(&facts(&[human(0, "ada", [0, 1])]), &said, &judges(), rated, QUICK);
        let of: Vec<_> = found[0]
            .dimensions
            .iter()
            .map(|d| (d.rubric.as_str(), d.dimension.as_str(), d.agreement.pairs, d.agreement.same.unwrap().value))
            .collect();
        assert_eq!(of, [("v2", "helpful", 2, 0.5), ("v2", "harmful", 1, 0.0)]);
    }

    #[test]
    fn doubt_and_disagreement_are_urgent_by_the_last_judgment() {
        let judged = [human(0, "ada", [0, 1]), human(1, "ada", [0, 0])];
        let said = [
            judge(0, [0, 1], "good", 0.9),
            judge(1, [0, 1], "good", 0.1),
            judge(2, [0, 1], "good", 0.3),
            // The last word about set 0.
            judge(0, [1, 0], "kind", 0.2),
        ];
        let found = urgencies(&facts(&judged), &said);
        let of: Vec<_> = found.iter().map(|u| (u.set_id.as_str(), u.doubt, u.disagreement)).collect();
        assert_eq!(of, [("1", 0.1, Some(0.5)), ("2", 0.3, None), ("0", 0.2, Some(1.0))]);
    }
}

//! Figures of each labeler: pace, ties, skips, position bias, accuracy on known answers and agreement with others.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use serde::Serialize;

use super::facts::{Facts, Judged, Set};
use super::statistics::{Figure, quantile, share};
use crate::domain::{LabelerId, Outcome, SetKind};

/// One labeler's row. Shares carry Jeffreys' intervals; `None` if there is nothing to count.
#[derive(Clone, Debug, PartialEq, Serialize, schemars::JsonSchema)]
pub struct LabelerFigures {
    pub labeler_id: LabelerId,
    pub name: String,
    pub role: &'static str,
    pub active: bool,
    /// Latest revisions, skips too.
    pub judgments: usize,
    pub skip_rate: Option<Figure>,
    pub unrankable_rate: Option<Figure>,
    pub all_bad_rate: Option<Figure>,
    /// Mean share of a ranking's pairs that were given the same tier; `n` counts rankings.
    pub tie_rate: Option<Figure>,
    /// Median and nine-tenths quantile of the time at work on a judgment, ms; judgments by API have none.
    pub median_active_ms: Option<f64>,
    pub p90_active_ms: Option<f64>,
    /// Of the sets where the first-shown and the last-shown completion differ in tier, the share in which the first is
    /// preferred; ½ = no position bias. Sets with known answers are left out.
    pub left_bias: Option<Figure>,
    /// Mean share of each gold or calibration set's strict pairs that were ranked as expected; a tie
    /// counts half.
    pub gold_accuracy: Option<Figure>,
    /// Mean share of a set's pairs with a majority of the others on which this labeler agrees with it.
    /// `n` counts sets.
    pub agreement_with_others: Option<Figure>,
    /// γ of the noisy Bradley–Terry model: the labeler's weight in the consensus.
    pub attention: Option<f64>,
}

/// Accuracy of a ranking against a set's known answer: share of the strictly ordered expected pairs that are
/// ranked the same way, ties half. `None` when the answer has only ties.
pub fn met<K: Ord>(expected: &BTreeMap<K, i64>, tiers: &[(K, i64)]) -> Option<f64> {
    let (mut hits, mut pairs) = (0.0, 0.0);
    for (i, (a, tier_a)) in tiers.iter().enumerate() {
        for (b, tier_b) in &tiers[i + 1..] {
            let (Some(wanted_a), Some(wanted_b)) = (expected.get(a), expected.get(b)) else { continue };
            if wanted_a == wanted_b {
                continue;
            }
            pairs += 1.0;
            hits += if tier_a == tier_b { 0.5 } else { f64::from((wanted_a < wanted_b) == (tier_a < tier_b)) };
        }
    }
    (pairs > 0.0).then(|| hits / pairs)
}

/// What one labeler's row is computed from.
#[derive(Clone, Default)]
struct Tally {
    judgments: usize,
    skips: usize,
    unrankable: usize,
    all_bad: usize,
    /// Times at work, ms.
    pace: Vec<f64>,
    /// Σ of the share of tied pairs, and number of rankings.
    ties: f64,
    rankings: usize,
    /// Σ of the share of pairs that agree with the majority of the others, and number of sets.
    agrees: f64,
    agreeing_sets: usize,
    /// Rankings in which the completion shown first was preferred to the last, and those in which they differ.
    first: usize,
    sides: usize,
    /// Σ of the accuracy on known answers, and number of sets.
    gold: f64,
    gold_sets: usize,
}

impl Tally {
    fn add(&mut self, judged: &Judged, set: &Set) {
        self.judgments += 1;
        match judged.outcome {
            Outcome::Skip => self.skips += 1,
            Outcome::Unrankable => self.unrankable += 1,
            Outcome::AllBad => self.all_bad += 1,
            Outcome::Ranked => {}
        }
        // The time of judgments by the API or of duels in the chat is unknown, not 0.
        if judged.leased && judged.active_ms > 0 {
            self.pace.push(judged.active_ms as f64);
        }
        if judged.leased
            && set.kind == SetKind::Normal
            && let Some(first) = judged.first_against_last()
        {
            self.sides += 1;
            self.first += usize::from(first);
        }
        if judged.outcome == Outcome::Ranked
            && !set.expected.is_empty()
            && let Some(accuracy) = met(&set.expected, &judged.tiers())
        {
            self.gold += accuracy;
            self.gold_sets += 1;
        }
    }

    /// Adds a ranking of a compared set. `votes` has those of all its labelers, by pair: preferring the first,
    /// preferring the second. The pairs of one ranking are not independent: each counts once, by the share of its
    /// pairs.
    fn compare(&mut self, judged: &Judged, votes: &BTreeMap<(usize, usize), (usize, usize)>) {
        let (mut tied, mut pairs) = (0.0, 0);
        let (mut same, mut others) = (0.0, 0);
        for (a, b, order) in judged.pairs() {
            pairs += 1;
            if order.is_eq() {
                tied += 1.0;
                continue;
            }
            let (mut first, mut second) = votes.get(&(a, b)).copied().unwrap_or_default();
            if order.is_lt() {
                first -= 1;
            } else {
                second -= 1;
            }
            if first != second {
                others += 1;
                same += f64::from((first > second) == order.is_lt());
            }
        }
        if pairs > 0 {
            self.ties += tied / f64::from(pairs);
            self.rankings += 1;
        }
        if others > 0 {
            self.agrees += same / f64::from(others);
            self.agreeing_sets += 1;
        }
    }
}

/// Rows in the order of the facts' labelers.
pub fn figures(facts: &Facts, attention: &[Option<f64>]) -> Vec<LabelerFigures> {
    let mut tallies = vec![Tally::default(); facts.people.len()];
    for judged in &facts.judged {
        tallies[judged.labeler].add(judged, &facts.sets[judged.set]);
    }
    for of_set in facts.by_set().chunk_by(|a, b| a.set == b.set) {
        let mut votes: BTreeMap<(usize, usize), (usize, usize)> = BTreeMap::new();
        for (a, b, order) in of_set.iter().flat_map(|judged| judged.pairs()) {
            let vote = votes.entry((a, b)).or_default();
            match order {
                Ordering::Less => vote.0 += 1,
                Ordering::Greater => vote.1 += 1,
                Ordering::Equal => {}
            }
        }
        for judged in of_set {
            tallies[judged.labeler].compare(judged, &votes);
        }
    }
    let row = |(k, mut tally): (usize, Tally)| {
        let labeler = &facts.people[k];
        let of_all = |count: usize| share(count as f64, tally.judgments);
        tally.pace.sort_unstable_by(f64::total_cmp);
        LabelerFigures {
            labeler_id: labeler.id.clone(),
            name: labeler.name.clone(),
            role: labeler.role,
            active: labeler.active,
            judgments: tally.judgments,
            skip_rate: of_all(tally.skips),
            unrankable_rate: of_all(tally.unrankable),
            all_bad_rate: of_all(tally.all_bad),
            tie_rate: share(tally.ties, tally.rankings),
            median_active_ms: quantile(&tally.pace, 0.5),
            p90_active_ms: quantile(&tally.pace, 0.9),
            left_bias: share(tally.first as f64, tally.sides),
            gold_accuracy: share(tally.gold, tally.gold_sets),
            agreement_with_others: share(tally.agrees, tally.agreeing_sets),
            attention: attention.get(k).copied().flatten(),
        }
    };
    tallies.into_iter().enumerate().map(row).collect()
}

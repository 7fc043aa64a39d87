//! Figures of each labeler: pace, ties, skips, position bias, accuracy on known answers and agreement with others.

use std::collections::BTreeMap;

use serde::Serialize;

use super::facts::{Facts, Judged};
use super::statistics::{Figure, median, share};
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

/// Rows without names, in the order of the facts' labelers.
pub fn figures(facts: &Facts, attention: &[Option<f64>]) -> Vec<LabelerFigures> {
    // (set, pair) → (preferring the first, preferring the second) of all labelers.
    let mut votes: BTreeMap<(usize, usize, usize), (usize, usize)> = BTreeMap::new();
    for judged in facts.compared() {
        for (a, b, order) in judged.pairs() {
            let vote = votes.entry((judged.set, a, b)).or_default();
            match order {
                std::cmp::Ordering::Less => vote.0 += 1,
                std::cmp::Ordering::Greater => vote.1 += 1,
                std::cmp::Ordering::Equal => {}
            }
        }
    }
    let row = |(k, labeler): (usize, &super::facts::Person)| {
        let own: Vec<&Judged> = facts.judged.iter().filter(|j| j.labeler == k).collect();
        let of = |outcome: Outcome| own.iter().filter(|j| j.outcome == outcome).count() as f64;
        // The time of judgments by the API or of duels in the chat is unknown, not 0.
        let timed = own.iter().filter(|j| j.leased && j.active_ms > 0);
        let mut pace: Vec<f64> = timed.map(|j| j.active_ms as f64).collect();
        pace.sort_unstable_by(f64::total_cmp);
        // The pairs of one ranking are not independent: each judgment counts once, by the share of its pairs.
        let (mut ties, mut ranked) = (0.0, 0);
        let (mut agrees, mut met_others) = (0.0, 0);
        for judged in own.iter().filter(|j| facts.sets[j.set].kind == facts.compared) {
            let (mut tied, mut pairs) = (0.0, 0);
            let (mut same, mut others) = (0.0, 0);
            for (a, b, order) in judged.pairs() {
                pairs += 1;
                if order.is_eq() {
                    tied += 1.0;
                    continue;
                }
                let (mut first, mut second) = votes.get(&(judged.set, a, b)).copied().unwrap_or_default();
                if order.is_lt() {
                    first -= 1
                } else {
                    second -= 1
                }
                if first != second {
                    others += 1;
                    same += f64::from((first > second) == order.is_lt());
                }
            }
            if pairs > 0 {
                ties += tied / f64::from(pairs);
                ranked += 1;
            }
            if others > 0 {
                agrees += same / f64::from(others);
                met_others += 1;
            }
        }
        let sides: Vec<bool> = own
            .iter()
            .filter(|j| j.leased && facts.sets[j.set].kind == SetKind::Normal)
            .filter_map(|j| j.first_against_last())
            .collect();
        let gold: Vec<f64> = own
            .iter()
            .filter(|j| j.outcome == Outcome::Ranked)
            .filter_map(|j| met(&facts.sets[j.set].expected, &j.tiers()))
            .collect();
        LabelerFigures {
            labeler_id: labeler.id.clone(),
            name: labeler.name.clone(),
            role: labeler.role,
            active: labeler.active,
            judgments: own.len(),
            skip_rate: share(of(Outcome::Skip), own.len()),
            unrankable_rate: share(of(Outcome::Unrankable), own.len()),
            all_bad_rate: share(of(Outcome::AllBad), own.len()),
            tie_rate: share(ties, ranked),
            p90_active_ms: super::statistics::quantile(&pace, 0.9),
            median_active_ms: median(pace),
            left_bias: share(sides.iter().filter(|first| **first).count() as f64, sides.len()),
            gold_accuracy: share(gold.iter().sum(), gold.len()),
            agreement_with_others: share(agrees, met_others),
            attention: attention.get(k).copied().flatten(),
        }
    };
    facts.people.iter().enumerate().map(row).collect()
}

//! Figures of human judgments: agreement, labelers, biases, and preferences between versions. Pure functions of stored
//! judgments and a seed.

pub mod agreement;
pub mod bootstrap;
pub mod bradley_terry;
pub mod consensus;
pub mod facts;
mod fixed_point;
pub mod judges;
pub mod labelers;
pub mod length;
pub mod order;
pub mod ratings;
pub mod selection;
pub mod statistics;

use serde::Serialize;

pub use agreement::Agreement;
pub use facts::{Facts, FactsBuilder};
pub use labelers::LabelerFigures;
pub use length::LengthBias;
pub use statistics::{Figure, Resampling};

use crate::domain::{CompletionId, LabelerId, SetId};

/// Figures of all labelers and their judgments.
#[derive(Clone, Debug, Serialize, schemars::JsonSchema)]
#[schemars(rename = "QualityReport")]
pub struct Report {
    /// Number of compared judgments; the figures of labelers also count sets with known answers.
    pub judgments: usize,
    pub sets: usize,
    pub agreement: Agreement,
    /// Labeler ids and names of `agreement.cohen`, in its order.
    pub cohen_pairs: Vec<[(LabelerId, String); 2]>,
    pub labelers: Vec<LabelerFigures>,
    pub length: LengthBias,
    pub resampling: Resampling,
}

/// The weight of each labeler in the consensus; `None` for those without comparisons.
pub fn attention(facts: &Facts) -> (consensus::Consensus, Vec<Option<f64>>) {
    let votes = facts.votes();
    let fitted = consensus::consensus(&votes, facts.items.len(), facts.people.len());
    let mut voted = vec![false; facts.people.len()];
    for vote in &votes {
        voted[vote.by] = true;
    }
    let attention = fitted.attention.iter().zip(voted).map(|(a, voted)| voted.then_some(*a)).collect();
    (fitted, attention)
}

pub fn report(facts: &Facts, resampling: Resampling) -> Report {
    let agreement = agreement::agreement(&facts.units(), resampling);
    let name = |k: usize| (facts.people[k].id.clone(), facts.people[k].name.clone());
    Report {
        judgments: facts.compared().count(),
        sets: facts.sets.iter().filter(|s| s.kind == facts.compared).count(),
        cohen_pairs: agreement.cohen.iter().map(|c| [name(c.pair.0), name(c.pair.1)]).collect(),
        agreement,
        labelers: labelers::figures(facts, &attention(facts).1),
        length: length::length_bias(&facts.preferences(), facts.prompts, resampling),
        resampling,
    }
}

/// The consensus on one set: completions best first.
#[derive(Clone, Debug, Serialize, schemars::JsonSchema)]
pub struct SetConsensus {
    pub set_id: SetId,
    pub judgments: usize,
    /// Mean distance of two labelers on a pair of completions: 0 the same, ½ a tie against a preference, 1
    /// opposite. `None` with fewer than two rankings.
    pub disagreement: Option<f64>,
    pub completions: Vec<Scored>,
}

#[derive(Clone, Debug, Serialize, schemars::JsonSchema)]
#[schemars(rename = "CompletionScore")]
pub struct Scored {
    pub completion_id: CompletionId,
    /// Log-odds within the set.
    pub score: f64,
}

/// The consensus on every set that was ranked, in the facts' order.
pub fn set_consensus(facts: &Facts) -> Vec<SetConsensus> {
    let scores = attention(facts).0.scores;
    let split = disagreements(facts);
    let mut counts = vec![0; facts.sets.len()];
    for judged in facts.compared().filter(|j| j.pairs().next().is_some()) {
        counts[judged.set] += 1;
    }
    let one = |(set, (n, disagreement)): (&facts::Set, (usize, Option<f64>))| {
        let scored = |i: &usize| Scored { completion_id: facts.items[*i].id.clone(), score: scores[*i] };
        let mut completions: Vec<_> = set.items.iter().map(scored).collect();
        completions.sort_by(|a, b| b.score.total_cmp(&a.score));
        SetConsensus { set_id: set.id.clone(), judgments: n, disagreement, completions }
    };
    let counted = counts.into_iter().zip(split);
    facts.sets.iter().zip(counted).filter(|(_, (n, _))| *n > 0).map(one).collect()
}

/// Disagreement of the labelers on each set, 0 to 1 (see `SetConsensus::disagreement`).
pub fn disagreements(facts: &Facts) -> Vec<Option<f64>> {
    let mut sums = vec![(0.0, 0usize); facts.sets.len()];
    for unit in &facts.units() {
        for (i, (_, a)) in unit.ratings.iter().enumerate() {
            for (_, b) in &unit.ratings[i + 1..] {
                sums[unit.cluster].0 += a.abs_diff(*b) as f64 / 2.0;
                sums[unit.cluster].1 += 1;
            }
        }
    }
    sums.into_iter().map(|(sum, n)| (n > 0).then(|| sum / n as f64)).collect()
}

//! Weighted pairs from rankings.

use super::records::RankedText;

/// A pair: completion `better` was preferred to `worse`, as indices into the set. The weights of a set's pairs add up
/// to 1, so that a set of nine counts no more than a set of two (InstructGPT, section 3.5).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair {
    pub better: usize,
    pub worse: usize,
    pub weight: f32,
}

/// All pairs of different tiers; ties give none. Ordered by (better, worse).
pub fn pairs(completions: &[RankedText]) -> Vec<Pair> {
    let tiers: Vec<i64> = completions.iter().map(|c| c.tier).collect();
    let mut out = Vec::new();
    for (better, a) in tiers.iter().enumerate() {
        for (worse, b) in tiers.iter().enumerate() {
            if a < b {
                out.push(Pair { better, worse, weight: 0.0 });
            }
        }
    }
    let weight = 1.0 / out.len().max(1) as f32;
    for pair in &mut out {
        pair.weight = weight;
    }
    out
}

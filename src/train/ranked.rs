//! Ranked sets as token sequences, split by prompt: what the reward and DPO recipes read.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::step::Sequence;
use crate::data::{Comparison, PromptInput, read_comparisons};
use crate::domain::{Split, Strength};
use crate::objective::reward::{Pair, pairs_of_set};
use crate::prompt::Texts;

/// One judgment: completions of one prompt with their tiers; at least two tiers.
pub struct RankedSequences {
    pub prompt: PromptInput,
    pub sequences: Vec<Sequence>,
    pub tiers: Vec<i64>,
    /// Strength of preference from 0 to 1; 0 where it was not given.
    pub strength: f64,
}

impl RankedSequences {
    /// Tokens of all completions, prompts repeated.
    pub fn tokens(&self) -> usize {
        self.sequences.iter().map(|s| s.ids.len()).sum()
    }

    /// The pairs of the set, its first completion being number `first` of the batch.
    pub fn pairs(&self, first: usize, margin: f64) -> Vec<Pair> {
        pairs_of_set(&self.tiers, first, margin * self.strength)
    }
}

pub struct Rankings {
    pub train: Vec<RankedSequences>,
    pub heldout: Vec<RankedSequences>,
    /// Sets in which all completions tie: they teach nothing and are left out.
    pub ties: usize,
    /// How often two people who ranked the same completions agree on a pair (a tie on one side counts half):
    /// the ceiling for any model of them. `None` where nothing was ranked twice.
    pub agreement: Option<f64>,
}

/// Tiers by completion text, of every judgment of one prompt's completions.
type Judgments = BTreeMap<(String, Vec<String>), Vec<Vec<i64>>>;

/// Prompt and completion texts (sorted) of a set, and the tiers in that order.
fn note(judgments: &mut Judgments, comparison: &Comparison) {
    let mut items: Vec<(String, i64)> = comparison.completions.iter().map(|c| (c.text.clone(), c.tier)).collect();
    items.sort();
    let (texts, tiers) = items.into_iter().unzip();
    let prompt = crate::data::content_hash(&comparison.prompt.messages());
    judgments.entry((prompt, texts)).or_default().push(tiers);
}

fn agreement(judgments: &Judgments) -> Option<f64> {
    /// The order of every two completions of one judgment.
    fn orders(tiers: &[i64]) -> Vec<Ordering> {
        tiers.iter().enumerate().flat_map(|(i, a)| tiers[i + 1..].iter().map(move |b| a.cmp(b))).collect()
    }
    let (mut agree, mut pairs) = (0.0, 0.0);
    for tiers in judgments.values() {
        let all: Vec<Vec<Ordering>> = tiers.iter().map(|t| orders(t)).collect();
        for (i, a) in all.iter().enumerate() {
            for (a, b) in all[i + 1..].iter().flat_map(|b| a.iter().zip(b)) {
                pairs += 1.0;
                agree += match (a, b) {
                    (a, b) if a == b => 1.0,
                    (Ordering::Equal, _) | (_, Ordering::Equal) => 0.5,
                    _ => 0.0,
                };
            }
        }
    }
    (pairs > 0.0).then(|| agree / pairs)
}

impl Rankings {
    /// # Errors
    /// Unreadable lines, or nothing left to train on.
    pub fn read(path: &str, texts: &Texts, max_length: usize, heldout_fraction: f64) -> Result<Self> {
        let mut found = Self { train: Vec::new(), heldout: Vec::new(), ties: 0, agreement: None };
        let mut judgments = Judgments::new();
        for comparison in read_comparisons(Path::new(path)).context("comparisons")? {
            let set = encode(&comparison, texts, max_length)?;
            note(&mut judgments, &comparison);
            if set.tiers.iter().all(|tier| *tier == set.tiers[0]) {
                found.ties += 1;
            } else if comparison.side(heldout_fraction) == Split::Train {
                found.train.push(set);
            } else {
                found.heldout.push(set);
            }
        }
        if found.train.is_empty() {
            let (ties, heldout) = (found.ties, found.heldout.len());
            bail!("comparisons: no set to train on ({ties} are all ties, {heldout} are held out)");
        }
        found.agreement = agreement(&judgments);
        Ok(found)
    }
}

/// A comparison as sequences.
pub fn encode(comparison: &Comparison, texts: &Texts, max_length: usize) -> Result<RankedSequences> {
    let sequences = comparison.completions.iter().map(|completion| {
        let (ids, start) = texts.conversation(&comparison.prompt, &completion.text, max_length)?;
        Ok(Sequence { ids, start })
    });
    Ok(RankedSequences {
        prompt: comparison.prompt.clone(),
        sequences: sequences.collect::<Result<_>>()?,
        tiers: comparison.completions.iter().map(|c| c.tier).collect(),
        strength: match comparison.strength {
            Some(Strength::Significantly) => 1.0,
            Some(Strength::Clearly) => 2.0 / 3.0,
            Some(Strength::Slightly) => 1.0 / 3.0,
            Some(Strength::Barely) | None => 0.0,
        },
    })
}

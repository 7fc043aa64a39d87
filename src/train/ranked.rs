//! Ranked sets as token sequences, split by prompt: what the reward and DPO recipes read.

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
}

impl Rankings {
    /// # Errors
    /// Unreadable lines, or nothing left to train on.
    pub fn read(path: &str, texts: &Texts, max_length: usize, heldout_fraction: f64) -> Result<Self> {
        let mut found = Self { train: Vec::new(), heldout: Vec::new(), ties: 0 };
        for comparison in read_comparisons(Path::new(path)).context("comparisons")? {
            let set = encode(&comparison, texts, max_length)?;
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
        Ok(found)
    }
}

fn encode(comparison: &Comparison, texts: &Texts, max_length: usize) -> Result<RankedSequences> {
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

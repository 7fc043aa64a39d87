//! Ranked sets as token sequences, split by prompt, for the reward and preference recipes.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use super::data_report::DataReport;
use super::fit::Fit;
use super::samples::SamplePrompts;
use super::step::Sequence;
use super::token_file::TokenFile;
use crate::data::{Comparison, PromptInput, read_comparisons};
use crate::domain::{ByRating, Split, Strength};
use crate::objective::reward::{Pair, pairs_of_set};
use crate::prompt::Texts;

/// One judgment: completions of a prompt with their tiers.
pub struct RankedSequences {
    pub sequences: Vec<Sequence>,
    pub tiers: Vec<i64>,
    /// Strength of the preference from 0 to 1; 0 if it was not given.
    pub strength: f64,
    /// Of each asked dimension, the tier of every completion by its rating, if it was rated.
    pub rated: Vec<Vec<Option<i64>>>,
}

impl RankedSequences {
    /// Number of tokens of all sequences, each with the prompt.
    pub fn tokens(&self) -> usize {
        self.sequences.iter().map(|s| s.ids.len()).sum()
    }

    fn is_equal(&self, a: usize, b: usize) -> bool {
        self.sequences[a].ids == self.sequences[b].ids
    }

    /// Number of pairs of differently ranked completions with the same tokens.
    pub fn equal_pairs(&self) -> usize {
        pairs_of_set(&self.tiers, 0, 0.0).len() - self.pairs(0, 0.0).len()
    }

    /// The pairs of the set, whose first completion has index `first` in the batch. Completions with the same tokens,
    /// also as a result of truncation, are not a pair.
    pub fn pairs(&self, first: usize, margin: f64) -> Vec<Pair> {
        self.different(pairs_of_set(&self.tiers, first, margin * self.strength), first)
    }

    /// As [`pairs`](Self::pairs), by the ratings on dimension `index` of the asked ones. Completions without a rating
    /// are in no pair.
    pub fn pairs_by(&self, index: usize, first: usize) -> Vec<Pair> {
        let rated = &self.rated[index];
        let tiers: Vec<i64> = rated.iter().map(|tier| tier.unwrap_or(0)).collect();
        let mut pairs = pairs_of_set(&tiers, first, 0.0);
        let has = |i: u32| rated[i as usize - first].is_some();
        pairs.retain(|p| has(p.winner) && has(p.loser));
        self.different(pairs, first)
    }

    /// The pairs of completions with different tokens, with equal weights that sum to 1.
    fn different(&self, mut pairs: Vec<Pair>, first: usize) -> Vec<Pair> {
        pairs.retain(|p| !self.is_equal(p.winner as usize - first, p.loser as usize - first));
        let weight = 1.0 / pairs.len() as f64;
        pairs.iter_mut().for_each(|pair| pair.weight = weight);
        pairs
    }

    /// Whether some head has a pair to learn from.
    fn teaches(&self) -> bool {
        !self.pairs(0, 0.0).is_empty() || (0..self.rated.len()).any(|index| !self.pairs_by(index, 0).is_empty())
    }
}

/// The ranked sets of a file.
pub struct Rankings {
    pub train: Vec<RankedSequences>,
    pub heldout: Vec<RankedSequences>,
    /// Prompts for samples, held-out ones first.
    pub prompts: Vec<PromptInput>,
    /// Number of sets in which all completions tie. They are left out.
    pub ties: usize,
    /// Counts of what did not fit.
    pub fit: Fit,
    /// How often two people who ranked the same completions agree on a pair; a tie on one side counts half. It is an
    /// upper bound for the accuracy of a model. `None` if nothing was ranked twice.
    pub agreement: Option<f64>,
    /// Counts of the file, for the run's log and the model card.
    pub report: DataReport,
}

/// Tiers of every judgment of the same completions of a prompt, in the order of their texts; by the SHA-256 of prompt and
/// texts.
type Judgments = BTreeMap<[u8; 32], Vec<Vec<i64>>>;

/// Adds the tiers of a set.
fn note(judgments: &mut Judgments, comparison: &Comparison) {
    let mut items: Vec<(&str, i64)> = comparison.completions.iter().map(|c| (c.text.as_str(), c.tier)).collect();
    items.sort_unstable();
    let mut hash = Sha256::new_with_prefix(crate::data::content_hash(&comparison.prompt.messages()));
    for (text, _) in &items {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    }
    let tiers = items.into_iter().map(|(_, tier)| tier).collect();
    judgments.entry(hash.finalize().into()).or_default().push(tiers);
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
    /// Reads a file of rankings, with the ratings by which `by` asks to rank the completions, too.
    ///
    /// # Errors
    /// If a line is invalid, nothing is left to train on, or `tokens` cannot be written.
    pub fn read(
        path: &str,
        texts: &Texts,
        max_length: usize,
        heldout_fraction: f64,
        by: &[ByRating],
        mut tokens: TokenFile,
    ) -> Result<Self> {
        let fit = Fit::new(max_length);
        let mut prompts = SamplePrompts::default();
        let mut found = Self {
            train: Vec::new(),
            heldout: Vec::new(),
            prompts: Vec::new(),
            ties: 0,
            fit,
            agreement: None,
            report: DataReport::default(),
        };
        let mut judgments = Judgments::new();
        for comparison in read_comparisons(Path::new(path)).context("comparisons")? {
            let comparison = comparison.context("comparisons")?;
            let mut set = encode(&comparison, texts, max_length, &mut found.fit)?;
            set.rated = by.iter().map(|by| comparison.tiers_by(by)).collect();
            note(&mut judgments, &comparison);
            let (side, lengths) = (comparison.side(heldout_fraction), set.sequences.iter().map(Sequence::predicted));
            found.report.note_ranking(&comparison, &lengths.collect::<Vec<_>>(), side);
            if !set.teaches() {
                match set.tiers.iter().all(|tier| *tier == set.tiers[0]) {
                    true => found.ties += 1,
                    false => found.fit.equal_sets += 1,
                }
                continue;
            }
            set.sequences.iter_mut().try_for_each(|sequence| tokens.keep(&mut sequence.ids))?;
            prompts.note(&comparison.prompt, side);
            if side == Split::Train { &mut found.train } else { &mut found.heldout }.push(set);
        }
        tokens.finish()?;
        found.prompts = prompts.all();
        if found.train.is_empty() {
            let (ties, heldout) = (found.ties, found.heldout.len());
            let reasons = found.fit.reasons();
            bail!("comparisons: no set to train on ({ties} are all ties, {heldout} are held out{reasons})");
        }
        found.agreement = agreement(&judgments);
        Ok(found)
    }
}

/// Lengths in tokens of the prompts with their answers in a file of rankings, without truncation.
pub fn lengths(path: &str, texts: &Texts) -> Result<Vec<usize>> {
    let mut lengths = Vec::new();
    for comparison in read_comparisons(Path::new(path)).context("comparisons")? {
        let comparison = comparison.context("comparisons")?;
        let completions: Vec<&str> = comparison.completions.iter().map(|c| c.text.as_str()).collect();
        let answers = texts.answers(&comparison.prompt, &completions, usize::MAX)?;
        lengths.extend(answers.sequences.iter().map(|(ids, _)| ids.len()));
    }
    Ok(lengths)
}

/// The warning about sets without a preference.
pub fn ties_left_out(ties: usize) -> String {
    match ties {
        1 => "1 set is left out: all its answers tie".to_owned(),
        n => format!("{n} sets are left out: all answers in each of them tie"),
    }
}

/// A comparison as sequences that all begin with the same prompt tokens. Counts in `fit` what did not fit.
pub fn encode(comparison: &Comparison, texts: &Texts, max_length: usize, fit: &mut Fit) -> Result<RankedSequences> {
    let completions: Vec<&str> = comparison.completions.iter().map(|c| c.text.as_str()).collect();
    let answers = texts.answers(&comparison.prompt, &completions, max_length)?;
    fit.note_prompt(answers.prompt_cut);
    fit.note_answers(&answers.cut);
    let set = RankedSequences {
        sequences: answers.sequences.into_iter().map(|(ids, start)| Sequence { ids: ids.into(), start }).collect(),
        tiers: comparison.completions.iter().map(|c| c.tier).collect(),
        strength: match comparison.strength {
            Some(Strength::Significantly) => 1.0,
            Some(Strength::Clearly) => 2.0 / 3.0,
            Some(Strength::Slightly) => 1.0 / 3.0,
            Some(Strength::Barely) | None => 0.0,
        },
        rated: Vec::new(),
    };
    fit.equal_pairs += set.equal_pairs();
    Ok(set)
}

//! The records of data files, independent of the format.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::domain::{
    ByRating, Knowledge, LabelerKind, Outcome, PromptInput, RankedSet, RatingValue, Ratings, Split, Strength, TextSpan,
};

/// Names of file formats, as in `POST /admin/import?format=…`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// K-wise rankings with tiers: this program's format.
    Comparisons,
    /// TRL preference data: `prompt`, `chosen`, `rejected`, implicit or explicit, strings or messages.
    Trl,
    /// Anthropic HH: `chosen` and `rejected` as `\n\nHuman: … \n\nAssistant: …` texts.
    Hh,
    Demonstrations,
    Prompts,
    /// Open-Assistant message trees: every ranked group of replies is a ranking.
    Oasst,
    /// TRL preference data as a Parquet file, not as lines.
    Parquet,
}

impl Format {
    pub const ALL: &'static [Self] =
        &[Self::Comparisons, Self::Trl, Self::Hh, Self::Demonstrations, Self::Prompts, Self::Oasst, Self::Parquet];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Comparisons => "comparisons",
            Self::Trl => "trl",
            Self::Hh => "hh",
            Self::Demonstrations => "demonstrations",
            Self::Prompts => "prompts",
            Self::Oasst => "oasst",
            Self::Parquet => "parquet",
        }
    }

    /// The format of this name, or `None`.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|format| format.as_str() == name)
    }
}

/// One completion of a ranking. Tier 0 is best, equal tiers are a tie.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RankedText {
    pub text: String,
    pub tier: i64,
    /// By dimension of the line's rubric.
    #[serde(default, skip_serializing_if = "Ratings::is_empty")]
    pub ratings: Ratings,
    /// Spans marked as wrong.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub spans: Vec<TextSpan>,
}

impl RankedText {
    /// A text in its place, without ratings and spans.
    pub fn new(text: impl Into<String>, tier: i64) -> Self {
        Self { text: text.into(), tier, ratings: Ratings::new(), spans: Vec::new() }
    }
}

/// A ranked set: one line of comparisons JSONL.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Comparison {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_id: Option<String>,
    pub prompt: PromptInput,
    /// Two or more.
    pub completions: Vec<RankedText>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strength: Option<Strength>,
    /// The side of the split of the stored prompt; if absent, `split_of` its hash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<Split>,
    /// The labeler, in files that are exchanged between servers. Data of jobs and dataset versions lacks it, so that
    /// hashes do not change when a person's name is erased.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labeler: Option<String>,
    /// `model` if a language model ranked, in files that are exchanged between servers; a person if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labeler_kind: Option<LabelerKind>,
    /// Name of the project, in files that are exchanged between servers; the first if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// The labeler's knowledge before judging; blind if absent. Only blind rankings count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub knowledge: Option<Knowledge>,
    /// Explanation of a known answer, shown after the judgment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub explanation: Option<String>,
    /// Version of the rubric that the ratings of the completions are by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rubric: Option<String>,
}

impl Comparison {
    /// The line for a stored judgment; `None` when it ranks nothing (all bad, unrankable, skipped). It names nobody and
    /// has neither tags nor notes of spans, which are words of the labeler.
    pub fn from_ranked(set: &RankedSet) -> Option<Self> {
        let mut line = Self::with_words(set)?;
        for completion in &mut line.completions {
            completion.ratings.retain(|_, value| !matches!(value, RatingValue::Tags(_)));
            completion.spans.iter_mut().for_each(|span| span.note = None);
        }
        Some(line)
    }

    /// As [`Comparison::from_ranked`], with tags, notes and the labeler's id.
    pub fn signed(set: &RankedSet) -> Option<Self> {
        Some(Self { labeler: Some(set.labeler_id.to_string()), ..Self::with_words(set)? })
    }

    /// The tier of every completion by its rating on a dimension, best lowest; `None` where it has no such rating, and
    /// for all when the line is by another rubric.
    pub fn tiers_by(&self, by: &ByRating) -> Vec<Option<i64>> {
        let same = self.rubric.as_ref() == Some(&by.rubric);
        let level = |completion: &RankedText| match completion.ratings.get(&by.dimension)? {
            RatingValue::Likert(n) => Some(*n),
            RatingValue::Flag(yes) => Some(i64::from(*yes)),
            RatingValue::Tags(_) => None,
        };
        let best_first = |n: i64| if by.lower_is_better { n } else { -n };
        self.completions.iter().map(|c| level(c).filter(|_| same).map(best_first)).collect()
    }

    /// The completions that have a rating on the dimension, ranked by it; equal ratings tie. `None` when the line is by
    /// another rubric, or fewer than two completions are rated. Strength and ratings belong to the labeler's ranking and
    /// are left out.
    pub fn ranked_by(&self, by: &ByRating) -> Option<Self> {
        let rated = self.tiers_by(by).into_iter().zip(&self.completions);
        let mut rated: Vec<(i64, &RankedText)> = rated.filter_map(|(level, c)| Some((level?, c))).collect();
        rated.sort_by_key(|(level, _)| *level);
        let mut levels: Vec<i64> = rated.iter().map(|(level, _)| *level).collect();
        levels.dedup();
        let tier = |level: i64| levels.iter().position(|l| *l == level).unwrap_or(0) as i64;
        let completions = rated.iter().map(|(level, c)| RankedText::new(&c.text, tier(*level))).collect();
        let line = Self { completions, strength: None, ..self.clone() };
        (line.completions.len() >= 2).then_some(line)
    }

    /// The line by the labeler's ranking, or by a rating where `by` asks for it, as [`Comparison::ranked_by`].
    pub fn ranked_as(self, by: Option<&ByRating>) -> Option<Self> {
        match by {
            None => Some(self),
            Some(by) => self.ranked_by(by),
        }
    }

    /// The line as files hold it that rank by one of its ratings, for every dimension and both directions.
    pub fn ranked_by_each(&self) -> Vec<Self> {
        let Some(rubric) = &self.rubric else { return Vec::new() };
        let dimensions: BTreeSet<&String> = self.completions.iter().flat_map(|c| c.ratings.keys()).collect();
        let one = |(dimension, lower_is_better): (&String, bool)| {
            self.ranked_by(&ByRating { rubric: rubric.clone(), dimension: dimension.clone(), lower_is_better })
        };
        dimensions.into_iter().flat_map(|d| [(d, false), (d, true)]).filter_map(one).collect()
    }

    fn with_words(set: &RankedSet) -> Option<Self> {
        if set.outcome != Outcome::Ranked || set.items.len() < 2 {
            return None;
        }
        let ranked = set.items.iter();
        let ranked = ranked.map(|i| RankedText {
            ratings: i.ratings.clone(),
            spans: i.spans.clone(),
            ..RankedText::new(&i.text, i.tier)
        });
        Some(Self {
            prompt_id: Some(set.prompt_id.to_string()),
            strength: set.strength,
            split: Some(set.split),
            rubric: set.rubric_version.clone(),
            ..Self::new(PromptInput::Chat(set.messages.clone()), ranked.collect())
        })
    }

    /// A ranking of which nothing else is known.
    pub fn new(prompt: PromptInput, completions: Vec<RankedText>) -> Self {
        Self {
            prompt_id: None,
            prompt,
            completions,
            strength: None,
            split: None,
            labeler: None,
            labeler_kind: None,
            project: None,
            knowledge: None,
            explanation: None,
            rubric: None,
        }
    }

    /// A pair with the preferred text first.
    pub fn preferred(prompt: PromptInput, chosen: String, rejected: String) -> Self {
        Self::new(prompt, vec![RankedText::new(chosen, 0), RankedText::new(rejected, 1)])
    }

    /// # Errors
    /// Equal texts in different tiers, or only equal texts. Outer white space is ignored.
    pub fn check(&self) -> Result<(), String> {
        let texts: Vec<(&str, i64)> = self.completions.iter().map(|c| (c.text.trim(), c.tier)).collect();
        for (i, (text, tier)) in texts.iter().enumerate() {
            let other = texts.iter().take(i).position(|(other, place)| other == text && place != tier);
            if let Some(j) = other {
                return Err(format!("answers {} and {} are the same text in different tiers", j + 1, i + 1));
            }
        }
        match texts.split_first() {
            Some(((first, _), rest)) if rest.iter().all(|(text, _)| text == first) => {
                Err("all answers are the same text; a ranking needs two different ones".to_owned())
            }
            _ => Ok(()),
        }
    }

    /// The set's side of the split: as given, otherwise by the hash of its prompt.
    pub fn side(&self, heldout_fraction: f64) -> Split {
        self.split.unwrap_or_else(|| super::split_of(&super::content_hash(&self.prompt.messages()), heldout_fraction))
    }
}

/// A demonstration: one line of demonstrations JSONL.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_id: Option<String>,
    pub prompt: PromptInput,
    pub completion: String,
    /// The text that `completion` corrects, in exports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub corrects: Option<String>,
    /// The author, in files that are exchanged between servers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labeler: Option<String>,
    /// Name of the project, in files that are exchanged between servers; the first if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
}

/// A prompt: one line of prompts JSONL.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromptRecord {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_id: Option<String>,
    pub prompt: PromptInput,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lang: Option<String>,
    /// The reference answer, for rewards that compare with one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// Name of the project; the first if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
}

/// One imported line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    Comparison(Comparison),
    Demonstration(Written),
    Prompt(PromptRecord),
}

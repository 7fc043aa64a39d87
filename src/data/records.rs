//! The records of data files, independent of the format.

use serde::{Deserialize, Serialize};

use crate::domain::{Knowledge, Outcome, PromptInput, RankedSet, Split, Strength};

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
    /// The labeler's knowledge before judging; blind if absent. Only blind rankings count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub knowledge: Option<Knowledge>,
    /// Explanation of a known answer, shown after the judgment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub explanation: Option<String>,
}

impl Comparison {
    /// The line for a stored judgment; `None` when it ranks nothing (all bad, unrankable, skipped).
    pub fn from_ranked(set: &RankedSet) -> Option<Self> {
        if set.outcome != Outcome::Ranked || set.items.len() < 2 {
            return None;
        }
        let completions =
            set.items.iter().map(|item| RankedText { text: item.text.clone(), tier: item.tier }).collect();
        Some(Self {
            prompt_id: Some(set.prompt_id.to_string()),
            prompt: PromptInput::Chat(set.messages.clone()),
            completions,
            strength: set.strength,
            split: Some(set.split),
            labeler: None,
            knowledge: None,
            explanation: None,
        })
    }

    /// A pair with the preferred text first.
    pub fn preferred(prompt: PromptInput, chosen: String, rejected: String) -> Self {
        let completions = vec![RankedText { text: chosen, tier: 0 }, RankedText { text: rejected, tier: 1 }];
        Self {
            prompt_id: None,
            prompt,
            completions,
            strength: None,
            split: None,
            labeler: None,
            knowledge: None,
            explanation: None,
        }
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
    /// The author, in files that are exchanged between servers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labeler: Option<String>,
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
}

/// One imported line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    Comparison(Comparison),
    Demonstration(Written),
    Prompt(PromptRecord),
}

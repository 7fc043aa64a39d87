//! The rewards that need no reward model: rules over texts, services, language models as judges, and sums of them.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::ensure;
use crate::train::ArgsError;

/// A reward computed from the completion's text, without a reward model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum RewardSpec {
    /// `score` if the pattern matches somewhere in the completion, else `otherwise`.
    Regex {
        pattern: String,
        #[serde(default = "one")]
        score: f64,
        #[serde(default)]
        otherwise: f64,
    },
    /// `score` if the completion contains any of `texts`, else `otherwise`.
    Contains {
        texts: Vec<String>,
        #[serde(default = "one")]
        score: f64,
        #[serde(default)]
        otherwise: f64,
    },
    /// `score` if the completion, trimmed, is exactly `text`, else `otherwise`.
    Exact {
        text: String,
        #[serde(default = "one")]
        score: f64,
        #[serde(default)]
        otherwise: f64,
    },
    /// The share (0 to 1) of the completion's words that are in `words`.
    WordShare { words: Vec<String> },
    /// 0 at the target length, falling linearly to −1 at length 0 and at twice the target.
    Length {
        target: usize,
        #[serde(default)]
        unit: LengthUnit,
    },
    /// `score` if the completion's final answer is the prompt's `answer`, else `otherwise`. The prompt's answer is used
    /// in full (for a GSM8K answer, the text after `####`). The completion's final answer is the last match of
    /// `pattern` (its first group, if it has one). Without a pattern it is the text after the first `####`, else the
    /// content of the last `\boxed{…}`, else the text after the last "answer is", else the last number. Numbers are
    /// compared exactly by value: `1,000` equals `1000.0`, and `3/4` equals `\frac{6}{8}` and `0.75`. Units are
    /// optional.
    FinalAnswer {
        #[serde(default)]
        pattern: Option<String>,
        #[serde(default = "one")]
        score: f64,
        #[serde(default)]
        otherwise: f64,
    },
    /// Scores by a service: `POST url` with `{"items": [{"prompt", "completion", "answer"?}, …]}`. The response is
    /// `{"scores": [number, …]}`. The host must be one that an administrator has allowed.
    Http {
        url: String,
        /// Time limit of one request in seconds.
        #[serde(default = "half_a_minute")]
        timeout_seconds: u64,
        /// Number of completions per request.
        #[serde(default = "sixty_four")]
        batch: usize,
    },
    /// Grades by a language model. Its input is the rubric, the prompt, the completion, and the prompt's `answer` if
    /// there is one. The model is `judge_model`, or one of the configuration's `[judges]`.
    Judge {
        /// A description of good answers, for the model.
        #[serde(default = "helpful_and_harmless")]
        rubric: String,
        #[serde(default)]
        by: JudgeBy,
        /// Name of a judge of the configuration; null = `judge_model`.
        #[serde(default)]
        host: Option<String>,
    },
    /// Weighted sum of other rewards.
    Sum { terms: Vec<Term> },
}

/// The question to a judge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum JudgeBy {
    /// A grade from 1 to 10 for each completion. The score is the mean of the grades under the model's probabilities.
    #[default]
    Grades,
    /// Which of two completions of a prompt is better, for every pair and in both orders. The score is the mean
    /// probability of being better than another completion, from 0 to 1. Only for recipes that sample groups.
    Pairs,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Term {
    #[serde(default = "one")]
    pub weight: f64,
    pub reward: RewardSpec,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LengthUnit {
    Characters,
    #[default]
    Words,
}

fn one() -> f64 {
    1.0
}

/// The description of good answers that judges have by default.
pub(super) fn helpful_and_harmless() -> String {
    "A good answer does what was asked, is true, is clear and no longer than needed, and harms nobody.".to_owned()
}

fn half_a_minute() -> u64 {
    30
}

fn sixty_four() -> usize {
    64
}

impl RewardSpec {
    pub(super) fn check(&self, field: &str) -> Result<(), ArgsError> {
        match self {
            Self::Regex { pattern, .. } | Self::FinalAnswer { pattern: Some(pattern), .. } => {
                match regex::Regex::new(pattern) {
                    Ok(_) => Ok(()),
                    Err(error) => ensure(false, &format!("{field}.pattern"), &error.to_string()),
                }
            }
            Self::Contains { texts, .. } => ensure(!texts.is_empty(), &format!("{field}.texts"), "must not be empty"),
            Self::WordShare { words } => ensure(!words.is_empty(), &format!("{field}.words"), "must not be empty"),
            Self::Length { target, .. } => ensure(*target >= 1, &format!("{field}.target"), "must be at least 1"),
            Self::Exact { .. } | Self::FinalAnswer { pattern: None, .. } => Ok(()),
            Self::Http { url, timeout_seconds, batch } => {
                let web = url.starts_with("http://") || url.starts_with("https://");
                ensure(web, &format!("{field}.url"), "must be an http or https address")?;
                ensure((1..=3600).contains(timeout_seconds), &format!("{field}.timeout_seconds"), "must be 1 to 3600")?;
                ensure((1..=4096).contains(batch), &format!("{field}.batch"), "must be 1 to 4096")
            }
            Self::Judge { rubric, host, .. } => {
                ensure(!rubric.trim().is_empty(), &format!("{field}.rubric"), "must say what a good answer is")?;
                let named = host.as_deref().is_none_or(|host| !host.trim().is_empty());
                ensure(named, &format!("{field}.host"), "must name a judge of the configuration, or be null")
            }
            Self::Sum { terms } => {
                ensure(!terms.is_empty(), &format!("{field}.terms"), "must not be empty")?;
                for (i, term) in terms.iter().enumerate() {
                    ensure(term.weight.is_finite(), &format!("{field}.terms[{i}].weight"), "must be finite")?;
                    term.reward.check(&format!("{field}.terms[{i}].reward"))?;
                }
                Ok(())
            }
        }
    }

    /// All rewards that are not sums.
    fn leaves(&self) -> Vec<&Self> {
        match self {
            Self::Sum { terms } => terms.iter().flat_map(|term| term.reward.leaves()).collect(),
            leaf => vec![leaf],
        }
    }

    /// Names of the configuration's judges that it uses.
    pub fn judge_hosts(&self) -> Vec<&str> {
        let leaves = self.leaves().into_iter();
        let hosts = leaves.filter_map(|leaf| match leaf {
            Self::Judge { host, .. } => host.as_deref(),
            _ => None,
        });
        hosts.collect()
    }

    /// Whether it uses the run's `judge_model`.
    pub fn uses_judge_model(&self) -> bool {
        self.leaves().iter().any(|leaf| matches!(leaf, Self::Judge { host: None, .. }))
    }

    /// Whether scores depend on the prompt's `answer`.
    pub fn needs_answer(&self) -> bool {
        self.leaves().iter().any(|leaf| matches!(leaf, Self::FinalAnswer { .. }))
    }

    /// Whether scores depend on the other completions of the prompt.
    pub fn compares(&self) -> bool {
        self.leaves().iter().any(|leaf| matches!(leaf, Self::Judge { by: JudgeBy::Pairs, .. }))
    }
}

/// The configuration's judges that a job's arguments name, as (argument, name). Invalid rewards are ignored; the check of
/// the arguments refuses them.
pub fn named_judges(args: &Value) -> Vec<(&'static str, String)> {
    let of = |field: &'static str| {
        let spec = args.get(field).and_then(|spec| RewardSpec::deserialize(spec).ok());
        let names = spec.iter().flat_map(RewardSpec::judge_hosts).map(str::to_owned).collect::<Vec<_>>();
        names.into_iter().map(move |name| (field, name))
    };
    let host = args.get("host").and_then(Value::as_str).map(|name| ("host", name.to_owned()));
    ["reward", "gold_reward"].into_iter().flat_map(of).chain(host).collect()
}

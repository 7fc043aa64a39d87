//! A reward is text → score: a reward model, a rule, or the sum of both. The policy's tokenizer does not
//! enter: a reward model reads the text with its own.

use std::path::Path;

use anyhow::{Context, Result, bail};
use candle_core::Device;

use crate::data::PromptInput;
use crate::model::{self, Loaded, RewardModel};
use crate::prompt::Texts;
use crate::train::args::{LengthUnit, RewardSpec, RlCommon};

pub struct Reward {
    model: Option<Learned>,
    rule: Option<Rule>,
}

struct Learned {
    model: RewardModel,
    texts: Texts,
    max_length: usize,
    max_tokens: usize,
}

impl Reward {
    /// Opens what the arguments name. Also returns the reward model as loaded, for a critic to start from.
    pub fn open(args: &RlCommon, device: &Device) -> Result<(Self, Option<Loaded>)> {
        let (mut learned, mut source) = (None, None);
        if let Some(path) = &args.reward_model {
            let loaded = model::load(Path::new(path), device).context("reward_model")?;
            learned = Some(Learned {
                model: RewardModel::new(&loaded).context("reward_model")?,
                texts: Texts::new(&loaded).context("reward_model")?,
                max_length: args.common.max_length.min(loaded.config.max_positions),
                max_tokens: args.common.micro_batch_tokens,
            });
            source = Some(loaded);
        }
        let rule = args.reward.as_ref().map(Rule::new).transpose()?;
        Ok((Self { model: learned, rule }, source))
    }

    /// One score per (prompt, completion text).
    pub fn score(&self, items: &[(&PromptInput, &str)]) -> Result<Vec<f64>> {
        let mut scores = vec![0.0; items.len()];
        if let Some(learned) = &self.model {
            let conversations =
                items.iter().map(|(prompt, text)| Ok(learned.texts.conversation(prompt, text, learned.max_length)?.0));
            let conversations: Vec<Vec<u32>> = conversations.collect::<Result<_>>()?;
            for (sum, score) in scores.iter_mut().zip(learned.model.score(&conversations, learned.max_tokens)?) {
                *sum += score;
            }
        }
        if let Some(rule) = &self.rule {
            for (sum, (_, text)) in scores.iter_mut().zip(items) {
                *sum += rule.score(text);
            }
        }
        if let Some(bad) = scores.iter().position(|s| !s.is_finite()) {
            bail!("the reward of completion {bad} is not finite");
        }
        Ok(scores)
    }
}

/// Scores texts by a rule alone.
///
/// # Errors
/// A pattern that does not compile.
pub fn score_texts(spec: &RewardSpec, texts: &[&str]) -> Result<Vec<f64>> {
    let rule = Rule::new(spec)?;
    Ok(texts.iter().map(|text| rule.score(text)).collect())
}

/// A `RewardSpec` made ready.
enum Rule {
    Regex { pattern: regex::Regex, score: f64, otherwise: f64 },
    Contains { texts: Vec<String>, score: f64, otherwise: f64 },
    Exact { text: String, score: f64, otherwise: f64 },
    WordShare { words: std::collections::BTreeSet<String> },
    Length { target: f64, unit: LengthUnit },
    Sum(Vec<(f64, Rule)>),
}

impl Rule {
    fn new(spec: &RewardSpec) -> Result<Self> {
        Ok(match spec.clone() {
            RewardSpec::Regex { pattern, score, otherwise } => {
                Self::Regex { pattern: regex::Regex::new(&pattern).context("reward.pattern")?, score, otherwise }
            }
            RewardSpec::Contains { texts, score, otherwise } => Self::Contains { texts, score, otherwise },
            RewardSpec::Exact { text, score, otherwise } => Self::Exact { text, score, otherwise },
            RewardSpec::WordShare { words } => Self::WordShare { words: words.into_iter().collect() },
            RewardSpec::Length { target, unit } => Self::Length { target: target as f64, unit },
            RewardSpec::Sum { terms } => {
                let terms = terms.iter().map(|term| Ok((term.weight, Self::new(&term.reward)?)));
                Self::Sum(terms.collect::<Result<_>>()?)
            }
        })
    }

    fn score(&self, text: &str) -> f64 {
        let choose = |holds, score: &f64, otherwise: &f64| if holds { *score } else { *otherwise };
        match self {
            Self::Regex { pattern, score, otherwise } => choose(pattern.is_match(text), score, otherwise),
            Self::Contains { texts, score, otherwise } => {
                choose(texts.iter().any(|t| text.contains(t.as_str())), score, otherwise)
            }
            Self::Exact { text: wanted, score, otherwise } => choose(text.trim() == wanted.trim(), score, otherwise),
            Self::WordShare { words } => {
                let (mut all, mut hits) = (0.0, 0.0);
                for word in text.split_whitespace() {
                    all += 1.0;
                    hits += f64::from(words.contains(word));
                }
                if all == 0.0 { 0.0 } else { hits / all }
            }
            Self::Length { target, unit } => {
                let length = match unit {
                    LengthUnit::Characters => text.chars().count(),
                    LengthUnit::Words => text.split_whitespace().count(),
                };
                -((length as f64 - target).abs() / target).min(1.0)
            }
            Self::Sum(terms) => terms.iter().map(|(weight, rule)| weight * rule.score(text)).sum(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(spec: serde_json::Value, text: &str) -> f64 {
        Rule::new(&serde_json::from_value(spec).unwrap()).unwrap().score(text)
    }

    #[test]
    fn rules_score_text() {
        use serde_json::json;
        let digits = json!({"kind": "regex", "pattern": "^\\d+$", "otherwise": -1.0});
        assert_eq!([score(digits.clone(), "42"), score(digits.clone(), "4 2")], [1.0, -1.0]);
        assert_eq!(score(json!({"kind": "contains", "texts": ["a", "b"], "score": 3.0}), "xbx"), 3.0);
        assert_eq!(score(json!({"kind": "exact", "text": "yes"}), " yes\n"), 1.0);
        assert_eq!(score(json!({"kind": "word_share", "words": ["a"]}), "a b a a"), 0.75);
        assert_eq!(score(json!({"kind": "word_share", "words": ["a"]}), ""), 0.0);
        assert_eq!(score(json!({"kind": "length", "target": 4}), "a b c"), -0.25);
        let sum = json!({"kind": "sum", "terms": [{"weight": 2.0, "reward": digits},
            {"reward": {"kind": "length", "target": 1, "unit": "characters"}}]});
        assert_eq!(score(sum, "7"), 2.0);
    }
}

//! Rewards without a reward model: patterns, words, lengths, right answers, another service, a language model as judge,
//! and sums.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use regex::Regex;

use super::final_answer::ExpectedAnswer;
use super::judge_scorer::JudgeScorer;
use super::services::{Completion, RewardServices};
use crate::data::PromptInput;
use crate::objective::Stats;
use crate::train::args::{LengthUnit, RewardSpec};
use crate::train::judge::Judge;
use crate::train::remote::{RemoteItem, RemoteReward};

/// Scores completions of one prompt by a rule that needs no service.
///
/// # Errors
/// If the rule needs a service, or an answer that is missing.
pub fn score_texts(spec: &RewardSpec, prompt: &PromptInput, answer: Option<&str>, texts: &[&str]) -> Result<Vec<f64>> {
    let items: Vec<Completion<'_>> = texts.iter().map(|text| Completion { prompt, text, answer }).collect();
    Rule::new(spec, &RewardServices::default())?.scores(&items)
}

/// Checks that `score_texts` can use the rule.
///
/// # Errors
/// Why it cannot.
pub fn check_rule(spec: &RewardSpec) -> Result<()> {
    Rule::new(spec, &RewardServices::default()).map(drop)
}

/// A compiled `RewardSpec`.
pub enum Rule {
    Regex { pattern: Regex, score: f64, otherwise: f64 },
    Contains { texts: Vec<String>, score: f64, otherwise: f64 },
    Exact { text: String, score: f64, otherwise: f64 },
    WordShare { words: BTreeSet<String> },
    Length { target: f64, unit: LengthUnit },
    FinalAnswer { pattern: Option<Regex>, score: f64, otherwise: f64 },
    Http { remote: Arc<dyn RemoteReward>, url: String, timeout: Duration, batch: usize },
    Judge { judge: Arc<dyn Judge>, judge_scorer: JudgeScorer },
    Sum(Vec<(f64, Rule)>),
}

impl Rule {
    /// # Errors
    /// If a pattern is invalid, or a service or judge is not available.
    pub fn new(spec: &RewardSpec, services: &RewardServices) -> Result<Self> {
        Ok(match spec.clone() {
            RewardSpec::Regex { pattern, score, otherwise } => {
                Self::Regex { pattern: Regex::new(&pattern).context("pattern")?, score, otherwise }
            }
            RewardSpec::Contains { texts, score, otherwise } => Self::Contains { texts, score, otherwise },
            RewardSpec::Exact { text, score, otherwise } => Self::Exact { text, score, otherwise },
            RewardSpec::WordShare { words } => Self::WordShare { words: words.into_iter().collect() },
            RewardSpec::Length { target, unit } => Self::Length { target: target as f64, unit },
            RewardSpec::FinalAnswer { pattern, score, otherwise } => {
                let pattern = pattern.map(|p| Regex::new(&p).context("pattern")).transpose()?;
                Self::FinalAnswer { pattern, score, otherwise }
            }
            RewardSpec::Http { url, timeout_seconds, batch } => {
                let Some(remote) = &services.remote else {
                    bail!("{url}: reward services are not allowed here; an administrator allows hosts by name");
                };
                remote.allows(&url)?;
                Self::Http { remote: remote.clone(), url, timeout: Duration::from_secs(timeout_seconds), batch }
            }
            RewardSpec::Judge { rubric, by, host } => Self::Judge {
                judge: services.judge(host.as_deref())?,
                judge_scorer: JudgeScorer::new(&rubric, by, services.group),
            },
            RewardSpec::Sum { terms } => {
                let terms = terms.iter().map(|term| Ok((term.weight, Self::new(&term.reward, services)?)));
                Self::Sum(terms.collect::<Result<_>>()?)
            }
        })
    }

    /// Whether a part of it needs the prompts' answers.
    pub fn needs_answers(&self) -> bool {
        match self {
            Self::FinalAnswer { .. } => true,
            Self::Sum(terms) => terms.iter().any(|(_, rule)| rule.needs_answers()),
            _ => false,
        }
    }

    /// Statistics of judges' answers since the last call.
    pub fn take_figures(&self) -> Stats {
        match self {
            Self::Judge { judge_scorer, .. } => judge_scorer.take_figures(),
            Self::Sum(terms) => terms.iter().fold(Stats::default(), |mut all, (_, rule)| {
                all.merge(&rule.take_figures());
                all
            }),
            _ => Stats::default(),
        }
    }

    /// One score per completion. Completions of a prompt must be consecutive.
    pub fn scores(&self, items: &[Completion<'_>]) -> Result<Vec<f64>> {
        match self {
            Self::Judge { judge, judge_scorer } => judge_scorer.scores(judge.as_ref(), items),
            Self::Http { remote, url, timeout, batch } => {
                let mut scores = Vec::with_capacity(items.len());
                for part in items.chunks(*batch) {
                    let asked: Vec<RemoteItem<'_>> = part
                        .iter()
                        .map(|i| RemoteItem { prompt: i.prompt, completion: i.text, answer: i.answer })
                        .collect();
                    let got = remote.scores(url, *timeout, &asked)?;
                    if got.len() != part.len() {
                        bail!("{url} returned {} scores for {} completions", got.len(), part.len());
                    }
                    scores.extend(got);
                }
                Ok(scores)
            }
            Self::Sum(terms) => {
                let mut sums = vec![0.0; items.len()];
                for (weight, rule) in terms {
                    sums.iter_mut().zip(rule.scores(items)?).for_each(|(sum, score)| *sum += weight * score);
                }
                Ok(sums)
            }
            _ => items.iter().map(|item| self.of_text(item)).collect(),
        }
    }

    /// The score of a completion, for rules that score completions separately.
    fn of_text(&self, item: &Completion<'_>) -> Result<f64> {
        let text = item.text;
        let choose = |holds, score: &f64, otherwise: &f64| if holds { *score } else { *otherwise };
        Ok(match self {
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
            Self::FinalAnswer { pattern, score, otherwise } => {
                let wanted = item.answer.and_then(|answer| ExpectedAnswer::new(answer, pattern.as_ref()));
                let wanted = wanted.context("a prompt has no `answer` to compare with")?;
                choose(wanted.is_answered_by(text, pattern.as_ref()), score, otherwise)
            }
            Self::Http { .. } | Self::Judge { .. } | Self::Sum(_) => bail!("this reward scores whole batches"),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::data::PromptInput;

    fn rule(spec: Value) -> Rule {
        Rule::new(&serde_json::from_value(spec).unwrap(), &RewardServices::default()).unwrap()
    }

    fn score_of(spec: Value, text: &str, answer: Option<&str>) -> f64 {
        let prompt = PromptInput::Text("q".into());
        rule(spec).scores(&[Completion { prompt: &prompt, text, answer }]).unwrap()[0]
    }

    fn score(spec: Value, text: &str) -> f64 {
        score_of(spec, text, None)
    }

    #[test]
    fn rules_score_text() {
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

    #[test]
    fn final_answers_are_found_and_compared_as_numbers() {
        let spec = json!({"kind": "final_answer", "otherwise": -0.5});
        for (text, answer, right) in [
            ("5 + 3 = 8, so\n#### 8", "#### 8", true),
            ("first 8, then 12", "3 * 4 = 12\n#### 12", true),
            ("it costs $1,250.00", "1250", true),
            ("minus four is -4.", "-4", true),
            ("10 apples", "#### 12", false),
            ("no number here", "7", false),
            ("é7", "7", true),
            ("#### \n", "7", false),
        ] {
            let expected = if right { 1.0 } else { -0.5 };
            assert_eq!(score_of(spec.clone(), text, Some(answer)), expected, "{text:?} against {answer:?}");
        }
        let boxed = json!({"kind": "final_answer", "pattern": "\\\\boxed\\{([^}]*)\\}"});
        assert_eq!(score_of(boxed, "so \\boxed{Paris}", Some("paris.")), 1.0);
        let error =
            rule(spec).scores(&[Completion { prompt: &PromptInput::Text("q".into()), text: "1", answer: None }]);
        assert!(error.unwrap_err().to_string().contains("answer"));
    }

    /// A recipe cannot use a service that is not allowed.
    #[test]
    fn a_service_is_called_only_with_a_client() {
        let spec = serde_json::from_value(json!({"kind": "http", "url": "http://127.0.0.1:1/score"})).unwrap();
        let error = Rule::new(&spec, &RewardServices::default()).err().unwrap().to_string();
        assert!(error.contains("administrator"), "{error}");
        for (spec, why) in
            [(json!({"kind": "judge"}), "judge_model"), (json!({"kind": "judge", "host": "large"}), "no judge 'large'")]
        {
            let error = Rule::new(&serde_json::from_value(spec).unwrap(), &RewardServices::default()).err().unwrap();
            assert!(error.to_string().contains(why), "{error}");
        }
    }
}

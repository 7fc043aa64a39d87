//! A reward is text → score: a reward model, a rule, a service, a judge, or sums of them. The policy's tokenizer does
//! not enter: a reward model and a judge read the text with their own.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use candle_core::Device;

use super::rules::Rule;
use crate::data::PromptInput;
use crate::model::{self, Loaded, Purpose, RewardModel};
use crate::objective::Stats;
use crate::objective::whiten::moments;
use crate::prompt::Texts;
use crate::train::Reporter;
use crate::train::args::{Common, EnsembleReward, FrozenPrecision, RewardSpec, RlCommon};
use crate::train::judge::{Judge, OwnJudge};
use crate::train::remote::RemoteReward;

/// A completion to be scored.
#[derive(Clone, Copy)]
pub struct Item<'a> {
    pub prompt: &'a PromptInput,
    pub text: &'a str,
    /// The prompt's right answer, where its record has one.
    pub answer: Option<&'a str>,
}

/// Whom rewards may ask beside the texts.
#[derive(Clone, Default)]
pub struct Outside {
    /// The client for reward services, where any may be asked.
    pub remote: Option<Arc<dyn RemoteReward>>,
    /// The model of `judge_model`.
    own: Option<Arc<dyn Judge>>,
    /// Judges of the configuration that the arguments name.
    named: BTreeMap<String, Arc<dyn Judge>>,
    /// Samples per prompt.
    pub group: usize,
}

impl Outside {
    /// What the rewards of a run ask, which samples `group` responses to each prompt; loads `judge_model`.
    ///
    /// # Errors
    /// A judge model that cannot be loaded.
    pub fn open(args: &RlCommon, group: usize, device: &Device, reporter: &dyn Reporter) -> Result<Self> {
        let own = match &args.judge_model {
            None => None,
            Some(path) => {
                let common = &args.common;
                let judge = OwnJudge::open(path, device, purpose(common), common.micro_batch_tokens);
                Some(Arc::new(judge.context("judge_model")?) as Arc<dyn Judge>)
            }
        };
        let names = args.reward.iter().chain(&args.gold_reward).flat_map(RewardSpec::judge_hosts);
        let named = names.filter_map(|name| Some((name.to_owned(), reporter.judge(name)?))).collect();
        Ok(Self { remote: reporter.remote(), own, named, group })
    }

    /// The judge of this name, or the run's own.
    ///
    /// # Errors
    /// When there is none.
    pub fn judge(&self, host: Option<&str>) -> Result<Arc<dyn Judge>> {
        match host {
            None => self.own.clone().context("a judge without `host` is for recipes with a `judge_model`"),
            Some(name) => {
                let found = self.named.get(name).cloned();
                found.with_context(|| format!("the configuration has no judge '{name}' ([judges] in config.toml)"))
            }
        }
    }
}

/// How models that only score are held.
fn purpose(common: &Common) -> Purpose {
    match common.frozen_precision {
        FrozenPrecision::F32 | FrozenPrecision::Q8_0 | FrozenPrecision::Q4 => Purpose::Score,
        FrozenPrecision::Bf16 => Purpose::ScoreInBf16,
    }
}

/// What a reward is made from.
pub struct Sources<'a> {
    /// Directory of a reward model.
    pub model: Option<&'a str>,
    pub rule: Option<&'a RewardSpec>,
    /// The argument that errors name: `reward` or `gold_reward`.
    pub field: &'static str,
    /// What becomes of the heads of an ensemble.
    pub ensemble: Ensemble,
}

/// How the scores of several heads become one.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Ensemble {
    pub kind: EnsembleReward,
    /// Standard deviations that a lower bound subtracts.
    pub doubt: f64,
}

impl Ensemble {
    /// One reward of the heads' scores (at least one).
    fn reward(self, heads: &[f64]) -> f64 {
        let (mean, variance) = moments(heads);
        match self.kind {
            EnsembleReward::Mean => mean,
            EnsembleReward::LowerBound => mean - self.doubt * variance.sqrt(),
            EnsembleReward::WorstCase => heads.iter().copied().fold(f64::INFINITY, f64::min),
        }
    }
}

pub struct Reward {
    model: Option<Learned>,
    rule: Option<Rule>,
}

struct Learned {
    model: RewardModel,
    texts: Texts,
    max_length: usize,
    max_tokens: usize,
    ensemble: Ensemble,
}

impl Learned {
    fn scores(&self, items: &[Item<'_>]) -> Result<Vec<f64>> {
        let conversations = self.conversations(items)?;
        Ok(match self.ensemble.kind {
            EnsembleReward::Mean => self.model.score(&conversations, self.max_tokens)?,
            _ => {
                let heads = self.model.scores_of_heads(&conversations, self.max_tokens)?;
                heads.iter().map(|heads| self.ensemble.reward(heads)).collect()
            }
        })
    }

    /// The items as ids. All completions of one prompt are read behind the same prompt tokens.
    fn conversations(&self, items: &[Item<'_>]) -> Result<Vec<Vec<u32>>> {
        let pairs: Vec<_> = items.iter().map(|item| (item.prompt, item.text)).collect();
        self.texts.conversations(&pairs, self.max_length)
    }
}

impl Reward {
    /// Opens what the sources name. Also returns the reward model as loaded, for a critic to start from.
    pub fn open(
        sources: &Sources<'_>,
        common: &Common,
        device: &Device,
        outside: &Outside,
    ) -> Result<(Self, Option<Loaded>)> {
        let field = sources.field;
        let (mut learned, mut source) = (None, None);
        if let Some(path) = sources.model {
            let of_model = || format!("{field}_model");
            let loaded = model::load(Path::new(path), device).with_context(of_model)?;
            let model = RewardModel::for_purpose(&loaded, purpose(common)).with_context(of_model)?;
            if sources.ensemble.kind != EnsembleReward::Mean && model.n_heads() < 2 {
                bail!(
                    "ensemble_reward: the reward model has one head and no doubt to speak of; train one with heads > 1"
                );
            }
            learned = Some(Learned {
                model,
                ensemble: sources.ensemble,
                texts: Texts::new(&loaded).with_context(of_model)?,
                max_length: common.max_length.unwrap_or(usize::MAX).min(loaded.config.max_positions),
                max_tokens: common.micro_batch_tokens,
            });
            source = Some(loaded);
        }
        let rule = sources.rule.map(|spec| Rule::new(spec, outside).context(field)).transpose()?;
        Ok((Self { model: learned, rule }, source))
    }

    /// Whether it compares with the prompts' answers.
    pub fn needs_answers(&self) -> bool {
        self.rule.as_ref().is_some_and(Rule::needs_answers)
    }

    /// What the answers of its judges since the last call were like.
    pub fn take_figures(&self) -> Stats {
        self.rule.as_ref().map(Rule::take_figures).unwrap_or_default()
    }

    /// One score per completion. Completions of one prompt stand together.
    pub fn score(&self, items: &[Item<'_>]) -> Result<Vec<f64>> {
        let mut scores = vec![0.0; items.len()];
        if let Some(learned) = &self.model {
            scores = learned.scores(items)?;
        }
        if let Some(rule) = &self.rule {
            scores.iter_mut().zip(rule.scores(items)?).for_each(|(sum, score)| *sum += score);
        }
        if let Some(bad) = scores.iter().position(|s| !s.is_finite()) {
            bail!("the reward of completion {bad} is not finite");
        }
        Ok(scores)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_become_a_mean_a_lower_bound_or_the_worst() {
        let heads = [1.0, 2.0, 6.0];
        let of = |kind, doubt| Ensemble { kind, doubt }.reward(&heads);
        assert_eq!(of(EnsembleReward::Mean, 5.0), 3.0);
        // The population's deviation: √((4 + 1 + 9) / 3).
        assert!((of(EnsembleReward::LowerBound, 0.5) - (3.0 - 0.5 * (14f64 / 3.0).sqrt())).abs() < 1e-12);
        assert_eq!(of(EnsembleReward::LowerBound, 0.0), 3.0);
        assert_eq!(of(EnsembleReward::WorstCase, 0.0), 1.0);
    }
}

//! Rewards map texts to scores: a reward model, a rule, a service, a judge, or sums of them. Reward models and judges
//! have their own tokenizers.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use candle_core::Device;

use super::rules::Rule;
use super::services::{Completion, RewardServices, purpose};
use crate::model::{self, Loaded, RewardModel};
use crate::objective::Stats;
use crate::objective::whiten::moments;
use crate::prompt::Texts;
use crate::train::args::{Common, EnsembleReward, RewardSpec};
use crate::train::on_device::RunDevice;

/// The parts of a reward.
pub struct Sources<'a> {
    /// Directory of a reward model.
    pub model: Option<&'a str>,
    pub rule: Option<&'a RewardSpec>,
    /// The argument that errors name: `reward` or `gold_reward`.
    pub field: &'static str,
    /// How an ensemble's scores are combined.
    pub ensemble: Ensemble,
    /// Weights of the heads for a rubric's dimensions, instead of the model's own.
    pub weights: Option<&'a BTreeMap<String, f64>>,
    /// Whether a critic may start from the model, so that the host needs its weights as well.
    pub for_critic: bool,
}

/// How the scores of several heads become one.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Ensemble {
    pub kind: EnsembleReward,
    /// Number of standard deviations that a lower bound subtracts.
    pub doubt: f64,
}

impl Ensemble {
    /// Combines the scores of at least one head.
    fn reward(self, heads: &[f64]) -> f64 {
        let (mean, variance) = moments(heads);
        match self.kind {
            EnsembleReward::Mean => mean,
            EnsembleReward::LowerBound => mean - self.doubt * variance.sqrt(),
            EnsembleReward::WorstCase => heads.iter().copied().fold(f64::INFINITY, f64::min),
        }
    }
}

/// The sum of a reward model and a rule.
pub struct Reward {
    model: Option<ModelReward>,
    rule: Option<Rule>,
}

struct ModelReward {
    model: RewardModel,
    texts: Texts,
    max_length: usize,
    max_tokens: usize,
    ensemble: Ensemble,
}

impl ModelReward {
    fn scores(&self, items: &[Completion<'_>]) -> Result<Vec<f64>> {
        let conversations = self.conversations(items)?;
        Ok(match self.ensemble.kind {
            EnsembleReward::Mean => self.model.score(&conversations, self.max_tokens)?,
            _ => {
                let heads = self.model.scores_of_heads(&conversations, self.max_tokens)?;
                heads.iter().map(|heads| self.ensemble.reward(heads)).collect()
            }
        })
    }

    /// The ids of prompts with completions. All completions of a prompt follow the same prompt tokens.
    fn conversations(&self, items: &[Completion<'_>]) -> Result<Vec<Vec<u32>>> {
        let pairs: Vec<_> = items.iter().map(|item| (item.prompt, item.text)).collect();
        self.texts.conversations(&pairs, self.max_length)
    }
}

impl Reward {
    /// Loads the parts of a reward; a reward model is loaded to `kernels`, which then computes its passes. Also returns the
    /// weights of the reward model on the host if a critic may start from it, or if the host computes it.
    pub fn open(
        sources: &Sources<'_>,
        common: &Common,
        (device, kernels): (&Device, Option<&RunDevice>),
        services: &RewardServices,
    ) -> Result<(Self, Option<Loaded>)> {
        let field = sources.field;
        let (mut learned, mut source) = (None, None);
        if let Some(path) = sources.model {
            let of_model = || format!("{field}_model");
            let path = Path::new(path);
            let (mut model, mut loaded) = match kernels {
                Some(kernels) => {
                    let (trunk, heads) = kernels.load_trunk(path).with_context(of_model)?;
                    let model = RewardModel::over(trunk, &heads).with_context(of_model)?;
                    let whole = || model::load(path, device).with_context(of_model);
                    (model, if sources.for_critic { whole()? } else { heads })
                }
                None => {
                    let loaded = model::load(path, device).with_context(of_model)?;
                    (RewardModel::for_purpose(&loaded, purpose(common)).with_context(of_model)?, loaded)
                }
            };
            if let Some(weights) = sources.weights {
                model.set_weights(weights).map_err(|e| anyhow::anyhow!("reward_weights: {e}"))?;
                // For the critic that starts from the model.
                if let Some(parts) = loaded.instructd.as_mut().and_then(|about| about.pointer_mut("/reward/parts")) {
                    *parts = serde_json::json!(model.parts());
                }
            }
            if sources.ensemble.kind != EnsembleReward::Mean && model.n_members() < 2 {
                bail!(
                    "ensemble_reward: the reward model is no ensemble, so there is no spread of heads; train one with heads > 1"
                );
            }
            learned = Some(ModelReward {
                model,
                ensemble: sources.ensemble,
                texts: Texts::for_scores(&loaded).with_context(of_model)?,
                max_length: common.max_length.unwrap_or(usize::MAX).min(loaded.config.max_positions),
                max_tokens: common.micro_batch_tokens,
            });
            source = Some(loaded);
        }
        let rule = sources.rule.map(|spec| Rule::new(spec, services).context(field)).transpose()?;
        Ok((Self { model: learned, rule }, source))
    }

    /// Whether it needs the prompts' answers.
    pub fn needs_answers(&self) -> bool {
        self.rule.as_ref().is_some_and(Rule::needs_answers)
    }

    /// Statistics of its judges' answers since the last call.
    pub fn take_figures(&self) -> Stats {
        self.rule.as_ref().map(Rule::take_figures).unwrap_or_default()
    }

    /// One score per completion. Completions of a prompt must be consecutive.
    pub fn score(&self, items: &[Completion<'_>]) -> Result<Vec<f64>> {
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
    fn heads_are_combined_to_their_mean_a_lower_bound_or_the_minimum() {
        let heads = [1.0, 2.0, 6.0];
        let of = |kind, doubt| Ensemble { kind, doubt }.reward(&heads);
        assert_eq!(of(EnsembleReward::Mean, 5.0), 3.0);
        // The population's deviation: √((4 + 1 + 9) / 3).
        assert!((of(EnsembleReward::LowerBound, 0.5) - (3.0 - 0.5 * (14f64 / 3.0).sqrt())).abs() < 1e-12);
        assert_eq!(of(EnsembleReward::LowerBound, 0.0), 3.0);
        assert_eq!(of(EnsembleReward::WorstCase, 0.0), 1.0);
    }
}

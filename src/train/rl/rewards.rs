//! A reward is text → score: a reward model, a rule, a service, or sums of them. The policy's tokenizer does
//! not enter: a reward model reads the text with its own.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use candle_core::Device;

use super::rules::Rule;
use crate::data::PromptInput;
use crate::model::{self, Loaded, Purpose, RewardModel};
use crate::prompt::Texts;
use crate::train::args::{Common, FrozenPrecision, RewardSpec};
use crate::train::remote::RemoteReward;

/// A completion to be scored.
#[derive(Clone, Copy)]
pub struct Item<'a> {
    pub prompt: &'a PromptInput,
    pub text: &'a str,
    /// The prompt's right answer, where its record has one.
    pub answer: Option<&'a str>,
}

/// What a reward is made from.
pub struct Sources<'a> {
    /// Directory of a reward model.
    pub model: Option<&'a str>,
    pub rule: Option<&'a RewardSpec>,
    /// The argument that errors name: `reward` or `gold_reward`.
    pub field: &'static str,
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
}

impl Learned {
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
        remote: Option<Arc<dyn RemoteReward>>,
    ) -> Result<(Self, Option<Loaded>)> {
        let field = sources.field;
        let purpose = match common.frozen_precision {
            FrozenPrecision::F32 | FrozenPrecision::Q8_0 | FrozenPrecision::Q4 => Purpose::Score,
            FrozenPrecision::Bf16 => Purpose::ScoreInBf16,
        };
        let (mut learned, mut source) = (None, None);
        if let Some(path) = sources.model {
            let of_model = || format!("{field}_model");
            let loaded = model::load(Path::new(path), device).with_context(of_model)?;
            learned = Some(Learned {
                model: RewardModel::for_purpose(&loaded, purpose).with_context(of_model)?,
                texts: Texts::new(&loaded).with_context(of_model)?,
                max_length: common.max_length.unwrap_or(usize::MAX).min(loaded.config.max_positions),
                max_tokens: common.micro_batch_tokens,
            });
            source = Some(loaded);
        }
        let rule = sources.rule.map(|spec| Rule::new(spec, remote.as_ref()).context(field)).transpose()?;
        Ok((Self { model: learned, rule }, source))
    }

    /// Whether it compares with the prompts' answers.
    pub fn needs_answers(&self) -> bool {
        self.rule.as_ref().is_some_and(Rule::needs_answers)
    }

    /// One score per completion.
    pub fn score(&self, items: &[Item<'_>]) -> Result<Vec<f64>> {
        let mut scores = vec![0.0; items.len()];
        if let Some(learned) = &self.model {
            scores = learned.model.score(&learned.conversations(items)?, learned.max_tokens)?;
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

//! The held-out signal of a run: another reward than the one that is trained on, or judgments from which no model has
//! learned.

use std::path::Path;

use anyhow::{Context, Result, bail};
use candle_core::Device;
use serde_json::json;

use super::rewards::{Ensemble, Reward, Sources};
use super::services::{Completion, RewardServices};
use crate::data::read_comparisons;
use crate::model::Decoder;
use crate::prompt::Texts;
use crate::train::Reporter;
use crate::train::args::RlCommon;
use crate::train::fit::Fit;
use crate::train::on_device::RunDevice;
use crate::train::preference::sequence_sums_of;
use crate::train::ranked::{RankedSequences, encode};

/// A held-out signal.
pub struct Gold {
    reward: Option<Reward>,
    judgments: Option<Judgments>,
}

/// Rankings with the start policy's log-prob of each completion.
struct Judgments {
    sets: Vec<RankedSequences>,
    reference: Vec<f32>,
    max_tokens: usize,
}

impl Gold {
    /// The held-out signal of the arguments; `None` if they have none.
    pub fn open(
        args: &RlCommon,
        texts: &Texts,
        reference: &Decoder,
        max_length: usize,
        device: (&Device, Option<&RunDevice>),
        services: &RewardServices,
        reporter: &mut dyn Reporter,
    ) -> Result<Option<Self>> {
        let sources = Sources {
            model: args.gold_reward_model.as_deref(),
            rule: args.gold_reward.as_ref(),
            field: "gold_reward",
            ensemble: Ensemble::default(),
            weights: None,
            for_critic: false,
        };
        let reward = match sources.model.is_some() || sources.rule.is_some() {
            true => Some(Reward::open(&sources, &args.common, device, services)?.0),
            false => None,
        };
        let judgments = match &args.gold_comparisons {
            None => None,
            Some(path) => {
                let (mut sets, mut fit) = (Vec::new(), Fit::new(max_length));
                for comparison in read_comparisons(Path::new(path)).context("gold_comparisons")? {
                    let comparison = comparison.context("gold_comparisons")?;
                    sets.push(encode(&comparison, texts, max_length, &mut fit)?);
                }
                sets.retain(|set| !set.pairs(0, 0.0).is_empty());
                for message in fit.messages() {
                    reporter.event("warning", json!({"message": format!("gold_comparisons: {message}")}));
                }
                if sets.is_empty() {
                    let reasons = fit.reasons();
                    bail!("gold_comparisons: no set contains a preference{reasons}");
                }
                let reference = sequence_sums_of(reference, &sets, args.common.micro_batch_tokens)?;
                Some(Judgments { sets, reference, max_tokens: args.common.micro_batch_tokens })
            }
        };
        Ok((reward.is_some() || judgments.is_some()).then_some(Self { reward, judgments }))
    }

    /// Whether its reward compares with the prompts' answers.
    pub fn needs_answers(&self) -> bool {
        self.reward.as_ref().is_some_and(Reward::needs_answers)
    }

    /// Measures the signal: the held-out reward of each response, or for each held-out judgment the share of its pairs
    /// that the policy orders as people did. Completions are ordered by the difference between their log-prob and that
    /// of the start policy.
    pub fn measure(&self, policy: &Decoder, items: &[Completion<'_>]) -> Result<Vec<f64>> {
        if let Some(reward) = &self.reward {
            return reward.score(items);
        }
        let Some(judgments) = &self.judgments else { return Ok(Vec::new()) };
        let now = sequence_sums_of(policy, &judgments.sets, judgments.max_tokens)?;
        let raised: Vec<f32> = now.iter().zip(&judgments.reference).map(|(now, then)| now - then).collect();
        let mut first = 0;
        let shares = judgments.sets.iter().map(|set| {
            let pairs = set.pairs(first, 0.0);
            first += set.sequences.len();
            let right = pairs.iter().map(|p| order(raised[p.winner as usize], raised[p.loser as usize]));
            right.sum::<f64>() / pairs.len() as f64
        });
        Ok(shares.collect())
    }
}

/// 1 if the preferred completion has the larger value, ½ if both are equal, else 0.
fn order(winner: f32, loser: f32) -> f64 {
    if winner > loser {
        1.0
    } else if winner == loser {
        0.5
    } else {
        0.0
    }
}

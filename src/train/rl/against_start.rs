//! How often the trained policy's responses score higher than the start policy's.

use std::cell::RefCell;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::gold::Gold;
use super::rollout::{RoundMonitor, Sampler};
use crate::statistics::interval::wilson_of_share;
use crate::train::args::{RewardSpec, RlCommon};
use crate::train::run::Run;
use crate::train::trainable::Trainable;

/// Scores of the responses of the first round, which the start policy wrote. Those of one prompt are adjacent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StartScores {
    /// By the reward of the run, before penalties; empty if it only compares responses.
    reward: Vec<f64>,
    /// By the held-out reward; empty without one, or if it only compares responses.
    gold: Vec<f64>,
}

/// The share of pairs of one response of each policy to the same prompt in which the trained policy's has the higher
/// score; equal scores count half.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct WinRate {
    pub share: f64,
    /// Wilson's 95 % interval over prompts.
    pub low: f64,
    pub high: f64,
    pub prompts: usize,
}

/// Win rates by the reward of the run and by its held-out reward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WinRates {
    pub reward: Option<WinRate>,
    pub gold: Option<WinRate>,
}

impl StartScores {
    /// `reward` and `gold` are scores of the same responses; a comparison's scores mean nothing beside those of other
    /// responses and are left out.
    pub fn new(rl: &RlCommon, reward: &[f64], gold: Option<&[f64]>) -> Self {
        let alone = |spec: &Option<RewardSpec>| !spec.as_ref().is_some_and(RewardSpec::compares);
        let reward = if alone(&rl.reward) { reward.to_vec() } else { Vec::new() };
        let has_gold_reward = rl.gold_reward_model.is_some() || rl.gold_reward.is_some();
        let gold = gold.filter(|_| has_gold_reward && alone(&rl.gold_reward)).unwrap_or_default().to_vec();
        Self { reward, gold }
    }

    /// Samples `policy` with the prompts and random numbers of the first round, compares, and reports metrics and
    /// sentences. `None` if a stop was requested, or if there is nothing to compare.
    ///
    /// # Errors
    /// If responses cannot be sampled or scored.
    pub fn compare(
        &self,
        sampler: &Sampler<'_>,
        policy: &Trainable,
        gold: Option<&Gold>,
        run: &mut Run<'_>,
    ) -> Result<Option<WinRates>> {
        if self.reward.is_empty() && self.gold.is_empty() {
            return Ok(None);
        }
        run.phase("sampling", None);
        let mut behaviour = sampler.behaviour(policy, 0)?;
        let drawn = {
            let run = RefCell::new(&mut *run);
            let monitor = RoundMonitor {
                stop: &|| run.borrow().reporter.should_stop(),
                report: &|phase, done| run.borrow_mut().phase(phase, done),
            };
            sampler.draw(&behaviour, &sampler.chosen(0), 0, 0, None, &monitor)?
        };
        let Some(mut responses) = drawn else { return Ok(None) };
        behaviour.end_steps();
        run.phase("scoring", None);
        sampler.score(&mut responses)?;
        let reward: Vec<f64> = responses.iter().map(|response| response.raw_score).collect();
        let gold = match gold.filter(|_| !self.gold.is_empty()) {
            Some(gold) => gold.measure(&behaviour, &sampler.last_answers(responses.iter().map(|r| &r.texts)))?,
            None => Vec::new(),
        };
        let rates = WinRates {
            reward: win_rate(&reward, &self.reward, sampler.group),
            gold: win_rate(&gold, &self.gold, sampler.group),
        };
        run.metrics(rates.metrics());
        rates.sentences().into_iter().for_each(|sentence| run.conclude(sentence));
        Ok(Some(rates))
    }
}

impl WinRates {
    /// A sentence for each win rate.
    fn sentences(&self) -> Vec<String> {
        let sentence = |rate: &WinRate, by: &str| {
            format!(
                "By {by}, its responses to the {} prompts of the first round are better than the start policy's in {:.0} \
                 % of the pairs (95 % interval {:.0} to {:.0} %; equal scores count half).",
                rate.prompts,
                100.0 * rate.share,
                100.0 * rate.low,
                100.0 * rate.high
            )
        };
        let by_reward = self.reward.iter().map(|rate| sentence(rate, "the reward that it was trained on"));
        by_reward.chain(self.gold.iter().map(|rate| sentence(rate, "the held-out reward"))).collect()
    }

    /// The shares by the metrics' names.
    fn metrics(&self) -> impl Iterator<Item = (&'static str, f64)> {
        let reward = self.reward.map(|rate| ("win_rate", rate.share));
        reward.into_iter().chain(self.gold.map(|rate| ("gold_win_rate", rate.share)))
    }
}

/// Compares the scores of `group` responses to each prompt, each of one policy with each of the other. `None` if the two
/// have different numbers of scores, or none.
fn win_rate(now: &[f64], start: &[f64], group: usize) -> Option<WinRate> {
    if now.is_empty() || now.len() != start.len() {
        return None;
    }
    let wins = |a: f64, b: f64| if a == b { 0.5 } else { f64::from(u8::from(a > b)) };
    let of_prompt = |(now, start): (&[f64], &[f64])| {
        let sum: f64 = now.iter().flat_map(|a| start.iter().map(|b| wins(*a, *b))).sum();
        sum / (now.len() * start.len()) as f64
    };
    let shares: Vec<f64> = now.chunks(group).zip(start.chunks(group)).map(of_prompt).collect();
    let share = shares.iter().sum::<f64>() / shares.len() as f64;
    let (low, high) = wilson_of_share(share, shares.len());
    Some(WinRate { share, low, high, prompts: shares.len() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn responses_are_compared_with_those_to_the_same_prompt() {
        // Prompt 1: 2 of 4 pairs and a tie; prompt 2: none of 4.
        let found = win_rate(&[1.0, 3.0, -1.0, -1.0], &[1.0, 2.0, 0.0, 0.0], 2).unwrap();
        assert_eq!((found.share, found.prompts), (0.3125, 2));
        assert!(found.low < 0.3125 && 0.3125 < found.high);
        let alone = win_rate(&[1.0, 3.0], &[0.0, 4.0], 1).unwrap();
        assert_eq!((alone.share, alone.prompts), (0.5, 2));
        assert!(win_rate(&[1.0], &[], 1).is_none() && win_rate(&[], &[], 1).is_none());
    }

    #[test]
    fn a_sentence_says_by_which_reward() {
        let rate = WinRate { share: 0.75, low: 0.6, high: 0.86, prompts: 40 };
        let sentences = WinRates { reward: None, gold: Some(rate) }.sentences();
        assert_eq!(
            sentences,
            [
                "By the held-out reward, its responses to the 40 prompts of the first round are better than the start policy's \
              in 75 % of the pairs (95 % interval 60 to 86 %; equal scores count half)."
            ]
        );
    }
}

//! The inputs of rewards: completions, and the services and judges that they may use.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result};
use candle_core::Device;

use crate::data::PromptInput;
use crate::model::Purpose;
use crate::train::Reporter;
use crate::train::args::{Common, FrozenPrecision, RewardSpec, RlCommon};
use crate::train::judge::{Judge, LocalJudge};
use crate::train::on_device::RunDevice;
use crate::train::remote::RemoteReward;

/// A completion to score.
#[derive(Clone, Copy)]
pub struct Completion<'a> {
    pub prompt: &'a PromptInput,
    pub text: &'a str,
    /// The prompt's right answer, if its record has one.
    pub answer: Option<&'a str>,
}

/// The services and judges that the rewards of a run may use.
#[derive(Clone, Default)]
pub struct RewardServices {
    /// The client for reward services, if any are allowed.
    pub remote: Option<Arc<dyn RemoteReward>>,
    /// The model of `judge_model`.
    own: Option<Arc<dyn Judge>>,
    /// Judges of the configuration that the arguments name.
    named: BTreeMap<String, Arc<dyn Judge>>,
    /// Samples per prompt.
    pub group: usize,
}

impl RewardServices {
    /// The services and judges that the rewards in `args` name, for a run with `group` responses to each prompt. Loads
    /// `judge_model`, to `kernels` where a device computes the run.
    ///
    /// # Errors
    /// If the judge model cannot be loaded.
    pub fn open(
        args: &RlCommon,
        group: usize,
        (device, kernels): (&Device, Option<&RunDevice>),
        reporter: &dyn Reporter,
    ) -> Result<Self> {
        let own = match &args.judge_model {
            None => None,
            Some(path) => {
                let common = &args.common;
                let judge = match kernels {
                    Some(kernels) => LocalJudge::on_device(path, kernels, common.micro_batch_tokens),
                    None => LocalJudge::open(path, device, purpose(common), common.micro_batch_tokens),
                };
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
    /// If there is none.
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

/// The precision of models that only score.
pub fn purpose(common: &Common) -> Purpose {
    match common.frozen_precision {
        FrozenPrecision::F32 | FrozenPrecision::Q8_0 | FrozenPrecision::Q4 => Purpose::Score,
        FrozenPrecision::Bf16 => Purpose::ScoreInBf16,
    }
}

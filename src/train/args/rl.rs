//! Arguments of the recipes that learn from their own samples: what all of them take, and those of ppo, reinforce and
//! rloo.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub(super) use super::reward_spec::RewardSpec;
use super::{Common, DeviceArg, RecipeArgs, ensure, recipe_args};
pub(crate) use crate::objective::importance::SamplerCorrection;
use crate::prompt::Reasoning;
use crate::train::ArgsError;

/// The model that predicts values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CriticKind {
    /// A zero-initialised head on the policy's hidden states.
    #[default]
    Shared,
    /// A separate model. It is initialised from the reward model if that has the policy's vocabulary, else from the
    /// policy.
    Separate,
}

/// How the penalty for a response without an end token changes its score.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum MissingEos {
    /// The penalty is subtracted from the score, as in TRL.
    #[default]
    Subtract,
    /// The score becomes minus the penalty, as in lm-human-preferences with penalty 1.
    Replace,
}

/// The weights with which responses are sampled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Numerics {
    /// Those with which updates compute. On the CPU the sampler's log-probs equal the trainer's bit for bit.
    #[default]
    Exact,
    /// Weights rounded to bfloat16, which need less memory bandwidth on the CPU. The trainer recomputes the log-probs,
    /// and losses have importance weights (`sampler_correction`).
    Fast,
}

/// Who generates the responses of rounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RolloutSource {
    /// The run itself.
    #[default]
    Local,
    /// The servers of `[upstream]` in the configuration, which load the adapter of every round. Needs `lora`, servers
    /// whose token ids are used, and `upstream.push = "vllm"`. Losses have importance weights (`sampler_correction`).
    Upstream,
}

/// Turns of a conversation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Turns {
    /// The last one.
    #[default]
    Last,
    /// Every one.
    All,
}

/// How the scores of an ensemble become one reward (arXiv 2310.02743). Combining several heads conservatively reduces
/// the overoptimisation of the errors of a single one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EnsembleReward {
    /// The mean of the heads.
    #[default]
    Mean,
    /// The mean minus `ensemble_doubt` standard deviations.
    LowerBound,
    /// The lowest head.
    WorstCase,
}

macro_rules! rl_args {
    (
        $(#[$meta:meta])*
        $name:ident (learning_rate = $learning_rate:expr, kl_coef = $kl_coef:expr, passes = $passes:expr) {
            $($(#[$doc:meta])* $field:ident: $ty:ty = $default:expr),* $(,)?
        }
    ) => {
        recipe_args!(
            $(#[$meta])*
            $name (learning_rate = $learning_rate) {
                /// JSONL of prompts: `{"prompt": […]}`, `{"messages": […]}` or `{"prompt": "raw text"}`.
                prompts: String = String::new(),
                /// The directory of a reward model.
                reward_model: Option<String> = None,
                /// A reward that is computed by a rule, instead of or in addition to the reward model.
                reward: Option<RewardSpec> = None,
                /// A language model that grades responses, for a reward of kind `judge` without a host.
                judge_model: Option<String> = None,
                /// The turns of a prompt's conversation that the policy answers: `last`, or `all`, where each user turn of
                /// the prompt follows the policy's own answer to the turn before. The losses have the tokens of all
                /// its answers.
                turns: Turns = Turns::Last,
                /// With `turns` all, the answers that are scored: `last`, once at the end of the conversation, or
                /// `all`, each with the conversation up to it.
                rewarded_turns: Turns = Turns::Last,
                /// Whether rewards read the reasoning of responses (`<think>…</think>`): `keep`, or `remove`. A reward
                /// model that was trained without it never reads it.
                scored_reasoning: crate::prompt::Reasoning = crate::prompt::Reasoning::Keep,
                /// Number of rounds of sampling and training.
                iterations: u64 = 100,
                /// Number of responses of a round.
                rollout_batch_size: usize = 64,
                /// Maximum length of a response in tokens; with `turns` all, of each answer.
                response_length: usize = 48,
                /// Sampling temperature. It also applies to the log-probs of the policy and the reference.
                temperature: f64 = 1.0,
                /// Coefficient β of the KL penalty towards the initial policy.
                kl_coef: f64 = $kl_coef,
                /// Adapt β towards this KL, in nats per sequence; null = fixed β.
                kl_target: Option<f64> = None,
                /// Number of episodes over which an adaptive β is corrected.
                kl_horizon: f64 = 10_000.0,
                /// End the run when the KL exceeds this many nats per sequence, and publish the last policy that was
                /// measured below it; null = never.
                kl_budget: Option<f64> = None,
                /// A reward model on which the policy is not trained, for example one from other judgments. Its scores
                /// are the held-out curve `gold`.
                gold_reward_model: Option<String> = None,
                /// A reward that is computed by a rule as the held-out curve, instead of or in addition to a gold
                /// reward model.
                gold_reward: Option<RewardSpec> = None,
                /// JSONL of held-out rankings. The held-out curve is the share of pairs for which the policy has moved
                /// towards the preferred completion.
                gold_comparisons: Option<String> = None,
                /// Number of rounds between measurements of the held-out curve.
                gold_every: u64 = 1,
                /// End the run after this many consecutive measurements that fell while the reward rose, and publish
                /// the policy with the best measurement; 0 = never.
                gold_patience: u64 = 3,
                /// Number of passes over the responses of a round.
                ppo_epochs: u64 = $passes,
                /// Number of optimizer steps per pass.
                minibatches: usize = $passes,
                /// End a round's passes when the approximate KL from its initial policy exceeds this; null = never.
                target_kl: Option<f64> = None,
                /// Penalty for a response without an end token; null = none.
                missing_eos_penalty: Option<f64> = None,
                /// How the penalty changes the score.
                missing_eos_mode: MissingEos = MissingEos::Subtract,
                /// Weights of the heads of a reward model that was trained on a rubric's dimensions, instead of its own:
                /// `{"ranking": 1, "helpful": 0.5}`. Each head's scores have variance 1. Heads that are not named have
                /// weight 0.
                reward_weights: Option<BTreeMap<String, f64>> = None,
                /// How the scores of a reward model with several heads become one reward.
                ensemble_reward: EnsembleReward = EnsembleReward::Mean,
                /// Number of standard deviations that `lower_bound` subtracts from the mean.
                ensemble_doubt: f64 = 1.0,
                /// The weights with which responses are sampled: `exact`, those with which updates compute, or `fast`,
                /// rounded to bfloat16, with a correction of the losses (`sampler_correction`).
                numerics: Numerics = Numerics::Exact,
                /// Who generates responses: `local`, this run, or `upstream`, the servers of `[upstream]`, to which the
                /// adapter is pushed in every round.
                rollouts: RolloutSource = RolloutSource::Local,
                /// Number of updates by which the weights that generate a round may be older than those that learn from
                /// it: 0, or 1 to generate the next round during an update. Above 0 only with `rollouts` upstream.
                rollout_staleness: u64 = 0,
                /// Importance weights of losses if the sampler's log-probs differ from the trainer's: the ratio of the
                /// probabilities, per response or per token. Above the cap a weight becomes 0 (`…_mask`) or the cap
                /// (`…_truncate`).
                sampler_correction: SamplerCorrection = SamplerCorrection::SequenceMask,
                /// Cap of the importance weights.
                sampler_correction_cap: f64 = 3.0,
                /// Number of prompts for which samples are written at every evaluation.
                sample_prompts: usize = 4,
                $($(#[$doc])* $field: $ty = $default,)*
            }
        );

        impl $name {
            /// The arguments that all reinforcement-learning recipes share.
            pub fn rl(&self) -> RlCommon {
                RlCommon {
                    common: self.common(),
                    prompts: self.prompts.clone(),
                    reward_model: self.reward_model.clone(),
                    reward: self.reward.clone(),
                    judge_model: self.judge_model.clone(),
                    scored_reasoning: self.scored_reasoning,
                    turns: self.turns,
                    rewarded_turns: self.rewarded_turns,
                    iterations: self.iterations,
                    rollout_batch_size: self.rollout_batch_size,
                    response_length: self.response_length,
                    temperature: self.temperature,
                    kl_coef: self.kl_coef,
                    kl_target: self.kl_target,
                    kl_horizon: self.kl_horizon,
                    kl_budget: self.kl_budget,
                    gold_reward_model: self.gold_reward_model.clone(),
                    gold_reward: self.gold_reward.clone(),
                    gold_comparisons: self.gold_comparisons.clone(),
                    gold_every: self.gold_every,
                    gold_patience: self.gold_patience,
                    ppo_epochs: self.ppo_epochs,
                    minibatches: self.minibatches,
                    target_kl: self.target_kl,
                    missing_eos_penalty: self.missing_eos_penalty,
                    missing_eos_mode: self.missing_eos_mode,
                    ensemble_reward: self.ensemble_reward,
                    reward_weights: self.reward_weights.clone(),
                    ensemble_doubt: self.ensemble_doubt,
                    numerics: self.numerics,
                    rollouts: self.rollouts,
                    rollout_staleness: self.rollout_staleness,
                    sampler_correction: self.sampler_correction,
                    sampler_correction_cap: self.sampler_correction_cap,
                    sample_prompts: self.sample_prompts,
                }
            }
        }
    };
}

/// The arguments that all reinforcement-learning recipes share.
#[derive(Clone, Debug, PartialEq)]
pub struct RlCommon {
    pub common: Common,
    pub prompts: String,
    pub reward_model: Option<String>,
    pub reward: Option<RewardSpec>,
    pub judge_model: Option<String>,
    pub scored_reasoning: Reasoning,
    pub turns: Turns,
    pub rewarded_turns: Turns,
    pub iterations: u64,
    pub rollout_batch_size: usize,
    pub response_length: usize,
    pub temperature: f64,
    pub kl_coef: f64,
    pub kl_target: Option<f64>,
    pub kl_horizon: f64,
    pub kl_budget: Option<f64>,
    pub gold_reward_model: Option<String>,
    pub gold_reward: Option<RewardSpec>,
    pub gold_comparisons: Option<String>,
    pub gold_every: u64,
    pub gold_patience: u64,
    pub ppo_epochs: u64,
    pub minibatches: usize,
    pub target_kl: Option<f64>,
    pub missing_eos_penalty: Option<f64>,
    pub missing_eos_mode: MissingEos,
    pub reward_weights: Option<BTreeMap<String, f64>>,
    pub ensemble_reward: EnsembleReward,
    pub ensemble_doubt: f64,
    pub numerics: Numerics,
    pub rollouts: RolloutSource,
    pub rollout_staleness: u64,
    pub sampler_correction: SamplerCorrection,
    pub sampler_correction_cap: f64,
    pub sample_prompts: usize,
}

rl_args!(
    /// Proximal policy optimisation with a value function, as in InstructGPT.
    PpoArgs (learning_rate = 1e-5, kl_coef = 0.05, passes = 4) {
        /// Ratio clip range.
        cliprange: f64 = 0.2,
        /// Discount.
        gamma: f64 = 1.0,
        /// GAE's λ.
        lambda: f64 = 0.95,
        /// Value clip range.
        cliprange_value: f64 = 0.2,
        /// Weight of the value loss.
        vf_coef: f64 = 0.1,
        /// Scale rewards to variance 1 without changing their mean.
        whiten_rewards: bool = false,
        /// A value head on the policy, or a separate critic.
        critic: CriticKind = CriticKind::Shared,
        /// Weight of the language-model loss on demonstrations (PPO-ptx); 0 = none.
        ptx_coef: f64 = 0.0,
        /// JSONL of demonstrations for PPO-ptx.
        ptx_demonstrations: Option<String> = None,
    }
);

rl_args!(
    /// REINFORCE with a running-mean baseline and a KL penalty in the reward.
    ReinforceArgs (learning_rate = 1e-5, kl_coef = 0.05, passes = 1) {
        /// Weight of a round's mean return in the running mean.
        baseline_rate: f64 = 0.1,
    }
);

rl_args!(
    /// REINFORCE leave-one-out (arXiv 2402.14740): the mean of a prompt's other samples is the baseline.
    RlooArgs (learning_rate = 1e-5, kl_coef = 0.05, passes = 1) {
        /// Number of samples per prompt.
        group_size: usize = 4,
    }
);

pub(super) use rl_args;

pub(super) const REQUIRED: &[&str] = &["model", "output_dir", "prompts"];

impl RlCommon {
    pub(super) fn check(&self, group: usize) -> Result<(), ArgsError> {
        self.common.check()?;
        let positive = |x: f64| x.is_finite() && x > 0.0;
        ensure(
            self.reward_model.is_some() || self.reward.is_some(),
            "reward_model",
            "give reward_model, reward, or both",
        )?;
        if let Some(reward) = &self.reward {
            reward.check("reward")?;
        }
        if let Some(gold) = &self.gold_reward {
            gold.check("gold_reward")?;
        }
        check_judge(self, group)?;
        check_gold(self)?;
        check_rollouts(self)?;
        check_turns(self)?;
        let rewarded = self.gold_reward_model.is_some() || self.gold_reward.is_some();
        ensure(
            self.gold_comparisons.is_none() || !rewarded,
            "gold_comparisons",
            "give held-out rankings or a held-out reward, not both",
        )?;
        ensure(self.gold_every >= 1, "gold_every", "must be at least 1")?;
        ensure(self.iterations >= 1, "iterations", "must be at least 1")?;
        ensure(self.response_length >= 1, "response_length", "must be at least 1")?;
        ensure(
            self.common.max_length.is_none_or(|n| self.response_length < n),
            "response_length",
            "must leave room for the prompt in max_length",
        )?;
        ensure(positive(self.temperature), "temperature", "must be above 0")?;
        ensure(self.kl_coef.is_finite() && self.kl_coef >= 0.0, "kl_coef", "must be 0 or more")?;
        ensure(self.kl_target.is_none_or(positive), "kl_target", "must be above 0, or null")?;
        ensure(positive(self.kl_horizon), "kl_horizon", "must be above 0")?;
        ensure(self.kl_budget.is_none_or(positive), "kl_budget", "must be above 0, or null")?;
        ensure(self.ppo_epochs >= 1, "ppo_epochs", "must be at least 1")?;
        ensure(self.target_kl.is_none_or(positive), "target_kl", "must be above 0, or null")?;
        ensure(group >= 1, "group_size", "must be at least 1")?;
        ensure(
            self.rollout_batch_size >= 1 && self.rollout_batch_size.is_multiple_of(group),
            "rollout_batch_size",
            "must be a positive multiple of group_size",
        )?;
        ensure(
            (1..=self.rollout_batch_size).contains(&self.minibatches),
            "minibatches",
            "must be 1 to rollout_batch_size",
        )?;
        if let Some(weights) = &self.reward_weights {
            ensure(self.reward_model.is_some(), "reward_weights", "needs a reward model with heads for dimensions")?;
            let right = weights.values().all(|w| w.is_finite()) && weights.values().any(|w| *w != 0.0);
            ensure(right, "reward_weights", "must have finite weights, one of them other than 0")?;
        }
        ensure(self.ensemble_doubt.is_finite() && self.ensemble_doubt >= 0.0, "ensemble_doubt", "must be 0 or more")?;
        ensure(
            self.ensemble_reward == EnsembleReward::Mean || self.reward_model.is_some(),
            "ensemble_reward",
            "needs a reward model of several heads",
        )?;
        ensure(
            self.sampler_correction_cap.is_finite() && self.sampler_correction_cap >= 1.0,
            "sampler_correction_cap",
            "must be at least 1: a cap below it would weaken every response",
        )?;
        ensure(
            self.numerics == Numerics::Exact || self.common.frozen_precision.blocks().is_none(),
            "numerics",
            "fast is for frozen_precision f32 and bf16: quantised matrices are always sampled exactly",
        )?;
        ensure(
            self.numerics == Numerics::Exact || !matches!(self.common.device, DeviceArg::Cuda | DeviceArg::Sim),
            "numerics",
            "fast is for the CPU: on a GPU it would have no effect; set `precision` to bf16, or `device` to cpu",
        )?;
        ensure(
            self.missing_eos_penalty.is_none_or(f64::is_finite),
            "missing_eos_penalty",
            "must be a finite number, or null",
        )
    }
}

/// Checks that conversations can be sampled, and their answers scored.
fn check_turns(rl: &RlCommon) -> Result<(), ArgsError> {
    if rl.turns == Turns::Last {
        return ensure(rl.rewarded_turns == Turns::Last, "rewarded_turns", "all is for `turns` all");
    }
    let specs = || rl.reward.iter().chain(&rl.gold_reward);
    ensure(
        rl.rollouts == RolloutSource::Local,
        "turns",
        "all is for `rollouts` local: the servers generate single answers",
    )?;
    ensure(
        !specs().any(RewardSpec::compares),
        "turns",
        "all is not for a judge by pairs, which compares answers to equal prompts: the policy's earlier answers differ; set `by` to grades",
    )?;
    ensure(
        rl.rewarded_turns == Turns::Last || !rl.reward.iter().any(RewardSpec::needs_answer),
        "rewarded_turns",
        "must be last: a prompt has one `answer`, with which `final_answer` compares",
    )
}

/// Checks the settings of rollouts by other servers.
fn check_rollouts(rl: &RlCommon) -> Result<(), ArgsError> {
    if rl.rollouts == RolloutSource::Local {
        return ensure(rl.rollout_staleness == 0, "rollout_staleness", "must be 0, except with rollouts upstream");
    }
    ensure(rl.rollout_staleness <= 1, "rollout_staleness", "must be 0 or 1")?;
    ensure(rl.common.lora.is_some(), "rollouts", "upstream needs `lora`: only an adapter is pushed in every round")?;
    ensure(
        rl.temperature == 1.0,
        "temperature",
        "must be 1 with rollouts upstream: servers report log-probs without the temperature",
    )?;
    ensure(
        rl.numerics == Numerics::Exact,
        "numerics",
        "fast is for rollouts local: with upstream the servers decide how they compute",
    )
}

/// Checks that the judges of the rewards are given, and that responses can be compared.
fn check_judge(args: &RlCommon, group: usize) -> Result<(), ArgsError> {
    let specs = || args.reward.iter().chain(&args.gold_reward);
    let asked = specs().any(RewardSpec::uses_judge_model);
    ensure(
        args.judge_model.is_some() || !asked,
        "judge_model",
        "is required, because a reward of kind judge has no `host`; give a model here, or `host` there",
    )?;
    ensure(
        args.judge_model.is_none() || asked,
        "judge_model",
        "has no effect: give a reward of kind judge without `host`, or leave the model out",
    )?;
    ensure(
        group >= 2 || !specs().any(RewardSpec::compares),
        "reward",
        "a judge by pairs compares several responses to one prompt, and this recipe samples one: set `by` to grades",
    )
}

/// Refuses a held-out reward that equals the reward.
fn check_gold(args: &RlCommon) -> Result<(), ArgsError> {
    let place = |path: &str| std::fs::canonicalize(path).unwrap_or_else(|_| std::path::PathBuf::from(path));
    if let (Some(reward), Some(gold)) = (&args.reward_model, &args.gold_reward_model) {
        ensure(
            place(reward) != place(gold),
            "gold_reward_model",
            "is the reward model that the policy is trained on; a held-out reward must be another one, or none",
        )?;
    }
    // Both are sums of a reward model and a rule: with equal parts they are equal.
    let same = args.gold_reward.is_some()
        && args.gold_reward == args.reward
        && args.gold_reward_model.is_none()
        && args.reward_model.is_none();
    ensure(
        !same,
        "gold_reward",
        "is the reward that the policy is trained on; a held-out reward must be another one, or none",
    )
}

impl RecipeArgs for PpoArgs {
    const REQUIRED: &'static [&'static str] = REQUIRED;
    const OWN_KERNELS: bool = true;

    fn check(&self) -> Result<(), ArgsError> {
        self.rl().check(1)?;
        ensure((0.0..=1.0).contains(&self.gamma), "gamma", "must be 0 to 1")?;
        ensure((0.0..=1.0).contains(&self.lambda), "lambda", "must be 0 to 1")?;
        ensure(self.cliprange > 0.0, "cliprange", "must be above 0")?;
        ensure(self.cliprange_value > 0.0, "cliprange_value", "must be above 0")?;
        ensure(self.vf_coef.is_finite() && self.vf_coef >= 0.0, "vf_coef", "must be 0 or more")?;
        ensure(self.ptx_coef.is_finite() && self.ptx_coef >= 0.0, "ptx_coef", "must be 0 or more")?;
        ensure(
            self.ptx_coef == 0.0 || self.ptx_demonstrations.is_some(),
            "ptx_demonstrations",
            "is required when ptx_coef is above 0",
        )
    }
}

impl RecipeArgs for ReinforceArgs {
    const REQUIRED: &'static [&'static str] = REQUIRED;
    const OWN_KERNELS: bool = true;

    fn check(&self) -> Result<(), ArgsError> {
        self.rl().check(1)?;
        ensure((0.0..=1.0).contains(&self.baseline_rate), "baseline_rate", "must be 0 to 1")
    }
}

impl RecipeArgs for RlooArgs {
    const REQUIRED: &'static [&'static str] = REQUIRED;
    const OWN_KERNELS: bool = true;

    fn check(&self) -> Result<(), ArgsError> {
        ensure(self.group_size >= 2, "group_size", "must be at least 2: one sample has no other to compare with")?;
        self.rl().check(self.group_size)
    }
}

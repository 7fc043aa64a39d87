//! Learning from rewards of the policy's own samples: `ppo`, `reinforce`, `rloo`, `grpo`, `online_dpo`, `raft`. Each
//! round samples and scores responses, computes the KL to the reference, converts scores to advantages or selects
//! responses by them, and updates the policy. A response is an answer to the prompt, or the answers to all user turns of
//! its conversation.

mod against_start;
mod critic;
#[cfg(test)]
mod device_tests;
mod final_answer;
mod fleet;
#[cfg(test)]
mod gap_tests;
mod gold;
mod group;
mod group_counts;
mod guard;
mod inputs;
mod judge_scorer;
mod redraw;
mod report;
mod response;
mod rewards;
mod rollout;
mod rules;
mod selected;
mod selection;
mod services;
#[cfg(test)]
mod turn_tests;
mod update;

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use self::against_start::WinRate;
pub use self::judge_scorer::JudgeScorer;
pub use self::rules::{check_rule, score_texts};
pub use self::services::Completion;

use self::against_start::StartScores;
use self::critic::Critic;
use self::fleet::Fleet;
use self::gold::Gold;
use self::guard::{GuardState, Limits, Measurement, Verdict};
use self::inputs::{answered, check_held_out, data_hashes, left_out, ptx, report_turns};
use self::report::report;
use self::rewards::{Ensemble, Reward, Sources};
use self::rollout::{Rollout, RoundMonitor, Sampler};
use self::selection::Selection;
use self::services::RewardServices;
use self::update::{Experience, Learner};
use super::args::{
    CriticKind, GrpoArgs, Numerics, OnlineDpoArgs, PpoArgs, RaftArgs, RecipeArgs, ReinforceArgs, RewardSpec, RlCommon,
    RlooArgs, parse_for_run,
};
use super::fit;
use super::on_device::{RunDevice, loading_device};
use super::optim::Params;
use super::run::{Run, TrainPlan, load_base, report_phase};
use super::samples::{SamplePrompt, Samples, ScoreOne};
use super::sft::backbone_and_output;
use super::token_file::TokenFile;
use super::trainable::{Trainable, with_prefix};
use super::turns::{self, PromptTexts};
use super::{Reporter, TrainOutcome};
use crate::data::PromptInput;
use crate::model::{Decoder, Loaded};
use crate::objective::kl::{AdaptiveKl, KlController, k1, shaped_rewards};
use crate::objective::logprobs::{per_token, sequence_sums};
use crate::objective::reinforce::RunningBaseline;
use crate::objective::whiten::{moments, whiten};
use crate::objective::{gae::gae, grpo, rloo};
use crate::ops::pool;
use crate::prompt::Texts;

/// The algorithm that converts scores to a loss.
pub(super) enum Algorithm {
    Ppo(Box<PpoArgs>),
    Reinforce { baseline_rate: f64 },
    Rloo { group: usize },
    Grpo(Box<GrpoArgs>),
    OnlineDpo(Box<OnlineDpoArgs>),
    Raft(Box<RaftArgs>),
}

impl Algorithm {
    /// Samples per prompt.
    fn group(&self) -> usize {
        match self {
            Self::Ppo(_) | Self::Reinforce { .. } => 1,
            Self::Rloo { group } => *group,
            Self::Grpo(args) => args.group_size,
            Self::OnlineDpo(args) => args.group_size,
            Self::Raft(args) => args.group_size,
        }
    }

    /// Whether a critic with a model of its own is trained.
    fn has_own_critic(&self) -> bool {
        matches!(self, Self::Ppo(args) if args.critic == CriticKind::Separate)
    }

    /// Whether updates learn from selected responses only.
    fn selects(&self) -> bool {
        matches!(self, Self::OnlineDpo(_) | Self::Raft(_))
    }
}

pub fn ppo(args: &Value, reporter: &mut dyn Reporter) -> Result<TrainOutcome> {
    let args: PpoArgs = parse_for_run(args)?;
    train("ppo", &args, args.rl(), Algorithm::Ppo(Box::new(args.clone())), reporter)
}

pub fn reinforce(args: &Value, reporter: &mut dyn Reporter) -> Result<TrainOutcome> {
    let args: ReinforceArgs = parse_for_run(args)?;
    train("reinforce", &args, args.rl(), Algorithm::Reinforce { baseline_rate: args.baseline_rate }, reporter)
}

pub fn rloo(args: &Value, reporter: &mut dyn Reporter) -> Result<TrainOutcome> {
    let args: RlooArgs = parse_for_run(args)?;
    train("rloo", &args, args.rl(), Algorithm::Rloo { group: args.group_size }, reporter)
}

pub fn grpo(args: &Value, reporter: &mut dyn Reporter) -> Result<TrainOutcome> {
    let args: GrpoArgs = parse_for_run(args)?;
    train("grpo", &args, args.rl(), Algorithm::Grpo(Box::new(args.clone())), reporter)
}

pub fn online_dpo(args: &Value, reporter: &mut dyn Reporter) -> Result<TrainOutcome> {
    let args: OnlineDpoArgs = parse_for_run(args)?;
    train("online_dpo", &args, args.rl(), Algorithm::OnlineDpo(Box::new(args.clone())), reporter)
}

pub fn raft(args: &Value, reporter: &mut dyn Reporter) -> Result<TrainOutcome> {
    let args: RaftArgs = parse_for_run(args)?;
    train("raft", &args, args.rl(), Algorithm::Raft(Box::new(args.clone())), reporter)
}

/// The state in a checkpoint.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct RlState {
    kl: KlController,
    baseline: RunningBaseline,
    guard: GuardState,
    /// Mean score and KL of the first and the last round.
    first: Option<RoundFigures>,
    last: Option<RoundFigures>,
    /// Of the responses of the first round. A checkpoint of an earlier version has none.
    #[serde(default)]
    start: Option<StartScores>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct RoundFigures {
    reward: f64,
    kl: f64,
    gold: Option<f64>,
}

/// File stem in a checkpoint of the policy that would be published if the run stopped now.
const GOOD: &str = "good";

fn train<A: RecipeArgs>(
    recipe: &'static str,
    args: &A,
    rl: RlCommon,
    algorithm: Algorithm,
    reporter: &mut dyn Reporter,
) -> Result<TrainOutcome> {
    report_phase(reporter, "loading");
    let device = loading_device(&rl.common)?;
    let mut loaded = load_base(&rl.common, &device)?;
    let texts = Texts::new(&loaded)?;
    report_phase(reporter, "preparing");
    let positions = loaded.config.max_positions;
    let length = fit::length(rl.common.max_length, positions, || turns::lengths(&rl, &texts))?;
    let max_length = length.tokens;
    let file = TokenFile::new(Path::new(&rl.common.output_dir));
    let (mut prompts, fit) = turns::read(&rl, &texts, max_length, file)?;
    check_held_out(&rl)?;
    let ensemble = Ensemble { kind: rl.ensemble_reward, doubt: rl.ensemble_doubt };
    let sources = Sources {
        model: rl.reward_model.as_deref(),
        rule: rl.reward.as_ref(),
        field: "reward",
        ensemble,
        weights: rl.reward_weights.as_ref(),
        for_critic: algorithm.has_own_critic(),
    };
    let kernels = RunDevice::open(&rl.common)?;
    let devices = (&device, kernels.as_ref());
    let services = RewardServices::open(&rl, algorithm.group(), devices, reporter)?;
    let fleet = Fleet::open(&rl, reporter)?;
    let (reward, reward_source) = Reward::open(&sources, &rl.common, devices, &services)?;

    let mut policy = Trainable::<Decoder>::for_run(&loaded.config, backbone_and_output(&loaded), &rl.common)?
        .with_source(&loaded.source);
    // The start policy, before any update or resume.
    let mut reference = policy.reference(&loaded.weights)?;
    // Under adapters the reference is their base, which the policy's copy on a device serves later.
    if let Some(kernels) = kernels.as_ref().filter(|_| rl.common.lora.is_none() || rl.gold_comparisons.is_some()) {
        kernels.score(&mut reference)?;
    }
    let mut critic = critic(&rl, &algorithm, &loaded, reward_source.as_ref())?;
    drop(reward_source);
    let whole = rl.common.max_length.unwrap_or(positions).min(positions);
    let gold = Gold::open(&rl, &texts, &reference, whole, devices, &services, reporter)?;
    let mut unanswered = Vec::new();
    if reward.needs_answers() || gold.as_ref().is_some_and(Gold::needs_answers) {
        unanswered = answered(&mut prompts)?;
    }
    // The models above have copies of what they need.
    loaded.weights.clear();
    let critic_params = critic.as_ref().map(Critic::params).unwrap_or_default();
    let params: Params = with_prefix("policy.", &policy.params).chain(critic_params).collect();
    let (ptx, ptx_hash, ptx_fit) = ptx(&algorithm, &texts, rl.common.max_length, positions)?;

    let plan = TrainPlan {
        recipe,
        args,
        common: rl.common.clone(),
        steps: rl.iterations,
        updates_per_step: rl.ppo_epochs * rl.minibatches as u64,
        data: data_hashes(&rl, ptx_hash)?,
    };
    let mut run = Run::new(plan, reporter)?;
    length.report(&mut run);
    fit.report(&mut run);
    for message in ptx_fit.messages() {
        run.warn(format!("ptx_demonstrations: {message}"));
    }
    if !unanswered.is_empty() {
        run.warn(left_out(&unanswered, prompts.len()));
        run.metrics([("prompts_without_answer", unanswered.len() as f64)]);
    }
    let turn_counts = report_turns(&rl, &prompts, max_length, &mut run);
    let adaptive = rl.kl_target.map(|target| AdaptiveKl { target, horizon: rl.kl_horizon });
    let mut state = run.resume::<RlState>(&params)?.unwrap_or(RlState {
        kl: KlController { coef: rl.kl_coef, adaptive },
        baseline: RunningBaseline::default(),
        guard: GuardState::default(),
        first: None,
        last: None,
        start: None,
    });

    if let Some(kernels) = &kernels {
        if rl.common.lora.is_some() {
            reference.detach();
        }
        kernels.train(&mut run, &mut policy, "policy.")?;
        if rl.common.lora.is_some() {
            RunDevice::score_base(&policy, &mut reference)?;
        }
        critic.iter_mut().try_for_each(|critic| critic.attach(kernels, &mut run))?;
    }

    let redraws = match &algorithm {
        Algorithm::Grpo(args) => args.dynamic_sampling,
        _ => 0,
    };
    let shown = prompts.iter().take(rl.sample_prompts).map(|stored| {
        let PromptTexts { prompt, next, .. } = stored.texts()?;
        Ok(SamplePrompt { prompt, next, ids: stored.ids.clone() })
    });
    let shown = shown.collect::<Result<_>>()?;
    let samples = Samples::of_conversations(&texts, shown, rl.common.seed);
    // Without LoRA the weights, moments and packed weights leave little memory, so pooled buffers are freed between
    // phases.
    let light = rl.common.lora.is_some();
    let fast = rl.numerics == Numerics::Fast;
    let exact_sampler = policy.decoder().on_host() && !policy.is_on_device() && !fast && fleet.is_none();
    if !exact_sampler {
        run.warn(
            "responses are sampled with other kernels or weights than those of the trainer, so log-probs are recomputed"
                .to_owned() + if algorithm.selects() {
                ""
            } else {
                ", and losses are weighted by importance (sampler_correction)"
            },
        );
    }
    let sampler = Sampler {
        args: &rl,
        texts: &texts,
        prompts: &prompts,
        reward: &reward,
        reference: &reference,
        trainer: policy.decoder(),
        exact_sampler,
        max_length,
        group: algorithm.group(),
        redraws,
        fleet: fleet.as_ref(),
        activations_for: (light && exact_sampler && !algorithm.selects()).then(|| policy.decoder()),
    };
    let learner = Learner {
        args: &rl,
        algorithm: &algorithm,
        policy: &policy,
        critic: critic.as_ref(),
        params: &params,
        ptx: &ptx,
    };
    let limits = Limits { kl_budget: rl.kl_budget, patience: rl.gold_patience };
    let guarded = limits.kl_budget.is_some() || gold.is_some();

    let score = |shown: usize, prompt: &PromptInput, text: &str| {
        let source = prompts[shown].texts()?;
        Ok(reward.score(&[Completion { prompt, text, answer: source.answer.as_deref() }])?[0])
    };
    // Comparisons cannot score a single response.
    let compares = rl.reward.as_ref().is_some_and(RewardSpec::compares);
    let score: Option<ScoreOne<'_>> = (!compares).then_some(&score);
    // Samples of the start policy, for comparison.
    if run.step == 0 && rl.sample_prompts > 0 {
        samples.write(&mut run, &policy.frozen_decoder()?, max_length, score)?;
    }

    let mut stopped_because = None;
    // A guarded run measures once more after its last update, so that the published policy has been measured.
    while run.step < run.total || guarded {
        run.phase("sampling", None);
        let mut behaviour = sampler.behaviour(&policy, run.step)?;
        let round = run.step;
        if let Some(fleet) = &fleet {
            fleet.push(&policy, round)?;
        }
        let collected = {
            let run = std::cell::RefCell::new(&mut run);
            let watch = RoundMonitor {
                stop: &|| run.borrow().reporter.should_stop(),
                report: &|phase, done| run.borrow_mut().phase(phase, done),
            };
            sampler.collect(&mut behaviour, critic.as_ref(), round, &watch)?
        };
        let Some(mut rollout) = collected else {
            // The unfinished round is dropped. A resumed run samples the same tokens again.
            return run.stopped(&params, &state);
        };
        let kl = k1(&rollout.logprobs, &rollout.reference);
        let sequence_kl = sequence_sums(&kl, &rollout.lengths);
        let (mean_kl, n) = (moments(&sequence_kl).0, rollout.lengths.len());
        if !mean_kl.is_finite() {
            bail!(
                "round {}: log-probs of the policy are not finite; {}",
                run.step + 1,
                run.describe_non_finite(&params)?
            );
        }
        check_gap(&rollout, run.step + 1)?;
        let proxy = moments(rollout.first_scores()).0;
        let mut gold_scores = None;
        if guarded {
            let due = run.step.is_multiple_of(rl.gold_every.max(1)) || run.step == run.total;
            let signal = gold.as_ref().filter(|_| due);
            if signal.is_some() {
                run.phase("evaluate", None);
            }
            let exact = (fast && signal.is_some()).then(|| policy.behaviour()).transpose()?;
            let measured = policy.scorer(exact.as_ref().or(Some(&behaviour)));
            let signal = signal.map(|g| g.measure(measured, &sampler.items(&rollout))).transpose()?;
            let measured = Measurement { step: run.step, kl: mean_kl, proxy, gold: signal.as_deref() };
            // Between two measurements of the signal only the KL budget is checked.
            let verdict = match (&gold, &signal) {
                (Some(_), None) if limits.kl_budget.is_none_or(|budget| mean_kl <= budget) => Verdict::Doubtful,
                _ => limits.judge(&mut state.guard, &measured),
            };
            match verdict {
                Verdict::Good => {
                    run.extra.insert(GOOD.to_owned(), policy.copies()?);
                }
                Verdict::Doubtful => {}
                Verdict::Stop(why) => stopped_because = Some(why),
            }
            gold_scores = signal;
        }
        let gold_mean = gold_scores.as_deref().map(|scores| moments(scores).0);
        if run.step == 0 {
            state.start = Some(StartScores::new(&rl, rollout.first_scores(), gold_scores.as_deref()));
        }
        drop(behaviour);
        if !light {
            pool::drain();
        }
        let round = RoundFigures { reward: proxy, kl: mean_kl, gold: gold_mean };
        state.first.get_or_insert(round);
        state.last = Some(round);
        if stopped_because.is_some() || run.step == run.total {
            let last = [("reward", proxy), ("kl", mean_kl)].into_iter().chain(gold_mean.map(|g| ("gold", g)));
            run.metrics_at(run.step + 1, last);
            break;
        }

        if run.step + 1 < run.total || guarded {
            sampler.generate_ahead(run.step + 1)?;
        }
        if let Some(critic) = &critic {
            sampler.first_critic_pass(&mut rollout, critic)?;
        }
        let coef = state.kl.coef;
        let mut experience = advantages(&algorithm, rollout, &kl, &sequence_kl, coef, &mut state.baseline)?;
        if let Some(weights) = &experience.rollout.importance {
            // Weights are not negative, so they can be applied to the advantages.
            experience.advantages.iter_mut().zip(&weights.tokens).for_each(|(advantage, weight)| *advantage *= weight);
        }
        let summary = learner.update(&mut run, &mut experience, coef)?;
        if !light {
            pool::drain();
        }
        state.kl.update(mean_kl, n);

        run.step += 1;
        run.progress("updating");
        report(&mut run, &experience, &summary, mean_kl, coef);
        run.metrics(reward.take_figures().means());
        run.metrics(gold_mean.map(|g| ("gold", g)));
        if run.due(rl.common.eval_every) || run.checkpoint_due() {
            samples.write(&mut run, &policy.frozen_decoder()?, max_length, score)?;
        }
        if let Some(outcome) = run.pause(&params, &state)? {
            return Ok(outcome);
        }
    }

    policy.pull()?;
    let published =
        publish_good(&mut run, &policy.params, guarded.then_some(&state.guard), stopped_because.as_deref())?;
    // A device has the weights of the last update, not those of an earlier policy.
    let is_current = published == run.step || !policy.is_on_device();
    let start = state.start.as_ref().filter(|_| run.step > 0 && fleet.is_none() && is_current);
    let win_rates = start.map(|start| start.compare(&sampler, &policy, gold.as_ref(), &mut run));
    // A trained policy is published whatever becomes of this figure.
    let win_rates = win_rates.transpose().unwrap_or_else(|error| {
        run.warn(format!("no win rate against the start policy: {error:#}"));
        None
    });
    run.progress("saving");
    let metrics = json!({
        "first": state.first, "last": state.last, "iterations": run.step, "kl_coef": state.kl.coef,
        "published_iteration": published, "stopped_because": stopped_because, "win_rates": win_rates.flatten(), "prompts": prompts.len(),
        "prompts_without_answer": unanswered.len(), "fit": fit.json(), "turns": turn_counts,
    });
    super::output::save_adapter(&run.common, &policy)?;
    super::output::save(&run.common, "policy", recipe, &loaded, &policy.published()?, json!({"metrics": metrics}))?;
    run.write_card()?;
    Ok(TrainOutcome::Done { model_dir: run.common.output_dir.clone(), metrics })
}

/// Restores the last policy that passed the guard, if it is not the current one. Returns the number of updates of the
/// published policy.
fn publish_good(
    run: &mut Run<'_>,
    policy: &Params,
    guard: Option<&GuardState>,
    stopped_because: Option<&str>,
) -> Result<u64> {
    let Some(guard) = guard else { return Ok(run.step) };
    let (Some(step), Some(good)) = (guard.good_step, run.extra.get(GOOD)) else {
        bail!("{}: not even the start policy passed the guard", stopped_because.unwrap_or("the run ended"));
    };
    if step != run.step {
        for (name, var) in policy {
            let saved = good.get(name).with_context(|| format!("the good policy has no weight {name}"))?;
            var.set(&saved.to_device(var.device())?)?;
        }
        let why = stopped_because.unwrap_or("the held-out signal is below its best");
        run.warn(format!("{why}: the policy after iteration {step} is published, not the one after {}", run.step));
    }
    Ok(step)
}

fn critic(rl: &RlCommon, algorithm: &Algorithm, policy: &Loaded, reward: Option<&Loaded>) -> Result<Option<Critic>> {
    let Algorithm::Ppo(args) = algorithm else { return Ok(None) };
    let device = policy.weights.values().next().map_or(candle_core::Device::Cpu, |t| t.device().clone());
    if args.critic == CriticKind::Shared {
        return Ok(Some(Critic::shared(policy.config.hidden_size, &device)?));
    }
    // The critic reads the policy's ids, so a reward model must have the same vocabulary.
    let vocabulary = |m: &Loaded| m.tokenizer.as_ref().and_then(|t| t.to_json().ok());
    let source = reward.filter(|r| vocabulary(r) == vocabulary(policy)).unwrap_or(policy);
    Ok(Some(Critic::separate(source, &rl.common)?))
}

/// Computes per-token advantages (and returns, for PPO) from scores and KL, or selects responses.
fn advantages(
    algorithm: &Algorithm,
    rollout: Rollout,
    kl: &[f64],
    sequence_kl: &[f64],
    coef: f64,
    baseline: &mut RunningBaseline,
) -> Result<Experience> {
    // The KL penalty is a part of the return, except in GRPO.
    let returns = || -> Vec<f64> { rollout.scores.iter().zip(sequence_kl).map(|(s, k)| s - coef * k).collect() };
    let per_sequence = match algorithm {
        Algorithm::Ppo(args) => {
            let (lengths, scores) = rollout.scored_answers();
            let mut rewards = shaped_rewards(kl, &lengths, &scores, coef);
            if args.whiten_rewards {
                whiten(&mut rewards, true);
            }
            let estimate = gae(&rewards, &rollout.values, &rollout.lengths, args.gamma, args.lambda);
            let mut advantages = estimate.advantages;
            whiten(&mut advantages, false);
            return Ok(Experience { rollout, advantages, returns: estimate.returns, selection: None });
        }
        Algorithm::OnlineDpo(args) => {
            let selection = Selection::pairs(&rollout.scores, args.group_size);
            return Ok(Experience { rollout, advantages: Vec::new(), returns: Vec::new(), selection: Some(selection) });
        }
        Algorithm::Raft(args) => {
            let selection = Selection::best(&returns(), args);
            return Ok(Experience { rollout, advantages: Vec::new(), returns: Vec::new(), selection: Some(selection) });
        }
        Algorithm::Reinforce { baseline_rate } => Some(baseline.advantages(&returns(), *baseline_rate)),
        Algorithm::Rloo { group } => rloo::advantages(&returns(), *group),
        Algorithm::Grpo(args) => grpo::advantages(&rollout.scores, args.group_size, args.scale_rewards, 1e-4),
    };
    let per_sequence = per_sequence.context("group_size: every prompt needs at least two samples")?;
    let advantages = per_token(&per_sequence, &rollout.lengths);
    Ok(Experience { rollout, advantages, returns: Vec::new(), selection: None })
}

/// Maximum mean difference between the log-probs of sampler and trainer, in nats per token.
const MAX_GAP: f64 = 0.1;

/// # Errors
/// If the log-probs of sampler and trainer differ so much that importance weights cannot correct it. The gap of responses
/// that older weights wrote includes the updates since, so that round is not checked; an earlier one was.
fn check_gap(rollout: &Rollout, round: u64) -> Result<()> {
    if rollout.versions.iter().any(|version| version + 1 < round) {
        return Ok(());
    }
    let gap = rollout.mean_gap();
    if gap <= MAX_GAP {
        return Ok(());
    }
    bail!(
        "round {round}: the log-probs of sampler and trainer differ by {gap:.3} nats per token on average, more than {MAX_GAP}; set `numerics` to exact, `device` to cpu, or with rollouts upstream make the servers run the same base model in the same precision"
    )
}

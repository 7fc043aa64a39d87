//! The metrics of a round.

use super::update::{Experience, UpdateSummary};
use crate::objective::kl::k3;
use crate::objective::ppo::explained_variance;
use crate::objective::whiten::moments;
use crate::statistics::diversity::distinct_n;
use crate::train::run::Run;

/// Reports the metrics of a round.
pub fn report(run: &mut Run<'_>, experience: &Experience, summary: &UpdateSummary, kl: f64, coef: f64) {
    // The update has been counted already.
    let round = run.step - 1;
    let rollout = &experience.rollout;
    let n = rollout.lengths.len() as f64;
    let mean = |values: &[f64]| moments(values).0;
    let texts = || rollout.texts.iter().flat_map(|response| &response.answers);
    let distinct = |n: usize| distinct_n(texts().map(String::as_str), n);
    let answers = rollout.answers.iter().map(Vec::len).sum::<usize>() as f64;
    let unfinished = rollout.answers.iter().flatten().filter(|answer| !answer.finished).count() as f64;
    let mut values = vec![
        ("reward", mean(rollout.first_scores())),
        ("reward_std", moments(rollout.first_scores()).1.sqrt()),
        ("kl", kl),
        ("k3", mean(&k3(&rollout.logprobs, &rollout.reference))),
        ("entropy", mean(&rollout.entropy)),
        ("response_length", rollout.lengths.iter().sum::<usize>() as f64 / answers),
        ("no_eos_share", unfinished / answers),
        ("distinct_1", distinct(1)),
        ("distinct_2", distinct(2)),
        ("eos_count", answers - unfinished),
        ("non_score_reward", -coef * kl),
        ("rlhf_reward", mean(&rollout.scores) - coef * kl),
        ("episodes", run.step as f64 * n),
        ("kl_coef", coef),
        ("grad_norm", summary.grad_norm),
        ("learning_rate", summary.learning_rate),
        ("epochs", summary.epochs as f64),
        ("sampling_gap", summary.sampling_gap.max),
        ("sampling_gap_mean", summary.sampling_gap.mean()),
        ("seconds_generation", rollout.seconds.generation),
        ("seconds_reward", rollout.seconds.reward),
        ("seconds_reference", rollout.seconds.reference),
        ("seconds_forward", summary.seconds.forward),
        ("seconds_backward", summary.seconds.backward),
        ("seconds_optimizer", summary.seconds.optimizer),
    ];
    if !experience.returns.is_empty() {
        values.push(("explained_variance", explained_variance(&rollout.values, &experience.returns)));
    }
    if let Some(weights) = &rollout.importance {
        values.extend([
            ("importance_weight", weights.mean),
            ("importance_weight_min", weights.least),
            ("importance_weight_max", weights.greatest),
            ("importance_beyond_cap", weights.beyond),
        ]);
    }
    if let Some(cut) = rollout.cut_conversations {
        values.extend([("turns", answers / n), ("conversations_cut", cut as f64)]);
    }
    if rollout.is_generated_elsewhere {
        let ages: Vec<f64> = rollout.versions.iter().map(|version| (round - version) as f64).collect();
        values.push(("rollout_staleness", mean(&ages)));
    }
    values.extend(rollout.groups.map(|groups| groups.metrics()).into_iter().flatten());
    values.extend(experience.selection.iter().flat_map(|selection| selection.metrics(&rollout.scores)));
    values.extend(
        summary.all.means().map(|(name, value)| (if name == "accuracy" { "train_accuracy" } else { name }, value)),
    );
    for (name, at_start) in
        [("ratio", "start_ratio"), ("approx_kl", "start_approx_kl"), ("clip_fraction", "start_clip_fraction")]
    {
        values.extend(summary.first.mean(name).map(|value| (at_start, value)));
    }
    run.metrics(values);
}

//! The names under which TRL's trainers log the same metrics, for comparison.

/// TRL's name for `metric` of `recipe`, if there is one and it differs.
pub fn alias(recipe: &str, metric: &str) -> Option<&'static str> {
    let table: &[(&str, &str)] = match recipe {
        "ppo" => PPO,
        "online_dpo" => ONLINE_DPO,
        "reinforce" | "rloo" | "grpo" => ONLINE,
        "reward" => REWARD,
        "dpo" | "simpo" | "orpo" | "kto" => DPO,
        _ => SUPERVISED,
    };
    table.iter().find(|(ours, _)| *ours == metric).map(|(_, theirs)| *theirs)
}

/// PPOTrainer.
const PPO: &[(&str, &str)] = &[
    ("reward", "objective/scores"),
    ("kl", "objective/kl"),
    ("entropy", "objective/entropy"),
    ("rlhf_reward", "objective/rlhf_reward"),
    ("non_score_reward", "objective/non_score_reward"),
    ("approx_kl", "policy/approxkl_avg"),
    ("clip_fraction", "policy/clipfrac_avg"),
    ("update_entropy", "policy/entropy_avg"),
    ("policy_loss", "loss/policy_avg"),
    ("value_loss", "loss/value_avg"),
    ("value_clip_fraction", "val/clipfrac_avg"),
    ("ratio", "val/ratio"),
    ("eos_count", "val/num_eos_tokens"),
    ("learning_rate", "lr"),
    ("episodes", "episode"),
];

/// GRPOTrainer and RLOOTrainer. `reward`, `reward_std`, `kl` and `entropy` have the same name.
const ONLINE: &[(&str, &str)] = &[
    ("response_length", "completions/mean_length"),
    ("no_eos_share", "completions/clipped_ratio"),
    ("clip_fraction", "clip_ratio/region_mean"),
    ("clip_fraction_low", "clip_ratio/low_mean"),
    ("clip_fraction_high", "clip_ratio/high_mean"),
    ("policy_loss", "loss"),
    ("sampling_gap", "sampling/sampling_logp_difference/max"),
    ("sampling_gap_mean", "sampling/sampling_logp_difference/mean"),
    ("importance_weight", "sampling/importance_sampling_ratio/mean"),
    ("importance_weight_min", "sampling/importance_sampling_ratio/min"),
    ("importance_weight_max", "sampling/importance_sampling_ratio/max"),
];

/// OnlineDPOTrainer.
const ONLINE_DPO: &[(&str, &str)] = &[
    ("reward", "objective/scores"),
    ("kl", "objective/kl"),
    ("entropy", "objective/entropy"),
    ("rlhf_reward", "objective/rlhf_reward"),
    ("non_score_reward", "objective/non_score_reward"),
    ("chosen_reward", "rewards/chosen"),
    ("rejected_reward", "rewards/rejected"),
    ("train_accuracy", "rewards/accuracies"),
    ("margin", "rewards/margins"),
];

/// RewardTrainer.
const REWARD: &[(&str, &str)] = &[
    ("train_accuracy", "accuracy"),
    ("heldout_accuracy", "eval_accuracy"),
    ("heldout_margin", "eval_margin"),
    ("heldout_loss", "eval_loss"),
];

/// DPOTrainer, and those of SimPO, ORPO and KTO.
const DPO: &[(&str, &str)] = &[
    ("chosen_reward", "rewards/chosen"),
    ("rejected_reward", "rewards/rejected"),
    ("train_accuracy", "rewards/accuracies"),
    ("margin", "rewards/margins"),
    ("heldout_accuracy", "eval_rewards/accuracies"),
    ("heldout_loss", "eval_loss"),
];

const SUPERVISED: &[(&str, &str)] = &[("heldout_loss", "eval_loss")];

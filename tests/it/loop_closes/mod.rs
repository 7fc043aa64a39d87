//! The loop, end to end on a tiny model: rankings → reward model → PPO → a policy that people like better.

pub mod world;

use serde_json::json;

use world::{World, exists, share_written_by, train};

/// Seeded. The start policy writes about a fifth liked words (20 of 96 tokens); rankings alone must bring
/// the reward model to 0.9 held-out accuracy, and the reward model alone must bring the policy up by 0.3.
#[test]
fn rankings_teach_a_reward_model_and_the_reward_model_teaches_the_policy() {
    let world = World::new();
    let reward_dir = world.path("reward");
    let (recorder, metrics) = train(
        "reward",
        &json!({
            "model": World::model(), "output_dir": reward_dir, "comparisons": world.comparisons(600),
            "epochs": 3, "batch_size": 16, "learning_rate": 3e-3, "heldout_fraction": 0.15, "eval_every": 20,
            "device": "cpu",
        }),
    );
    let accuracy = metrics["heldout_accuracy"].as_f64().unwrap();
    println!("reward held-out accuracy {accuracy:.3}, curve {:?}", recorder.curve("heldout_accuracy"));
    assert!(accuracy >= 0.9, "held-out accuracy {accuracy}");
    assert!(exists(&reward_dir, "model.safetensors") && exists(&reward_dir, "instructd.json"));

    let before = share_written_by(&World::model());
    let policy_dir = world.path("policy");
    let (recorder, metrics) = train(
        "ppo",
        &json!({
            "model": World::model(), "output_dir": policy_dir, "prompts": world.prompts(64),
            "reward_model": reward_dir, "iterations": 32, "rollout_batch_size": 64, "response_length": 10,
            "learning_rate": 1.5e-3, "kl_coef": 0.08, "ppo_epochs": 4, "minibatches": 2, "max_length": 64,
            "device": "cpu",
        }),
    );
    let after = share_written_by(&policy_dir);
    let kl = recorder.last("kl");
    println!("liked share {before:.3} -> {after:.3}, kl {kl:.2}, {metrics}");
    assert!(after >= before + 0.3, "the share of liked words went from {before} to {after}");
    assert!(recorder.curve("kl").iter().all(|kl| *kl < 20.0), "KL {:?}", recorder.curve("kl"));
}

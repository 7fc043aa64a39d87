//! `online_dpo` and `raft`: which samples are learned from, the first step, micro-batches, options. Learning, resuming and
//! frozen layers are in the lists of all recipes.

use std::collections::BTreeSet;
use std::path::Path;

use candle_core::{Device, Tensor};
use instructd::model::load;
use serde_json::{Value, json};

use super::recipes::{rl, with};
use crate::loop_closes::world::{World, train};

const RECIPES: [&str; 2] = ["online_dpo", "raft"];

fn base(world: &World, out: &str) -> Value {
    with(&rl(world, out), json!({"group_size": 4, "minibatches": 1, "ppo_epochs": 1}))
}

/// A reward that no response gets.
fn never() -> Value {
    json!({"kind": "contains", "texts": ["no such word"]})
}

#[test]
fn the_first_step_starts_from_itself() {
    let world = World::new();
    for recipe in RECIPES {
        for more in [json!({"lora": null}), json!({"lora": {"rank": 4}}), json!({"micro_batch_tokens": 40})] {
            // A temperature other than 1 shows a log-prob that forgot it.
            let args = with(&with(&base(&world, "out"), more), json!({"temperature": 0.7, "learning_rate": 1e-2}));
            let recorder = train(recipe, &args).0;
            let kl = recorder.curve("kl");
            assert!(kl[0] == 0.0 && kl[1] != 0.0, "{recipe}: {kl:?}");
            assert!(recorder.curve("start_ratio").iter().all(|ratio| (ratio - 1.0).abs() < 1e-6), "{recipe}");
            assert!(recorder.curve("start_approx_kl").iter().all(|kl| *kl < 1e-10), "{recipe}");
            assert!(recorder.curve("sampling_gap").iter().all(|gap| *gap < 1e-4), "{recipe}");
            if recipe == "online_dpo" {
                let first = |name: &str| recorder.curve(name)[0];
                // Policy and reference are one: no margin, and the loss is that of a coin.
                assert_eq!((first("margin"), first("chosen_reward"), first("rejected_reward")), (0.0, 0.0, 0.0));
                assert!((first("loss") - std::f64::consts::LN_2).abs() < 1e-6, "{}", first("loss"));
                assert_ne!(recorder.curve("margin")[1], 0.0, "the reference followed the policy");
            }
        }
    }
}

#[test]
fn micro_batches_change_nothing() {
    let world = World::new();
    for (recipe, more) in [
        ("online_dpo", json!({})),
        ("online_dpo", json!({"loss": "ipo"})),
        ("online_dpo", json!({"loss": "robust", "label_smoothing": 0.2})),
        ("raft", json!({})),
        ("raft", json!({"keep_share": 0.5, "kl_coef": 0.1})),
    ] {
        let args = with(&with(&base(&world, "out"), more.clone()), json!({"iterations": 2}));
        let run = |tokens: usize| train(recipe, &with(&args, json!({"micro_batch_tokens": tokens}))).0;
        let (whole, parts) = (run(100_000), run(20));
        for name in ["loss", "grad_norm", "approx_kl", "margin", "train_accuracy", "learned_from", "best_reward"] {
            assert_eq!(whole.curve(name).len(), parts.curve(name).len(), "{recipe} {more} {name}");
            for (a, b) in whole.curve(name).iter().zip(parts.curve(name)) {
                assert!((a - b).abs() <= 1e-3 * a.abs().max(1e-2), "{recipe} {more} {name}: {a} whole, {b} in parts");
            }
        }
        assert!(whole.curve("grad_norm").iter().all(|norm| *norm > 0.0), "{recipe} {more}: nothing is learned");
    }
}

#[test]
fn every_trained_tensor_moves() {
    let world = World::new();
    let bits = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let start = load(Path::new(&World::model()), &Device::Cpu).unwrap().weights;
    for recipe in RECIPES {
        // Without clipping, gradients are applied while they are computed.
        for more in [json!({}), json!({"max_grad_norm": null}), json!({"target_kl": 100.0, "max_grad_norm": null})] {
            train(recipe, &with(&base(&world, "out"), more.clone()));
            let end = load(Path::new(&world.path("out")), &Device::Cpu).unwrap().weights;
            let still: BTreeSet<&String> =
                start.iter().filter(|(name, w)| bits(w) == bits(&end[*name])).map(|(name, _)| name).collect();
            assert!(still.is_empty(), "{recipe} {more}: {still:?} did not move");
        }
    }
}

/// The worst cannot be above the best, and more samples make the best better and the worst worse.
#[test]
fn the_best_and_the_worst_are_learned_from() {
    let world = World::new();
    let of = |recipe: &str, group: usize| {
        let args = json!({"group_size": group, "rollout_batch_size": 64, "iterations": 1});
        train(recipe, &with(&base(&world, "out"), args)).0
    };
    let (two, eight) = (of("online_dpo", 2), of("online_dpo", 8));
    let spread = |r: &crate::support::Recorder| r.last("best_reward") - r.last("worst_reward");
    assert!(spread(&two) > 0.0 && spread(&eight) > spread(&two) + 0.05, "{} {}", spread(&two), spread(&eight));
    assert!(eight.last("learned_from") <= 8.0 && two.last("learned_from") <= 32.0);
    let raft = of("raft", 8);
    assert!(raft.last("best_reward") > raft.last("reward") + 0.05);
    // The same samples, as a pair and alone.
    assert_eq!(raft.last("best_reward"), eight.last("best_reward"));
}

#[test]
fn prompts_without_a_preference_teach_nothing() {
    let world = World::new();
    let bytes = |dir: &str| std::fs::read(Path::new(&world.path(dir)).join("model.safetensors")).unwrap();
    for recipe in RECIPES {
        // One update at most of a rate of almost nothing: what the start policy writes when it is saved again.
        let none = with(&base(&world, "none"), json!({"reward": never(), "iterations": 3, "minibatches": 2}));
        let recorder = train(recipe, &none).0;
        assert_eq!(recorder.curve("learned_from"), [0.0; 3], "{recipe}");
        assert_eq!(recorder.curve("grad_norm"), [0.0; 3], "{recipe}");
        assert_eq!(recorder.curve("kl"), [0.0; 3], "{recipe}");
        assert!(recorder.curve("loss").is_empty(), "{recipe}: there is nothing to take a loss of");
        assert!(recorder.curve("learning_rate").iter().all(|rate| *rate > 0.0));
        train(recipe, &with(&none, json!({"output_dir": world.path("one"), "iterations": 1})));
        assert!(bytes("none") == bytes("one"), "{recipe}: weights moved without a gradient");
    }
    // With a least reward, equal responses count if they are good enough.
    let counted = with(&base(&world, "counted"), json!({"reward": never(), "least_reward": 0.0, "iterations": 1}));
    let recorder = train("raft", &counted).0;
    assert_eq!(recorder.last("learned_from"), 4.0);
    assert!(recorder.last("grad_norm") > 0.0);
    let high = train("raft", &with(&counted, json!({"least_reward": 0.5}))).0;
    assert_eq!(high.last("learned_from"), 0.0);
}

#[test]
fn raft_keeps_the_share_that_is_asked_for_and_ranks_by_reward_less_kl() {
    let world = World::new();
    let of = |more: Value| {
        let args = json!({"rollout_batch_size": 64, "iterations": 2, "learning_rate": 1e-2});
        train("raft", &with(&with(&base(&world, "out"), args), more)).0
    };
    let (all, half) = (of(json!({})), of(json!({"keep_share": 0.25})));
    assert!((half.curve("learned_from")[0] - (all.curve("learned_from")[0] * 0.25).ceil()).abs() < 1e-9);
    assert!(half.curve("best_reward")[0] > all.curve("best_reward")[0]);
    // In the first round there is no KL; in the second the penalty decides which is the best.
    let penalised = of(json!({"kl_coef": 100.0}));
    assert_eq!(all.curve("best_reward")[0], penalised.curve("best_reward")[0]);
    assert!(penalised.curve("best_reward")[1] < all.curve("best_reward")[1]);
}

/// A round of several passes stops before a step that would follow from a policy already too far away.
#[test]
fn passes_minibatches_and_the_early_stop_work_as_in_the_other_recipes() {
    let world = World::new();
    for recipe in RECIPES {
        let args = with(
            &base(&world, "out"),
            json!({"ppo_epochs": 3, "minibatches": 2, "learning_rate": 1e-2, "iterations": 2}),
        );
        let free = train(recipe, &args).0;
        assert_eq!(free.curve("epochs"), [3.0; 2]);
        let early = train(recipe, &with(&args, json!({"target_kl": 1e-9}))).0;
        assert_eq!(early.curve("epochs"), [1.0; 2], "{recipe}");
        let (budget, metrics) = train(recipe, &with(&args, json!({"kl_budget": 1e-6, "iterations": 3})));
        assert_eq!(budget.curve("kl").len(), 2, "{recipe}");
        assert!(metrics["stopped_because"].as_str().unwrap().contains("budget"), "{metrics}");
        for name in ["reward", "kl", "response_length", "distinct_1", "best_reward", "learned_from", "loss", "ratio"] {
            assert!(!free.curve(name).is_empty(), "{recipe} has no {name}");
        }
    }
    assert!(!train("online_dpo", &base(&world, "out")).0.curve("rewards/margins").is_empty(), "TRL's name");
}

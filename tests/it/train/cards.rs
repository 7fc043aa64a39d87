//! What a run says of its data before it begins, the card that it leaves behind, and conservative rewards.

use std::path::Path;

use serde_json::{Value, json};

use super::recipes::{fails, reward, rl, sft, with};
use crate::loop_closes::world::{LIKED, World, train};
use crate::support::Recorder;

fn card(world: &World, dir: &str) -> String {
    std::fs::read_to_string(Path::new(&world.path(dir)).join("README.md")).unwrap()
}

fn texts_of(recorder: &Recorder, kind: &str) -> String {
    let text = |v: &&Value| v["message"].as_str().unwrap_or_default().to_owned();
    recorder.events(kind).iter().map(text).collect::<Vec<_>>().join("\n")
}

#[test]
fn data_is_counted_before_the_run_and_a_card_is_left_after_it() {
    let world = World::new();
    let pair = |prompt: &str, better: &str, worse: &str, split: &str, labeler: &str| {
        json!({"prompt": prompt, "split": split, "labeler": labeler,
               "completions": [{"text": better, "tier": 0}, {"text": worse, "tier": 1}]})
        .to_string()
    };
    // One prompt on both sides; the longer answer wins three of four times; two people judged the same answers alike.
    let lines = [
        pair("t5", "t6 t7 t8", "t9", "train", "a"),
        pair("t5", "t6 t7 t8", "t9", "train", "b"),
        pair("t10", "t6", "t9 t9 t9", "train", "a"),
        pair("t5", "t11 t12 t13", "t14", "heldout", "a"),
    ];
    let file = world.path("counted.jsonl");
    std::fs::write(&file, lines.join("\n")).unwrap();
    for (recipe, more) in [("reward", json!({})), ("dpo", json!({})), ("orpo", json!({}))] {
        let args = with(&reward(&world, recipe), json!({"comparisons": file, "epochs": 2}));
        let (recorder, _) = train(recipe, &with(&args, more));
        let (log, warned) = (texts_of(&recorder, "data"), texts_of(&recorder, "warning"));
        assert!(log.contains("3 rows to train on, 1 held out") && log.contains("preferred in 75 %"), "{recipe}: {log}");
        assert!(log.contains("two people agree on 100 %"), "{recipe}: {log}");
        assert!(warned.contains("1 prompt is on both sides of the split"), "{recipe}: {warned}");
        let card = card(&world, recipe);
        for part in [
            "| rows, train | 3 |",
            "| prompts on both sides | 1 |",
            "| labelers | 2 |",
            "| longer is preferred | 0.750 |",
            "| `epochs` | `2` |",
            "| `comparisons` | `",
            "## Held-out figures",
        ] {
            assert!(card.contains(part), "{recipe}: {part} is not in\n{card}");
        }
        assert!(!card.contains(world.dir.path().to_str().unwrap()), "{recipe}: paths of this machine are in the card");
    }
    train("sft", &sft(&world, "sft"));
    assert!(card(&world, "sft").contains("| heldout loss |"), "{}", card(&world, "sft"));
    train("rloo", &rl(&world, "rl"));
    for part in ["KL to the start policy", "distinct-2", "| tokens of a response |"] {
        assert!(card(&world, "rl").contains(part), "{part} is not in {}", card(&world, "rl"));
    }
}

/// The same prompts and random numbers: a policy that has hardly moved gives the same responses, which tie.
#[test]
fn win_rates_compare_with_the_policy_before_training() {
    let world = World::new();
    let disliked: Vec<String> = (3..96).filter(|i| !LIKED.contains(i)).map(|i| format!("t{i}")).collect();
    let gold = json!({"kind": "word_share", "words": disliked});
    let still = with(&rl(&world, "still"), json!({"iterations": 2, "learning_rate": 1e-12, "gold_reward": gold}));
    let (recorder, metrics) = train("rloo", &still);
    let args: &Value = &still;
    let prompts = args["rollout_batch_size"].as_u64().unwrap() / args["group_size"].as_u64().unwrap_or(4);
    for by in ["reward", "gold"] {
        let rate = &metrics["win_rates"][by];
        // Within a group every response meets those of all random numbers, so wins and losses are balanced.
        assert_eq!((rate["share"].as_f64(), rate["prompts"].as_u64()), (Some(0.5), Some(prompts)), "{by}: {metrics}");
    }
    assert_eq!((recorder.curve("win_rate"), recorder.curve("gold_win_rate")), (vec![0.5], vec![0.5]));

    let half: Vec<String> = LIKED.take(LIKED.len() / 2).map(|i| format!("t{i}")).collect();
    let learns = json!({"iterations": 30, "rollout_batch_size": 64, "learning_rate": 3e-3, "kl_coef": 0.0,
                        "gold_reward": {"kind": "word_share", "words": half}, "gold_patience": 0});
    let (recorder, metrics) = train("ppo", &with(&rl(&world, "moved"), learns));
    let rate = |by: &str, what: &str| metrics["win_rates"][by][what].as_f64().unwrap();
    assert!(rate("reward", "low") > 0.55 && rate("gold", "low") > 0.5, "{metrics}");
    assert_ne!(rate("reward", "share"), rate("gold", "share"), "{metrics}");
    assert_eq!(recorder.curve("win_rate"), [rate("reward", "share")]);
    let card = card(&world, "moved");
    for part in
        ["**By the reward that it was trained on, ", "**By the held-out reward, ", "the 64 prompts of the first round"]
    {
        assert!(card.contains(part), "{part} is not in {card}");
    }
}

/// First values are those of the run's beginning, though another process ended it.
#[test]
fn the_card_of_a_resumed_run_is_that_of_an_uninterrupted_one() {
    let world = World::new();
    let args = |out: &str| with(&rl(&world, out), json!({"iterations": 3}));
    train("rloo", &args("whole"));
    let checkpoints = tempfile::tempdir().unwrap();
    let parts = with(&args("parts"), json!({"checkpoint_dir": checkpoints.path(), "resume": true}));
    let mut recorder = Recorder { stop_after: Some(1), ..Recorder::default() };
    (instructd::train::recipe("rloo").unwrap().run)(&parts, &mut recorder).unwrap();
    train("rloo", &parts);
    // Only a run with checkpoints hashes the model that it starts from.
    let without_hash = |text: String| {
        text.lines().filter(|line| !line.starts_with("| `model` |")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(without_hash(card(&world, "parts")), without_hash(card(&world, "whole")));
}

#[test]
fn a_lower_bound_is_below_the_mean_and_the_worst_head_below_it() {
    let world = World::new();
    train("reward", &with(&reward(&world, "judge"), json!({"heads": 3})));
    let args = with(
        &rl(&world, "out"),
        json!({"reward": null, "reward_model": world.path("judge"), "iterations": 1, "minibatches": 1}),
    );
    let first = |more: Value| train("rloo", &with(&args, more)).0.curve("reward")[0];
    let mean = first(json!({}));
    assert_eq!(first(json!({"ensemble_reward": "lower_bound", "ensemble_doubt": 0.0})), mean);
    let bound = |doubt: f64| first(json!({"ensemble_reward": "lower_bound", "ensemble_doubt": doubt}));
    let (one, two) = (bound(1.0), bound(2.0));
    // Linear in the doubt: the same samples, scored by the same heads.
    assert!(one < mean && ((mean - two) - 2.0 * (mean - one)).abs() < 1e-9, "{mean} {one} {two}");
    let worst = first(json!({"ensemble_reward": "worst_case"}));
    // Of three heads the lowest lies between ½√2 and √2 standard deviations below the mean.
    assert!(worst < mean - 0.7 * (mean - one) && worst >= mean - 1.42 * (mean - one), "{mean} {one} {worst}");
    train("reward", &with(&reward(&world, "single"), json!({"max_steps": 1})));
    let single = with(&args, json!({"reward_model": world.path("single"), "ensemble_reward": "worst_case"}));
    let error = fails("rloo", &single);
    assert!(error.contains("ensemble_reward") && error.contains("no ensemble"), "{error}");
}

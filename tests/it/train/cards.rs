//! What a run says of its data before it begins, the card that it leaves behind, and conservative rewards.

use std::path::Path;

use serde_json::{Value, json};

use super::recipes::{fails, reward, rl, sft, with};
use crate::loop_closes::world::{World, train};
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

//! The recipes that learn from preferences without a reward model: cDPO, rDPO, SimPO, ORPO, and KTO from thumbs.

use std::path::Path;

use instructd::train::TrainOutcome;
use serde_json::{Value, json};

use super::recipes::{fails, reward, with};
use crate::loop_closes::world::{World, liked_share, share_written_by, train};
use crate::support::Recorder;

/// Thumbs on completions of the world's rankings: up where more than half of the words are liked.
fn thumbs(world: &World, n: usize) -> String {
    let text = std::fs::read_to_string(world.comparisons(n)).unwrap();
    let mut lines = String::new();
    for line in text.lines() {
        let set: Value = serde_json::from_str(line).unwrap();
        for completion in set["completions"].as_array().unwrap() {
            let words = completion["text"].as_str().unwrap();
            let ids: Vec<u32> = words.split(' ').map(|w| w[1..].parse().unwrap()).collect();
            let one = json!({"prompt": set["prompt"], "completion": words, "label": liked_share(&ids) > 0.5});
            lines.push_str(&format!("{one}\n"));
        }
    }
    let path = world.path("thumbs.jsonl");
    std::fs::write(&path, lines).unwrap();
    path
}

fn kto(world: &World, out: &str, n: usize) -> Value {
    json!({
        "model": World::model(), "output_dir": world.path(out), "feedback": thumbs(world, n), "device": "cpu",
        "learning_rate": 1e-3, "max_length": 64, "batch_size": 16,
    })
}

/// Every recipe and loss, with arguments of a short run.
fn all(world: &World, out: &str) -> Vec<(&'static str, Value)> {
    let pairs = reward(world, out);
    vec![
        ("dpo", with(&pairs, json!({"label_smoothing": 0.1}))),
        ("dpo", with(&pairs, json!({"loss": "robust", "label_smoothing": 0.2}))),
        ("simpo", pairs.clone()),
        ("simpo", with(&pairs, json!({"label_smoothing": 0.1}))),
        ("orpo", pairs),
        ("kto", kto(world, out, 12)),
    ]
}

#[test]
fn micro_batches_change_nothing() {
    let world = World::new();
    for (recipe, args) in all(&world, "out") {
        // Two steps: KTO's reference point is 0 in the first.
        let run = |tokens: usize| {
            let more = json!({"micro_batch_tokens": tokens, "max_steps": 2, "learning_rate": 1e-2});
            train(recipe, &with(&args, more)).0
        };
        let (whole, parts) = (run(100_000), run(20));
        for name in ["loss", "grad_norm", "train_accuracy", "kl", "nll_loss", "margin"] {
            assert_eq!(whole.curve(name).len(), parts.curve(name).len());
            for (a, b) in whole.curve(name).iter().zip(parts.curve(name)) {
                assert!((a - b).abs() <= 1e-3 * a.abs().max(1e-1), "{recipe} {name}: {a} whole, {b} in parts");
            }
        }
        assert!(whole.curve("grad_norm").iter().all(|norm| *norm > 0.0), "{recipe}");
    }
}

/// Before the first update the policy is its own reference: no margin, no KL, and the loss is that of a coin.
#[test]
fn the_first_step_starts_from_itself() {
    let world = World::new();
    for (recipe, args) in all(&world, "out") {
        for lora in [json!(null), json!({"rank": 4})] {
            let recorder = train(recipe, &with(&args, json!({"lora": lora, "max_steps": 1}))).0;
            let first = |name: &str| recorder.curve(name)[0];
            match recipe {
                "dpo" => {
                    assert_eq!((first("margin"), first("chosen_reward")), (0.0, 0.0));
                    assert!((first("loss") - std::f64::consts::LN_2).abs() < 1e-6, "{}", first("loss"));
                }
                "kto" => {
                    assert_eq!((first("kl"), first("chosen_reward"), first("rejected_reward")), (0.0, 0.0, 0.0));
                    // Half of every weight, and the weights of both sides are equal in the whole data.
                    assert!(first("loss") > 0.499 && first("loss") < 2.0, "{}", first("loss"));
                }
                _ => assert!(first("loss").is_finite() && first("grad_norm") > 0.0),
            }
        }
    }
}

#[test]
fn a_resumed_run_ends_with_the_bits_of_an_uninterrupted_one() {
    let world = World::new();
    let pairs = reward(&world, "whole");
    for (recipe, args) in [
        ("dpo", with(&pairs, json!({"loss": "robust", "label_smoothing": 0.2}))),
        ("simpo", pairs.clone()),
        ("orpo", with(&pairs, json!({"adam_states": "8bit"}))),
        ("kto", kto(&world, "whole", 16)),
    ] {
        train(recipe, &args);
        let checkpoints = tempfile::tempdir().unwrap();
        let more = json!({"output_dir": world.path("parts"), "checkpoint_dir": checkpoints.path(), "resume": true});
        let args = with(&args, more);
        let mut stops = 0;
        loop {
            let mut recorder = Recorder { stop_after: Some(1), ..Recorder::default() };
            match (instructd::train::recipe(recipe).unwrap().run)(&args, &mut recorder).unwrap() {
                TrainOutcome::Stopped { .. } => stops += 1,
                TrainOutcome::Done { .. } => break,
            }
            assert!(stops < 30, "{recipe} makes no progress");
        }
        assert!(stops >= 1, "{recipe} was never stopped");
        let bytes = |dir: &str| std::fs::read(Path::new(&world.path(dir)).join("model.safetensors")).unwrap();
        assert!(bytes("whole") == bytes("parts"), "{recipe}: other weights after resuming");
    }
}

#[test]
fn every_loss_learns_what_was_preferred() {
    let world = World::new();
    let comparisons = world.comparisons(400);
    for (recipe, more) in [
        ("dpo", json!({"label_smoothing": 0.1})),
        ("dpo", json!({"loss": "robust", "label_smoothing": 0.1})),
        ("simpo", json!({})),
        ("orpo", json!({"beta": 0.5})),
    ] {
        let args = with(
            &reward(&world, "out"),
            json!({"comparisons": comparisons, "epochs": 6, "learning_rate": 2e-3, "heldout_fraction": 0.2}),
        );
        let (_, metrics) = train(recipe, &with(&args, more.clone()));
        println!("{recipe} {more}: {metrics}");
        // Two standard errors above a coin over the 67 held-out pairs.
        assert!(metrics["heldout_accuracy"].as_f64().unwrap() > 0.62, "{recipe} {more}: {metrics}");
    }
}

#[test]
fn kto_learns_from_thumbs_alone() {
    let world = World::new();
    let start = share_written_by(&World::model());
    let args = with(
        &kto(&world, "out", 150),
        json!({"epochs": 6, "learning_rate": 2e-3, "heldout_fraction": 0.2, "eval_every": 10}),
    );
    let (recorder, metrics) = train("kto", &args);
    let share = share_written_by(&world.path("out"));
    println!("{start:.3} -> {share:.3}: {metrics}");
    assert!(share > start + 0.1, "{start} -> {share}");
    // How often a liked completion was raised more than one that was not.
    assert!(metrics["heldout_accuracy"].as_f64().unwrap() > 0.75, "{metrics}");
    assert!(recorder.last("chosen_reward") > recorder.last("rejected_reward"));
    assert!(recorder.curve("kl").iter().all(|kl| *kl >= 0.0));
    // The rarer side is raised until both weigh the same.
    let number = |name: &str| metrics[name].as_f64().unwrap();
    let (up, down) = (number("liked") * number("desirable_weight"), number("not_liked") * number("undesirable_weight"));
    assert!((up / down - 1.0).abs() < 1e-9 && number("desirable_weight").min(number("undesirable_weight")) == 1.0);
    let given = json!({"desirable_weight": 2.0, "undesirable_weight": 3.0, "max_steps": 1});
    let (_, metrics) = train("kto", &with(&args, given));
    assert_eq!((&metrics["desirable_weight"], &metrics["undesirable_weight"]), (&json!(2.0), &json!(3.0)));
}

#[test]
fn kto_reports_unusable_data() {
    let world = World::new();
    let file = world.path("odd.jsonl");
    let args = with(&kto(&world, "out", 1), json!({"feedback": file}));
    for (lines, word) in [
        ("", "no liked or disliked completion"),
        ("{\"prompt\": \"t5\", \"completion\": \"t6\", \"label\": \"up\"}", "line 1: `label` must be true or false"),
        ("{\"prompt\": \"t5\", \"completion\": \"t6\", \"label\": true, \"split\": \"train\"}\n", "there are 1 and 0"),
    ] {
        std::fs::write(&file, lines).unwrap();
        let error = fails("kto", &args);
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn smoothing_follows_from_how_often_people_agree() {
    let world = World::new();
    let line = |better: &str, worse: &str| {
        json!({"prompt": "t5", "split": "train",
               "completions": [{"text": better, "tier": 0}, {"text": worse, "tier": 1}]})
    };
    // Of the ten pairs of five people, the six of four agree.
    let mut lines = vec![line("t6", "t7").to_string(); 4];
    lines.push(line("t7", "t6").to_string());
    let file = world.path("several.jsonl");
    std::fs::write(&file, lines.join("\n")).unwrap();
    let args = with(
        &reward(&world, "out"),
        json!({"comparisons": file, "smoothing_from_agreement": true, "max_steps": 1, "loss": "robust"}),
    );
    let (recorder, metrics) = train("dpo", &args);
    let agreement = metrics["labeler_agreement"].as_f64().unwrap();
    let epsilon = metrics["label_smoothing"].as_f64().unwrap();
    assert!((agreement - 0.6).abs() < 1e-12, "six of ten pairs of people agree: {metrics}");
    assert!(((1.0 - epsilon).powi(2) + epsilon * epsilon - agreement).abs() < 1e-12, "{metrics}");
    assert_eq!(recorder.last("label_smoothing"), epsilon);
    std::fs::write(&file, line("t6", "t7").to_string()).unwrap();
    let error = fails("dpo", &args);
    assert!(error.contains("smoothing_from_agreement") && error.contains("not known"), "{error}");
}

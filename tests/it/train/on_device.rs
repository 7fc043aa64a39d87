//! Recipes on the simulated device: the losses of the CPU, checkpoints, and refusals.

use std::path::Path;

use instructd::train::{TrainOutcome, recipe};
use serde_json::{Value, json};

use super::recipes::{fails, reward, rl, sft, with};
use crate::loop_closes::world::{World, exists, share_written_by, train};
use crate::support::Recorder;

/// Arguments of pretraining on a text of known words.
fn pretrain(world: &World) -> Value {
    let text: String = (0..120).map(|i| format!("t{} t{} t{}\n\n", 10 + i % 7, 20 + i % 5, 40 + i % 3)).collect();
    std::fs::write(world.path("texts.txt"), text).unwrap();
    json!({
        "model": World::model(), "output_dir": world.path("pretrain"), "texts": [world.path("texts.txt")],
        "device": "cpu", "max_length": 32, "batch_size": 8, "learning_rate": 1e-3,
    })
}

#[test]
fn a_device_computes_the_losses_of_the_cpu() {
    let world = World::new();
    let lora = json!({"lora": {"rank": 4}});
    for (recipe, args) in [
        ("sft", with(&sft(&world, "sft"), json!({"weight_decay": 0.1}))),
        ("sft", with(&sft(&world, "sft"), lora.clone())),
        ("sft", with(&sft(&world, "sft"), json!({"freeze_layers": 1, "adam_form": "tf", "recompute": "block"}))),
        ("pretrain", pretrain(&world)),
        ("dpo", reward(&world, "dpo")),
        ("simpo", with(&reward(&world, "simpo"), lora)),
        ("orpo", reward(&world, "orpo")),
        ("kto", with(&feedback(&world), json!({"lora": {"rank": 4}}))),
        ("reward", with(&reward(&world, "reward"), json!({"heads": 2, "length_control": true}))),
        ("reward", with(&reward(&world, "reward"), json!({"lora": {"rank": 4}}))),
    ] {
        let args = with(&args, json!({"max_steps": 2, "micro_batch_tokens": 60, "batch_size": 2}));
        let run = |more: Value| train(recipe, &with(&args, more)).0;
        let host = run(json!({"device": "cpu"}));
        for (precision, tolerance) in [("f32", 1e-4), ("bf16", 5e-2)] {
            let device = run(json!({"device": "sim", "precision": precision}));
            for name in ["loss", "kl", "grad_norm", "learning_rate", "heldout_loss"] {
                let (a, b) = (host.curve(name), device.curve(name));
                assert_eq!(a.len(), b.len(), "{recipe}: {name}");
                for (a, b) in a.iter().zip(&b) {
                    assert!((a - b).abs() <= tolerance * a.abs(), "{recipe} {precision}: {name} is {b}, not {a}");
                }
            }
            assert_eq!(host.curve("loss").len(), 2);
        }
    }
}

/// Arguments of KTO from thumbs on completions of liked and other words.
fn feedback(world: &World) -> Value {
    let line = |i: usize| {
        let liked = i.is_multiple_of(2);
        let words: Vec<String> = (0..6).map(|k| format!("t{}", (if liked { 10 } else { 40 }) + (i + k) % 20)).collect();
        json!({"prompt": format!("t{} t5", 50 + i % 30), "completion": words.join(" "), "label": liked})
    };
    let lines: String = (0..40).map(|i| line(i).to_string() + "\n").collect();
    std::fs::write(world.path("feedback.jsonl"), lines).unwrap();
    json!({
        "model": World::model(), "output_dir": world.path("kto"), "feedback": world.path("feedback.jsonl"),
        "device": "cpu", "learning_rate": 1e-3, "max_length": 64,
    })
}

/// The first round has the samples of the CPU, because the device draws with the same random numbers.
#[test]
fn a_round_on_a_device_is_that_of_the_cpu() {
    let world = World::new();
    train("reward", &with(&reward(&world, "judge"), json!({"epochs": 1})));
    crate::support::write_reward_model("bert-tiny", world.path("encoder").as_ref());
    let by_encoder = json!({"reward_model": world.path("encoder"), "temperature": 0.8});
    let by_model = json!({"reward_model": world.path("judge"), "temperature": 0.8, "micro_batch_tokens": 60});
    let base = with(&rl(&world, "out"), json!({"iterations": 2, "rollout_batch_size": 8, "response_length": 5}));
    for (recipe, more) in [
        ("ppo", json!({"critic": "shared"})),
        ("ppo", json!({"critic": "separate"})),
        ("ppo", with(&by_model, json!({"critic": "separate", "lora": {"rank": 4}, "max_grad_norm": 0.5}))),
        (
            "ppo",
            json!({"ptx_coef": 0.5, "ptx_demonstrations": world.demonstrations(30), "minibatches": 2, "ppo_epochs": 2}),
        ),
        // Ends each round before its second update, whose gradients must not stay.
        ("ppo", json!({"critic": "separate", "target_kl": 1e-9, "minibatches": 2})),
        ("reinforce", by_model),
        ("reinforce", by_encoder),
        // Held-out judgments: the start policy is on the device before the policy is.
        ("reinforce", json!({"gold_comparisons": world.comparisons(12)})),
        ("reinforce", json!({"gold_comparisons": world.comparisons(12), "lora": {"rank": 4}})),
        ("rloo", json!({"lora": {"rank": 4}})),
        ("grpo", json!({"kl_coef": 0.1})),
        ("online_dpo", json!({"kl_coef": 0.1})),
        ("raft", json!({})),
    ] {
        let args = with(&base, more);
        let run = |more: Value| train(recipe, &with(&args, more)).0;
        let (host, device) = (run(json!({"device": "cpu"})), run(json!({"device": "sim"})));
        let mut compared = 0;
        for name in ["reward", "kl", "loss", "policy_loss", "value_loss", "ptx_loss", "entropy", "grad_norm", "gold"] {
            let (a, b) = (host.curve(name), device.curve(name));
            assert_eq!(a.len(), b.len(), "{recipe}: {name}");
            for (a, b) in a.iter().zip(&b) {
                assert!((a - b).abs() <= 2e-3 * a.abs().max(0.05), "{recipe} {args}: {name} is {b}, not {a}");
            }
            compared += a.len();
        }
        assert!(compared >= 8, "{recipe}: {compared} values");
        assert!(
            device.curve("sampling_gap").iter().all(|gap| *gap < 1e-4),
            "{recipe}: {:?}",
            device.curve("sampling_gap")
        );
        assert_eq!(device.curve("kl")[0], 0.0, "{recipe}: the reference is the start policy");
    }
}

#[test]
fn ppo_on_a_device_learns_what_people_like() {
    let world = World::new();
    let start = share_written_by(&World::model());
    let args = with(
        &rl(&world, "out"),
        json!({"device": "sim", "precision": "bf16", "iterations": 8, "rollout_batch_size": 16, "learning_rate": 6e-3,
               "sample_prompts": 0}),
    );
    let (recorder, _) = train("ppo", &args);
    assert!(recorder.curve("start_ratio").iter().all(|ratio| (ratio - 1.0).abs() < 1e-6));
    let gaps = recorder.curve("sampling_gap_mean");
    assert!(gaps.iter().all(|gap| *gap < 0.05), "{gaps:?}");
    let share = share_written_by(&world.path("out"));
    assert!(share > start + 0.05, "{start} -> {share}");
}

#[test]
fn sft_on_a_device_teaches_what_was_demonstrated() {
    let world = World::new();
    let start = share_written_by(&World::model());
    let args = with(&sft(&world, "out"), json!({"device": "sim", "precision": "bf16", "batch_size": 8, "epochs": 3}));
    let (recorder, _) = train("sft", &args);
    let losses = recorder.curve("loss");
    assert!(losses[losses.len() - 1] < losses[0], "{losses:?}");
    let share = share_written_by(&world.path("out"));
    assert!(share > start + 0.1, "{start} -> {share}");
    assert!(exists(&world.path("out"), "config.json"));
}

#[test]
fn a_resumed_run_on_a_device_ends_with_the_bits_of_an_uninterrupted_one() {
    let world = World::new();
    let sft = with(&sft(&world, "whole"), json!({"device": "sim", "batch_size": 4, "max_steps": 4}));
    let reward = with(
        &reward(&world, "whole"),
        json!({"device": "sim", "length_control": true, "max_steps": 3, "batch_size": 2}),
    );
    let ppo = with(
        &rl(&world, "whole"),
        json!({"device": "sim", "critic": "separate", "iterations": 3, "rollout_batch_size": 4, "response_length": 4}),
    );
    for (name, args) in [
        ("sft", with(&sft, json!({"weight_decay": 0.1}))),
        ("sft", with(&sft, json!({"precision": "bf16", "lora": {"rank": 4}}))),
        ("reward", reward),
        ("ppo", ppo),
    ] {
        train(name, &args);
        let checkpoints = tempfile::tempdir().unwrap();
        let resumed = json!({"output_dir": world.path("parts"), "checkpoint_dir": checkpoints.path(), "resume": true});
        let args = with(&args, resumed);
        let mut stops = 0;
        loop {
            let mut recorder = Recorder { stop_after: Some(1), ..Recorder::default() };
            match (recipe(name).unwrap().run)(&args, &mut recorder).unwrap() {
                TrainOutcome::Stopped { checkpoint } => assert!(Path::new(&checkpoint.unwrap()).exists()),
                TrainOutcome::Done { .. } => break,
            }
            stops += 1;
            assert!(stops < 10, "no progress");
        }
        assert!(stops >= 2);
        let bytes = |dir: &str| std::fs::read(Path::new(&world.path(dir)).join("model.safetensors")).unwrap();
        assert!(bytes("whole") == bytes("parts"), "{name} {args}: other weights after resuming");
    }
}

#[test]
fn a_run_continues_on_another_device_with_a_warning() {
    let world = World::new();
    let checkpoints = tempfile::tempdir().unwrap();
    let args = with(
        &sft(&world, "out"),
        json!({"batch_size": 4, "max_steps": 3, "checkpoint_dir": checkpoints.path(), "resume": true}),
    );
    let mut stopped = Recorder { stop_after: Some(1), ..Recorder::default() };
    (recipe("sft").unwrap().run)(&with(&args, json!({"device": "sim"})), &mut stopped).unwrap();
    let (recorder, _) = train("sft", &args);
    let warned = |text: &str| recorder.events.iter().any(|(_, e)| e.to_string().contains(text));
    assert!(warned("the simulated device") && warned("the last bits of results will differ"));
}

#[test]
fn what_a_device_does_not_support_is_refused_before_the_run() {
    let world = World::new();
    let refused = |name: &str, args: &Value, more: Value| (recipe(name).unwrap().validate)(&with(args, more));
    let args = sft(&world, "out");
    for device in ["cuda", "sim"] {
        let more = json!({"device": device, "frozen_precision": "q8_0", "lora": {"rank": 2}});
        assert_eq!(refused("sft", &args, more).unwrap_err().field, "frozen_precision");
        let more = json!({"device": device, "adam_states": "8bit"});
        assert_eq!(refused("sft", &args, more).unwrap_err().field, "adam_states");
        refused("sft", &args, json!({"device": device, "recompute": "mlp", "precision": "bf16"})).unwrap();
    }
    assert_eq!(refused("sft", &args, json!({"precision": "bf16"})).unwrap_err().field, "precision");
    let rl = rl(&world, "rl");
    assert_eq!(refused("ppo", &rl, json!({"device": "sim", "numerics": "fast"})).unwrap_err().field, "numerics");
    assert_eq!(refused("grpo", &rl, json!({"device": "cuda", "entropy_coef": 0.1})).unwrap_err().field, "entropy_coef");
    let masked =
        json!({"model": World::model(), "output_dir": world.path("mlm"), "texts": ["texts.txt"], "device": "sim"});
    assert_eq!(refused("mlm", &masked, json!({})).unwrap_err().field, "device");
    let encoder = json!({"device": "sim", "model": crate::support::fixture("bert-tiny").display().to_string()});
    let error = fails("reward", &with(&reward(&world, "reward"), encoder));
    assert!(error.contains("device: encoders are trained on the CPU"), "{error}");
}

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
    ] {
        let args = with(&args, json!({"max_steps": 3, "micro_batch_tokens": 60, "batch_size": 4}));
        let run = |more: Value| train(recipe, &with(&args, more)).0;
        let host = run(json!({"device": "cpu"}));
        for (precision, tolerance) in [("f32", 1e-4), ("bf16", 5e-2)] {
            let device = run(json!({"device": "sim", "precision": precision}));
            for name in ["loss", "grad_norm", "learning_rate", "heldout_loss"] {
                let (a, b) = (host.curve(name), device.curve(name));
                assert_eq!(a.len(), b.len(), "{recipe}: {name}");
                for (a, b) in a.iter().zip(&b) {
                    assert!((a - b).abs() <= tolerance * a.abs(), "{recipe} {precision}: {name} is {b}, not {a}");
                }
            }
            assert_eq!(host.curve("loss").len(), 3);
        }
    }
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
    for more in [
        json!({"device": "sim", "weight_decay": 0.1}),
        json!({"device": "sim", "precision": "bf16", "lora": {"rank": 4}}),
    ] {
        let args = with(&sft(&world, "whole"), with(&more, json!({"batch_size": 4, "max_steps": 4})));
        train("sft", &args);
        let checkpoints = tempfile::tempdir().unwrap();
        let resumed = json!({"output_dir": world.path("parts"), "checkpoint_dir": checkpoints.path(), "resume": true});
        let args = with(&args, resumed);
        let mut stops = 0;
        loop {
            let mut recorder = Recorder { stop_after: Some(1), ..Recorder::default() };
            match (recipe("sft").unwrap().run)(&args, &mut recorder).unwrap() {
                TrainOutcome::Stopped { checkpoint } => assert!(Path::new(&checkpoint.unwrap()).exists()),
                TrainOutcome::Done { .. } => break,
            }
            stops += 1;
            assert!(stops < 10, "no progress");
        }
        assert!(stops >= 2);
        let bytes = |dir: &str| std::fs::read(Path::new(&world.path(dir)).join("model.safetensors")).unwrap();
        assert!(bytes("whole") == bytes("parts"), "{more}: other weights after resuming");
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
    let ppo = rl(&world, "ppo");
    assert_eq!(refused("ppo", &ppo, json!({"device": "sim"})).unwrap_err().field, "device");
    assert_eq!(refused("ppo", &ppo, json!({"device": "cuda", "precision": "bf16"})).unwrap_err().field, "precision");
    let gemma2 = crate::support::fixture("families/gemma2").display().to_string();
    let error = fails("sft", &with(&args, json!({"device": "sim", "model": gemma2})));
    assert!(error.contains("device") && error.contains("soft caps"), "{error}");
}

//! Every recipe on a model of every family: what it publishes loads, and is not what it started from.

use std::path::Path;

use candle_core::Device;
use instructd::model::RewardModel;
use instructd::model::{Decoder, PackedBatch, Purpose, SoftPrompt, load};
use serde_json::{Value, json};

use super::gradients::{MODELS, largest};
use super::recipes::with;
use crate::loop_closes::world::{World, train};
use crate::support::fixture;

/// Rows of t5…t94 of two classes.
fn labelled(world: &World) -> String {
    let row = |i: u32| json!({"text": format!("t{} t{}", 5 + i, 60 + i), "label": if i.is_multiple_of(2) { "a" } else { "b" }});
    let path = world.path("labelled.jsonl");
    std::fs::write(&path, (0..12).map(|i| row(i).to_string() + "\n").collect::<String>()).unwrap();
    path
}

fn logits(dir: &Path) -> candle_core::Tensor {
    let loaded = load(dir, &Device::Cpu).unwrap();
    let decoder = Decoder::new(&loaded.config, &loaded.weights, Purpose::Serve).unwrap();
    decoder.logits(&decoder.forward(&PackedBatch::new(&[(5..25u32).collect::<Vec<_>>()])).unwrap()).unwrap()
}

#[test]
fn every_family_learns_by_every_recipe_and_what_it_publishes_loads() {
    let world = World::new();
    let (demonstrations, comparisons, labelled) = (world.demonstrations(8), world.comparisons(6), labelled(&world));
    for name in MODELS {
        let base = json!({"model": fixture(name), "output_dir": world.path("out"), "device": "cpu", "max_length": 40,
            "learning_rate": 1e-3, "max_steps": 2, "heldout_fraction": 0.0});
        let lora = json!({"rank": 2, "alpha": 4.0});
        let sft = with(&base, json!({"demonstrations": demonstrations, "batch_size": 4}));
        let pairs = with(&base, json!({"comparisons": comparisons, "batch_size": 3}));
        let runs: [(&str, Value); 7] = [
            ("sft", sft.clone()),
            ("sft", with(&sft, json!({"lora": lora}))),
            ("dpo", with(&pairs, json!({"lora": lora}))),
            ("reward", pairs.clone()),
            ("reward", with(&pairs, json!({"lora": lora}))),
            ("finetune", with(&base, json!({"labelled": labelled, "batch_size": 6}))),
            ("prompt_tuning", with(&sft, json!({"n_tokens": 3, "learning_rate": 0.1}))),
        ];
        let before = logits(&fixture(name));
        for (recipe, args) in runs {
            let what = format!("{name}, {recipe}, adapters {}", args["lora"]);
            let (recorder, _) = train(recipe, &args);
            for loss in ["loss", "classification_loss"].iter().flat_map(|loss| recorder.curve(loss)) {
                assert!(loss.is_finite(), "{what}: {loss}");
            }
            let out = world.path("out");
            let out = Path::new(&out);
            match recipe {
                "sft" | "dpo" => {
                    let after = logits(out);
                    assert!(largest(&(&after - &before).unwrap()) > 1e-4, "{what}: nothing was learned");
                }
                "reward" => {
                    let reward = RewardModel::new(&load(out, &Device::Cpu).unwrap()).unwrap();
                    let scores = reward.score(&[vec![5, 6, 7], vec![8, 9]], 64).unwrap();
                    assert!(
                        scores.len() == 2 && scores.iter().all(|s| s.is_finite()) && scores[0] != scores[1],
                        "{what}"
                    );
                }
                "finetune" => {
                    let loaded = load(out, &Device::Cpu).unwrap();
                    assert_eq!(loaded.weights["score.weight"].dims(), [2, loaded.config.hidden_size], "{what}");
                    assert_eq!(
                        loaded.instructd.unwrap()["classifier"]["labels"].as_array().unwrap().len(),
                        2,
                        "{what}"
                    );
                }
                _ => {
                    let soft = SoftPrompt::load(out, &Device::Cpu).unwrap();
                    soft.check(&load(&fixture(name), &Device::Cpu).unwrap().config).unwrap();
                }
            }
            std::fs::remove_dir_all(out).unwrap();
        }
    }
}

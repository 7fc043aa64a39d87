//! Frozen matrices in fewer bits under adapters (QLoRA): exact for the numbers that the blocks stand for, published
//! from the file's own numbers.

use std::path::Path;

use candle_core::{Device, Tensor};
use instructd::model::adapters::peft;
use instructd::model::quantized::{self, MatrixQuantizer};
use instructd::model::{Decoder, Recompute, Weights, load, load_quantized};
use instructd::ops::blocks::BlockType;
use instructd::train::args::{FrozenPrecision, LoraArgs};
use instructd::train::step::PredictionBatch;
use instructd::train::trainable::{Freeze, Trainable};
use serde_json::{Value, json};

use super::gradients::{MODELS, language_model_grads, largest, sequences, stirred_over};
use super::recipes::{fails, reward, rl, with};
use crate::loop_closes::world::{World, train};
use crate::support::{UNLIKE, fixture};

const PRECISIONS: [FrozenPrecision; 2] = [FrozenPrecision::Q8_0, FrozenPrecision::Q4];

fn states(decoder: &Decoder) -> Tensor {
    decoder.forward(&PredictionBatch::new(&sequences().iter().collect::<Vec<_>>()).batch).unwrap()
}

fn same(what: &str, got: &Weights, want: &Weights) {
    assert_eq!(got.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>(), "{what}");
    for (name, tensor) in want {
        assert_eq!(got[name].dims(), tensor.dims(), "{what} {name}");
        assert!(largest(&(&got[name] - tensor).unwrap()) == 0.0, "{what}: {name}");
    }
}

/// Values and gradients of adapters over blocks are those over an f32 model of the numbers that the blocks stand for,
/// bit for bit; sampling, reference and evaluation compute what training does.
#[test]
fn adapters_over_blocks_equal_adapters_over_their_values() {
    let lora = LoraArgs { rank: 4, alpha: 8.0, targets: None };
    for model in MODELS {
        for precision in PRECISIONS {
            let what = format!("{model} {precision:?}");
            let held = stirred_over(model, Some(&lora), Recompute::None, precision);
            let loaded = load(&fixture(model), &Device::Cpu).unwrap();
            let kind = precision.blocks().unwrap();
            let blocks = MatrixQuantizer::new(&loaded.config, kind).quantize_all(loaded.weights.clone()).unwrap();
            let fewer = blocks.values().filter(|t| quantized::is_quantized(t)).count();
            assert!(fewer >= 4 * loaded.config.n_layers, "{what}: {fewer}");
            let stood_for = quantized::dequantize(&loaded.config, &blocks).unwrap();
            let plain: Trainable = Trainable::of(
                &loaded.config,
                stood_for,
                Some(&lora),
                Freeze::default(),
                Recompute::None,
                FrozenPrecision::F32,
                0,
            )
            .unwrap();
            for (name, var) in &held.params {
                plain.params[name].set(var.as_tensor()).unwrap();
            }
            let now = states(held.decoder());
            assert!(largest(&(&now - states(plain.decoder())).unwrap()) == 0.0, "{what}");
            same(&what, &language_model_grads(&held), &language_model_grads(&plain));
            let reference = held.reference(&blocks).unwrap();
            for other in [held.behaviour().unwrap(), reference, held.frozen_decoder().unwrap()] {
                assert!(largest(&(&now - states(&other)).unwrap()) == 0.0, "{what}");
            }
            same(&what, &held.merged().unwrap(), &plain.merged().unwrap());
        }
    }
}

/// A file that is read into blocks gives the blocks of the model that was read whole.
#[test]
fn loading_into_blocks_is_rounding_what_was_loaded() {
    for model in MODELS {
        let whole = load(&fixture(model), &Device::Cpu).unwrap();
        let held = load_quantized(&fixture(model), &Device::Cpu, BlockType::Q4_1).unwrap();
        let want = MatrixQuantizer::new(&whole.config, BlockType::Q4_1).quantize_all(whole.weights).unwrap();
        assert_eq!(held.weights.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>(), "{model}");
        for (name, tensor) in &want {
            let found = &held.weights[name];
            assert_eq!((found.dtype(), found.dims()), (tensor.dtype(), tensor.dims()), "{model} {name}");
            let bytes = |t: &Tensor| t.to_dtype(candle_core::DType::F32).unwrap().flatten_all().unwrap();
            assert_eq!(
                bytes(found).to_vec1::<f32>().unwrap(),
                bytes(tensor).to_vec1::<f32>().unwrap(),
                "{model} {name}"
            );
        }
    }
}

fn sft(world: &World, model: &Path, precision: &str) -> Value {
    json!({
        "model": model, "output_dir": world.path("out"), "demonstrations": world.demonstrations(60), "device": "cpu",
        "learning_rate": 5e-3, "max_length": 64, "epochs": 2, "batch_size": 8, "lora": {"rank": 4, "alpha": 8.0},
        "frozen_precision": precision, "heldout_fraction": 0.2,
    })
}

/// Training learns, and what is published is the file's base, not the rounded one, with the adapters folded in.
#[test]
fn the_published_model_is_the_files_base_with_the_adapters() {
    for model in ["gpt2-tiny"].into_iter().chain(UNLIKE) {
        let world = World::new();
        for precision in ["q8_0", "q4"] {
            let (recorder, _) = train("sft", &sft(&world, &fixture(model), precision));
            let losses = recorder.curve("loss");
            assert!(losses[losses.len() - 1] < losses[0], "{model} {precision}: {losses:?}");
            let (base, out) = (load(&fixture(model), &Device::Cpu).unwrap(), Path::new(&world.path("out")).to_owned());
            let adapter = peft::read(&out.join(peft::FOLDER), &base.config).unwrap();
            let want = adapter.merge(&base.config, &base.weights).unwrap();
            let got = load(&out, &Device::Cpu).unwrap().weights;
            assert_eq!(got.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>(), "{model}");
            for (name, tensor) in &want {
                let far = largest(&(tensor - &got[name]).unwrap());
                assert!(far <= 1e-6 * largest(tensor).max(1.0), "{model} {precision} {name}: {far}");
            }
        }
    }
}

/// Reward models, preferences and policies train over blocks too; the first step of RL starts from itself.
#[test]
fn every_recipe_with_adapters_trains_over_blocks() {
    let world = World::new();
    let over = |args: Value, precision: &str, more: Value| {
        let lora = json!({"lora": {"rank": 4, "alpha": 8.0}, "frozen_precision": precision});
        with(&with(&args, lora), more)
    };
    for recipe in ["reward", "dpo"] {
        let (recorder, _) = train(recipe, &over(reward(&world, recipe), "q4", json!({"max_steps": 3})));
        let losses = recorder.curve("loss");
        assert!(losses.len() == 3 && losses.iter().all(|loss| loss.is_finite()), "{recipe}: {losses:?}");
    }
    for recipe in ["ppo", "rloo"] {
        let (recorder, _) = train(recipe, &over(rl(&world, recipe), "q4", json!({"iterations": 2})));
        let first = |name: &str| recorder.curve(name)[0];
        assert_eq!((first("start_ratio"), first("sampling_gap"), first("kl")), (1.0, 0.0, 0.0), "{recipe}");
    }
    let error = fails("sft", &with(&over(super::recipes::sft(&world, "x"), "q4", json!({})), json!({"lora": null})));
    assert!(error.contains("frozen_precision") && error.contains("needs lora"), "{error}");
}

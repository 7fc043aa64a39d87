//! The recipes of the GPT and BERT family on small things: they learn what there is to learn, resume to the
//! bit, and leave alone what they must.

use std::path::Path;

use candle_core::Device;
use instructd::eval::run::{EvalArgs, EvalResult};
use instructd::model::init::{Heads, init};
use instructd::model::{ModelConfig, SoftPrompt, load};
use instructd::train::TrainOutcome;
use instructd::train::rng::{Stream, normal, rng};
use serde_json::{Value, json};

use crate::data::corpora::sentences;
use crate::loop_closes::world::{World, train};
use crate::support::{Recorder, copy_dir, fixture};

fn with(base: &Value, more: Value) -> Value {
    let mut args = base.clone();
    for (key, value) in more.as_object().unwrap() {
        args[key] = value.clone();
    }
    args
}

fn write(world: &World, name: &str, text: &str) -> String {
    std::fs::write(world.path(name), text).unwrap();
    world.path(name)
}

fn pretrain(world: &World, out: &str) -> Value {
    json!({
        "texts": [write(world, "corpus.txt", &sentences(240).join("\n\n"))], "output_dir": world.path(out),
        "architecture": {"hidden_size": 32, "n_layers": 2, "n_heads": 4, "max_positions": 64}, "vocab_size": 400,
        "chat": true, "max_length": 32, "batch_size": 16, "learning_rate": 1e-2, "adam_eps": 1e-8, "epochs": 16,
        "lr_schedule": "cosine", "warmup_steps": 3, "heldout_fraction": 0.1, "device": "cpu",
    })
}

fn mlm(world: &World, out: &str) -> Value {
    json!({
        "texts": [write(world, "corpus.txt", &sentences(240).join("\n\n"))], "output_dir": world.path(out),
        "architecture": {"family": "bert", "hidden_size": 32, "n_layers": 2, "n_heads": 4, "max_positions": 64},
        "vocab_size": 220, "max_length": 32, "batch_size": 16, "learning_rate": 1e-2, "epochs": 20,
        "heldout_fraction": 0.1, "device": "cpu",
    })
}

/// A BERT whose tokenizer has names for the special roles, as trained ones do.
fn bert() -> tempfile::TempDir {
    encoder("bert-tiny")
}

fn encoder(name: &str) -> tempfile::TempDir {
    let dir = copy_dir(&fixture(name));
    let config = json!({"cls_token": "t1", "sep_token": "t2", "mask_token": "t3"});
    std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    dir
}

/// Texts of words t5…t94; those with a word below t30 are of class "low".
fn labelled(world: &World, n: usize) -> String {
    let mut rng = rng(4, Stream::Samples, 0);
    let mut draw = move |low: u32, high: u32| low + (normal(&mut rng).abs() * 7919.0) as u32 % (high - low);
    let rows = (0..n).map(|i| {
        let mut words: Vec<u32> = (0..5).map(|_| draw(40, 95)).collect();
        if i % 2 == 0 {
            words[draw(0, 5) as usize] = draw(5, 30);
        }
        let text = words.iter().map(|w| format!("t{w}")).collect::<Vec<_>>().join(" ");
        json!({"text": text, "label": if i % 2 == 0 { "low" } else { "high" }}).to_string()
    });
    write(world, "labelled.jsonl", &rows.collect::<Vec<_>>().join("\n"))
}

fn finetune(world: &World, model: &Path, out: &str) -> Value {
    json!({
        "model": model, "output_dir": world.path(out), "labelled": labelled(world, 400), "device": "cpu",
        "learning_rate": 2e-3, "epochs": 8, "batch_size": 16, "heldout_fraction": 0.2,
    })
}

fn prompt_tuning(world: &World, out: &str) -> Value {
    json!({
        "model": World::model(), "output_dir": world.path(out), "demonstrations": world.demonstrations(200),
        "device": "cpu", "n_tokens": 6, "learning_rate": 0.1, "max_length": 64, "epochs": 3,
    })
}

#[test]
fn pretraining_learns_the_text_and_the_model_generates_it() {
    let world = World::new();
    let (recorder, metrics) = train("pretrain", &pretrain(&world, "out"));
    let losses = recorder.curve("loss");
    // A new model knows nothing: ln 400 ≈ 5.99 nats, up to the spread of its initial logits.
    assert!((losses[0] - 400f64.ln()).abs() < 0.2, "{losses:?}");
    let heldout = metrics["heldout_loss"].as_f64().unwrap();
    assert!(heldout < 3.0, "{heldout}, curve {losses:?}");
    assert!((metrics["heldout_perplexity"].as_f64().unwrap() - heldout.exp()).abs() < 1e-9);
    // The figure agrees with the evaluation's own count, up to the end tokens that only the recipe predicts.
    let bits = metrics["bits_per_byte"].as_f64().unwrap();
    assert!(bits > 0.1 && bits < 3.0, "{bits}");
    let loaded = load(Path::new(&world.path("out")), &Device::Cpu).unwrap();
    assert_eq!(loaded.config.vocab_size, loaded.tokenizer.as_ref().unwrap().vocab_size());
    // A chat ends with its turn, a text with the end of text.
    assert_eq!((loaded.config.eos_ids, loaded.config.bos_id), (vec![2, 0], Some(0)));
    assert!(loaded.chat_template.is_some() && !recorder.events("sample").is_empty());
}

#[test]
fn masked_pretraining_learns_to_guess() {
    let world = World::new();
    let (recorder, metrics) = train("mlm", &mlm(&world, "out"));
    let losses = recorder.curve("loss");
    assert!((losses[0] - 220f64.ln()).abs() < 0.6, "{losses:?}");
    let heldout = metrics["heldout_loss"].as_f64().unwrap();
    assert!(heldout < 3.0, "{heldout}, curve {losses:?}");
    let loaded = load(Path::new(&world.path("out")), &Device::Cpu).unwrap();
    assert!(loaded.weights.contains_key("cls.predictions.bias"));
    assert_eq!(loaded.instructd.unwrap()["kind"], "encoder");
}

#[test]
fn family_recipes_do_not_depend_on_micro_batches_and_resume_to_the_bit() {
    let world = World::new();
    let (bert, gpt) = (bert(), fixture("gpt2-tiny"));
    for (recipe, args, file) in [
        ("pretrain", with(&pretrain(&world, "a"), json!({"max_steps": 4})), "model.safetensors"),
        ("mlm", with(&mlm(&world, "a"), json!({"max_steps": 4})), "model.safetensors"),
        ("finetune", with(&finetune(&world, &gpt, "a"), json!({"max_steps": 4})), "model.safetensors"),
        ("finetune", with(&finetune(&world, bert.path(), "a"), json!({"max_steps": 4})), "model.safetensors"),
        (
            "prompt_tuning",
            with(
                &prompt_tuning(&world, "a"),
                json!({"max_steps": 4, "pretrain_texts": [write(&world, "raw.txt", "t5 t6 t7 t8\n\nt9 t10 t11")], "pretrain_steps": 2}),
            ),
            "soft_prompt.safetensors",
        ),
    ] {
        let (whole, _) = train(recipe, &args);
        let (parts, _) = train(recipe, &with(&args, json!({"micro_batch_tokens": 40, "output_dir": world.path("b")})));
        for name in ["loss", "classification_loss", "lm_loss", "pretrain_loss", "grad_norm"] {
            for (a, b) in whole.curve(name).iter().zip(parts.curve(name)) {
                assert!((a - b).abs() <= 1e-4 * a.abs().max(1e-2), "{recipe} {name}: {a} whole, {b} in parts");
            }
        }
        let checkpoints = tempfile::tempdir().unwrap();
        let args =
            with(&args, json!({"output_dir": world.path("c"), "checkpoint_dir": checkpoints.path(), "resume": true}));
        let mut stops = 0;
        loop {
            let mut recorder = Recorder { stop_after: Some(1), ..Recorder::default() };
            match (instructd::train::recipe(recipe).unwrap().run)(&args, &mut recorder).unwrap() {
                TrainOutcome::Stopped { .. } => stops += 1,
                TrainOutcome::Done { .. } => break,
            }
            assert!(stops < 10, "{recipe} makes no progress");
        }
        assert_eq!(stops, 3, "{recipe}");
        let bytes = |dir: &str| std::fs::read(Path::new(&world.path(dir)).join(file)).unwrap();
        assert!(bytes("a") == bytes("c"), "{recipe}: other weights after resuming");
    }
}

#[test]
fn other_text_is_refused_on_resume() {
    let world = World::new();
    let checkpoints = tempfile::tempdir().unwrap();
    let args = with(
        &pretrain(&world, "out"),
        json!({"checkpoint_dir": checkpoints.path(), "checkpoint_every": 1, "max_steps": 2, "resume": true}),
    );
    let recipe = instructd::train::recipe("pretrain").unwrap();
    let mut recorder = Recorder { stop_after: Some(1), ..Recorder::default() };
    (recipe.run)(&args, &mut recorder).unwrap();
    write(&world, "corpus.txt", &sentences(239).join("\n\n"));
    let error = (recipe.run)(&args, &mut Recorder::default()).unwrap_err().to_string();
    assert!(error.contains("file for texts"), "{error}");
}

#[test]
fn classifiers_learn_the_rule_and_evaluate_as_they_trained() {
    let world = World::new();
    let bert = bert();
    let others = ["roberta", "distilbert", "modernbert"].map(|name| encoder(&format!("families/{name}")));
    let encoders = others.iter().map(|dir| dir.path().to_owned()).chain([bert.path().to_owned()]);
    let decoders = ["gpt2-tiny", "llama-tied-tiny", "families/gemma3", "families/gpt-neox"].map(fixture);
    for model in decoders.into_iter().chain(encoders) {
        let (recorder, metrics) = train("finetune", &finetune(&world, &model, "out"));
        let accuracy = metrics["heldout_accuracy"].as_f64().unwrap();
        println!("{}: held-out accuracy {accuracy:.3}", model.display());
        // The rate is BERT's; others overshoot with it and end a little lower.
        let least = if others.iter().any(|dir| dir.path() == model) { 0.75 } else { 0.85 };
        assert!(accuracy > least, "{}: {accuracy} {:?}", model.display(), recorder.curve("classification_loss"));
        let about = load(Path::new(&world.path("out")), &Device::Cpu).unwrap().instructd.unwrap();
        assert_eq!((&about["kind"], &about["classifier"]["labels"]), (&json!("classifier"), &json!(["high", "low"])));
        let args: EvalArgs = serde_json::from_value(json!({
            "kind": "classifier", "model": world.path("out"), "labelled": world.path("labelled.jsonl"),
        }))
        .unwrap();
        let EvalResult::Classifier(all) = instructd::eval::run::run(&args).unwrap() else { panic!() };
        assert!(all.texts == 400 && all.accuracy > least && all.interval[0] < all.accuracy, "{all:?}");
    }
    let decoder = with(&finetune(&world, &fixture("gpt2-tiny"), "out"), json!({"max_steps": 1}));
    let (both, _) = train("finetune", &decoder);
    let (task, _) = train("finetune", &with(&decoder, json!({"lm_coef": 0.0})));
    assert!(!both.curve("lm_loss").is_empty() && task.curve("lm_loss").is_empty());
    assert_ne!(both.last("grad_norm"), task.last("grad_norm"), "the auxiliary loss has a gradient");
}

/// Every encoder becomes a classifier under the names that transformers gives one, and the file classifies as training
/// did.
#[test]
fn every_encoder_becomes_a_classifier_and_learns_from_masked_words() {
    for (name, head) in [
        ("bert-tiny", "bert.pooler.dense.weight"),
        ("families/roberta", "classifier.out_proj.weight"),
        ("families/distilbert", "pre_classifier.weight"),
        ("families/modernbert", "head.dense.weight"),
    ] {
        let (world, model) = (World::new(), encoder(name));
        let (recorder, metrics) =
            train("finetune", &with(&finetune(&world, model.path(), "out"), json!({"max_steps": 30})));
        let losses = recorder.curve("classification_loss");
        assert!(losses.len() == 30 && losses.iter().all(|loss| (0.3..1.2).contains(loss)), "{name}: {losses:?}");
        let out = world.path("out");
        let tensors = candle_core::safetensors::load(Path::new(&out).join("model.safetensors"), &Device::Cpu).unwrap();
        let (before, after) = (load(model.path(), &Device::Cpu).unwrap(), load(Path::new(&out), &Device::Cpu).unwrap());
        for (name, start) in before.weights.iter().filter(|(name, _)| after.weights.contains_key(*name)) {
            let moved = (start - &after.weights[name]).unwrap().abs().unwrap().max_all().unwrap();
            assert!(moved.to_scalar::<f32>().unwrap() > 0.0, "{name} did not train");
        }
        assert!(tensors.contains_key(head), "{name}: {:?}", tensors.keys());
        let config = std::fs::read_to_string(Path::new(&out).join("config.json")).unwrap();
        assert!(config.contains("ForSequenceClassification"), "{name}: {config}");
        let args: EvalArgs = serde_json::from_value(json!({
            "kind": "classifier", "model": out, "labelled": world.path("labelled.jsonl"),
        }))
        .unwrap();
        let EvalResult::Classifier(all) = instructd::eval::run::run(&args).unwrap() else { panic!() };
        // On a device, which allows for the rounding of one text.
        let at = serde_json::from_value(json!({"device": "sim"})).unwrap();
        let EvalResult::Classifier(there) = instructd::eval::run::run_at(&args, at).unwrap() else { panic!() };
        assert!((all.accuracy - there.accuracy).abs() < 0.01, "{name}: {there:?}, not {all:?}");
        assert!((all.loss - there.loss).abs() < 1e-5 * all.loss, "{name}: {there:?}, not {all:?}");
        assert!((all.accuracy - metrics["heldout_accuracy"].as_f64().unwrap()).abs() < 0.2, "{name}: {all:?}");

        let mut masked = with(&mlm(&world, "masked"), json!({"model": model.path(), "max_steps": 3}));
        for key in ["architecture", "vocab_size"] {
            masked.as_object_mut().unwrap().remove(key);
        }
        std::fs::write(world.path("corpus.txt"), "t5 t6 t7 t8 t9 t10\n\n".repeat(200)).unwrap();
        let (recorder, _) = train("mlm", &masked);
        let losses = recorder.curve("loss");
        assert!(losses[losses.len() - 1] < losses[0], "{name}: {losses:?}");
        load(Path::new(&world.path("masked")), &Device::Cpu).unwrap();
    }
}

#[test]
fn a_soft_prompt_helps_and_the_base_stays_as_it_is() {
    let world = World::new();
    let file = fixture("llama-tied-tiny").join("model.safetensors");
    let before = std::fs::read(&file).unwrap();
    let (_, metrics) = train("prompt_tuning", &prompt_tuning(&world, "out"));
    let (start, end) = (metrics["heldout_loss_before"].as_f64().unwrap(), metrics["heldout_loss"].as_f64().unwrap());
    println!("held-out loss {start:.3} -> {end:.3}");
    assert!(end < start - 0.3, "{start} -> {end}");
    assert!(std::fs::read(&file).unwrap() == before);
    let soft = SoftPrompt::load(Path::new(&world.path("out")), &Device::Cpu).unwrap();
    assert_eq!((soft.vectors.dims(), soft.info.n_tokens, soft.info.hidden_size), (&[6usize, 48][..], 6, 48));
    use sha2::Digest;
    assert_eq!(soft.info.base_sha256, hex::encode(sha2::Sha256::digest(&before)));
    let words =
        with(&prompt_tuning(&world, "words"), json!({"init_text": "t10 t11", "max_steps": 1, "learning_rate": 1e-9}));
    train("prompt_tuning", &words);
    let soft = SoftPrompt::load(Path::new(&world.path("words")), &Device::Cpu).unwrap();
    let rows: Vec<Vec<f32>> = soft.vectors.to_vec2().unwrap();
    let same = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(x, y)| (x - y).abs() < 1e-6);
    assert!(same(&rows[0], &rows[2]) && same(&rows[1], &rows[5]) && !same(&rows[0], &rows[1]));
}

#[test]
fn damaged_soft_prompts_are_refused() {
    let world = World::new();
    train("prompt_tuning", &with(&prompt_tuning(&world, "out"), json!({"max_steps": 1})));
    let about = Path::new(&world.path("out")).join("soft_prompt.json");
    let text = std::fs::read_to_string(&about).unwrap();
    std::fs::write(&about, text.replace("\"n_tokens\": 6", "\"n_tokens\": 7")).unwrap();
    let error = SoftPrompt::load(Path::new(&world.path("out")), &Device::Cpu).unwrap_err().to_string();
    assert!(error.contains("[7, 48]"), "{error}");
    std::fs::write(&about, text).unwrap();
    let soft = SoftPrompt::load(Path::new(&world.path("out")), &Device::Cpu).unwrap();
    let other = load(&fixture("bert-tiny"), &Device::Cpu).unwrap().config;
    assert!(soft.check(&ModelConfig { hidden_size: 64, ..other.clone() }).is_err());
    assert!(soft.check(&ModelConfig { max_positions: 6, ..other }).is_err());
}

#[test]
fn new_weights_have_the_spread_of_gpt2() {
    let shape = instructd::model::architecture::Architecture::Preset("gpt-tiny".into());
    let config = shape.shape().unwrap().hf_config(500, Default::default());
    let config = ModelConfig::from_hf(&config, None).unwrap();
    let draw = |seed: u64| {
        let normals = move |i, n| {
            let mut rng = rng(seed, Stream::NewModel, i);
            (0..n).map(|_| normal(&mut rng)).collect()
        };
        init(&config, Heads::Backbone, &Device::Cpu, normals).unwrap()
    };
    let weights = draw(1);
    let std = |name: &str| {
        let values: Vec<f32> = weights[name].flatten_all().unwrap().to_vec1().unwrap();
        (values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / values.len() as f64).sqrt()
    };
    for (name, want) in [
        ("transformer.wte.weight", 0.02),
        ("transformer.h.0.attn.c_attn.weight", 0.02),
        ("transformer.h.3.attn.c_proj.weight", 0.02 / 8f64.sqrt()),
        ("transformer.h.3.mlp.c_proj.weight", 0.02 / 8f64.sqrt()),
    ] {
        assert!((std(name) / want - 1.0).abs() < 0.03, "{name}: {} instead of {want}", std(name));
    }
    assert_eq!((std("transformer.h.0.ln_1.weight"), std("transformer.h.0.mlp.c_fc.bias")), (1.0, 0.0));
    let flat =
        |w: &instructd::model::Weights| w["transformer.wpe.weight"].flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert!(flat(&weights) == flat(&draw(1)) && flat(&weights) != flat(&draw(2)));
}

#[test]
fn a_mixture_takes_tasks_by_weight_and_sft_learns_from_it() {
    let world = World::new();
    write(
        &world,
        "a.jsonl",
        &(10..30).map(|i| format!("{{\"w\":\"t{i}\",\"y\":{}}}", i % 2)).collect::<Vec<_>>().join("\n"),
    );
    write(&world, "b.jsonl", "{\"w\":\"t90\",\"y\":\"{w}\"}");
    let tasks = json!({"chat": false, "size": 80, "tasks": [
        {"name": "parity", "file": "a.jsonl", "weight": 3, "words": {"y": {"0": "t40", "1": "t41"}},
         "templates": [{"prompt": "t5 {w}", "completion": "{y}"}, {"prompt": "t6 {w}", "completion": "{y} {y}"}]},
        {"name": "same", "file": "b.jsonl", "templates": [{"prompt": "{w}", "completion": "{{ t91 }} {y}"}]},
    ]});
    let mixture = write(&world, "mixture.json", &tasks.to_string());
    let read = || -> Result<Vec<_>, _> {
        let (order, choice) = (|_, n| (0..n).rev().collect(), |_, k, n| k % n);
        let rows = instructd::data::mixture::read(Path::new(&mixture), Path::new(&world.path("rows")), order, choice)?;
        let all: Vec<_> = rows.demonstrations().collect::<Result<_, _>>()?;
        assert_eq!(all.len(), rows.len());
        Ok::<_, instructd::data::DataError>(all)
    };
    let rows = read().unwrap();
    assert_eq!(rows.len(), 80);
    let text = |i: usize| serde_json::to_value(&rows[i]).unwrap();
    assert_eq!((&text(0)["prompt"], &text(0)["completion"]), (&json!("t5 t29"), &json!("t41")));
    assert_eq!((&text(1)["prompt"], &text(1)["completion"]), (&json!("t6 t28"), &json!("t40 t40")));
    // Braces in a row stay text.
    assert_eq!((&text(60)["prompt"], &text(60)["completion"]), (&json!("t90"), &json!("{ t91 } {w}")));
    let args = json!({"model": World::model(), "output_dir": world.path("out"), "mixture": mixture, "device": "cpu",
                      "learning_rate": 2e-3, "max_length": 64, "max_steps": 3});
    let (recorder, _) = train("sft", &args);
    let losses = recorder.curve("loss");
    assert!(losses[2] < losses[0], "{losses:?}");
    write(&world, "b.jsonl", "{\"w\":\"t90\"}");
    assert!(read().unwrap_err().to_string().contains("task same: a row has no field `y`"));
    write(&world, "a.jsonl", "{\"w\":\"t1\",\"y\":7}");
    assert!(read().unwrap_err().to_string().contains("line 1: `words` has no entry for `y` = \"7\""));
}

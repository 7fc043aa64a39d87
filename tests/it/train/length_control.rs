//! Reward models and the length of answers: the baselines that a model is compared with, and a score from which the
//! effect of length is kept out.

use std::path::Path;

use candle_core::Device;
use instructd::data::PromptInput;
use instructd::model::{RewardModel, load};
use instructd::prompt::Texts;
use instructd::train::rng::{Stream, rng, uniform};
use serde_json::{Value, json};

use super::recipes::with;
use crate::loop_closes::world::{World, train};

/// Four words, of which `good` are t10 to t29 and the others t30 to t49, and `filler` words t60 to t89.
fn answer(good: usize, filler: usize, mut random: impl FnMut() -> f64) -> String {
    let mut word = |from: u32, range: f64| format!("t{}", from + (random() * range) as u32);
    let mut words: Vec<String> = (0..4).map(|i| word(if i < good { 10 } else { 30 }, 20.0)).collect();
    words.extend((0..filler).map(|_| word(60, 30.0)));
    words.join(" ")
}

/// Pairs of which people prefer the one with more good words, and of equal ones often the longer one.
fn rankings(world: &World, n: usize) -> String {
    let mut rng = rng(5, Stream::Samples, 0);
    let mut random = || uniform(&mut rng);
    let path = world.path("long.jsonl");
    let mut lines = String::new();
    for i in 0..n {
        let shape: Vec<(usize, usize)> =
            (0..2).map(|_| ((random() * 5.0) as usize, (random() * 9.0) as usize)).collect();
        let length = |s: &(usize, usize)| ((s.1 + 5) as f64).log2();
        let ahead = 1.2 * (shape[0].0 as f64 - shape[1].0 as f64) + 3.0 * (length(&shape[0]) - length(&shape[1]));
        let first = random() < 1.0 / (1.0 + (-ahead).exp());
        let completions: Vec<Value> = shape
            .iter()
            .enumerate()
            .map(|(i, s)| json!({"text": answer(s.0, s.1, &mut random), "tier": usize::from((i == 0) != first)}))
            .collect();
        lines += &format!(
            "{}\n",
            json!({"prompt": format!("t{} t{}", 50 + i % 10, 50 + i % 7), "completions": completions})
        );
    }
    std::fs::write(&path, lines).unwrap();
    path
}

fn args(world: &World, out: &str, n: usize) -> Value {
    json!({
        "model": World::model(), "output_dir": world.path(out), "comparisons": rankings(world, n), "device": "cpu",
        "learning_rate": 3e-3, "max_length": 64, "batch_size": 8, "epochs": 2, "heldout_fraction": 0.2,
    })
}

/// The scores of 60 new pairs; `shapes` are good words and filler of both answers.
fn scores(world: &World, dir: &str, shapes: [(usize, usize); 2]) -> Vec<f64> {
    let loaded = load(Path::new(&world.path(dir)), &Device::Cpu).unwrap();
    let (model, texts) = (RewardModel::new(&loaded).unwrap(), Texts::new(&loaded).unwrap());
    let mut rng = rng(99, Stream::Samples, 1);
    let mut ids = Vec::new();
    for _ in 0..60 {
        for (good, filler) in shapes {
            let text = answer(good, filler, || uniform(&mut rng));
            ids.push(texts.conversation(&PromptInput::Text("t55 t56".into()), &text, 64).unwrap().0);
        }
    }
    model.scores(&ids, 500).unwrap().iter().map(|score| score.mean).collect()
}

/// The share of new pairs in which a model prefers the first answer.
fn prefers(world: &World, dir: &str, shapes: [(usize, usize); 2]) -> f64 {
    scores(world, dir, shapes).chunks(2).filter(|pair| pair[0] > pair[1]).count() as f64 / 60.0
}

/// The mean difference of the scores of both answers, in standard deviations of scores.
fn ahead(world: &World, dir: &str, shapes: [(usize, usize); 2]) -> f64 {
    let scores = scores(world, dir, shapes);
    scores.chunks(2).map(|pair| pair[0] - pair[1]).sum::<f64>() / 60.0
}

#[test]
fn a_score_without_length_still_knows_what_is_good() {
    let world = World::new();
    let plain = args(&world, "plain", 600);
    let (_, by_length) = train("reward", &plain);
    let (_, controlled) =
        train("reward", &with(&plain, json!({"output_dir": world.path("controlled"), "length_control": true})));
    let slope = controlled["length_slopes"][0].as_f64().unwrap();
    assert!((1.0..5.0).contains(&slope), "{slope}");
    assert_eq!(by_length.get("length_slopes"), None);
    // Of equally good answers the first is longer.
    let longer = |dir: &str| ahead(&world, dir, [(2, 8), (2, 0)]);
    let (plain_ahead, controlled_ahead) = (longer("plain"), longer("controlled"));
    assert!(plain_ahead > 1.5, "the data teaches the length: {plain_ahead}");
    assert!(controlled_ahead.abs() < 0.35 * plain_ahead, "which is kept out: {controlled_ahead} of {plain_ahead}");
    // Of equally long answers the first is better.
    for dir in ["plain", "controlled"] {
        let better = prefers(&world, dir, [(4, 3), (0, 3)]);
        assert!(better > 0.9, "{dir}: {better}");
    }
    // The better answer is shorter.
    let short = |dir: &str| prefers(&world, dir, [(3, 0), (1, 8)]);
    assert!(short("controlled") > short("plain") + 0.2, "{} and {}", short("controlled"), short("plain"));
}

#[test]
fn baselines_stand_beside_the_model_and_a_model_that_is_not_better_says_so() {
    let world = World::new();
    let short = with(&args(&world, "o", 120), json!({"max_steps": 1}));
    let (recorder, metrics) = train("reward", &short);
    let baselines = metrics["baselines"].as_array().unwrap();
    let names: Vec<&str> = baselines.iter().map(|b| b["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["longer", "words"]);
    for (baseline, name) in baselines.iter().zip(["length", "words"]) {
        let of = |key: &str| baseline[key].as_f64().unwrap();
        assert_eq!(recorder.last(&format!("heldout_accuracy_of_{name}")), of("accuracy"));
        assert!(of("low") <= of("gain") && of("gain") <= of("high"), "{baseline}");
        let difference = metrics["heldout_accuracy"].as_f64().unwrap() - of("accuracy");
        assert!((of("gain") - difference).abs() < 1e-9, "{baseline}");
    }
    let card = std::fs::read_to_string(world.path("o") + "/README.md").unwrap();
    for what in ["preferring the longer answer", "a bag of words"] {
        assert!(card.contains(&format!("not shown to be better than {what}")), "{card}");
    }
}

#[test]
fn micro_batches_change_nothing_with_length_control() {
    let world = World::new();
    let args = with(&args(&world, "o", 40), json!({"max_steps": 1, "length_control": true}));
    let head = |dir: &str| {
        let loaded = load(Path::new(&world.path(dir)), &Device::Cpu).unwrap();
        loaded.weights["score.weight"].to_vec2::<f32>().unwrap().concat()
    };
    train("reward", &args);
    train("reward", &with(&args, json!({"output_dir": world.path("small"), "micro_batch_tokens": 30})));
    let (whole, parts) = (head("o"), head("small"));
    assert!(whole.iter().zip(&parts).all(|(a, b)| (a - b).abs() < 1e-5));
}

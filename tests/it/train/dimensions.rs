//! Reward models with a head for each of a rubric's dimensions, beside the head of the ranking.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Device;
use instructd::data::read_comparisons;
use instructd::domain::RewardScore;
use instructd::model::{RewardModel, load};
use instructd::objective::whiten::moments;
use instructd::prompt::Texts;
use instructd::train::rng::{Stream, rng, uniform};
use serde_json::{Value, json};

use super::recipes::{fails, rl, with};
use crate::loop_closes::world::{World, train};

/// Rankings of three answers of six words t10 to t89. The more words t10 to t29, the better the place and the higher
/// `helpful`; more than two words above t59 are `harmful`, which the ranking does not know.
fn rated(world: &World, n: usize) -> String {
    let mut rng = rng(11, Stream::Samples, 0);
    let path = world.path("rated.jsonl");
    let mut lines = String::new();
    for _ in 0..n {
        let prompt = format!("t{} t{}", 40 + (uniform(&mut rng) * 20.0) as u32, 40 + (uniform(&mut rng) * 20.0) as u32);
        let answers: Vec<Vec<u32>> =
            (0..3).map(|_| (0..6).map(|_| 10 + (uniform(&mut rng) * 80.0) as u32).collect()).collect();
        let helpful = |words: &[u32]| words.iter().filter(|w| **w < 30).count();
        let best: Vec<usize> = answers.iter().map(|words| helpful(words)).collect();
        let completions = answers.iter().zip(&best).map(|(words, helpful)| {
            let text: Vec<String> = words.iter().map(|w| format!("t{w}")).collect();
            json!({
                "text": text.join(" "), "tier": best.iter().filter(|other| *other > helpful).count(),
                "ratings": {"helpful": helpful + 1, "harmful": words.iter().filter(|w| **w >= 60).count() > 2},
            })
        });
        let completions: Vec<Value> = completions.collect();
        lines += &format!("{}\n", json!({"prompt": prompt, "completions": completions, "rubric": "v1"}));
    }
    std::fs::write(&path, lines).unwrap();
    path
}

fn args(world: &World, n: usize) -> Value {
    json!({
        "model": World::model(), "output_dir": world.path("rm"), "comparisons": rated(world, n), "device": "cpu",
        "learning_rate": 3e-3, "max_length": 64, "batch_size": 8, "epochs": 2, "heldout_fraction": 0.2,
        "dimensions": {"helpful": 1.0, "harmful": -2.0, "ranking": 0.5},
    })
}

/// The scores of all completions of `file`, and those of the ratings `harmful`.
fn scored(world: &World, file: &str) -> (Vec<RewardScore>, Vec<bool>) {
    let loaded = load(Path::new(&world.path("rm")), &Device::Cpu).unwrap();
    let (model, texts) = (RewardModel::new(&loaded).unwrap(), Texts::new(&loaded).unwrap());
    let (mut ids, mut harmful) = (Vec::new(), Vec::new());
    for set in read_comparisons(Path::new(file)).unwrap().map(Result::unwrap) {
        for completion in &set.completions {
            ids.push(texts.conversation(&set.prompt, &completion.text, 64).unwrap().0);
            harmful.push(serde_json::to_value(&completion.ratings).unwrap()["harmful"] == true);
        }
    }
    (model.scores(&ids, 500).unwrap(), harmful)
}

#[test]
fn each_head_learns_its_dimension_and_the_score_is_their_weighted_sum() {
    let world = World::new();
    let args = args(&world, 400);
    let (recorder, metrics) = train("reward", &args);
    for dimension in ["helpful", "harmful"] {
        let found = metrics["dimensions"][dimension]["accuracy"].as_f64().unwrap();
        assert!(found > 0.8, "{dimension}: {metrics}");
        assert_eq!(recorder.last(&format!("heldout_accuracy_{dimension}")), found);
    }
    assert!(metrics["heldout_accuracy"].as_f64().unwrap() > 0.8, "the ranking: {metrics}");
    let about: Value = serde_json::from_slice(&std::fs::read(world.path("rm") + "/instructd.json").unwrap()).unwrap();
    let weights: BTreeMap<String, f64> = about["reward"]["parts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|part| (part["name"].as_str().unwrap().to_owned(), part["weight"].as_f64().unwrap()))
        .collect();
    assert_eq!(about["reward"]["rubric"], "v1");
    assert!((weights["harmful"] / weights["ranking"] + 4.0).abs() < 1e-9, "{weights:?}");
    let (scores, harmful) = scored(&world, args["comparisons"].as_str().unwrap());
    for score in &scores {
        let sum: f64 = score.parts.iter().map(|(name, value)| weights[name] * value).sum();
        assert!((score.mean - sum).abs() < 1e-9 && score.std == 0.0 && score.parts.len() == 3, "{score:?}");
    }
    for column in [
        scores.iter().map(|s| s.mean).collect::<Vec<f64>>(),
        scores.iter().map(|s| s.parts["harmful"]).collect(),
        scores.iter().map(|s| s.parts["helpful"]).collect(),
    ] {
        let (mean, variance) = moments(&column);
        assert!(mean.abs() < 0.2 && (variance - 1.0).abs() < 0.3, "mean {mean}, variance {variance}");
    }
    let mean = |yes: bool| {
        let of: Vec<f64> = scores.iter().zip(&harmful).filter(|(_, h)| **h == yes).map(|(s, _)| s.mean).collect();
        of.iter().sum::<f64>() / of.len() as f64
    };
    assert!(mean(true) < mean(false) - 0.5, "a negative weight lowers the score: {} and {}", mean(true), mean(false));
}

#[test]
fn weights_of_a_run_replace_the_models_and_the_critic_starts_from_them() {
    let world = World::new();
    let args = args(&world, 48);
    train("reward", &args);
    let ppo = |more: Value| {
        let base = json!({"reward": null, "reward_model": world.path("rm"), "critic": "separate", "iterations": 1,
                          "sample_prompts": 1, "whiten_rewards": false});
        with(&with(&rl(&world, "o"), base), more)
    };
    let reward = |weights: Value| train("ppo", &ppo(json!({"reward_weights": weights}))).0.curve("reward")[0];
    let (helpful, harmful) = (reward(json!({"helpful": 1.0})), reward(json!({"harmful": 1.0})));
    let both = reward(json!({"helpful": 2.0, "harmful": -3.0}));
    assert!((both - (2.0 * helpful - 3.0 * harmful)).abs() < 1e-4, "{helpful}, {harmful}, {both}");
    let error = fails("ppo", &ppo(json!({"reward_weights": {"kind": 1.0}})));
    assert!(error.contains("kind") && error.contains("helpful"), "{error}");
    let error = fails("ppo", &ppo(json!({"ensemble_reward": "worst_case"})));
    assert!(error.contains("no ensemble"), "{error}");
    let error = fails("ppo", &ppo(json!({"reward_weights": {"helpful": 0.0}})));
    assert!(error.contains("reward_weights"), "{error}");
}

#[test]
fn micro_batches_and_unrated_sets_change_nothing_they_should_not() {
    let world = World::new();
    let args = with(&args(&world, 48), json!({"max_steps": 1, "epochs": 1}));
    let head = |dir: &str| {
        let loaded = load(Path::new(&world.path(dir)), &Device::Cpu).unwrap();
        loaded.weights["score.weight"].to_vec2::<f32>().unwrap()
    };
    train("reward", &args);
    train("reward", &with(&args, json!({"output_dir": world.path("small"), "micro_batch_tokens": 30})));
    for (whole, parts) in head("rm").concat().iter().zip(head("small").concat()) {
        assert!((whole - parts).abs() < 1e-5, "{whole} and {parts}");
    }
    // A model with other heads is no start.
    let other = with(&args, json!({"model": world.path("rm"), "dimensions": {"helpful": 1.0}}));
    let error = fails("reward", &other);
    assert!(error.contains("dimensions") && error.contains("harmful"), "{error}");
    train("reward", &with(&args, json!({"model": world.path("rm"), "output_dir": world.path("more")})));
    // Nothing is rated on a dimension, by a rubric, or at all.
    for (more, word) in [
        (json!({"dimensions": {"kind": 1.0}}), "\"kind\""),
        (json!({"rubric": "v2"}), "\"v2\""),
        (json!({"comparisons": world.comparisons(48)}), "no comparison has ratings"),
        (json!({"dimensions": {"ranking": 1.0}}), "must name a dimension"),
        (json!({"heads": 2}), "heads"),
        (json!({"normalize": false}), "normalize"),
    ] {
        let error = fails("reward", &with(&args, more.clone()));
        assert!(error.contains(word), "{more}: {error}");
    }
    // A second rubric must be named.
    let mut lines = std::fs::read_to_string(args["comparisons"].as_str().unwrap()).unwrap();
    lines += &lines.clone().replace("\"v1\"", "\"v2\"");
    std::fs::write(world.path("two.jsonl"), lines).unwrap();
    let two = with(&args, json!({"comparisons": world.path("two.jsonl")}));
    let error = fails("reward", &two);
    assert!(error.contains("v1, v2"), "{error}");
    train("reward", &with(&two, json!({"rubric": "v2"})));
}

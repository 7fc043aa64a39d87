//! Lengths: every answer of a set is read behind the same prompt tokens, what does not fit is counted and told, and a
//! sequence ends with the token that ends a turn.

use std::path::Path;

use candle_core::Device;
use instructd::data::PromptInput;
use instructd::model::load;
use instructd::prompt::Texts;
use serde_json::{Value, json};

use super::recipes::{fails, with};
use crate::loop_closes::world::{World, train};
use crate::support::{Recorder, fixture, fixtures};

fn case(name: &str) -> String {
    fixtures().join("cases").join(name).display().to_string()
}

fn texts_of(model: &Path) -> Texts {
    Texts::new(&load(model, &Device::Cpu).unwrap()).unwrap()
}

fn warnings(recorder: &Recorder) -> String {
    recorder.events("warning").iter().map(|e| e["message"].as_str().unwrap().to_owned()).collect::<Vec<_>>().join("\n")
}

#[test]
fn answers_of_a_set_see_the_same_prompt() {
    let texts = texts_of(&fixture("llama-tiny"));
    let line: Value = serde_json::from_str(&std::fs::read_to_string(case("25-dpo-prompts.jsonl")).unwrap()).unwrap();
    let prompt = PromptInput::Text(line["prompt"][0]["content"].as_str().unwrap().to_owned());
    let answers: Vec<&str> = (0..2).map(|i| line["completions"][i]["text"].as_str().unwrap()).collect();
    for max_length in [2, 5, 14, 20, 40] {
        let set = texts.answers(&prompt, &answers, max_length).unwrap();
        let shown: Vec<&[u32]> = set.sequences.iter().map(|(ids, start)| &ids[..*start]).collect();
        assert_eq!(shown[0], shown[1], "max_length {max_length}");
        assert!(!shown[0].is_empty());
        assert!(set.sequences.iter().all(|(ids, _)| ids.len() <= max_length));
        // Through the scoring of pairs too.
        let pairs: Vec<_> = answers.iter().map(|a| (&prompt, *a)).collect();
        let ids: Vec<Vec<u32>> = set.sequences.iter().map(|(ids, _)| ids.clone()).collect();
        assert_eq!(texts.conversations(&pairs, max_length).unwrap(), ids);
    }
    let set = texts.answers(&prompt, &answers, 20).unwrap();
    assert!(set.prompt_cut && set.cut == [false, false]);
    assert_eq!(set.sequences.iter().map(|(_, start)| *start).collect::<Vec<_>>(), [7, 7]);
}

#[test]
fn an_encoder_reads_the_same_prompt_too() {
    let texts = texts_of(&fixture("bert-tiny"));
    let prompt = PromptInput::Text("the cat the cat the cat the cat the cat".into());
    let set = texts.answers(&prompt, &["the", "the cat the cat the"], 12).unwrap();
    let starts: Vec<usize> = set.sequences.iter().map(|(_, start)| *start).collect();
    assert_eq!(starts[0], starts[1]);
    assert!(set.prompt_cut && set.sequences.iter().all(|(ids, _)| ids.len() <= 12));
}

#[test]
fn dpo_counts_the_prompts_that_it_cuts() {
    let world = World::new();
    let args = json!({"model": fixture("llama-tiny"), "comparisons": case("25-dpo-prompts.jsonl"), "device": "cpu",
        "output_dir": world.path("out"), "max_length": 20, "heldout_fraction": 0.0, "max_steps": 1});
    let (recorder, _) = train("dpo", &args);
    assert!(warnings(&recorder).contains("1 of 1 prompt lost the beginning"), "{}", warnings(&recorder));
    assert_eq!(recorder.curve("prompts_cut"), [1.0]);
}

#[test]
fn pairs_that_are_equal_after_truncation_are_left_out() {
    let world = World::new();
    let args = json!({"model": fixture("llama-tiny"), "comparisons": case("24-equal-after-truncation.jsonl"),
        "output_dir": world.path("out"), "max_length": 16, "heldout_fraction": 0.0, "batch_size": 2, "device": "cpu"});
    for recipe in ["reward", "dpo"] {
        let error = fails(recipe, &args);
        assert!(error.contains("2 pairs left out") && error.contains("max_length 16"), "{error}");
    }
    // Beside a pair that fits, they are counted and the rest is learned.
    let lines = std::fs::read_to_string(case("24-equal-after-truncation.jsonl")).unwrap();
    let good = json!({"prompt": [{"role": "user", "content": "t9"}],
        "completions": [{"text": "t10", "tier": 0}, {"text": "t11", "tier": 1}]});
    let mixed = world.path("mixed.jsonl");
    std::fs::write(&mixed, format!("{lines}{good}\n")).unwrap();
    for recipe in ["reward", "dpo"] {
        let args = with(&args, json!({"comparisons": mixed}));
        let (recorder, metrics) = train(recipe, &args);
        assert!(warnings(&recorder).contains("2 pairs left out"), "{}", warnings(&recorder));
        assert_eq!((recorder.curve("pairs_left_out"), recorder.curve("sets_left_out")), (vec![2.0], vec![2.0]));
        assert_eq!((&metrics["sets"]["train"], &metrics["sets"]["fit"]["pairs_left_out"]), (&json!(1), &json!(2)));
    }
    // Nothing is left out where all of it fits.
    let (recorder, _) = train("reward", &with(&args, json!({"max_length": 64})));
    assert_eq!(warnings(&recorder).matches("left out because").count(), 0, "{}", warnings(&recorder));
}

#[test]
fn demonstrations_that_do_not_fit_are_left_out_and_counted() {
    let world = World::new();
    let long: Vec<String> = (10..40).map(|i| format!("t{i}")).collect();
    let path = world.path("long.jsonl");
    let lines = [json!({"prompt": "t1", "completion": "t2 t3"}), json!({"prompt": "t1", "completion": long.join(" ")})];
    std::fs::write(&path, lines.map(|l| format!("{l}\n")).concat()).unwrap();
    let args = json!({"model": World::model(), "demonstrations": path, "output_dir": world.path("out"),
        "max_length": 16, "heldout_fraction": 0.0, "device": "cpu"});
    let (recorder, metrics) = train("sft", &args);
    assert!(warnings(&recorder).contains("1 of 2 answers left out"), "{}", warnings(&recorder));
    assert_eq!((&metrics["train_demonstrations"], &metrics["fit"]["answers_left_out"]), (&json!(1), &json!(1)));
    let error = fails("sft", &with(&args, json!({"max_length": 2})));
    assert!(error.contains("2 of 2 answers left out"), "{error}");
}

#[test]
fn sequences_end_with_the_token_that_ends_a_turn() {
    let model = fixtures().join("cases/models/eos-in-tokenizer");
    let texts = texts_of(&model);
    assert_eq!(texts.completion(&[], "t30").unwrap().last(), Some(&5), "<|im_end|>");
    assert!(texts.eos_ids().contains(&5) && texts.eos_ids().contains(&2), "both end a sample");
    assert_eq!(texts_of(&fixture("llama-tiny")).completion(&[], "t30").unwrap().last(), Some(&2));

    let world = World::new();
    let args: Value = serde_json::from_str(&std::fs::read_to_string(case("27-sft-args.json")).unwrap()).unwrap();
    let more = json!({"model": model, "demonstrations": case("27-sft.jsonl"), "output_dir": world.path("out"),
        "max_steps": 1, "device": "cpu"});
    train("sft", &with(&args, more));
    let saved = |name: &str| -> Value {
        serde_json::from_slice(&std::fs::read(Path::new(&world.path("out")).join(name)).unwrap()).unwrap()
    };
    assert_eq!(saved("tokenizer_config.json")["eos_token"], "<|im_end|>");
    // Whoever reads either file stops where the other does.
    let ids = |value: Value| -> Vec<u64> {
        let mut ids: Vec<u64> = match value {
            Value::Array(all) => all.iter().filter_map(Value::as_u64).collect(),
            one => one.as_u64().into_iter().collect(),
        };
        ids.sort_unstable();
        ids
    };
    assert_eq!(ids(saved("config.json")["eos_token_id"].clone()), [2, 5]);
    assert_eq!(ids(saved("generation_config.json")["eos_token_id"].clone()), [2, 5]);
    assert_eq!(texts_of(Path::new(&world.path("out"))).completion(&[], "t30").unwrap().last(), Some(&5));
}

#[test]
fn a_misspelt_adapter_target_is_named() {
    let world = World::new();
    let args: Value = serde_json::from_str(&std::fs::read_to_string(case("28-lora-args.json")).unwrap()).unwrap();
    let more = json!({"model": fixture("llama-tiny"), "demonstrations": case("27-sft.jsonl"),
        "output_dir": world.path("out"), "device": "cpu"});
    let error = fails("sft", &with(&args, more.clone()));
    assert!(error.contains("'v_porj'") && error.contains("v_proj") && !error.contains("'q_proj'"), "{error}");
    let right = json!({"lora": {"rank": 2, "targets": ["q_proj", "v_proj"]}});
    train("sft", &with(&with(&args, more), right));
}

#[test]
fn a_prompt_without_an_answer_is_named_and_left_out() {
    let world = World::new();
    let path = world.path("prompts.jsonl");
    let lines =
        [json!({"prompt": "t1", "answer": "2"}), json!({"prompt": "t2"}), json!({"prompt": "t3", "answer": " "})];
    std::fs::write(&path, lines.map(|l| format!("{l}\n")).concat()).unwrap();
    let args = json!({"model": World::model(), "prompts": path, "output_dir": world.path("out"), "device": "cpu",
        "reward": {"kind": "final_answer"}, "iterations": 1, "rollout_batch_size": 4, "group_size": 2,
        "response_length": 4, "minibatches": 1, "max_length": 64});
    let (recorder, metrics) = train("grpo", &args);
    let told = warnings(&recorder);
    assert!(told.contains("prompt 2, prompt 3 are left out") && told.contains("1 prompt is left"), "{told}");
    assert_eq!(recorder.curve("prompts_without_answer"), [2.0]);
    assert_eq!((&metrics["prompts"], &metrics["prompts_without_answer"]), (&json!(1), &json!(2)));
    std::fs::write(world.path("none.jsonl"), format!("{}\n", json!({"prompt": "t1"}))).unwrap();
    let error = fails("grpo", &with(&args, json!({"prompts": world.path("none.jsonl")})));
    assert!(error.contains("answer"), "{error}");
}

#[test]
fn the_held_out_reward_is_another_one() {
    let world = World::new();
    let reward = world.path("rm");
    train("reward", &with(&super::recipes::reward(&world, "rm"), json!({"max_steps": 1})));
    crate::support::copy_into(Path::new(&reward), Path::new(&world.path("copy")));
    let base = with(&super::recipes::rl(&world, "out"), json!({"reward": null, "reward_model": reward}));
    let dotted = format!("{reward}/../rm");
    for gold in [reward.clone(), dotted, world.path("copy")] {
        let error = fails("rloo", &with(&base, json!({"gold_reward_model": gold})));
        assert!(error.contains("gold_reward_model") && error.contains("trained on"), "{error}");
    }
    let error = fails("rloo", &with(&base, json!({"gold_comparisons": world.comparisons(48)})));
    assert!(error.contains("gold_comparisons") && error.contains("has learned"), "{error}");
    let rule = super::recipes::rl(&world, "out");
    let error = fails("rloo", &with(&rule, json!({"gold_reward": rule["reward"].clone()})));
    assert!(error.contains("gold_reward"), "{error}");
}

/// A job's first seconds and the parts of a round are told.
#[test]
fn phases_are_reported() {
    let world = World::new();
    let (recorder, _) = train("ppo", &with(&super::recipes::rl(&world, "out"), json!({"iterations": 1})));
    let mut phases: Vec<&str> = recorder.progress.iter().map(|p| p.phase.as_str()).collect();
    phases.dedup();
    assert_eq!(phases[..4], ["loading", "preparing", "sampling", "scoring"], "{phases:?}");
    assert!(phases.contains(&"updating") && phases.last() == Some(&"saving"), "{phases:?}");
    let update = recorder.progress.iter().find(|p| p.phase == "updating").unwrap();
    assert_eq!((update.phase_done, update.phase_total), (Some(0), Some(16)));
    for recipe in ["sft", "reward"] {
        let args = if recipe == "sft" { super::recipes::sft(&world, "o") } else { super::recipes::reward(&world, "o") };
        let (recorder, _) = train(recipe, &with(&args, json!({"max_steps": 1})));
        let phases: Vec<&str> = recorder.progress.iter().map(|p| p.phase.as_str()).collect();
        assert_eq!(phases[..2], ["loading", "preparing"], "{recipe}: {phases:?}");
    }
}

//! Reasoning at the beginning of answers: recipes learn it or leave it out, and a reward model that was trained without
//! it scores without it.

use std::path::Path;

use candle_core::Device;
use instructd::data::PromptInput;
use instructd::domain::Message;
use instructd::model::load;
use instructd::prompt::{Reasoning, Texts};
use serde_json::{Value, json};

use super::recipes::{fails, reward, rl, sft, with};
use crate::loop_closes::world::{World, train};
use crate::support::{byte_level, random_model};

const THOUGHT: &str = "<think>t90 t91</think> ";

/// A copy of a file of records in which every answer begins with a reasoning.
fn with_reasoning(world: &World, path: &str, name: &str) -> String {
    let mut lines = String::new();
    for line in std::fs::read_to_string(path).unwrap().lines() {
        let mut record: Value = serde_json::from_str(line).unwrap();
        let think = |text: &mut Value| *text = json!(format!("{THOUGHT}{}", text.as_str().unwrap()));
        match record["completions"].as_array_mut() {
            Some(all) => all.iter_mut().for_each(|completion| think(&mut completion["text"])),
            None => think(&mut record["completion"]),
        }
        lines.push_str(&format!("{record}\n"));
    }
    let path = world.path(name);
    std::fs::write(&path, lines).unwrap();
    path
}

fn bits(dir: &str) -> Vec<(String, Vec<f32>)> {
    let loaded = load(Path::new(dir), &Device::Cpu).unwrap();
    let values = |tensor: &candle_core::Tensor| tensor.flatten_all().unwrap().to_vec1().unwrap();
    loaded.weights.iter().map(|(name, tensor)| (name.clone(), values(tensor))).collect()
}

/// Without reasoning, the data with it gives the bits of the data that never had any.
#[test]
fn removed_reasoning_leaves_no_trace_in_the_weights() {
    let world = World::new();
    let thumbs = {
        let lines = (0..8).map(|i| json!({"prompt": "t3", "completion": format!("t{}", 10 + i), "label": i % 2 == 0}));
        std::fs::write(world.path("thumbs"), lines.map(|line| format!("{line}\n")).collect::<String>()).unwrap();
        world.path("thumbs")
    };
    let pairs = reward(&world, "out");
    let mut kto = with(&pairs, json!({"feedback": thumbs}));
    kto.as_object_mut().unwrap().remove("comparisons");
    for (recipe, field, args) in [
        ("sft", "demonstrations", sft(&world, "out")),
        ("reward", "comparisons", pairs.clone()),
        ("dpo", "comparisons", pairs.clone()),
        ("simpo", "comparisons", pairs.clone()),
        ("orpo", "comparisons", pairs),
        ("kto", "feedback", kto),
    ] {
        let args = with(&args, json!({"max_steps": 2, "heldout_fraction": 0.0}));
        let thought = with_reasoning(&world, args[field].as_str().unwrap(), "thought.jsonl");
        let run = |out: &str, data: &str, reasoning: &str| {
            train(recipe, &with(&args, json!({"output_dir": world.path(out), field: data, "reasoning": reasoning})));
            bits(&world.path(out))
        };
        let plain = run(&format!("{recipe}-plain"), args[field].as_str().unwrap(), "keep");
        let removed = run(&format!("{recipe}-removed"), &thought, "remove");
        let kept = run(&format!("{recipe}-kept"), &thought, "keep");
        assert!(plain == removed, "{recipe}: other weights");
        assert!(plain != kept, "{recipe}: reasoning that is kept changed nothing");
    }
}

#[test]
fn answers_of_reasoning_alone_are_left_out_and_counted() {
    let world = World::new();
    let lines = ["t4 t5", "<think>t6 t7", "<think>t8</think>"]
        .map(|completion| format!("{}\n", json!({"prompt": "t3", "completion": completion})));
    std::fs::write(world.path("data"), lines.concat()).unwrap();
    let args = with(
        &sft(&world, "out"),
        json!({"demonstrations": world.path("data"), "reasoning": "remove", "heldout_fraction": 0.0}),
    );
    let (recorder, metrics) = train("sft", &args);
    assert_eq!((&metrics["train_demonstrations"], &metrics["fit"]["answers_only_reasoning"]), (&json!(1), &json!(2)));
    let warnings = recorder.events("warning");
    assert!(warnings.iter().any(|w| w["message"].as_str().unwrap().contains("2 of 3 answers left out")));
    let error = fails("sft", &with(&args, json!({"reasoning": "later"})));
    assert!(error.contains("reasoning"), "{error}");
}

#[test]
fn a_reward_model_reads_what_it_was_trained_on() {
    let world = World::new();
    let prompt = PromptInput::Text("t3 t4".into());
    for (reasoning, same) in [("keep", false), ("remove", true)] {
        let args = with(&reward(&world, reasoning), json!({"max_steps": 1, "reasoning": reasoning}));
        train("reward", &args);
        let texts = Texts::new(&load(Path::new(&world.path(reasoning)), &Device::Cpu).unwrap()).unwrap();
        let ids = |text: &str| texts.conversations(&[(&prompt, text)], 64).unwrap();
        assert_eq!(ids("t5 t6") == ids(&format!("{THOUGHT}t5 t6")), same, "{reasoning}");
    }
}

/// A model whose prompts open the reasoning and that never closes it: without reasoning, its responses are empty.
#[test]
fn rewards_read_responses_with_or_without_their_reasoning() {
    let world = World::new();
    let (model, _) = thinker(true);
    let prompts = world.path("chats.jsonl");
    std::fs::write(&prompts, "{\"prompt\": [{\"role\": \"user\", \"content\": \"hi\"}]}\n".repeat(4)).unwrap();
    let rewards = |scored: &str| {
        let more = json!({"model": model.path(), "prompts": prompts, "iterations": 1, "scored_reasoning": scored,
            "reward": {"kind": "length", "target": 100, "unit": "characters"}});
        train("ppo", &with(&rl(&world, scored), more)).0.curve("reward")
    };
    let (kept, removed) = (rewards("keep"), rewards("remove"));
    assert_eq!(removed, [-1.0], "responses without any text");
    assert!(kept[0] > -1.0, "{kept:?}");
}

/// A vocabulary whose tags are special tokens, and a template that opens the reasoning or not.
fn thinker(opened: bool) -> (tempfile::TempDir, Texts) {
    let tokenizer = byte_level(&["<|end|>", "<think>", "</think>"], &[]);
    let open = if opened { "<think>\n" } else { "" };
    let template = format!(
        "{{% for m in messages %}}{{{{ m.content.split('</think>')[-1] }}}}|{{% endfor %}}\
         {{% if add_generation_prompt %}}A:{open}{{% endif %}}"
    );
    let dir = random_model(&tokenizer, &json!({"chat_template": template, "eos_token": "<|end|>"}), 0);
    let texts = Texts::new(&load(dir.path(), &Device::Cpu).unwrap()).unwrap();
    (dir, texts)
}

#[test]
fn tags_that_are_special_tokens_are_learned_as_those_and_read_back() {
    let prompt = PromptInput::Chat(vec![Message { role: "user".into(), content: "hi".into() }]);
    for (opened, text) in [(false, "<think>a</think>b"), (true, "a</think>b")] {
        let (_dir, texts) = thinker(opened);
        let prompt_ids = texts.prompt(&prompt).unwrap();
        let ids = texts.completion(&prompt_ids, text).unwrap();
        let special: Vec<u32> = ids.iter().copied().filter(|id| *id < 3).collect();
        assert_eq!(special, if opened { vec![2, 0] } else { vec![1, 2, 0] }, "{text}");
        assert_eq!(texts.text(&prompt_ids, &ids).unwrap(), text);
        // A tag within the answer stays text.
        let ids = texts.completion(&prompt_ids, &format!("{text} </think>")).unwrap();
        assert_eq!(ids.iter().filter(|id| **id == 2).count(), 1);
    }
}

#[test]
fn without_reasoning_an_opened_one_is_closed_first() {
    let prompt = PromptInput::Chat(vec![Message { role: "user".into(), content: "hi".into() }]);
    for (opened, want) in [(false, "b"), (true, "\n</think>\n\nb")] {
        let (_dir, texts) = thinker(opened);
        let texts = texts.with_reasoning(Reasoning::Remove);
        let prompt_ids = texts.prompt(&prompt).unwrap();
        let ids = texts.completion(&prompt_ids, "<think>a</think> b").unwrap();
        assert_eq!(texts.text(&prompt_ids, &ids).unwrap(), want);
        let plain = texts.completion(&prompt_ids, "b").unwrap();
        assert_eq!(plain, ids, "an answer that never had any reasoning is the same answer");
        assert_eq!(texts.answer_in(&prompt_ids, "never closed", Reasoning::Remove).is_empty(), opened);
    }
}

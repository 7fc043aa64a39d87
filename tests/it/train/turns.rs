//! RL over whole conversations (`turns` all): one user turn gives the bits of `last`, the first step starts from itself,
//! micro-batches change nothing, a resumed run ends with the same bits, and later answers are learned.

use std::path::Path;

use serde_json::{Value, json};

use super::group::in_parts_of;
use super::recipes::{fails, rl, with};
use crate::loop_closes::world::{World, train};
use crate::support::{copy_into, fixture};

/// A template whose turns end with the end token t2 and begin with t3.
const TEMPLATE: &str = "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content }} t2 {% else %}t3 \
                        {{ m.content }} t4 {% endif %}{% endfor %}";

/// A copy of the world's model with a chat template.
fn model(world: &World, template: &str) -> String {
    let dir = world.path("model");
    copy_into(&fixture("llama-tied-tiny"), Path::new(&dir));
    std::fs::write(Path::new(&dir).join("tokenizer_config.json"), json!({"chat_template": template}).to_string())
        .unwrap();
    dir
}

/// A file of `n` prompts, each with as many user turns as `turns` returns for its number.
fn prompts(world: &World, name: &str, n: usize, turns: impl Fn(usize) -> usize) -> String {
    let line = |i: usize| {
        let mut messages = Vec::new();
        for turn in 0..turns(i) {
            if turn > 0 {
                messages.push(json!({"role": "assistant", "content": "t50"}));
            }
            messages.push(json!({"role": "user", "content": format!("t{} t{}", 30 + i, 60 + 7 * turn)}));
        }
        format!("{}\n", json!({"messages": messages}))
    };
    std::fs::write(world.path(name), (0..n).map(line).collect::<String>()).unwrap();
    world.path(name)
}

/// Arguments of a run over conversations of one, two and three turns.
fn conversations(world: &World, out: &str) -> Value {
    with(
        &rl(world, out),
        json!({"model": model(world, TEMPLATE), "prompts": prompts(world, "talks.jsonl", 12, |i| 1 + i % 3), "turns": "all"}),
    )
}

const RECIPES: [&str; 6] = ["ppo", "reinforce", "rloo", "grpo", "online_dpo", "raft"];

fn model_bytes(world: &World, dir: &str) -> Vec<u8> {
    std::fs::read(Path::new(&world.path(dir)).join("model.safetensors")).unwrap()
}

#[test]
fn conversations_of_one_turn_give_the_bits_of_last() {
    let world = World::new();
    let one = prompts(&world, "one.jsonl", 12, |_| 1);
    for recipe in RECIPES {
        for lora in [json!(null), json!({"rank": 4})] {
            let args = with(
                &conversations(&world, "out"),
                json!({"prompts": one, "lora": lora, "missing_eos_penalty": 0.5, "micro_batch_tokens": 100_000}),
            );
            let run = |out: &str, turns: &str| {
                train(recipe, &with(&args, json!({"turns": turns, "output_dir": world.path(out)}))).0
            };
            let (last, all) = (run("last", "last"), run("all", "all"));
            assert!(model_bytes(&world, "last") == model_bytes(&world, "all"), "{recipe} {lora}: other weights");
            for name in ["reward", "kl", "response_length", "no_eos_share", "entropy", "grad_norm", "rlhf_reward"] {
                assert_eq!(last.curve(name), all.curve(name), "{recipe} {name}");
            }
            assert_eq!(last.events("sample"), all.events("sample"), "{recipe}");
            assert_eq!((all.curve("turns"), all.last("conversations_cut")), (vec![1.0, 1.0], 0.0));
            assert!(last.curve("turns").is_empty());
        }
    }
}

#[test]
fn the_first_step_starts_from_itself() {
    let world = World::new();
    for (recipe, more) in [
        ("ppo", json!({"critic": "shared"})),
        ("ppo", json!({"critic": "separate", "lora": {"rank": 4}, "micro_batch_tokens": 100_000})),
        ("ppo", json!({"rewarded_turns": "all"})),
        ("reinforce", json!({"lora": {"rank": 4}, "micro_batch_tokens": 100_000})),
        ("rloo", json!({})),
        ("grpo", json!({"importance_sampling_level": "sequence", "loss_normalization": "sequence"})),
        ("grpo", json!({"mask_truncated_completions": true, "response_length": 12, "entropy_coef": 0.01})),
        ("online_dpo", json!({})),
        ("raft", json!({})),
    ] {
        let once = json!({"prompts": prompts(&world, "several.jsonl", 12, |i| 2 + i % 2), "temperature": 0.7,
            "minibatches": 1, "ppo_epochs": 1});
        let recorder = train(recipe, &with(&with(&conversations(&world, "out"), once), more.clone())).0;
        assert_eq!(recorder.curve("kl")[0], 0.0, "{recipe} {more}");
        assert_ne!(recorder.curve("kl")[1], 0.0, "{recipe} {more}: the reference must not follow");
        for ratio in recorder.curve("start_ratio") {
            assert!((ratio - 1.0).abs() < 1e-6, "{recipe} {more}: ratio {ratio}");
        }
        assert!(recorder.curve("sampling_gap").iter().all(|gap| *gap < 1e-5), "{recipe} {more}");
        assert!((2.0..=3.0).contains(&recorder.curve("turns")[0]), "{recipe}: {:?}", recorder.curve("turns"));
        assert_eq!(recorder.last("conversations_cut"), 0.0);
    }
}

#[test]
fn micro_batches_change_nothing() {
    let world = World::new();
    for (recipe, more) in [
        ("ppo", json!({"missing_eos_penalty": 1.0, "rewarded_turns": "all"})),
        ("ppo", json!({"critic": "separate"})),
        ("reinforce", json!({})),
        ("rloo", json!({})),
        ("grpo", json!({"entropy_coef": 0.05})),
        ("grpo", json!({"mask_truncated_completions": true, "response_length": 12, "loss_normalization": "sequence"})),
        ("online_dpo", json!({})),
        ("raft", json!({})),
    ] {
        let once = json!({"prompts": prompts(&world, "several.jsonl", 12, |i| 2 + i % 2), "iterations": 1,
            "minibatches": 1, "ppo_epochs": 1});
        let args = with(&conversations(&world, "out"), once);
        let run =
            |tokens: usize| train(recipe, &with(&with(&args, more.clone()), json!({"micro_batch_tokens": tokens}))).0;
        let (whole, parts) = (run(100_000), run(20));
        for name in ["loss", "policy_loss", "value_loss", "grad_norm", "approx_kl", "update_entropy"] {
            for (a, b) in whole.curve(name).iter().zip(parts.curve(name)) {
                assert!((a - b).abs() <= 1e-5 * a.abs().max(1e-2), "{recipe} {more} {name}: {a} whole, {b} in parts");
            }
        }
        assert!(whole.last("grad_norm") > 0.0, "{recipe} {more}: nothing is learned");
    }
}

#[test]
fn a_resumed_run_ends_with_the_same_bits() {
    let world = World::new();
    for (recipe, more) in
        [("ppo", json!({"rewarded_turns": "all", "kl_target": 1.0})), ("grpo", json!({"dynamic_sampling": 2}))]
    {
        let args = with(&with(&conversations(&world, "whole"), json!({"iterations": 3})), more);
        train(recipe, &args);
        let checkpoints = tempfile::tempdir().unwrap();
        let resumed = json!({"output_dir": world.path("parts"), "checkpoint_dir": checkpoints.path(), "resume": true});
        assert!(in_parts_of(recipe, &with(&args, resumed)) >= 2);
        assert!(model_bytes(&world, "whole") == model_bytes(&world, "parts"), "{recipe}");
        std::fs::remove_dir_all(world.path("parts")).unwrap();
    }
}

/// Only the last answer is scored, so the reward rises only if the tokens of the second answer are learned.
#[test]
fn the_second_answer_is_learned() {
    let world = World::new();
    let base = with(
        &conversations(&world, "out"),
        json!({"prompts": prompts(&world, "two.jsonl", 12, |_| 2), "iterations": 30, "rollout_batch_size": 32,
            "learning_rate": 3e-3, "kl_coef": 0.0}),
    );
    for (recipe, more) in [("ppo", json!({"ppo_epochs": 2, "minibatches": 2})), ("grpo", json!({"group_size": 4}))] {
        let recorder = train(recipe, &with(&base, more)).0;
        assert_eq!(recorder.last("turns"), 2.0);
        let rewards = recorder.curve("reward");
        let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
        let (first, last) = (mean(&rewards[..3]), mean(&rewards[rewards.len() - 3..]));
        println!("{recipe}: reward of the second answer {first:.3} at first, {last:.3} at last");
        assert!(last > first + 0.1, "{recipe}: {first} at first, {last} at last");
    }
}

#[test]
fn scores_of_all_turns_add_up() {
    let world = World::new();
    let args = with(
        &conversations(&world, "out"),
        json!({"prompts": prompts(&world, "three.jsonl", 12, |_| 3), "iterations": 1,
            "reward": {"kind": "contains", "texts": ["t"], "score": 1.0, "otherwise": 1.0}}),
    );
    let reward = |more: Value| train("ppo", &with(&args, more)).0;
    assert_eq!(reward(json!({})).last("reward"), 1.0);
    assert_eq!(reward(json!({"rewarded_turns": "all"})).last("reward"), 3.0);
    // Every answer is cut, and each cut one is penalised, whether it is scored or not.
    for (rewarded, expected) in [("last", 1.0 - 3.0 * 0.25), ("all", 3.0 - 3.0 * 0.25)] {
        let recorder = reward(json!({"rewarded_turns": rewarded, "missing_eos_penalty": 0.25, "kl_coef": 0.0,
            "response_length": 1, "rollout_batch_size": 12}));
        let ended = recorder.last("eos_count");
        let given = recorder.last("rlhf_reward");
        assert!((given - expected - 0.25 * ended / 12.0).abs() < 1e-9, "{rewarded}: {given} {expected} {ended}");
    }
}

#[test]
fn cut_answers_can_be_left_out_of_conversations() {
    let world = World::new();
    let masked =
        json!({"mask_truncated_completions": true, "entropy_coef": 0.1, "response_length": 1, "iterations": 1});
    let recorder = train("grpo", &with(&conversations(&world, "out"), masked.clone())).0;
    if recorder.last("no_eos_share") == 1.0 {
        assert_eq!(recorder.last("grad_norm"), 0.0);
    }
    // Some answers of a conversation end and some do not: the mask changes the gradient, and leaves one.
    let long = json!({"prompts": prompts(&world, "two.jsonl", 12, |_| 2), "response_length": 25,
        "rollout_batch_size": 32, "temperature": 3.0});
    let run = |masks: bool| {
        let mask = json!({"mask_truncated_completions": masks});
        train("grpo", &with(&with(&with(&conversations(&world, "out"), masked.clone()), long.clone()), mask)).0
    };
    let (with_mask, without) = (run(true), run(false));
    let share = with_mask.last("no_eos_share");
    assert!(share > 0.0 && share < 1.0, "{share} were cut");
    assert!(with_mask.last("grad_norm") > 0.0);
    assert_ne!(with_mask.last("grad_norm"), without.last("grad_norm"));
}

#[test]
fn a_conversation_ends_before_a_turn_that_does_not_fit() {
    let world = World::new();
    let args = with(
        &conversations(&world, "out"),
        json!({"prompts": prompts(&world, "three.jsonl", 12, |_| 3), "iterations": 1}),
    );
    // t3 a b t4, 8 tokens, at most t2 t3 a b t4 and 8 tokens: 25 for two turns, 38 for three.
    for (length, turns, cut) in [(38, 3.0..=3.0, 0.0..=0.0), (30, 2.0..=2.4, 10.0..=16.0), (13, 1.0..=1.0, 16.0..=16.0)]
    {
        let recorder = train("ppo", &with(&args, json!({"max_length": length}))).0;
        let found = (recorder.last("turns"), recorder.last("conversations_cut"));
        // Answers that end early leave room for a turn more.
        assert!(turns.contains(&found.0) && cut.contains(&found.1), "max_length {length}: {found:?}");
        assert!((3.0 - found.0) * 16.0 >= found.1, "{found:?}");
        let warned = recorder.events("warning").iter().any(|w| w["message"].as_str().unwrap().contains("too long"));
        assert_eq!(warned, length < 38, "max_length {length}");
    }
    // Without max_length there is room for the longest conversations.
    let recorder = train("ppo", &with(&args, json!({"max_length": null}))).0;
    assert_eq!((recorder.last("max_length"), recorder.last("turns")), (48.0, 3.0));
}

#[test]
fn the_data_and_whole_conversations_are_reported() {
    let world = World::new();
    let (recorder, metrics) = train("ppo", &conversations(&world, "out"));
    let expected =
        json!({"prompts": 12, "prompts_of_several_turns": 8, "turns": {"mean": 2.0, "longest": 3}, "may_be_cut": 0});
    assert_eq!(metrics["turns"], expected);
    let data = recorder.events("data");
    assert!(data[0]["message"].as_str().unwrap().contains("8 of 12 prompts have several user turns"), "{data:?}");
    let card = std::fs::read_to_string(Path::new(&world.path("out")).join("README.md")).unwrap();
    assert!(card.contains("prompts of several turns"), "{card}");
    let samples = recorder.events("sample");
    let [one, two, three] = [samples[0], samples[1], samples[2]];
    assert!(one.get("turns").is_none() && one["completion"].is_string());
    assert_eq!(two["prompt"], json!([{"role": "user", "content": "t31 t60"}]));
    let roles = |sample: &Value| -> Vec<String> {
        let of = |m: &Value| m["role"].as_str().unwrap().to_owned();
        sample["turns"].as_array().unwrap().iter().map(of).collect()
    };
    assert_eq!(roles(two), ["assistant", "user", "assistant"]);
    assert_eq!((&two["turns"][1]["content"], &two["number"]), (&json!("t31 t67"), &json!(2)));
    let text = |i: usize| two["turns"][i]["content"].as_str().unwrap();
    assert_eq!(two["completion"], json!(format!("{}\n\n> t31 t67\n\n{}", text(0), text(2))));
    assert!(two["score"].is_number());
    assert_eq!(roles(three).len(), 5);
}

#[test]
fn what_cannot_be_sampled_is_refused() {
    let world = World::new();
    let args = conversations(&world, "out");
    for (more, field) in [
        (json!({"turns": "last", "rewarded_turns": "all"}), "rewarded_turns"),
        (json!({"rewarded_turns": "all", "reward": {"kind": "final_answer"}}), "rewarded_turns"),
        (json!({"rollouts": "upstream", "lora": {"rank": 4}}), "turns"),
        (json!({"reward": {"kind": "judge", "by": "pairs"}, "judge_model": world.path("model")}), "turns"),
        (json!({"turns": "first"}), "turns"),
    ] {
        let error = fails("grpo", &with(&args, more.clone()));
        assert!(error.contains(field), "{more}: {error}");
    }
    // A template that removes the reasoning of earlier answers.
    let rewriting = "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content.split('</think>')[-1] }} t2 \
                     {% else %}t3 {{ m.content }} t4 {% endif %}{% endfor %}";
    let error = fails("ppo", &with(&args, json!({"model": model(&world, rewriting)})));
    assert!(error.contains("removes their reasoning") && error.contains("set `turns` to last"), "{error}");
    // One that begins an answer in a way that it does not keep.
    let opening = TEMPLATE.to_owned() + "{% if add_generation_prompt %}t9 {% endif %}";
    let error = fails("ppo", &with(&args, json!({"model": model(&world, &opening)})));
    assert!(error.contains("begins them in another way"), "{error}");
    // One that moves the system message to the last user turn, for prompts with one.
    let moving = "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content }} t2 {% elif m.role == 'user' %}t3 \
                  {% if loop.last and messages[0].role == 'system' %}{{ messages[0].content }} {% endif %}\
                  {{ m.content }} t4 {% endif %}{% endfor %}";
    let moved = model(&world, moving);
    train("ppo", &with(&args, json!({"model": moved, "iterations": 1})));
    let system = json!({"messages": [{"role": "system", "content": "t8"}, {"role": "user", "content": "t30"},
        {"role": "assistant", "content": "t31"}, {"role": "user", "content": "t32"}], "prompt_id": "with-system"});
    std::fs::write(world.path("system.jsonl"), format!("{system}\n")).unwrap();
    let error = fails("ppo", &with(&args, json!({"model": moved, "prompts": world.path("system.jsonl")})));
    assert!(error.contains("prompt 1") && error.contains("user turn 2"), "{error}");
    assert!(error.contains("writes the beginning of the conversation differently"), "{error}");
}

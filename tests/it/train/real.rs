//! One step of the loop on the real model, where `INSTRUCTD_TEST_GGUF` names it: sizes, memory, invariants.

use serde_json::{Value, json};

use crate::loop_closes::world::{World, train};
use crate::support::{Recorder, smollm2};

fn spoke(name: &str, recorder: &Recorder, started: std::time::Instant) {
    let memory = recorder.progress.iter().filter_map(|p| p.memory_bytes).max().unwrap_or(0) >> 20;
    let rate = recorder.curve("tokens_per_second");
    println!("{name}: {:.1} s, {memory} MiB at most, tokens/s {rate:.0?}", started.elapsed().as_secs_f64());
}

#[test]
fn smollm2_takes_a_step_of_reward_and_ppo() {
    let Some(model) = smollm2() else { return };
    let world = World::new();
    let rankings = crate::support::fixture("oasst-en-ranked.jsonl");
    let common = json!({"model": model, "device": "cpu", "max_length": 96, "max_steps": 1, "seed": 1});
    let with = |more: Value| {
        let mut args = common.clone();
        args.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        args
    };
    let started = std::time::Instant::now();
    let (recorder, metrics) = train(
        "reward",
        &with(
            json!({"output_dir": world.path("rm"), "comparisons": rankings, "batch_size": 2, "heldout_fraction": 0.03,
                     "lora": {"rank": 8}, "normalize": false}),
        ),
    );
    spoke("reward, 1 step of 2 sets and evaluation", &recorder, started);
    println!("{metrics}");
    assert!(recorder.last("grad_norm") > 0.0);

    let prompts: String = ["Name a colour.", "What is two plus two?", "Tell me a fact.", "Say hello."]
        .map(|text| json!({"prompt": [{"role": "user", "content": text}]}).to_string() + "\n")
        .concat();
    std::fs::write(world.path("chat.jsonl"), prompts).unwrap();
    for (name, more) in [
        ("LoRA, shared critic", json!({"lora": {"rank": 8}})),
        ("full, separate critic", json!({"lora": null, "critic": "separate"})),
    ] {
        let started = std::time::Instant::now();
        let mut args = with(json!({
            "output_dir": world.path("policy"), "prompts": world.path("chat.jsonl"), "reward_model": world.path("rm"),
            "rollout_batch_size": 4, "response_length": 16, "minibatches": 1, "ppo_epochs": 2, "max_steps": 2,
            "eval_every": 100, "learning_rate": 1e-5,
        }));
        args.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let (recorder, metrics) = train("ppo", &args);
        spoke(&format!("ppo {name}, 2 iterations of 4 × 16"), &recorder, started);
        println!("{metrics} gap {:?} lengths {:?}", recorder.curve("sampling_gap"), recorder.curve("response_length"));
        assert_eq!(recorder.curve("kl")[0], 0.0);
        assert!(
            recorder.curve("start_ratio").iter().all(|r| (r - 1.0).abs() < 1e-5),
            "{:?}",
            recorder.curve("start_ratio")
        );
        assert!(recorder.curve("sampling_gap").iter().all(|gap| *gap < 1e-3));
    }
}

//! One command from demonstrations to a report: stopped in the middle it goes on, and does nothing twice.

use instructd::instructgpt::{Ended, InstructGptArgs, PipelineState, run};
use instructd::model::load;
use serde_json::{Value, json};

use crate::loop_closes::world::{World, exists, share_written_by};
use crate::support::Recorder;

fn args(world: &World, more: &Value) -> InstructGptArgs {
    let mut args = json!({
        "model": World::model(), "work_dir": world.path("work"), "comparisons": world.comparisons(48),
        "demonstrations": world.demonstrations(64), "prompts": world.prompts(24), "seed": 3,
        "sft": {"learning_rate": 5e-3, "max_length": 64, "device": "cpu", "epochs": 2, "checkpoint_every": 2},
        "reward": {"learning_rate": 1e-3, "max_length": 64, "device": "cpu", "batch_size": 8},
        "ppo": {"rollout_batch_size": 16, "response_length": 8, "iterations": 2, "max_length": 64, "device": "cpu",
            "learning_rate": 1e-3, "ptx_coef": 0.5},
        "sample_prompts": 2, "measured_prompts": 16,
    });
    for (key, value) in more.as_object().unwrap() {
        args[key] = value.clone();
    }
    serde_json::from_value(args).unwrap()
}

fn logged(recorder: &Recorder) -> Vec<String> {
    recorder.events("log").iter().filter_map(|e| e["message"].as_str().map(str::to_owned)).collect()
}

#[test]
fn runs_to_the_report_after_a_stop_without_repeating_steps() {
    let world = World::new();
    let args = args(&world, &json!({}));
    let mut first = Recorder { stop_after: Some(3), ..Recorder::default() };
    assert_eq!(run(&args, &mut first).unwrap(), Ended::Stopped { step: "sft" });
    let mut second = Recorder::default();
    let Ended::Done { report } = run(&args, &mut second).unwrap() else { panic!("not stopped this time") };
    // Four steps of 16 in each of two epochs, one held-out tenth: the second run began where the first ended.
    let steps: Vec<i64> = second.metrics.iter().filter(|m| m.name == "loss").map(|m| m.step).collect();
    assert_eq!(steps[0], 4, "{steps:?}");
    let page = std::fs::read_to_string(&report).unwrap();
    let text = std::fs::read_to_string(report.with_extension("md")).unwrap();
    for part in ["after SFT", "after PPO", "mean reward", "PPO-ptx"] {
        assert!(page.contains(part) && text.contains(part), "{part}");
    }
    assert!(page.matches("<polyline").count() >= 4 && page.contains("kl, 2 points"));
    let work = world.path("work");
    for model in ["sft", "reward", "ppo"] {
        assert!(exists(&work, &format!("{model}/model/model.safetensors")), "{model}");
    }
    // The demonstrations hold liked words only: learning from them shows.
    let sft = format!("{work}/sft/model");
    assert!(share_written_by(&sft) > share_written_by(&World::model()) + 0.05);
    load(format!("{work}/ppo/model").as_ref(), &candle_core::Device::Cpu).unwrap();

    // Nothing changed: nothing is done again, and the report is the same.
    let mut third = Recorder::default();
    run(&args, &mut third).unwrap();
    assert!(third.metrics.is_empty() && logged(&third).iter().all(|m| m.ends_with("done before")));
    assert_eq!(std::fs::read_to_string(&report).unwrap(), page);

    // Another PPO argument repeats PPO and what follows, no earlier step.
    let mut changed = args.clone();
    changed.ppo.insert("kl_coef".into(), json!(0.2));
    let mut fourth = Recorder::default();
    run(&changed, &mut fourth).unwrap();
    let again: Vec<String> = logged(&fourth).into_iter().filter(|m| m.ends_with(": done")).collect();
    assert_eq!(again, ["ppo: done", "measure: done"]);
}

#[test]
fn a_rule_can_replace_rankings_of_people() {
    let world = World::new();
    let liked: Vec<String> = (10..30).map(|i| format!("t{i}")).collect();
    let collect = json!({"prompts": world.prompts(12), "samples": 3, "max_tokens": 6,
        "judge": {"kind": "word_share", "words": liked}});
    let args = args(&world, &json!({"comparisons": null, "collect": collect, "prompts": null}));
    run(&args, &mut Recorder::default()).unwrap();
    let text = std::fs::read_to_string(world.path("work/comparisons.jsonl")).unwrap();
    for line in text.lines() {
        let set: Value = serde_json::from_str(line).unwrap();
        let share = |c: &Value| {
            let words: Vec<&str> = c["text"].as_str().unwrap().split_whitespace().collect();
            words.iter().filter(|w| liked.iter().any(|l| l == *w)).count() as f64 / words.len().max(1) as f64
        };
        let all = set["completions"].as_array().unwrap();
        assert_eq!(all.len(), 3);
        for a in all {
            for b in all {
                let order = (a["tier"].as_i64().unwrap()).cmp(&b["tier"].as_i64().unwrap());
                assert_eq!(order, share(b).total_cmp(&share(a)), "{line}");
            }
        }
    }
    let state = PipelineState::open(world.path("work/state.json").as_ref()).unwrap();
    let made = state.result("comparisons").unwrap();
    assert_eq!(made["comparisons"].as_u64().unwrap() as usize, text.lines().count());
}

#[test]
fn bad_arguments_are_refused_before_any_work() {
    let world = World::new();
    for (more, part) in [
        (json!({"comparisons": null}), "comparisons or collect"),
        (
            json!({"demonstrations": null, "comparisons": null, "collect": {"prompts": "x", "samples": 2, "max_tokens": 4,
            "judge": {"kind": "length", "target": 3}}}),
            "demonstrations",
        ),
        (json!({"sft": {"epochs": 0}}), "sft.epochs"),
        (json!({"reward": {"typo": 1}}), "reward.typo"),
        (json!({"ppo": {"reward_model": "x"}}), "ppo.reward_model"),
        (json!({"ppo": {"kl_coef": -1}}), "ppo.kl_coef"),
        (json!({"sample_prompts": 0}), "sample_prompts"),
        (json!({"measured_prompts": 1}), "measured_prompts"),
    ] {
        let error = format!("{:#}", run(&args(&world, &more), &mut Recorder::default()).unwrap_err());
        assert!(error.contains(part), "{more}: {error}");
        assert!(!exists(&world.path("work"), "sft"), "{more}");
    }
}

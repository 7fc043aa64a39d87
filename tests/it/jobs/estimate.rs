//! What a job will need: asked of the stored data and the model's files, and held against a real run's peak.

use instructd::domain::*;
use instructd::jobs::{estimate, is_passed_on};
use serde_json::json;

use super::small_world;
use crate::store::{backend, fixture};
use crate::support;

#[tokio::test]
async fn an_estimate_has_memory_steps_time_and_basis() {
    let fresh = backend::sqlite().await.unwrap();
    let store = &fresh.store;
    small_world(store).await;
    let mut version = fixture::model("tiny", ModelKind::Policy);
    version.artifact_uri = support::fixture("llama-tiny").display().to_string();
    store.models().put(version).await.unwrap();
    let data = tempfile::tempdir().unwrap();
    let ask = |kind: &'static str, args: serde_json::Value| {
        estimate::estimate(store, instructd::train::recipes(), data.path(), kind, args, true)
    };
    let reward = ask("reward", json!({"model": "tiny", "epochs": 2, "batch_size": 1})).await.unwrap();
    assert!(reward.memory_bytes > 0 && reward.basis.contains("2 rows"), "{reward:?}");
    assert!(reward.steps.is_some_and(|steps| (2..=4).contains(&steps)), "{reward:?}");
    let seconds = reward.seconds.unwrap();
    assert!(seconds.low > 0.0 && seconds.low <= seconds.high, "{reward:?}");
    assert_eq!(reward.fits, reward.available_memory_bytes.map(|free| reward.memory_bytes <= free));
    let refused = ask("reward", json!({"model": "tiny", "epochs": 0})).await.unwrap_err();
    assert!(refused.to_string().contains("epochs"), "{refused}");
    // Files elsewhere: nothing is made up.
    let unknown = ask("reward", json!({"model": "base"})).await.unwrap();
    assert_eq!((unknown.memory_bytes, unknown.fits, unknown.seconds), (0, None, None));
}

#[tokio::test]
async fn an_estimate_of_whole_conversations_counts_the_policys_answers() {
    let fresh = backend::sqlite().await.unwrap();
    let store = &fresh.store;
    small_world(store).await;
    let mut version = fixture::model("tiny", ModelKind::Policy);
    version.artifact_uri = support::fixture("llama-tiny").display().to_string();
    store.models().put(version).await.unwrap();
    let mut prompt = fixture::prompt("talk");
    let message = |role: &str, length: usize| Message { role: role.into(), content: "x".repeat(length) };
    prompt.messages = vec![message("user", 40), message("assistant", 400), message("user", 40)];
    store.prompts().put(prompt).await.unwrap();
    let data = tempfile::tempdir().unwrap();
    for (turns, tokens) in [
        // Of the other prompt's 2 characters and of 480, with 16 tokens of the template: (2 + 480) / 2 / 4 + 16.
        ("last", "2 rows of about 76 tokens"),
        // The stored answer does not count, but one of 20 tokens and its 16 of the template: (2 + 80 + 36 · 4) / 2 / 4 + 16.
        ("all", "2 rows of about 44 tokens"),
    ] {
        let args =
            json!({"model": "tiny", "reward": {"kind": "length", "target": 4}, "response_length": 20, "turns": turns});
        let found =
            estimate::estimate(store, instructd::train::recipes(), data.path(), "grpo", args, true).await.unwrap();
        assert!(found.basis.contains(tokens), "{turns}: {found:?}");
    }
}

/// Models that a laptop cannot train whole get adapters; what is said stays said.
#[tokio::test]
async fn large_models_are_trained_through_adapters_by_default() {
    let fresh = backend::sqlite().await.unwrap();
    let store = &fresh.store;
    let data = tempfile::tempdir().unwrap();
    for (name, width) in [("small", 48), ("large", 1024)] {
        let dir = data.path().join("models").join(name);
        support::copy_into(&support::fixture("llama-tiny"), &dir);
        // `describe` reads the configuration alone.
        let mut config: serde_json::Value =
            serde_json::from_slice(&std::fs::read(dir.join("config.json")).unwrap()).unwrap();
        config["hidden_size"] = json!(width);
        config["intermediate_size"] = json!(width * 4);
        config["num_hidden_layers"] = json!(8);
        std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
        store.models().put(fixture::model(name, ModelKind::Policy)).await.unwrap();
    }
    for (args, expected) in [
        (json!({"model": "large"}), json!({"rank": 8, "alpha": 16})),
        (json!({"model": "small"}), json!(null)),
        (json!({"model": "large", "lora": null}), json!(null)),
        (json!({"model": "large", "lora": {"rank": 2}}), json!({"rank": 2})),
    ] {
        let mut filled = args.as_object().unwrap().clone();
        estimate::fill_defaults(store, data.path(), "sft", &mut filled).await.unwrap();
        assert_eq!(filled.get("lora").cloned().unwrap_or_default(), expected, "{args}");
    }
    let mut pretrain = json!({"model": "large"}).as_object().unwrap().clone();
    estimate::fill_defaults(store, data.path(), "pretrain", &mut pretrain).await.unwrap();
    assert!(!pretrain.contains_key("lora"));
}

#[tokio::test]
async fn the_gold_reward_model_is_never_the_one_trained_on() {
    let fresh = backend::sqlite().await.unwrap();
    let store = &fresh.store;
    small_world(store).await;
    let judge = |name: &str, sha: char, uri: &str| {
        let mut version = fixture::model(name, ModelKind::Reward);
        version.sha256 = sha.to_string().repeat(64);
        version.artifact_uri = uri.to_owned();
        version
    };
    let (first, copy, other) =
        (judge("rm", 'a', "models/rm"), judge("copy", 'a', "models/copy"), judge("other", 'b', "models/other"));
    for version in [&first, &copy, &other] {
        store.models().put(version.clone()).await.unwrap();
    }
    store.models().activate(&first.id, fixture::T0).await.unwrap();
    let refused = |args| async move {
        match super::enqueue(store, "ppo", args).await {
            Err(instructd::jobs::queue::EnqueueError::Args(e)) => (e.field, e.message),
            other => panic!("{other:?}"),
        }
    };
    for args in [
        json!({"reward_model": "rm", "gold_reward_model": "rm"}),
        json!({"reward_model": "rm", "gold_reward_model": first.id}),
        json!({"reward_model": "rm", "gold_reward_model": "copy"}),
        // The active one is meant where the field is left out.
        json!({"gold_reward_model": "rm"}),
    ] {
        let (field, message) = refused(args.clone()).await;
        assert_eq!(field, "gold_reward_model", "{args}: {message}");
    }
    let job = super::enqueue(store, "ppo", json!({"reward_model": "rm", "gold_reward_model": "other"})).await.unwrap();
    assert_eq!(job.args["gold_reward_model"], "other");
    // Empty is none, never the active one.
    for empty in [json!(null), json!(""), json!(" ")] {
        let args = json!({"reward_model": "rm", "gold_reward_model": empty});
        assert_eq!(super::enqueue(store, "ppo", args).await.unwrap().args.get("gold_reward_model"), None);
        assert_eq!(refused(json!({"reward_model": empty})).await.0, "reward_model");
        assert_eq!(refused(json!({"model": empty, "reward_model": "rm"})).await.0, "model");
    }
}

#[test]
fn children_get_no_secrets() {
    for secret in [
        "INSTRUCTD_ADMIN_KEY",
        "INSTRUCTD_DATABASE_URL",
        "INSTRUCTD_UPSTREAM__API_KEY",
        "DATABASE_URL",
        "PGPASSWORD",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "HF_TOKEN",
        "OPENAI_API_KEY",
    ] {
        assert!(!is_passed_on(secret), "{secret}");
    }
    for needed in ["PATH", "HOME", "LC_ALL", "RUST_LOG", "RAYON_NUM_THREADS", "CUDA_VISIBLE_DEVICES"] {
        assert!(is_passed_on(needed), "{needed}");
    }
}

/// The peak of real runs of the built-in model lies within a factor of two of the estimate, for all parameters and
/// for adapters, and for two sizes of micro-batches.
#[test]
#[cfg(target_os = "linux")]
fn the_memory_of_a_run_is_within_a_factor_of_two() {
    use instructd::train::estimate::{DataSize, PlannedRun, need};
    let dir = tempfile::tempdir().unwrap();
    let model = instructd::hub::builtin::unpack(dir.path()).unwrap();
    let config = instructd::model::describe(&model).unwrap().config;
    let text = "The quick brown fox jumps over the lazy dog and runs away. ".repeat(4);
    let demonstrations = dir.path().join("d.jsonl");
    let lines = (0..2).map(|i| format!("{}\n", json!({"prompt": format!("Question {i}"), "completion": text})));
    std::fs::write(&demonstrations, lines.collect::<String>()).unwrap();
    for (name, more) in [
        ("full", json!({"micro_batch_tokens": 100})),
        ("lora", json!({"micro_batch_tokens": 256, "lora": {"rank": 8}})),
    ] {
        let mut args = json!({"model": model, "demonstrations": demonstrations, "output_dir": dir.path().join(name),
            "heldout_fraction": 0.0, "max_steps": 1, "batch_size": 2, "max_length": 128, "device": "cpu"});
        for (key, value) in more.as_object().unwrap() {
            args[key] = value.clone();
        }
        let file = dir.path().join("args.json");
        std::fs::write(&file, args.to_string()).unwrap();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_instructd"));
        command.args(["train", "sft", "--args"]).arg(&file).arg("--data-dir").arg(dir.path());
        command.env("RAYON_NUM_THREADS", "2").stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let mut child = command.spawn().unwrap();
        // The high-water mark of the process itself: `ru_maxrss` of a child begins with the memory of its parent.
        let file = format!("/proc/{}/status", child.id());
        let mut peak = 0.0_f64;
        let status = loop {
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or_default();
            let kib = line.trim().trim_end_matches(" kB").parse().unwrap_or(0.0);
            peak = peak.max(kib * 1024.0);
            match child.try_wait().unwrap() {
                Some(status) => break status,
                None => std::thread::sleep(std::time::Duration::from_millis(5)),
            }
        };
        assert!(status.success(), "{name}: the run failed");
        let data = Some(DataSize { rows: 2, sequences_per_row: 1.0, tokens: 80.0, longest: 160.0 });
        let planned = PlannedRun {
            recipe: "sft",
            args: &args,
            model: &config,
            reward_model: None,
            gold_reward_model: None,
            judge_model: None,
            data,
        };
        let estimated = need(&planned).memory_bytes as f64;
        let factor = estimated / peak;
        assert!((0.5..=2.0).contains(&factor), "{name}: {estimated:.3e} estimated, {peak:.3e} measured: {factor:.2}");
    }
}

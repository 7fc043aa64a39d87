//! Judges on other servers: the real binary asks those that the configuration names, reads their log-probs or their JSON,
//! and no other.

use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use super::remote::service;
use crate::loop_closes::world::World;

/// Runs a recipe with these `[judges]`. Returns whether it ended well, what it said, and its curves.
fn train(world: &World, recipe: &str, judges: &str, more: Value) -> (bool, String, String) {
    let mut args = json!({
        "model": World::model(), "output_dir": world.path("out"), "prompts": world.prompts(8), "device": "cpu",
        "reward": {"kind": "judge", "host": "large"}, "rollout_batch_size": 4, "response_length": 4, "iterations": 2,
        "max_length": 64, "sample_prompts": 0, "log_dir": world.path("logs"),
    });
    for (key, value) in more.as_object().unwrap() {
        args[key] = value.clone();
    }
    let (file, config) = (world.path("args.json"), world.path("config.toml"));
    std::fs::write(&file, args.to_string()).unwrap();
    std::fs::write(&config, judges).unwrap();
    let _ = std::fs::remove_dir_all(world.path("logs"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_instructd"));
    command.args(["train", recipe, "--args", &file, "--config", &config]).stdin(Stdio::null());
    let out = command.output().unwrap();
    let metrics = std::fs::read_to_string(std::path::Path::new(&world.path("logs")).join("metrics.jsonl"));
    (out.status.success(), String::from_utf8_lossy(&out.stderr).into_owned(), metrics.unwrap_or_default())
}

/// A curve of metrics.jsonl.
fn curve(metrics: &str, name: &str) -> Vec<f64> {
    let lines = metrics.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter_map(|line| line[name].as_f64().or_else(|| line["metrics"][name].as_f64())).collect()
}

fn judge(host: &str, more: &str) -> String {
    format!(
        "[judges.large]\nurl = \"http://{host}/v1\"\nmodel = \"wise\"\napi_key = \"sk-judge\"\nmax_running = 1\n{more}"
    )
}

/// A chat completion whose first token has these alternatives.
pub fn completion(alternatives: &[(&str, f64)]) -> String {
    let all: Vec<Value> =
        alternatives.iter().map(|(token, p)| json!({"token": token, "logprob": p.ln(), "bytes": null})).collect();
    json!({"id": "x", "object": "chat.completion", "choices": [{"index": 0, "finish_reason": "length",
        "message": {"role": "assistant", "content": alternatives[0].0},
        "logprobs": {"content": [{"token": alternatives[0].0, "logprob": alternatives[0].1.ln(), "top_logprobs": all}]}}]})
    .to_string()
}

#[test]
fn a_judge_is_asked_with_its_key_and_grades_are_the_mean_of_its_log_probs() {
    let world = World::new();
    let (host, count) = service(|n, head, request| {
        // The first request meets a server that is still starting.
        if n == 0 {
            return (503, String::new());
        }
        assert!(head.starts_with("POST /v1/chat/completions "), "{head}");
        assert!(head.to_lowercase().contains("authorization: bearer sk-judge"), "{head}");
        assert_eq!((&request["model"], &request["top_logprobs"]), (&json!("wise"), &json!(20)));
        let question = request["messages"][0]["content"].as_str().unwrap();
        assert!(question.contains("## Answer to be graded\n") && question.contains("Be brief."), "{question}");
        (200, completion(&[("8", 0.5), (" 3", 0.25), ("The", 0.25)]))
    });
    let reward = json!({"reward": {"kind": "judge", "host": "large", "rubric": "Be brief."}});
    let (ok, said, metrics) = train(&world, "reinforce", &judge(&host, ""), reward);
    assert!(ok, "{said}");
    let count = count.load(Ordering::SeqCst);
    assert_eq!(count, 13, "two rounds and the win rate, of four responses each, and one failure");
    let expected = (0.5 * 8.0 + 0.25 * 3.0) / 0.75;
    for (name, expected) in [("reward", expected), ("judge_on_choices", 0.75), ("judge_without_answer", 0.0)] {
        let found = curve(&metrics, name);
        assert!(found.len() == 2 && found.iter().all(|v| (v - expected).abs() < 1e-9), "{name}: {found:?} {metrics}");
    }
}

#[test]
fn pairs_are_asked_in_both_orders() {
    let world = World::new();
    // Always the first place: both orders contradict each other, and nobody is better.
    let (host, count) = service(|_, _, request| {
        let question = request["messages"][0]["content"].as_str().unwrap();
        assert!(question.contains("## Answer A\n") && question.contains("## Answer B\n"), "{question}");
        (200, completion(&[("A", 0.9), ("B", 0.1)]))
    });
    let pairs = json!({"reward": {"kind": "judge", "host": "large", "by": "pairs"}, "group_size": 2, "iterations": 1});
    let (ok, said, metrics) = train(&world, "online_dpo", &judge(&host, ""), pairs);
    assert!(ok, "{said}");
    assert_eq!(count.load(Ordering::SeqCst), 4, "two prompts, one pair each, two orders");
    assert_eq!(curve(&metrics, "judge_consistency"), [0.0]);
    assert!((curve(&metrics, "judge_first_place")[0] - 0.9).abs() < 1e-9);
    assert_eq!(curve(&metrics, "reward"), [0.5]);
    assert_eq!(curve(&metrics, "learned_from"), [0.0], "ties teach nothing");
}

#[test]
fn a_judge_without_log_probs_answers_by_a_schema() {
    let world = World::new();
    let (host, _) = service(|_, _, request| {
        let choices = &request["response_format"]["json_schema"]["schema"]["properties"]["answer"]["enum"];
        assert_eq!(choices.as_array().map(Vec::len), Some(10), "{request}");
        assert!(request["logprobs"].is_null());
        let message = json!({"role": "assistant", "content": "{\"answer\": \"10\"}"});
        (200, json!({"choices": [{"index": 0, "message": message}]}).to_string())
    });
    let (ok, said, metrics) = train(&world, "reinforce", &judge(&host, "logprobs = false"), json!({}));
    assert!(ok, "{said}");
    assert_eq!(curve(&metrics, "reward"), [10.0; 2]);
    // The same server taken for one that reports them.
    let (ok, said, _) = train(&world, "reinforce", &judge(&host, "logprobs = true"), json!({}));
    assert!(!ok, "{said}");
}

#[test]
fn judges_that_are_unknown_or_answer_wrongly_end_the_run_with_the_reason() {
    let world = World::new();
    let (ok, said, _) = train(&world, "reinforce", "", json!({}));
    assert!(!ok && said.contains("no judge 'large'"), "{said}");
    let (host, count) = service(|_, _, _| (200, json!({"choices": []}).to_string()));
    let (ok, said, _) = train(&world, "reinforce", &judge(&host, ""), json!({}));
    assert!(!ok && said.contains("the judge large") && said.contains("no choice"), "{said}");
    // A request cannot name an address.
    let url = json!({"reward": {"kind": "judge", "url": format!("http://{host}/v1")}});
    let before = count.load(Ordering::SeqCst);
    let (ok, said, _) = train(&world, "reinforce", &judge(&host, ""), url);
    assert!(!ok && said.contains("url"), "{said}");
    assert_eq!(count.load(Ordering::SeqCst), before);
    let (redirecting, _) = service(|_, _, _| (302, String::new()));
    let (ok, said, _) = train(&world, "reinforce", &judge(&redirecting, ""), json!({}));
    assert!(!ok && said.contains("302"), "{said}");
    let (mute, _) = service(|_, _, _| (200, completion(&[("I", 0.9), ("am", 0.1)])));
    let (ok, said, _) = train(&world, "reinforce", &judge(&mute, ""), json!({}));
    assert!(!ok && said.contains("with one of the choices"), "{said}");
    let (ok, said, _) = train(&world, "reinforce", "[judges.large]\nurl = \"judge\"\nmodel = \"m\"\n", json!({}));
    assert!(!ok && said.contains("judges.large.url"), "{said}");
}

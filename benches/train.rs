//! Training on the real model by phase: one PPO iteration, reward steps and SFT steps, with peak memory.
//!
//! `INSTRUCTD_BENCH_MODEL=FILE.gguf cargo bench --bench train [-- NAME…]` measures the rows whose name contains
//! one of the NAMEs (all without), each in a process of its own, and prints a JSON object a row. Inputs are made
//! once in `target/bench-train` (f32, about 1 GB); `benches/train_trl.py` reads the same.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use candle_core::{Device, Tensor};
use instructd::domain::{Metric, Progress};
use instructd::model::{Weights, load, save_dir};
use instructd::train::{Reporter, TrainOutcome, recipe};
use serde_json::{Value, json};

/// Iterations or steps of a row: the last is reported.
const STEPS: u64 = 2;

/// (name, recipe, arguments beside the common ones)
fn rows() -> Vec<(&'static str, &'static str, Value)> {
    let ppo = |more: Value| {
        let mut args = json!({"prompts": "prompts.jsonl", "reward_model": "reward", "rollout_batch_size": 16,
            "response_length": 48, "max_length": 80, "ppo_epochs": 4, "minibatches": 1, "learning_rate": 1e-5,
            "iterations": STEPS, "micro_batch_tokens": 1280});
        merge(&mut args, more);
        args
    };
    let lora = json!({"rank": 8, "alpha": 16});
    let reward = json!({"comparisons": "rankings.jsonl", "batch_size": 8, "max_length": 320, "normalize": false,
        "heldout_fraction": 0.0});
    let sft = json!({"demonstrations": "demonstrations.jsonl", "batch_size": 16, "max_length": 320,
        "heldout_fraction": 0.0});
    let with = |base: &Value, more: Value| {
        let mut args = base.clone();
        merge(&mut args, more);
        args
    };
    vec![
        // The work of benches/train_trl.py: that trainer never clips.
        ("ppo full, separate critic", "ppo", ppo(json!({"critic": "separate", "max_grad_norm": null}))),
        (
            "ppo full, separate critic, least memory",
            "ppo",
            ppo(json!({"critic": "separate", "max_grad_norm": null, "recompute": "block"})),
        ),
        ("ppo full, separate critic, clipped", "ppo", ppo(json!({"critic": "separate"}))),
        ("ppo LoRA, shared critic", "ppo", ppo(json!({"lora": lora}))),
        ("ppo LoRA in bf16, shared critic", "ppo", ppo(json!({"lora": lora, "frozen_precision": "bf16"}))),
        ("reward LoRA, steps of 8 sets", "reward", with(&reward, json!({"lora": lora}))),
        ("reward full, steps of 8 sets", "reward", reward.clone()),
        ("sft LoRA, steps of 16", "sft", with(&sft, json!({"lora": lora}))),
        ("sft full, steps of 16", "sft", sft.clone()),
    ]
}

fn merge(into: &mut Value, more: Value) {
    if let (Some(into), Value::Object(more)) = (into.as_object_mut(), more) {
        into.extend(more);
    }
}

/// Keeps the latest value of each metric and the times at which steps ended.
struct Clock {
    started: Instant,
    /// (wall, processor) seconds.
    ends: Vec<(f64, f64)>,
    last: BTreeMap<String, f64>,
    step: u64,
}

impl Clock {
    /// Steps report progress, metrics or both at their end; the first word counts.
    fn ended(&mut self, step: u64) {
        if step > self.step {
            self.step = step;
            self.ends.push((self.started.elapsed().as_secs_f64(), cpu_seconds()));
        }
    }
}

impl Reporter for Clock {
    fn progress(&mut self, progress: &Progress) {
        self.ended(progress.step);
    }

    fn metrics(&mut self, metrics: &[Metric]) {
        for m in metrics {
            if m.name == "grad_norm" {
                self.ended(m.step as u64);
            }
            self.last.insert(m.name.clone(), m.value);
        }
    }

    fn event(&mut self, _: &str, _: Value) {}

    fn should_stop(&self) -> bool {
        // Enough is measured; what follows (saving) is not.
        self.ends.len() as u64 >= STEPS
    }
}

/// Processor time of all threads so far: what a measurement on a busy machine can still compare.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // After the name in brackets: field 3 on; 14 and 15 are user and system time in hundredths.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    fields.iter().skip(11).take(2).filter_map(|t| t.parse::<f64>().ok()).sum::<f64>() / 100.0
}

fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) / 1024
}

fn measure(dir: &Path, name: &str) {
    let (name, kind, mut args) = rows().into_iter().find(|row| row.0 == name).expect("a row of this name");
    merge(
        &mut args,
        json!({"model": dir.join("policy"), "output_dir": dir.join("out"), "device": "cpu", "seed": 1,
        "max_steps": STEPS + 1, "eval_every": 1000}),
    );
    if kind == "ppo" {
        merge(&mut args, json!({"iterations": STEPS + 1}));
    }
    for field in ["prompts", "reward_model", "comparisons", "demonstrations"] {
        if let Some(file) = args[field].as_str().map(str::to_owned) {
            args[field] = json!(dir.join(file));
        }
    }
    instructd::ops::par::configure_for_training();
    let mut clock = Clock { started: Instant::now(), ends: Vec::new(), last: BTreeMap::new(), step: 0 };
    let outcome = (recipe(kind).expect("recipe").run)(&args, &mut clock).expect("training");
    assert!(matches!(outcome, TrainOutcome::Stopped { .. }), "stopped after {STEPS} steps");
    let [.., before, after] = clock.ends[..] else { panic!("fewer than two steps") };
    let mut result = json!({"what": name, "seconds": round(after.0 - before.0),
        "cpu_seconds": round(after.1 - before.1), "peak_mib": peak_mib()});
    for (metric, value) in &clock.last {
        if metric.starts_with("seconds_")
            || ["response_length", "tokens_per_second", "start_ratio"].contains(&metric.as_str())
        {
            result[metric] = json!(round(*value));
        }
    }
    println!("{result}");
}

fn round(x: f64) -> f64 {
    (x * 100.0).round() / 100.0
}

/// Directories and files of all rows.
fn prepare(dir: &Path, model: &Path) {
    let text = "The river was low that summer and the boys walked across it on the stones every morning before \
        the sun had come over the hill, carrying their shoes and a small bag of bread and apples between them";
    std::fs::create_dir_all(dir).expect("bench directory");
    let rows = |name: &str, row: &dyn Fn(usize) -> Value, n: usize| {
        let lines: String = (0..n).map(|i| format!("{}\n", row(i))).collect();
        std::fs::write(dir.join(name), lines).expect("bench data");
    };
    rows("prompts.jsonl", &|i| json!({"prompt": format!("{i} {text} {i}")}), 32);
    // Three answers of some 80 tokens a set.
    let answer = |i: usize, k: usize| json!({"text": format!("{text}. {text} {i} {k}."), "tier": k});
    let user = |i: usize| json!([{"role": "user", "content": format!("Tell me story {i} of a river, please.")}]);
    rows(
        "rankings.jsonl",
        &|i| json!({"prompt": user(i), "completions": [answer(i, 0), answer(i, 1), answer(i, 2)]}),
        24,
    );
    rows("demonstrations.jsonl", &|i| json!({"prompt": user(i), "completion": format!("{text}. {text} {i}.")}), 48);
    if dir.join("reward/model.safetensors").exists() {
        return without_end(&dir.join("policy"));
    }
    let loaded = load(model, &Device::Cpu).expect("model");
    let save = |name: &str, weights: &Weights| {
        let (tokenizer, template) = (loaded.tokenizer.as_ref(), loaded.chat_template.as_deref());
        save_dir(&dir.join(name), &loaded.config, &loaded.hf_config, weights, tokenizer, template, None).expect("save")
    };
    save("policy", &loaded.weights);
    let head: Vec<f32> = (0..loaded.config.hidden_size).map(|i| (i as f32).sin() * 0.04).collect();
    let mut weights = loaded.weights.clone();
    weights.insert(
        "score.weight".to_owned(),
        Tensor::from_vec(head, (1, loaded.config.hidden_size), &Device::Cpu).expect("head"),
    );
    save("reward", &weights);
    without_end(&dir.join("policy"));
}

/// Takes the end token from a model's files: every response then has its full length, as in the trainer that these
/// rows are compared with, which generates without one.
fn without_end(model: &Path) {
    for name in ["config.json", "generation_config.json"] {
        let path = model.join(name);
        let text = std::fs::read_to_string(&path).expect("a file of the model");
        let mut config: BTreeMap<String, Value> = serde_json::from_str(&text).expect("JSON");
        if config.remove("eos_token_id").is_some() {
            std::fs::write(&path, json!(config).to_string()).expect("a file of the model");
        }
    }
}

fn main() -> ExitCode {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/bench-train");
    if let Ok(name) = std::env::var("INSTRUCTD_BENCH_ROW") {
        measure(&dir, &name);
        return ExitCode::SUCCESS;
    }
    let Some(model) = std::env::var_os("INSTRUCTD_BENCH_MODEL").map(PathBuf::from) else {
        println!("set INSTRUCTD_BENCH_MODEL to a model directory or .gguf file; nothing measured");
        return ExitCode::SUCCESS;
    };
    prepare(&dir, &model);
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let myself = std::env::current_exe().expect("own path");
    for (name, ..) in rows() {
        if !wanted.is_empty() && !wanted.iter().any(|w| name.contains(w.as_str())) {
            continue;
        }
        let status = Command::new(&myself).env("INSTRUCTD_BENCH_ROW", name).status().expect("child");
        if !status.success() {
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

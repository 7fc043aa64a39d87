//! The recipe `external` with trainers that are shell scripts: what they are given, and what is taken back.

use std::path::{Path, PathBuf};

use instructd::data::parquet;
use instructd::domain::{Metric, Progress};
use instructd::train::{Reporter, TrainOutcome, recipe};
use serde_json::{Value, json};

use crate::loop_closes::world::World;
use crate::support::{Recorder, fixture};

/// A recorder with one trainer.
struct With {
    recorder: Recorder,
    command: Vec<String>,
}

impl Reporter for With {
    fn progress(&mut self, progress: &Progress) {
        self.recorder.progress(progress);
    }

    fn metrics(&mut self, metrics: &[Metric]) {
        self.recorder.metrics(metrics);
    }

    fn event(&mut self, kind: &str, data: Value) {
        self.recorder.event(kind, data);
    }

    fn trainer(&self, name: &str) -> Option<Vec<String>> {
        (name == "script").then(|| self.command.clone())
    }

    fn should_stop(&self) -> bool {
        self.recorder.should_stop()
    }
}

struct Bench {
    world: World,
    comparisons: String,
}

impl Bench {
    fn new() -> Self {
        let world = World::new();
        let comparisons = world.comparisons(60);
        Self { world, comparisons }
    }

    fn args(&self) -> Value {
        json!({"model": World::model(), "output_dir": self.world.path("out"), "trainer": "script",
            "checkpoint_dir": self.world.path("checkpoints"), "comparisons": self.comparisons, "kl_prompts": 8,
            "kl_tokens": 6, "device": "cpu", "options": {"beta": 0.1}})
    }

    /// Runs a script with the places as $1 (job.json), $2 (model) and $3 (where the result goes).
    fn run(&self, script: &str, more: Value, stop_after: Option<u64>) -> (Recorder, anyhow::Result<TrainOutcome>) {
        let mut args = self.args();
        args.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let command = ["/bin/sh", "-ec", script, "sh", "{job}", "{model}", "{output}"].map(str::to_owned).to_vec();
        let mut with = With { recorder: Recorder { stop_after, ..Recorder::default() }, command };
        let outcome = (recipe("external").unwrap().run)(&args, &mut with);
        (with.recorder, outcome)
    }

    fn work(&self, name: &str) -> PathBuf {
        Path::new(&self.world.path("external")).join(name)
    }

    fn refused(&self, script: &str, more: Value) -> String {
        format!("{:#}", self.run(script, more, None).1.expect_err(script))
    }
}

const COPIES: &str =
    r#"mkdir "$3"; cp "$2"/* "$3"; echo '{"step": 1, "total_steps": 2, "loss": 0.75}'; echo words >&2"#;

#[test]
fn an_unchanged_model_has_distance_zero() {
    let bench = Bench::new();
    let (recorder, outcome) = bench.run(COPIES, json!({}), None);
    let TrainOutcome::Done { model_dir, metrics } = outcome.unwrap() else { panic!("nobody asked it to stop") };
    assert!(metrics["kl"]["per_sequence"].as_f64().unwrap().abs() < 1e-4, "{metrics}");
    assert_eq!((metrics["form"].as_str(), metrics["kl"]["heldout"].as_bool()), (Some("model"), Some(true)));
    assert!((1..=8).contains(&metrics["kl"]["samples"].as_u64().unwrap()), "{metrics}");
    assert_eq!((recorder.curve("loss"), recorder.curve("kl").len()), (vec![0.75], 1));
    assert!(recorder.progress.iter().any(|p| p.step == 1 && p.total_steps == Some(2)));
    let about: Value =
        serde_json::from_slice(&std::fs::read(Path::new(&model_dir).join("instructd.json")).unwrap()).unwrap();
    assert_eq!((about["kind"].as_str(), about["recipe"].as_str()), (Some("policy"), Some("external")));
    let log = std::fs::read_to_string(bench.work("log.txt")).unwrap();
    assert!(log.contains("words"), "{log}");

    // What the trainer was given.
    let job: Value = serde_json::from_slice(&std::fs::read(bench.work("job.json")).unwrap()).unwrap();
    assert_eq!(
        (&job["options"]["beta"], &job["resume"], &job["reward_model"]),
        (&json!(0.1), &json!(false), &Value::Null)
    );
    let sides = job["data"]["comparisons"].as_object().unwrap();
    let mut pairs = 0;
    for side in ["train", "heldout"] {
        let lines = std::fs::read_to_string(sides[side]["jsonl"].as_str().unwrap()).unwrap();
        let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(!lines.is_empty() && lines.len() as u64 == sides[side]["rows"].as_u64().unwrap(), "{side}");
        // Both forms hold the same, as the importer of published data sets reads them.
        let bytes = std::fs::read(sides[side]["parquet"].as_str().unwrap()).unwrap();
        let rows = parquet::read(bytes.into()).unwrap();
        for (row, line) in rows.zip(&lines) {
            let instructd::data::Record::Comparison(row) = row.unwrap() else { panic!("a preference") };
            assert_eq!(json!(row.prompt.messages()), line["prompt"]);
            assert_eq!(row.completions[0].text, line["chosen"][0]["content"].as_str().unwrap());
            assert_eq!(row.completions[1].text, line["rejected"][0]["content"].as_str().unwrap());
            pairs += 1;
        }
    }
    let sets = instructd::data::read_comparisons(Path::new(&bench.comparisons)).unwrap().map(Result::unwrap);
    let all: usize = sets.map(|set| instructd::data::pairs(&set.completions).len()).sum();
    assert_eq!(pairs, all, "every pair is on one side");
}

#[test]
fn an_adapter_is_folded_in_and_measured() {
    let bench = Bench::new();
    let trained = bench.world.path("sft");
    let sft = json!({"model": World::model(), "output_dir": trained, "demonstrations": bench.world.demonstrations(32),
        "lora": {"rank": 4}, "epochs": 4, "batch_size": 8, "learning_rate": 1e-2, "max_length": 32, "device": "cpu"});
    crate::loop_closes::world::train("sft", &sft);
    let script = format!("mkdir \"$3\"; cp {trained}/adapter/* \"$3\"");
    let (_, outcome) = bench.run(&script, json!({"kl_prompts": 64}), None);
    let TrainOutcome::Done { model_dir, metrics } = outcome.unwrap() else { panic!("nobody asked it to stop") };
    assert_eq!(metrics["form"], "adapter");
    let kl = metrics["kl"]["per_sequence"].as_f64().unwrap();
    assert!(kl > 0.1, "training moved it: {kl}");
    // The published weights are those that our own merge gives.
    let cpu = candle_core::Device::Cpu;
    let ours = instructd::model::load(Path::new(&trained), &cpu).unwrap().weights;
    let taken = instructd::model::load(Path::new(&model_dir), &cpu).unwrap().weights;
    for (name, tensor) in &ours {
        let gap = (tensor - &taken[name]).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
        let gap = gap.to_scalar::<f32>().unwrap();
        assert!(gap < 1e-5, "{name}: {gap}");
    }
    let error = bench.refused(&script, json!({"max_kl": kl / 2.0, "kl_prompts": 64}));
    assert!(error.contains("nats per sequence away") && error.contains("max_kl"), "{error}");
}

#[test]
fn unusable_results_are_refused() {
    let bench = Bench::new();
    let damaged = bench.world.path("damaged");
    crate::support::copy_into(&fixture("llama-tied-tiny"), Path::new(&damaged));
    let weights = Path::new(&damaged).join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&weights, bytes).unwrap();
    let copied = |from: &str| format!("mkdir \"$3\"; cp {from}/* \"$3\"");
    let other = fixture("qwen2-tiny").display().to_string();
    for (script, part) in [
        ("echo 'CUDA out of memory' >&2; exit 3".to_owned(), "CUDA out of memory"),
        ("exit 0".to_owned(), "neither config.json"),
        ("mkdir \"$3\"; echo '{}' > \"$3/config.json\"".to_owned(), "the trainer's result"),
        (copied(&damaged), "not finite"),
        (copied(&other), "the result"),
    ] {
        let error = bench.refused(&script, json!({}));
        assert!(error.contains(part), "{script}: {error}");
        assert!(!Path::new(&bench.world.path("out")).exists(), "nothing is published");
    }
    let error = bench.refused(COPIES, json!({"trainer": "nope"}));
    assert!(error.contains("no trainer 'nope'"), "{error}");
}

#[test]
fn a_stop_reaches_the_trainer_and_the_run_resumes() {
    let bench = Bench::new();
    let checkpoints = bench.world.path("checkpoints");
    let waits = format!(
        "trap 'echo saved > {checkpoints}/mine; exit 0' TERM; echo '{{\"step\": 3}}'; echo '{{\"step\": 3, \"loss\": 1}}'; \
         while :; do sleep 0.05; done"
    );
    std::fs::create_dir_all(&checkpoints).unwrap();
    let (_, outcome) = bench.run(&waits, json!({}), Some(3));
    assert!(matches!(outcome.unwrap(), TrainOutcome::Stopped { checkpoint: Some(_) }));
    let resumes = format!("grep -q '\"resume\": true' \"$1\"; test -e {checkpoints}/mine; {COPIES}");
    let (_, outcome) = bench.run(&resumes, json!({"resume": true}), None);
    assert!(matches!(outcome.unwrap(), TrainOutcome::Done { .. }));
}

#[test]
fn prompts_and_demonstrations_are_written_too() {
    let bench = Bench::new();
    let more = json!({"data": ["prompts", "demonstrations"], "prompts": bench.world.prompts(7),
        "demonstrations": bench.world.demonstrations(5), "reward_model": World::model()});
    let (_, outcome) = bench.run(COPIES, more, None);
    let TrainOutcome::Done { metrics, .. } = outcome.unwrap() else { panic!("nobody asked it to stop") };
    assert_eq!(metrics["rows"], json!({"prompts": {"train": 7}, "demonstrations": {"train": 5}}));
    let job: Value = serde_json::from_slice(&std::fs::read(bench.work("job.json")).unwrap()).unwrap();
    assert_eq!(job["reward_model"].as_str(), Some(World::model().as_str()));
    for (kind, fields) in [("prompts", vec!["prompt", "answer"]), ("demonstrations", vec!["prompt", "completion"])] {
        let lines = std::fs::read_to_string(job["data"][kind]["train"]["jsonl"].as_str().unwrap()).unwrap();
        for line in lines.lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            assert_eq!(line.as_object().unwrap().keys().collect::<Vec<_>>(), fields);
            assert_eq!(line["prompt"][0]["role"], "user");
        }
        let magic = std::fs::read(job["data"][kind]["train"]["parquet"].as_str().unwrap()).unwrap();
        assert!(magic.starts_with(b"PAR1") && magic.ends_with(b"PAR1"));
    }
}

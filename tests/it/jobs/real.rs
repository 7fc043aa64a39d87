//! A real recipe in a real child process: this test binary stands in for `instructd train-job`.

use std::path::{Path, PathBuf};

use instructd::domain::*;
use instructd::jobs::{Launch, Supervisor, SupervisorConfig, child};
use instructd::train::{job_kinds, recipes};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::enqueue;
use crate::store::{backend, fixture};

/// Not a test by itself: the body of the child. The supervisor adds `--job-dir DIR` to the arguments.
#[test]
#[ignore = "the child process of the test below"]
fn as_child() {
    let args: Vec<String> = std::env::args().collect();
    if let Some(at) = args.iter().position(|a| a == "--job-dir") {
        std::process::exit(child::main(Path::new(&args[at + 1]), job_kinds()).into());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rankings_become_a_reward_model() {
    let fresh = backend::sqlite().await.unwrap();
    let (store, data) = (fresh.store.clone(), tempfile::tempdir().unwrap());
    let tiny: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests", "fixtures", "llama-tiny"].iter().collect();
    let base = ModelVersion { artifact_uri: tiny.display().to_string(), ..fixture::model("base", ModelKind::Policy) };
    store.models().put(base.clone()).await.unwrap();
    store.models().activate(&base.id, fixture::T0).await.unwrap();
    for i in 0..6 {
        let mut prompt = fixture::prompt(&format!("question {i}"));
        prompt.split = if i < 4 { Split::Train } else { Split::Heldout };
        let texts: Vec<_> = ["t30", "t31"].iter().map(|t| fixture::completion(&prompt.id, t)).collect();
        let set = fixture::comparison_set(&prompt.id, &texts, 1);
        let judgment = fixture::judgment(&set, &"import".into(), None, &format!("k{i}"));
        fixture::import(&store, prompt, texts, set, judgment).await;
    }
    let args = json!({"epochs": 2, "batch_size": 2, "learning_rate": 1e-3, "max_length": 64, "checkpoint_every": 1,
        "device": "cpu", "publish_as": "judge"});
    let job = enqueue(&store, "reward", args).await.unwrap();

    let as_child = ["jobs::real::as_child", "--exact", "--ignored", "--nocapture", "--"].map(Into::into).to_vec();
    let launch = Launch { program: std::env::current_exe().unwrap(), args: as_child };
    let config = SupervisorConfig { threads: 1, ..SupervisorConfig::new(data.path().to_owned(), launch) };
    let supervisor = Supervisor::new(store.clone(), recipes(), config);
    let state = supervisor.run_one(&CancellationToken::new()).await.unwrap();
    let done = store.jobs().get(&job.id).await.unwrap();
    assert_eq!(state, Some(JobState::Succeeded), "{:?}", done.error);

    let judge = store.models().find("judge").await.unwrap().unwrap();
    assert_eq!((judge.kind, judge.stage.as_str(), judge.parent_id), (ModelKind::Reward, "reward", Some(base.id)));
    let dir = data.path().join("models/judge");
    for file in ["config.json", "model.safetensors", "tokenizer.json", "instructd.json"] {
        assert!(dir.join(file).is_file(), "{file}");
    }
    let loss = store.jobs().metrics(&job.id, &["loss".into()]).await.unwrap();
    assert_eq!(loss.len(), 4, "two epochs of two batches: {loss:?}");
    let events = store.jobs().events(&job.id, 0, 1000).await.unwrap();
    assert!(events.iter().any(|e| e.kind == "checkpoint"), "{events:?}");
    assert!(done.checkpoint_uri.is_some());
    assert!(!data.path().join("jobs").join(job.id.as_str()).join("checkpoints").exists(), "cleared after success");
}

/// A corpus in the data directory becomes a model without a parent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_corpus_becomes_a_new_model() {
    let fresh = backend::sqlite().await.unwrap();
    let (store, data) = (fresh.store.clone(), tempfile::tempdir().unwrap());
    let architecture = json!({"hidden_size": 16, "n_layers": 1, "n_heads": 2, "max_positions": 32});
    let args = json!({"texts": ["raw.txt"], "architecture": architecture, "vocab_size": 300, "max_length": 16,
        "max_steps": 2, "heldout_fraction": 0.1, "device": "cpu"});
    let as_child = ["jobs::real::as_child", "--exact", "--ignored", "--nocapture", "--"].map(Into::into).to_vec();
    let launch = Launch { program: std::env::current_exe().unwrap(), args: as_child };
    let config = SupervisorConfig { threads: 1, ..SupervisorConfig::new(data.path().to_owned(), launch) };
    let supervisor = Supervisor::new(store.clone(), recipes(), config);

    let missing = enqueue(&store, "pretrain", args.clone()).await.unwrap();
    supervisor.run_one(&CancellationToken::new()).await.unwrap();
    let error = store.jobs().get(&missing.id).await.unwrap().error.unwrap();
    assert!(error.contains("texts: the file 'raw.txt' is not in the server's corpora directory"), "{error}");

    let corpora = data.path().join("corpora");
    std::fs::create_dir_all(&corpora).unwrap();
    std::fs::write(corpora.join("raw.txt"), crate::data::corpora::sentences(60).join("\n\n")).unwrap();
    let job = enqueue(&store, "pretrain", args).await.unwrap();
    let state = supervisor.run_one(&CancellationToken::new()).await.unwrap();
    let done = store.jobs().get(&job.id).await.unwrap();
    assert_eq!(state, Some(JobState::Succeeded), "{:?}", done.error);
    let name = done.result.unwrap()["model"].as_str().unwrap().to_owned();
    let model = store.models().find(&name).await.unwrap().unwrap();
    assert!(name.starts_with("new-pretrain-"), "{name}");
    assert_eq!((model.kind, model.parent_id), (ModelKind::Policy, None));
    assert!(model.metrics["bits_per_byte"].as_f64().unwrap() > 0.0);
}

/// Thumbs on single answers, none of them ranked against another, train a policy; answers without a majority stay out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thumbs_become_a_policy() {
    let fresh = backend::sqlite().await.unwrap();
    let (store, data) = (fresh.store.clone(), tempfile::tempdir().unwrap());
    let tiny: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests", "fixtures", "llama-tiny"].iter().collect();
    let base = ModelVersion { artifact_uri: tiny.display().to_string(), ..fixture::model("base", ModelKind::Policy) };
    store.models().put(base.clone()).await.unwrap();
    store.models().activate(&base.id, fixture::T0).await.unwrap();
    let as_child = ["jobs::real::as_child", "--exact", "--ignored", "--nocapture", "--"].map(Into::into).to_vec();
    let launch = Launch { program: std::env::current_exe().unwrap(), args: as_child };
    let config = SupervisorConfig { threads: 1, ..SupervisorConfig::new(data.path().to_owned(), launch) };
    let supervisor = Supervisor::new(store.clone(), recipes(), config);
    let args = json!({"epochs": 2, "batch_size": 4, "learning_rate": 1e-3, "max_length": 64, "device": "cpu",
        "publish_as": "liked"});

    let without = enqueue(&store, "kto", json!({"epochs": 1})).await.unwrap();
    supervisor.run_one(&CancellationToken::new()).await.unwrap();
    let error = store.jobs().get(&without.id).await.unwrap().error.unwrap();
    assert!(error.contains("there are no thumbs to learn from"), "{error}");

    let thumb = |completion: &Completion, value: serde_json::Value, who: &str, at: Micros| FeedbackEvent {
        id: FeedbackId::new(),
        completion_id: completion.id.clone(),
        kind: "thumb".into(),
        value,
        actor_hash: Some(who.into()),
        idempotency_key: format!("{}{who}{at}", completion.id),
        created: at,
    };
    // One answer to each prompt: there is nothing to compare, and DPO could learn from none of it.
    for i in 0..8 {
        let mut prompt = fixture::prompt(&format!("question {i}"));
        prompt.split = if i < 6 { Split::Train } else { Split::Heldout };
        store.prompts().put(prompt.clone()).await.unwrap();
        let answer = fixture::completion(&prompt.id, if i % 2 == 0 { "t30 t30" } else { "t31" });
        store.completions().put(vec![answer.clone()]).await.unwrap();
        // Everybody's last word counts.
        store
            .feedback()
            .put(thumb(&answer, json!(if i % 2 == 0 { "down" } else { "up" }), "a", fixture::T0))
            .await
            .unwrap();
        store.feedback().put(thumb(&answer, json!(i % 2 == 0), "a", fixture::T0 + 1)).await.unwrap();
        if i == 1 {
            // As many up as down.
            store.feedback().put(thumb(&answer, json!("up"), "b", fixture::T0)).await.unwrap();
        }
    }
    let job = enqueue(&store, "kto", args).await.unwrap();
    let state = supervisor.run_one(&CancellationToken::new()).await.unwrap();
    let done = store.jobs().get(&job.id).await.unwrap();
    assert_eq!(state, Some(JobState::Succeeded), "{:?}", done.error);
    let liked = store.models().find("liked").await.unwrap().unwrap();
    assert_eq!((liked.kind, liked.stage.as_str(), liked.parent_id), (ModelKind::Policy, "kto", Some(base.id)));
    let m = &liked.metrics;
    assert_eq!(
        (&m["liked"], &m["not_liked"], &m["train"], &m["heldout"]),
        (&json!(3), &json!(2), &json!(5), &json!(2))
    );
    assert_eq!(m["desirable_weight"], json!(1.0));
    assert_eq!(m["undesirable_weight"], json!(1.5));
    let card = std::fs::read_to_string(data.path().join("models/liked/README.md")).unwrap();
    for part in ["recipe `kto`", "| `feedback` | `", "| rows, train | 5 |", "| heldout accuracy |"] {
        assert!(card.contains(part), "{part} is not in {card}");
    }
    assert!(!card.contains(&data.path().display().to_string()), "paths of this machine are in the card");
}

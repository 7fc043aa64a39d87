//! Jobs in which a language model ranks sets: on another server, and of a version on this one.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use instructd::config::JudgeConfig;
use instructd::domain::*;
use instructd::jobs::{Launch, Supervisor, SupervisorConfig};
use instructd::store::Store;
use instructd::train::job_kinds;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::enqueue;
use super::judges::completion;
use super::remote::service;
use crate::store::{backend, fixture};
use crate::support::eventually::{LONG, eventually};

struct World {
    fresh: backend::Fresh,
    data: tempfile::TempDir,
    judge: JudgeConfig,
}

impl World {
    async fn new(host: &str) -> Self {
        let judge = JudgeConfig {
            url: format!("http://{host}/v1"),
            model: "wise".into(),
            max_running: 1,
            ..JudgeConfig::default()
        };
        Self { fresh: backend::sqlite().await.unwrap(), data: tempfile::tempdir().unwrap(), judge }
    }

    fn store(&self) -> &Arc<Store> {
        &self.fresh.store
    }

    fn supervisor(&self) -> Supervisor {
        let as_child = ["jobs::real::as_child", "--exact", "--ignored", "--nocapture", "--"].map(Into::into).to_vec();
        let launch = Launch { program: std::env::current_exe().unwrap(), args: as_child };
        let config = SupervisorConfig {
            threads: 1,
            tick: Duration::from_millis(20),
            judges: [("large".to_owned(), self.judge.clone())].into(),
            ..SupervisorConfig::new(self.data.path().to_owned(), launch)
        };
        Supervisor::new(self.store().clone(), job_kinds(), config)
    }

    /// Runs a job to its end.
    async fn run(&self, args: Value) -> Job {
        let job = enqueue(self.store(), "judge", args).await.unwrap();
        self.supervisor().run_one(&CancellationToken::new()).await.unwrap();
        self.store().jobs().get(&job.id).await.unwrap()
    }

    async fn rankings(&self) -> Vec<ModelJudgment> {
        self.store().model_judgments().all(&fixture::of_kind(SetKind::Normal)).await.unwrap()
    }
}

/// Prefers the longer answer, but the first place where both are as long.
fn longer(request: &Value) -> (u16, String) {
    let question = request["messages"][0]["content"].as_str().unwrap();
    let answer = |from: &str, to: &str| question.split(from).nth(1).unwrap().split(to).next().unwrap().trim().len();
    let (a, b) = (answer("## Answer A\n", "\n\n## Answer B"), answer("## Answer B\n", "\n\n## Decision"));
    let p = if a < b { 0.1 } else { 0.9 };
    (200, completion(&[("A", p), ("B", 1.0 - p)]))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_judge_of_the_configuration_ranks_sets_as_a_labeler() {
    let (host, count) = service(|_, _, request| {
        let question = request["messages"][0]["content"].as_str().unwrap();
        assert!(question.contains("Be long.") && question.contains("user: q"), "{question}");
        assert!(!question.contains("42"), "people do not see the known answer either: {question}");
        longer(request)
    });
    let world = World::new(&host).await;
    let set = fixture::stored_set(world.store(), "q1", &["xx", "xxxx", "yy"], 1).await;
    let other = fixture::stored_set(world.store(), "q2", &["x", "xxx"], 1).await;
    let args = json!({"host": "large", "criteria": " Be long. ", "which": "open"});
    let done = world.run(args.clone()).await;
    assert_eq!((done.state, &done.error), (JobState::Succeeded, &None));
    assert_eq!(done.result.unwrap()["metrics"]["sets"], 2);
    assert_eq!(done.progress.unwrap().step, 2);
    assert_eq!(count.load(Ordering::SeqCst), 6 + 2, "every pair in both orders");
    let labelers = world.store().model_judgments().labelers().await.unwrap();
    assert_eq!(labelers.iter().map(|l| l.name.as_str()).collect::<Vec<_>>(), ["large (wise)"]);
    let rankings = world.rankings().await;
    let of = |set: &ComparisonSet| rankings.iter().find(|r| r.set_id == set.id).unwrap();
    let tier =
        |set: &ComparisonSet, i: usize| of(set).items.iter().find(|(id, _)| *id == set.completion_ids[i]).unwrap().1;
    assert_eq!([0, 1, 2].map(|i| tier(&set, i)), [1, 0, 1], "the orders disagree about two: they tie");
    assert_eq!([0, 1].map(|i| tier(&other, i)), [1, 0]);
    assert!((of(&set).doubt - (0.2 + 0.2 + 1.0) / 3.0).abs() < 1e-9, "{}", of(&set).doubt);
    assert!((of(&other).doubt - 0.2).abs() < 1e-9);
    assert_eq!((of(&set).criteria.as_str(), &of(&set).labeler_id), ("Be long.", &labelers[0].id));
    assert_eq!(world.store().sets().get(&set.id).await.unwrap().status, SetStatus::Open);

    // Nothing is left for the same criteria. Another model of the same name is another labeler.
    let again = world.run(args.clone()).await;
    assert!(again.error.unwrap().contains("no sets that this judge has not ranked"), "{:?}", again.state);
    let mut world = world;
    world.judge.model = "wiser".into();
    assert_eq!(world.run(args).await.state, JobState::Succeeded);
    assert_eq!((world.store().model_judgments().labelers().await.unwrap().len(), world.rankings().await.len()), (2, 4));
    assert!(world.store().models().list().await.unwrap().is_empty(), "the job makes no model");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_job_keeps_what_it_has_ranked() {
    // Slow from the second batch on: a batch has 64 questions or a few more.
    let (host, count) = service(|n, _, request| {
        if n >= 72 {
            std::thread::sleep(Duration::from_millis(50));
        }
        longer(request)
    });
    let world = World::new(&host).await;
    for i in 0..3 {
        let texts: Vec<String> = (0..9).map(|n| "x".repeat(n + 1)).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        fixture::stored_set(world.store(), &format!("q{i}"), &texts, 1).await;
    }
    let job = enqueue(world.store(), "judge", json!({"host": "large"})).await.unwrap();
    let supervisor = world.supervisor();
    let running = tokio::spawn(async move { supervisor.run_one(&CancellationToken::new()).await.unwrap() });
    eventually(LONG, "the second batch", async || (count.load(Ordering::SeqCst) > 72).then_some(())).await;
    world.store().jobs().cancel(&job.id).await.unwrap();
    assert_eq!(running.await.unwrap(), Some(JobState::Cancelled));
    let kept = world.rankings().await;
    assert_eq!(kept.len(), 2, "the batch under way was ended");
    // Resumed, it ranks the last set.
    world.store().jobs().resume(&job.id).await.unwrap();
    world.supervisor().run_one(&CancellationToken::new()).await.unwrap();
    assert_eq!(world.store().jobs().get(&job.id).await.unwrap().state, JobState::Succeeded);
    assert_eq!((world.rankings().await.len(), count.load(Ordering::SeqCst)), (3, 3 * 72), "none was asked twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_on_this_server_judges() {
    let world = World::new("127.0.0.1:1").await;
    let random = crate::train::judge::judge(true);
    let artifact_uri = random.path().display().to_string();
    let base = ModelVersion { artifact_uri, ..fixture::model("base", ModelKind::Policy) };
    world.store().models().put(base.clone()).await.unwrap();
    let set = fixture::stored_set(world.store(), "q1", &["yes", "no"], 1).await;
    let done = world.run(json!({"judge_model": "base", "device": "cpu"})).await;
    assert_eq!((done.state, &done.error), (JobState::Succeeded, &None));
    let rankings = world.rankings().await;
    assert_eq!((rankings.len(), &rankings[0].set_id), (1, &set.id));
    assert!((0.0..=1.0).contains(&rankings[0].doubt));
    assert_eq!(world.store().model_judgments().labelers().await.unwrap()[0].name, "base");
    let on_device = json!({"judge_model": "base", "device": "sim", "precision": "bf16", "criteria": "Be kind."});
    let done = world.run(on_device).await;
    assert_eq!((done.state, &done.error), (JobState::Succeeded, &None));
    assert_eq!(world.rankings().await.len(), 2);
}

#[tokio::test]
async fn arguments_name_one_judge() {
    let world = World::new("127.0.0.1:1").await;
    world.store().models().put(fixture::model("base", ModelKind::Policy)).await.unwrap();
    for (args, field) in [
        (json!({}), "host"),
        (json!({"host": "large", "judge_model": "base"}), "host"),
        (json!({"host": "large", "criteria": " "}), "criteria"),
        (json!({"host": "large", "max_sets": 0}), "max_sets"),
        (json!({"judge_model": "base", "device": "cpu", "precision": "bf16"}), "precision"),
        (json!({"host": "large", "which": "gold"}), "which"),
        (json!({"host": "large", "publish_as": "x"}), "publish_as"),
        (json!({"host": "large", "sets": "/etc/passwd"}), "sets"),
        (json!({"judge_model": "none"}), "judge_model"),
    ] {
        let refused = enqueue(world.store(), "judge", args.clone()).await.unwrap_err().to_string();
        assert!(refused.starts_with(field), "{args}: {refused}");
    }
}

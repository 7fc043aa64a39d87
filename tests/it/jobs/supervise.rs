//! The supervisor with fake children: shell scripts that say what a recipe would say, or misbehave.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use instructd::domain::*;
use instructd::jobs::{Launch, Supervisor, SupervisorConfig, wire::Spec};
use instructd::store::{Fence, Store};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{enqueue_reward, small_world};
use crate::store::{backend, fixture};
use crate::support::eventually::{LONG, eventually};

const SUCCEEDS: &str = r#"
mkdir -p "$2/output"; printf weights > "$2/output/model.safetensors"; echo '{"kind":"reward"}' > "$2/output/instructd.json"
echo '{"t":"progress","phase":"train","step":1,"total_steps":2}'
echo '{"t":"metrics","metrics":[{"step":1,"name":"loss","value":0.5}]}'
echo '{"t":"event","kind":"sample","data":{"text":"hi"}}'
echo 'something printed'
echo '{"t":"outcome","status":"done","model_dir":"'"$2"'/output","metrics":{"accuracy":0.9}}'
"#;
/// Says that it runs, waits for the word, and leaves a checkpoint.
const STOPS_WHEN_ASKED: &str = r#"
mkdir -p "$2/checkpoints/ckpt-7"
echo '{"t":"progress","phase":"train","step":7}'
while read word; do [ "$word" = stop ] && break; done; echo '{"t":"outcome","status":"stopped","checkpoint":"'"$2"'/checkpoints/ckpt-7"}'
"#;
/// Neither the word nor SIGTERM moves it.
const STUBBORN: &str = r#"
trap '' TERM; echo '{"t":"progress","phase":"train","step":1}'
while :; do sleep 0.05; done
"#;

struct World {
    fresh: backend::Fresh,
    data: tempfile::TempDir,
    cancel_grace: Duration,
}

impl World {
    async fn new() -> Self {
        let fresh = backend::sqlite().await.unwrap();
        small_world(&fresh.store).await;
        let data = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(data.path().join("models/base")).unwrap();
        Self { fresh, data, cancel_grace: Duration::from_millis(100) }
    }

    fn store(&self) -> &Arc<Store> {
        &self.fresh.store
    }

    fn supervisor(&self, script: &str) -> Supervisor {
        let launch = Launch { program: "/bin/sh".into(), args: vec!["-c".into(), script.into(), "sh".into()] };
        let config = SupervisorConfig {
            tick: Duration::from_millis(10),
            grace: Duration::from_millis(100),
            cancel_grace: self.cancel_grace,
            ..SupervisorConfig::new(self.data.path().to_owned(), launch)
        };
        Supervisor::new(self.store().clone(), instructd::train::recipes(), config)
    }

    async fn run(&self, script: &str) -> JobState {
        self.supervisor(script).run_one(&CancellationToken::new()).await.unwrap().expect("a job to run")
    }

    /// Runs in the background until the child has said that it works.
    async fn started(
        &self,
        script: &str,
        id: &JobId,
    ) -> (tokio::task::JoinHandle<Option<JobState>>, CancellationToken) {
        let (supervisor, shutdown) = (self.supervisor(script), CancellationToken::new());
        let token = shutdown.clone();
        let running = tokio::spawn(async move { supervisor.run_one(&token).await.unwrap() });
        eventually(LONG, "the child's first report", async || {
            assert!(!running.is_finished(), "the child ended early: {:?}", self.store().jobs().get(id).await);
            self.store().jobs().get(id).await.unwrap().progress
        })
        .await;
        (running, shutdown)
    }

    fn job_dir(&self, id: &JobId) -> PathBuf {
        self.data.path().join("jobs").join(id.as_str())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_good_run_publishes_a_version() {
    let world = World::new().await;
    let store = world.store();
    let job = enqueue_reward(store).await;
    assert_eq!(world.run(SUCCEEDS).await, JobState::Succeeded);
    let done = store.jobs().get(&job.id).await.unwrap();
    assert_eq!((done.state, done.progress.unwrap().total_steps), (JobState::Succeeded, Some(2)));
    assert_eq!(
        store.jobs().metrics(&job.id, &[]).await.unwrap(),
        [Metric { step: 1, name: "loss".into(), value: 0.5 }]
    );
    let events = store.jobs().events(&job.id, 0, 100).await.unwrap();
    let kinds: Vec<_> = events.iter().map(|e| e.kind.as_str()).collect();
    assert_eq!(kinds, ["state", "sample", "log", "state"]);
    assert_eq!(events[2].data, json!({"message": "something printed"}));

    let result = done.result.unwrap();
    let model = store.models().find(result["model"].as_str().unwrap()).await.unwrap().unwrap();
    assert!(model.name.starts_with("base-reward-"), "{}", model.name);
    assert_eq!((model.kind, model.state, model.stage.as_str()), (ModelKind::Reward, ModelState::Candidate, "reward"));
    assert_eq!(model.parent_id, store.models().find("base").await.unwrap().map(|m| m.id));
    assert_eq!((model.job_id.as_ref(), &model.metrics["accuracy"]), (Some(&job.id), &json!(0.9)));
    let dir = world.data.path().join(&model.artifact_uri);
    assert_eq!(std::fs::read(dir.join("model.safetensors")).unwrap(), b"weights");
    assert!(!world.job_dir(&job.id).join("output").exists(), "moved, not copied");
    // sha256("weights")
    assert_eq!(model.sha256, "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c");

    // What it learned from is frozen and on record.
    let file = world.job_dir(&job.id).join("comparisons.jsonl");
    let lines: Vec<_> = instructd::data::read_comparisons(&file).unwrap().map(Result::unwrap).collect();
    let sides: std::collections::BTreeSet<_> = lines.iter().map(|l| l.split.unwrap()).collect();
    assert_eq!(sides.into_iter().collect::<Vec<_>>(), Split::ALL);
    assert_eq!((lines[0].completions[0].text.as_str(), lines[0].completions[2].tier), ("good", 2));
    let dataset = &store.datasets().list().await.unwrap()[0];
    assert_eq!((dataset.n_sets, dataset.n_pairs), (2, 6));
    assert_eq!(model.metrics["datasets"]["comparisons"]["sha256"], json!(dataset.sha256));
    let spec = Spec::read(&world.job_dir(&job.id)).unwrap();
    assert_eq!((spec.recipe.as_str(), spec.resume, &spec.args["epochs"]), ("reward", false, &json!(2)));
    assert!(spec.args["model"].as_str().unwrap().ends_with("models/base"));
    assert!(spec.recipe_args()["output_dir"].as_str().unwrap().ends_with("output"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chosen_name_is_kept() {
    let world = World::new().await;
    super::enqueue(world.store(), "reward", json!({"publish_as": "judge.1"})).await.unwrap();
    assert_eq!(world.run(SUCCEEDS).await, JobState::Succeeded);
    assert_eq!(world.store().models().find("judge.1").await.unwrap().unwrap().artifact_uri, "models/judge.1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_fails_the_job_at_once() {
    let world = World::new().await;
    let job = enqueue_reward(world.store()).await;
    assert_eq!(world.run(r#"echo '{"t":"failed","error":"the data is bad"}'; exit 1"#).await, JobState::Failed);
    let dead = world.store().jobs().get(&job.id).await.unwrap();
    assert_eq!((dead.error.as_deref(), dead.crash_count, dead.attempt), (Some("the data is bad"), 0, 1));
    // An outcome without weights is no model.
    let job = enqueue_reward(world.store()).await;
    let empty = r#"mkdir "$2/output"; echo '{"t":"outcome","status":"done","model_dir":"'"$2"'/output","metrics":{}}'"#;
    assert_eq!(world.run(empty).await, JobState::Failed);
    let error = world.store().jobs().get(&job.id).await.unwrap().error.unwrap();
    assert!(error.contains("no .safetensors"), "{error}");
    assert_eq!(world.store().models().list().await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_data_is_an_error_that_says_so() {
    let fresh = backend::sqlite().await.unwrap();
    let data = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(data.path().join("models/base")).unwrap();
    fresh.store.models().put(fixture::model("base", ModelKind::Policy)).await.unwrap();
    let world = World { fresh, data, cancel_grace: Duration::from_millis(100) };
    for (kind, args, missing) in [
        ("reward", json!({"model": "base"}), "no rankings"),
        ("sft", json!({"model": "base"}), "no demonstrations"),
        ("ppo", json!({"model": "base", "reward": {"kind": "length", "target": 3}}), "no prompts"),
    ] {
        let job = super::enqueue(world.store(), kind, args).await.unwrap();
        assert_eq!(world.run(SUCCEEDS).await, JobState::Failed);
        let error = world.store().jobs().get(&job.id).await.unwrap().error.unwrap();
        assert!(error.contains(missing), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_crashes_fail_the_job_with_its_last_lines() {
    let world = World::new().await;
    let job = enqueue_reward(world.store()).await;
    let script = "echo 'thread main panicked: boom' >&2; kill -9 $$";
    for expected in [JobState::Queued, JobState::Queued, JobState::Failed] {
        assert_eq!(world.run(script).await, expected);
    }
    let dead = world.store().jobs().get(&job.id).await.unwrap();
    assert_eq!((dead.state, dead.crash_count), (JobState::Failed, 3));
    let error = dead.error.unwrap();
    assert!(error.contains("boom") && error.contains("signal: 9"), "{error}");
    assert_eq!(world.supervisor(script).run_one(&CancellationToken::new()).await.unwrap(), None);
    // A program that is not there is a crash too, not a hang.
    enqueue_reward(world.store()).await;
    let launch = Launch { program: "/nonexistent".into(), args: vec![] };
    let config = SupervisorConfig::new(world.data.path().to_owned(), launch);
    let supervisor = Supervisor::new(world.store().clone(), instructd::train::recipes(), config);
    assert_eq!(supervisor.run_one(&CancellationToken::new()).await.unwrap(), Some(JobState::Queued));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancel_requests_a_stop_and_then_kills() {
    let world = World::new().await;
    let job = enqueue_reward(world.store()).await;
    let (running, _) = world.started(STOPS_WHEN_ASKED, &job.id).await;
    world.store().jobs().cancel(&job.id).await.unwrap();
    assert_eq!(running.await.unwrap(), Some(JobState::Cancelled));
    let cancelled = world.store().jobs().get(&job.id).await.unwrap();
    assert!(cancelled.checkpoint_uri.unwrap().ends_with("ckpt-7"), "the checkpoint is known, for a resume");

    let job = enqueue_reward(world.store()).await;
    let (running, _) = world.started(STUBBORN, &job.id).await;
    world.store().jobs().cancel(&job.id).await.unwrap();
    assert_eq!(running.await.unwrap(), Some(JobState::Cancelled));
    assert_eq!(world.store().jobs().get(&job.id).await.unwrap().crash_count, 0);
}

/// A step can take far longer than a shutdown may: a cancel waits for its end and for the checkpoint.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_waits_for_the_step_and_its_checkpoint() {
    const SLOW: &str = r#"
        trap 'exit 9' TERM
        echo '{"t":"progress","phase":"train","step":7}'
        read word; sleep 0.5; mkdir -p "$2/checkpoints/ckpt-7"
        echo '{"t":"outcome","status":"stopped","checkpoint":"'"$2"'/checkpoints/ckpt-7"}'"#;
    let mut world = World::new().await;
    world.cancel_grace = Duration::from_secs(600);
    let job = enqueue_reward(world.store()).await;
    let (running, _) = world.started(SLOW, &job.id).await;
    world.store().jobs().cancel(&job.id).await.unwrap();
    assert_eq!(running.await.unwrap(), Some(JobState::Cancelled));
    assert!(world.store().jobs().get(&job.id).await.unwrap().checkpoint_uri.unwrap().ends_with("ckpt-7"));

    // A shutdown in the meantime does not stand back for it.
    let job = enqueue_reward(world.store()).await;
    let (running, shutdown) = world.started(STUBBORN, &job.id).await;
    world.store().jobs().cancel(&job.id).await.unwrap();
    shutdown.cancel();
    assert_eq!(running.await.unwrap(), Some(JobState::Cancelled));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_requeues_without_counting_and_the_next_run_resumes() {
    let world = World::new().await;
    let job = enqueue_reward(world.store()).await;
    let (running, shutdown) = world.started(STOPS_WHEN_ASKED, &job.id).await;
    shutdown.cancel();
    assert_eq!(running.await.unwrap(), Some(JobState::Queued));
    let waiting = world.store().jobs().get(&job.id).await.unwrap();
    assert_eq!((waiting.state, waiting.attempt, waiting.crash_count), (JobState::Queued, 0, 0));
    assert!(waiting.checkpoint_uri.is_some());
    // New judgments do not change what a running job learns from.
    let before = std::fs::read(world.job_dir(&job.id).join("comparisons.jsonl")).unwrap();
    let set = fixture::stored_set(world.store(), "q3", &["x", "y"], 1).await;
    let judgment = fixture::judgment(&set, &"admin".into(), None, "new");
    world.store().judgments().submit(fixture::submit(judgment, None, fixture::T0)).await.unwrap();
    assert_eq!(world.run(SUCCEEDS).await, JobState::Succeeded);
    assert!(Spec::read(&world.job_dir(&job.id)).unwrap().resume);
    assert_eq!(std::fs::read(world.job_dir(&job.id).join("comparisons.jsonl")).unwrap(), before);
    assert_eq!(world.store().datasets().list().await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_lease_kills_the_child_and_writes_nothing() {
    let world = World::new().await;
    let job = enqueue_reward(world.store()).await;
    // Says something new all the time, so that its supervisor keeps writing.
    let chatty = r#"while :; do echo '{"t":"progress","phase":"train","step":1}'; sleep 0.02; done"#;
    let (running, _) = world.started(chatty, &job.id).await;
    let held = world.store().jobs().get(&job.id).await.unwrap();
    let fence = Fence { job_id: job.id.clone(), attempt: held.attempt, lease_owner: held.lease_owner.unwrap() };
    world.store().jobs().requeue(&fence, None, 3).await.unwrap();
    assert_eq!(running.await.unwrap(), Some(JobState::Running), "it is somebody else's now");
    assert_eq!(world.store().jobs().get(&job.id).await.unwrap().state, JobState::Queued, "and untouched");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_loop_serves_the_queue_until_shutdown() {
    let world = World::new().await;
    let jobs = [enqueue_reward(world.store()).await, enqueue_reward(world.store()).await];
    let (supervisor, shutdown) = (world.supervisor(SUCCEEDS), CancellationToken::new());
    let token = shutdown.clone();
    let running = tokio::spawn(async move { supervisor.run(token).await });
    for job in &jobs {
        let state = eventually(LONG, "the end of a job", async || {
            Some(world.store().jobs().get(&job.id).await.unwrap().state).filter(|state| state.is_terminal())
        });
        assert_eq!(state.await, JobState::Succeeded);
    }
    shutdown.cancel();
    running.await.unwrap();
    assert_eq!(world.store().models().list().await.unwrap().len(), 3);
}

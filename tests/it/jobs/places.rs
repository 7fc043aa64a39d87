//! Jobs that run at a place of the configuration: behind a command, and on a stand-in of a Ray cluster with its faults.
//! The trainer is this test binary with a recipe that counts slowly, so that it can be disturbed in the middle.

use std::path::{Path, PathBuf};
use std::time::Duration;

use instructd::config::{ExecutorsConfig, PlaceConfig};
use instructd::domain::*;
use instructd::jobs::executors::{RemoteLog, log};
use instructd::jobs::queue::{self, Request};
use instructd::jobs::{Launch, Supervisor, SupervisorConfig, child};
use instructd::store::{Fence, Store};
use instructd::train::{Recipe, Reporter, TrainOutcome};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::fake_ray::{Act, FakeRay};
use crate::store::{backend, fixture};

/// Counts to `steps`, with a checkpoint at each number, and waits at `hold` until a file `go` is in the job's directory.
fn count(args: &Value, reporter: &mut dyn Reporter) -> anyhow::Result<TrainOutcome> {
    let path = |name: &str| PathBuf::from(args[name].as_str().unwrap());
    let (checkpoints, output) = (path("checkpoint_dir"), path("output_dir"));
    let job_dir = checkpoints.parent().unwrap().to_owned();
    std::fs::create_dir_all(&checkpoints)?;
    let at = checkpoints.join("step");
    let from = std::fs::read_to_string(&at).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    if from > 0 {
        reporter.event("resumed", json!({"from": from}));
    }
    eprintln!("counting from {from}");
    for step in from + 1..=args["steps"].as_u64().unwrap() {
        let hold = args["hold"].as_u64() == Some(step);
        loop {
            if reporter.should_stop() {
                let checkpoint = Some(at.display().to_string());
                return Ok(TrainOutcome::Stopped { checkpoint });
            }
            if !hold || job_dir.join("go").exists() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        std::fs::write(&at, step.to_string())?;
        reporter.progress(&Progress { phase: "count".into(), step, ..Default::default() });
        reporter.metrics(&[Metric { step: step as i64, name: "n".into(), value: step as f64 }]);
    }
    anyhow::ensure!(!args["fails"].as_bool().unwrap_or(false), "the count is wrong");
    std::fs::create_dir_all(&output)?;
    std::fs::write(output.join("model.safetensors"), "weights")?;
    std::fs::write(output.join("instructd.json"), r#"{"kind": "policy"}"#)?;
    Ok(TrainOutcome::Done { model_dir: output.display().to_string(), metrics: json!({"counted": true}) })
}

static RECIPES: &[Recipe] =
    &[Recipe { name: "count", about: "", schema: || json!({"properties": {}}), validate: |_| Ok(()), run: count }];

/// Not a test by itself: the body of the trainer.
#[test]
#[ignore = "the trainer of the tests below"]
fn as_trainer() {
    let args: Vec<String> = std::env::args().collect();
    if let Some(at) = args.iter().position(|a| a == "--job-dir") {
        std::process::exit(child::main(Path::new(&args[at + 1]), RECIPES).into());
    }
}

struct World {
    fresh: backend::Fresh,
    data: tempfile::TempDir,
    executors: ExecutorsConfig,
    lease_seconds: i64,
}

impl World {
    async fn new(place: PlaceConfig) -> Self {
        let kinds = [("count".to_owned(), "far".to_owned())].into();
        let executors = ExecutorsConfig { kinds, places: [("far".to_owned(), place)].into() };
        let fresh = backend::sqlite().await.unwrap();
        Self { fresh, data: tempfile::tempdir().unwrap(), executors, lease_seconds: 60 }
    }

    fn store(&self) -> &Store {
        &self.fresh.store
    }

    fn supervisor(&self) -> Supervisor {
        let trainer = ["jobs::places::as_trainer", "--exact", "--ignored", "--nocapture", "--"];
        let launch = Launch { program: std::env::current_exe().unwrap(), args: trainer.map(Into::into).to_vec() };
        let config = SupervisorConfig {
            tick: Duration::from_millis(20),
            grace: Duration::from_secs(2),
            cancel_grace: Duration::from_secs(600),
            lease_seconds: self.lease_seconds,
            executors: self.executors.clone(),
            ..SupervisorConfig::new(self.data.path().to_owned(), launch)
        };
        Supervisor::new(self.fresh.store.clone(), RECIPES, config)
    }

    async fn enqueue(&self, args: Value) -> JobId {
        let request = Request {
            kind: "count".into(),
            args,
            unique_key: None,
            priority: 0,
            notes: Default::default(),
            now: fixture::T0,
        };
        queue::enqueue(self.store(), RECIPES, request).await.unwrap().id
    }

    /// One claim, to its end.
    async fn run(&self) -> JobState {
        self.supervisor().run_one(&CancellationToken::new()).await.unwrap().expect("a job to run")
    }

    /// One claim in the background.
    fn begin(&self) -> (tokio::task::JoinHandle<Option<JobState>>, CancellationToken) {
        let (supervisor, shutdown) = (self.supervisor(), CancellationToken::new());
        let token = shutdown.clone();
        (tokio::spawn(async move { supervisor.run_one(&token).await.unwrap() }), shutdown)
    }

    async fn job(&self, id: &JobId) -> Job {
        self.store().jobs().get(id).await.unwrap()
    }

    /// Until the trainer has counted to `step`.
    async fn counted(&self, id: &JobId, step: u64) {
        while self.job(id).await.progress.is_none_or(|p| p.step < step) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn go(&self, id: &JobId) {
        std::fs::write(self.data.path().join("jobs").join(id.as_str()).join("go"), "").unwrap();
    }

    async fn events(&self, id: &JobId, kind: &str) -> Vec<Value> {
        let events = self.store().jobs().events(id, 0, 1000).await.unwrap();
        events.into_iter().filter(|e| e.kind == kind).map(|e| e.data).collect()
    }

    async fn log(&self, id: &JobId) -> RemoteLog {
        log(&self.executors, self.data.path(), &self.job(id).await).await
    }

    /// The job has one result, and counted every step.
    async fn one_result(&self, id: &JobId, steps: i64) {
        let job = self.job(id).await;
        assert_eq!(job.state, JobState::Succeeded, "{:?}", job.error);
        let models = self.store().models().list().await.unwrap();
        assert_eq!(models.len(), 1, "{models:?}");
        assert_eq!(models[0].job_id.as_ref(), Some(id));
        assert!(self.data.path().join(&models[0].artifact_uri).join("model.safetensors").is_file());
        let curve = self.store().jobs().metrics(id, &["n".into()]).await.unwrap();
        assert_eq!(curve.iter().map(|m| m.step).collect::<Vec<_>>(), (1..=steps).collect::<Vec<_>>());
        let ended = self.events(id, "state").await.into_iter().filter(|data| data["state"] == "succeeded").count();
        assert_eq!(ended, 1);
    }
}

fn ray(fake: &FakeRay) -> PlaceConfig {
    PlaceConfig {
        kind: "ray".into(),
        url: Some(fake.url.clone()),
        token: Some("cluster-secret".into()),
        cpus: Some(1.0),
        resources: [("trainer".to_owned(), 0.5)].into(),
        silence_seconds: 5,
        ..PlaceConfig::default()
    }
}

fn command(parts: &[&str]) -> PlaceConfig {
    PlaceConfig {
        kind: "command".into(),
        command: parts.iter().map(|p| (*p).to_owned()).collect(),
        silence_seconds: 5,
        ..PlaceConfig::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_runs_the_trainer() {
    // As sbatch does: the words come as one argument for a shell.
    let place = command(&["/bin/sh", "-c", "echo queued as {id}; env >&2; exec {run}"]);
    let world = World::new(place).await;
    let id = world.enqueue(json!({"steps": 3})).await;
    assert_eq!(world.run().await, JobState::Succeeded);
    world.one_result(&id, 3).await;
    let job = world.job(&id).await;
    let attempt = job.external_ref.clone().unwrap();
    assert!(attempt.starts_with(&format!("far/instructd-{}-1-", id.as_str().to_lowercase())), "{attempt}");
    assert!(
        world
            .events(&id, "log")
            .await
            .iter()
            .any(|e| e["message"].as_str().unwrap().contains("runs at the place 'far'"))
    );
    let RemoteLog::Text(log) = world.log(&id).await else { panic!("a log") };
    assert!(log.contains("queued as instructd-") && log.contains("counting from 0"), "{log}");
    // What people wrote is not left behind beside the job.
    let dir =
        world.data.path().join("jobs").join(id.as_str()).join("attempts").join(attempt.split_once('/').unwrap().1);
    assert!(!dir.join("said.jsonl").exists());
    // The command gets no more of the environment than a child process does.
    let names: Vec<&str> = log.lines().filter_map(|l| l.split_once('=').map(|(n, _)| n)).collect();
    assert!(names.contains(&"PATH") && !names.iter().any(|n| n.starts_with("CARGO_PKG")), "{names:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_detached_command_is_monitored_by_its_heartbeat() {
    // As sbatch without --wait: the command ends at once, and the work goes on.
    let mut place = command(&["/bin/sh", "-c", "setsid {run} & echo submitted"]);
    place.detached = true;
    let world = World::new(place).await;
    let id = world.enqueue(json!({"steps": 2})).await;
    assert_eq!(world.run().await, JobState::Succeeded);
    world.one_result(&id, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_fails_is_a_crash_with_its_output() {
    let world = World::new(command(&["/bin/sh", "-c", "echo 'no such partition' >&2; exit 3 # {run}"])).await;
    let id = world.enqueue(json!({"steps": 1})).await;
    for expected in [JobState::Queued, JobState::Queued, JobState::Failed] {
        assert_eq!(world.run().await, expected);
    }
    let error = world.job(&id).await.error.unwrap();
    assert!(error.contains("no such partition") && error.contains("exit status: 3"), "{error}");
    // A program that is not there is no crash: it would not be there the next time.
    let world = World::new(command(&["/nonexistent/sbatch", "{argv}"])).await;
    let id = world.enqueue(json!({"steps": 1})).await;
    assert_eq!(world.run().await, JobState::Failed);
    let error = world.job(&id).await.error.unwrap();
    assert!(error.contains("/nonexistent/sbatch"), "{error}");
    // So is an error of the recipe.
    let world = World::new(command(&["{argv}"])).await;
    let id = world.enqueue(json!({"steps": 1, "fails": true})).await;
    assert_eq!(world.run().await, JobState::Failed);
    let job = world.job(&id).await;
    assert_eq!((job.error.as_deref(), job.crash_count), (Some("the count is wrong"), 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_reaches_a_trainer_behind_a_command() {
    let world = World::new(command(&["{argv}"])).await;
    let id = world.enqueue(json!({"steps": 3, "hold": 3})).await;
    let (running, _) = world.begin();
    world.counted(&id, 2).await;
    world.store().jobs().cancel(&id).await.unwrap();
    assert_eq!(running.await.unwrap(), Some(JobState::Cancelled));
    assert!(world.job(&id).await.checkpoint_uri.is_some());
    world.go(&id);
    world.store().jobs().resume(&id).await.unwrap();
    assert_eq!(world.run().await, JobState::Succeeded);
    assert_eq!(world.events(&id, "resumed").await, [json!({"from": 2})]);
    world.one_result(&id, 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_trainer_is_a_crash() {
    // Begins, and then stands still as a whole.
    let script = "echo '{\"beat\": 1, \"host\": \"h\", \"pid\": 1}' > {dir}/heartbeat.json; sleep 600 # {run}";
    let mut place = command(&["/bin/sh", "-c", script]);
    place.silence_seconds = 1;
    let world = World::new(place).await;
    let id = world.enqueue(json!({"steps": 1})).await;
    assert_eq!(world.run().await, JobState::Queued);
    let error = world.job(&id).await.error.unwrap();
    assert!(error.contains("no heartbeat of the trainer"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ray_runs_the_trainer() {
    let fake = FakeRay::start(&[]).await;
    let world = World::new(ray(&fake)).await;
    let id = world.enqueue(json!({"steps": 3})).await;
    assert_eq!(world.run().await, JobState::Succeeded);
    world.one_result(&id, 3).await;
    {
        let cluster = fake.cluster.lock().unwrap();
        assert_eq!(cluster.submissions.len(), 1);
        assert_eq!(cluster.keys, [Some("Bearer cluster-secret".to_owned())]);
        let request = &cluster.jobs[&cluster.submissions[0]].request;
        assert_eq!(
            (&request["entrypoint_num_cpus"], &request["entrypoint_resources"]["trainer"]),
            (&json!(1.0), &json!(0.5))
        );
        assert!(!request.to_string().contains("cluster-secret"), "no secret travels with the job: {request}");
    }
    assert!(matches!(world.log(&id).await, RemoteLog::Text(log) if log.contains("counting from 0")));
    fake.cluster.lock().unwrap().away = true;
    assert!(matches!(world.log(&id).await, RemoteLog::None(why) if why.contains("503")));
}

/// The answer to a submission gets lost: the job is found by its id, and not begun twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_doubled_submission_is_one_job() {
    let fake = FakeRay::start(&[Act::Fail, Act::TakeAndFail]).await;
    let world = World::new(ray(&fake)).await;
    let id = world.enqueue(json!({"steps": 2})).await;
    assert_eq!(world.run().await, JobState::Succeeded);
    world.one_result(&id, 2).await;
    let submissions = fake.submissions();
    assert_eq!(submissions.len(), 2, "tried again after the failure that began nothing: {submissions:?}");
    assert_eq!(submissions[0], submissions[1]);
    assert_eq!(fake.cluster.lock().unwrap().jobs.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_ray_refuses_fails_the_job() {
    let fake = FakeRay::start(&[Act::Refuse]).await;
    let world = World::new(ray(&fake)).await;
    let id = world.enqueue(json!({"steps": 2})).await;
    assert_eq!(world.run().await, JobState::Failed);
    let error = world.job(&id).await.error.unwrap();
    assert!(error.contains("entrypoint_num_gpus must be a number"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unavailable_head_is_waited_for() {
    let fake = FakeRay::start(&[]).await;
    fake.cluster.lock().unwrap().away = true;
    let world = World::new(ray(&fake)).await;
    let id = world.enqueue(json!({"steps": 2})).await;
    let (running, _) = world.begin();
    while world.events(&id, "log").await.is_empty() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    fake.cluster.lock().unwrap().away = false;
    assert_eq!(running.await.unwrap(), Some(JobState::Succeeded));
    assert_eq!(world.job(&id).await.crash_count, 0);
    world.one_result(&id, 2).await;
    // Away while the trainer works: its heartbeat is enough, and its last word ends the job.
    let id = world.enqueue(json!({"steps": 3, "hold": 3, "publish_as": "second"})).await;
    let (running, _) = world.begin();
    world.counted(&id, 2).await;
    fake.cluster.lock().unwrap().away = true;
    world.go(&id);
    assert_eq!(running.await.unwrap(), Some(JobState::Succeeded));
    assert!(world.store().models().find("second").await.unwrap().is_some());
}

/// The worker's node, the head, and somebody with the dashboard: each ends the attempt, and the next one goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_workers_lost_heads_and_stopped_jobs_end_in_one_result() {
    let faults: [fn(&FakeRay); 3] = [FakeRay::lose_workers, FakeRay::lose_head, FakeRay::stop_all];
    for (number, fault) in faults.into_iter().enumerate() {
        let fake = FakeRay::start(&[]).await;
        let world = World::new(ray(&fake)).await;
        let id = world.enqueue(json!({"steps": 4, "hold": 3})).await;
        let (running, _) = world.begin();
        world.counted(&id, 2).await;
        fault(&fake);
        assert_eq!(running.await.unwrap(), Some(JobState::Queued), "fault {number}");
        assert_eq!(world.job(&id).await.crash_count, 1);
        world.go(&id);
        assert_eq!(world.run().await, JobState::Succeeded, "fault {number}");
        world.one_result(&id, 4).await;
        assert_eq!(world.events(&id, "resumed").await, [json!({"from": 2})], "fault {number}");
        let ids = fake.submissions();
        assert!(ids.len() == 2 && ids[0] != ids[1], "{ids:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_waits_in_rays_queue_is_taken_out_of_it() {
    let fake = FakeRay::start(&[Act::Queue]).await;
    let world = World::new(ray(&fake)).await;
    let id = world.enqueue(json!({"steps": 2})).await;
    let (running, _) = world.begin();
    while fake.submissions().is_empty() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    world.store().jobs().cancel(&id).await.unwrap();
    assert_eq!(running.await.unwrap(), Some(JobState::Cancelled));
    assert_eq!(world.job(&id).await.crash_count, 0);
    assert!(world.store().models().list().await.unwrap().is_empty());
}

/// A server that shuts down has the trainer write a checkpoint; another one goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_requeues_without_counting() {
    let fake = FakeRay::start(&[]).await;
    let world = World::new(ray(&fake)).await;
    let id = world.enqueue(json!({"steps": 4, "hold": 3})).await;
    let (running, shutdown) = world.begin();
    world.counted(&id, 2).await;
    shutdown.cancel();
    assert_eq!(running.await.unwrap(), Some(JobState::Queued));
    let waiting = world.job(&id).await;
    assert_eq!((waiting.attempt, waiting.crash_count), (0, 0));
    world.go(&id);
    assert_eq!(world.run().await, JobState::Succeeded);
    world.one_result(&id, 4).await;
    let ids = fake.submissions();
    assert!(ids.len() == 2 && ids[0] != ids[1], "the number of the attempt repeats, its id does not: {ids:?}");
}

/// Whether the trainer of an attempt still works.
fn lives(job_dir: &Path, reference: &str) -> bool {
    let heartbeat = job_dir.join("attempts").join(reference.split_once('/').unwrap().1).join("heartbeat.json");
    let heartbeat: Value = serde_json::from_slice(&std::fs::read(heartbeat).unwrap()).unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", heartbeat["pid"])).unwrap_or_default();
    stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next()).is_some_and(|state| state != "Z")
}

/// A supervisor vanishes while its trainer works, and another one takes the job over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_supervisor_leaves_no_second_trainer() {
    for fake in [Some(FakeRay::start(&[]).await), None] {
        let place = match &fake {
            Some(fake) => ray(fake),
            // The new supervisor knows nothing of the old one's processes, and has no command to stop them.
            None => command(&["/bin/sh", "-c", "setsid {run}"]),
        };
        let world = World { lease_seconds: 2, ..World::new(place).await };
        let id = world.enqueue(json!({"steps": 4, "hold": 3})).await;
        let (running, _) = world.begin();
        world.counted(&id, 2).await;
        let first = world.job(&id).await.external_ref.unwrap();
        running.abort();
        assert!(running.await.unwrap_err().is_cancelled());
        let held = world.job(&id).await;
        // When another supervisor has the job, nothing of the former attempt is left; then the count may go on.
        let follow = async {
            while world.job(&id).await.external_ref.as_deref() == Some(&first) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            assert!(!lives(&world.data.path().join("jobs").join(id.as_str()), &first), "two trainers at once");
            world.go(&id);
        };
        let take_over = async {
            loop {
                match world.supervisor().run_one(&CancellationToken::new()).await.unwrap() {
                    Some(state) => break state,
                    None => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        };
        let ((), taken) = tokio::join!(follow, take_over);
        assert_eq!(taken, JobState::Succeeded, "{:?}", world.job(&id).await.error);
        world.one_result(&id, 4).await;
        let job = world.job(&id).await;
        assert_ne!(job.external_ref.as_deref(), Some(first.as_str()));
        // The former attempt's name opens nothing any more.
        let fence = Fence { job_id: id.clone(), attempt: held.attempt, lease_owner: held.lease_owner.unwrap() };
        assert!(world.store().jobs().place(&fence, None).await.is_err());
    }
}

/// What used to run elsewhere runs here after the configuration has changed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_comes_home() {
    let fake = FakeRay::start(&[]).await;
    let mut world = World::new(ray(&fake)).await;
    let id = world.enqueue(json!({"steps": 4, "hold": 3})).await;
    let (running, _) = world.begin();
    world.counted(&id, 2).await;
    fake.lose_workers();
    assert_eq!(running.await.unwrap(), Some(JobState::Queued));
    world.executors = ExecutorsConfig::default();
    world.go(&id);
    assert_eq!(world.run().await, JobState::Succeeded);
    world.one_result(&id, 4).await;
    assert_eq!(world.job(&id).await.external_ref, None);
    assert!(matches!(world.log(&id).await, RemoteLog::None(_)));
}

#[test]
fn recipes_of_the_configuration_exist() {
    let mut config = ExecutorsConfig { kinds: [("coumt".to_owned(), "local".to_owned())].into(), ..Default::default() };
    let error = instructd::jobs::executors::check(&config, RECIPES).unwrap_err().to_string();
    assert!(error.contains("executors.kinds.coumt") && error.contains("count"), "{error}");
    config.kinds = [("count".to_owned(), "local".to_owned())].into();
    instructd::jobs::executors::check(&config, RECIPES).unwrap();
}

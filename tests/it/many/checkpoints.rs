//! Checkpoints in the artifact store: what an upload keeps and removes, and a job that another machine goes on with.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use instructd::artifacts::{ArtifactError, Artifacts, Remote};
use instructd::domain::*;
use instructd::jobs::wire::Spec;
use instructd::jobs::{Launch, Supervisor, SupervisorConfig, queue};
use instructd::store::Store;
use instructd::train::recipes;
use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::store::{backend, fixture};

struct Machine {
    data: tempfile::TempDir,
    artifacts: Arc<Artifacts>,
}

impl Machine {
    fn new(store: &Arc<Store>, objects: &Arc<InMemory>) -> Self {
        let data = tempfile::tempdir().unwrap();
        let remote = Remote::new(objects.clone());
        let artifacts = Artifacts::with(data.path().to_owned(), store.clone(), Some(remote));
        Self { data, artifacts }
    }

    fn job_dir(&self, id: &JobId) -> PathBuf {
        self.data.path().join("jobs").join(id.as_str())
    }

    fn supervisor(&self, store: &Arc<Store>) -> Supervisor {
        let as_child = ["jobs::real::as_child", "--exact", "--ignored", "--nocapture", "--"].map(Into::into).to_vec();
        let launch = Launch { program: std::env::current_exe().unwrap(), args: as_child };
        let config = SupervisorConfig {
            threads: 1,
            tick: Duration::from_millis(20),
            grace: Duration::from_secs(60),
            ..SupervisorConfig::new(self.data.path().to_owned(), launch)
        };
        Supervisor::sharing(store.clone(), self.artifacts.clone(), recipes(), config)
    }
}

async fn names(objects: &InMemory) -> Vec<String> {
    let all: Vec<_> = objects.list(None).map_ok(|object| object.location.to_string()).try_collect().await.unwrap();
    let mut all: Vec<String> = all;
    all.sort();
    all
}

fn write(dir: &Path, path: &str, text: &str) -> String {
    let at = dir.join(path);
    std::fs::create_dir_all(at.parent().unwrap()).unwrap();
    std::fs::write(at, text).unwrap();
    path.to_owned()
}

#[tokio::test]
async fn the_newest_checkpoint_of_the_newest_attempt_counts() {
    let fresh = backend::sqlite().await.unwrap();
    let objects = Arc::new(InMemory::new());
    let (here, there) = (Machine::new(&fresh.store, &objects), Machine::new(&fresh.store, &objects));
    let (job, from, to) = (JobId::new(), here.data.path(), there.data.path().join("to"));
    assert_eq!(there.artifacts.latest_snapshot(&job).await.unwrap(), None);
    let data = write(from, "comparisons.jsonl", "data");
    let first = vec![data.clone(), write(from, "checkpoints/ckpt-1-a1/weights", "one")];
    here.artifacts.upload_snapshot(&job, 2, from, "ckpt-1-a1", first.clone()).await.unwrap();
    assert_eq!(names(&objects).await.len(), 3, "two files and the list of them");
    // The next one replaces it; what did not change is not doubled.
    let second = vec![data.clone(), write(from, "checkpoints/ckpt-2-a1/weights", "two")];
    here.artifacts.upload_snapshot(&job, 2, from, "ckpt-2-a1", second).await.unwrap();
    assert_eq!(names(&objects).await.len(), 3);
    // Somebody who has lost the job is late, and changes nothing for those who have it.
    here.artifacts.upload_snapshot(&job, 1, from, "ckpt-1-a1", first).await.unwrap();
    let found = there.artifacts.latest_snapshot(&job).await.unwrap().unwrap();
    assert_eq!((found.attempt, found.checkpoint.as_str()), (2, "ckpt-2-a1"));
    there.artifacts.download_snapshot(&job, &found, &to).await.unwrap();
    assert_eq!(std::fs::read(to.join("checkpoints/ckpt-2-a1/weights")).unwrap(), b"two");
    assert_eq!(std::fs::read(to.join("comparisons.jsonl")).unwrap(), b"data");
    // What was changed there is not believed.
    let weights = found.files.iter().find(|file| file.path.ends_with("weights")).unwrap();
    let key = object_store::path::Path::from(format!("jobs/{job}/files/{}", weights.sha256));
    objects.put(&key, PutPayload::from_static(b"owt")).await.unwrap();
    let error = there.artifacts.download_snapshot(&job, &found, &to).await.unwrap_err();
    assert!(matches!(error, ArtifactError::Damaged { .. }), "{error}");
    // A checkpoint that is gone leaves the one before.
    let gone = vec!["checkpoints/ckpt-3-a1/weights".to_owned()];
    assert!(here.artifacts.upload_snapshot(&job, 2, from, "ckpt-3-a1", gone).await.is_err());
    assert_eq!(there.artifacts.latest_snapshot(&job).await.unwrap(), Some(found));
    let other = JobId::new();
    here.artifacts.upload_snapshot(&other, 1, from, "ckpt-1-a1", vec![data]).await.unwrap();
    here.artifacts.remove_snapshots(&job).await.unwrap();
    assert!(names(&objects).await.iter().all(|name| name.contains(other.as_str())));
    let bad = JobId::from("../x");
    assert!(here.artifacts.latest_snapshot(&bad).await.is_err(), "ids of a restored database stay inside");
}

/// One machine stops in the middle and is never seen again; another one, which has nothing but the artifact store, ends
/// with the bits of a run that nobody disturbed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_machine_resumes_the_job_of_a_lost_one() {
    let fresh = backend::sqlite().await.unwrap();
    let (store, objects) = (fresh.store.clone(), Arc::new(InMemory::new()));
    let tiny = crate::support::fixture("llama-tiny").display().to_string();
    let base = ModelVersion { artifact_uri: tiny, ..fixture::model("base", ModelKind::Policy) };
    store.models().put(base.clone()).await.unwrap();
    store.models().activate(&base.id, fixture::T0).await.unwrap();
    for i in 0..12 {
        let mut prompt = fixture::prompt(&format!("question {i}"));
        prompt.split = if i < 10 { Split::Train } else { Split::Heldout };
        let texts: Vec<_> = ["t30", "t31"].iter().map(|t| fixture::completion(&prompt.id, t)).collect();
        let set = fixture::comparison_set(&prompt.id, &texts, 1);
        let judgment = fixture::judgment(&set, &"import".into(), None, &format!("k{i}"));
        fixture::import(&store, prompt, texts, set, judgment).await;
    }
    let enqueue = async |name: &str| {
        let args = json!({"epochs": 30, "batch_size": 2, "learning_rate": 1e-3, "max_length": 64, "checkpoint_every": 1,
            "device": "cpu", "publish_as": name});
        let request = queue::Request {
            kind: "reward".into(),
            args,
            unique_key: None,
            priority: 0,
            notes: Default::default(),
            now: fixture::T0,
        };
        queue::enqueue(&store, recipes(), request).await.unwrap().id
    };
    let job = enqueue("travelled").await;
    let lost = Machine::new(&store, &objects);
    {
        let (supervisor, shutdown) = (lost.supervisor(&store), CancellationToken::new());
        let stop = async {
            while lost.artifacts.latest_snapshot(&job).await.unwrap().is_none() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            shutdown.cancel();
        };
        let (state, ()) = tokio::join!(supervisor.run_one(&shutdown), stop);
        assert_eq!(state.unwrap(), Some(JobState::Queued), "{:?}", store.jobs().get(&job).await.unwrap().error);
    }
    let frozen = std::fs::read(lost.job_dir(&job).join("comparisons.jsonl")).unwrap();
    drop(lost);

    let other = Machine::new(&store, &objects);
    let supervisor = other.supervisor(&store);
    let state = supervisor.run_one(&CancellationToken::new()).await.unwrap();
    assert_eq!(state, Some(JobState::Succeeded), "{:?}", store.jobs().get(&job).await.unwrap().error);
    assert!(Spec::read(&other.job_dir(&job)).unwrap().resume, "it began with the checkpoint");
    assert_eq!(std::fs::read(other.job_dir(&job).join("comparisons.jsonl")).unwrap(), frozen, "and with the same data");
    assert!(names(&objects).await.iter().all(|name| !name.starts_with("jobs/")), "cleared after success");

    enqueue("undisturbed").await;
    let state = supervisor.run_one(&CancellationToken::new()).await.unwrap();
    assert_eq!(state, Some(JobState::Succeeded));
    let sha256 = async |name: &str| store.models().find(name).await.unwrap().unwrap().sha256;
    assert_eq!(sha256("travelled").await, sha256("undisturbed").await);
    let steps = async |id: &JobId| store.jobs().metrics(id, &["loss".into()]).await.unwrap().len();
    assert_eq!(steps(&job).await, 150, "thirty epochs of five batches, each once");
}

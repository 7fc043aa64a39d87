//! Two servers and two workers share a queue of short jobs while some of them are stopped for longer than a
//! lease: no job is completed twice, none is lost. Then one server promotes a result and the other serves it.
//! `INSTRUCTD_FLEET_JOBS`, `INSTRUCTD_FLEET_PAUSES` and `INSTRUCTD_FLEET_SEED` make a long run of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use instructd::domain::*;
use instructd::store::{Page, Store};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::crash::server::{Dice, Place, Server, setting};
use crate::store::backend::{self, Fresh};
use crate::support::eventually::{LONG, eventually};
use crate::support::fixture;

const LEASE: i64 = 2;

/// A worker process; dropping it kills it.
struct Worker(Child);

impl Worker {
    fn start(place: &Place) -> Self {
        std::fs::create_dir_all(&place.data_dir).unwrap();
        let log = std::fs::File::create(place.data_dir.join("worker.log")).unwrap();
        Self(place.command("worker").stdout(Stdio::null()).stderr(log).spawn().unwrap())
    }

    fn signal(&self, signal: libc::c_int) {
        // SAFETY: the child has not been waited for, so the pid is still its own.
        unsafe { libc::kill(self.0.id().cast_signed(), signal) };
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server or worker with a data directory of its own; models travel through the artifact store.
fn place(fresh: &Fresh, root: &Path, name: &str) -> Place {
    Place {
        model: "tiny".into(),
        ..Place::new(&fresh.url, &root.join(name))
            .with("INSTRUCTD_ARTIFACTS__URL", format!("file://{}", root.join("artifacts").display()))
            .with("INSTRUCTD_JOBS__LEASE_SECONDS", LEASE)
            // Every pause is a crash to the queue; here none of them is the job's fault.
            .with("INSTRUCTD_JOBS__MAX_CRASHES", 1_000_000)
            .with("INSTRUCTD_SERVER__DRAIN_TIMEOUT_SECONDS", 1)
    }
}

/// The model's name is known, its files are in the first server's data directory only.
fn put_tiny_model(data: &Path) {
    let to = data.join("models/tiny");
    std::fs::create_dir_all(&to).unwrap();
    for entry in std::fs::read_dir(fixture("llama-tied-tiny")).unwrap() {
        let from = entry.unwrap().path();
        std::fs::copy(&from, to.join(from.file_name().unwrap())).unwrap();
    }
}

async fn enqueue(server: &Server, name: &str) -> JobId {
    let args = json!({"epochs": 1, "batch_size": 4, "max_length": 16, "publish_as": name, "device": "cpu"});
    let job = server.call("POST", "/admin/jobs", Some(json!({"kind": "sft", "args": args}))).await;
    assert!([201, 202].contains(&job.status), "{}", job.json);
    job.json["id"].as_str().unwrap().into()
}

async fn demonstrate(server: &Server) {
    for i in 0..4 {
        let body = json!({"messages": [{"role": "user", "content": format!("t{i}")}], "completion": "t1 t2 t3"});
        server.call("POST", "/v1/demonstrations", Some(body)).await.expect(201);
    }
}

/// What the events of a job say: (succeeded how often, times of the starts).
async fn reported(store: &Store, id: &JobId) -> (usize, Vec<Micros>) {
    let events = store.jobs().events(id, 0, 10_000).await.unwrap();
    let of = |state: &str| {
        let state = json!(state);
        events.iter().filter(|e| e.kind == "state" && e.data["state"] == state).map(|e| e.created).collect::<Vec<_>>()
    };
    (of("succeeded").len(), of("running"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paused_workers_lose_and_double_nothing() {
    let Some(fresh) = backend::postgres().await else { return };
    let (jobs, pauses) = (setting("INSTRUCTD_FLEET_JOBS", 10), setting("INSTRUCTD_FLEET_PAUSES", 2));
    let mut dice = Dice(setting("INSTRUCTD_FLEET_SEED", 1));
    let root = tempfile::tempdir().unwrap();
    let places: Vec<Place> = ["a", "b", "w1", "w2"].iter().map(|n| place(&fresh, root.path(), n)).collect();
    put_tiny_model(&places[0].data_dir);
    let a = Server::start(&places[0]).await;
    let b = Server::start(&places[1]).await;
    demonstrate(&a).await;
    let mut ids = Vec::new();
    for i in 0..jobs {
        ids.push(enqueue(if i % 2 == 0 { &a } else { &b }, &format!("result-{i}")).await);
    }
    let workers = [Worker::start(&places[2]), Worker::start(&places[3])];

    // Somebody who has a job is stopped for longer than its lease, while others go on.
    let mut takeovers = Vec::new();
    for _ in 0..pauses {
        tokio::time::sleep(Duration::from_millis(dice.roll(1000))).await;
        let who = &workers[dice.roll(2) as usize];
        who.signal(libc::SIGSTOP);
        let stopped = fresh.store.now().await.unwrap();
        let held = running(&fresh.store, who.0.id()).await;
        tokio::time::sleep(Duration::from_millis(LEASE as u64 * 1000 + 500 + dice.roll(2000))).await;
        who.signal(libc::SIGCONT);
        takeovers.extend(held.into_iter().map(|id| (id, stopped)));
        if fresh.store.counts().await.unwrap().jobs_queued == 0 {
            break;
        }
    }
    eventually(LONG, "the end of all jobs", async || {
        let counts = fresh.store.counts().await.unwrap();
        (counts.jobs_queued + counts.jobs_running == 0).then_some(())
    })
    .await;

    let mut of_job: BTreeMap<JobId, Vec<String>> = BTreeMap::new();
    for model in fresh.store.models().list().await.unwrap() {
        if let Some(job) = model.job_id {
            of_job.entry(job).or_default().push(model.name);
        }
    }
    for id in &ids {
        let job = fresh.store.jobs().get(id).await.unwrap();
        assert_eq!(job.state, JobState::Succeeded, "{id}: {:?}", job.error);
        let (succeeded, _) = reported(&fresh.store, id).await;
        assert_eq!((succeeded, of_job[id].len()), (1, 1), "{id}: {:?}", of_job[id]);
    }
    let names: BTreeSet<_> = of_job.values().flatten().collect();
    assert_eq!(names.len(), ids.len(), "every job has a version of its own");
    let mut waits = Vec::new();
    for (id, stopped) in takeovers {
        let (_, starts) = reported(&fresh.store, &id).await;
        waits.extend(starts.into_iter().filter(|s| *s > stopped).take(1).map(|s| (s - stopped) as f64 / 1e6));
    }
    println!("{jobs} jobs by four processes; taken over {waits:.2?} s after the pause (lease {LEASE} s)");
    follows(&a, &b, &ids, &fresh.store).await;
}

/// The running jobs of one process: its id begins the name of their leases' owner.
async fn running(store: &Store, pid: u32) -> Vec<JobId> {
    let all = store.jobs().list(Page { after: None, limit: 100 }, Some(JobState::Running)).await.unwrap();
    let owned = |j: &Job| j.lease_owner.as_deref().is_some_and(|o| o.starts_with(&format!("{pid}-")));
    all.into_iter().filter(owned).map(|j| j.id).collect()
}

async fn serves(server: &Server) -> String {
    let ready = server.call("GET", "/ready", None).await.expect(200);
    ready["model"].as_str().unwrap().to_owned()
}

/// `a` promotes; `b` serves the same version soon after, and answers all the time. And the other way back.
async fn follows(a: &Server, b: &Server, ids: &[JobId], store: &Store) {
    for (i, (promoter, follower)) in [(a, b), (b, a)].into_iter().enumerate() {
        let job = store.jobs().get(&ids[i]).await.unwrap();
        let name = job.result.unwrap()["model"].as_str().unwrap().to_owned();
        promoter.call("POST", &format!("/admin/models/{name}/promote"), None).await.expect(200);
        let since = Instant::now();
        while serves(follower).await != name {
            let body: Value = json!({"prompt": [1, 2], "max_tokens": 2, "model": "tiny"});
            follower.call("POST", "/v1/completions", Some(body)).await.expect(200);
        }
        println!("{}: the other server followed a promotion within {:?}", store.backend(), since.elapsed());
        let body = json!({"prompt": [1, 2], "max_tokens": 2, "model": name});
        let answer = follower.call("POST", "/v1/completions", Some(body)).await.expect(200);
        assert_eq!(answer["model"], json!(name));
        assert_eq!(serves(promoter).await, name);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_on_one_sqlite_file_follow_each_other() {
    let fresh = backend::sqlite().await.unwrap();
    let root = tempfile::tempdir().unwrap();
    let (first, second) = (place(&fresh, root.path(), "a"), place(&fresh, root.path(), "b"));
    put_tiny_model(&first.data_dir);
    let a = Server::start(&first).await;
    let b = Server::start(&second).await;
    demonstrate(&a).await;
    let ids = [enqueue(&a, "one").await, enqueue(&b, "two").await];
    for id in &ids {
        let job = eventually(LONG, "the end of a job", async || {
            Some(fresh.store.jobs().get(id).await.unwrap()).filter(|job| job.state.is_terminal())
        });
        let job = job.await;
        assert_eq!(job.state, JobState::Succeeded, "{:?}", job.error);
    }
    follows(&a, &b, &ids, &fresh.store).await;
}
